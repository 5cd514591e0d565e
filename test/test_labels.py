"""Labels out of range: a named error on the CPU, NaN on a GPU (never a plausible number), an error there on
request.
"""

import pytest
import torch

from liger_kernel.ops import _labels
from liger_kernel.transformers.functional import liger_cross_entropy, liger_fused_linear_cross_entropy


def losses(device):
    """{name: function of (target, reduction)} on fixed logits of 5 rows and 11 classes, and what they
    compute.
    """
    torch.manual_seed(0)
    x, w = torch.randn(5, 8, device=device), torch.randn(11, 8, device=device)
    logits = x @ w.t()
    return {
        "cross_entropy": lambda y, r: liger_cross_entropy(logits, y, reduction=r),
        "fused_linear_cross_entropy": lambda y, r: liger_fused_linear_cross_entropy(x, w, y, reduction=r),
    }, logits


@pytest.mark.parametrize("name", ["cross_entropy", "fused_linear_cross_entropy"])
@pytest.mark.parametrize("value", [11, -1, -101, 2**40])
def test_label_out_of_range(name, value, device, monkeypatch):
    functions, logits = losses(device)
    target = torch.tensor([3, -100, value, 0, 10], device=device)
    if device == "cuda":
        loss = functions[name](target, "none")
        ok = torch.tensor([0, 1, 3, 4], device=device)
        assert loss[2].isnan() and functions[name](target, "mean").isnan()
        expected = torch.nn.functional.cross_entropy(logits[ok], target[ok], reduction="none")
        torch.testing.assert_close(loss[ok], expected)
        monkeypatch.setattr(_labels, "_DEBUG", True)
    for reduction in ("none", "mean", "sum"):
        with pytest.raises(RuntimeError, match=rf"target\[2\] is {value}, expected a value in \[0, 11\)"):
            functions[name](target, reduction)
