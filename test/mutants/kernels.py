"""Faults in the C kernels."""


def ops(op, what):
    return ["test/test_ops.py", "-k", f"{what} and {op}-"]


NUMBERS = "test_within_eagers_error"
RMS, GLU, ROPE = "csrc/kernels/rms_norm.c", "csrc/kernels/glu.h", "csrc/kernels/rope.c"
CE, LOSS = "csrc/kernels/cross_entropy.c", "csrc/kernels/loss_common.c"

MUTANTS = [
    (
        "rms_norm_eps_dropped",
        RMS,
        "(real)n_cols + (real)a->eps)",
        "(real)n_cols)",
        ops("rms_norm", "option_changes"),
    ),
    (
        "rms_norm_llama_unrounded",
        RMS,
        "rstd, a->casting == LIGER_CAST_LLAMA, t);",
        "rstd, 0, t);",
        ops("rms_norm", "option_changes"),
    ),
    ("rms_norm_dx_mean_unscaled", RMS, "mean /= (real)n_cols;", "", ops("rms_norm", NUMBERS)),
    ("rms_norm_dw_of_first_tile", RMS, "dw ? dw + c : NULL", "dw ? dw : NULL", ops("rms_norm", NUMBERS)),
    (
        "swiglu_slope_without_complement",
        "csrc/kernels/swiglu.c",
        "return s + *value * rest;",
        "return s + *value;",
        ops("swiglu", NUMBERS),
    ),
    (
        "geglu_cubic_term",
        "csrc/kernels/geglu.c",
        "(1 + 3 * CUBIC * x2)",
        "(1 + CUBIC * x2)",
        ops("geglu", NUMBERS),
    ),
    (
        "geglu_left_tail",
        "csrc/kernels/geglu.c",
        "y < 0 ? tail : 1.0f - tail;",
        "1.0f - tail;",
        ops("geglu", NUMBERS),
    ),
    (
        "geglu_quick_slope",
        "csrc/kernels/geglu.c",
        "return s + QUICK * *value * rest;",
        "return s + *value * rest;",
        ops("geglu", NUMBERS),
    ),
    (
        "relu_squared_slope",
        "csrc/kernels/relu_squared.c",
        "* (2 * relu(",
        "* (relu(",
        ops("relu_squared", NUMBERS),
    ),
    (
        "relu_squared_of_negatives",
        "csrc/kernels/relu_squared.c",
        "const real r = relu(load_element(x, i, t));",
        "const real r = load_element(x, i, t);",
        ops("relu_squared", NUMBERS),
    ),
    (
        "elementwise_dropped_tail",
        "csrc/kernels/elementwise.h",
        "const int64_t n = n_cols - col < LIGER_ELEMENT_TILE ? n_cols - col : LIGER_ELEMENT_TILE;",
        "const int64_t n = n_cols - col < LIGER_ELEMENT_TILE ? (n_cols - col) / 2 * 2 : LIGER_ELEMENT_TILE;",
        ops("swiglu", NUMBERS),
    ),
    (
        "glu_swapped_gradients",
        GLU,
        "store_element(db, i, g * value, t);",
        "store_element(db, i, g * slope, t);",
        ops("geglu", NUMBERS),
    ),
    ("rope_sign", ROPE, "y * c[i] + x * s[i], t);", "y * c[i] - x * s[i], t);", ops("rope", NUMBERS)),
    ("rope_backward_unturned", ROPE, "if (a->backward)", "if (0)", ops("rope", NUMBERS)),
    (
        "rope_tail_not_copied",
        ROPE,
        "if (tail)",
        "if (0)",
        ops("rope", NUMBERS),
    ),
    (
        "rope_token_block_boundary",
        ROPE,
        "token += k.n_tokens;",
        "token += k.n_tokens + (k.n_tokens == most);",
        ops("rope", NUMBERS),
    ),
    (
        "rope_head_group_dropped",
        ROPE,
        "first += group)",
        "first += group + 1)",
        ops("rope", NUMBERS),
    ),
    (
        "ce_softcap_slope",
        CE,
        "dz[i] *= 1 - (z[i] * inv) * (z[i] * inv);",
        "dz[i] *= 1 + 0 * inv;",
        ops("cross_entropy", NUMBERS),
    ),
    (
        "ce_softcap_unscaled",
        CE,
        "z[i] = cap * tanh_real(z[i] * inv);",
        "z[i] = tanh_real(z[i] * inv);",
        ops("cross_entropy", NUMBERS),
    ),
    (
        "ce_smoothing_in_gradient",
        CE,
        "dz_y = scale * (hard * (p_y - 1) + each * (w_sum * p_y - w_y))",
        "dz_y = scale * (hard * (p_y - 1) + each * (w_sum * p_y))",
        ops("cross_entropy", NUMBERS),
    ),
    (
        "ce_wrong_identity",
        CE,
        "row_stats s = {softmax_empty, 0, 0};",
        "row_stats s = {{0, 0}, 0, 0};",
        ops("cross_entropy", NUMBERS),
    ),
    (
        "ce_class_weights_ignored",
        CE,
        "const real w_y = a->weight ? ((const real *)a->weight)[y] : 1;",
        "const real w_y = 1;",
        ops("cross_entropy", NUMBERS),
    ),
    (
        "ce_row_gradient_of_row_0",
        CE,
        "((const real *)a->row_grad)[row * a->row_grad_stride]",
        "((const real *)a->row_grad)[0]",
        ops("cross_entropy", NUMBERS),
    ),
    (
        "ce_ignored_rows_unwritten",
        CE,
        "if (a->dX) fill_gradient(a, row, value);",
        "",
        ["test/test_c.py", "-k", "cross_entropy"],
    ),
    (
        "ce_mean_counts_ignored",
        CE,
        "if (y == a->ignore_index) continue;\n    n_valid++;",
        "n_valid++;\n    if (y == a->ignore_index) continue;",
        ops("cross_entropy", NUMBERS),
    ),
    (
        "ce_all_ignored_is_nan",
        CE,
        "!mean ? 1 : w_valid == 0 ? 0 : (real)",
        "!mean ? 1 : (real)",
        ["test/test_c.py", "-k", "cross_entropy"],
    ),
    (
        "scale_grad_of_row_0",
        LOSS,
        "((const real *)a->scale)[row * a->scale_stride]",
        "((const real *)a->scale)[0]",
        ["test/test_c.py", "-k", "cross_entropy"],
    ),
    ("row_sum_last_row", LOSS, "i < end; i++) s +=", "i < end - 1; i++) s +=", ops("cross_entropy", NUMBERS)),
]
