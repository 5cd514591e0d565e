"""What `SPEC` of cross_entropy holds beside the entry point: the reference in plain PyTorch, samples,
errors, benchmark cases."""

import torch

from ._spec import Case, Sample, T, upcast

_ops = torch.ops.liger


def cross_entropy_ref(
    _input,
    target,
    weight=None,
    ignore_index=-100,
    lse_square_scale=0.0,
    label_smoothing=0.0,
    reduction="mean",
    softcap=None,
    return_z_loss=False,
    return_token_accuracy=False,
    return_predicted_tokens=False,
    in_place=False,
    masked=0,
):
    """The loss on fp32 logits (fp64 for fp64); the outputs asked for. masked: columns set to -inf."""
    z = upcast(mask_columns(_input, masked))
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    n, v = z.shape
    valid = target != ignore_index
    y = torch.where(valid, target, 0)
    w = z.new_ones(v) if weight is None else weight.to(z.dtype)
    w_y = torch.where(valid, w[y], 0)
    logp = torch.log_softmax(z, -1)
    ce = -(1 - label_smoothing) * w_y * logp.gather(1, y[:, None])[:, 0]
    if label_smoothing:
        ce = ce - label_smoothing / v * (w * logp).sum(-1)
    z_loss = lse_square_scale * torch.logsumexp(z, -1) ** 2
    ce, z_loss = torch.where(valid, ce, 0), torch.where(valid, z_loss, 0)
    n_valid, w_valid = valid.sum(), w_y.sum()
    predicted = torch.where(valid, z.argmax(-1), -1)
    accuracy = (predicted == target).to(z.dtype)
    if reduction != "none":
        mean = reduction == "mean" and n_valid > 0
        ce, z_loss = ce.sum() / (w_valid if mean else 1), z_loss.sum() / (n_valid if mean else 1)
        accuracy = accuracy.sum() / max(n_valid, 1)
    outputs = (
        ce + z_loss,
        z_loss.detach() if return_z_loss else None,
        accuracy if return_token_accuracy else None,
        predicted if return_predicted_tokens else None,
    )
    return only_wanted(outputs)


def mask_columns(x, masked):
    """x with its last `masked` columns -inf (masked < 0: the first), as forbidden vocabulary has them."""
    if not masked:
        return x
    column = torch.arange(x.shape[1], device=x.device)
    return x.masked_fill(column >= x.shape[1] - masked if masked > 0 else column < -masked, -torch.inf)


def only_wanted(outputs):
    outputs = tuple(o for o in outputs if o is not None)
    return outputs[0] if len(outputs) == 1 else outputs


def _sample(n, v, weight=False, ignored=0.0, scale=1.0, mean=0.0, labels=None, first=0, **options):
    name = f"{n}x{v}" + "".join(f"-{k}_{o}" for k, o in options.items())
    name += (
        ("-weight" if weight else "")
        + (f"-ignored_{ignored}" if ignored else "")
        + (f"-scale_{scale}" if scale != 1 else "")
    )
    return Sample(
        name + (f"-mean_{mean}" if mean else ""),
        {
            "_input": T((n, v), scale=scale, mean=mean),
            "target": T((n,), "index", grad=False, low=first, high=labels or v, ignored=ignored),
            "weight": T((v,), "fp32", grad=False, positive=True) if weight else None,
            **options,
        },
    )


_all = dict(return_z_loss=True, return_token_accuracy=True, return_predicted_tokens=True)
_base = _sample(7, 45, ignored=0.3)
_SIZES = ((0, 8), (1, 1), (3, 1), (5, 2), (33, 127), (3, 2048), (4, 2049), (2, 8193), (2, 32000))
_ALL_OPTIONS = dict(lse_square_scale=1e-2, label_smoothing=0.1, softcap=3.0)


