"""HAQ's search: an agent walks through the layers, chooses bits, and is rewarded for the loss of the whole policy."""

from __future__ import annotations

import numpy as np

from sightline import registry
from sightline.arguments import Count, Index, Seed
from sightline.compress.cost import state_vectors
from sightline.compress.policy import Policy, actions_to_levels
from sightline.compress.search.agent import Agent, ReplayBuffer, truncated_normal
from sightline.compress.search.base import MaxEvaluations, PolicyEvaluator, Search
from sightline.compress.search.problem import Problem

__all__ = ["DDPG", "exploration_std"]

_BATCH, _EPISODES_KEPT = 64, 128
_NOISE, _NOISE_DECAY = 0.5, 0.99


def exploration_std(episode: int, *, warm_up: int) -> float:
    """The deviation of actions about the actor's, in an episode after the warm-up."""
    return _NOISE * _NOISE_DECAY ** (episode - warm_up)


@registry.searches.add("ddpg")
class DDPG(Search):
    """Deep deterministic policy gradients over the layers, as HAQ; the best policy seen is kept, not the last one.

    The first `warm_up` episodes draw evenly; later ones from a normal distribution about the actor's action, cut to
    [0, 1]. The reward of an episode is how much its policy's loss lies below the float model's. It ends after
    `episodes`, or once it has evaluated `max_evaluations` different policies. Unlike the authors' code: actions are
    clipped to the allowed bits, the previous bits are part of the state as a share of the most, the float model is not
    fine-tuned within an episode, and transitions end with the episode. Source: Wang et al. 2019 (HAQ), section 3.
    """

    def __init__(
        self, *, episodes: Count = 600, warm_up: Index = 20, max_evaluations: MaxEvaluations = 200, seed: Seed = 234
    ) -> None:
        self.episodes = episodes
        self.warm_up = warm_up
        self.max_evaluations = max_evaluations
        self.seed = seed

    def run(self, problem: Problem, evaluator: PolicyEvaluator) -> Policy:
        draws = np.random.Generator(np.random.PCG64(self.seed))
        known, bits = state_vectors(problem.searched_layers), np.asarray(problem.bits)
        agent = Agent(known.shape[1] + 1, seed=self.seed)
        replay = ReplayBuffer(_EPISODES_KEPT * len(known), known.shape[1] + 1)
        best = problem.policy(problem.lower_to_budget([problem.uniform_level] * len(problem.searched_layers)))
        for episode in range(self.episodes):
            if not evaluator.num_left:
                break
            states, actions, share = [], [], 1.0
            for row in known:
                states.append(np.append(row, share))
                actions.append(self._action(agent, states[-1], episode, draws))
                share = bits[actions_to_levels(np.asarray(actions[-1]), problem.bits)] / bits[-1]
            levels = problem.lower_to_budget(actions_to_levels(np.asarray(actions), problem.bits).tolist())
            policy = problem.policy(levels)
            reward = evaluator.float_loss - evaluator.loss(policy)
            best = min(best, policy, key=lambda each: (evaluator.loss(each), problem.bytes_of(each)))
            for place, (state, action) in enumerate(zip(states, actions, strict=True)):
                following, is_done = states[min(place + 1, len(states) - 1)], place + 1 == len(states)
                replay.add(state, action, reward, following, is_done=is_done)
                if episode >= self.warm_up:
                    places = draws.choice(len(replay), min(_BATCH, len(replay)), replace=False)
                    agent.update(replay.at(places, agent.dtype))
        return best

    def _action(self, agent: Agent, state: np.ndarray, episode: int, draws: np.random.Generator) -> float:
        if episode < self.warm_up:
            return draws.random()
        return truncated_normal(agent.action(state), exploration_std(episode, warm_up=self.warm_up), draws.random())
