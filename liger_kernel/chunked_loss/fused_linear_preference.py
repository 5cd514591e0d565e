"""What the losses on pairs of a chosen and a rejected answer share.

A batch holds the chosen answers in its first half and the rejected ones, in the same order, in its second.
One pass over the head (`linear_logprob`) gives, for every position, the label's log-probability and the mean
logit. From these come

    logps_i = sum_t logp_it  (or their mean over the labels)        of every sequence i
    nll     = -(sum over the chosen half of logp_it) / labels there

and a loss is a function of the chosen and the rejected `logps`, and those of a reference model.
"""

import torch

from ..ops.linear_logprob import linear_logprob


def check_pairs(_input, target):
    """Raises ValueError where _input and target are not (2 * pairs, seq_len, hidden_size), (2 * pairs,
    seq_len).
    """
    if _input.dim() != 3 or _input.shape[0] % 2:
        raise ValueError(
            f"_input has shape {tuple(_input.shape)}, expected (2 * pairs, seq_len, hidden_size): "
            "the chosen sequences, then the rejected ones"
        )
    if target.shape != _input.shape[:2]:
        raise ValueError(
            f"target has shape {tuple(target.shape)}, expected {tuple(_input.shape[:2])} as _input"
        )


def check_heads(weight, ref_weight):
    """Raises ValueError for a head that is no whole matrix: trainers read its weight outside its module."""
    for name, w in (("weight", weight), ("ref_weight", ref_weight)):
        if w is not None and (w.dim() != 2 or w.shape[0] == 0):
            raise ValueError(
                f"{name} has shape {tuple(w.shape)}, expected (vocab_size, hidden_size); "
                "a sharded head (ZeRO-3, FSDP) has to be gathered around this call"
            )


