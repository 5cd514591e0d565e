"""`cross_entropy` with a choice of implementation."""

from ..ops.cross_entropy import liger_cross_entropy_apply
from ._operator import operator

__all__ = ["cross_entropy"]


@operator
def cross_entropy(
    input,
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
    *,
    impl=None,
    mode=None,
    backend=None,
):
    """(loss, z_loss, token_accuracy, predicted_tokens), None where not asked for: see
    `LigerCrossEntropyFunction`."""
    options = (ignore_index, lse_square_scale, label_smoothing, reduction, softcap)
    wanted = (return_z_loss, return_token_accuracy, return_predicted_tokens)
    return liger_cross_entropy_apply(input, target, weight, *options, *wanted)
