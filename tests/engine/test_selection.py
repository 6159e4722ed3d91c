"""Which checkpoint is best: one place decides, by the config, else by the metric, and never silently by neither."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sightline import registry
from sightline.config import read_config
from sightline.engine.build import build
from sightline.engine.distributed import World
from sightline.engine.resume import assert_same_run
from sightline.engine.session import StopRequest, TrainingSession
from sightline.errors import ConfigError
from sightline.registry import RegistryEntry
from sightline.runs.run_directory import RunDirectory
from sightline.schema import signature_parameters
from sightline.verbs.show import _add_origin_of_mode
from tests.cases import run_each
from tests.doctor.planting import CONFIG, make

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if not path.name.startswith("_"))
LOWER = ("error", "distance")
State = dict[str, Tensor]


class Silent:
    """The share of wrong answers; states no direction."""

    def new_state(self) -> State:
        return {"wrong": torch.tensor(0), "seen": torch.tensor(0)}

    def update(self, state: State, *, probabilities: Tensor, label: Tensor) -> None:
        state["wrong"] += (probabilities.argmax(1) != label).sum()
        state["seen"] += label.numel()

    def compute(self, state: State) -> dict[str, float]:
        return {"miss_rate": (state["wrong"] / state["seen"]).item()}


class MissRate(Silent):
    """States the direction of all its numbers."""

    higher_is_better = False


class ByName(Silent):
    """States the direction of each number."""

    higher_is_better = {"miss_rate": False, "overall_accuracy": False}  # noqa: RUF012 - read, never changed


class OfAnother(Silent):
    """States the direction of a number that it does not compute."""

    higher_is_better = {"hit_rate": True}  # noqa: RUF012


class InWords(Silent):
    """States it in words, of which each is true."""

    higher_is_better = "min"


Add = Callable[[type], list[str]]


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch) -> Add:
    """Registers a metric for one test; the overrides that make a run select by it."""

    def added(metric: type) -> list[str]:
        registry.metrics.names()
        monkeypatch.setitem(
            registry.metrics._entries, "own", RegistryEntry("own", metric, signature_parameters(metric))
        )
        return ["metrics=[{name: accuracy}, {name: own}]", "evaluate.metric=miss_rate"]

    return added


@pytest.mark.parametrize("metric", [MissRate, ByName])
def test_the_metric_states_which_way_is_better(tmp_path: Path, add: Add, metric: type) -> None:
    config = make(tmp_path, *add(metric)).config
    assert config.evaluate.mode == "min"
    assert str(config.origins["evaluate.mode"]) == "metric 'own': evaluate.mode"


def test_the_metric_that_computes_the_figure_states_it(tmp_path: Path, add: Add) -> None:
    """`own` would call a lower accuracy better; it does not compute it."""
    add(ByName)
    metrics = "metrics=[{name: accuracy}, {name: own}]"
    assert make(tmp_path, metrics).config.evaluate.mode == "max"


@pytest.mark.parametrize(("metric", "mode"), [(Silent, "min"), (Silent, "max"), (OfAnother, "min"), (MissRate, "min")])
def test_the_config_states_it_where_the_metric_does_not(tmp_path: Path, add: Add, metric: type, mode: str) -> None:
    assert make(tmp_path, *add(metric), f"evaluate.mode={mode}").config.evaluate.mode == mode


@pytest.mark.parametrize("metric", [Silent, OfAnother])
def test_neither_is_an_error_that_says_how_to_state_it(tmp_path: Path, add: Add, metric: type) -> None:
    with pytest.raises(ConfigError) as caught:
        make(tmp_path, *add(metric))
    told = str(caught.value)
    assert "evaluate.metric: neither the config nor the metric 'own' states whether a higher 'miss_rate' is" in told
    assert "set evaluate.mode to max or min" in told
    assert f"test_selection.{metric.__name__}.higher_is_better" in told


def test_both_contrary_is_an_error_that_names_both_places(tmp_path: Path, add: Add) -> None:
    overrides = add(MissRate)
    path = tmp_path / "small.yaml"
    path.write_text(CONFIG.replace("metric: overall_accuracy", "metric: overall_accuracy, mode: max"))
    with pytest.raises(ConfigError) as caught:
        build(read_config(path, overrides), World())
    told = str(caught.value)
    assert f"{path}:8: evaluate.mode: found max, but the metric states min for 'miss_rate'" in told
    assert "test_selection.MissRate.higher_is_better = False; command line: metrics.1" in told


def test_a_statement_in_words_is_refused(tmp_path: Path, add: Add) -> None:
    with pytest.raises(ConfigError, match=r"metrics.1: higher_is_better of 'miss_rate' is 'min'; give True or False"):
        make(tmp_path, *add(InWords))


def test_best_is_the_lowest_error(tmp_path: Path, add: Add) -> None:
    """Four evaluations of a run that learns: the worst was the best before, since 'max' was the default."""
    built = make(
        tmp_path, *add(MissRate), "train.epochs=4", "optimizer={name: adam, lr: 3e-3}", "log.tensorboard=false"
    )
    directory = RunDirectory(tmp_path / "run", is_writer=True)
    (tmp_path / "run").mkdir()
    session = TrainingSession(built, World(), directory, stop=StopRequest(), record={}, is_quiet=True)
    session.start_files()
    session.start()
    session.run()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    values = {line["step"]: line["miss_rate"] for line in lines if "miss_rate" in line}
    assert len(set(values.values())) > 1
    best = int(os.readlink(tmp_path / "run" / "checkpoints" / "best").removeprefix("step_"))
    assert values[best] == min(values.values())
    assert read_config(tmp_path / "run" / "config.yaml").evaluate.mode == "min", "a stored config states all"


def recorded(tmp_path: Path, built: Any, mode: str) -> Path:
    """A run's folder whose config says this mode, as all did before a metric could state one."""
    run = tmp_path / "run"
    run.mkdir()
    directory = RunDirectory(run, is_writer=True)
    TrainingSession(built, World(), directory, stop=StopRequest(), record={"plugins": []}).start_files()
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("mode: min", f"mode: {mode}").replace('"min"', f'"{mode}"'))
    return run


