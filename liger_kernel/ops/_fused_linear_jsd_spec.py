"""What fused_linear_jsd's `SPEC` holds beside the entry point: reference, samples, cases."""

import torch

from . import _distill as D
from ._spec import Case, Sample, T, accum, upcast
from .jsd import jsd_rows, valid_mean
from .linear_loss import DTYPE_CODES

_op, _op_ce = torch.ops.liger.fused_linear_jsd.default, torch.ops.liger.fused_linear_jsd_ce.default


def fused_linear_jsd_ref(
    student_input,
    student_weight,
    teacher_input,
    teacher_weight,
    shift_labels=None,
    jsd_beta=0.5,
    ignore_index=-100,
    temperature=1.0,
    accum_dtype=None,
    memory_budget=None,
):
    """All logits, upcast, then the loss."""
    z, rows = D.logits_ref(student_input, student_weight, memory_budget, 2, accum_dtype)
    zt, _ = D.logits_ref(teacher_input, teacher_weight, memory_budget, 2, block_rows=rows)
    x, y = (torch.log_softmax(upcast(logits) / temperature, -1) for logits in (z, zt))
    return valid_mean(jsd_rows(x, y.to(x.dtype), jsd_beta), shift_labels, ignore_index)


def _sample(n, h, v, teacher_h=None, labels=0.0, x_grad=True, w_grad=True, scale=0.3, **options):
    th = teacher_h or h + 3
    name = f"{n}x{h}+{th}x{v}" + "".join(f"-{k}_{o}" for k, o in options.items())
    name += (f"-labels_{labels}" if labels else "") + ("" if x_grad else "-frozen_input")
    args = {
        "student_input": T((n, h), grad=x_grad),
        "student_weight": T((v, h), "w", grad=w_grad, scale=scale),
        "teacher_input": T((n, th), grad=False),
        "teacher_weight": T((v, th), "w", grad=False, scale=scale),
    }
    if labels:
        args["shift_labels"] = T((n,), "index", grad=False, high=5, ignored=labels)
    return Sample(name + ("" if w_grad else "-frozen_weight"), {**args, **options})


_base = _sample(9, 16, 45, labels=0.3)
_few_labels = _sample(29, 16, 5, labels=0.3)
_cut = 2 * 3 * 45 * 8  # a budget of three rows of 45 logits of both heads in float64, six in float32


def _raw(args):
    x, w, tx, tw = (
        args[k].detach() for k in ("student_input", "student_weight", "teacher_input", "teacher_weight")
    )
    code = DTYPE_CODES[torch.promote_types(x.dtype, w.dtype)]
    one, labels = torch.ones((), device=x.device, dtype=accum(x)), args.get("shift_labels")
    bias = torch.zeros(w.shape[0], device=x.device, dtype=w.dtype)
    ids, two = torch.zeros(x.shape[0], device=x.device, dtype=torch.int64), torch.stack((one, one))
    v, tail = w.shape[0], (code, -1, _cut)
    half = (v + 1) // 2
    return [
        (_op, (x, w, tx, tw, None, None, labels, None, 0.5, -100, 1.0, True, True, False, *tail)),
        (_op, (x, w, tx, tw, bias, bias, None, one, 0.0, -100, 2.0, True, True, True, *tail)),
        (_op, (x, w, tx, tw, None, bias, None, None, 1.0, -100, 0.5, False, False, False, *tail)),
        (
            _op_ce,
            (x, w, tx, tw, bias, bias, ids, None, half, 0.5, 2.0, 0.3, -100, 2.0, True, True, True, *tail),
        ),
        (
            _op_ce,
            (x, w, tx, tw, None, None, ids, two, v, 1.0, 1.0, 0.0, -100, 1.0, False, True, True, *tail),
        ),
    ]


def _case(n, h, th, v):
    forward = 2 * n * v * (h + th)
    return Case(
        "fused_linear_jsd", _sample(n, h, v, th, scale=h**-0.5), flops=(forward, forward + 4 * n * v * h)
    )


SPEC_FIELDS = dict(
    name="fused_linear_jsd",
    ref=fused_linear_jsd_ref,
    big=_sample(9, 64, 1024),  # no row is ignored: a mean divides by all of them
    samples=(
        _base,
        *(_sample(*s) for s in [(0, 16, 45), (1, 1, 1), (1, 8, 33), (7, 3, 2), (5, 24, 2049), (33, 65, 129)]),
        *(_sample(n, 16, 45, labels=0.3, memory_budget=_cut) for n in (12, 13, 50)),
        *(
            _sample(29, 16, 45, labels=0.3, jsd_beta=beta, temperature=0.5, memory_budget=_cut)
            for beta in (0.0, 0.1, 0.9, 1.0)
        ),
        _sample(7, 16, 45, memory_budget=1),  # row by row
        _sample(40, 16, 45, memory_budget=_cut, accum_dtype=torch.float32),
        _sample(29, 16, 45, x_grad=False, memory_budget=_cut),
        _sample(29, 16, 45, w_grad=False, memory_budget=_cut),
        _sample(9, 16, 45, labels=1.0),
    ),
    options=(
        (_base, _base.with_args("beta", jsd_beta=0.1)),
        (_base, _base.with_args("beta_0", jsd_beta=0.0)),
        (_base, _base.with_args("beta_1", jsd_beta=1.0)),
        (_base, _base.with_args("temperature", temperature=2.0)),
        (_base, _base.with_args("no_labels", shift_labels=None)),
        (_few_labels, _few_labels.with_args("ignore_index", ignore_index=3)),
    ),
    raw=_raw,
    errors=(
        (
            r"student_weight has shape \(45, 15\), expected \(vocab_size, 16\)",
            {"student_weight": T((45, 15))},
        ),
        (
            r"teacher_weight has shape \(44, 19\), expected 45 rows",
            {"teacher_weight": T((44, 19), grad=False)},
        ),
        (r"teacher_input has shape \(8, 19\), expected 9 rows", {"teacher_input": T((8, 19), grad=False)}),
        (r"student_input has shape \(3, 3, 16\), expected two dim", {"student_input": T((3, 3, 16))}),
        (r"shift_labels has shape \(8,\), expected \(9,\)", {"shift_labels": T((8,), "index", high=5)}),
        (r"jsd_beta is -0.5, expected a value in \[0, 1\]", {"jsd_beta": -0.5}),
        (r"temperature is 0.0, expected a positive value", {"temperature": 0.0}),
        (r"accum_dtype is torch.int64, expected", {"accum_dtype": torch.int64}),
        (r"memory_budget is 0, expected a number of bytes", {"memory_budget": 0}),
    ),
    cases={"cpu": (_case(512, 512, 768, 32000),), "cuda": (_case(4096, 2048, 4096, 128256),)},
    grad_factor=3.0,
    gemm=True,
    gradcheck=(
        _sample(5, 3, 7, labels=0.3, memory_budget=2 * 2 * 7 * 8, temperature=1.5),
        *(_sample(4, 3, 5, jsd_beta=beta) for beta in (0.0, 1.0)),
    ),
    notes="two heads of any sizes and dtypes; beta, temperature, ignored labels; bounded by the budget",
)
