"""Upstream's path of the embedding."""

from ..embedding import LigerEmbeddingFunction

__all__ = ["LigerEmbeddingFunction"]
