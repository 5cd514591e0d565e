"""What fused_linear_cross_entropy's `SPEC` holds beside the entry point: reference, samples, cases."""

import torch
import torch.nn.functional as F

from ._cross_entropy_spec import cross_entropy_ref, only_wanted
from ._spec import Case, Sample, T, accum, upcast
from .linear_loss import plan

# the Function's arguments in their order, with their defaults
DEFAULTS = dict(
    _input=None,
    weight=None,
    target=None,
    bias=None,
    ce_weight=None,
    ignore_index=-100,
    lse_square_scale=0.0,
    label_smoothing=0.0,
    reduction="mean",
    softcap=None,
    return_z_loss=False,
    accum_dtype=None,
    use_token_scaling=False,
    return_token_accuracy=False,
    return_predicted_tokens=False,
    ce_impl=None,
    ce_mode=None,
    chunk_mem_const=1,
    memory_budget=None,
    skip_ignored=False,
)


def _token_scaled(z, target, ce_weight, ignore_index, lse_square_scale, label_smoothing, reduction):
    """(loss, z_loss), rows times their target's detached probability; the denominators of "mean" stay."""
    valid = target != ignore_index
    y = torch.where(valid, target, 0)
    t = torch.softmax(z, -1).gather(1, y[:, None])[:, 0].detach()
    ce = t * cross_entropy_ref(z, target, ce_weight, ignore_index, 0.0, label_smoothing, "none")
    z_loss = torch.where(valid, t * lse_square_scale * torch.logsumexp(z, -1) ** 2, 0)
    if reduction != "none":
        ce, z_loss = ce.sum(), z_loss.sum()
    if reduction == "mean" and valid.any():
        w_y = valid.to(z.dtype) if ce_weight is None else torch.where(valid, ce_weight.to(z.dtype)[y], 0)
        ce, z_loss = ce / w_y.sum(), z_loss / valid.sum()
    return ce + z_loss, z_loss.detach()


def logits_ref(x, weight, bias, accum_dtype, chunk_mem_const, memory_budget, loop_order=None):
    """x W^T + b by one product. Under a budget of its own the values are those of the blocks' products.

    A library adds up a product of 12 rows in another order than one of 90, so that here and there a 16-bit
    logit rounds the other way; a mean loss, in float32, shows every one of them, in either direction. With
    the same products on both sides the loss is held to its own roundings. The gradient stays that of the one
    product: its few roundings are what bounds the gradients that are added up over blocks.
    """
    logits = F.linear(x, weight, bias)
    if memory_budget is None:
        return logits
    n_rows = (
        plan(
            *x.shape,
            weight.shape[0],
            logits.dtype,
            weight.dtype,
            accum_dtype=accum_dtype,
            chunk_mem_const=chunk_mem_const,
            memory_budget=memory_budget,
            loop_order=loop_order,
            device=x.device,
        ).block_rows
        or 1
    )
    with torch.no_grad():
        for first in range(0, x.shape[0], n_rows):
            logits[first : first + n_rows] = F.linear(x[first : first + n_rows], weight, bias)
    return logits


def fused_linear_cross_entropy_ref(
    _input,
    weight,
    target,
    bias=None,
    ce_weight=None,
    ignore_index=-100,
    lse_square_scale=0.0,
    label_smoothing=0.0,
    reduction="mean",
    softcap=None,
    return_z_loss=False,
    accum_dtype=None,
    use_token_scaling=False,
    return_token_accuracy=False,
    return_predicted_tokens=False,
    ce_impl=None,
    ce_mode=None,
    chunk_mem_const=1,
    memory_budget=None,
    skip_ignored=False,
):
    """All logits, upcast, then the loss: what a model without the fused head does."""
    dtype = torch.promote_types(_input.dtype, weight.dtype)
    bias = None if bias is None else bias.to(dtype)
    logits = logits_ref(_input.to(dtype), weight.to(dtype), bias, accum_dtype, chunk_mem_const, memory_budget)
    loss, z_loss, accuracy, predicted = cross_entropy_ref(
        logits,
        target,
        ce_weight,
        ignore_index,
        lse_square_scale,
        label_smoothing,
        reduction,
        softcap,
        True,
        True,
        True,
    )
    if use_token_scaling:
        z = upcast(logits)
        z = z if softcap is None else softcap * torch.tanh(z / softcap)
        loss, z_loss = _token_scaled(
            z, target, ce_weight, ignore_index, lse_square_scale, label_smoothing, reduction
        )
    return only_wanted(
        (
            loss,
            z_loss if return_z_loss else None,
            accuracy if return_token_accuracy else None,
            predicted if return_predicted_tokens else None,
        )
    )


