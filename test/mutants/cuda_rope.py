"""Faults in the rotary kernel on GPUs."""

ROPE = "csrc/kernels/rope.cu"


def ops(op, what="test_within_eagers_error"):
    return ["test/test_ops.py", "-k", f"{what} and {op}-"]


def gpu(op, what):
    return ["test/test_cuda.py", "-k", f"{what} and {op}"]


MUTANTS = [
    ("rope_backward_unturned", ROPE, "a.backward ? -1.0f : 1.0f", "1.0f", ops("rope")),
    (
        "rope_dropped_heads",
        ROPE,
        "(a.n_kv_heads + HEADS - 1) / HEADS",
        "a.n_kv_heads / HEADS",
        ops("rope"),
    ),
    ("rope_tail_not_copied", ROPE, "if (a.head_dim > 2 * half)", "if (a.head_dim < 2 * half)", ops("rope")),
    (
        "rope_other_stream",
        ROPE,
        "rope_kernel<T, VEC, INTERLEAVED, true><<<grid, THREADS, 0, stream>>>",
        "rope_kernel<T, VEC, INTERLEAVED, true><<<grid, THREADS, 0, 0>>>",
        gpu("rope", "current_stream"),
    ),
    (
        "rope_interleaved_second_vector",
        ROPE,
        "table_batch, row, (half + col) / 2)",
        "table_batch, row, col / 2)",
        ops("llama4_rope"),
    ),
    ("rope_interleaved_scalar_partner", ROPE, "NEIGHBOURS ? 1 : half", "half", ops("rope")),
    (
        "rope_complex_imaginary_part",
        ROPE,
        "sn[j] = both[2 * j + 1];",
        "sn[j] = both[2 * j];",
        ops("llama4_rope"),
    ),
    (
        "rope_section_within_a_vector",
        ROPE,
        " && a.section_2 % VEC == 0 && a.section_3 % VEC == 0",
        "",
        ops("qwen2vl_mrope"),
    ),
    (
        "rope_third_section_lost",
        ROPE,
        "(col >= a.section_2) + (col >= a.section_3)",
        "(col >= a.section_2)",
        ops("qwen2vl_mrope"),
    ),
]
