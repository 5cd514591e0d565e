"""Backward that writes its gradients over what forward saved (ops/_donate.py): where, and nowhere else.

Every case makes an op's inputs so that nobody else holds them, then lets somebody hold or know one of them.
Gradients are held to the bits of the same call on leaves, which are never written over; what is still held
afterwards, to the values that it had.
"""

import os
import subprocess
import sys
import types

import pytest
import torch
from torch.autograd import graph
from torch.utils import dlpack
from torch.utils.checkpoint import checkpoint

from liger_kernel import _check as C
from liger_kernel import transformers as liger
from liger_kernel.ops import SPECS, _donate


class Made(torch.autograd.Function):
    """A copy of x, made by `how`. `log` is told whether the gradient came in the copy's own memory."""

    @staticmethod
    def forward(ctx, x, log, how):
        made = how(x)
        ctx.ptr, ctx.log = made.data_ptr(), log
        return made

    @staticmethod
    def backward(ctx, grad):
        ctx.log.append(grad.data_ptr() == ctx.ptr)
        return grad.clone(), None, None


class Run:
    def __init__(self, name, device, monkeypatch):
        self.fn, self.log, self.donations = SPECS[name].fn, [], 0
        self.args = C.draw(SPECS[name].samples[0], device)
        self.leaves = list(self.args.values())
        self.wanted = C.call(self.fn, self.args)
        module = sys.modules[f"liger_kernel.ops.{name}"]
        over = module._bwd_

        def counted(*args):
            self.donations += 1
            return over(*args)

        monkeypatch.setattr(module, "_bwd_", counted)
        monkeypatch.setattr(_donate, "_LEAST", 1)

    def made(self, how=torch.clone):
        return [Made.apply(leaf, self.log, how) for leaf in self.leaves]

    def call(self, how=torch.clone):
        return self.fn(*self.made(how))

    def backward(self, out, **options):
        """Were the gradients donated? Their bits are right in any case."""
        before = self.donations
        grads = torch.autograd.grad(out, self.leaves, self.wanted.upstream, **options)
        for grad, (name, wanted) in zip(grads, self.wanted.grads.items()):
            assert C.same_bits(grad, wanted), f"d{name}"
        return self.donations > before


@pytest.fixture(params=["swiglu", "geglu", "swiglu_gate_up"])
def run(request, device, monkeypatch):
    return Run(request.param, device, monkeypatch)


# ---- donated -----------------------------------------------------------------------------------------------
def a_view_is_gone(run):
    made = run.made()
    made[0][0].sum(), made[0].detach(), made[0].untyped_storage()
    return run.fn(*made)


def a_hook_sees_the_gradient(run):
    made = run.made()
    made[0].register_hook(lambda grad: None)
    return run.fn(*made)


def recomputed(run):
    def block(*leaves):
        return run.fn(*(Made.apply(leaf, run.log, torch.clone) for leaf in leaves))

    return checkpoint(block, *run.leaves, use_reentrant=False)


def hooks_copy(run):
    with graph.saved_tensors_hooks(torch.clone, torch.clone):
        return run.call()


ALONE = [Run.call, a_view_is_gone, a_hook_sees_the_gradient, recomputed, hooks_copy]


@pytest.mark.parametrize("case", ALONE, ids=lambda case: case.__name__)
def test_donated_where_nobody_else_holds(case, run):
    assert run.backward(case(run))
    if case not in (recomputed, hooks_copy):  # of which autograd was handed another tensor than the one made
        assert all(run.log), "a gradient is not in its input's memory"


def test_reentrant_checkpoint_donates(run):
    def block(*leaves):
        return run.fn(*(Made.apply(leaf, run.log, torch.clone) for leaf in leaves))

    checkpoint(block, *run.leaves, use_reentrant=True).backward(run.wanted.upstream[0])
    assert run.donations == 1 and all(run.log)
    for leaf, wanted in zip(run.leaves, run.wanted.grads.values()):
        assert C.same_bits(leaf.grad, wanted)


def test_the_last_of_many_backwards_donates(run):
    out = run.call()
    assert not run.backward(out, retain_graph=True)
    assert not run.backward(out, retain_graph=True)
    assert run.backward(out)
    with pytest.raises(RuntimeError, match="second time"):
        run.backward(out)