def _sample(
    n, h, v, bias=False, ce_weight=False, ignored=0.0, x_grad=True, w_grad=True, scale=0.3, **options
):
    name = f"{n}x{h}x{v}" + "".join(f"-{k}_{o}" for k, o in options.items()) + ("-bias" if bias else "")
    name += ("-ce_weight" if ce_weight else "") + (f"-ignored_{ignored}" if ignored else "")
    name += ("" if x_grad else "-frozen_input") + ("" if w_grad else "-frozen_weight")
    return Sample(
        name,
        {
            "_input": T((n, h), grad=x_grad),
            "weight": T((v, h), "w", grad=w_grad, scale=scale),
            "target": T((n,), "index", grad=False, high=v, ignored=ignored),
            "bias": T((v,), "w") if bias else None,
            "ce_weight": T((v,), "fp32", grad=False, positive=True) if ce_weight else None,
            **options,
        },
    )


_all = dict(return_z_loss=True, return_token_accuracy=True, return_predicted_tokens=True)
_terms = dict(lse_square_scale=1e-2, label_smoothing=0.1, softcap=3.0)
_base = _sample(9, 16, 45, bias=True, ignored=0.3)
_few_labels = _sample(29, 16, 5)
_cut = 3 * 45 * 8  # a budget of three rows of 45 logits in float64, six in float32, twelve in 16 bits


def _raw(args):
    x, weight, target, bias = (
        args[k].detach() if args[k] is not None else None for k in ("_input", "weight", "target", "bias")
    )
    code = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}[
        torch.promote_types(x.dtype, weight.dtype)
    ]
    ce_weight = torch.ones(weight.shape[0], device=x.device, dtype=accum(x))
    rows = torch.ones(x.shape[0], device=x.device, dtype=accum(x))
    op = torch.ops.liger.fused_linear_cross_entropy.default
    yes, no = (True, True, True), (False, False, False)
    tail, parts = (code, -1, 1, -1, _cut), (code, -1, 1, 1, 2**28)
    return [
        (op, (x, weight, target, bias, ce_weight, None, -100, 1e-2, 0.1, 1, 3.0, True, *yes, *yes, *parts)),
        (op, (x, weight, target, bias, ce_weight, None, -100, 1e-2, 0.1, 1, 3.0, True, *yes, *yes, *tail)),
        (op, (x, weight, target, bias, None, rows, -100, 0.0, 0.0, 0, 0.0, False, *no, *yes, *tail)),
        (op, (x, weight, target, None, None, None, -100, 0.0, 0.0, 2, 0.0, False, *no, *no, *tail)),
    ]


def _case(id, n, h, v):
    flops = 2 * n * h * v
    return Case(id, _sample(n, h, v, scale=h**-0.5), flops=(flops, 3 * flops))


