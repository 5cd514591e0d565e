"""The linear losses' plan is a pure function: its promises about blocks, budget and accuracy."""

import itertools

import pytest
import torch

from liger_kernel.ops.linear_loss import get_memory_budget, plan, set_memory_budget

MIB = 2**20
ROWS = (0, 1, 2, 127, 1000, 1024, 4096, 8192, 16384, 100_000, 1_000_000)
HEADS = ((1, 1), (64, 1000), (768, 32000), (511, 50257), (512, 50257), (4096, 128256), (2048, 262144))
BUDGETS = (1, 10**5, 64 * MIB, 256 * MIB, 2**31)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# additions in 16 bits that keep dW's error within three times eager's: see csrc/kernels/linear_loss_plan.c
ALLOWED = {False: 10, True: 20}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("device", ("cpu", "cuda"))
@pytest.mark.parametrize("accum", (None, torch.float32))
def test_blocks_cover_the_rows_within_the_budget(dtype, device, accum):
    for n in ROWS:
        for h, v in HEADS:
            for budget in BUDGETS:
                options = dict(accum_dtype=accum, memory_budget=budget, device=device)
                p = plan(n, h, v, dtype, loop_order="token", **options)
                assert p.loop_order == "token" and p.block_cols == v
                assert p.block_rows * p.n_blocks >= n and p.block_rows * (p.n_blocks - 1) < max(n, 1)
                assert p.block_bytes == p.block_rows * v * (dtype.itemsize + 4 * p.widen_block)
                assert p.block_bytes <= budget or p.block_rows == 1


