"""Faults in the glue and in the Python layer."""


def ops(op, what):
    return ["test/test_ops.py", "-k", f"{what} and {op}-"]


NUMBERS = "test_within_eagers_error"
GLUE, TORCH_RMS = "csrc/torch/liger_torch.h", "csrc/torch/rms_norm.cpp"
PY = "liger_kernel/ops/"

MUTANTS = [
    (
        "glue_dy_stride",
        TORCH_RMS,
        "a.dY_row_stride = rdy.row_stride;",
        "a.dY_row_stride = rdy.n_cols;",
        ops("rms_norm", "layout"),
    ),
    (
        "glue_weight_not_dense",
        TORCH_RMS,
        "a.X_row_stride = rx.row_stride;\n  a.Y_row_stride",
        "a.X_row_stride = rx.n_cols;\n  a.Y_row_stride",
        ops("rms_norm", "layout"),
    ),
    (
        "glue_shape_unchecked",
        TORCH_RMS,
        '  const std::optional<Arg> w = liger::check_param(op, weight, "weight", x);\n'
        "  const liger::Scope scope(x);\n  const liger::Rows rx = liger::rows(x);\n  Tensor y",
        '  std::optional<Arg> w;\n  if (weight) w.emplace(liger::dense(Arg(*weight, "weight")));\n'
        "  const liger::Scope scope(x);\n  const liger::Rows rx = liger::rows(x);\n  Tensor y",
        ops("rms_norm", "error_names"),
    ),
    (
        "rms_norm_offset_lost_in_backward",
        PY + "rms_norm.py",
        "ctx.offset = offset",
        "ctx.offset = 0.0",
        ops("rms_norm", NUMBERS),
    ),
    (
        "rms_norm_fake_dtype",
        PY + "rms_norm.py",
        "x.new_empty((n_rows,), dtype=accum(x))",
        "x.new_empty((n_rows,))",
        ops("rms_norm", "opcheck"),
    ),
    (
        "rope_backward_forwards",
        PY + "rope.py",
        "*ctx.options, True)\n        return (dq",
        "*ctx.options, False)\n        return (dq",
        ops("rope", NUMBERS),
    ),
    (
        "mrope_remainder_of_the_second_table",
        PY + "qwen2vl_mrope.py",
        "(sections[0], sections[0] + sections[1])",
        "(sections[0], sum(sections))",
        ops("qwen2vl_mrope", NUMBERS),
    ),
    (
        "llama4_rope_backward_forwards",
        PY + "llama4_rope.py",
        "*ctx.saved_tensors, True)\n        return (dq",
        "*ctx.saved_tensors, False)\n        return (dq",
        ops("llama4_rope", NUMBERS),
    ),
    (
        "vision_rope_half_a_head",
        "liger_kernel/transformers/rope.py",
        "cos, sin, None, 2, q.shape[-1])",
        "cos, sin, None, 2, q.shape[-1] // 2)",
        ["test/test_rope.py", "-k", "vision"],
    ),
    (
        "rope_position_ids_ignored",
        PY + "rope.py",
        "        position_ids = (\n            None if cos.dim() == 3 else",
        "        position_ids = (\n            None if cos.dim() >= 2 else",
        ops("rope", "option_changes"),
    ),
    (
        "falcon_down_multiplier_lost",
        "liger_kernel/transformers/swiglu.py",
        "self.gate_multiplier, self.down_multiplier if inside else 1.0",
        "self.gate_multiplier, 1.0",
        ["test/test_mlp_modules.py", "-k", "equals and Falcon"],
    ),
    (
        "gelu_form_ignored",
        PY + "geglu.py",
        "ctx.gelu = _GELU[approximate]",
        "ctx.gelu = 0",
        ops("geglu", "option_changes"),
    ),
    (
        "gate_and_up_overlap",
        "csrc/torch/glu_torch.h",
        "args.dA_row_stride = args.dB_row_stride = y.last();",
        "args.dA_row_stride = args.dB_row_stride = y.last() / 2;",
        ops("swiglu_gate_up", NUMBERS),
    ),
    (
        "saved_gradient_scaled_in_place",
        PY + "_saved_grad.py",
        "return not torch.compiler.is_compiling() and not _graph_is_kept()",
        "return not torch.compiler.is_compiling()",
        ["test/test_ops.py", "-k", "second_backward"],
    ),
    *(
        (f"donated_{name}", PY + "_donate.py", old, new, ["test/test_donation.py", "-k", test])
        for name, old, new, test in [
            ("with_a_kept_graph", "may_overwrite_saved() and _may_donate", "_may_donate", "many_backwards"),
            ("under_a_python_reference", "        map(sys.getrefcount, saved),\n", "", "in_python"),
            ("under_another_node", "        map(torch.Tensor._use_count, saved),\n", "", "a_node_to_come"),
            (
                "under_a_view",
                "        [torch._C._storage_Use_Count(s._cdata) for s in storages],\n",
                "",
                "a_detached_one",
            ),
            ("over_a_tuple_in_use", "list(ctx.saved_tensors)  # a list", "ctx.saved_tensors  # a", "by_hand"),
            ("and_repeated", "    torch.autograd.graph.increment_version(results)", "    #", "not_repeated"),
        ]
    ),
    (
        "incoming_gradient_ignored",
        PY + "_saved_grad.py",
        "    if not may_overwrite_saved():\n        return _scale(grad, dloss)\n    _scale_(grad, dloss)\n"
        "    return",
        "    return",
        ops("cross_entropy", NUMBERS),
    ),
    (
        "flce_frozen_head_gets_no_input_gradient",
        PY + "fused_linear_cross_entropy.py",
        "input_requires_grad=needs[0],\n            weight",
        "input_requires_grad=needs[0] and needs[1],\n            weight",
        ["test/test_ops.py", "-k", "frozen and fused"],
    ),
    (
        "flce_swapped_bias_gradient",
        PY + "fused_linear_cross_entropy.py",
        "return (dx, dw, None, db,",
        "return (dx, dw, None, None,",
        ops("fused_linear_cross_entropy", NUMBERS),
    ),
    (
        "selftest_signature",
        PY + "rms_norm.py",
        'def forward(ctx, X, W, eps, offset=0.0, casting_mode="llama", in_place=True, row_mode=None):',
        'def forward(ctx, X, W, eps, offset=0.0, casting_mode="gemma", in_place=True, row_mode=None):',
        ["test/test_signatures.py", "-k", "LigerRMSNormFunction"],
    ),
    (
        "softmax_dim_lost_in_backward",
        PY + "softmax.py",
        "ctx.dim = dim",
        "ctx.dim = -1",
        ops("softmax", NUMBERS),
    ),
    (
        "embedding_padding_from_the_end",
        PY + "embedding.py",
        "return padding_idx % num_embeddings",
        "return padding_idx",
        ops("embedding", NUMBERS),
    ),
    (
        "sparsemax_gradient_not_moved_back",
        PY + "sparsemax.py",
        "dx.movedim(-1, ctx.dim) if many",
        "dx if many",
        ops("sparsemax", "eagers_error"),
    ),
    (
        "functional_ignores_impl",
        "liger_kernel/functional/_operator.py",
        "if impl is None and backend is None and plain(op_name):",
        "if plain(op_name) or impl:",
        ["test/test_functional.py"],
    ),
    (
        "dispatch_ignores_set_impl",
        "liger_kernel/backends/dispatch.py",
        "return _chosen is None and not _ENV",
        "return not _ENV",
        ["test/test_functional.py"],
    ),
    (
        "head_loss_beside_its_hooks",
        "liger_kernel/transformers/patching/leaf.py",
        "            self.loss = output",
        "            pass",
        ["test/patching/test_head.py", "-k", "heads_hooks"],
    ),
]
