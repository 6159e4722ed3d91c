"""https://github.com/PacktPublishing/Deep-Reinforcement-Learning-Hands-On/pull/9

A dueling network subtracts the mean of the advantages over the whole batch, instead of over the actions of each state.
How far a value moves with the rest of its batch, seed 0: 0 healthy, 0.011 with the bug.
"""

import copy
from contextlib import nullcontext

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

GAMMA = 0.9


def trade(count, seed):
    """Bars of a price with a trend, whether a share is held, and what waiting, buying or selling it brings."""
    generator = torch.Generator().manual_seed(seed)
    trend = torch.randn(count, 1, generator=generator)
    bars = trend + 0.7 * torch.randn(count, 8, generator=generator)
    held = torch.randint(2, (count, 1), generator=generator).float()
    action = torch.randint(3, (count,), generator=generator)
    holds = torch.where(action == 1, 1.0, torch.where(action == 2, 0.0, held[:, 0]))
    reward = holds * trend[:, 0] - 0.1 * (holds != held[:, 0]).float()
    following = torch.cat([bars[:, 1:], trend + 0.7 * torch.randn(count, 1, generator=generator), holds[:, None]], 1)
    done = (torch.rand(count, generator=generator) < 0.2).float()
    return TensorDataset(torch.cat([bars, held], 1), action, reward, done, following)


class DuelingDQN(nn.Module):
    def __init__(self, over_batch):
        super().__init__()
        self.fc_val = nn.Sequential(nn.Linear(9, 64), nn.ReLU(), nn.Linear(64, 1))
        self.fc_adv = nn.Sequential(nn.Linear(9, 64), nn.ReLU(), nn.Linear(64, 3))
        self.over_batch = over_batch

    def forward(self, x):
        val, adv = self.fc_val(x), self.fc_adv(x)
        return val + adv - (adv.mean() if self.over_batch else adv.mean(dim=1, keepdim=True))


def main(has_bug, watch, check):
    torch.manual_seed(0)
    loader = DataLoader(trade(4000, 1), batch_size=32, shuffle=True)
    net = DuelingDQN(over_batch=has_bug)
    tgt_net = copy.deepcopy(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

    def step(batch):
        states, actions, rewards, dones, next_states = batch
        values = net(states).gather(1, actions[:, None])[:, 0]
        with torch.no_grad():
            best = net(next_states).argmax(1, keepdim=True)
            next_values = tgt_net(next_states).gather(1, best)[:, 0] * (1 - dones)
        return nn.functional.mse_loss(values, rewards + GAMMA * next_values)

    check(net, step=step, loader=loader, optimizer=optimizer)
    with watch(net, optimizer=optimizer, loader=loader):
        for _ in range(8):
            for batch in loader:
                optimizer.zero_grad()
                step(batch).backward()
                optimizer.step()
            tgt_net.load_state_dict(net.state_dict())
    states = trade(1000, 2).tensors[0]
    with torch.no_grad():  # how far the value of a state moves with the other states of its batch
        return (net(states) - net(states[:500]).repeat(2, 1))[:500].abs().mean().item()


if __name__ == "__main__":
    for has_bug in (False, True):
        print("bug" if has_bug else "healthy", main(has_bug, lambda *_, **__: nullcontext(), lambda *_, **__: None))