def _raw(args):
    x, target, weight = args["_input"].detach(), args["target"], args.get("weight")
    weight = None if weight is None else upcast(weight)
    options = (target, weight, -100, 1e-2, 0.1, 1, 3.0)
    per_row = (target, weight, -100, 1e-2, 0.1, 0, 3.0)
    loss, *_, dx = _ops.cross_entropy(x, *options, True, True, True, True)
    rows = loss.new_ones(x.shape[0])
    return [
        (_ops.cross_entropy.default, (x, *options, True, True, True, True)),
        (_ops.cross_entropy.default, (x, *per_row, False, True, False, False)),
        (_ops.cross_entropy_.default, (x.clone(), *options, True, True, False)),
        (_ops.cross_entropy_bwd.default, (rows, x, *per_row)),
        (_ops.cross_entropy_bwd_.default, (x.clone(), loss, *options)),
        (_ops.scale_grad.default, (dx, loss)),
        (_ops.scale_grad.default, (dx, rows)),
        (_ops.scale_grad_.default, (dx, loss)),
    ]


def _case(n, v):
    return Case("cross_entropy", _sample(n, v), n * v, 2 * n * v)


SPEC_FIELDS = dict(
    name="cross_entropy",
    ref=cross_entropy_ref,
    samples=(
        _base,
        *(_sample(n, v) for n, v in _SIZES),
        *(_sample(2, v) for v in (65536, 65544, 131072, 200001)),  # around what a chip holds
        _sample(5, 45, ignored=1.0, **_all),
        *(_sample(9, 72, ignored=0.3, reduction=r, **_all, **_ALL_OPTIONS) for r in ("mean", "sum", "none")),
        *(
            _sample(9, 5003, weight=True, ignored=0.3, reduction=r, **_ALL_OPTIONS)
            for r in ("mean", "sum", "none")
        ),
        *(_sample(9, 72, weight=True, ignored=0.3, **{k: o}) for k, o in _ALL_OPTIONS.items()),
        _sample(9, 72, weight=True, reduction="none", **_all),
        _sample(9, 72, scale=1e4),  # probabilities 0 and 1
        _sample(9, 4099, mean=1e4, label_smoothing=0.1),  # only differences to the maximum carry information
        _sample(6, 100, labels=97, masked=3),
        _sample(6, 4100, labels=2000, masked=2100, reduction="none", **_all),  # whole tiles of -inf
        _sample(6, 4100, first=2100, mean=-200.0, masked=-2100, reduction="none", **_all),
    ),
    options=(
        (_base, _base.with_args("weight", weight=T((45,), "fp32", grad=False, positive=True))),
        (_sample(40, 45, labels=3), _sample(40, 45, labels=3).with_args("ignore_index", ignore_index=1)),
        (_base, _base.with_args("lse_square_scale", lse_square_scale=0.1)),
        (_base, _base.with_args("label_smoothing", label_smoothing=0.1)),
        (_base, _base.with_args("sum", reduction="sum")),
        (_base, _base.with_args("none", reduction="none")),
        (_base, _base.with_args("softcap", softcap=3.0)),
        (_base, _base.with_args("z_loss", return_z_loss=True)),
        (_base, _base.with_args("accuracy", return_token_accuracy=True)),
        (_base, _base.with_args("predicted", return_predicted_tokens=True)),
    ),
    raw=_raw,
    errors=(
        (r"target has shape \(6,\), expected \(7,\)", {"target": T((6,), "index", grad=False, high=45)}),
        (r"target has dtype float", {"target": T((7,), "fp32", grad=False)}),
        (r"x has shape \(7, 3, 15\), expected two dimensions", {"_input": T((7, 3, 15))}),
        (r"weight has shape \(44,\), expected \(45,\)", {"weight": T((44,), "fp32", grad=False)}),
        (r"reduction is 'batchmean', expected", {"reduction": "batchmean"}),
        (r"label_smoothing is 1.5, expected", {"label_smoothing": 1.5}),
        (r"softcap is -1.0, expected", {"softcap": -1.0}),
        (
            r"target\[\d\] is \d+, expected a value in \[0, 45\)",
            {"target": T((7,), "index", grad=False, low=45, high=99)},
        ),
    ),
    cases={"cpu": (_case(2048, 32000),), "cuda": (_case(16384, 128256),)},
    gradcheck=(
        _sample(4, 7, weight=True, ignored=0.3, **_ALL_OPTIONS),
        _sample(4, 7, weight=True, ignored=0.3, reduction="none", **_ALL_OPTIONS),
        _sample(3, 5, reduction="sum"),
    ),
    reduces=True,
    big=_sample(7, 45, ignored=0.3, reduction="sum"),  # a mean would scale by the number of rows
    notes="class weights, ignore_index, label smoothing, z-loss, softcap; loss in fp32",
)
