"""Cross entropy and entropy of temperature-scaled logits per token, under the name that verl imports.

    z = x W^T / temperature,   nll = log sum_j e^z_j - z_y,   entropy = -sum_j p_j log p_j,
    selected_k = z_{s_k} - log sum_j e^z_j

A thin consumer of `linear_logprob`: nll = -logprob. Programs load this file by its path alone, so its imports
are absolute.
"""

import torch

from liger_kernel.ops._linear_logprob_spec import linear_logprob_ref
from liger_kernel.ops._spec import OpSpec, Sample, T
from liger_kernel.ops.linear_logprob import linear_logprob

__all__ = ["LigerFusedLinearScaledCrossEntropyFunction"]


def _check_call(
    _input, weight, target, ignore_index, m_tiles_per_cluster, return_entropy, selected_token_ids
):
    if _input.dim() != 2 or weight.dim() != 2 or _input.shape[1] != weight.shape[1]:
        raise ValueError(
            f"_input has shape {tuple(_input.shape)} and weight {tuple(weight.shape)}, "
            "expected (n_rows, hidden_size) and (vocab_size, hidden_size)"
        )
    if target.dtype != torch.int64:
        raise TypeError(f"target has dtype {target.dtype}, expected torch.int64")
    if target.shape != _input.shape[:1]:
        raise ValueError(f"target has shape {tuple(target.shape)}, expected ({_input.shape[0]},)")
    for name, value, kind in (
        ("ignore_index", ignore_index, int),
        ("m_tiles_per_cluster", m_tiles_per_cluster, int),
        ("return_entropy", return_entropy, bool),
    ):
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise TypeError(f"{name} is {value!r}, expected {'an int' if kind is int else 'a bool'}")
    if m_tiles_per_cluster < 1:
        raise ValueError(f"m_tiles_per_cluster is {m_tiles_per_cluster}, expected at least 1")
    if selected_token_ids is None:
        return
    if not isinstance(selected_token_ids, torch.Tensor) or selected_token_ids.dtype != torch.int64:
        came = getattr(selected_token_ids, "dtype", type(selected_token_ids).__name__)
        raise TypeError(f"selected_token_ids is {came}, expected an int64 tensor")
    if selected_token_ids.dim() != 1:
        raise ValueError(f"selected_token_ids has shape {tuple(selected_token_ids.shape)}, expected (K,)")


class LigerFusedLinearScaledCrossEntropyFunction:
    """`apply` gives nll, (nll, entropy), (nll, selected) or (nll, entropy, selected).

    Not an autograd Function itself: `apply` calls one.
    """

    @staticmethod
    def apply(
        _input,
        weight,
        target,
        temperature=1.0,
        ignore_index=-100,
        m_tiles_per_cluster=1,
        return_entropy=False,
        selected_token_ids=None,
    ):
        """Per-token outputs, float32 (float64 for float64), 0 on ignored rows, differentiable.

        _input: (n_rows, hidden_size), weight: (vocab_size, hidden_size): float32, bfloat16, float16 (float64
        on the CPU). target: (n_rows,) int64, token ids or ignore_index. nll and entropy are (n_rows,).
        selected_token_ids: None, or (K,) int64 ids, whose log-probabilities `selected` (n_rows, K) has in
        their order, repetitions kept. m_tiles_per_cluster: accepted, and without meaning here. Raises
        TypeError and ValueError for arguments of a wrong kind, shape or value; an id out of range is a
        RuntimeError on the CPU and NaN on a GPU.
        """
        _check_call(
            _input, weight, target, ignore_index, m_tiles_per_cluster, return_entropy, selected_token_ids
        )
        out = linear_logprob(
            _input,
            weight,
            target,
            temperature=temperature,
            ignore_index=ignore_index,
            return_entropy=return_entropy,
            extra_ids=selected_token_ids,
        )
        # 0 - logprob: an ignored row gives 0, where negation gives -0
        results = [o for o in (0 - out.logprob, out.entropy, out.extra_logprob) if o is not None]
        return results[0] if len(results) == 1 else tuple(results)


