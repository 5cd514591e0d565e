"""What linear_logprob's `SPEC` holds beside the entry point: reference, samples, cases."""

import torch
import torch.nn.functional as F

from ._fused_linear_cross_entropy_spec import logits_ref
from ._spec import Case, Sample, T, accum, upcast

# without argmax: in the expanded layout all rows of the weight are one, and rounding alone decides it
_MOST = dict(return_lse=True, return_entropy=True, return_mean_logit=True)
_ALL = dict(_MOST, return_argmax=True)


def linear_logprob_ref(
    hidden,
    weight,
    ids,
    bias=None,
    *,
    temperature=1.0,
    logit_scale=1.0,
    softcap=None,
    ignore_index=-100,
    return_lse=False,
    return_entropy=False,
    return_argmax=False,
    return_mean_logit=False,
    extra_ids=None,
    memory_budget=None,
):
    """All logits, upcast, then one function of them after the other: what a trainer does without this op."""
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    bias = None if bias is None else bias.to(dtype)
    x = hidden.to(dtype).reshape(-1, hidden.shape[-1])
    z = logits_ref(x, weight.to(dtype), bias, None, 1, memory_budget, "token")
    z = upcast(z).reshape(*ids.shape, weight.shape[0]) * logit_scale
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    z = z / temperature
    valid = ids != ignore_index
    logp = F.log_softmax(z, -1)

    def rows(t):
        return torch.where(valid, t, 0)

    extra = None
    if extra_ids is not None:
        e = extra_ids.expand(*ids.shape, extra_ids.shape[-1])
        there = valid[..., None] & (e != ignore_index)
        extra = torch.where(there, logp.gather(-1, torch.where(there, e, 0)), 0)
    return (
        rows(logp.gather(-1, torch.where(valid, ids, 0)[..., None])[..., 0]),
        rows(z.logsumexp(-1)) if return_lse else None,
        rows(-(logp.exp() * logp).sum(-1)) if return_entropy else None,
        rows(z.argmax(-1)) if return_argmax else None,
        rows(z.mean(-1)) if return_mean_logit else None,
        extra,
    )


def _sample(shape, h, v, bias=False, ignored=0.0, extra=None, x_grad=True, w_grad=True, scale=1.0, **options):
    name = "x".join(map(str, (*shape, h, v))) + "".join(f"-{k}_{o}" for k, o in options.items())
    name += ("-bias" if bias else "") + (f"-ignored_{ignored}" if ignored else "")
    name += f"-extra_{'x'.join(map(str, extra))}" if extra else ""
    name += ("" if x_grad else "-frozen_hidden") + ("" if w_grad else "-frozen_head")
    return Sample(
        name,
        {
            "hidden": T((*shape, h), grad=x_grad),
            "weight": T((v, h), "w", grad=w_grad, scale=scale),
            "ids": T(shape, "index", grad=False, high=v, ignored=ignored),
            "bias": T((v,), "w") if bias else None,
            "extra_ids": T(extra, "index", grad=False, high=v, ignored=ignored) if extra else None,
            **options,
        },
    )


_base = _sample((9,), 16, 45, True, 0.3, (9, 5), **_MOST)
_few = _sample((29,), 16, 5)
_cut = 3 * 45 * 8  # a budget of three rows of 45 logits in float64, six in float32, twelve in 16 bits
_tile = 240 * 260 * 2  # 240 rows of 260 logits in 16 bits
_terms = dict(temperature=0.7, logit_scale=1.5, softcap=3.0)


def _raw(args):
    tensors = [args[k] for k in ("hidden", "weight", "ids", "bias", "extra_ids")]
    x, weight, ids, bias, extra = (t if t is None else t.detach() for t in tensors)
    if x.dim() != 2:
        return []
    if extra is not None and extra.dim() == 1:
        extra = extra.expand(x.shape[0], extra.shape[0])
    code = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}[
        torch.promote_types(x.dtype, weight.dtype)
    ]
    fwd, bwd = torch.ops.liger.linear_logprob_fwd.default, torch.ops.liger.linear_logprob_bwd.default
    over = torch.ops.liger.linear_logprob_bwd_.default
    numbers, big = (1.5, 3.0, 0.7, -100), 2**28
    rows = torch.ones(x.shape[0], device=x.device, dtype=accum(x))
    calls, yes, no = [], (True,) * 3, (False,) * 3
    for e, budget, keep in ((extra, _cut, False), (extra, big, True), (None, _cut, False)):
        forward = (x, weight, ids, bias, e, *numbers, *yes, True, True, keep, code, budget)
        *_, stats, logits = fwd(*forward)
        given = (rows, rows, rows, rows, None if e is None else torch.ones_like(e, dtype=accum(x)))
        saved = (x, weight, ids, bias, e, stats, logits if keep else None)
        calls += [(fwd, forward), (bwd, (*saved, *given, *numbers, *yes, code, budget))]
        if keep:
            rest = (*given, *numbers, *yes, code, budget)
            calls += [(over, (*saved[:-1], logits.clone(), spent, *rest)) for spent in (False, True)]
    calls.append((fwd, (x, weight, ids, None, None, *numbers, *no, False, False, False, code, big)))
    calls.append((bwd, (*saved, rows, None, None, None, None, *numbers, *no, code, big)))
    return calls


def _case(id, n, h, v, **options):
    flops = 2 * n * h * v
    return Case(id, _sample((n,), h, v, scale=h**-0.5, **options), flops=(flops, 3 * flops))


