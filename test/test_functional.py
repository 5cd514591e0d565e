"""liger_kernel.functional: the same results under short names, and the choice of an implementation."""

import inspect
import os
import subprocess
import sys
import warnings

import pytest
import torch

import liger_kernel
import liger_kernel.functional as LF
from liger_kernel import backends
from liger_kernel.backends import registry


@pytest.fixture(autouse=True)
def _as_it_was():
    before = {op: dict(impls) for op, impls in registry._IMPLS.items()}
    yield
    backends.set_impl(None)
    registry._IMPLS.clear()
    registry._IMPLS.update(before)


@pytest.fixture
def calls(device):
    """{name: positional arguments} of every operator that is there."""
    torch.manual_seed(0)
    r = lambda *s: torch.randn(*s, device=device)
    ids = torch.randint(9, (6,), device=device)
    table = r(1, 5, 8)
    known = {
        "rms_norm": (r(6, 8), r(8)),
        "layer_norm": (r(6, 8), r(8)),
        "fused_add_rms_norm": (r(6, 8), r(6, 8), r(8)),
        "softmax": (r(6, 9),),
        "swiglu": (r(6, 9), r(6, 9)),
        "geglu": (r(6, 9), r(6, 9)),
        "rope": (r(2, 4, 5, 8), r(2, 2, 5, 8), table.cos(), table.sin()),
        "cross_entropy": (r(6, 9), ids),
        "fused_linear_cross_entropy": (r(6, 8), r(9, 8), ids),
        "jsd": (r(6, 9).log_softmax(-1), r(6, 9).log_softmax(-1)),
        "kl_div": (r(6, 9).log_softmax(-1), r(6, 9).softmax(-1)),
        "fused_linear_jsd": (r(6, 8), r(9, 8), r(6, 7), r(9, 7)),
    }
    assert set(LF.__all__) <= set(known), "an operator without a call here"
    return {name: args for name, args in known.items() if name in LF.__all__}


def outputs(result):
    return result if isinstance(result, tuple) else (result,)


def same(a, b):
    pairs = zip(outputs(a), outputs(b), strict=True)
    return all(x is y is None or (x is not None and torch.equal(x, y)) for x, y in pairs)


def test_every_name_of_ours_gives_the_same_bits(calls):
    for name, args in calls.items():
        fn = getattr(LF, name)
        want = fn(*args)
        for choice in (
            {"impl": "liger"},
            {"backend": "nvidia-triton"},
            {"impl": "triton", "mode": "default"},
        ):
            assert same(fn(*args, **choice), want), (name, choice)
        assert same(backends.dispatch(name, *args), want), name
        assert backends.available_impls(name) == backends.all_impls(name) == ["liger"]


def test_losses_give_four_values_and_softmax_is_torchs(calls):
    for name in ("cross_entropy", "fused_linear_cross_entropy"):
        loss, *rest = getattr(LF, name)(*calls[name])
        assert len(rest) == 3 and rest == [None] * 3 and loss.dim() == 0
    x, y = calls["cross_entropy"]
    loss, z_loss, accuracy, predicted = LF.cross_entropy(
        x, y, return_z_loss=True, return_token_accuracy=True, return_predicted_tokens=True
    )
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(x, y))
    assert torch.equal(predicted, x.argmax(-1)) and z_loss is not None and accuracy is not None
    torch.testing.assert_close(LF.softmax(x), torch.softmax(x, -1))


def test_unknown_names_and_modes_are_refused(calls):
    x = calls["softmax"][0]
    for choice in ({"impl": "nvidia-cutile"}, {"backend": "pytorch"}):
        with pytest.raises(
            backends.ImplNotAvailableError, match=r"softmax: impl is '.*', which is not available"
        ):
            LF.softmax(x, **choice)
    with pytest.raises(ValueError, match="mode is 'fast', expected None or 'default'"):
        LF.softmax(x, mode="fast")
    with pytest.raises(ValueError, match="two names for one choice"):
        LF.softmax(x, impl="liger", backend="triton")
    with pytest.raises(
        backends.ImplNotAvailableError, match="name is 'cutedsl', expected None or one of liger"
    ):
        liger_kernel.set_impl("cutedsl")
    with pytest.raises(backends.NoImplAvailableError, match="unknown operator, expected one of"):
        backends.dispatch("no_such_op", x)