@pytest.mark.parametrize("mode", ["min", "max"])
def test_runs_that_recorded_a_mode_go_on(tmp_path: Path, add: Add, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their own config they keep what they recorded, with a warning where it contradicts the metric."""
    overrides = add(MissRate)
    run = recorded(tmp_path, make(tmp_path, *overrides), mode)
    assert_same_run(run, read_config(tmp_path / "small.yaml", overrides), [])
    own = read_config(run / "config.yaml")
    assert own.evaluate.mode == mode
    assert_same_run(run, own, [])
    told: list[str] = []
    monkeypatch.setattr("sightline.engine.records.logger.warning", lambda text, *words: told.append(text % words))
    assert build(own, World(), is_resumed=True).config.evaluate.mode == mode
    assert len(told) == (mode == "max")
    assert all("evaluate.mode: found max, but the metric states min" in line for line in told)


@run_each("path", SHIPPED)
def test_every_shipped_config_selects_in_its_figures_direction(path: Path) -> None:
    """None of them needs a mode, and `show` names the metric that states it."""
    config = read_config(path)
    assert config.evaluate.mode is None
    wanted = "min" if any(word in config.evaluate.metric for word in LOWER) else "max"
    origin = _add_origin_of_mode(config).origins["evaluate.mode"].source
    assert origin.startswith(f"{wanted}, by the metric '"), origin


def test_every_metric_of_the_package_states_its_directions() -> None:
    for name in registry.metrics.names():
        assert hasattr(registry.metrics.get_entry(name).builder, "higher_is_better"), name
