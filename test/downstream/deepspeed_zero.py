"""DeepSpeed ZeRO 1, 2 and 3 around a patched model, in two processes on the CPU, train as around a plain one.

Run by `make test-downstream` in the environment of the newest transformers. Losses of four steps must agree
to 1e-5 relatively. ZeRO-3 holds no weight outside its module's call: the head's loss must pass through
DeepSpeed's hooks, or its weight is not there when the gradient comes.
"""

import os
import socket
import sys
import tempfile

os.environ.update(DS_ACCELERATOR="cpu", DS_LOG_LEVEL="error", HF_HUB_OFFLINE="1")

import torch

WORLD, STEPS = 2, 4
CASES = [(stage, tied, {}) for stage in (1, 2, 3) for tied in (False, True)]
CASES += [(3, False, {"skip_logits": False})]


def losses(rank, stage, tied, patched, call):
    import deepspeed
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tied)
    model = LlamaForCausalLM(config).train()
    if patched:
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama(model=model)
    settings = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    engine = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)[0]
    seen = []
    for step in range(STEPS):
        ids = torch.randint(97, (2, 11), generator=torch.Generator().manual_seed(10 * step + rank))
        labels = torch.where(torch.arange(11) < 3, -100, ids)
        loss = engine(input_ids=ids, labels=labels, **(call if patched else {})).loss
        engine.backward(loss)
        engine.step()
        seen.append(loss.item())
    return seen


def run(rank, port, folder):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(WORLD))
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
    import deepspeed

    torch.set_num_threads(1)
    deepspeed.init_distributed(dist_backend="gloo")
    rows = [(losses(rank, *case[:2], False, {}), losses(rank, *case[:2], True, case[2])) for case in CASES]
    torch.save(rows, f"{folder}/{rank}")


def main():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(run, (port, folder), nprocs=WORLD)
        found = [torch.load(f"{folder}/{rank}") for rank in range(WORLD)]
    bad = 0
    for (stage, tied, call), *ranks in zip(CASES, *found):
        off = max(abs(a - b) / abs(a) for plain, ours in ranks for a, b in zip(plain, ours, strict=True))
        bad += off > 1e-5
        options = "".join(f", {k}={v}" for k, v in {**({"tied": True} if tied else {}), **call}.items())
        print(f"ZeRO-{stage}{options}: losses {off:.1e} apart{'' if off <= 1e-5 else '  FAILED'}")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
