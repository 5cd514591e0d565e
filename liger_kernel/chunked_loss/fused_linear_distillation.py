"""What the losses between a student's and a teacher's linear head share.

With s = student_input student_weight^T + student_bias, t likewise, and N the number of labels that are not
ignore_index,

    loss = weight_hard_loss * CE(s, labels) / N + weight_soft_loss * soft(s / T, t / T) / N

CE and soft are sums over the rows with a label; the cross entropy is that of the logits before the
temperature T. Where the teacher's vocabulary is larger, the student's logits there are 0 in the soft loss.
"""

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from ..ops._distill import check_temperature
from ..ops._spec import upcast
from ..ops.fused_linear_cross_entropy import liger_fused_linear_cross_entropy_apply
from ..ops.linear_loss import products_dtype_of
from ._loss_module import LossModule
from .fused_linear_preference import Applied


def _check_heads(student_input, teacher_input, student_weight, teacher_weight, target):
    if student_input.shape[:-1] != target.shape or teacher_input.shape[:-1] != target.shape:
        raise ValueError(
            f"student_input has shape {tuple(student_input.shape)}, teacher_input "
            f"{tuple(teacher_input.shape)} and target {tuple(target.shape)}, "
            "expected the same sizes before the hidden size"
        )
    if teacher_weight.shape[0] < student_weight.shape[0]:
        raise ValueError(
            f"teacher_weight has shape {tuple(teacher_weight.shape)}, expected at least "
            f"{student_weight.shape[0]} rows, the student's vocabulary"
        )


def _logits(x, weight, bias):
    dtype = products_dtype_of(x, weight)
    return upcast(F.linear(*(t if t is None else t.to(dtype) for t in (x, weight, bias))))


def n_labels(target, ignore_index):
    return (target != ignore_index).sum().clamp(min=1)


class LigerFusedLinearDistillationBase(Applied):
    """To be subclassed: the subclass says in `distillation_loss_fn` what the soft loss of logits is."""

    @staticmethod
    def distillation_loss_fn(student_logits, teacher_logits, target=None, ignore_index=None):
        """The sum of the soft loss over the rows whose target is not ignore_index (over all, without target).

        Logits: (n_rows, vocab_size), divided by the temperature, float32 (float64). May take more options.
        """
        raise NotImplementedError(
            "distillation_loss_fn: a subclass of LigerFusedLinearDistillationBase defines it"
        )

    @staticmethod
    def chunk_forward(
        student_input_chunk,
        student_weight,
        teacher_input_chunk,
        teacher_weight,
        target_chunk,
        student_bias=None,
        teacher_bias=None,
        ignore_index=-100,
        compute_ce_loss=True,
    ):
        """(student_logits, teacher_logits, summed cross entropy or 0.0) of some rows, float32 (float64).

        The teacher's have no gradient.
        """
        student_logits = _logits(student_input_chunk, student_weight, student_bias)
        with torch.no_grad():
            teacher_logits = _logits(teacher_input_chunk, teacher_weight, teacher_bias)
        ce = 0.0
        if compute_ce_loss:
            ce = F.cross_entropy(student_logits, target_chunk, ignore_index=ignore_index, reduction="sum")
        return student_logits, teacher_logits, ce

    @classmethod
    def soft_loss(
        cls, student, teacher, target, ignore_index, temperature, chunk_size, memory_budget, **loss_kwargs
    ):
        """The mean of `distillation_loss_fn` over the labels; heads are (hidden states, weight, bias).

        chunk_size rows at a time, whose logits backward computes again. Losses that the engine has a kernel
        for override this.
        """

        def part(x, weight, bias, teacher_x, labels):
            s, t, _ = cls.chunk_forward(
                x, weight, teacher_x, teacher[1], labels, bias, teacher[2], ignore_index, False
            )
            return cls.distillation_loss_fn(
                s / temperature, t / temperature, target=labels, ignore_index=ignore_index, **loss_kwargs
            )

        total = 0.0
        for rows in zip(*(t.split(chunk_size) for t in (student[0], teacher[0], target))):
            total = total + checkpoint(part, rows[0], *student[1:], *rows[1:], use_reentrant=False)
        return total / n_labels(target, ignore_index)

    @classmethod
    def both_losses(
        cls,
        student,
        teacher,
        target,
        weights,
        n_classes,
        ignore_index,
        temperature,
        apart,
        budget,
        **loss_kwargs,
    ):
        """(weights[0] * soft + weights[1] * hard, soft, hard) of the same logits, or None: each by itself.

        The student's first n_classes classes are its own, the others as many as the teacher has more. apart:
        whether the two losses by themselves are differentiable too. For the losses with a kernel that makes
        both.
        """
        return None

    @staticmethod
    def forward(
        cls,
        ctx,
        student_input,
        student_weight,
        teacher_input,
        teacher_weight,
        target,
        student_bias=None,
        teacher_bias=None,
        chunk_size=1024,
        ignore_index=-100,
        weight_hard_loss=0.5,
        weight_soft_loss=0.5,
        beta=0.5,
        compute_ce_loss=True,
        temperature=1.0,
        compiled=True,
        return_soft_hard_loss=False,
        memory_budget=None,
        **loss_kwargs,
    ):
        """The weighted sum of the two losses, or (sum, soft, hard) with return_soft_hard_loss.

        student_input: (..., hidden_size), target: (...) int64 ids, already shifted, or ignore_index; heads:
        (vocab_size, hidden_size) and (vocab_size,) or None. A loss of weight 0 takes no part in the sum, not
        even with a NaN; it is computed, without a gradient, only to be returned. compute_ce_loss=False: the
        hard loss is 0. beta and loss_kwargs go to the soft loss. compiled is accepted and changes nothing.
        """
        check_temperature(temperature)
        _check_heads(student_input, teacher_input, student_weight, teacher_weight, target)
        x, teacher_x = student_input.flatten(0, -2), teacher_input.flatten(0, -2)
        labels = target.flatten()

        head, bias = student_weight, student_bias
        more = teacher_weight.shape[0] - head.shape[0]
        if more and (weight_soft_loss or return_soft_hard_loss):
            head, bias = F.pad(head, (0, 0, 0, more)), None if bias is None else F.pad(bias, (0, more))
        student, teacher = (x, head, bias), (teacher_x.detach(), teacher_weight.detach(), teacher_bias)
        if compute_ce_loss and weight_hard_loss and weight_soft_loss:
            of_both = (weight_soft_loss, weight_hard_loss), student_weight.shape[0], ignore_index, temperature
            apart = (return_soft_hard_loss, memory_budget)
            both = cls.both_losses(student, teacher, labels, *of_both, *apart, beta=beta, **loss_kwargs)
            if both is not None:
                return both if return_soft_hard_loss else both[0]

        def weighted(weight, f):
            if weight:
                value = f()
                return value, weight * value
            with torch.no_grad():
                return f() if return_soft_hard_loss else None, 0.0

        def soft():
            options = dict(chunk_size=chunk_size, memory_budget=memory_budget, beta=beta, **loss_kwargs)
            return cls.soft_loss(student, teacher, labels, ignore_index, temperature, **options)

        def hard():
            if not compute_ce_loss:
                return x.new_zeros((), dtype=upcast(x[:0]).dtype)
            args = (
                None,
                ignore_index,
                0.0,
                0.0,
                "mean",
                None,
                False,
                None,
                False,
                False,
                False,
                None,
                None,
                1,
            )
            return liger_fused_linear_cross_entropy_apply(
                x, student_weight, labels, student_bias, *args, memory_budget
            )[0]

        hard_value, of_hard = weighted(weight_hard_loss, hard)
        soft_value, of_soft = weighted(weight_soft_loss, soft)
        loss = of_hard + of_soft
        if not isinstance(loss, torch.Tensor):  # both weights are 0
            loss = x.sum() * 0.0
        return (loss, soft_value, hard_value) if return_soft_hard_loss else loss


