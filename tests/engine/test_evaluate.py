"""Evaluation: every sample once, votes, batches of any size; the worst classes, and which checkpoint is best."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from sightline.config import read_config
from sightline.contract import registry
from sightline.contract.errors import ConfigError
from sightline.contract.metric import Metric, WorstSamples
from sightline.contract.registry import RegistryEntry
from sightline.contract.schema import signature_parameters
from sightline.contract.types import Batch, ComponentConfig, SampleKey
from sightline.draw.pictures import Picture
from sightline.engine.build import build
from sightline.engine.distributed import World
from sightline.engine.evaluate import BoundMetric, Evaluation, MetricResult, make_evaluation
from sightline.runs.run_directory import RunDirectory
from sightline.training.resume import assert_same_run
from sightline.training.session import TrainingSession
from sightline.training.stop_request import StopRequest
from sightline.verbs.show import _add_origin_of_mode
from tests.cases import run_each
from tests.doctor.planting import CONFIG, make
from tests.runs.small import small_run

# --- evaluation, whatever the batches ---------------------------------------------------------------------------------


VOTE = "transforms.vote=[{name: scale}, {name: translate}]"


def test_the_batch_size_does_not_matter() -> None:
    built = small_run("train.precision=float64")
    results = [
        dataclasses.replace(built.test_evaluator, batch_size=size)(built.job.model, World()) for size in (1, 7, 24)
    ]
    assert results[0].metrics == results[1].metrics == results[2].metrics
    [interval] = {str(result.describe("mean_class_accuracy")["interval"]) for result in results}
    assert "'num_samples': 24" in interval
    for result in results[1:]:
        assert result.losses == pytest.approx(results[0].losses, rel=1e-12)


def test_evaluating_twice_is_the_same_and_leaves_the_model_alone() -> None:
    built = small_run()
    built.job.model.train()
    before = {name: tensor.clone() for name, tensor in built.job.model.state_dict().items()}
    random_before = torch.get_rng_state()
    first, second = (built.test_evaluator(built.job.model, World()) for _ in range(2))
    assert (first.metrics, first.losses) == (second.metrics, second.losses)
    assert built.job.model.training
    assert torch.equal(random_before, torch.get_rng_state())
    assert all(torch.equal(before[n], t) for n, t in built.job.model.state_dict().items())


def test_accuracy_is_what_numpy_counts() -> None:
    built = small_run()
    result = built.test_evaluator(built.job.model, World())
    labels, guesses = [], []
    built.job.model.eval()
    for start in range(0, 24, 6):
        keys = [SampleKey(index, epoch=0, seed=0) for index in range(start, start + 6)]
        batch = built.data.test.reader(keys)
        with torch.no_grad():
            logits = built.job.model(points=batch["points"])["logits"]
        guesses += logits.argmax(1).tolist()
        labels += batch["label"].tolist()
    assert result.metrics["overall_accuracy"] == np.mean(np.array(guesses) == np.array(labels))
    recalls = [np.mean(np.array(guesses)[np.array(labels) == c] == c) for c in sorted(set(labels))]
    assert result.metrics["mean_class_accuracy"] == pytest.approx(np.mean(recalls), rel=1e-12)


@pytest.mark.parametrize("size", [1, 5, 23])
def test_pictures_are_of_the_worst_samples(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the whole split: wrong ones first, then by the probability of the true class; a batch at most, 12 at most."""
    built = small_run("train.precision=float64")
    evaluator = dataclasses.replace(built.test_evaluator, batch_size=size)
    batch = built.data.test.reader([SampleKey(index, epoch=0, seed=0) for index in range(24)])
    batch = {**batch, "points": batch["points"].double()}
    with torch.no_grad():
        probabilities = evaluator.task.predict(built.job.model.eval(), batch)["probabilities"].numpy()
    labels = batch["label"].numpy()
    is_right, of_label = probabilities.argmax(1) == labels, probabilities[np.arange(24), labels]
    shown: list[list[int]] = []
    monkeypatch.setattr(evaluator.task, "show", lambda batch, _: shown.append(batch["sample_index"].tolist()) or [])
    evaluator(built.job.model, World(), pictures=True)
    evaluator(built.job.model, World())
    assert shown == [np.lexsort([of_label, is_right])[: min(size, 12)].tolist()]


