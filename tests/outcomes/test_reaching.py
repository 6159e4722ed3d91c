"""What reaches the loss: targets that are not those of their samples are named, before a run trains or at its end."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import sightline
from sightline.config import read_config
from sightline.contract.draws import Draws
from sightline.contract.transform import Transform
from sightline.doctor.attempts import NotApplicableError
from sightline.doctor.evidence.data.statistics import Confusion
from sightline.doctor.finding import Finding
from sightline.doctor.record import Chance, Record, Scored
from sightline.doctor.rules import find_by
from sightline.doctor.rules.outcomes import answers_at_chance, chance_figure
from sightline.doctor.trace import Trace
from sightline.engine.build import build
from sightline.engine.distributed import World
from sightline.runs.inputs import find_range
from sightline.training.stop_request import StopRequest
from sightline.training.train_result import Reporter
from sightline.training.train_run import train_run
from sightline.workbench.check.targets import chance
from sightline.workbench.check.targets.reaching import Reaching, Target, read_reaching
from sightline.workbench.check.targets.training_targets import training_targets
from tests.outcomes.reaching import SHAPES, Cell, assert_named, train_cell
from tests.planted.planting import Planter

DAILY = [
    *[Cell("shapes", kind, "transform", "label") for kind in ("constant", "shifted", "half", "gone")],
    *[Cell("shapes", kind, "set", "label") for kind in ("constant", "shifted")],
    *[Cell("rooms", kind, "transform", "label") for kind in ("constant", "shifted")],
    Cell("hands", "zero", "transform", "heatmaps"),
    Cell("crowds", "before", "transform", "boxes"),
]
"""Cells of which most end before they train; all are in tests/long/test_chance.py."""


@pytest.mark.parametrize("cell", DAILY, ids=str)
def test_a_run_at_chance_is_named(cell: Cell) -> None:
    findings = train_cell(cell)
    assert_named(cell, findings)
    if cell.side == "transform" and cell.kind in ("constant", "shifted", "zero"):
        (first, *_) = [each for each in findings if each.code == "training-targets"]
        assert "own changes it" in first.measured


def test_a_healthy_run_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the inputs of other samples its network knows nothing of theirs."""
    measured: list[Chance] = []
    measure = chance.measure_chances
    monkeypatch.setattr(chance, "measure_chances", lambda *subject: measured.extend(measure(*subject)) or measured)
    assert train_cell(Cell("shapes", "", "set", "label")) == []
    assert [each.split for each in measured] == ["train", "validation"]
    assert all(each.loss < 0.5 * each.other_loss and each.figure > 2 * each.other_figure for each in measured)


def test_inputs_of_unlike_sizes_are_those_of_the_other_samples() -> None:
    """Rows of a smaller sample are repeated, those of a larger one left out; offsets and labels stay."""
    batch = {"points": torch.arange(5)[:, None], "offsets": torch.tensor([0, 2, 5])}
    others = {"points": torch.arange(10, 15)[:, None], "offsets": torch.tensor([0, 4, 5])}
    assert chance._fit("points", batch, others).flatten().tolist() == [10, 11, 14, 14, 14]
    longer = {"points": torch.arange(10, 17)[:, None], "offsets": torch.tensor([0, 1, 7])}
    assert chance._fit("points", batch, longer).flatten().tolist() == [10, 10, 11, 12, 13]
    assert chance._fit("offsets", batch, others) is batch["offsets"]
    with pytest.raises(NotApplicableError, match="unlike sizes"):
        chance._fit("image", {"image": torch.zeros(2, 3, 4, 4)}, {"image": torch.zeros(2, 3, 5, 4)})


class _StopLater(StopRequest):
    """Request that comes after some looks at it."""

    def __init__(self, num_looks: int) -> None:
        super().__init__()
        self.num_left = num_looks

    def __bool__(self) -> bool:
        self.num_left -= 1
        return self.num_left < 0


