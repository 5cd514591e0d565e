"""A new RL loss in 20 lines on `liger_linear_logprob`, and a policy that learns with it in a minute on a CPU.

    python examples/own_rl_loss/train.py [--device cuda] [--steps 150]

The loss is CISPO (arXiv:2506.13585) on the tokens of highest entropy alone (arXiv:2506.01939), with an
entropy bonus. It needs log-probabilities and entropies of all tokens, with gradients, and never holds the
logits: a head of 128 thousand classes takes a buffer of 256 MiB, whatever the batch. To write your own,
change `rl_loss`.

The task: count. A token is right if it is the one before it plus one.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import nn

sys.path.append(str(Path(__file__).resolve().parents[2]))  # a clone that was built, not installed
from liger_kernel.transformers.functional import liger_linear_logprob  # noqa: E402

START, LENGTH, SAMPLES, VOCAB = 0, 12, 64, 40


def rl_loss(hidden, head, ids, mask, advantages, old_logprob, max_ratio=5.0, share=0.8, bonus=0.01):
    """hidden (B, T, H), ids, mask, advantages, old_logprob (B, T): a scalar."""
    ids = ids.masked_fill(~mask, -100)  # such rows give 0 and no gradient
    out = liger_linear_logprob(hidden, head.weight, ids, head.bias, return_entropy=True)
    ratio = (out.logprob.detach() - old_logprob).exp().clamp(max=max_ratio)
    threshold = out.entropy.detach()[mask].quantile(1 - share)
    forking = mask & (out.entropy.detach() >= threshold)
    policy = -(ratio * advantages * out.logprob * forking).sum() / forking.sum()
    return policy - bonus * out.entropy.sum() / mask.sum()


class Policy(nn.Module):
    def __init__(self, size=64):
        super().__init__()
        self.embedding, self.body = nn.Embedding(VOCAB, size), nn.GRU(size, size, batch_first=True)
        self.head = nn.Linear(size, VOCAB)

    def forward(self, ids):
        return self.body(self.embedding(ids))[0]

    @torch.no_grad()
    def sample(self, n):
        ids = torch.full((n, 1), START, device=self.head.weight.device)
        for _ in range(LENGTH):
            logits = self.head(self(ids)[:, -1])
            ids = torch.cat([ids, torch.multinomial(logits.softmax(-1), 1)], 1)
        return ids


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=150)
    options = parser.parse_args()
    torch.manual_seed(0)
    policy = Policy().to(options.device)
    optimizer = torch.optim.Adam(policy.parameters(), 3e-3)
    for step in range(options.steps + 1):
        ids = policy.sample(SAMPLES)
        before, after = ids[:, :-1], ids[:, 1:]
        right = (after == (before + 1) % VOCAB).float()
        ends = torch.randint(1, LENGTH + 1, (SAMPLES, 1), device=ids.device)
        mask = torch.arange(LENGTH, device=ids.device) < ends  # completions of different lengths
        if step % 25 == 0:
            print(f"step {step:4d}   {right.mean():6.1%} of the tokens are right", flush=True)
        advantages = (right - right.mean()) / (right.std() + 1e-4)
        with torch.no_grad():
            old = liger_linear_logprob(policy(before), policy.head.weight, after, policy.head.bias).logprob
        for _ in range(2):  # the second step is off-policy: the ratio is no longer 1
            loss = rl_loss(policy(before), policy.head, after, mask, advantages, old)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


if __name__ == "__main__":
    main()
