"""`fused_linear_cross_entropy` with a choice of implementation."""

from ..ops.fused_linear_cross_entropy import liger_fused_linear_cross_entropy_apply
from ._operator import operator

__all__ = ["fused_linear_cross_entropy"]


@operator
def fused_linear_cross_entropy(
    _input,
    weight,
    target,
    bias=None,
    ce_weight=None,
    ignore_index=-100,
    lse_square_scale=0.0,
    label_smoothing=0.0,
    reduction="mean",
    softcap=None,
    return_z_loss=False,
    accum_dtype=None,
    use_token_scaling=False,
    return_token_accuracy=False,
    return_predicted_tokens=False,
    *,
    impl=None,
    mode=None,
    backend=None,
):
    """(loss, z_loss, token_accuracy, predicted_tokens) of logits _input weight^T + bias, None where not
    asked for: see `LigerFusedLinearCrossEntropyFunction`."""
    options = (ignore_index, lse_square_scale, label_smoothing, reduction, softcap, return_z_loss)
    rest = (accum_dtype, use_token_scaling, return_token_accuracy, return_predicted_tokens)
    return liger_fused_linear_cross_entropy_apply(_input, weight, target, bias, ce_weight, *options, *rest)
