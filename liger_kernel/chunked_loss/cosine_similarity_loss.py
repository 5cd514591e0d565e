"""Distillation by the angle between two heads' logits, beside the cross entropy of the labels.

The soft loss of a row is beta (1 - s . t / (|s| |t|)), s and t the student's and the teacher's logits.
"""

import torch.nn.functional as F

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


liger_fused_linear_cosine = LigerFusedLinearCosineSimilarityFunction.apply


class LigerFusedLinearCosineSimilarityLoss(TwoHeadsLoss):
    """weight_hard_loss * cross entropy + weight_soft_loss * beta (1 - cosine) of two heads' logits.

    Called as `LigerFusedLinearJSDLoss`, and with its options; here beta is a factor, and the temperature
    changes nothing, since an angle has no length. Logits exist chunk_size rows at a time in the soft loss,
    and are computed again in backward; within memory_budget in the cross entropy. Raises ValueError for a
    temperature or shapes that do not fit.
    """

    function = LigerFusedLinearCosineSimilarityFunction
