"""Who else is measured, in the same process: what is installed beside torch, by import.

Each peer is called as its documentation says, on the cases it can do. quack: pip install quack-kernels; cce:
pip install cut-cross-entropy; torch: PyTorch's own fused linear cross entropy, where it has one. Upstream's
package has our package's name, so `upstream.py` measures it in a process of its own.
"""

import importlib

import torch
import torch.nn.functional as F

from . import baselines

QUACK_CHUNK = 4096


def _quack():
    quack = importlib.import_module("quack")
    linear = importlib.import_module("quack.linear_cross_entropy").chunked_linear_cross_entropy
    return {
        "rms_norm": lambda X, W, eps: quack.rmsnorm(X, W, eps=eps),
        "fused_add_rms_norm": lambda X, R, W, eps: quack.rmsnorm(X, W, residual=R, eps=eps, prenorm=True),
        "softmax": lambda input_: quack.softmax(input_),
        "cross_entropy": lambda _input, target: quack.cross_entropy(_input, target).mean(),
        "fused_linear_cross_entropy": lambda _input, weight, target: linear(
            _input, weight, target, chunk_size=QUACK_CHUNK
        ),
    }


def _cce():
    linear = importlib.import_module("cut_cross_entropy").linear_cross_entropy
    return {"fused_linear_cross_entropy": lambda _input, weight, target: linear(_input, weight, target)}


def _torch():
    linear = F.linear_cross_entropy  # from torch 2.12 on
    return {"fused_linear_cross_entropy": lambda _input, weight, target: linear(_input, weight, target)}


_PEERS = {"quack": _quack, "cce": _cce, "torch": _torch}
NAMES = ("eager", "compile", "liger", *_PEERS)
_loaded = {}


def installed():
    """The implementations that this process can measure."""
    return [name for name in NAMES if name not in _PEERS or _table(name)]


def _table(peer):
    if peer not in _loaded:
        try:
            _loaded[peer] = _PEERS[peer]()
        except (ImportError, AttributeError):
            _loaded[peer] = {}
    return _loaded[peer]


def way(impl, spec, args):
    """The function of a case's arguments that is `impl`, or None where it can't do this case."""
    if impl == "liger":
        return spec.fn
    if impl in _PEERS:
        fn = _table(impl).get(spec.name)
        given = {k for k, v in args.items() if v is not None}
        names = fn and set(fn.__code__.co_varnames[: fn.__code__.co_argcount])
        return (lambda **kw: fn(**{k: kw[k] for k in names})) if fn and given == names else None
    eager = baselines.eager(spec, args)
    return torch.compile(eager, dynamic=False) if impl == "compile" else eager
