"""RMSNorm modules, shaped like the Hugging Face classes they stand in for."""

import torch
from torch import nn

from ..ops.rms_norm import LigerRMSNormFunction

__all__ = [
    "LigerRMSNorm",
    "LigerRMSNormForGemma",
    "LigerRMSNormForGemma2",
    "LigerRMSNormForGemma3",
    "LigerRMSNormForGemma4",
    "LigerRMSNormForGlm4",
    "LigerRMSNormForMuseGlimmer",
    "LigerRMSNormForMuseGlimmerTextCentered",
    "LigerRMSNormForOlmo2",
    "LigerRMSNormForQwen3Next",
]
FUNCTIONAL = ("liger_rms_norm",)


def liger_rms_norm(X, W, eps, offset=0.0, casting_mode="llama", in_place=True):
    """y = x / sqrt(mean(x^2) + eps) * (w + offset) over the last dimension.

    X: (..., n_cols), float32, bfloat16, float16 (float64 on the CPU); W: (n_cols,) of any of these dtypes, or
    None for no weight. casting_mode: "llama" rounds the normalised row to X's dtype before the weight is
    applied; "gemma" and "none" round once. The result has X's dtype. `in_place` is accepted for
    compatibility; X and the incoming gradient are never written to. Source: arXiv:1910.07467.
    """
    return LigerRMSNormFunction.apply(X, W, eps, offset, casting_mode, in_place)


class LigerRMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * (weight + offset), a stand-in for LlamaRMSNorm.

    hidden_size: size of the last dimension. init_fn: "ones" or "zeros" for the weight.
    elementwise_affine=False: no weight. casting_mode: "llama", "gemma" or "none" (see `liger_rms_norm`).
    `in_place`, `row_mode`: accepted for compatibility. Raises ValueError for an unknown casting_mode or
    init_fn.
    """

    def __init__(
        self,
        hidden_size,
        eps=1e-6,
        offset=0.0,
        casting_mode="llama",
        init_fn="ones",
        in_place=True,
        row_mode=None,
        elementwise_affine=True,
    ):
        super().__init__()
        if init_fn not in ("ones", "zeros"):
            raise ValueError(f"init_fn is {init_fn!r}, expected 'ones' or 'zeros'")
        if casting_mode not in ("llama", "gemma", "none"):
            raise ValueError(f"casting_mode is {casting_mode!r}, expected 'llama', 'gemma' or 'none'")
        if elementwise_affine:
            self.weight = nn.Parameter(getattr(torch, init_fn)(hidden_size))
        else:
            self.register_parameter("weight", None)
        self.variance_epsilon, self.offset, self.casting_mode = eps, offset, casting_mode
        self.in_place, self.row_mode = in_place, row_mode

    def forward(self, hidden_states):
        numbers = self.variance_epsilon, self.offset
        permissions = self.in_place, self.row_mode
        return LigerRMSNormFunction.apply(
            hidden_states, self.weight, *numbers, self.casting_mode, *permissions
        )

    def extra_repr(self):
        weight = getattr(self, "weight", None)
        size = "no weight" if weight is None else tuple(weight.shape)
        return (
            f"{size}, eps={self.variance_epsilon}, offset={self.offset}, casting_mode={self.casting_mode!r}"
        )


class LigerRMSNormForGemma(LigerRMSNorm):
    """GemmaRMSNorm: the weight is stored less one (offset 1, zeros at the start), fp32 until the final
    rounding.
    """

    def __init__(
        self,
        hidden_size,
        eps=1e-6,
        offset=1.0,
        casting_mode="gemma",
        init_fn="zeros",
        in_place=True,
        row_mode=None,
    ):
        super().__init__(hidden_size, eps, offset, casting_mode, init_fn, in_place, row_mode)


class LigerRMSNormForGemma2(LigerRMSNorm):
    """Gemma2RMSNorm: as LigerRMSNormForGemma; in_place is False by default, as upstream has it."""

    def __init__(
        self,
        hidden_size,
        eps=1e-6,
        offset=1.0,
        casting_mode="gemma",
        init_fn="zeros",
        in_place=False,
        row_mode=None,
    ):
        super().__init__(hidden_size, eps, offset, casting_mode, init_fn, in_place, row_mode)


class LigerRMSNormForGemma3(LigerRMSNorm):
    """Gemma3RMSNorm: as LigerRMSNormForGemma2, without `row_mode`."""

    def __init__(
        self,
        dim,
        eps=1e-6,
        offset=1.0,
        casting_mode="gemma",
        init_fn="zeros",
        in_place=False,
    ):
        super().__init__(dim, eps, offset, casting_mode, init_fn, in_place)


def _with_optional_scale(module, hidden_states):
    """LigerRMSNorm.forward where Hugging Face's class has no attribute `weight` at all without a scale."""
    numbers = module.variance_epsilon, module.offset
    weight = getattr(module, "weight", None)
    return LigerRMSNormFunction.apply(hidden_states, weight, *numbers, module.casting_mode, module.in_place)


class LigerRMSNormForGemma4(LigerRMSNorm):
    """Gemma4RMSNorm: the weight as it is, fp32 until the final rounding; with_scale=False: no weight."""

    def __init__(
        self,
        dim,
        eps=1e-6,
        offset=0.0,
        casting_mode="gemma",
        init_fn="ones",
        in_place=False,
        with_scale=True,
    ):
        super().__init__(dim, eps, offset, casting_mode, init_fn, in_place, elementwise_affine=with_scale)
        self.with_scale = with_scale

    def forward(self, hidden_states):
        return _with_optional_scale(self, hidden_states)


class LigerRMSNormForOlmo2(LigerRMSNorm):
    """Olmo2RMSNorm: as LigerRMSNorm, for norms whose output is added to a residual (in_place is False)."""

    def __init__(
        self,
        hidden_size,
        eps=1e-6,
        offset=0.0,
        casting_mode="llama",
        init_fn="ones",
        in_place=False,
        row_mode=None,
    ):
        super().__init__(hidden_size, eps, offset, casting_mode, init_fn, in_place, row_mode)


class LigerRMSNormForGlm4(LigerRMSNormForOlmo2):
    """Glm4RMSNorm: as LigerRMSNorm, for norms whose output is added to a residual (in_place is False)."""


class LigerRMSNormForQwen3Next(LigerRMSNormForGemma2):
    """Qwen3NextRMSNorm: the weight is stored less one, fp32 until the final rounding."""


class LigerRMSNormForMuseGlimmer(LigerRMSNorm):
    """MuseGlimmerRMSNorm: the weight as it is, fp32 until the final rounding; with_scale=False: no weight,
    no `dim`. Raises ValueError for a scale without `dim`.
    """

    def __init__(
        self,
        dim=None,
        eps=1e-6,
        offset=0.0,
        casting_mode="gemma",
        init_fn="ones",
        in_place=False,
        with_scale=True,
    ):
        if with_scale and dim is None:
            raise ValueError("dim is None, expected the size of the last dimension: with_scale is True")
        super().__init__(dim, eps, offset, casting_mode, init_fn, in_place, elementwise_affine=with_scale)
        self.with_scale = with_scale

    def forward(self, hidden_states):
        return _with_optional_scale(self, hidden_states)


class LigerRMSNormForMuseGlimmerTextCentered(LigerRMSNormForGemma2):
    """MuseGlimmerTextCenteredRMSNorm: the weight is stored less one, fp32 until the final rounding."""