def test_the_worst_samples_of_a_metric_are_drawn_and_named() -> None:
    """Each kind by itself, the worst first, from the score on that they were counted from."""
    built = small_run()
    (meter,) = built.test_evaluator.metrics
    worst = WorstSamples({"far": {7: 3, 2: 1}, "near": {}, "both": {2: 5}}, 0.25)
    metric = copy.copy(meter.metric)
    metric.worst_samples = lambda state: worst  # type: ignore[attr-defined]
    metrics = [dataclasses.replace(meter, metric=metric)]
    evaluator = dataclasses.replace(built.test_evaluator, metrics=metrics, surroundings="room")
    shown, surrounded = [], set()

    def show(batch: Batch, predictions: Batch, *, score: float = 0.0, surroundings: str = "") -> list[Picture]:
        surrounded.add(surroundings)
        shown.append((batch["sample_index"].tolist(), score))
        return [Picture(f"{index}", np.zeros((1, 1, 3), np.uint8), "a solid") for index in shown[-1][0]]

    evaluator.task.show = show  # type: ignore[attr-defined]
    result = evaluator(built.job.model, World(), pictures=True)
    assert shown[1:] == [([7, 2], 0.25), ([2], 0.25)]
    assert surrounded == {"room"}
    drawn = {picture.name: picture.caption for picture in result.pictures if "worst" in picture.name}
    assert drawn == {
        "worst_far_7": "sample 7, 3 far; a solid",
        "worst_far_2": "sample 2, 1 far; a solid",
        "worst_both_2": "sample 2, 5 both; a solid",
    }
    document = result.describe("", "solid {}".format)["worst_samples"]
    assert document["min_score"] == 0.25
    assert document["kinds"] == {
        "far": [{"name": "solid 7", "count": 3}, {"name": "solid 2", "count": 1}],
        "near": [],
        "both": [{"name": "solid 2", "count": 5}],
    }
    assert list(worst.list_counts().items()) == [(7, {"far": 3}), (2, {"both": 5, "far": 1})]


def test_a_reader_that_repeats_a_sample_is_caught() -> None:
    built = small_run()
    reader = built.test_evaluator.reader

    def repeats(keys: list) -> dict:
        batch = reader(keys)
        batch["sample_index"][-1] = batch["sample_index"][0]
        return batch

    with pytest.raises(AssertionError, match=r"samples never and \d+ more than once"):
        dataclasses.replace(built.test_evaluator, reader=repeats)(built.job.model, World())


def test_votes_average_varied_passes_and_are_labelled() -> None:
    built = small_run("evaluate.votes=3", VOTE, "train.precision=float64")
    voted = built.test_evaluator(built.job.model, World())
    names = {"overall_accuracy", "mean_class_accuracy"}
    assert set(voted.metrics) == names | {f"{name}_vote3" for name in names}
    plain = small_run("train.precision=float64").test_evaluator(built.job.model, World())
    assert {name: voted.metrics[name] for name in names} == plain.metrics
    assert set(voted.per_class["mug"]) == {"accuracy", "accuracy_vote3", "count"}
    again = built.test_evaluator(built.job.model, World())
    assert voted.metrics == again.metrics


def test_voting_is_the_mean_of_probabilities() -> None:
    task = small_run().test_evaluator.task
    passes = [{"probabilities": torch.tensor([[0.9, 0.1]])}, {"probabilities": torch.tensor([[0.2, 0.8]])}]
    assert torch.allclose(task.vote(passes)["probabilities"], torch.tensor([[0.55, 0.45]]))


def test_workers_read_what_the_process_itself_reads() -> None:
    built = small_run()
    alone = built.test_evaluator(built.job.model, World())
    ahead = dataclasses.replace(built.test_evaluator, workers=2)(built.job.model, World())
    assert (ahead.metrics, ahead.losses) == (alone.metrics, alone.losses)


# --- the worst classes of `final.json` --------------------------------------------------------------------------------


def evaluated(name: str, state: dict[str, torch.Tensor], **facts: Any) -> Evaluation:
    metric = registry.metrics.build(ComponentConfig(name), facts=facts)
    meter = BoundMetric(metric, None)  # type: ignore[arg-type]
    return make_evaluation([MetricResult(meter, "", state)], num_samples=1, seconds=0.0)


