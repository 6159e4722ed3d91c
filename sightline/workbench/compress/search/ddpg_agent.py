"""Agent of HAQ: DDPG with a running mean reward as baseline, and its replay buffer."""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

HIDDEN = 300
ACTOR_RATE, CRITIC_RATE = 1e-4, 1e-3
TAU = 0.01
DISCOUNT = 1.0
BASELINE_SHARE = 0.5


class Transitions(NamedTuple):
    """Batch of transitions: states (B, D), actions and rewards (B, 1), next states (B, D), not-done flags (B, 1)."""

    state: Tensor
    action: Tensor
    reward: Tensor
    next_state: Tensor
    not_done: Tensor


class Actor(nn.Module):
    """Actor network: states (B, D) -> actions (B, 1) in [0, 1]."""

    def __init__(self, num_states: int) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(num_states, HIDDEN), nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, 1)

    def forward(self, state: Tensor) -> Tensor:
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(state))))).sigmoid()


class Critic(nn.Module):
    """Critic network: states (B, D) and actions (B, 1) -> expected rewards (B, 1)."""

    def __init__(self, num_states: int) -> None:
        super().__init__()
        self.fc11, self.fc12 = nn.Linear(num_states, HIDDEN), nn.Linear(1, HIDDEN)
        self.fc2, self.fc3 = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, 1)

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        return self.fc3(F.relu(self.fc2(F.relu(self.fc11(state) + self.fc12(action)))))


class Agent:
    """DDPG agent: actor and critic, their soft-updated target networks, and the updates.

    The critic's target is reward - baseline + the target critic's value of the next state, which is 0 after the last.
    The baseline is a running mean of the batches' mean rewards, initialised with the first.
    Source: Lillicrap et al. 2016 (DDPG), algorithm 1; Wang et al. 2019 (HAQ), section 3, and the authors' code.
    """

    def __init__(self, num_states: int, *, seed: int, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.actor, self.critic = (_initialise(net(num_states), generator).to(dtype) for net in (Actor, Critic))
        self.actor_target, self.critic_target = copy.deepcopy(self.actor), copy.deepcopy(self.critic)
        self._actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=ACTOR_RATE, fused=True)
        self._critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=CRITIC_RATE, fused=True)
        self.dtype = dtype
        self.baseline: float | None = None

    @torch.no_grad()
    def action(self, state: np.ndarray) -> float:
        """Compute the actor's action for a state (D,), without noise."""
        return self.actor(torch.from_numpy(state).to(self.dtype)).item()

    def update(self, batch: Transitions) -> tuple[float, float]:
        """Update critic, actor and targets; return the losses of critic and actor before their updates."""
        losses = self.update_critic(batch), self.update_actor(batch)
        self.soft_update()
        return losses

    def soft_update(self) -> None:
        """Move the target networks towards their networks by the factor `TAU`."""
        for target, net in ((self.actor_target, self.actor), (self.critic_target, self.critic)):
            with torch.no_grad():
                torch._foreach_lerp_([*target.parameters()], [*net.parameters()], TAU)

    def update_critic(self, batch: Transitions) -> float:
        """Update the baseline by the batch's rewards, then the critic; return the critic's loss."""
        mean = batch.reward.mean().item()
        previous = mean if self.baseline is None else self.baseline
        self.baseline = previous + BASELINE_SHARE * (mean - previous)
        with torch.no_grad():
            next_value = self.critic_target(batch.next_state, self.actor_target(batch.next_state))
            target = batch.reward - self.baseline + DISCOUNT * batch.not_done * next_value
        loss = F.mse_loss(self.critic(batch.state, batch.action), target)
        self._critic_optimizer.zero_grad()
        loss.backward()
        self._critic_optimizer.step()
        return loss.item()

    def update_actor(self, batch: Transitions) -> float:
        """Update the actor towards actions that the critic values more; return the actor's loss."""
        loss = -self.critic(batch.state, self.actor(batch.state)).mean()
        self._actor_optimizer.zero_grad()
        loss.backward(inputs=[*self.actor.parameters()])
        self._actor_optimizer.step()
        return loss.item()


def _initialise(net: nn.Module, generator: torch.Generator) -> nn.Module:
    """Initialise linear layers with torch's default distribution, from a separate generator."""
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            bound = 1 / math.sqrt(layer.in_features)
            for parameter in (layer.weight, layer.bias):
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return net


class ReplayBuffer:
    """Ring buffer of the last `size` transitions; the authors' adds an artificial one after each episode."""

    def __init__(self, size: int, num_states: int) -> None:
        self._rows = np.zeros((size, 2 * num_states + 3))
        self._num_states = num_states
        self._num_added = 0

    def __len__(self) -> int:
        return min(self._num_added, len(self._rows))

    def add(self, state: np.ndarray, action: float, reward: float, next_state: np.ndarray, *, is_done: bool) -> None:
        self._rows[self._num_added % len(self._rows)] = [*state, action, reward, *next_state, not is_done]
        self._num_added += 1

    def at(self, indices: np.ndarray, dtype: torch.dtype) -> Transitions:
        """Return the transitions at these indices; 0 is the oldest one stored."""
        oldest = max(0, self._num_added - len(self._rows))
        rows = torch.from_numpy(self._rows[(indices + oldest) % len(self._rows)]).to(dtype)
        return Transitions(*rows.split([self._num_states, 1, 1, self._num_states, 1], dim=1))
