"""https://github.com/huggingface/lerobot/issues/3668

The evaluation of a policy calls policy.eval() and never restores the mode; the loop calls policy.train() once, before
it.
Distance to the goal, seed 0: 0.114 healthy, 0.118 with the bug.
"""

from contextlib import nullcontext

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


def expert(state):
    """Go to the goal, and round a wall of the plane."""
    place, goal = state[..., :2], state[..., 2:]
    turn = torch.stack([-(goal - place)[..., 1], (goal - place)[..., 0]], -1)
    return torch.tanh(2 * (goal - place) + 2 * turn * (-4 * (place**2).sum(-1, keepdim=True)).exp())


class Demonstrations(Dataset):
    def __init__(self, count):
        generator = torch.Generator().manual_seed(1)
        self.state = 2 * torch.rand(count, 4, generator=generator) - 1
        self.action = expert(self.state) + 0.3 * torch.randn(count, 2, generator=generator)

    def __len__(self):
        return len(self.state)

    def __getitem__(self, index):
        return {"observation.state": self.state[index], "action": self.action[index]}


class Policy(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(4, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.2),
            nn.Linear(128, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 2),
        )  # fmt: skip

    def forward(self, batch):
        return nn.functional.l1_loss(self.body(batch["observation.state"]), batch["action"])

    @torch.no_grad()
    def select_action(self, state):
        return self.body(state)


def eval_policy(policy, restores_mode):
    """The mean distance to the goal after twelve steps of 100 rollouts."""
    was_training = policy.training
    policy.eval()
    state = 2 * torch.rand(100, 4, generator=torch.Generator().manual_seed(2)) - 1
    for _ in range(12):
        state = torch.cat([state[:, :2] + 0.3 * policy.select_action(state), state[:, 2:]], 1)
    if restores_mode:
        policy.train(was_training)
    return (state[:, :2] - state[:, 2:]).norm(dim=1).mean().item()


def main(has_bug, watch, check):
    torch.manual_seed(0)
    loader = DataLoader(Demonstrations(400), batch_size=32, shuffle=True, drop_last=True)
    policy = Policy()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=2e-3)
    check(policy, step=policy, loader=loader, optimizer=optimizer)
    policy.train()
    with watch(policy, optimizer=optimizer, loader=loader):
        for _ in range(40):
            for batch in loader:
                loss = policy(batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            distance = eval_policy(policy, restores_mode=not has_bug)
    return distance


if __name__ == "__main__":
    for has_bug in (False, True):
        print("bug" if has_bug else "healthy", main(has_bug, lambda *_, **__: nullcontext(), lambda *_, **__: None))
