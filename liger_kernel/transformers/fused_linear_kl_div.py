"""KL divergence of a linear head from given probabilities, without logits: as a function and as a module."""

from torch import nn

from ..ops._distill import check_temperature
from ..ops.fused_linear_kl_div import liger_fused_linear_kl_div_apply

__all__ = ["LigerFusedLinearKLDivLoss"]
FUNCTIONAL = ("liger_fused_linear_kl_div",)


def liger_fused_linear_kl_div(
    student_input,
    student_weight,
    target,
    shift_labels=None,
    reduction="batchmean",
    ignore_index=-100,
    temperature=1.0,
    eps=1e-10,
    accum_dtype=None,
    memory_budget=None,
):
    """sum target (ln max(target, eps) - log_softmax(input @ weight.T / temperature)), a block at a time.

    student_input: (n_rows, hidden_size), student_weight: (vocab_size, hidden_size), target: (n_rows,
    vocab_size) probabilities, which need not add up to 1; float32, bfloat16, float16 (float64 on the CPU) in
    any mixture. shift_labels: (n_rows,) int64 or None; rows whose label is ignore_index do not count.
    reduction: "batchmean" over valid rows, "mean" over their elements, "sum". memory_budget: bytes that a
    block of logits may take (None: `liger_kernel.get_memory_budget()`). The student's gradients are made in
    forward, and only those that somebody wants; the target gets none. Returns a float32 (float64) scalar.
    Raises as `LigerFusedLinearKLDivFunction` does.
    """
    options = (shift_labels, reduction, ignore_index, temperature, eps, accum_dtype, memory_budget)
    return liger_fused_linear_kl_div_apply(student_input, student_weight, target, *options)


class LigerFusedLinearKLDivLoss(nn.Module):
    """`liger_fused_linear_kl_div` with its options fixed.

    Raises ValueError for a temperature that is not positive; an unknown reduction raises at the call.
    """

    _OPTIONS = ("reduction", "ignore_index", "temperature", "eps", "accum_dtype")

    def __init__(
        self, reduction="batchmean", ignore_index=-100, temperature=1.0, eps=1e-10, accum_dtype=None
    ):
        options = locals()
        super().__init__()
        check_temperature(temperature)
        for name in self._OPTIONS:
            setattr(self, name, options[name])

    def forward(self, student_input, student_weight, target, shift_labels=None):
        options = (getattr(self, name) for name in self._OPTIONS)
        return liger_fused_linear_kl_div_apply(student_input, student_weight, target, shift_labels, *options)

    def extra_repr(self):
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self._OPTIONS)
