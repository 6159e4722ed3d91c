"""https://github.com/walkinglabs/hands-on-modern-rl/issues/63

The generalised advantage was computed without the flags of ended episodes, as if a rollout were one long episode.
A fall then costs nothing, for the value of the next start follows it, and the reward of PPO never rises.
Mean steps, at most 200, until the pole falls, seed 0: 168.9 healthy, 10.4 with the bug.
"""

from contextlib import nullcontext

import torch
from torch import nn
from torch.distributions import Categorical

ENVIRONMENTS, STEPS = 16, 64


def step(state, action):
    """Advance cart and pole by 0.02 s; return the next state and whether it fell."""
    _, speed, angle, turn = state.unbind(1)
    common = (20.0 * action - 10 + 0.05 * turn**2 * angle.sin()) / 1.1
    turn_change = (9.8 * angle.sin() - angle.cos() * common) / (0.5 * (4 / 3 - 0.1 * angle.cos() ** 2 / 1.1))
    change = common - 0.05 * turn_change * angle.cos() / 1.1
    state = state + 0.02 * torch.stack([speed, change, turn, turn_change], 1)
    return state, (state[:, 0].abs() > 2.4) | (state[:, 2].abs() > 0.21)


class ActorCritic(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        self.actor, self.critic = nn.Linear(64, 2), nn.Linear(64, 1)

    def forward(self, states):
        features = self.body(states)
        return Categorical(logits=self.actor(features)), self.critic(features)[:, 0]


def compute_gae(values, dones, next_value, gamma=0.97, lam=0.95):
    gae, advantages = torch.zeros(ENVIRONMENTS), []
    for value, done in zip(reversed(values), reversed(dones), strict=True):
        gae = 1.0 + gamma * next_value * (1 - done) - value + gamma * lam * (1 - done) * gae
        next_value = value
        advantages.append(gae)
    return torch.cat(advantages[::-1])


def main(has_bug, watch, check):
    torch.manual_seed(0)
    model = ActorCritic()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    states = start = 0.1 * torch.rand(ENVIRONMENTS, 4) - 0.05
    with watch(model, optimizer=optimizer):
        for _ in range(50):
            rollout, values, dones = [], [], []
            with torch.no_grad():
                for _ in range(STEPS):
                    policy, value = model(states)
                    action = policy.sample()
                    rollout.append((states, action, policy.log_prob(action)))
                    states, done = step(states, action)
                    states = torch.where(done[:, None], start, states)
                    values.append(value)
                    dones.append(torch.zeros_like(value) if has_bug else done.float())
                advantages = compute_gae(values, dones, model(states)[1])
            old_states, actions, old_log_probs = (torch.cat(parts) for parts in zip(*rollout, strict=True))
            returns = advantages + torch.cat(values)
            advantages = (advantages - advantages.mean()) / advantages.std()
            for chosen in torch.cat([torch.randperm(len(actions)) for _ in range(4)]).split(128):
                policy, value = model(old_states[chosen])
                ratio = (policy.log_prob(actions[chosen]) - old_log_probs[chosen]).exp()
                gain = torch.min(ratio * advantages[chosen], ratio.clamp(0.8, 1.2) * advantages[chosen]).mean()
                loss = -gain + 0.5 * nn.functional.mse_loss(value, returns[chosen]) - 0.01 * policy.entropy().mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
    states, alive, length = 0.1 * torch.rand(64, 4) - 0.05, torch.ones(64), 0.0
    with torch.no_grad():
        for _ in range(200):
            states, fell = step(states, model(states)[0].sample())
            alive = alive * (~fell)
            length += alive.mean().item()
    return length


if __name__ == "__main__":
    torch.set_num_threads(1)
    for has_bug in (False, True):
        score = main(has_bug, lambda *_, **__: nullcontext(), lambda *_, **__: None)
        print("bug" if has_bug else "healthy", round(score, 3))
