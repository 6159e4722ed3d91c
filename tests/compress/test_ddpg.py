"""DDPG: updates, replay and noise against the authors' code, and a toy problem whose optimum is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import truncnorm
from torch import Tensor

from sightline.workbench.compress.search.ddpg import Agent, ReplayBuffer, Transitions, exploration_std, truncated_normal
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


class NumpyAgent:
    """HAQ's update in NumPy: nets and their gradients layer by layer, Adam, the running reward, the slow targets."""

    def __init__(self, agent: Agent) -> None:
        nets = {name: getattr(agent, name).state_dict() for name in NETS}
        self.nets = {name: {key: v.numpy().copy() for key, v in state.items()} for name, state in nets.items()}
        self._moments = {name: {k: (0.0, 0.0) for k in self.nets[name]} for name in ("actor", "critic")}
        self._num_steps = {"actor": 0, "critic": 0}
        self._baseline: float | None = None

    def update(self, batch: dict[str, np.ndarray]) -> tuple[float, float]:
        mean = batch["reward"].mean()
        self._baseline = mean if self._baseline is None else 0.5 * self._baseline + 0.5 * mean
        next_action = self._act("actor_target", batch["next_state"])[-1]
        following = self._value("critic_target", batch["next_state"], next_action)
        wanted = batch["reward"] - self._baseline + 1.0 * batch["not_done"] * following[-1]
        layers = self._value("critic", batch["state"], batch["action"])
        excess = layers[-1] - wanted
        gradient, _ = self._value_gradient(batch["state"], batch["action"], layers, 2 * excess / len(excess))
        self._step("critic", gradient, 1e-3)
        actions = self._act("actor", batch["state"])
        layers = self._value("critic", batch["state"], actions[-1])
        actor_loss, size = -layers[-1].mean(), len(layers[-1])
        _, slope = self._value_gradient(batch["state"], actions[-1], layers, np.full((size, 1), -1 / size))
        self._step("actor", self._action_gradient(batch["state"], actions, slope), 1e-4)
        for target, net in (("actor_target", "actor"), ("critic_target", "critic")):
            for key, value in self.nets[net].items():
                self.nets[target][key] = 0.99 * self.nets[target][key] + 0.01 * value
        return float((excess**2).mean()), float(actor_loss)

    def _act(self, name: str, states: np.ndarray) -> list[np.ndarray]:
        net = self.nets[name]
        first = np.maximum(0, states @ net["fc1.weight"].T + net["fc1.bias"])
        second = np.maximum(0, first @ net["fc2.weight"].T + net["fc2.bias"])
        return [first, second, 1 / (1 + np.exp(-(second @ net["fc3.weight"].T + net["fc3.bias"])))]

    def _value(self, name: str, states: np.ndarray, actions: np.ndarray) -> list[np.ndarray]:
        net = self.nets[name]
        from_both = states @ net["fc11.weight"].T + net["fc11.bias"] + actions @ net["fc12.weight"].T + net["fc12.bias"]
        first = np.maximum(0, from_both)
        second = np.maximum(0, first @ net["fc2.weight"].T + net["fc2.bias"])
        return [first, second, second @ net["fc3.weight"].T + net["fc3.bias"]]

    def _value_gradient(
        self, states: np.ndarray, actions: np.ndarray, layers: list[np.ndarray], slope: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Of the critic's parameters, and of the actions, for a slope at its output."""
        net, (first, second, _) = self.nets["critic"], layers
        at_second = slope @ net["fc3.weight"] * (second > 0)
        at_first = at_second @ net["fc2.weight"] * (first > 0)
        gradient = {"fc3.weight": slope.T @ second, "fc3.bias": slope.sum(0)}
        gradient |= {"fc2.weight": at_second.T @ first, "fc2.bias": at_second.sum(0)}
        gradient |= {"fc11.weight": at_first.T @ states, "fc11.bias": at_first.sum(0)}
        gradient |= {"fc12.weight": at_first.T @ actions, "fc12.bias": at_first.sum(0)}
        return gradient, at_first @ net["fc12.weight"]

    def _action_gradient(
        self, states: np.ndarray, layers: list[np.ndarray], slope: np.ndarray
    ) -> dict[str, np.ndarray]:
        net, (first, second, actions) = self.nets["actor"], layers
        at_output = slope * actions * (1 - actions)
        at_second = at_output @ net["fc3.weight"] * (second > 0)
        at_first = at_second @ net["fc2.weight"] * (first > 0)
        gradient = {"fc3.weight": at_output.T @ second, "fc3.bias": at_output.sum(0)}
        gradient |= {"fc2.weight": at_second.T @ first, "fc2.bias": at_second.sum(0)}
        return gradient | {"fc1.weight": at_first.T @ states, "fc1.bias": at_first.sum(0)}

    def _step(self, name: str, gradient: dict[str, np.ndarray], rate: float) -> None:
        """Adam (Kingma and Ba 2015, algorithm 1)."""
        self._num_steps[name] += 1
        count = self._num_steps[name]
        for key, slope in gradient.items():
            mean, square = self._moments[name][key]
            mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
            self._moments[name][key] = mean, square
            scale = np.sqrt(square / (1 - 0.999**count)) + 1e-8
            self.nets[name][key] = self.nets[name][key] - rate * mean / (1 - 0.9**count) / scale


def test_updates_are_those_of_plain_numpy() -> None:
    """Of batches that end episodes and that do not; the targets differ from the nets from the second on."""
    draws, agent = np.random.default_rng(0), Agent(4, seed=3, dtype=torch.float64)
    reference = NumpyAgent(agent)
    for number in range(4):
        shapes = {"state": 4, "action": 1, "reward": 1, "next_state": 4}
        batch = {name: draws.normal(size=(6, width)) for name, width in shapes.items()}
        batch["not_done"] = np.asarray([[1.0], [0.0], [1.0], [1.0], [0.0], [1.0]])
        batch["reward"] += number  # the running mean lags behind
        losses = agent.update(Transitions(*(torch.from_numpy(batch[name]) for name in Transitions._fields)))
        close(losses, np.asarray(reference.update(batch)))
    for name in NETS:
        for key, value in getattr(agent, name).state_dict().items():
            close(value.numpy(), reference.nets[name][key], 1e-8)


def test_the_noise_and_the_truncated_normal_are_those_of_the_definition() -> None:
    """0.5 after the warm-up, 1 % less with each episode; quantiles of a normal distribution cut to [0, 1] by SciPy."""
    assert exploration_std(20, warm_up=20) == 0.5
    assert exploration_std(7, warm_up=5) == pytest.approx(0.49005, rel=1e-14)
    assert exploration_std(120, warm_up=20) == pytest.approx(0.5 * 0.366032341273, rel=1e-11)
    for mean in (0.0, 0.4, 1.0):  # an actor's action
        for deviation in (0.05, 0.5, 2.0):
            for quantile in (0.01, 0.5, 0.97):
                expected = truncnorm.ppf(quantile, -mean / deviation, (1 - mean) / deviation, mean, deviation)
                assert truncated_normal(mean, deviation, quantile) == pytest.approx(expected, abs=1e-9)


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
    """With a third of the episodes of `tests/long/test_ddpg_toy.py`."""
    assert closed_by_ddpg(seed=234, episodes=100) >= 0.95