SPEC_FIELDS = dict(
    name="fused_linear_cross_entropy",
    ref=fused_linear_cross_entropy_ref,
    samples=(
        _base,
        # without a gradient: tiles of 256 rows and columns on Hopper, of which the last are not whole
        _sample(500, 520, 517, bias=True, ignored=0.3, scale=0.05, reduction="none", memory_budget=_cut),
        _sample(249, 72, 260, scale=0.1),
        *(
            _sample(*shape)
            for shape in [
                (0, 16, 45),
                (1, 1, 1),
                (1, 8, 33),
                (7, 3, 2),
                (33, 65, 129),
                (5, 24, 2049),
                (130, 512, 70),
            ]
        ),
        *(_sample(n, 16, 45, bias=True, ignored=0.3, memory_budget=_cut) for n in (1, 12, 13, 50, 300)),
        _sample(7, 16, 45, memory_budget=1),  # row by row
        _sample(40, 16, 45, memory_budget=_cut, accum_dtype=torch.float32),
        _sample(90, 512, 45, scale=0.05, memory_budget=_cut),
        *(
            _sample(29, 16, 45, True, True, 0.3, reduction=r, memory_budget=_cut, **_terms, **_all)
            for r in ("mean", "sum", "none")
        ),
        *(
            _sample(
                29,
                16,
                45,
                ignored=0.3,
                reduction=r,
                memory_budget=_cut,
                use_token_scaling=True,
                lse_square_scale=1e-2,
            )
            for r in ("mean", "sum", "none")
        ),
        _sample(29, 16, 45, bias=True, x_grad=False, memory_budget=_cut),
        _sample(29, 16, 45, w_grad=False, memory_budget=_cut),
        _sample(29, 16, 45, x_grad=False, w_grad=False, bias=True, reduction="none", memory_budget=_cut),
        _sample(9, 16, 45, bias=True, ignored=1.0, **_terms, **_all),
        _sample(9, 16, 45, ignored=1.0, reduction="none"),
        _sample(29, 16, 45, chunk_mem_const=3),
    ),
    options=(
        (_base, _base.with_args("no_bias", bias=None)),
        (_base, _base.with_args("ce_weight", ce_weight=T((45,), "fp32", grad=False, positive=True))),
        (_few_labels, _few_labels.with_args("ignore_index", ignore_index=3)),
        (_base, _base.with_args("lse_square_scale", lse_square_scale=0.1)),
        (_base, _base.with_args("label_smoothing", label_smoothing=0.1)),
        (_base, _base.with_args("sum", reduction="sum")),
        (_base, _base.with_args("none", reduction="none")),
        (_base, _base.with_args("softcap", softcap=1.0)),
        (_base, _base.with_args("token_scaling", use_token_scaling=True)),
        (_base, _base.with_args("z_loss", return_z_loss=True)),
        (_base, _base.with_args("accuracy", return_token_accuracy=True)),
        (_base, _base.with_args("predicted", return_predicted_tokens=True)),
    ),
    raw=_raw,
    errors=(
        (r"weight has shape \(45, 15\), expected \(vocab_size, 16\)", {"weight": T((45, 15), "w")}),
        (r"x has shape \(3, 3, 16\), expected two dimensions", {"_input": T((3, 3, 16))}),
        (r"target has shape \(8,\), expected \(9,\)", {"target": T((8,), "index", grad=False, high=45)}),
        (r"target has dtype float", {"target": T((9,), "fp32", grad=False)}),
        (
            r"target\[\d\] is \d+, expected a value in \[0, 45\)",
            {"target": T((9,), "index", grad=False, low=45, high=99)},
        ),
        (r"bias has shape \(44,\), expected \(45,\)", {"bias": T((44,), "w")}),
        (r"ce_weight has shape \(44,\), expected \(45,\)", {"ce_weight": T((44,), "fp32", grad=False)}),
        (r"reduction is 'batchmean', expected", {"reduction": "batchmean"}),
        (r"label_smoothing is 1.5, expected", {"label_smoothing": 1.5}),
        (r"softcap is -1.0, expected", {"softcap": -1.0}),
        (r"accum_dtype is torch.int64, expected", {"accum_dtype": torch.int64}),
        (r"ce_impl is 'triton', expected", {"ce_impl": "triton"}),
        (r"ce_mode is 'fast', expected", {"ce_mode": "fast"}),
        (r"chunk_mem_const is True, expected an int", {"chunk_mem_const": True}),
        (r"chunk_mem_const is 0, expected an int", {"chunk_mem_const": 0}),
        (r"memory_budget is 0, expected a number of bytes", {"memory_budget": 0}),
    ),
    cases={
        "cpu": (_case("flce", 1024, 768, 32000),),
        "cuda": (
            _case("A", 8192, 4096, 128256),
            _case("B", 16384, 2048, 128256),
            _case("C", 4096, 4096, 32000),
        ),
    },
    grad_factor=3.0,
    big=_sample(9, 64, 1024, ignored=0.3, reduction="sum"),
    gemm=True,
    gradcheck=(
        _sample(5, 3, 7, True, True, 0.3, memory_budget=2 * 7 * 8, **_terms),
        _sample(5, 3, 7, True, True, 0.3, reduction="none", memory_budget=2 * 7 * 8, **_terms),
        _sample(4, 3, 5, reduction="sum"),
    ),
    notes="any dtypes, bias, frozen head or input, token scaling; logits bounded by the memory budget",
)
