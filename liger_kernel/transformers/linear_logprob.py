"""Per-token log-probabilities of a linear head without its logits: what to build a loss of one's own on."""

from torch import nn

from ..ops.linear_logprob import LinearLogprob, linear_logprob

__all__ = ["LigerLinearLogprob"]
FUNCTIONAL = ("liger_linear_logprob", "LinearLogprob")

liger_linear_logprob = linear_logprob


class LigerLinearLogprob(nn.Module):
    """`liger_linear_logprob` with its options fixed.

    Called with the weight first, as the other linear losses' modules are: (lin_weight, hidden, ids, bias,
    extra_ids). Returns a `LinearLogprob`. Raises ValueError for a temperature or softcap that isn't positive.
    """

    def __init__(
        self,
        temperature=1.0,
        logit_scale=1.0,
        softcap=None,
        ignore_index=-100,
        return_lse=False,
        return_entropy=False,
        return_argmax=False,
        return_mean_logit=False,
        memory_budget=None,
    ):
        super().__init__()
        self.options = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature!r}, expected a positive number")
        if softcap is not None and not softcap > 0:
            raise ValueError(f"softcap is {softcap!r}, expected None or a positive number")

    def forward(self, lin_weight, hidden, ids, bias=None, extra_ids=None) -> LinearLogprob:
        return linear_logprob(hidden, lin_weight, ids, bias, extra_ids=extra_ids, **self.options)

    def extra_repr(self):
        return ", ".join(f"{k}={v!r}" for k, v in self.options.items())
