"""Cross entropy and total variation distance from a teacher, per row, as a module."""

from torch import nn

from ..ops.fused_ce_tvd import LigerFusedCETVDFunction

__all__ = ["LigerFusedCETVDLoss"]


class LigerFusedCETVDLoss(nn.Module):
    """(ce, tvd): lse(student) - student_y and half the sum of |softmax(student) - softmax(teacher)| of each
    row.

    student_logits, teacher_logits: (n_rows, n_classes), target: (n_rows,) int64 class indices or
    ignore_index. Both results are (n_rows,) float32 (float64), not reduced, 0 in ignored rows. Raises as
    `LigerFusedCETVDFunction` does.
    """

    def __init__(self, ignore_index=-100):
        super().__init__()
        self.ignore_index = ignore_index

    def forward(self, student_logits, teacher_logits, target):
        return LigerFusedCETVDFunction.apply(student_logits, teacher_logits, target, self.ignore_index)

    def extra_repr(self):
        return f"ignore_index={self.ignore_index}"
