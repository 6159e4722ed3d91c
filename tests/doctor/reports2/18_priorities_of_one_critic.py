"""https://github.com/AI4Finance-Foundation/ElegantRL/issues/25

The priorities of a replay memory come from the error of the smaller of two critics, but the first is compared with
itself.
Largest value of the two critics, seed 0: 1.046 and 1.038 healthy, 1.044 and 1.043 with the bug.
"""

import copy
from contextlib import nullcontext

import torch
from torch import nn

GAMMA = 0.95


class Memory:
    """Moves on a line of 40 numbers; the goal at its end is seldom reached."""

    def __init__(self, count):
        generator = torch.Generator().manual_seed(1)
        place = (40 * torch.rand(count, generator=generator) ** 2).long()
        self.action = torch.rand(count, 1, generator=generator) * 2 - 1
        after = (place + (3 * self.action[:, 0]).round().long()).clamp(0, 39)
        self.reward, self.mask = (after == 39).float(), GAMMA * (after != 39).float()
        self.state, self.next_state = (torch.stack([x / 40, (x / 3).sin(), (x / 3).cos()], 1) for x in (place, after))
        self.priority = torch.ones(count)

    def sample(self, size):
        index = torch.multinomial(self.priority + 1e-3, size, replacement=True)
        return (
            index,
            self.state[index],
            self.action[index],
            self.reward[index],
            self.mask[index],
            self.next_state[index],
        )


class CriticTwin(nn.Module):
    def __init__(self):
        super().__init__()
        self.q1, self.q2 = (nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 1)) for _ in range(2))

    def forward(self, state, action):
        both = torch.cat([state, action], 1)
        return self.q1(both)[:, 0], self.q2(both)[:, 0]


def main(has_bug, watch, check):
    torch.manual_seed(0)
    memory, critic = Memory(3000), CriticTwin()
    target = copy.deepcopy(critic)
    optimizer = torch.optim.Adam(critic.parameters(), lr=2e-3)
    tried = torch.linspace(-1, 1, 7)[:, None]

    def compute_errors(batch):
        _, state, action, reward, mask, next_state = batch
        with torch.no_grad():
            values = [torch.min(*target(next_state, each.expand(len(state), 1))) for each in tried]
            q_label = reward + mask * torch.stack(values).amax(0)
        q1, q2 = critic(state, action)
        td_error = (q_label - torch.min(q1, q1 if has_bug else q2).detach()).abs()
        return nn.functional.smooth_l1_loss(q1, q_label) + nn.functional.smooth_l1_loss(q2, q_label), td_error

    def step(batch):
        return compute_errors(batch)[0]

    check(critic, step=step, loader=[memory.sample(64) for _ in range(8)], optimizer=optimizer)
    with watch(critic, optimizer=optimizer):
        for _ in range(1500):
            batch = memory.sample(64)
            loss, td_error = compute_errors(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            memory.priority[batch[0]] = td_error
            with torch.no_grad():
                for mine, its in zip(target.parameters(), critic.parameters(), strict=True):
                    mine.lerp_(its, 0.01)
    with torch.no_grad():
        q1, q2 = critic(memory.state, memory.action)
    return q1.max().item(), q2.max().item()


if __name__ == "__main__":
    for has_bug in (False, True):
        print("bug" if has_bug else "healthy", main(has_bug, lambda *_, **__: nullcontext(), lambda *_, **__: None))
