"""Cross entropy as a function with F.cross_entropy's arguments and as a module."""

from dataclasses import dataclass

import torch
from torch import nn

from ..ops.cross_entropy import check_options, liger_cross_entropy_apply

__all__ = ["LigerCrossEntropyLoss"]
FUNCTIONAL = ("liger_cross_entropy", "CrossEntropyOutput")


@dataclass
class CrossEntropyOutput:
    """What a loss returns instead of the bare loss once more is asked for; the fields not asked for are
    None."""

    loss: torch.Tensor
    z_loss: torch.Tensor | None = None
    token_accuracy: torch.Tensor | None = None
    predicted_tokens: torch.Tensor | None = None


def cross_entropy_result(outputs):
    """The loss, or a `CrossEntropyOutput` where any other of the four outputs is there."""
    return CrossEntropyOutput(*outputs) if any(o is not None for o in outputs[1:]) else outputs[0]


def liger_cross_entropy(
    input,
    target,
    weight=None,
    size_average=None,
    ignore_index=-100,
    reduce=None,
    reduction="mean",
    label_smoothing=0.0,
    lse_square_scale=0.0,
    softcap=None,
    return_z_loss=False,
    return_token_accuracy=False,
    return_predicted_tokens=False,
    in_place=False,
):
    """loss = (1 - a) w_y (lse - z_y) + a/V sum_i w_i (lse - z_i) + lse_square_scale lse^2.

    z = softcap tanh(input / softcap), or input.

    Called as F.cross_entropy is. input: (n_rows, n_classes), float32, bfloat16, float16 (float64 on the CPU);
    target: (n_rows,) int64 class indices or ignore_index; weight: (n_classes,) or None. a is label_smoothing.
    The loss is float32 (float64 for float64) whatever the logits; "mean" divides the first two terms by the
    valid targets' weights and the last by their number, and is 0 where no target is valid. size_average and
    reduce mean what they mean in torch: they choose the reduction.
    Returns the loss, or a
    `CrossEntropyOutput` as soon as a return_* flag is set: z_loss is the last term, without gradient;
    token_accuracy the share of valid rows where the argmax is the target; predicted_tokens the argmax, -1 in
    ignored rows.
    in_place=True permits writing the gradient over `input`'s memory (never without grad, never
    over a leaf).
    Raises as `LigerCrossEntropyFunction` does. Sources: arXiv:1512.00567 (smoothing),
    arXiv:2204.02311 (z-loss).
    """
    if size_average is not None or reduce is not None:
        reduction = nn._reduction.legacy_get_string(size_average, reduce)
    options = (ignore_index, lse_square_scale, label_smoothing, reduction, softcap)
    wanted = (return_z_loss, return_token_accuracy, return_predicted_tokens)
    return cross_entropy_result(liger_cross_entropy_apply(input, target, weight, *options, *wanted, in_place))


class LigerCrossEntropyLoss(nn.Module):
    """`liger_cross_entropy` with its options fixed; `weight` is a plain attribute, on the logits' device.

    Raises ValueError for a label_smoothing outside [0, 1], an unknown reduction, a softcap that is not
    positive.
    """

    # the constructor's arguments, in the order in which the Function takes them
    _OPTIONS = (
        *("weight", "ignore_index", "lse_square_scale", "label_smoothing", "reduction", "softcap"),
        *("return_z_loss", "return_token_accuracy", "return_predicted_tokens", "in_place"),
    )

    def __init__(
        self,
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
    ):
        options = locals()
        super().__init__()
        check_options(reduction, label_smoothing, softcap)
        for name in self._OPTIONS:
            setattr(self, name, options[name])

    def forward(self, _input, target):
        options = [getattr(self, name) for name in self._OPTIONS]
        return cross_entropy_result(liger_cross_entropy_apply(_input, target, *options))

    def extra_repr(self):
        return (
            f"ignore_index={self.ignore_index}, label_smoothing={self.label_smoothing}, "
            f"lse_square_scale={self.lse_square_scale}, softcap={self.softcap}, reduction={self.reduction!r}"
        )