SPEC_FIELDS = dict(
    name="linear_logprob",
    ref=linear_logprob_ref,
    samples=(
        _base,
        # tiles of 256 rows and columns on Hopper, where the last block's logits are kept and where nothing is
        _sample((700,), 72, 260, True, 0.3, scale=0.1, return_lse=True, temperature=0.7, memory_budget=_tile),
        _sample((500,), 136, 517, scale=0.1),
        _sample((2, 5), 16, 45, True, 0.3, (7,), **_MOST),
        *(
            _sample(shape, h, v, extra=(3,), **_MOST)
            for shape, h, v in [
                ((0,), 16, 45),
                ((1,), 1, 1),
                ((), 8, 33),
                ((2, 3, 1), 3, 2),
                ((33,), 65, 129),
                ((5,), 24, 2049),
                ((3,), 16, 4099),
                ((130,), 512, 70),
            ]
        ),
        _sample((7,), 3, 2),
        *(
            _sample(
                (n,), 16, 45, True, 0.3, (n, 4), memory_budget=_cut, **(_MOST if n == 1 else _ALL), **_terms
            )
            for n in (1, 12, 13, 50, 300)
        ),
        _sample((7,), 16, 45, memory_budget=1),  # row by row
        _sample((90,), 512, 45, scale=0.05, memory_budget=_cut),
        _sample((29,), 16, 45, ignored=0.3, extra=(29, 70), memory_budget=_cut),  # more ids than classes
        _sample((5,), 16, 300, extra=(5, 500)),  # and more than a block's threads
        *(_sample((29,), 16, 45, ignored=0.3, **{name: True}) for name in _ALL),
        *(_sample((n,), 24, 4099, scale=0.2, return_argmax=True) for n in (1, 6)),
        _sample((29,), 16, 45, bias=True, x_grad=False, memory_budget=_cut, **_ALL),
        _sample((29,), 16, 45, w_grad=False, memory_budget=_cut),
        _sample((29,), 16, 45, True, x_grad=False, w_grad=False, memory_budget=_cut, return_entropy=True),
        _sample((9,), 16, 45, True, 1.0, (9, 5), **_ALL, **_terms),
    ),
    options=(
        (_base, _base.with_args("no_bias", bias=None)),
        (_base, _base.with_args("temperature", temperature=0.5)),
        (_base, _base.with_args("logit_scale", logit_scale=0.5)),
        (_base, _base.with_args("softcap", softcap=1.0)),
        (_base, _base.with_args("argmax", return_argmax=True)),
        (_few, _few.with_args("ignore_index", ignore_index=3)),
        *((_base, _base.with_args(f"no-{name}", **{name: False})) for name in _MOST),
        (_base, _base.with_args("no-extra_ids", extra_ids=None)),
        (_base, _base.with_args("shared-extra_ids", extra_ids=T((5,), "index", grad=False, high=45))),
    ),
    raw=_raw,
    errors=(
        (r"weight has shape \(45, 15\), expected \(vocab_size, 16\)", {"weight": T((45, 15), "w")}),
        (r"ids has shape \(8,\), expected \(9,\)", {"ids": T((8,), "index", grad=False, high=45)}),
        (r"ids has dtype float", {"ids": T((9,), "fp32", grad=False)}),
        (r"extra_ids has dtype float", {"extra_ids": T((5,), "fp32", grad=False)}),
        (
            r"extra_ids has shape \(8, 5\), expected \(K,\) or \(9, 'K'\)",
            {"extra_ids": T((8, 5), "index", grad=False, high=45)},
        ),
        (
            r"ids\[\d\] is \d+, expected a value in \[0, 45\) or ignore_index",
            {"ids": T((9,), "index", grad=False, low=45, high=99)},
        ),
        (
            r"extra_ids\[[\d, ]+\] is \d+, expected a value in \[0, 45\) or ignore_index",
            {"extra_ids": T((9, 5), "index", grad=False, low=45, high=99)},
        ),
        (r"bias has shape \(44,\), expected \(45,\)", {"bias": T((44,), "w")}),
        (r"temperature is 0.0, expected a positive", {"temperature": 0.0}),
        (r"temperature is -1.0, expected a positive", {"temperature": -1.0}),
        (r"softcap is -1.0, expected", {"softcap": -1.0}),
        (r"softcap is 0.0, expected", {"softcap": 0.0}),
        (r"memory_budget is 0, expected a number of bytes", {"memory_budget": 0}),
    ),
    cases={
        "cpu": (_case("logprob", 1024, 768, 32000), _case("entropy", 1024, 768, 32000, return_entropy=True)),
        "cuda": (
            _case("A", 8192, 4096, 128256),
            _case("A-entropy", 8192, 4096, 128256, return_entropy=True),
            _case("C", 4096, 4096, 32000),
        ),
    },
    grad_factor=3.0,
    big=_sample((9,), 64, 1024, ignored=0.3),
    gemm=True,
    gradcheck=(
        _sample((5,), 3, 7, True, 0.3, (5, 9), memory_budget=2 * 7 * 8, **_ALL, **_terms),
        _sample((2, 3), 3, 5, True, 0.3, (4,), **_ALL),
        _sample((4,), 3, 5),
    ),
    notes="any dtypes, bias, temperature, softcap, entropy, more ids; logits bounded by the memory budget",
)