def test_a_backward_that_failed_is_not_repeated_on_gradients(run):
    """An error behind ours keeps the graph, and our saved tensors are gradients by now."""
    out = run.call()

    def fail(*grads):
        raise ValueError("of the user's")

    handle = out.grad_fn.register_hook(fail)
    with pytest.raises(ValueError, match="of the user's"):
        run.backward(out)
    handle.remove()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        run.backward(out)


@pytest.mark.parametrize("name", ["LigerSwiGLUMLP", "LigerGEGLUMLP", "LigerPhi3SwiGLUMLP"])
def test_an_mlp_donates_what_is_large(name, device, monkeypatch):
    """The patched modules as they are: projections without bias, 1 MiB a tensor or one row less."""
    act, halves = ("gelu_pytorch_tanh" if "GE" in name else "silu"), (2 if "Phi3" in name else 1)
    config = types.SimpleNamespace(hidden_size=8, intermediate_size=1024, hidden_act=act)
    mlp, answers, may_donate = getattr(liger, name)(config).to(device), [], _donate._may_donate

    def asked(*args):
        answers.append(may_donate(*args))
        return answers[-1]

    monkeypatch.setattr(_donate, "_may_donate", asked)

    def gradients(n_rows, enabled):
        monkeypatch.setattr(_donate, "_ENABLED", enabled)
        x = C.random_like(torch.empty(1, n_rows, 8, device=device), "x").requires_grad_()
        out = mlp(x)
        return torch.autograd.grad(out, [x, *mlp.parameters()], C.random_like(out, "out"))

    for n_rows in (256 // halves, 256 // halves - 1):
        assert all(map(C.same_bits, gradients(n_rows, True), gradients(n_rows, False)))
    assert answers == [True, False, False, False]


# ---- not donated: somebody holds it ------------------------------------------------------------------------
# each: (output, what gives the first input's values back after backward)
def in_python(run):
    made = run.made()
    return run.fn(*made), lambda: made[0]


def a_view(run):
    made = run.made()
    view = made[0][:]
    return run.fn(*made), lambda: view


def a_detached_one(run):
    made = run.made()
    detached = made[0].detach()
    return run.fn(*made), lambda: detached


def its_storage(run):
    made = run.made()
    storage, like = made[0].untyped_storage(), run.leaves[0]
    return run.fn(*made), lambda: like.new_empty(0).set_(storage).view(like.shape)


def another_library(run):
    made = run.made()
    capsule = dlpack.to_dlpack(made[0].detach())
    return run.fn(*made), lambda: dlpack.from_dlpack(capsule)


def a_node_to_come(run):
    made = run.made()
    square = made[0] ** 2
    ones = torch.ones_like(square)
    return run.fn(*made), lambda: torch.autograd.grad(square, run.leaves[0], ones)[0] / 2


def a_hook(run):
    made, seen = run.made(), []
    first = made[0]
    first.register_hook(lambda grad: seen.append(first.detach().clone()))
    return run.fn(*made), lambda: seen[0]


def the_nodes_own_saved_tensors(run):
    out = run.call()
    saved = out.grad_fn.saved_tensors
    return out, lambda: saved[0]


def hooks_that_keep(run):
    kept = []
    with graph.saved_tensors_hooks(lambda t: kept.append(t.detach()) or kept[-1], lambda t: t):
        return run.call(), lambda: kept[0]


HELD = [
    *(in_python, a_view, a_detached_one, its_storage, another_library, a_node_to_come, a_hook),
    *(the_nodes_own_saved_tensors, hooks_that_keep),
]


@pytest.mark.parametrize("case", HELD, ids=lambda case: case.__name__)
def test_what_is_held_stays(case, run):
    out, look = case(run)
    assert not run.backward(out)
    assert C.same_bits(look(), run.leaves[0])


@pytest.mark.cpu_only
def test_memory_of_another_library_stays(run):
    arrays = []

    def lent(x):
        arrays.append(x.numpy().copy())
        return torch.from_numpy(arrays[-1])

    assert not run.backward(run.call(lent))
    assert C.same_bits(torch.from_numpy(arrays[0]), run.leaves[0])


@pytest.mark.cpu_only
def test_memory_of_other_processes_stays(run):
    assert not run.backward(run.call(lambda x: x.clone().share_memory_()))


def test_save_on_cpu(run, device):
    with graph.save_on_cpu():
        out = run.call()
    # on the CPU the node itself holds the copy; on a GPU backward is given a fresh one
    assert run.backward(out) == (device == "cuda")


@pytest.mark.parametrize("name", ["swiglu", "geglu"])
def test_one_tensor_for_both(name, device, monkeypatch):
    run = Run(name, device, monkeypatch)
    leaf, upstream = run.leaves[0], run.wanted.upstream
    (made,) = run.made()[:1]
    out = run.fn(made, made)
    del made
    (got,), (wanted,) = (torch.autograd.grad(o, leaf, upstream) for o in (out, run.fn(leaf, leaf)))
    assert C.same_bits(got, wanted) and not run.donations


# ---- not donated: no memory that a kernel may write to -----------------------------------------------------
class Marked(torch.Tensor):
    pass


@pytest.mark.parametrize(
    "how",
    [
        lambda x: torch.empty_permuted(x.shape, (0, 2, 1), device=x.device).copy_(x),
        lambda x: torch.Tensor._make_subclass(Marked, x.clone()),
    ],
    ids=["not contiguous", "a subclass"],
)
def test_other_tensors(how, run):
    assert not run.backward(run.call(how))


def test_leaves(run):
    assert not run.backward(run.fn(*run.leaves))


@pytest.mark.parametrize("name", ["swiglu", "geglu"])
def test_a_leaf_that_nobody_holds(name, device, monkeypatch):
    run = Run(name, device, monkeypatch)
    (leaf, other), upstream = run.leaves, run.wanted.upstream
    out = run.fn(Made.apply(leaf, run.log, torch.clone), other.detach().clone())
    (got,) = torch.autograd.grad(out, leaf, upstream)
    assert C.same_bits(got, run.wanted.grads["a"]) and not run.donations


# ---- not donated: not by this backward ---------------------------------------------------------------------
def test_create_graph(run):
    assert not run.backward(run.call(), create_graph=True, retain_graph=False)
    assert not run.backward(run.call(), create_graph=True)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_batched_gradients(run):
    out, (given,) = run.fn(*(leaf * 1 for leaf in run.leaves)), run.wanted.upstream
    batch = torch.autograd.grad(out, run.leaves, torch.stack([given, 2 * given]), is_grads_batched=True)
    assert not run.donations
    for grads, wanted in zip(batch, run.wanted.grads.values()):
        assert C.same_bits(grads[0], wanted) and C.same_bits(grads[1], 2 * wanted)


def test_backward_called_by_hand(run, device):
    """By another Function's backward, which still holds the tensors, if only in the tuple that it got."""

    class Outer(torch.autograd.Function):
        @staticmethod
        def forward(ctx, node, *made):
            ctx.save_for_backward(*made)
            ctx.node = node
            return made[0].new_empty(())

        @staticmethod
        def backward(ctx, _):
            saved = ctx.saved_tensors
            before = [t.clone() for t in saved]
            names = ("multipliers", "gelu", "needs_input_grad")
            inner = {name: getattr(ctx.node, name) for name in names if hasattr(ctx.node, name)}
            node = types.SimpleNamespace(saved_tensors=saved, **inner)
            grads = type(ctx.node)._forward_cls.backward(node, run.wanted.upstream[0])
            assert all(map(C.same_bits, saved, before))
            return (None, *grads[: len(saved)])

    out = Outer.apply(run.fn(*run.leaves).grad_fn, *run.made())
    grads = torch.autograd.grad(out, run.leaves)
    assert all(map(C.same_bits, grads, run.wanted.grads.values())) and not run.donations


def test_compiled(run):
    def fn(*leaves):
        made = [leaf * 1 for leaf in leaves]
        return run.fn(*made), made[0]

    out, first = torch.compile(fn, fullgraph=True, backend="aot_eager")(*run.leaves)
    assert not run.backward(out)
    assert C.same_bits(first, run.leaves[0])


def test_switched_off():
    code = "from liger_kernel.ops import _donate; print(_donate._ENABLED)"
    for value, enabled in (("0", "False"), ("1", "True"), (None, "True")):
        env = {k: v for k, v in os.environ.items() if k != "LIGER_DONATE"}
        env.update({"LIGER_DONATE": value} if value else {})
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert done.stdout.strip() == enabled, done.stderr


def test_off_means_off(run, monkeypatch):
    monkeypatch.setattr(_donate, "_ENABLED", False)
    assert not run.backward(run.call())


def test_a_torch_that_cannot_say(run, monkeypatch):
    monkeypatch.setattr(_donate, "_alone", frozenset)
    assert not run.backward(run.call())
