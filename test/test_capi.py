"""The C API on NumPy arrays (test/capi): float64 as truth, row ranges cut in two, every ISA level.

Nothing of torch is involved. The same calls run once more in a process for each lower ISA level.
"""

import importlib.util
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.cpu_only
HERE = Path(__file__).parent
F32, F16, BF16, F64 = range(4)
DTYPES = {"fp32": F32, "fp16": F16, "bf16": BF16, "fp64": F64}
EPS = {F32: 2.0**-23, F16: 2.0**-10, BF16: 2.0**-7, F64: 2.0**-52}
SIZES = [(1, 1), (3, 7), (5, 33), (17, 130), (2, 8195)]
everything = pytest.mark.parametrize("code", DTYPES.values(), ids=DTYPES)
sized = pytest.mark.parametrize("shape", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")


@pytest.fixture(scope="module")
def capi():
    pytest.importorskip("pybind11")
    path = runpy.run_path(str(HERE / "capi" / "build.py"))["build"]()
    spec = importlib.util.spec_from_file_location("liger_capi", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def encode(values, code):
    """The array that a kernel reads: bfloat16 as its bits, rounded to nearest even."""
    if code == BF16:
        bits = np.asarray(values, np.float32).view(np.uint32).astype(np.uint64)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.asarray(values).astype({F32: np.float32, F16: np.float16, F64: np.float64}[code])


def decode(array, code):
    if code == BF16:
        return (array.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return array.astype(np.float64)


def poisoned(shape, code):
    """An output that is NaN all over, whatever its dtype."""
    out = np.empty(shape, {F32: np.float32, F16: np.float16, BF16: np.uint16, F64: np.float64}[code])
    out.view(np.uint8)[...] = 0xFF
    return out


def real(code):
    return F64 if code == F64 else F32


def random(seed, shape, code, scale=1.0):
    array = encode(np.random.default_rng(seed).standard_normal(shape) * scale, code)
    return array, decode(array, code)


def close(got, want, code, ulps=4):
    error, scale = np.abs(decode(got, code) - want), np.abs(want).max(initial=0)
    assert error.max(initial=0) <= ulps * EPS[code] * scale, f"off by {error.max()}, scale {scale}"


def walk(n, code):
    """Roundings of a sum of n terms in the result's own dtype walk as sqrt(n)."""
    return 8 + (np.sqrt(n) / 4 if code in (F32, F64) else 0)


def halves(call, n, **args):
    assert call(0, n // 2, **args) == 0
    assert call(n // 2, n, **args) == 0


@sized
@everything
def test_rms_norm(capi, shape, code):
    (n, v), r = shape, real(code)
    x, X = random(1, (n, v + 3), code)
    w, W = random(2, v, code)
    dy, dY = random(3, (n, v), code)
    X = X[:, :v]
    y, rstd, dx, dw = poisoned((n, v), code), poisoned(n, r), poisoned((n, v), code), poisoned(v, code)
    size = dict(n_rows=n, n_cols=v, X_row_stride=v + 3, offset=0.5, x_dtype=code, w_dtype=code)
    halves(capi.rms_norm_fwd, n, Y=y, rstd=rstd, X=x, W=w, Y_row_stride=v, eps=1e-6, casting=0, **size)
    R = 1 / np.sqrt((X**2).mean(1, keepdims=True) + 1e-6)
    close(y, X * R * (W + 0.5), code, walk(v, code))
    close(rstd, R[:, 0], r, 8 + np.sqrt(v))
    one_y, one_rstd = poisoned((n, v), code), poisoned(n, r)
    assert (
        capi.rms_norm_fwd(0, n, Y=one_y, rstd=one_rstd, X=x, W=w, Y_row_stride=v, eps=1e-6, casting=0, **size)
        == 0
    )
    assert one_y.tobytes() == y.tobytes() and one_rstd.tobytes() == rstd.tobytes()

    blocks = capi.rms_norm_bwd_blocks(n, v)
    partial = poisoned((blocks, v), r)
    args = dict(
        dX=dx, dW=dw, dW_partial=partial, dY=dy, X=x, W=w, rstd=rstd, dY_row_stride=v, n_blocks=blocks, **size
    )
    halves(capi.rms_norm_bwd, blocks, **args)
    halves(capi.rms_norm_params, v, **args)
    M = dY * (W + 0.5)
    if v > 1:  # of one column, only eps is left of dX
        close(dx, R * (M - X * R**2 * (M * X).mean(1, keepdims=True)), code, walk(v, code))
    close(dw, (dY * X * R).sum(0), code, 16 if v > 1 else 256)


@sized
@everything
@pytest.mark.parametrize("op", ["swiglu", "geglu"])
def test_glu(capi, op, shape, code):
    n, v = shape
    a, A = random(1, (n, v + 1), code, 3)
    b, B = random(2, (n, v), code)
    dc, dC = random(3, (n, v), code)
    A = A[:, :v] * 0.75
    u = A if op == "swiglu" else np.sqrt(8 / np.pi) * (A + 0.044715 * A**3)
    s, rest = 1 / (1 + np.exp(-u)), 1 / (1 + np.exp(u))
    slope = s + A * s * rest * (1 if op == "swiglu" else np.sqrt(8 / np.pi) * (1 + 3 * 0.044715 * A**2))
    c, da, db = (poisoned((n, v), code) for _ in range(3))
    tiles = n * -(-v // 1024)
    args = dict(A=a, B=b, n_rows=n, n_cols=v, A_row_stride=v + 1, B_row_stride=v, gate_multiplier=0.75)
    args |= dict(down_multiplier=1.5, a_dtype=code, b_dtype=code, c_dtype=code)
    halves(getattr(capi, f"{op}_fwd"), tiles, C=c, **args)
    halves(
        getattr(capi, f"{op}_bwd"),
        tiles,
        dA=da,
        dB=db,
        dC=dc,
        dA_row_stride=v,
        dB_row_stride=v,
        dC_row_stride=v,
        **args,
    )
    close(c, A * s * B * 1.5, code, 8)
    close(da, dC * B * slope * 0.75 * 1.5, code, 16)
    close(db, dC * A * s * 1.5, code, 8)


@sized
@everything
def test_dyt(capi, shape, code):
    (n, v), r = shape, real(code)
    x, X = random(1, (n, v + 3), code, 2)
    dy, dY = random(2, (n, v), code)
    alpha, A = random(3, 1, code)
    gamma, G = random(4, v, code)
    beta, B = random(5, v, code)
    X = X[:, :v]
    th, slope = np.tanh(A * X), 1 / np.cosh(A * X) ** 2
    y, dx, dgamma, dbeta, dalpha = (poisoned(s, code) for s in ((n, v), (n, v), v, v, 1))
    args = dict(X=x, alpha=alpha, gamma=gamma, n_rows=n, n_cols=v, X_row_stride=v + 3, x_dtype=code)
    args |= dict(alpha_dtype=code, gamma_dtype=code, beta_dtype=code)
    halves(capi.dyt_fwd, n, Y=y, beta=beta, **args)
    blocks, workspace = capi.dyt_bwd_blocks(n), poisoned(capi.dyt_bwd_workspace(n, v, code), r)
    args |= dict(
        dX=dx, dalpha=dalpha, dgamma=dgamma, dbeta=dbeta, workspace=workspace, dY=dy, dY_row_stride=v
    )
    halves(capi.dyt_bwd, blocks, **args)
    halves(capi.dyt_params, v, **args)
    close(y, G * th + B, code)
    close(dx, dY * G * slope * A, code, 8)
    close(dgamma, (dY * th).sum(0), code, 16)
    close(dbeta, dY.sum(0), code, 16)
    terms = dY * G * slope * X  # of terms of either sign little is left
    spare = 8 * EPS[r] * np.abs(terms).sum()
    assert abs(decode(dalpha, code)[0] - terms.sum()) <= EPS[code] * abs(terms.sum()) + spare


@sized
@everything
def test_relu_squared(capi, shape, code):
    n, v = shape
    x, X = random(1, (n, v + 3), code)
    dy, dY = random(2, (n, v), code)
    y, dx, R = poisoned((n, v), code), poisoned((n, v), code), X[:, :v].clip(0)
    args = dict(X=x, X_row_stride=v + 3, n_rows=n, n_cols=v, x_dtype=code)
    halves(capi.relu_squared, n * -(-v // 1024), Y=y, **args)
    halves(capi.relu_squared, n * -(-v // 1024), Y=dx, dY=dy, dY_row_stride=v, **args)
    close(y, R * R, code, 1)
    close(dx, 2 * R * dY, code, 1)


@pytest.mark.parametrize("backward", [0, 1])
@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("tables", ["one", "complex", "three"])
@everything
def test_rope(capi, code, tables, interleaved, backward):
    batch, heads, seq, dim, rotary = 2, 3, 5, 22, 18
    h = rotary // 2
    x, X = random(1, (batch, heads, seq, dim), code)
    k, K = random(2, (batch, 1, seq, dim), code)
    step = 2 if tables == "complex" else 1
    if tables == "complex":
        table, angles = random(3, (seq, h, 2), code)
        c, s, Cos, Sin = table, table.reshape(-1)[1:], angles[..., 0], angles[..., 1]
    else:
        (c, Cos), (s, Sin) = (random(i, (3, seq, h), code) for i in (3, 4))
        edges = (2, 6) if tables == "three" else (h, h)
        parts = [slice(0, edges[0]), slice(*edges), slice(edges[1], h)]
        Cos, Sin = (np.concatenate([t[i, :, p] for i, p in enumerate(parts)], -1) for t in (Cos, Sin))
    q_out, k_out = poisoned(x.shape, code), poisoned(k.shape, code)
    q_strides, k_strides = (heads * seq * dim, seq * dim, dim), (seq * dim, seq * dim, dim)
    args = dict(
        Q_out=q_out, K_out=k_out, Q=x, K=k, cos=c, sin=s, Q_strides=q_strides, Q_out_strides=q_strides
    )
    args |= dict(
        K_strides=k_strides,
        K_out_strides=k_strides,
        cos_row_stride=h * step,
        sin_row_stride=h * step,
        batch=batch,
    )
    args |= dict(table_col_stride=step, interleaved=interleaved)
    if tables == "three":
        args |= dict(cos_section_stride=seq * h, sin_section_stride=seq * h, section_2=2, section_3=6)
    args |= dict(n_q_heads=heads, n_kv_heads=1, seq_len=seq, head_dim=dim, rotary_dim=rotary, n_positions=seq)
    args |= dict(backward=backward, q_dtype=code, k_dtype=code, table_dtype=code)
    halves(capi.rope, batch * seq, **args)
    for got, V in ((q_out, X), (k_out, K)):
        first = np.arange(h) * (2 if interleaved else 1)
        second, sign, want = first + (1 if interleaved else h), -1 if backward else 1, V.copy()
        want[..., first] = V[..., first] * Cos - sign * V[..., second] * Sin
        want[..., second] = V[..., second] * Cos + sign * V[..., first] * Sin
        close(got, want, code)


@sized
@everything
def test_cross_entropy(capi, shape, code):
    (n, v), r = shape, real(code)
    x, X = random(1, (n, v), code, 3)
    y = np.random.default_rng(2).integers(0, v, n)
    y[1::3] = -100
    g, G = random(3, n, r)
    valid = y != -100
    stats, loss, dx = poisoned(4, r), poisoned(n, r), poisoned((n, v), code)
    size = dict(target=y, n_rows=n, n_cols=v, target_stride=1, ignore_index=-100, x_dtype=code)
    assert capi.cross_entropy_count(0, n, stats=stats, reduction=1, **size) == 0
    args = dict(
        loss=loss, dX=dx, X=x, stats=stats, row_grad=g, X_row_stride=v, dX_row_stride=v, row_grad_stride=1
    )
    args |= dict(label_smoothing=0.1, **size)
    halves(capi.cross_entropy, n, **args)
    top = X.max(1, keepdims=True)
    lse = top + np.log(np.exp(X - top).sum(1, keepdims=True))
    P, hot = np.exp(X - lse), np.arange(v) == np.where(valid, y, 0)[:, None]
    each = 0.9 * hot + 0.1 / v
    scale = valid / max(valid.sum(), 1)
    close(loss, scale * (each * (lse - X)).sum(1), r, 16 + np.sqrt(v))
    close(dx, (G * scale)[:, None] * (P - each), code, 16 + np.sqrt(v) if code in (F32, F64) else 2)


@sized
@everything
@pytest.mark.parametrize("inner", [1, 67])
def test_softmax(capi, shape, inner, code):
    n, v = shape
    x, X = random(1, (n, v, inner), code, 3)
    dy, dY = random(2, (n, v, inner), code)
    y, dx = poisoned((n, v, inner), code), poisoned((n, v, inner), code)
    tiles, span = n * -(-inner // 64), v * inner
    size = dict(n_rows=n, n_cols=v, n_inner=inner, x_dtype=code)
    halves(capi.softmax_fwd, tiles, Y=y, X=x, X_row_stride=span, **size)
    E = np.exp(X - X.max(1, keepdims=True))
    ulps = walk(v, code) if code == F64 else 4  # NumPy adds these up one after the other
    close(y, E / E.sum(1, keepdims=True), code, ulps)
    halves(capi.softmax_bwd, tiles, dX=dx, dY=dy, Y=y, dY_row_stride=span, Y_row_stride=span, **size)
    P = decode(y, code)
    close(dx, P * (dY - (dY * P).sum(1, keepdims=True)), code, 2 * ulps)


def test_unknown_fields_and_dtypes_are_refused(capi):
    with pytest.raises(TypeError, match="not a field"):
        capi.rope(0, 1, heads=3)
    assert "dtype" in capi.error_string(-1)


@pytest.mark.slow
@pytest.mark.parametrize("level", ["2", "3"])
def test_lower_isa_level(capi, level):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        __file__,
        "-k",
        "not lower_isa",
    ]
    env = {**os.environ, "LIGER_ISA_MAX": level}
    done = subprocess.run(command, env=env, cwd=HERE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