def test_the_least_accurate_classes_come_first_and_those_without_samples_are_left_out() -> None:
    names = ("a", "b", "c", "d", "e", "f", "g")
    right, wrong = (9, 1, 5, 0, 7, 8, 10), (1, 9, 5, 0, 3, 2, 0)  # d has no samples
    confusion = torch.diag(torch.tensor(right))
    for row, count in enumerate(wrong):
        confusion[row, (row + 1) % 7] += count
    found = evaluated("accuracy", {"confusion": confusion}, num_classes=7, class_names=names).hard_classes
    assert found["figure"] == "accuracy"
    assert list(found["classes"].items()) == [("b", 0.1), ("c", 0.5), ("e", 0.7), ("f", 0.8), ("a", 0.9)]


def test_each_class_states_what_it_is_confused_with() -> None:
    """By hand: 2 of 4 of a are called c; b is always right; c is called a and b alike, of which the first is named."""
    confusion = torch.tensor([[1, 1, 2], [0, 3, 0], [1, 1, 0]])
    found = evaluated("accuracy", {"confusion": confusion}, num_classes=3, class_names=("a", "b", "c"))
    assert found.confused_with == {
        "a": {"class": "c", "count": 2, "share": 0.5},
        "c": {"class": "a", "count": 1, "share": 0.5},
    }


def test_each_class_has_an_interval_of_its_samples() -> None:
    """28 of 40 by SciPy, beside 28 of 400, and a class without samples; of points, whose clouds are alike, none."""
    confusion = torch.tensor([[28, 12, 0], [372, 28, 0], [0, 0, 0]])
    names = {"num_classes": 3, "class_names": ("few", "many", "none")}
    [meter] = evaluated("accuracy", {"confusion": confusion}, **names).results
    intervals = make_evaluation([meter], num_samples=440, seconds=0.0).class_intervals
    assert intervals.keys() == {"few", "many"}
    for name, row in intervals.items():
        expected = scipy.stats.binomtest(28, 40 if name == "few" else 400).proportion_ci(method="wilson")
        assert (row["accuracy"]["low"], row["accuracy"]["high"]) == pytest.approx((expected.low, expected.high))
    assert make_evaluation([meter], num_samples=439, seconds=0.0).describe("")["per_class"].keys() == {
        *names["class_names"]
    }
    assert "class_intervals" not in make_evaluation([meter], num_samples=439, seconds=0.0).describe("")


def test_labels_of_points_are_no_samples() -> None:
    """An accuracy of more labels than samples has no interval: points of one cloud are not independent."""
    found = evaluated("accuracy", {"confusion": torch.tensor([[50, 9], [9, 50]])}, num_classes=2)
    assert "interval" not in found.describe("overall_accuracy")
    assert "interval" not in found.describe("other")


def test_the_largest_error_is_the_worst() -> None:
    """Two frames of three joints, the third never labelled."""
    state = {
        "distance_mm": torch.tensor([[1.0, 8.0, 0.0], [3.0, 4.0, 0.0]], dtype=torch.float64),
        "labelled": torch.tensor([[1, 1, 0], [1, 1, 0]]),
    }
    found = evaluated("joint_error", state, num_joints=3, joint_names=("wrist", "tip", "palm")).hard_classes
    assert found == {"figure": "error_mm", "classes": {"tip": 6.0}}


def test_classes_as_good_as_the_best_are_not_hard() -> None:
    state = {"confusion": torch.tensor([[4, 0, 0], [0, 3, 0], [2, 0, 2]])}
    assert evaluated("accuracy", state, num_classes=3, class_names=tuple("abc")).hard_classes["classes"] == {"c": 0.5}


@pytest.mark.parametrize("counts", [[[4]], [[4, 0], [0, 0]], [[0, 4], [4, 0]]])
def test_one_class_is_not_the_worst_of_any(counts: list[list[int]]) -> None:
    size = len(counts)
    state = {"confusion": torch.tensor(counts)}
    assert evaluated("accuracy", state, num_classes=size, class_names=tuple("ab"[:size])).hard_classes == {}


# --- which checkpoint is best: one function decides, by the config, else by the metric --------------------------------


ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if not path.name.startswith("_"))
LOWER = ("error", "distance")
State = dict[str, Tensor]


