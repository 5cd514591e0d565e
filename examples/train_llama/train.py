"""Trains a small Llama twice, as Hugging Face ships it and with liger_kernel's C kernels, and compares both.

    python examples/train_llama/train.py [--device cuda] [--dtype fp32] [--vocab-size N] [--steps N] ...

Nothing is downloaded: the text is the Python standard library's own source, the BPE tokenizer is trained on
it here, the weights start from a seed. Each run is a process of its own, so that its peak memory is its own.
Both live at the same time and take turns, step by step, so that whatever else the machine does slows both
alike; the one that waits does nothing. Exit code 1: the runs' losses, averaged over 10 steps, differ by more
than 1 % (bf16) or .1 % (fp32) somewhere.

To adapt it: `load_model` has the one line that patching takes, `train` is an ordinary Trainer run. The rest
measures; the table and the plot are in report.py.
"""

import argparse
import json
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import torch
from report import NAMES, summary

sys.path.append(str(Path(__file__).resolve().parents[2]))  # a clone that was built, not installed


def options():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    p.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    p.add_argument("--vocab-size", type=int, default=16384)
    p.add_argument("--hidden-size", type=int, default=512)
    p.add_argument("--layers", type=int, default=6)
    p.add_argument("--seq-len", type=int, default=512)
    p.add_argument("--batch-size", type=int, default=4)
    p.add_argument("--steps", type=int, default=50)
    p.add_argument("--learning-rate", type=float, default=1e-3)
    p.add_argument("--out", type=Path, default=Path("demo_output"))
    p.add_argument("--run", choices=list(NAMES), help=argparse.SUPPRESS)  # what a child process is told
    args = p.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        p.error("--device cuda, but torch sees no GPU")
    return args


# ---- the text and its tokenizer -----------------------------------------------------------------------
def make_data(args):
    """A tokenizer trained on the standard library's source, and (n, seq_len) token ids of it, in args.out."""
    from tokenizers import ByteLevelBPETokenizer

    root = Path(sysconfig.get_paths()["stdlib"])
    skip = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    files = [f for f in sorted(root.rglob("*.py")) if not skip & set(f.relative_to(root).parts)]
    texts = [f.read_text(encoding="utf-8", errors="replace") for f in files]
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=args.vocab_size, show_progress=False)
    ids = torch.cat([torch.tensor(e.ids, dtype=torch.int32) for e in tokenizer.encode_batch(texts)])
    rows = ids[: len(ids) // args.seq_len * args.seq_len].view(-1, args.seq_len)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    tokenizer.save(str(args.out / "tokenizer.json"))
    torch.save(rows[order[: args.steps * args.batch_size]], args.out / "tokens.pt")
    size, n_tokens = sum(map(len, texts)) / 1e6, len(ids) / 1e6
    return f"Python's standard library: {len(files)} files, {size:.1f} M characters, {n_tokens:.2f} M tokens"


# ---- one run, in a process of its own -----------------------------------------------------------------
def load_model(args):
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=args.vocab_size,
        hidden_size=args.hidden_size,
        intermediate_size=args.hidden_size * 11 // 4,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden_size // 64,
        num_key_value_heads=max(1, args.hidden_size // 128),
        max_position_embeddings=args.seq_len,
        use_cache=False,
    )
    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    if args.run == "hf":
        return AutoModelForCausalLM.from_config(config, dtype=dtype), ""

    from liger_kernel.transformers import AutoLigerKernelForCausalLM, patch_report

    model = AutoLigerKernelForCausalLM.from_config(config, dtype=dtype)  # the one line that a user changes
    return model, str(patch_report(model))


def peak_memory(device):
    """GiB, of torch's allocator on a GPU, else of this process (ru_maxrss would start from the parent's)."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


def train(args):
    """Reads a line before each step and writes one after it: the parent decides whose turn it is."""
    from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

    pipe, sys.stdout = sys.stdout, sys.stderr  # whatever else prints must not get between the reports

    def say(**fields):
        print(json.dumps(fields), file=pipe, flush=True)

    class Turns(TrainerCallback):
        def on_step_begin(self, *_, **__):
            sys.stdin.readline()
            self.start = time.perf_counter()

        def on_step_end(self, *_, **__):
            if args.device == "cuda":
                torch.cuda.synchronize()
            self.seconds = time.perf_counter() - self.start

        def on_log(self, _args, _state, _control, logs, **__):
            if "loss" in logs:
                say(loss=float(logs["loss"]), seconds=self.seconds, peak=peak_memory(args.device))

    set_seed(0)
    empty = peak_memory(args.device)
    model, report = load_model(args)
    say(report=report, parameters=model.num_parameters(), empty=empty)
    settings = TrainingArguments(
        output_dir=str(args.out / args.run),
        per_device_train_batch_size=args.batch_size,
        max_steps=args.steps,
        learning_rate=args.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=5,
        optim="adamw_torch_fused",
        use_cpu=args.device == "cpu",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    rows = [{"input_ids": row, "labels": row} for row in torch.load(args.out / "tokens.pt").long()]
    Trainer(model=model, args=settings, train_dataset=rows, callbacks=[Turns()]).train()


# ---- both runs, in turn -------------------------------------------------------------------------------
def compare(args):
    from tqdm import tqdm

    args.out.mkdir(parents=True, exist_ok=True)
    print("Data: ", make_data(args), flush=True)
    command = [sys.executable, __file__, *sys.argv[1:], "--run"]
    logs = {name: args.out / f"{name}.log" for name in NAMES}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    runs = {name: subprocess.Popen([*command, name], stderr=logs[name].open("w"), **pipes) for name in NAMES}

    def listen(name):
        if line := runs[name].stdout.readline():
            return json.loads(line)
        for run in runs.values():
            run.kill()
        sys.exit(f"The run '{NAMES[name]}' ended early; from {logs[name]}:\n{logs[name].read_text()[-3000:]}")

    hello = {name: listen(name) for name in NAMES}
    size = f"{args.layers} layers of {args.hidden_size}, vocabulary {args.vocab_size}"
    print(f"Model: Llama, {size}, {hello['hf']['parameters'] / 1e6:.1f} M parameters, {args.dtype}")
    print(f"Run:   {args.device}, {args.steps} steps of {args.batch_size} x {args.seq_len} tokens")
    print("Patch: ", end="")
    print(hello["liger"]["report"], flush=True)
    steps = {name: [] for name in NAMES}
    with tqdm(total=args.steps, unit="step", desc="both in turn") as bar:
        for i in range(args.steps):
            for name in NAMES if i % 2 else reversed(NAMES):  # neither always goes first
                runs[name].stdin.write("go\n")
                runs[name].stdin.flush()
                steps[name].append(listen(name))
            bar.set_postfix({name: f"{rows[-1]['loss']:.3f}" for name, rows in steps.items()}, refresh=False)
            bar.update()
    for run in runs.values():
        run.wait()
    return summary(args, steps, hello["hf"]["empty"])


if __name__ == "__main__":
    args = options()
    sys.exit(train(args) if args.run else compare(args))
