"""Modules that upstream calls experimental."""

from .embedding import LigerEmbedding

__all__ = ["LigerEmbedding"]
