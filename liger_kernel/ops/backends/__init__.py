"""Upstream's place for alternative kernel languages. There is one implementation here, in C."""
