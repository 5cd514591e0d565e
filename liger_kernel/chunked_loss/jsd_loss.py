"""Distillation by the generalised Jensen-Shannon divergence, beside the cross entropy of the labels.

With q = softmax(s / T) of the student, p = softmax(t / T) of the teacher and m = beta p + (1 - beta) q, the
soft loss of a row is

    beta KL(p || m) + (1 - beta) KL(q || m);    beta = 0: KL(p || q),  beta = 1: KL(q || p)

Source: arXiv:2306.13649 (GKD).
"""

from ..ops.fused_linear_jsd import fused_linear_jsd_of_biased_heads, fused_linear_jsd_with_cross_entropy
from ..ops.jsd import check_beta, liger_jsd_apply
from .fused_linear_distillation import TwoHeadsFunction, TwoHeadsLoss, n_labels

__all__ = ["LigerFusedLinearJSDLoss"]
FUNCTIONAL = ("liger_fused_linear_jsd",)


class LigerFusedLinearJSDFunction(TwoHeadsFunction):
    """`apply(student_input, student_weight, ...)` gives what `LigerFusedLinearJSDLoss` does."""

    check_beta = staticmethod(check_beta)

    @staticmethod
    def distillation_loss_fn(student_logits, teacher_logits, beta=0.5, target=None, ignore_index=-100):
        """The sum of the divergence over the rows of logits (n_rows, vocab_size) whose target counts."""
        x, y = (z.log_softmax(-1) for z in (student_logits, teacher_logits))
        count = x.shape[0] if target is None else n_labels(target, ignore_index)
        return liger_jsd_apply(x, y, target, beta, ignore_index) * count

    @classmethod
    def soft_loss(
        cls, student, teacher, target, ignore_index, temperature, chunk_size, memory_budget, beta=0.5
    ):
        options = (beta, ignore_index, temperature)
        if cls.distillation_loss_fn is not LigerFusedLinearJSDFunction.distillation_loss_fn:
            options = (*options[1:], chunk_size, memory_budget)
            return super().soft_loss(student, teacher, target, *options, beta=beta)
        return fused_linear_jsd_of_biased_heads(
            *student, *teacher, target, *options, memory_budget=memory_budget
        )

    @classmethod
    def both_losses(
        cls, student, teacher, target, weights, n_classes, ignore_index, temperature, apart, budget, beta=0.5
    ):
        if cls.distillation_loss_fn is not LigerFusedLinearJSDFunction.distillation_loss_fn:
            return None
        options = (beta, ignore_index, temperature)
        return fused_linear_jsd_with_cross_entropy(
            student, teacher, target, weights, n_classes, *options, apart=apart, memory_budget=budget
        )


liger_fused_linear_jsd = LigerFusedLinearJSDFunction.apply


class LigerFusedLinearJSDLoss(TwoHeadsLoss):
    """weight_hard_loss * cross entropy + weight_soft_loss * JSD of two heads, their logits never in memory.

    Called with (student_input, student_weight, teacher_input, teacher_weight, true_labels, student_bias,
    teacher_bias): hidden states (..., hidden_size), each head's own; weights (vocab_size, hidden_size),
    biases (vocab_size,) or None; true_labels (...) int64 ids, already shifted, or ignore_index. float32,
    bfloat16, float16 (float64 on the CPU). A teacher with a larger vocabulary meets student logits of 0
    there. Both losses are means over the labels, 0 where there are none; temperature divides the logits of
    the soft loss alone. beta in [0, 1]. A loss of weight 0 is not computed, unless return_soft_hard_loss
    asks for (loss, soft, hard); float32 (float64), differentiable in the student's tensors. memory_budget:
    bytes of logits, see `linear_logprob`. compiled and chunk_size are accepted and change nothing. Raises
    ValueError for a beta, a temperature or shapes that do not fit. Source: arXiv:2306.13649.
    """

    function = LigerFusedLinearJSDFunction
