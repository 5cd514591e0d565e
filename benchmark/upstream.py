"""Measures upstream Liger Kernel in a process of its own, on the cases that `run.py` sends as JSON."""

import argparse
import json
import sys


def functions():
    """{operator: function of a case's arguments}, by upstream's public classes."""
    import torch

    import liger_kernel.chunked_loss as losses
    import liger_kernel.ops as ops

    def linear(_input, weight, target, **_):
        return ops.LigerFusedLinearCrossEntropyFunction.apply(_input, weight, target)[0]

    def cross_entropy(_input, target, **_):
        return ops.LigerCrossEntropyFunction.apply(_input, target, None)[0]

    return {
        "rms_norm": lambda X, W, eps, **_: ops.LigerRMSNormFunction.apply(X, W, eps, 0.0, "llama", True),
        "rope": lambda q, k, cos, sin, **_: ops.LigerRopeFunction.apply(q, k, cos, sin),
        "qwen2vl_mrope": lambda **args: ops.LigerQwen2VLMRopeFunction.apply(*args.values()),
        "llama4_rope": lambda q, k, freqs_cis, **_: ops.LigerLlama4RopeFunction.apply(
            q, k, torch.view_as_complex(freqs_cis)
        ),
        "swiglu": lambda a, b, **_: ops.LigerSiLUMulFunction.apply(a, b),
        "geglu": lambda a, b, **_: ops.LigerGELUMulFunction.apply(a, b),
        "cross_entropy": cross_entropy,
        "fused_linear_cross_entropy": linear,
        "fused_linear_jsd": lambda **heads: ops.LigerFusedLinearJSDFunction.apply(*heads.values()),
        "jsd": lambda _input, target, **_: ops.LigerJSDFunction.apply(_input, target, None, 0.5, -100),
        "kl_div": lambda y_pred, y_true, **_: ops.LigerKLDivLossFunction.apply(y_pred, y_true, "batchmean"),
        "dpo": lambda _input, weight, target, ref_input, ref_weight: losses.LigerFusedLinearDPOLoss()(
            weight, _input, target, ref_input=ref_input, ref_weight=ref_weight
        )[0],
        "orpo": lambda _input, weight, target: losses.LigerFusedLinearORPOLoss()(weight, _input, target)[0],
        "grpo": lambda **args: losses.LigerFusedLinearGRPOLoss(use_ref_model=False, beta=0.0)(*args.values())[
            0
        ],
        "distillation": lambda **args: losses.LigerFusedLinearJSDLoss()(*args.values()),
        "layer_norm": lambda X, W, B, eps: ops.LigerLayerNormFunction.apply(X, W, B, eps),
        "fused_add_rms_norm": lambda X, R, W, eps: ops.LigerFusedAddRMSNormFunction.apply(
            X, R, W, eps, 0.0, "llama", False
        ),
        "group_norm": lambda **args: ops.LigerGroupNormFunction.apply(*args.values()),
        "dyt": lambda **args: ops.LigerDyTFunction.apply(*args.values()),
        "relu_squared": lambda X: ops.LigerReLUSquaredFunction.apply(X),
        "softmax": lambda input_: ops.LigerSoftmaxFunction.apply(input_),
        "tvd": lambda p, q, **_: ops.LigerTVDLossFunction.apply(p, q, None, "batchmean", -100),
    }


def main():
    job = json.load(sys.stdin)
    a = argparse.Namespace(**job["options"])
    sys.path.insert(0, a.upstream)  # before ours, which the working directory offers
    import torch

    import liger_kernel

    from . import machine, run

    if not liger_kernel.__file__.startswith(a.upstream.rstrip("/")):
        sys.exit(f"--upstream {a.upstream}: liger_kernel came from {liger_kernel.__file__}")
    known = functions()
    for op, case, dtype, more in machine.progress(job["work"], desc="upstream"):
        if op not in known:
            print(f"{op}: benchmark/upstream.py does not know how to call it")
            continue
        version = f"upstream {machine.version('liger-kernel', a.upstream)}"
        base = {**job["base"], "op": op, "liger_kernel": version, **more}
        rows = run.measure({"upstream": known[op]}, case, getattr(torch, dtype), a, base)
        machine.append_rows(job["out"], rows)
        print("\n".join(run.show(row) for row in rows), flush=True)


if __name__ == "__main__":
    main()
