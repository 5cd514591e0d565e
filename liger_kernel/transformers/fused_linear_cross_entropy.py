"""Cross entropy of a linear head's logits, without the logits: as a function and as a module."""

from torch import nn

from ..ops.cross_entropy import check_options
from ..ops.fused_linear_cross_entropy import liger_fused_linear_cross_entropy_apply
from .cross_entropy import cross_entropy_result

__all__ = ["LigerFusedLinearCrossEntropyLoss"]
FUNCTIONAL = ("liger_fused_linear_cross_entropy",)


def liger_fused_linear_cross_entropy(
    input,
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
    chunk_mem_const=1,
    memory_budget=None,
    skip_ignored=False,
):
    """`liger_cross_entropy(input @ weight.T + bias, target, ...)`, a block of the logits at a time.

    input: (n_rows, hidden_size), weight: (vocab_size, hidden_size), bias: (vocab_size,) or None, target:
    (n_rows,) int64 class indices or ignore_index; float32, bfloat16, float16 (float64 on the CPU) in any
    mixture. ce_weight: (vocab_size,) class weights, or None. Gradients are made in forward for "mean" and
    "sum", and only those that somebody wants: none under no_grad, none for a frozen weight or a frozen input.
    use_token_scaling multiplies a row's loss by its target's probability, as a constant. accum_dtype: what
    the weight gradient is added up in, at least (None: the plan keeps its error within three times eager's
    own); memory_budget: bytes that a block of logits may take (None: `liger_kernel.get_memory_budget()`, 256
    MiB unless set); chunk_mem_const above 1: smaller blocks, of about that many times the input's size.
    skip_ignored=True: on a GPU ignored rows stay out of the products, for one synchronisation (no effect
    under torch.compile; on the CPU they always do).
    Returns the loss, float32 (float64 for float64), or a `CrossEntropyOutput` as soon as a return_* flag is
    set. Raises as `LigerFusedLinearCrossEntropyFunction` does. Source: arXiv:2410.10989.
    """
    wanted = (return_z_loss, accum_dtype, use_token_scaling, return_token_accuracy, return_predicted_tokens)
    options = (ce_weight, ignore_index, lse_square_scale, label_smoothing, reduction, softcap)
    return cross_entropy_result(
        liger_fused_linear_cross_entropy_apply(
            input,
            weight,
            target,
            bias,
            *options,
            *wanted,
            None,
            None,
            chunk_mem_const,
            memory_budget,
            skip_ignored,
        )
    )


class LigerFusedLinearCrossEntropyLoss(nn.Module):
    """`liger_fused_linear_cross_entropy` with its options fixed.

    Called with the weight first: (lin_weight, _input, target, bias).

    Raises ValueError for a label_smoothing outside [0, 1], an unknown reduction, a softcap that is not
    positive.
    """

    # the constructor's arguments, in the order in which the Function takes them
    _OPTIONS = (
        *("ce_weight", "ignore_index", "lse_square_scale", "label_smoothing", "reduction", "softcap"),
        *("return_z_loss", "accum_dtype", "use_token_scaling"),
        *("return_token_accuracy", "return_predicted_tokens"),
    )

    def __init__(
        self,
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
    ):
        options = locals()
        super().__init__()
        check_options(reduction, label_smoothing, softcap)
        for name in self._OPTIONS:
            setattr(self, name, options[name])

    def forward(self, lin_weight, _input, target, bias=None):
        options = [getattr(self, name) for name in self._OPTIONS]
        outputs = liger_fused_linear_cross_entropy_apply(_input, lin_weight, target, bias, *options)
        return cross_entropy_result(outputs)

    def extra_repr(self):
        return (
            f"ignore_index={self.ignore_index}, label_smoothing={self.label_smoothing}, "
            f"lse_square_scale={self.lse_square_scale}, softcap={self.softcap}, "
            f"reduction={self.reduction!r}, accum_dtype={self.accum_dtype}, "
            f"use_token_scaling={self.use_token_scaling}"
        )
