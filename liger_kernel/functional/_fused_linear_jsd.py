"""`fused_linear_jsd` with a choice of implementation."""

from ..ops.fused_linear_jsd import LigerFusedLinearJSDFunction
from ._operator import operator

__all__ = ["fused_linear_jsd"]


@operator
def fused_linear_jsd(
    student_input,
    student_weight,
    teacher_input,
    teacher_weight,
    shift_labels=None,
    jsd_beta=0.5,
    ignore_index=-100,
    temperature=1.0,
    *,
    impl=None,
    mode=None,
    backend=None,
):
    """The Jensen-Shannon divergence of two heads' distributions: see `LigerFusedLinearJSDFunction`."""
    tensors = (student_input, student_weight, teacher_input, teacher_weight, shift_labels)
    return LigerFusedLinearJSDFunction.apply(*tensors, jsd_beta, ignore_index, temperature)
