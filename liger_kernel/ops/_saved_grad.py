"""What the losses that make their gradient in forward do in backward: scale it by the incoming gradient.

`scale_saved(grad, dloss)` is grad * dloss, dloss one value or one per row of grad, computed on the device
without waiting for its value. Where the graph is freed by this very backward, the saved buffer is scaled in
place and handed out, and the kernel returns at once if dloss is 1: the usual `loss.backward()` costs no pass
over the gradient. Where the graph is kept (`retain_graph=True`), the result is a new tensor, so that the next
backward starts from the same saved gradient.
"""

import torch

_scale = torch.ops.liger.scale_grad.default
_scale_ = torch.ops.liger.scale_grad_.default
# private: where it is absent, every graph counts as kept
_graph_is_kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


@torch.library.register_fake("liger::scale_grad")
def _(src, scale):
    return torch.empty_like(src, memory_format=torch.contiguous_format)


@torch.library.register_fake("liger::scale_grad_")
def _(src, scale):
    return None


def may_overwrite_saved():
    """Whether the running backward is the last to see what forward saved. False under torch.compile."""
    return not torch.compiler.is_compiling() and not _graph_is_kept()


def scale_saved(grad, dloss):
    """grad * dloss; `grad` is a dense tensor that only this node's forward made and saved."""
    if not may_overwrite_saved():
        return _scale(grad, dloss)
    _scale_(grad, dloss)
    return grad.detach()
