"""Kullback-Leibler divergence as a function with F.kl_div's arguments and as a module."""

from torch import nn

from ..ops.kl_div import liger_kl_div_apply

__all__ = ["LigerKLDIVLoss"]
FUNCTIONAL = ("liger_kl_div",)


def liger_kl_div(
    input, target, size_average=True, reduce=True, reduction="mean", log_target=False, eps=1e-10
):
    """target (ln max(target, eps) - input), or e^target (target - input) with log_target; reduced.

    Called as F.kl_div is. input: (n_rows, n_classes) log-probabilities; target: probabilities or, with
    log_target, log-probabilities; float32, bfloat16, float16 (float64 on the CPU). reduction: "mean" over
    elements, "batchmean" over rows, "sum", "none". size_average=False means "sum" and reduce=False "none", as
    in torch; their defaults leave the choice to reduction. Returns float32 (float64). The target gets no
    gradient. Raises as `LigerKLDivLossFunction` does.
    """
    if not reduce:
        reduction = "none"
    elif not size_average:
        reduction = "sum"
    return liger_kl_div_apply(input, target, reduction, log_target, eps)


class LigerKLDIVLoss(nn.KLDivLoss):
    """nn.KLDivLoss by `liger_kl_div`. eps stands first; the other arguments are those of nn.KLDivLoss."""

    def __init__(self, eps=1e-10, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.eps = eps

    def forward(self, y_pred, y_true):
        return liger_kl_div_apply(y_pred, y_true, self.reduction, self.log_target, self.eps)

    def extra_repr(self):
        return f"eps={self.eps}, reduction={self.reduction!r}, log_target={self.log_target}"
