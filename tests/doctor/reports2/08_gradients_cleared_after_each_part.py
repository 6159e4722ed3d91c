"""https://github.com/tatsu-lab/alpaca_farm/pull/58

An update accumulates the gradients of four small batches, but those of the policy are cleared after each small batch:
only the last one counts.
Reward, seed 0: 0.633 healthy, 0.504 with the bug.
"""

from contextlib import nullcontext

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

ACCUMULATED = 4


class Policy(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(10, 64), nn.Tanh(), nn.Linear(64, 6))

    def forward(self, queries):
        return self.body(queries)


def rollout(policy, matrix, count):
    """The reward of a response is 1 if it is the one that the query wants."""
    queries = torch.randn(count, 10)
    with torch.no_grad():
        distribution = torch.distributions.Categorical(logits=policy(queries))
    responses = distribution.sample()
    rewards = (responses == (queries @ matrix).argmax(1)).float()
    return TensorDataset(queries, responses, distribution.log_prob(responses), rewards - rewards.mean()), rewards.mean()


def main(has_bug, watch, check):
    torch.manual_seed(0)
    matrix = torch.randn(10, 6)
    policy = Policy()
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)

    def step(batch):
        queries, responses, old_logprobs, advantages = batch
        logprobs = policy(queries).log_softmax(1).gather(1, responses[:, None])[:, 0]
        ratio = (logprobs - old_logprobs).exp()
        return -torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).mean()

    rollouts, _ = rollout(policy, matrix, 256)
    check(policy, step=step, loader=DataLoader(rollouts, batch_size=16, shuffle=True), optimizer=optimizer)
    with watch(policy, optimizer=optimizer):
        for _ in range(60):
            rollouts, _ = rollout(policy, matrix, 256)
            for index, batch in enumerate(DataLoader(rollouts, batch_size=16, shuffle=True)):
                (step(batch) / ACCUMULATED).backward()
                if (index + 1) % ACCUMULATED == 0:
                    nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                if has_bug:
                    policy.zero_grad(set_to_none=True)
    return rollout(policy, matrix, 4000)[1].item()


if __name__ == "__main__":
    for has_bug in (False, True):
        print("bug" if has_bug else "healthy", main(has_bug, lambda *_, **__: nullcontext(), lambda *_, **__: None))