def test_a_programs_own_implementation(calls):
    x = calls["softmax"][0]

    @backends.register_impl("softmax", impl_name="mine")
    def mine(x):
        return x + 1

    assert backends.available_impls("softmax") == ["liger", "mine"]
    assert torch.equal(LF.softmax(x, impl="mine"), x + 1)
    torch.testing.assert_close(LF.softmax(x), torch.softmax(x, -1))
    liger_kernel.set_impl("mine")
    assert liger_kernel.get_impl() == "mine"
    assert torch.equal(LF.softmax(x), x + 1)
    with pytest.raises(backends.ImplNotAvailableError, match="swiglu has liger"):
        LF.swiglu(x, x)
    assert torch.equal(LF.swiglu(x, x, impl="liger"), torch.ops.liger.swiglu_fwd(x, x, 1.0, 1.0))
    liger_kernel.set_impl(None)

    needs = backends.Capability(predicate=lambda device: False)
    backends.register_impl("softmax", impl_name="never", capability=needs, preference_rank=1)(mine)
    backends.register_impl("softmax", impl_name="first", preference_rank=2)(mine)
    assert backends.available_impls("softmax") == ["first", "liger", "mine"]
    assert torch.equal(LF.softmax(x), x + 1)
    with pytest.raises(backends.ImplNotAvailableError, match="its predicate says no"):
        LF.softmax(x, impl="never")


def test_an_autograd_function_as_implementation(calls):
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, g):
            return 2 * g

    backends.register_impl("softmax", backend="double")(Double)
    x = calls["softmax"][0].requires_grad_()
    g = torch.randn_like(x)
    LF.softmax(x, impl="double").backward(g)
    assert torch.equal(x.grad, 2 * g) and backends.resolve_impl("softmax", "double").backend == "double"
    with pytest.raises(TypeError, match="takes no keywords"):
        backends.dispatch("softmax", x, impl="double", dim=0)


def test_capabilities_say_what_is_missing():
    assert backends.Capability().is_satisfied()
    reason = backends.Capability(modules=("no_such_module",)).reason_if_unsatisfied
    assert reason() == "the module 'no_such_module' is not installed"
    assert backends.Capability(min_cc=(9, 0)).reason_if_unsatisfied("cpu") == "needs a CUDA device, got cpu"


def test_one_graph_for_torch_compile(calls):
    for name, args in calls.items():
        args = [a.requires_grad_() if a.is_floating_point() else a for a in args]
        fn = getattr(LF, name)
        compiled = torch.compile(lambda *a, fn=fn: fn(*a), fullgraph=True, backend="aot_eager")
        assert same(compiled(*args), fn(*args)), name
        torch._dynamo.reset()


def test_signatures_show_the_arguments():
    assert list(inspect.signature(LF.softmax).parameters) == ["x", "impl", "mode", "backend"]


def run(code, **env):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True)


@pytest.mark.slow
def test_names_in_the_environment():
    code = "import torch, liger_kernel.functional as F; F.softmax(torch.randn(2, 3))"
    for env in ({"LIGER_KERNEL_BACKEND": "nvidia-triton"}, {"LIGER_KERNEL_IMPL_SOFTMAX": "liger"}):
        done = run(code, **env)
        assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr
    done = run(code, LIGER_KERNEL_IMPL_SOFTMAX="cutile")
    assert done.returncode == 0 and "LigerImplFallbackWarning" in done.stderr, done.stderr
    done = run(code, LIGER_KERNEL_IMPL_SOFTMAX="cutile", LIGER_KERNEL_STRICT="1")
    assert done.returncode == 1 and "ImplNotAvailableError" in done.stderr
    assert run("import liger_kernel.functional", LIGER_KERNEL_IMPL="nvidia-triton").returncode == 0


def test_the_root_package_has_the_choice_and_stays_cheap():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert liger_kernel.functional is LF
    for name in (
        "set_impl",
        "get_impl",
        "available_impls",
        "set_backend",
        "get_backend",
        "available_backends",
    ):
        assert callable(getattr(liger_kernel, name))
    done = run("import sys, liger_kernel; print('torch' in sys.modules)")
    assert done.stdout.strip() == "False"