def fused_linear_scaled_cross_entropy_ref(
    _input,
    weight,
    target,
    temperature=1.0,
    ignore_index=-100,
    m_tiles_per_cluster=1,
    return_entropy=False,
    selected_token_ids=None,
):
    logprob, _, entropy, _, _, selected = linear_logprob_ref(
        _input,
        weight,
        target,
        temperature=temperature,
        ignore_index=ignore_index,
        return_entropy=return_entropy,
        extra_ids=selected_token_ids,
    )
    results = tuple(o for o in (0 - logprob, entropy, selected) if o is not None)
    return results[0] if len(results) == 1 else results


def _sample(n, h, v, k=0, ignored=0.0, **options):
    name = f"{n}x{h}x{v}" + (f"-k_{k}" if k else "") + "".join(f"-{a}_{b}" for a, b in options.items())
    return Sample(
        name,
        {
            "_input": T((n, h)),
            "weight": T((v, h), "w"),
            "target": T((n,), "index", grad=False, high=v, ignored=ignored),
            "selected_token_ids": T((k,), "index", grad=False, high=v) if k else None,
            **options,
        },
    )


_base = _sample(9, 16, 45, 4, 0.3, temperature=0.7, return_entropy=True)
_few = _sample(29, 16, 5)
# without selected ids: for a symbolic n_rows torch 2.13's Inductor gives the saved (n_rows, K) the strides of
# another output
_dynamic = (
    _sample(9, 16, 45, temperature=0.7),
    _sample(33, 24, 65, temperature=0.7),
    _sample(5, 8, 30, temperature=0.7),
)

SPEC = OpSpec(
    name="fused_linear_scaled_cross_entropy",
    fn=LigerFusedLinearScaledCrossEntropyFunction.apply,
    ref=fused_linear_scaled_cross_entropy_ref,
    samples=(_base, _sample(0, 8, 5, 2), _sample(1, 1, 1), _sample(33, 24, 2049), _sample(7, 16, 45, 3)),
    dynamic=_dynamic,
    options=(
        (_base, _base.with_args("temperature", temperature=2.0)),
        (_base, _base.with_args("no-entropy", return_entropy=False)),
        (_base, _base.with_args("no-selected", selected_token_ids=None)),
        (_few, _few.with_args("ignore_index", ignore_index=3)),
    ),
    errors=(
        (r"_input has shape \(9, 15\) and weight \(45, 16\), expected", {"_input": T((9, 15))}),
        (r"target has dtype torch.float", {"target": T((9,), "fp32", grad=False)}),
        (r"target has shape \(8,\), expected \(9,\)", {"target": T((8,), "index", grad=False, high=9)}),
        (r"return_entropy is 1, expected a bool", {"return_entropy": 1}),
        (r"ignore_index is None, expected an int", {"ignore_index": None}),
        (r"m_tiles_per_cluster is 0, expected at least 1", {"m_tiles_per_cluster": 0}),
        (r"m_tiles_per_cluster is True, expected an int", {"m_tiles_per_cluster": True}),
        (r"temperature is 0.0, expected a positive", {"temperature": 0.0}),
        (r"selected_token_ids is list, expected an int64", {"selected_token_ids": [1, 2]}),
        (
            r"selected_token_ids has shape \(2, 2\), expected \(K,\)",
            {"selected_token_ids": T((2, 2), "index", grad=False, high=9)},
        ),
        (
            r"ids\[[\d, ]+\] is \d+, expected a value in \[0, 45\)",
            {"selected_token_ids": T((4,), "index", grad=False, low=45, high=99)},
        ),
    ),
    grad_factor=3.0,
    gemm=True,
    gradcheck=(_sample(4, 3, 5, 3, 0.3, temperature=0.7, return_entropy=True),),
    notes="per-token nll, entropy and selected log-probabilities, as verl calls it",
)
