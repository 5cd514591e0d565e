"""The embedding as a module."""

import torch
from torch import nn

from ...ops.embedding import LigerEmbeddingFunction

__all__ = ["LigerEmbedding"]


class LigerEmbedding(nn.Module):
    """y = weight[indices], a stand-in for nn.Embedding with a dense, deterministic gradient.

    num_embeddings, embedding_dim: the shape of `weight`, drawn from N(0, 1). padding_idx: a row (negative:
    from the end) that starts as 0 and takes no gradient. indices: any shape, int64 or int32. Raises
    ValueError for a padding_idx out of range; for indices out of range see `LigerEmbeddingFunction`.
    """

    def __init__(self, num_embeddings, embedding_dim, padding_idx=None):
        super().__init__()
        if padding_idx is not None and not -num_embeddings <= padding_idx < num_embeddings:
            raise ValueError(
                f"padding_idx is {padding_idx}, expected {-num_embeddings} to {num_embeddings - 1}, or None"
            )
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.padding_idx = padding_idx if padding_idx is None else padding_idx % num_embeddings
        self.weight = nn.Parameter(torch.randn(num_embeddings, embedding_dim))
        if padding_idx is not None:
            with torch.no_grad():
                self.weight[self.padding_idx].zero_()

    def forward(self, indices):
        return LigerEmbeddingFunction.apply(self.weight, indices, self.padding_idx)

    def extra_repr(self):
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"