@pytest.mark.parametrize("h, v", HEADS)
def test_one_block_where_the_budget_allows(h, v):
    n = max(1, 256 * MIB // (v * 4))
    assert plan(n, h, v, torch.float32, memory_budget=n * v * 4).n_blocks == 1
    assert plan(n + 1, h, v, torch.float32, memory_budget=n * v * 4).n_blocks == 2


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_16_bit_additions_stay_within_the_error_bound(dtype):
    for n in ROWS:
        for h, v in HEADS:
            for budget in BUDGETS:
                p = plan(n, h, v, dtype, memory_budget=budget, device="cuda", loop_order="token")
                assert (p.accum_dtype == torch.float32) == (p.n_blocks > ALLOWED[h >= 512])
                assert p.accum_bytes == (4 * h * v if p.accum_dtype == torch.float32 else 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("device", ("cpu", "cuda"))
def test_blocks_cover_the_vocabulary_within_the_budget(dtype, device):
    by_vocabulary = 0
    for n in ROWS:
        for h, v in HEADS:
            for budget in BUDGETS:
                p = plan(n, h, v, dtype, memory_budget=budget, device=device, loop_order="vocabulary")
                fits = n > 0 and budget // (n * dtype.itemsize) >= min(v, 256)
                assert p.loop_order == ("vocabulary" if fits else "token")
                if not fits:
                    continue
                by_vocabulary += 1
                assert p.block_rows == n and p.block_bytes == n * p.block_cols * dtype.itemsize <= budget
                assert p.block_cols * p.n_blocks >= v > p.block_cols * (p.n_blocks - 1)
                apart = p.n_blocks > 1 and dtype.itemsize == 2  # dX, added up in float32
                assert p.accum_bytes == (4 * n * h if apart else 0) and p.accum_dtype == dtype
    assert by_vocabulary > 50


def test_the_cheaper_order_is_chosen():
    seen = set()
    for device in ("cpu", "cuda"):
        for n in ROWS:
            for h, v in HEADS:
                for budget, grad in itertools.product(BUDGETS, (True, False)):
                    wanted = dict(needs_dx=grad, needs_dw=grad, memory_budget=budget, device=device)
                    token, other, chosen = (
                        plan(n, h, v, torch.bfloat16, loop_order=order, **wanted)
                        for order in ("token", "vocabulary", None)
                    )
                    several = token.n_blocks > 1  # one block needs no second look at the vocabulary
                    assert chosen == (min(token, other, key=lambda p: p.seconds) if several else token)
                    seen.add((grad, chosen.loop_order))
    assert len(seen) == 4
    small = dict(memory_budget=32 * MIB, device="cuda")
    args = (8192, 4096, 128256, torch.bfloat16)
    assert plan(*args, **small).loop_order == "vocabulary"  # 66 additions of the whole dW
    assert plan(*args, **small, chunk_mem_const=4).loop_order == "token"  # the caller cuts the tokens


def test_seconds_are_the_models():
    """2 N H V / rate per product, and the bytes that the docstring of linear_loss_plan.c counts."""
    n, h, v = 8192, 4096, 128256
    product = 2 * n * h * v / 675e12
    p = plan(n, h, v, torch.bfloat16, memory_budget=2**40, device="cuda")
    bytes_ = 2 * n * v * 2 + h * v * 2  # the logits read and written, dW written
    assert p.seconds == pytest.approx(3 * product * (1 + 24 / n) + bytes_ / 4.2e12 + 20e-6, rel=1e-9)
    p = plan(n, h, v, torch.bfloat16, device="cuda", loop_order="vocabulary")
    bytes_ = 3 * n * v * 2 + (2 * p.n_blocks - 1) * n * h * 4 + n * h * 6
    products = (4 - 1 / p.n_blocks) * product * (1 + 24 / p.block_cols)
    assert p.seconds == pytest.approx(products + bytes_ / 4.2e12 + p.n_blocks * 20e-6, rel=1e-9)
    # what was measured on an H200, 64 MiB to 2 GiB: within 12 %, and in the same order
    for args, times in (
        ((8192, 4096), (59.4, 48.5, 44.0, 42.2, 41.4, 41.1)),
        ((16384, 2048), (65.1, 51.7, 46.5, 44.1, 42.8, 42.5)),
    ):
        options = dict(device="cuda", loop_order="token", accum_dtype=torch.bfloat16)
        for i, ms in enumerate(times):
            p = plan(*args, v, torch.bfloat16, memory_budget=64 * MIB << i, **options)
            assert p.seconds * 1e3 == pytest.approx(ms, rel=0.12)


def test_the_loss_alone():
    """Nothing is computed twice: the longer short side wins, as measured on an H200 with 256 MiB."""
    alone = dict(needs_dx=False, needs_dw=False, device="cuda")
    for n, h, by_tokens, by_vocabulary in ((8192, 4096, 14.17, 13.68), (16384, 2048, 15.39, 14.31)):
        args = (n, h, 128256, torch.bfloat16)
        assert plan(*args, **alone).loop_order == "vocabulary"
        for order, ms in (("token", by_tokens), ("vocabulary", by_vocabulary)):
            assert plan(*args, **alone, loop_order=order).seconds * 1e3 == pytest.approx(ms, rel=0.08)
    product = 2 * n * h * 128256 / 675e12
    p = plan(*args, **alone)  # one product, the logits read once
    bytes_, each = n * 128256 * 2, product * (1 + 24 / p.block_cols)
    assert p.seconds == pytest.approx(each + bytes_ / 4.2e12 + p.n_blocks * 20e-6, rel=1e-9)
    assert plan(32768, 512, 32000, torch.bfloat16, **alone).loop_order == "token"  # as long: a tie


def test_fp32_accumulation_on_request():
    args = (4096, 768, 32000, torch.bfloat16)
    cpu, gpu = (
        plan(*args, accum_dtype=torch.float32, memory_budget=64 * MIB, device=d, loop_order="token")
        for d in ("cpu", "cuda")
    )
    assert cpu.accum_dtype == gpu.accum_dtype == torch.float32
    assert cpu.widen_block and not gpu.widen_block  # a GPU's product takes bf16 and adds in fp32
    one = plan(*args, accum_dtype=torch.float32, memory_budget=2**30)
    assert (
        one.n_blocks == 1 and one.accum_dtype == torch.bfloat16 and not one.widen_block
    )  # one product rounds once
    frozen = plan(*args, accum_dtype=torch.float32, memory_budget=64 * MIB, needs_dw=False)
    assert not frozen.widen_block and frozen.accum_bytes == 0


def test_an_fp32_weight_is_its_own_accumulator():
    p = plan(4096, 768, 32000, torch.bfloat16, torch.float32, memory_budget=64 * MIB)
    assert p.accum_dtype == torch.float32 and p.accum_bytes == 0


def test_gpu_blocks_are_large_and_whole_tiles():
    """H200 sizes of the benchmarks: near the budget, multiples of 128, the work dealt out evenly."""
    for n, h, v, blocks in ((8192, 4096, 128256, 8), (16384, 2048, 128256, 16), (4096, 4096, 32000, 1)):
        p = plan(n, h, v, torch.bfloat16, device="cuda")
        assert p.n_blocks == blocks and p.block_rows % 128 == 0 and p.accum_dtype == torch.bfloat16


def test_no_tiny_last_block():
    p = plan(2049, 4096, 128256, torch.bfloat16, memory_budget=1024 * 128256 * 2, device="cuda")
    assert p.n_blocks == 3 and 2049 - 2 * p.block_rows > 500


@pytest.mark.parametrize("const, rows", ((1, 4096), (2, 256), (8, 1024), (64, 4096), (10**15, 4096)))
def test_chunk_mem_const_asks_for_blocks_of_that_many_times_x(const, rows):
    p = plan(4096, 768, 32000, torch.float32, chunk_mem_const=const, memory_budget=2**40)
    assert p.block_rows == rows
    assert (
        plan(4096, 768, 32000, torch.float32, chunk_mem_const=const, memory_budget=10 * 128000).block_rows
        <= 10
    )


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="dtype is torch.int64, expected float32"):
        plan(1, 1, 1, torch.int64)
    with pytest.raises(ValueError, match="loop_order is 'rows', expected None, 'token' or 'vocabulary'"):
        plan(1, 1, 1, torch.float32, loop_order="rows")
    with pytest.raises(ValueError, match="expected none to be negative"):
        plan(-1, 1, 1, torch.float32)


def test_budget_of_the_process():
    assert get_memory_budget() == 256 * MIB
    try:
        set_memory_budget(10 * 128000)
        assert (
            get_memory_budget() == 10 * 128000
            and plan(100, 768, 32000, torch.float32, loop_order="token").block_rows == 10
        )
    finally:
        set_memory_budget(None)
    assert get_memory_budget() == 256 * MIB
    for wrong in (0, -1, True, 1.5, "1"):
        with pytest.raises(ValueError, match="n_bytes is .*, expected a number of bytes"):
            set_memory_budget(wrong)
