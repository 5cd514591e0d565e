"""Total variation distance as a function and as a module."""

from torch import nn

from ..ops._divergence import check_reduction
from ..ops.tvd import liger_tvd_apply

__all__ = ["LigerTVDLoss"]
FUNCTIONAL = ("liger_tvd",)


def liger_tvd(input, target, shift_labels=None, reduction="mean", ignore_index=-100):
    """Half the sum of |input - target|, reduced.

    input, target: (n_rows, n_classes) probabilities, float32, bfloat16, float16 (float64 on the CPU).
    shift_labels: (n_rows,) int64 or None; rows whose label is ignore_index do not count. reduction: "mean"
    over the valid rows' elements, "batchmean" over valid rows, "sum", "none". Returns float32 (float64), 0
    where no row is valid. The target gets no gradient. Raises as `LigerTVDLossFunction` does.
    """
    return liger_tvd_apply(input, target, shift_labels, reduction, ignore_index)


class LigerTVDLoss(nn.Module):
    """`liger_tvd` with its options fixed. Raises ValueError for an unknown reduction."""

    def __init__(self, reduction="batchmean", ignore_index=-100):
        super().__init__()
        check_reduction(reduction)
        self.reduction, self.ignore_index = reduction, ignore_index

    def forward(self, p, q, shift_labels=None):
        return liger_tvd_apply(p, q, shift_labels, self.reduction, self.ignore_index)

    def extra_repr(self):
        return f"reduction={self.reduction!r}, ignore_index={self.ignore_index}"
