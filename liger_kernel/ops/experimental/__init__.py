"""Upstream's place for operators that it calls experimental; they live beside the others here."""
