"""Embedding: rows of a table by their numbers. Reference, spec, fakes, autograd.

    y_t  = w_{ids_t}
    dw_v = sum of dy_t over the t with ids_t = v, in the order of t; 0 for v = padding_idx

Source: torch.nn.functional.embedding.
"""

import torch

from ._labels import check_indices
from ._spec import Case, OpSpec, Sample, T

__all__ = ["LigerEmbeddingFunction"]

_fwd = torch.ops.liger.embedding_fwd.default
_bwd = torch.ops.liger.embedding_bwd.default


@torch.library.register_fake("liger::embedding_fwd")
def _(embeddings, indices):
    return embeddings.new_empty((*indices.shape, embeddings.shape[1]))


@torch.library.register_fake("liger::embedding_bwd")
def _(dy, sorted_ids, order, num_embeddings, padding_idx):
    return dy.new_empty((num_embeddings, dy.shape[-1]))


def _padding_row(padding_idx, num_embeddings):
    """The row without gradient, counted from 0; -1 for none."""
    if padding_idx is None:
        return -1
    if not -num_embeddings <= padding_idx < num_embeddings:
        raise ValueError(
            f"padding_idx is {padding_idx}, expected {-num_embeddings} to {num_embeddings - 1}, "
            "the rows of embeddings, or None"
        )
    return padding_idx % num_embeddings


class LigerEmbeddingFunction(torch.autograd.Function):
    """y = embeddings[indices], differentiable in embeddings.

    embeddings: (num_embeddings, embedding_dim), any strides, float32, bfloat16, float16 (float64 on the CPU);
    indices: any shape, int64 or int32; y: (*indices.shape, embedding_dim). padding_idx: a row whose gradient
    is 0. The gradient is dense and deterministic: the ids are sorted, each row's terms are added up in fp32
    in their order and rounded once.
    Raises RuntimeError for a wrong device, dtype or rank and, on the CPU, for an index out of range, naming
    its place and value; ValueError for a padding_idx out of range. On a GPU such an index gives NaN and no
    gradient, or with LIGER_DEBUG=1 the same error.
    """

    @staticmethod
    def forward(ctx, embeddings, indices, padding_idx=None):
        if indices.dtype == torch.int32:
            indices = indices.long()
        if embeddings.dim() == 2:
            ctx.rows = embeddings.shape[0], _padding_row(padding_idx, embeddings.shape[0])
            check_indices("embedding_fwd", "indices", indices, embeddings.shape[0], "the rows of embeddings")
        ctx.save_for_backward(indices)
        return _fwd(embeddings, indices)

    @staticmethod
    def backward(ctx, grad_output):
        (indices,) = ctx.saved_tensors
        sorted_ids, order = torch.sort(indices.reshape(-1), stable=True)
        dw = _bwd(grad_output, sorted_ids, order, *ctx.rows)
        return (dw, *(None,) * (len(ctx.needs_input_grad) - 1))


def embedding_ref(indices, embeddings, padding_idx=None):
    if embeddings.shape[1] == 0:  # torch 2.11's backward on a GPU reads memory that is not there
        return embeddings.sum() + embeddings.new_zeros((*indices.shape, 0))
    return torch.nn.functional.embedding(indices, embeddings, padding_idx)


def _embedding(indices, embeddings, padding_idx=None):
    return LigerEmbeddingFunction.apply(embeddings, indices, padding_idx)


def _sample(ids, vocab_size, hidden_size, **options):
    name = "x".join(map(str, ids)) + f"-of-{vocab_size}x{hidden_size}"
    name += "".join(f"-{k}_{v}" for k, v in options.items())
    index = T(ids, "index", grad=False, high=vocab_size)
    return Sample(name, {"indices": index, "embeddings": T((vocab_size, hidden_size), "w"), **options})


def _raw(args):
    w, ids = args["embeddings"], args["indices"]
    y = _fwd(w, ids)
    sorted_ids, order = torch.sort(ids.reshape(-1), stable=True)
    return [(_fwd, (w, ids)), (_bwd, (y, sorted_ids, order, w.shape[0], args.get("padding_idx") or -1))]


def _case(n_rows, vocab_size, hidden_size, id):
    sample, n, v = _sample((n_rows,), vocab_size, hidden_size), n_rows * hidden_size, vocab_size * hidden_size
    return Case(id, sample, 2 * n, 3 * n + v)


_base = _sample((5, 7), 11, 48)
_once = {"indices": T((3000,), "index", grad=False, low=6, high=7)}
SPEC = OpSpec(
    name="embedding",
    fn=_embedding,
    ref=embedding_ref,
    samples=(
        _base,
        _sample((5, 7), 11, 48, padding_idx=3),
        _sample((5, 7), 11, 33, padding_idx=-11),
        *(
            _sample(ids, v, h)
            for ids, v, h in [
                ((0,), 5, 8),
                ((2, 0), 5, 8),
                ((), 5, 8),
                ((3,), 5, 0),
                ((6,), 1, 1),
                ((4,), 9, 1025),
                ((300,), 4, 16),
                ((2, 3, 1000), 50, 24),  # runs across several slices
                ((4, 64), 5000, 40),
                ((70,), 3, 4099),
            ]
        ),
        Sample("3000-times-6", {**_once, "embeddings": T((9, 40), "w")}),
        Sample("3000-times-6-padding", {**_once, "embeddings": T((9, 40), "w"), "padding_idx": 6}),
    ),
    options=((_base, _base.with_args("padding", padding_idx=3)),),
    raw=_raw,
    errors=(
        (
            r"indices\[0, 0\] is 11, expected 0 to 10",
            {"indices": T((5, 7), "index", grad=False, low=11, high=12)},
        ),
        (r"indices\[0\] is -1, expected", {"indices": T((2,), "index", grad=False, low=-1, high=0)}),
        (r"padding_idx is 11, expected -11 to 10", {"padding_idx": 11}),
        (r"embeddings has shape \(11,\), expected two dim", {"embeddings": T((11,), "w")}),
        (r"indices has dtype float32, expected int64", {"indices": T((5, 7), "fp32", grad=False)}),
    ),
    cases={
        "cpu": (_case(2048, 32000, 2048, "32000x2048"),),
        "cuda": (_case(16384, 128256, 4096, "128256x4096"), _case(16384, 256000, 2048, "256000x2048")),
    },
    big=False,
    notes="padding_idx; the gradient without atomics, the same bits every run",
)