class Silent(Metric):
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
def register_own(monkeypatch: pytest.MonkeyPatch) -> Add:
    """Registers a metric for one test; the overrides that make a run select by it."""

    def added(metric: type) -> list[str]:
        registry.metrics.names()
        monkeypatch.setitem(
            registry.metrics._entries, "own", RegistryEntry("own", metric, signature_parameters(metric))
        )
        return ["metrics=[{name: accuracy}, {name: own}]", "evaluate.metric=miss_rate"]

    return added


@pytest.mark.parametrize("metric", [MissRate, ByName])
def test_the_metric_states_which_way_is_better(tmp_path: Path, register_own: Add, metric: type) -> None:
    config = make(tmp_path, *register_own(metric)).config
    assert config.evaluate.mode == "min"
    assert str(config.origins["evaluate.mode"]) == "metric 'own': evaluate.mode"


def test_the_metric_that_computes_the_figure_states_it(tmp_path: Path, register_own: Add) -> None:
    """`own` would call a lower accuracy better; it does not compute it."""
    register_own(ByName)
    metrics = "metrics=[{name: accuracy}, {name: own}]"
    assert make(tmp_path, metrics).config.evaluate.mode == "max"


@pytest.mark.parametrize(("metric", "mode"), [(Silent, "min"), (Silent, "max"), (OfAnother, "min"), (MissRate, "min")])
def test_the_config_states_it_where_the_metric_does_not(
    tmp_path: Path, register_own: Add, metric: type, mode: str
) -> None:
    assert make(tmp_path, *register_own(metric), f"evaluate.mode={mode}").config.evaluate.mode == mode


@pytest.mark.parametrize("metric", [Silent, OfAnother])
def test_neither_is_an_error_that_says_how_to_state_it(tmp_path: Path, register_own: Add, metric: type) -> None:
    with pytest.raises(ConfigError) as caught:
        make(tmp_path, *register_own(metric))
    told = str(caught.value)
    assert "evaluate.metric: neither the config nor the metric 'own' states whether a higher 'miss_rate' is" in told
    assert "set evaluate.mode to max or min" in told
    assert f"test_evaluate.{metric.__name__}.higher_is_better" in told


@pytest.mark.parametrize("returned", [0.5, None, {1: 0.5}])
def test_a_metric_that_computes_no_dict_is_named(tmp_path: Path, register_own: Add, returned: Any) -> None:
    own = type("Own", (MissRate,), {"compute": lambda self, state: returned})
    with pytest.raises(ConfigError, match=r"metrics.1: compute of 'own' returned .*; return a dict, name: number"):
        make(tmp_path, *register_own(own))


def test_both_contrary_is_an_error_that_names_both_places(tmp_path: Path, register_own: Add) -> None:
    overrides = register_own(MissRate)
    path = tmp_path / "small.yaml"
    path.write_text(CONFIG.replace("metric: overall_accuracy", "metric: overall_accuracy, mode: max"))
    with pytest.raises(ConfigError) as caught:
        build(read_config(path, overrides), World())
    told = str(caught.value)
    assert f"{path}:8: evaluate.mode: found max, but the metric states min for 'miss_rate'" in told
    assert "test_evaluate.MissRate.higher_is_better = False; command line: metrics.1" in told


def test_a_statement_in_words_is_refused(tmp_path: Path, register_own: Add) -> None:
    with pytest.raises(ConfigError, match=r"metrics.1: higher_is_better of 'miss_rate' is 'min'; give True or False"):
        make(tmp_path, *register_own(InWords))


def test_best_is_the_lowest_error(tmp_path: Path, register_own: Add) -> None:
    """Four evaluations of a run that learns: the worst was the best before, since 'max' was the default."""
    built = make(
        tmp_path, *register_own(MissRate), "train.epochs=4", "optimizer={name: adam, lr: 3e-3}", "log.tensorboard=false"
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
def test_runs_that_recorded_a_mode_go_on(
    tmp_path: Path, register_own: Add, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their own config they keep what they recorded, with a warning where it contradicts the metric."""
    overrides = register_own(MissRate)
    run = recorded(tmp_path, make(tmp_path, *overrides), mode)
    assert_same_run(run, read_config(tmp_path / "small.yaml", overrides), [])
    own = read_config(run / "config.yaml")
    assert own.evaluate.mode == mode
    assert_same_run(run, own, [])
    told: list[str] = []
    monkeypatch.setattr("sightline.runs.best_checkpoint.logger.warning", lambda text, *words: told.append(text % words))
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
