"""Distillation by the angle between two heads' logits, beside the cross entropy of the labels.

The soft loss of a row is beta (1 - s . t / (|s| |t|)), s and t the student's and the teacher's logits.
"""

import torch.nn.functional as F

from ..ops.fused_linear_cosine import (
    fused_linear_cosine_with_cross_entropy,
    liger_fused_linear_cosine_apply,
)
from .fused_linear_distillation import TwoHeadsFunction, TwoHeadsLoss

__all__ = ["LigerFusedLinearCosineSimilarityLoss"]
FUNCTIONAL = ("liger_fused_linear_cosine",)


class LigerFusedLinearCosineSimilarityFunction(TwoHeadsFunction):
    """`apply(student_input, student_weight, ...)` gives what `LigerFusedLinearCosineSimilarityLoss` does."""

    @staticmethod
    def distillation_loss_fn(student_logits, teacher_logits, target=None, ignore_index=None, beta=1.0):
        """beta times the sum of 1 - cos over the rows of logits (n_rows, vocab_size) whose target counts."""
        losses = 1 - F.cosine_similarity(student_logits, teacher_logits, dim=-1)
        if target is not None:
            losses = losses.masked_fill(target == ignore_index, 0.0)
        return beta * losses.sum()

    @classmethod
    def soft_loss(
        cls, student, teacher, target, ignore_index, temperature, chunk_size, memory_budget, beta=1.0
    ):
        if cls.distillation_loss_fn is not LigerFusedLinearCosineSimilarityFunction.distillation_loss_fn:
            options = (ignore_index, temperature, chunk_size, memory_budget)
            return super().soft_loss(student, teacher, target, *options, beta=beta)
        options = (beta, ignore_index, temperature, memory_budget)
        return liger_fused_linear_cosine_apply(*student, *teacher, target, *options)

    @classmethod
    def both_losses(
        cls, student, teacher, target, weights, n_classes, ignore_index, temperature, apart, budget, beta=1.0
    ):
        if cls.distillation_loss_fn is not LigerFusedLinearCosineSimilarityFunction.distillation_loss_fn:
            return None
        options = (beta, ignore_index, temperature)
        return fused_linear_cosine_with_cross_entropy(
            student, teacher, target, weights, n_classes, *options, apart=apart, memory_budget=budget
        )


liger_fused_linear_cosine = LigerFusedLinearCosineSimilarityFunction.apply


class LigerFusedLinearCosineSimilarityLoss(TwoHeadsLoss):
    """weight_hard_loss * cross entropy + weight_soft_loss * beta (1 - cosine) of two heads' logits.

    Called as `LigerFusedLinearJSDLoss`, and with its options; here beta is a factor, and the temperature
    changes nothing, since an angle has no length. Raises ValueError for a temperature or shapes that do not
    fit.
    """

    function = LigerFusedLinearCosineSimilarityFunction