@pytest.mark.parametrize(("num_looks", "times"), [(35, 0), (10**6, 1)])
def test_a_run_that_is_stopped_ends_without_further_passes(
    num_looks: int, times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheduler that preempts a run gives it seconds."""
    calls: list[object] = []
    monkeypatch.setattr(chance, "measure_chances", lambda *subject: calls.append(subject) or [])
    config = read_config(SHAPES, ["train.epochs=4", "evaluate.every=1"])
    result = train_run(config, out=tmp_path / "run", device="cpu", reporter=Reporter(), stop=_StopLater(num_looks))
    assert (len(calls), result.document is not None) == (times, bool(times))


# --- targets, by hand -------------------------------------------------------------------------------------------------

_SIZE = 12


def _judge(
    values: Sequence[np.ndarray],
    own: Sequence[np.ndarray] | None,
    *,
    raw: Sequence[np.ndarray] | None = None,
    are_mixed: bool = False,
) -> list[Finding]:
    target = Target(
        "label", [*values], None if own is None else [*own], None if raw is None else [*raw], frozenset((-1,))
    )
    size = len(values)
    steps = [1 + place // 4 for place in range(size)]
    return find_by(training_targets, reaching=Reaching([target], {}, {}, [*range(100, 100 + size)], steps, are_mixed))


def _draw_classes(*shape: int, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [np.asarray(generator.integers(0, 6, shape)) for _ in range(_SIZE)]


def _roll(values: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [values[place - 1] for place in range(len(values))]


CLASSES: dict[str, tuple[Callable[[list[np.ndarray]], list[np.ndarray]], str, str]] = {
    "the same": (lambda own: own, "", ""),
    "one class": (lambda own: [0 * each for each in own], "error", "of one class"),
    "all ignored": (lambda own: [0 * each - 1 for each in own], "error", "is ignored"),
    "shifted": (lambda own: [(each + 1) % 6 for each in own], "error", "samples do not have"),
    "of the sample before": (_roll, "error", "samples do not have"),
    "one merged": (lambda own: [np.where(each == 5, 4, each) for each in own], "note", "as another one: 5 as 4"),
    "one sample": (lambda own: [(own[0] + 1) % 6, *own[1:]], "note", "samples do not have"),
}


@pytest.mark.parametrize("kind", CLASSES)
def test_classes_of_samples(kind: str) -> None:
    spoil, severity, words = CLASSES[kind]
    own = [np.asarray(label) for label in 2 * (3, 1, 4, 1, 5, 2, 0, 5, 3, 5, 0, 2)]
    found = _judge(spoil(own), own)
    assert [each.severity for each in found] == [severity] * bool(severity)
    assert all(words in each.summary and each.where.step in (1, 2) for each in found)


def test_classes_of_points() -> None:
    own = _draw_classes(40)
    assert not _judge([each[::3] for each in own], own)  # a crop
    assert not _judge([np.where(each == 2, -1, each) for each in own], [np.where(each == 2, -1, each) for each in own])
    (one,) = _judge([np.full_like(each, 2) for each in own], own)
    assert (one.severity, one.where.sample, one.where.step) == ("error", 100, 1)
    (gone,) = _judge([np.where(each == 2, -1, each) for each in own], own)
    assert gone.severity == "note"
    assert "do not reach the loss: 2" in gone.summary
    (added,) = _judge([np.append(each, 7) for each in own], own)
    assert added.severity == "note"
    (other,) = _judge([np.where(each == 2, 7, each) for each in own], own)
    assert other.severity == "error"
    assert "12 of 12 samples" in other.measured


def test_classes_in_each_others_place() -> None:
    """Each sample has all classes, so that their sizes alone tell that they are numbered anew."""
    sizes = (60, 25, 10, 5)
    own = [np.repeat(np.arange(4), sizes) for _ in range(_SIZE)]
    (found,) = _judge([(each + 1) % 4 for each in own], own)
    assert found.severity == "error"
    assert "0 as 1, 1 as 2, 2 as 3, 3 as 0" in found.measured
    assert not _judge([each[::2] for each in own], own)


def test_what_evaluation_maps_as_well_is_meant() -> None:
    raw = _draw_classes()
    own = [each // 2 for each in raw]
    assert not _judge(own, own, raw=raw)


def test_classes_that_evaluation_draws_too_are_meant() -> None:
    """A network that is to tell how a cloud was turned has no label of its own."""

    class Turn(Transform):
        """Draws a label."""

        def __call__(self, draws: Draws, *, label: Tensor) -> dict[str, Tensor]:
            return {"label": (12 * draws.uniform(*label.shape[1:])).long()}

    with Planter() as planter:
        planter.add("transforms", Turn)
        blocks = {"train": [{"name": "jitter"}, {"name": "own"}], "evaluate": [{"name": "own"}]}
        built = build(read_config({**SHAPES, "transforms": blocks}), World())
        (target,) = read_reaching(built, is_quick=True).targets
    assert target.is_drawn


def test_mixed_samples_have_classes_of_others() -> None:
    own = _draw_classes(8)
    mixed = [np.concatenate(pair) for pair in itertools.pairwise([*own, own[0]])]
    assert not _judge(mixed, own, are_mixed=True)
    (found,) = _judge([0 * each for each in mixed], own, are_mixed=True)
    assert "of one class" in found.summary


def _draw_numbers(*shape: int) -> list[np.ndarray]:
    generator = np.random.default_rng(1)
    return [generator.normal(size=shape).astype(np.float32) for _ in range(_SIZE)]


NUMBERS: dict[str, tuple[Callable[[list[np.ndarray]], list[np.ndarray]], str]] = {
    "moved": (lambda own: [1.1 * each + 3 for each in own], ""),
    "zeros": (lambda own: [0 * each for each in own], "as zeros"),
    "a third zeros": (lambda own: [each * (place % 3 > 0) for place, each in enumerate(own)], "as zeros"),
    "equal rows": (lambda own: [np.repeat(each[:1], len(each), axis=0) for each in own], "of a sample equal"),
    "alike": (lambda own: [own[0]] * len(own), "alike for all samples"),
    "of the sample before": (_roll, "with the sample after it"),
    "of the sample after": (lambda own: [*own[1:], own[0]], "with the sample before it"),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_of_samples(kind: str) -> None:
    spoil, words = NUMBERS[kind]
    own = _draw_numbers(5, 3)
    found = _judge(spoil(own), own)
    assert len(found) == bool(words)
    assert all(words in each.summary and each.severity == "error" for each in found)


def test_numbers_that_evaluation_lacks() -> None:
    maps = _draw_numbers(2, 4, 4)
    assert not _judge(maps, None)
    assert not _judge([0 * maps[0], *maps[1:]], None)  # no joint is seen
    (found,) = _judge([0 * each for each in maps], None)
    assert "as zeros" in found.summary
    (found,) = _judge([0 * each + 1 for each in maps], None)
    assert "of a sample equal" in found.summary


# --- figures at chance, by hand ---------------------------------------------------------------------------------------


def _find_chance(level: float, *chances: Chance, is_higher_better: bool = True) -> list[str]:
    record = Record(metric="accuracy", is_higher_better=is_higher_better, scores=[Scored(60, 0.1, 1.0)], is_over=True)
    losses = record.losses.setdefault("", type(record.main_losses)())
    for step in range(20):
        losses.add(step, 2.0 if step < 10 else level)
    return [each.severity for each in find_by(chance_figure, record=record, chances=[*chances])]


def test_a_figure_at_chance() -> None:
    fine = Chance("train", 64, 0.02, 8.0, 1.0, 0.1)
    chance = Chance("validation", 64, 8.0, 8.0, 0.08, 0.1)
    assert _find_chance(0.01, fine, chance) == ["warning"]
    assert _find_chance(1.9, fine._replace(loss=2.0, other_loss=2.0, figure=0.1)) == ["note"]
    assert not _find_chance(0.01, fine)
    assert not _find_chance(0.01, chance._replace(loss=4.0))  # overfitted: its outputs are of their samples
    assert not _find_chance(0.01, chance._replace(figure=0.2))
    assert not _find_chance(0.01, Chance("train", 64, 0.01, 0.01, 1.0, 1.0))  # all have one class
    error = Chance("test", 64, 8.0, 8.0, 95.0, 94.0)
    assert _find_chance(0.01, error, is_higher_better=False) == ["warning"]
    assert not _find_chance(0.01, error._replace(figure=40.0), is_higher_better=False)


def test_answers_at_chance() -> None:
    record = Record()
    losses = record.losses.setdefault("", type(record.main_losses)())
    for step in range(60):
        losses.add(step, 2.0 / (step + 1))
    trace = Trace(is_over=True, first_evaluation=7)

    def find(table: np.ndarray) -> list[Finding]:
        return find_by(answers_at_chance, trace=trace, record=record, confusion=Confusion(np.eye(3, dtype=int), table))

    (found,) = find(np.full((3, 3), 20))
    assert found.where.step == 7
    assert "33.3% of 180 are right, 33.3%" in found.measured
    assert not find(np.full((3, 3), 20) + np.diag([30, 30, 30]))
    assert not find(np.full((3, 3), 2))  # too few
    assert not find(np.diag([170, 5, 5]))


@pytest.mark.parametrize("kind", ["constant", "shifted", "before", ""])
def test_a_plain_loop_at_chance_is_named(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(12, 6, generator=generator)
    torch.manual_seed(0)

    def read(size: int) -> TensorDataset:
        inputs = torch.randn(size, 12, generator=generator)
        return TensorDataset(inputs, (inputs @ weights).argmax(1))

    spoil = {"constant": torch.zeros_like, "shifted": lambda each: (each + 1) % 6, "before": lambda each: each.roll(1)}
    train, test = DataLoader(read(240), 16, shuffle=True), DataLoader(read(120), 40)
    model = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 6))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for _ in range(12):
            model.train()
            for inputs, labels in train:
                loss = nn.functional.cross_entropy(model(inputs), spoil.get(kind, lambda each: each)(labels))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            model.eval()
            with torch.no_grad():
                for inputs, _ in test:
                    model(inputs)
    codes = {each.code for each in watch.findings if each.where.step}
    assert codes & {"same-label", "chance-figure"} if kind else not watch.findings


# --- ranges -----------------------------------------------------------------------------------------------------------


def test_numbers_far_outside_of_training() -> None:
    generator = np.random.default_rng(0)
    points = generator.uniform(-1, 1, (64, 3))
    known = find_range(points)
    assert known is not None
    assert known.describe_far("points", known) == ""

    def describe(values: np.ndarray) -> str:
        found = find_range(values)
        assert found is not None
        return known.describe_far("points", found)

    assert describe(5 * points) == ""
    assert describe(100 * points).startswith("points: ")
    assert "in training" in describe(100 * points)
    alone = np.where(np.arange(64)[:, None] == 5, 1.0, 1e-6 * points)
    assert "lone numbers" in describe(alone)
    assert describe(points / 10) == ""
    assert describe(points / 255).startswith("points: at most 0.0039, in training every sample reaches 0.9")
    dark = find_range(points / 255)
    assert dark is not None
    assert known.join(dark).describe_far("points", dark) == "", "training had such samples"
    assert find_range(np.full(3, np.nan)) is None
