"""DDP, FSDP1 and FSDP2 around a patched model, in two processes, give what one plain process gives."""

import functools
import socket

import pytest
import torch
from tiny_models import apply_to, batch, make_model

from liger_kernel.transformers.patching.table import MODELS

dist = torch.distributed
WORLD = 2
pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")


def ddp(model):
    return torch.nn.parallel.DistributedDataParallel(model)


def fsdp1(model):
    """Layers, and the head on its own, are flattened and sharded."""
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import lambda_auto_wrap_policy

    wrapped = [*model.model.layers, model.lm_head]
    policy = functools.partial(lambda_auto_wrap_policy, lambda_fn=lambda module: module in wrapped)
    device = torch.device("cpu")
    return FullyShardedDataParallel(model, auto_wrap_policy=policy, device_id=device, use_orig_params=True)


def fsdp2(model, head=True):
    """Layers, and the head on its own or with the root, hold DTensors outside their calls."""
    from torch.distributed.fsdp import fully_shard

    mesh = dist.device_mesh.init_device_mesh("cpu", (WORLD,))
    for module in [*model.model.layers, *([model.lm_head] if head else [])]:
        fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


WRAPPERS = {
    "ddp": ddp,
    "ddp, tied": ddp,
    "fsdp1": fsdp1,
    "fsdp2": fsdp2,
    "fsdp2, head in the root": functools.partial(fsdp2, head=False),
    "fsdp2, tied": functools.partial(fsdp2, head=False),
}


def full(parameter):
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter


def run(rank, port, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=WORLD)
    row, calls = MODELS["llama"], [batch(2, 7, seed=s) for s in range(WORLD)]
    for case, wrap in WRAPPERS.items():
        tied = dict(tie_word_embeddings="tied" in case)
        reference, patched = (make_model(row, **tied).train() for _ in range(2))
        apply_to(row, patched)
        # gradients are averaged over the ranks, so one process averages over the ranks' batches
        optimizer = torch.optim.SGD(reference.parameters(), lr=0.5)
        losses = [reference(**call).loss for call in calls]
        (sum(losses) / WORLD).backward()
        optimizer.step()
        wrapped = wrap(patched)
        optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.5)
        output = wrapped(**calls[rank])
        output.loss.backward()
        optimizer.step()
        if case == "fsdp1":
            from torch.distributed.fsdp import FullyShardedDataParallel as Fsdp

            with Fsdp.summon_full_params(wrapped):
                ours = [p.detach().clone() for p in wrapped.parameters()]
        else:
            ours = [full(p).detach() for p in wrapped.parameters()]
        error = max(
            float((mine - theirs).norm() / theirs.norm())
            for mine, theirs in zip(ours, reference.parameters(), strict=True)
        )
        loss_error = abs(float(output.loss) - float(losses[rank]))
        results[case, rank] = (output.logits is None, loss_error, error)
    dist.destroy_process_group()


def test_two_processes():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    manager = torch.multiprocessing.get_context("spawn").Manager()
    results = manager.dict()
    torch.multiprocessing.spawn(run, args=(port, results), nprocs=WORLD)
    assert len(results) == WORLD * len(WRAPPERS)
    for (case, rank), (fused, loss_error, error) in results.items():
        assert fused, case
        assert loss_error <= 1e-5 and error <= 1e-5, (case, rank, loss_error, error)
