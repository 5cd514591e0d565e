"""Faults in the GPU kernels, for --device cuda."""


def ops(op, what="test_within_eagers_error"):
    return ["test/test_ops.py", "-k", f"{what} and {op}-"]


def gpu(op, what):
    return ["test/test_cuda.py", "-k", f"{what} and {op}"]


GLU = "csrc/kernels/glu.cuh"
MAP = "csrc/kernels/elementwise.cuh"
NORM, NORM_BWD = "csrc/kernels/norm.cuh", "csrc/kernels/norm_bwd.cuh"
LOGPROB = "csrc/kernels/linear_logprob.cu"
CE_RING = "csrc/kernels/cross_entropy_sm90.cu"
CE, LOSS = "csrc/kernels/cross_entropy.cuh", "csrc/kernels/loss_common.cu"
SPARSEMAX = "csrc/kernels/sparsemax.cu"
SOFTMAX, EMBEDDING = "csrc/kernels/softmax.cu", "csrc/kernels/embedding.cu"

MUTANTS = [
    (
        "rms_norm_eps",
        NORM,
        "rsqrtf(fmaf(sum[0], inv_n, eps))",
        "rsqrtf(sum[0] * inv_n)",
        ops("rms_norm", "option_changes"),
    ),
    (
        "rms_norm_other_stream",
        NORM,
        "<<<grid, p.threads, 0, stream>>>(*a, p.threads_per_row)",
        "<<<grid, p.threads, 0, stream ? 0 : stream>>>(*a, p.threads_per_row)",
        gpu("rms_norm", "current_stream"),
    ),
    (
        "rms_norm_dw_of_one_group",
        NORM_BWD,
        "for (int g = 0; g < at.groups; g++)",
        "for (int g = 0; g < 1; g++)",
        ops("rms_norm"),
    ),
    (
        "layer_norm_zeros_beyond_the_row_counted",
        NORM,
        "if (at.owns(i)) norm_push_distances<T, VEC>(d, x[i], mean);",
        "norm_push_distances<T, VEC>(d, x[i], mean);",
        ops("layer_norm"),
    ),
    (
        "layer_norm_shift_lost",
        NORM_BWD,
        "v[j] - k.mean, m[j] - k.shift)",
        "v[j] - k.mean, m[j])",
        ops("layer_norm"),
    ),
    (
        "column_sums_other_stream",
        "csrc/kernels/primitives.cuh",
        "COLUMN_SUM_COLS * COLUMN_SUM_SLICES, 0, stream>>>(a)",
        "COLUMN_SUM_COLS * COLUMN_SUM_SLICES, 0, stream ? 0 : stream>>>(a)",
        gpu("layer_norm", "current_stream"),
    ),
    (
        "fused_add_residual_gradient_lost",
        NORM_BWD,
        "dx[j] += v[j];",
        "dx[j] += 0.0f * v[j];",
        ops("fused_add_rms_norm"),
    ),
    (
        "fused_add_sum_not_rounded",
        NORM,
        "  if (ADD) X = (const T *)a.S + row * a.n_cols;\n",
        "",
        ops("fused_add_rms_norm"),
    ),
    ("elementwise_dropped_tail", MAP, "  if (tail) {\n", "  if (tail && !vectors) {\n", ops("swiglu")),
    (
        "elementwise_output_stride",
        MAP,
        "(row * args.out_stride[k] + col), pack",
        "(row * args.n_cols + col), pack",
        ops("swiglu_gate_up"),
    ),
    (
        "geglu_left_tail",
        "csrc/kernels/geglu.cu",
        "y < 0.0f ? tail : 1.0f - tail;",
        "1.0f - tail;",
        ops("geglu"),
    ),
    (
        "dyt_sum_of_one_group",
        "csrc/kernels/dyt.cu",
        "sums.add(a->dgamma, from, n, a->n_cols",
        "sums.add(a->dgamma, from, plan.row_blocks, a->n_cols",
        ops("dyt"),
    ),
    (
        "dyt_dropped_columns",
        "csrc/kernels/dyt.cu",
        "n_cols ? (n_cols + vec - 1) / vec : 1;",
        "n_cols / vec > 0 ? n_cols / vec : 1;",
        ops("dyt"),
    ),
    (
        "poly_norm_bias_of_first_group",
        "csrc/kernels/poly_norm.cu",
        "to[3 * a.n_blocks + group] = total[3];",
        "to[3 * a.n_blocks + group] = at.group ? 0.0f : total[3];",
        ops("poly_norm"),
    ),
    (
        "poly_norm_eps",
        "csrc/kernels/poly_norm.cu",
        "rsqrtf(fmaf(sum[k], inv_n, eps))",
        "rsqrtf(sum[k] * inv_n)",
        ops("poly_norm", "option_changes"),
    ),
    (
        "modulated_rms_norm_dropped_rows",
        "csrc/kernels/modulated_rms_norm.cu",
        "*last = *first + q + (piece < more);",
        "*last = *first + q;",
        ops("modulated_rms_norm"),
    ),
    (
        "modulated_rms_norm_dw_without_scale",
        "csrc/kernels/modulated_rms_norm.cu",
        "fmaf(one_scale[j], g[j], sums[j])",
        "g[j] + sums[j]",
        ops("modulated_rms_norm"),
    ),
    ("relu_squared_slope", "csrc/kernels/relu_squared.cu", "(2.0f * relu(", "(relu(", ops("relu_squared")),
    (
        "relu_squared_of_negatives",
        "csrc/kernels/relu_squared.cu",
        "y[0] = relu(x[0]) * relu(x[0]);",
        "y[0] = x[0] * x[0];",
        ops("relu_squared"),
    ),
    (
        "glu_multiplier_in_gradient",
        GLU,
        "y[0] = g * x[1] * slope * gate;",
        "y[0] = g * x[1] * slope;",
        ops("swiglu"),
    ),
    (
        "ce_missing_barrier",
        CE,
        "scratch[threadIdx.x / GPU_LANES] = s;\n  __syncthreads();",
        "scratch[threadIdx.x / GPU_LANES] = s;",
        ops("cross_entropy"),
    ),
    (
        "ce_rescale_skipped",
        CE,
        "    s.d *= ce_ratio(s.m, c);\n    s.m = c;",
        "    s.m = c;",
        ops("cross_entropy"),
    ),
    (
        "ce_parts_forget_the_parts_before",
        "csrc/kernels/cross_entropy_part.cu",
        "    s = ce_merge(before, s);\n",
        "",
        ["test/test_vocabulary_blocks.py"],
    ),
    (
        "ce_parts_take_the_first_classes_weights",
        "csrc/kernels/cross_entropy_part.cu",
        "if (q.weight) q.weight += part.first;",
        "",
        ["test/test_vocabulary_blocks.py"],
    ),
    (
        "ce_parts_target_in_every_part",
        "csrc/kernels/cross_entropy_part.cu",
        "threadIdx.x == 0 && here >= 0 && here < part.n)",
        "threadIdx.x == 0 && here >= 0 && here < part.n && part.first == 0)",
        ["test/test_vocabulary_blocks.py"],
    ),
    (
        "ce_ring_target_column",
        CE_RING,
        "if (tid == (int)(t.y / N % THREADS)) from_f32(dX[t.y], g.dz_y);",
        "if (tid == (int)(t.y / N % (THREADS / 2))) from_f32(dX[t.y], g.dz_y);",
        gpu("cross_entropy", "rows_in_turn"),
    ),
    (
        "ce_ring_order_of_pieces",
        CE_RING,
        "piece = i < n_kept ? i + n_pieces - n_kept : i - n_kept, v =",
        "piece = i, v =",
        ops("cross_entropy"),
    ),
    (
        "ce_softcap_slope",
        CE,
        "dz[u][j] *= ce_slope(p, z[u][j]);",
        "dz[u][j] *= 1.0f;",
        ops("cross_entropy"),
    ),
    (
        "row_sum_other_stream",
        LOSS,
        "row_sum_kernel<<<1, SUM_THREADS, 0, stream>>>",
        "row_sum_kernel<<<1, SUM_THREADS, 0, 0>>>",
        gpu("cross_entropy", "current_stream"),
    ),
    ("softmax_rescale_skipped", SOFTMAX + "h", "s.d *= softmax_exp(s.m, c);", "", ops("softmax")),
    (
        "softmax_next_vector",
        SOFTMAX + "h",
        "store_vec<T, N>(dX + i * NEXT,",
        "store_vec<T, N>(dX + i * N,",
        ops("softmax"),
    ),
    (
        "softmax_slices_not_added",
        SOFTMAX,
        "for (int half = slices / 2;",
        "for (int half = slices / 4;",
        ops("softmax"),
    ),
    (
        "softmax_cluster_alone",
        "csrc/kernels/cluster_sm90.cuh",
        "threadIdx.x & (n_blocks - 1));",
        "threadIdx.x & 0);",
        ops("softmax"),
    ),
    (
        "embedding_run_overwritten",
        EMBEDDING,
        "if (began_before) put(before, acc);\n    else if",
        "if",
        ops("embedding"),
    ),
    ("embedding_last_slice_of_a_run", EMBEDDING, "k <= last; k++", "k < last; k++", ops("embedding")),
    (
        "embedding_out_of_range_is_row_0",
        EMBEDDING,
        "from_f32(x[u].v[j], NAN);",
        "from_f32(x[u].v[j], 0.0f);",
        ["test/test_embedding.py", "-k", "out_of_range"],
    ),
    (
        "logprob_extra_ids_read_after_the_write",
        LOGPROB,
        "const float z[1] = {aside[k]};",
        "float z[1];\n    lp_load<CAPPED>(z, load_vec<T, 1>(X + id), p.map);",
        ops("linear_logprob"),
    ),
    (
        "logprob_repeated_extra_ids",
        LOGPROB,
        "first && i < k; i++) first = extra_ids[i] != id;",
        "first && i < 0; i++) first = extra_ids[i] != id;",
        ["test/test_linear_logprob.py", "-k", "repeated"],
    ),
    (
        "logprob_entropy_not_moved",
        LOGPROB,
        "s.s = lp_moved(s, c);",
        "s.s *= ce_ratio(s.m, c);",
        ops("linear_logprob"),
    ),
    (
        "logprob_other_stream",
        LOGPROB,
        "linear_logprob_fwd_block_kernel<T, true><<<grid, threads, 0, stream>>>(p);",
        "linear_logprob_fwd_block_kernel<T, true><<<grid, threads, 0, 0>>>(p);",
        gpu("linear_logprob", "current_stream"),
    ),
    (
        "sparsemax_one_step",
        SPARSEMAX,
        "s.n >= before) return;",
        "before < INT64_MAX) return;",
        ops("sparsemax"),
    ),
    (
        "sparsemax_mean_of_all_columns",
        SPARSEMAX,
        "s.sum / (float)s.n : 0.0f;",
        "s.sum / (float)n_cols : 0.0f;",
        ops("sparsemax"),
    ),
]
