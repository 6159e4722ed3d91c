"""The agent of HAQ: deep deterministic policy gradients with a running reward as baseline, and its replay buffer."""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Actor", "Agent", "Critic", "ReplayBuffer", "Transitions", "truncated_normal"]

HIDDEN = 300
ACTOR_RATE, CRITIC_RATE = 1e-4, 1e-3
TAU = 0.01
DISCOUNT = 1.0
BASELINE_SHARE = 0.5


class Transitions(NamedTuple):
    """States (B, D), actions, rewards (B, 1), next states (B, D), and 1 where the episode goes on (B, 1)."""

    state: Tensor
    action: Tensor
    reward: Tensor
    next_state: Tensor
    not_done: Tensor


class Actor(nn.Module):
    """From a state to an action in [0, 1]."""

    def __init__(self, num_states: int) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(num_states, HIDDEN), nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, 1)

    def forward(self, state: Tensor) -> Tensor:
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(state))))).sigmoid()


class Critic(nn.Module):
    """From a state and an action to the expected reward."""

    def __init__(self, num_states: int) -> None:
        super().__init__()
        self.fc11, self.fc12 = nn.Linear(num_states, HIDDEN), nn.Linear(1, HIDDEN)
        self.fc2, self.fc3 = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, 1)

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        return self.fc3(F.relu(self.fc2(F.relu(self.fc11(state) + self.fc12(action)))))


class Agent:
    """Actor and critic, their slowly following targets, and the updates.

    The target of the critic is reward - baseline + the target critic's value of the next state, 0 after the last. The
    baseline is a running mean of the batches' mean rewards, which begins with the first.
    Source: Lillicrap et al. 2016 (DDPG), algorithm 1; Wang et al. 2019 (HAQ), section 3, and the authors' code.
    """

    def __init__(self, num_states: int, *, seed: int, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.actor, self.critic = (_drawn(net(num_states), generator).to(dtype) for net in (Actor, Critic))
        self.actor_target, self.critic_target = copy.deepcopy(self.actor), copy.deepcopy(self.critic)
        self._actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=ACTOR_RATE, fused=True)
        self._critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=CRITIC_RATE, fused=True)
        self.dtype = dtype
        self.baseline: float | None = None

    @torch.no_grad()
    def action(self, state: np.ndarray) -> float:
        """The actor's own action, without noise."""
        return self.actor(torch.from_numpy(state).to(self.dtype)).item()

    def update(self, batch: Transitions) -> tuple[float, float]:
        """One step of critic, actor and targets; the losses of critic and actor before their steps."""
        losses = self.update_critic(batch), self.update_actor(batch)
        self.soft_update()
        return losses

    def soft_update(self) -> None:
        """Move the targets a little towards their nets."""
        for target, net in ((self.actor_target, self.actor), (self.critic_target, self.critic)):
            with torch.no_grad():
                torch._foreach_lerp_([*target.parameters()], [*net.parameters()], TAU)

    def update_critic(self, batch: Transitions) -> float:
        """One step towards the targets, after the batch's rewards have moved the baseline."""
        mean = batch.reward.mean().item()
        before = mean if self.baseline is None else self.baseline
        self.baseline = before + BASELINE_SHARE * (mean - before)
        with torch.no_grad():
            following = self.critic_target(batch.next_state, self.actor_target(batch.next_state))
            wanted = batch.reward - self.baseline + DISCOUNT * batch.not_done * following
        loss = F.mse_loss(self.critic(batch.state, batch.action), wanted)
        self._critic_optimizer.zero_grad()
        loss.backward()
        self._critic_optimizer.step()
        return loss.item()

    def update_actor(self, batch: Transitions) -> float:
        """One step towards actions that the critic values more."""
        loss = -self.critic(batch.state, self.actor(batch.state)).mean()
        self._actor_optimizer.zero_grad()
        loss.backward(inputs=[*self.actor.parameters()])
        self._actor_optimizer.step()
        return loss.item()


def _drawn(net: nn.Module, generator: torch.Generator) -> nn.Module:
    """Torch's initial distribution of linear layers, from a generator of its own."""
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            bound = 1 / math.sqrt(layer.in_features)
            for parameter in (layer.weight, layer.bias):
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return net


class ReplayBuffer:
    """A ring of the last `size` transitions; the authors' has a made-up one after each episode instead of its end."""

    def __init__(self, size: int, num_states: int) -> None:
        self._rows = np.zeros((size, 2 * num_states + 3))
        self._num_states = num_states
        self._num_added = 0

    def __len__(self) -> int:
        return min(self._num_added, len(self._rows))

    def add(self, state: np.ndarray, action: float, reward: float, next_state: np.ndarray, *, is_done: bool) -> None:
        self._rows[self._num_added % len(self._rows)] = [*state, action, reward, *next_state, not is_done]
        self._num_added += 1

    def at(self, places: np.ndarray, dtype: torch.dtype) -> Transitions:
        """The transitions at these places, 0 the oldest that is kept."""
        oldest = max(0, self._num_added - len(self._rows))
        rows = torch.from_numpy(self._rows[(places + oldest) % len(self._rows)]).to(dtype)
        return Transitions(*rows.split([self._num_states, 1, 1, self._num_states, 1], dim=1))


def truncated_normal(mean: float, deviation: float, quantile: float) -> float:
    """The value at a quantile of the normal distribution cut to [0, 1]."""
    values = torch.tensor([(0 - mean) / deviation, (1 - mean) / deviation], dtype=torch.float64)
    low, high = torch.special.ndtr(values)
    place = torch.special.ndtri(low + quantile * (high - low)).item()
    return min(1.0, max(0.0, mean + deviation * place))