class TwoHeadsFunction(LigerFusedLinearDistillationBase):
    """The `apply` that our losses share: upstream's positions."""

    @staticmethod
    def check_beta(beta):
        """Raises ValueError for a beta that the loss cannot take."""

    @classmethod
    def forward(
        cls,
        ctx,
        student_input,
        student_weight,
        teacher_input,
        teacher_weight,
        true_labels,
        student_bias,
        teacher_bias,
        weight_hard_loss=0.5,
        weight_soft_loss=0.5,
        beta=0.5,
        ignore_index=-100,
        temperature=1.0,
        compiled=True,
        chunk_size=1024,
        return_soft_hard_loss=False,
        memory_budget=None,
    ):
        return super().forward(
            cls,
            ctx,
            student_input,
            student_weight,
            teacher_input,
            teacher_weight,
            true_labels,
            student_bias,
            teacher_bias,
            chunk_size=chunk_size,
            ignore_index=ignore_index,
            weight_hard_loss=weight_hard_loss,
            weight_soft_loss=weight_soft_loss,
            beta=beta,
            temperature=temperature,
            return_soft_hard_loss=return_soft_hard_loss,
            memory_budget=memory_budget,
        )


class TwoHeadsLoss(LossModule):
    """The module around such a Function, which a subclass names."""

    function: type[TwoHeadsFunction]

    def __init__(
        self,
        weight_hard_loss=0.5,
        weight_soft_loss=0.5,
        beta=0.5,
        ignore_index=-100,
        temperature=1.0,
        compiled=True,
        chunk_size=1024,
        return_soft_hard_loss=False,
        memory_budget=None,
    ):
        super().__init__(locals())
        check_temperature(temperature)
        self.function.check_beta(beta)

    def forward(
        self,
        student_input,
        student_weight,
        teacher_input,
        teacher_weight,
        true_labels,
        student_bias=None,
        teacher_bias=None,
    ):
        tensors = (student_input, student_weight, teacher_input, teacher_weight, true_labels)
        return self.function.forward(None, *tensors, student_bias, teacher_bias, **self.options())
