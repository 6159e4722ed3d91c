"""DDPG: updates, replay and noise against the authors' code, and a toy problem whose optimum is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.workbench.compress.search.ddpg import exploration_std, truncated_normal
from sightline.workbench.compress.search.ddpg_agent import Agent, ReplayBuffer, Transitions
from tests.compress.toys import closed_by_ddpg
from tests.golden_parity import Golden, load_golden, rule_made_state

NETS = ("actor", "critic", "actor_target", "critic_target")


def agent_of(golden: Golden, num_states: int) -> Agent:
    agent = Agent(num_states, seed=0, dtype=torch.float64)
    for name in NETS:
        kinds = {"weight": "matrix", "bias": "vector"}
        entries = [
            {"key": key.replace(name.split("_")[0], name, 1), "kind": kinds[kind], "shape": shape, "tied_to": None}
            for key, shape, kind in golden.info[f"keys_states{num_states}"]
            if key.startswith(name.split("_")[0])
        ]
        state = rule_made_state(entries)
        getattr(agent, name).load_state_dict({key.removeprefix(f"{name}."): value for key, value in state.items()})
    return agent


def summary(value: Tensor) -> np.ndarray:
    """What the golden file keeps of a tensor: its norm, its sum and the first six numbers."""
    flat = value.detach().flatten().numpy()
    return np.concatenate([[np.linalg.norm(flat), flat.sum()], flat[:6]])


def close(found: object, expected: np.ndarray, bound: float = 1e-9) -> None:
    np.testing.assert_allclose(found, expected, rtol=bound, atol=bound * 1e-2)


@pytest.mark.parametrize("num_states", [9, 10])
def test_three_updates_are_the_authors(shared: Path, num_states: int) -> None:
    """Their critic's gradient holds the actor's loss as well when the step is over: here it is added by hand."""
    golden = load_golden(shared, "ddpg", area="compress")
    agent, nets = agent_of(golden, num_states), {}
    compared = set()
    for number in range(3):
        prefix = f"states{num_states}/update{number}/"
        arrays = {key.removeprefix(prefix): v for key, v in golden.arrays.items() if key.startswith(prefix)}
        batch = Transitions(*(torch.from_numpy(arrays[name]) for name in Transitions._fields))
        nets = {name: getattr(agent, name) for name in NETS}
        with torch.no_grad():
            close(agent.actor(batch.state), arrays["actor_out_before"])
            close(agent.critic(batch.state, batch.action), arrays["critic_out_before"])
            close(agent.critic_target(batch.next_state, agent.actor_target(batch.next_state)), arrays["target_q"])
        value_loss = agent.update_critic(batch)
        gradients = {f"critic.{key}": each.grad.clone() for key, each in agent.critic.named_parameters()}
        policy_loss = -agent.critic(batch.state, agent.actor(batch.state)).mean()
        further = torch.autograd.grad(policy_loss, [*agent.critic.parameters()])
        assert agent.update_actor(batch) == policy_loss.item()
        agent.soft_update()
        close(value_loss, arrays["value_loss"])
        close(policy_loss.item(), arrays["policy_loss"])
        close(agent.baseline, arrays["moving_average"])
        for (key, value), more in zip(gradients.items(), further, strict=True):
            close(summary(value + more), arrays[f"grad/{key}"], 1e-7)
        for key, each in agent.actor.named_parameters():
            close(summary(each.grad), arrays[f"grad/actor.{key}"], 1e-7)
        for name, net in nets.items():
            for key, each in net.named_parameters():
                close(summary(each), arrays[f"after/{name}.{key}"], 1e-8)
        compared |= {prefix + key for key in arrays}
    expected = {key for key in golden.arrays if key.startswith(f"states{num_states}/update")}
    assert compared == expected


@pytest.mark.parametrize("num_states", [9, 10])
def test_the_noise_is_the_authors(shared: Path, num_states: int) -> None:
    expected = load_golden(shared, "ddpg", area="compress").arrays[f"states{num_states}/noise_delta_episode_20_to_120"]
    close([exploration_std(episode, warm_up=20) for episode in range(20, 121)], expected, 1e-12)


def test_the_truncated_normal_is_the_authors(shared: Path) -> None:
    arrays = load_golden(shared, "ddpg", area="compress").arrays
    expected = arrays["truncated_normal/value_at_quantile_u_on_0_1"]
    found = [truncated_normal(*map(float, row)) for row in arrays["truncated_normal/mu_sigma_u"]]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


def test_replay_gives_the_authors_transitions(shared: Path) -> None:
    """Their buffer adds a made-up entry behind each episode and finds the next state one place on; ours has neither."""
    golden = load_golden(shared, "ddpg", area="compress")
    arrays = {key.removeprefix("replay/"): v for key, v in golden.arrays.items() if key.startswith("replay/")}
    states, is_done = arrays["appended_obs"], arrays["appended_done"]
    limit, replay, place_of, kept = golden.info["replay"]["limit"], ReplayBuffer(200, 3), {}, []
    for entry, (state, done) in enumerate(zip(states, is_done, strict=True)):
        is_dummy = entry > 0 and bool(is_done[entry - 1])
        if is_dummy or entry + 1 == len(states):
            continue
        place_of[entry] = len(kept)
        kept.append(entry)
        action, reward = arrays["appended_action"][entry].item(), float(arrays["appended_reward"][entry])
        replay.add(state, action, reward, states[entry + 1], is_done=bool(done))
    first = len(states) - limit
    places = [place_of[first + index] for index in arrays["batch_index"].tolist()]
    found = replay.at(np.asarray(places), torch.float64)
    for name in Transitions._fields:
        expected = arrays[name].reshape(len(places), -1)
        assert np.array_equal(getattr(found, name).numpy(), expected), name


def test_the_ring_forgets_the_oldest() -> None:
    replay = ReplayBuffer(4, 1)
    for number in range(6):
        replay.add(np.asarray([number]), 0.1, number, np.asarray([number + 1]), is_done=number == 5)
    assert len(replay) == 4
    found = replay.at(np.arange(4), torch.float64)
    assert found.state.flatten().tolist() == [2, 3, 4, 5]
    assert found.not_done.flatten().tolist() == [1, 1, 1, 0]
    assert found.next_state.flatten().tolist() == [3, 4, 5, 6]
    assert found.reward.flatten().tolist() == [2, 3, 4, 5]
    assert found.action.flatten().tolist() == [0.1] * 4


def test_it_closes_the_gap_between_uniform_and_the_optimum() -> None:
    """With a third of the episodes of `tests/long/test_compression.py`."""
    assert closed_by_ddpg(seed=234, episodes=100) >= 0.95
