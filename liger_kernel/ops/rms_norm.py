"""Root mean square normalisation: reference, spec, fakes, autograd.

    rstd = 1 / sqrt(mean(x^2) + eps)            per row of the last dimension
    y    = x * rstd * (w + offset)
    dx   = rstd * (m - x * rstd^2 * mean(m * x)),   m = dy * (w + offset)
    dw   = sum over rows of dy * x * rstd

Source: arXiv:1910.07467; LlamaRMSNorm and GemmaRMSNorm in transformers.
"""

import torch

from ._spec import Case, OpSpec, Sample, T, accum, upcast

__all__ = ["LigerRMSNormFunction", "rms_norm_forward", "rms_norm_backward"]

_fwd = torch.ops.liger.rms_norm_fwd.default
_bwd = torch.ops.liger.rms_norm_bwd.default
_CASTING = {
    "none": 0,
    "llama": 1,
    "gemma": 2,
    -1: 0,
    0: 1,
    1: 2,
}  # names, and the integers upstream knows them by


def _casting_code(casting_mode):
    try:
        return _CASTING[casting_mode]
    except KeyError:
        raise ValueError(f"casting_mode is {casting_mode!r}, expected 'llama', 'gemma' or 'none'") from None


@torch.library.register_fake("liger::rms_norm_fwd")
def _(x, weight, eps, offset, casting):
    n_rows = x.numel() // x.shape[-1] if x.shape[-1] else 0
    return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty((n_rows,), dtype=accum(x))


@torch.library.register_fake("liger::rms_norm_bwd")
def _(dy, x, weight, rstd, offset, needs_dw):
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    if weight is None:
        return dx, x.new_empty((0,))
    return dx, weight.new_empty((weight.shape[0] if needs_dw else 0,))


class LigerRMSNormFunction(torch.autograd.Function):
    """y = rms_norm(x) * (w + offset), differentiable in x and w.

    X: (..., n_cols), float32, bfloat16, float16 (float64 on the CPU), any strides. W: (n_cols,) of any of
    these dtypes, or None. casting_mode: "llama" rounds x * rstd to X's dtype before the weight is applied,
    "gemma" and "none" round once, at the end. `in_place` and `row_mode` are accepted for compatibility:
    nothing is written in place, and the launch plan follows the sizes. Raises RuntimeError for a wrong
    device, dtype or size (naming the argument), ValueError for an unknown casting_mode.
    """

    @staticmethod
    def forward(ctx, X, W, eps, offset=0.0, casting_mode="llama", in_place=True, row_mode=None):
        y, rstd = _fwd(X, W, eps, offset, _casting_code(casting_mode))
        ctx.save_for_backward(X, W, rstd)
        ctx.offset = offset
        return y

    @staticmethod
    def backward(ctx, dY):
        X, W, rstd = ctx.saved_tensors
        needs = ctx.needs_input_grad
        dx, dw = _bwd(dY, X, W, rstd, ctx.offset, needs[1])
        return (dx, dw if needs[1] else None, *(None,) * (len(needs) - 2))


def rms_norm_forward(X, W, eps, offset, casting_mode, row_mode):
    """Upstream's helper: (Y, X as rows, RSTD, block size, warps, casting mode). The two launch numbers are
    None here.
    """
    code = _casting_code(casting_mode)
    y, rstd = _fwd(X, W, eps, offset, code)
    return y, X.reshape(-1, X.shape[-1]), rstd, None, None, {0: -1, 1: 0, 2: 1}[code]


def rms_norm_backward(
    dY, X, W, RSTD, offset, casting_mode, BLOCK_SIZE, num_warps, in_place, row_mode, needs_dw=None
):
    """Upstream's helper: (dX, dW), dW None where it is not needed. `dY` is never written to."""
    needs = W is not None and needs_dw is not False
    dx, dw = _bwd(dY.reshape(X.shape), X, W, RSTD, offset, needs)
    return dx.reshape(dY.shape), dw if needs else None


def rms_norm_ref(X, W, eps=1e-6, offset=0.0, casting_mode="llama", in_place=True, row_mode=None):
    x = upcast(X)
    x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    if W is None:
        return x.to(X.dtype)
    if casting_mode == "llama":
        return ((W + offset if offset else W) * x.to(X.dtype)).to(X.dtype)
    return (x * (upcast(W) + offset)).to(X.dtype)


def _rms_norm(X, W, eps=1e-6, offset=0.0, casting_mode="llama", in_place=True, row_mode=None):
    return LigerRMSNormFunction.apply(X, W, eps, offset, casting_mode, in_place, row_mode)


def _sample(*shape, weight=True, **options):
    name = (
        "x".join(map(str, shape))
        + "".join(f"-{v}" for v in options.values())
        + ("" if weight else "-no_weight")
    )
    one = shape[-1:] == (1,)  # the two terms of dX, rstd * m, cancel but for eps; the mean keeps rstd below 1
    x, floor = T(shape, mean=5.0 if one else 0.0), 1.0 if one else 0.0
    return Sample(name, {"X": x, "W": T(shape[-1:], "w") if weight else None, "eps": 1e-6, **options}, floor)


def _raw(args):
    x, w, eps, offset = args["X"], args["W"], args["eps"], args.get("offset", 0.0)
    y, rstd = _fwd(x, w, eps, offset, 1)
    return [(_fwd, (x, w, eps, offset, 1)), (_bwd, (y, x, w, rstd, offset, w is not None))]


def _case(n_rows, n_cols, id=None):
    n = n_rows * n_cols
    return Case(id or f"{n_cols}", _sample(n_rows, n_cols), 2 * n, 5 * n)


_base = _sample(3, 5, 48)
SPEC = OpSpec(
    name="rms_norm",
    fn=_rms_norm,
    ref=rms_norm_ref,
    samples=(
        _base,
        *(
            _sample(*shape)
            for shape in [
                (0, 8),
                (1, 1),
                (3, 1),
                (2, 0),
                (7, 33),
                (40, 127),
                (300, 128),
                (5, 16),
                (2, 3, 2500),
                (3, 8193),
            ]
        ),
        *(
            _sample(*shape) for shape in [(3, 16384), (2, 16392), (2, 40000)]
        ),  # around what registers and buffers hold
        *(
            _sample(9, 72, casting_mode=mode, offset=offset)
            for mode in ("llama", "gemma", "none")
            for offset in (0.0, 1.0)
        ),
        _sample(9, 72, weight=False),
        Sample("mean-1000", {"X": T((6, 129), mean=1e3), "W": T((129,), "w"), "eps": 1e-6}),
    ),
    options=(
        (_base, _base.with_args("eps", eps=1e-1)),
        (_base, _base.with_args("offset", offset=1.0)),
        (_base, _base.with_args("gemma", casting_mode="gemma")),  # differs in bf16 alone
        (_base, _base.with_args("no_weight", W=None)),
    ),
    raw=_raw,
    errors=(
        (r"weight has shape \(5,\), expected \(48,\)", {"W": T((5,), "w")}),
        (r"casting_mode is 'bert', expected", {"casting_mode": "bert"}),
        (r"x has dtype int64, expected float32", {"X": T((4, 48), "index", grad=False, high=9)}),
    ),
    cases={
        "cpu": (_case(2048, 2048, "rms_norm"),),
        "cuda": (*(_case(16384, h) for h in (2048, 4096, 8192)), _case(16384 * 32, 128, "qk_128")),
    },
    reduces=True,
    notes="casting modes llama, gemma, none; offset; no weight",
)
