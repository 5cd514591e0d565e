"""A whole training step of a Hugging Face model with random weights: tokens/s, peak memory, losses.

    python -m benchmark.train_step --device cuda --model llama8b-4l --impls hf,compile,liger

Each implementation is a process of its own, in several turns (--rounds), since two runs of one build differ
by percents; the fastest turn counts. bf16, SGD, sdpa attention. The first losses and the norms of the first
step's gradients must agree with hf's to bf16 rounding, else the exit code is 1. `--upstream DIR` adds the
implementation `upstream`, measured with the liger_kernel of that directory."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from . import machine

_LLAMA8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
}
# name: (model type, configuration); shapes of released models, "-4l": cut to four layers
MODELS = {
    "llama1b": (
        "llama",
        {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "vocab_size": 128256,
            "tie_word_embeddings": True,
        },
    ),
    "llama8b-4l": ("llama", {**_LLAMA8B, "num_hidden_layers": 4}),
    "qwen3-0.6b": (
        "qwen3",
        {
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
    ),
    "gemma2-2b-8l": (
        "gemma2",
        {
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "vocab_size": 256000,
        },
    ),
    "tiny": (
        "llama",
        {
            "hidden_size": 256,
            "intermediate_size": 704,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 4096,
        },
    ),
}
PICK = (
    "lm_head.weight",
    "embed_tokens.weight",
    "layers.0.self_attn.q_proj.weight",
    "layers.0.input_layernorm.weight",
)
CLOSE = 0.02  # bf16: relative difference of a loss or of a gradient's norm


def options():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is a GPU")
    p.add_argument("--model", choices=list(MODELS), default="llama8b-4l")
    p.add_argument("--impls", default="hf,compile,liger")
    p.add_argument("--batch-size", type=int, default=4)
    p.add_argument("--seq-len", type=int, default=2048)
    p.add_argument("--steps", type=int, default=8)
    p.add_argument("--rounds", type=int, default=2)
    p.add_argument("--checkpointing", action="store_true")
    p.add_argument("--upstream", type=os.path.abspath, help="directory that holds upstream's liger_kernel")
    machine.add_commit(p)
    p.add_argument("--out", default="", help="default benchmark/results/train_step_<device>.jsonl")
    p.add_argument("--run", default="", help=argparse.SUPPRESS)  # what a child process is told
    a = p.parse_args()
    a.device = a.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return a


def build(a):
    import transformers

    model_type, config = MODELS[a.model]
    if a.run in ("liger", "upstream"):
        if a.run == "upstream":
            sys.path.insert(0, a.upstream)
        import liger_kernel.transformers as liger

        getattr(liger, f"apply_liger_kernel_to_{model_type}")()
    config = transformers.AutoConfig.for_model(
        model_type, **config, use_cache=False, max_position_embeddings=8192
    )
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(a.device):
        model = transformers.AutoModelForCausalLM.from_config(config).train()
    torch.set_default_dtype(torch.float32)
    if a.checkpointing:
        model.gradient_checkpointing_enable()
    return model, config.vocab_size


def train(a):
    """One implementation, in this process: prints one line of JSON."""
    model, vocab_size = build(a)
    step = torch.compile(model) if a.run == "compile" else model
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    ids = torch.randint(vocab_size, (a.batch_size, a.seq_len), generator=torch.Generator().manual_seed(1))
    ids = ids.to(a.device)
    cuda = a.device == "cuda"
    seconds, losses, norms = [], [], {}
    for i in range(a.steps + 3):
        if cuda:
            if i == 3:  # three to warm up
                torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        start = time.perf_counter()
        loss = step(input_ids=ids, labels=ids).loss
        loss.backward()
        if i == 0:  # SGD in bf16 rounds most updates away: gradients say more than later losses
            grads = {
                n: p.grad for n, p in model.named_parameters() if n.endswith(PICK) and p.grad is not None
            }
            norms = {n: g.float().norm().item() for n, g in grads.items()}
            del grads
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    row = {
        "tokens_per_s": ids.numel() / statistics.median(seconds[3:]),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else None,
        "losses": losses,
        "norms": norms,
    }
    print("\nRESULT " + json.dumps(row), flush=True)


def agree(row, reference):
    """The largest relative difference of losses and gradient norms."""
    pairs = list(zip(row["losses"][:4], reference["losses"][:4]))
    pairs += [(row["norms"].get(n, float("nan")), x) for n, x in reference["norms"].items()]
    return max((abs(x / y - 1) if y else abs(x) for x, y in pairs), key=lambda d: (d != d, d))


def main():
    a = options()
    if a.run:
        return train(a)
    import transformers

    base = {**machine.facts(a.device), "transformers": transformers.__version__, "model": a.model}
    base.update(batch_size=a.batch_size, seq_len=a.seq_len, checkpointing=a.checkpointing, dtype="bfloat16")
    impls, best = a.impls.split(","), {}
    for impl in machine.progress([*impls] * a.rounds, desc="runs"):
        own = ["--upstream", a.upstream] if a.upstream else []  # as the caller's directory has it
        command = [sys.executable, "-m", "benchmark.train_step", *sys.argv[1:], *own, "--run", impl]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
        lines = [s.removeprefix("RESULT ") for s in done.stdout.splitlines() if s.startswith("RESULT ")]
        if not lines:
            sys.exit(
                f"{impl} ended with code {done.returncode}:\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
            )
        row = json.loads(lines[-1])
        if impl not in best or row["tokens_per_s"] > best[impl]["tokens_per_s"]:
            best[impl] = row
    reference, failed = best[impls[0]], False
    for impl, row in best.items():
        row["off"] = agree(row, reference)
        failed |= not row["off"] <= CLOSE
        peak = f"{row['peak_gib']:.2f} GiB" if row["peak_gib"] else "not measured"
        losses = ", ".join(f"{x:.4f}" for x in row["losses"][:4])
        print(f"{impl:9s}{a.model} {a.batch_size}x{a.seq_len}: {row['tokens_per_s']:8.0f} tokens/s, ", end="")
        print(f"peak {peak}, losses {losses}, {row['off']:.2%} from {impls[0]}")
    out = a.out or machine.RESULTS / f"train_step_{a.device}.jsonl"
    machine.append_rows(out, [{**base, "impl": impl, **row} for impl, row in best.items()])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
