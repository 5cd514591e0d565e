"""Faults in group_norm's kernels on GPUs."""

GROUP = "csrc/kernels/group_norm.cu"
BLOCK, CLUSTER = "csrc/kernels/group_norm_block.cu", "csrc/kernels/group_norm_sm90.cu"


def ops(op, what="test_within_eagers_error"):
    return ["test/test_ops.py", "-k", f"{what} and {op}-"]


MUTANTS = [
    (
        "group_norm_slices_merged_without_distance",
        GROUP,
        "squares[0] += fmaf((float)run_slice(size, n_slices, i).n * d, d, s[2]);",
        "squares[0] += fmaf(0.0f * d, d, s[2]);",
        ops("group_norm"),
    ),
    (
        "group_norm_channel_of_the_slice",
        GROUP,
        "if (from_channel < n_inner) return channel;",
        "if (from_channel >= 0) return channel;",
        ops("group_norm"),
    ),
    (
        "group_norm_cluster_channel_of_first_turn",
        CLUSTER,
        "return i >> LOG_TURNS;",
        "return 0 * i >> LOG_TURNS;",
        ops("group_norm"),
    ),
    (
        "group_norm_cluster_whole_with_vectors_to_spare",
        CLUSTER,
        "vectors == NV && threads << log_turns == n_vecs",
        "vectors == NV",
        ["test/test_cuda.py", "-k", "group_norm_several"],
    ),
    (
        "group_norm_cluster_parameters_of_another_block",
        CLUSTER,
        "blockIdx.x % ((uint32_t)a.n_groups << p.log_blocks)",
        "blockIdx.x % (uint32_t)a.n_groups",
        ["test/test_cuda.py", "-k", "group_norm_several"],
    ),
    (
        "group_norm_cluster_blocks_merged_without_distance",
        CLUSTER,
        "fmaf(n * (d - rest), d - rest, s.m2)",
        "s.m2 + 0.0f * n",
        ["test/test_cuda.py", "-k", "group_norm_several"],
    ),
    (
        "group_norm_block_weight_of_another_channel",
        BLOCK,
        "of_channel[0][part.own] = weight * s[0];",
        "of_channel[0][part.own ^ 1] = weight * s[0];",
        ops("group_norm"),
    ),
    (
        "group_norm_block_zeros_beyond_the_channel",
        BLOCK,
        "if (part.owns(i)) norm_push_distances<T, VEC>(d, x[i], mean);",
        "norm_push_distances<T, VEC>(d, x[i], mean);",
        ops("group_norm"),
    ),
    (
        "group_norm_block_channels_apart",
        BLOCK,
        "warp_reduce_all<op_sum>(s, part.channels);",
        "warp_reduce_all<op_sum>(s, part.channels / 2);",
        ops("group_norm"),
    ),
    (
        "group_norm_block_partials_of_one_batch",
        BLOCK,
        "a.dW_partial)[batch * a.n_channels + c]",
        "a.dW_partial)[0 * batch * a.n_channels + c]",
        ops("group_norm"),
    ),
]
