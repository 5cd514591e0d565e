"""Jensen-Shannon divergence of two linear heads, without their logits: as a function and as a module."""

from torch import nn

from ..ops._distill import check_temperature
from ..ops.fused_linear_jsd import liger_fused_linear_jsd_apply
from ..ops.jsd import check_beta

__all__ = ["LigerFusedLinearJSD"]
FUNCTIONAL = ("liger_fused_linear_jsd",)


def liger_fused_linear_jsd(
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
    """`liger_jsd` of log_softmax(input @ weight.T / temperature) of student and teacher, a block at a time.

    student_input: (n_rows, student_hidden), student_weight: (vocab_size, student_hidden), the teacher's
    likewise with its own hidden size; float32, bfloat16, float16 (float64 on the CPU) in any mixture.
    shift_labels: (n_rows,) int64 or None; rows whose label is ignore_index do not count. memory_budget: bytes
    that both heads' blocks of logits may take together (None: `liger_kernel.get_memory_budget()`). The
    student's gradients are made in forward, and only those that somebody wants; the teacher gets none.
    Returns a float32 (float64) scalar. Raises as `LigerFusedLinearJSDFunction` does. Sources:
    arXiv:2306.13649, arXiv:2410.10989.
    """
    options = (shift_labels, jsd_beta, ignore_index, temperature, accum_dtype, None, None, memory_budget)
    return liger_fused_linear_jsd_apply(
        student_input, student_weight, teacher_input, teacher_weight, *options
    )


class LigerFusedLinearJSD(nn.Module):
    """`liger_fused_linear_jsd` with its options fixed.

    Raises ValueError for a jsd_beta outside [0, 1] or a temperature that is not positive.
    """

    def __init__(self, jsd_beta=0.5, ignore_index=-100, temperature=1.0, accum_dtype=None):
        super().__init__()
        check_beta(jsd_beta, "jsd_beta")
        check_temperature(temperature)
        self.jsd_beta, self.ignore_index = jsd_beta, ignore_index
        self.temperature, self.accum_dtype = temperature, accum_dtype

    def forward(self, student_input, student_weight, teacher_input, teacher_weight, shift_labels):
        options = (shift_labels, self.jsd_beta, self.ignore_index, self.temperature, self.accum_dtype)
        return liger_fused_linear_jsd_apply(
            student_input, student_weight, teacher_input, teacher_weight, *options
        )

    def extra_repr(self):
        names = ("jsd_beta", "ignore_index", "temperature", "accum_dtype")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)