def masked_mean(values, mask):
    """Their mean over the mask; 0 where it is empty."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def _two_targets(target, nll_target, ignore_index):
    """One pass for two labels of a position: the ids for all positions where one of the two counts, and the
    chosen half's nll labels as extra ids (2 * pairs, seq_len, 1)."""
    chosen_half = target[: target.shape[0] // 2]
    if nll_target.shape == target.shape:
        nll_target = nll_target[: target.shape[0] // 2]
    elif nll_target.shape != chosen_half.shape:
        raise ValueError(
            f"nll_target has shape {tuple(nll_target.shape)}, expected target's, {tuple(target.shape)}, "
            f"or that of its chosen half, {tuple(chosen_half.shape)}"
        )
    no_labels = torch.full_like(nll_target, ignore_index)
    both = torch.cat((nll_target, no_labels))
    labels = torch.where(target != ignore_index, target, both)
    return labels, both.unsqueeze(-1)


def _reference(ref_input, ref_weight, ref_chosen, ref_rejected, ref_bias, target, lengths, options):
    """The reference's log-probabilities, as keywords of a preference_loss_fn."""
    if ref_chosen is None and ref_rejected is None and ref_input is not None and ref_weight is not None:
        out = linear_logprob(ref_input, ref_weight, target, ref_bias, **options)
        ref_chosen, ref_rejected = (out.logprob.sum(-1) / lengths).chunk(2)
    elif ref_chosen is None or ref_rejected is None or ref_input is not None or ref_weight is not None:
        raise ValueError(
            "use_ref_model is True: expected either ref_input and ref_weight, "
            "or ref_chosen_logps and ref_rejected_logps"
        )
    return dict(ref_chosen_logps=ref_chosen.detach(), ref_rejected_logps=ref_rejected.detach())


class Applied:
    """A loss under the name of an autograd Function: `apply` takes the arguments of `forward` by position.

    The losses are compositions of differentiable functions, so that there is no backward of their own and
    nothing to keep between the two; ctx is None.
    """

    @classmethod
    def apply(cls, *args, **kwargs):
        return cls.forward(None, *args, **kwargs)


class LigerFusedLinearPreferenceBase(Applied):
    """To be subclassed: the subclass says in `preference_loss_fn` what the loss of the log-probabilities is.

    `forward` returns (loss, (chosen_logps, rejected_logps, chosen_logits_mean, rejected_logits_mean,
    nll_loss, *rewards)): the log-probabilities (pairs,) of the sequences, the mean of the logits over the
    vocabulary and the positions with a label, the negative log-likelihood of the chosen half, and whatever
    the loss function returned beside its loss. nll_loss keeps its graph; the other metrics are detached.
    """

    @staticmethod
    def preference_loss_fn(*args, **kwargs):
        """(chosen_logps, rejected_logps, full_target, [ref_chosen_logps, ref_rejected_logps,] beta, ...).

        Returns the loss, or a tuple of the loss and metrics of shape (pairs,) or ().
        """
        raise NotImplementedError(
            "preference_loss_fn: a subclass of LigerFusedLinearPreferenceBase defines it"
        )

    @staticmethod
    def forward(
        cls,
        ctx,
        _input,
        weight,
        target,
        bias=None,
        chunk_size=1,
        ignore_index=-100,
        alpha=1.0,
        beta=0.1,
        compute_nll_loss=True,
        nll_target=None,
        compiled=True,
        use_ref_model=False,
        ref_input=None,
        ref_weight=None,
        ref_bias=None,
        average_log_prob=True,
        ref_chosen_logps=None,
        ref_rejected_logps=None,
        softcap=None,
        logit_scale=1.0,
        memory_budget=None,
        **loss_kwargs,
    ):
        """alpha * nll_loss + the subclass's loss, and the metrics.

        _input: (2 * pairs, seq_len, hidden_size); weight: (vocab_size, hidden_size); target: (2 * pairs,
        seq_len), ids already shifted, or ignore_index; bias: (vocab_size,) or None. nll_target: labels of the
        chosen half for nll_loss, if other than target's. The reference model, with use_ref_model, is given by
        ref_input and ref_weight (its hidden states and head, which get no gradient) or by ref_chosen_logps
        and ref_rejected_logps (pairs,), taken as the policy's are. compiled and chunk_size are accepted and
        change nothing. softcap, logit_scale, memory_budget: see `linear_logprob`.
        """
        check_pairs(_input, target)
        check_heads(weight, ref_weight)
        n_pairs = _input.shape[0] // 2
        options = dict(
            ignore_index=ignore_index, softcap=softcap, logit_scale=logit_scale, memory_budget=memory_budget
        )
        valid = target != ignore_index
        lengths = valid.sum(-1).clamp(min=1) if average_log_prob else 1

        # the reference first: its logits are gone before those of the policy are kept
        given = (ref_input, ref_weight, ref_chosen_logps, ref_rejected_logps)
        reference = {}
        if use_ref_model:
            with torch.no_grad():
                reference = _reference(*given, ref_bias, target, lengths, options)
        elif any(t is not None for t in given):
            raise ValueError("a reference model is given and use_ref_model is False")

        labels, other = target, None
        if nll_target is not None:
            labels, other = _two_targets(target, nll_target, ignore_index)
        out = linear_logprob(_input, weight, labels, bias, return_mean_logit=True, extra_ids=other, **options)
        per_token = out.logprob if other is None else out.logprob * valid
        logps = per_token.sum(-1) / lengths
        chosen, rejected = logps[:n_pairs], logps[n_pairs:]

        if nll_target is None:
            nll = -masked_mean(per_token[:n_pairs], valid[:n_pairs])
        else:
            nll_valid = nll_target[:n_pairs] != ignore_index
            nll_logps = torch.where(valid, out.extra_logprob[..., 0], out.logprob)[:n_pairs]
            nll = -masked_mean(nll_logps, nll_valid)

        result = cls.preference_loss_fn(chosen, rejected, target, beta=beta, **reference, **loss_kwargs)
        loss, *metrics = result if isinstance(result, tuple) else (result,)
        if compute_nll_loss:
            loss = loss + alpha * nll
        logits_mean = (
            masked_mean(out.mean_logit.detach()[half], valid[half])
            for half in (slice(None, n_pairs), slice(n_pairs, None))
        )
        return loss, (
            chosen.detach(),
            rejected.detach(),
            *logits_mean,
            nll,
            *(m.detach() if isinstance(m, torch.Tensor) else m for m in metrics),
        )
