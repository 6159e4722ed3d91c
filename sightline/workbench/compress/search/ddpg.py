"""HAQ's search by DDPG: an agent chooses the bits of each layer and is rewarded for the whole policy's loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sightline.compression.policy import Policy
from sightline.contract import registry
from sightline.contract.arguments import Count, Index, Seed
from sightline.workbench.compress.layer_costs import LayerCost
from sightline.workbench.compress.problem import SearchProblem, actions_to_levels
from sightline.workbench.compress.search.base import MaxEvaluations, PolicyEvaluator, Search
from sightline.workbench.compress.search.ddpg_agent import Agent, ReplayBuffer


def truncated_normal(mean: float, deviation: float, quantile: float) -> float:
    """Return the value at a quantile of the normal distribution truncated to [0, 1]."""
    values = torch.tensor([(0 - mean) / deviation, (1 - mean) / deviation], dtype=torch.float64)
    low, high = torch.special.ndtr(values)
    standard_value = torch.special.ndtri(low + quantile * (high - low)).item()
    return min(1.0, max(0.0, mean + deviation * standard_value))


_BATCH, _BUFFER_EPISODES = 64, 128
_NOISE, _NOISE_DECAY = 0.5, 0.99


def exploration_std(episode: int, *, warm_up: int) -> float:
    """Return the standard deviation of the exploration noise in an episode after the warm-up."""
    return _NOISE * _NOISE_DECAY ** (episode - warm_up)


def state_vectors(layers: Sequence[LayerCost]) -> np.ndarray:
    """Compute the HAQ states (L, 8): depthwise, in and out channels, stride, kernel, weights, positions, index.

    Each column is scaled to 0..1 over the layers; a constant column is 0 (the authors keep its raw value).
    Source: Wang et al. 2019 (HAQ), section 3, in the order of the authors' code.
    """
    rows = [
        (
            layer.is_depthwise,
            layer.in_channels,
            layer.out_channels,
            layer.stride,
            layer.kernel,
            layer.num_weights,
            layer.positions,
        )
        for layer in layers
    ]
    table = np.column_stack([np.asarray(rows, dtype=np.float64), np.arange(len(layers))])
    low, high = table.min(axis=0), table.max(axis=0)
    return (table - low) / np.where(high > low, high - low, 1.0)


@registry.searches.add("ddpg")
class DDPG(Search):
    """Deep deterministic policy gradients (DDPG) over the layers, as HAQ; returns the best policy, not the last one.

    The first `warm_up` episodes draw uniform actions; later ones draw from a normal distribution around the actor's
    action, truncated to [0, 1]. The reward of an episode is the float model's loss minus its policy's loss. The search
    ends after `episodes`, or after `max_evaluations` different policies. Unlike the authors' code: actions are clipped
    to the allowed bits, the previous bits are part of the state as a share of the maximum, the float model is not
    fine-tuned within an episode, and transitions end with the episode. Source: Wang et al. 2019 (HAQ), section 3.
    """

    def __init__(
        self, *, episodes: Count = 600, warm_up: Index = 20, max_evaluations: MaxEvaluations = 200, seed: Seed = 234
    ) -> None:
        self.episodes = episodes
        self.warm_up = warm_up
        self.max_evaluations = max_evaluations
        self.seed = seed

    def run(self, problem: SearchProblem, evaluator: PolicyEvaluator) -> Policy:
        generator = np.random.Generator(np.random.PCG64(self.seed))
        layer_states, bits = state_vectors(problem.searched_layers), np.asarray(problem.bits)
        agent = Agent(layer_states.shape[1] + 1, seed=self.seed)
        replay = ReplayBuffer(_BUFFER_EPISODES * len(layer_states), layer_states.shape[1] + 1)
        best = problem.uniform_policy
        for episode in range(self.episodes):
            if not evaluator.num_left:
                break
            states, actions, share = [], [], 1.0
            for row in layer_states:
                states.append(np.append(row, share))
                actions.append(self._choose_action(agent, states[-1], episode, generator))
                share = bits[actions_to_levels(np.asarray(actions[-1]), problem.bits)] / bits[-1]
            levels = problem.lower_to_budget(actions_to_levels(np.asarray(actions), problem.bits).tolist())
            policy = problem.policy(levels)
            reward = evaluator.float_loss - evaluator.loss(policy)
            best = min(best, policy, key=lambda candidate: (evaluator.loss(candidate), problem.bytes_of(candidate)))
            for index, (state, action) in enumerate(zip(states, actions, strict=True)):
                next_state, is_done = states[min(index + 1, len(states) - 1)], index + 1 == len(states)
                replay.add(state, action, reward, next_state, is_done=is_done)
                if episode >= self.warm_up:
                    indices = generator.choice(len(replay), min(_BATCH, len(replay)), replace=False)
                    agent.update(replay.at(indices, agent.dtype))
        return best

    def _choose_action(self, agent: Agent, state: np.ndarray, episode: int, generator: np.random.Generator) -> float:
        if episode < self.warm_up:
            return generator.random()
        return truncated_normal(agent.action(state), exploration_std(episode, warm_up=self.warm_up), generator.random())
