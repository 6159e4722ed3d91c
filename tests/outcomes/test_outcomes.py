"""Trainings that end at chance are heard of, uneasy healthy ones are not; observers leave every bit as it is."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sightline
from sightline.config import read_config
from sightline.doctor.evidence import Evidence
from sightline.doctor.evidence.outcomes.modes import compare_modes
from sightline.doctor.examine import examine
from sightline.doctor.record import LossLevels, ModeGap, Record, Scored, Sizes
from sightline.doctor.rules import find_by
from sightline.doctor.rules.outcomes import mode_gap
from sightline.doctor.watch.record_monitor import RecordMonitor
from sightline.engine.build import build
from sightline.engine.distributed import World
from tests.cases import run_each
from tests.command import run_here, succeed
from tests.outcomes import healthy, spoiling
from tests.outcomes.spoiling import ENTRIES, RECIPES, SIZES, make_network

SEEDS = (0, 1, 2)
DAILY = {
    *(("norm", entry, size, 0) for entry, size in zip(ENTRIES, (1e12, 1e18, 1e9, 1e9), strict=True)),
    *(("plain", entry, size, 1) for entry, size in zip(ENTRIES, (1e6, 1e3, 1e3, 1e3), strict=True)),
    *(("run", entry, size, 0) for entry, size in zip(ENTRIES, (1e6, 1e12, 1e6, 1e18), strict=True)),
}
CASES = list(itertools.product(RECIPES, ENTRIES, SIZES, SEEDS))


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.CRITICAL, logger="sightline"):
        yield


def assert_heard(recipe: str, entry: str, size: float, seed: int) -> bool:
    """A number that costs a fifth of the samples is named; return True if it does."""
    without, trained = spoiling.train(recipe, seed), spoiling.train(recipe, seed, entry, size)
    assert not without.alarms
    is_harmed = not without.figure - trained.figure <= 0.2
    assert trained.alarms or not is_harmed, f"step {trained.step}: {without.figure:.3f}, then {trained.figure:.3f}"
    return is_harmed


@run_each("recipe", RECIPES)
def test_a_number_that_leaves_a_training_at_chance_is_heard_of(recipe: str) -> None:
    """Four ways in for each recipe; some of these numbers do harm."""
    assert any([assert_heard(*case) for case in sorted(DAILY) if case[0] == recipe])


@pytest.mark.long
@pytest.mark.parametrize(("recipe", "seed"), [*itertools.product(RECIPES, SEEDS)])
def test_of_180_numbers_each_that_does_harm_is_heard_of(recipe: str, seed: int) -> None:
    assert any([assert_heard(recipe, entry, size, seed) for entry in ENTRIES for size in SIZES])


@run_each("kind", ["log-normal", "student", "powers", "unstable", "restarts", "mosaics"])
def test_uneasy_numbers_are_no_alarm(kind: str) -> None:
    assert healthy.train(kind, 0, has_norms=True) == []


@pytest.mark.long
@pytest.mark.parametrize("kind", healthy.KINDS)
def test_sixty_uneasy_trainings_raise_no_alarm(kind: str) -> None:
    for seed, has_norms in itertools.product(SEEDS, (True, False)):
        assert healthy.train(kind, seed, has_norms=has_norms) == [], (seed, has_norms)


# --- where a finding is ---


def codes(record: Record) -> list[str]:
    return [finding.code for finding in examine(Evidence({"record": record}, 1.0)).findings]


@run_each("scale", [1e-12, 1.0, 1e12])
def test_inputs_are_compared_without_a_scale(scale: float) -> None:
    for factor, expected in ((20.0, []), (1e4, ["far-input"])):
        sizes = Sizes()
        for step in range(1, 101):
            sizes.add(step, scale * (factor if step == 60 else 1 + step % 7 / 10), row=step)
        found = examine(Evidence({"record": Record(inputs={"x": sizes})}, 1.0)).findings
        assert [finding.code for finding in found] == expected
        assert all((finding.where.step, finding.where.sample) == (60, 60) for finding in found)


def test_a_loss_of_120_among_losses_of_1_7_is_named_with_its_gradient() -> None:
    """The first steps of a detector, as they were."""
    levels = LossLevels()
    jumped = [levels.add(step, loss) for step, loss in enumerate((1.80, 1.72, 1.80, 1.64, 1.74, 120.0, 1.89), 1)]
    assert jumped == [False] * 5 + [True, False]
    levels.set_norm(1038.0)
    (found,) = examine(Evidence({"record": Record(losses={"": levels})}, 1.0)).findings
    assert (found.code, found.where.step) == ("loss-jump", 6)
    assert found.measured == "120 among losses of 1.74; at most 1.8 before; the norm of its gradient is 1038"


@run_each(
    "losses",
    [
        # A rare class of a large weight, in batches of seven.
        [0.79, 0.6, 0.65, 0.47, 0.4, 0.29, 0.18, 0.16, 0.12, 0.11, 0.07, 0.07, 0.03, 0.04, 0.03, 0.03, 2.96, 0.04],
        # Batches of nine about a level that has not fallen; later it falls a little by chance.
        [
            *(0.264, 0.334, 0.241, 0.33, 0.33, 0.235, 0.267, 0.212, 0.329, 0.325, 0.409, 0.183, 0.238, 0.294, 0.308),
            *(0.288, 0.268, 0.44, 0.375, 0.225, 0.353, 0.089, 0.299, 0.292, 0.229, 0.23, 0.199, 0.267, 0.274, 0.251),
            *(0.202, 0.21, 0.183, 0.576, 0.371, 0.33, 0.34, 0.168, 0.335, 0.202, 0.278, 0.393, 0.229, 0.207, 0.171),
            *(0.253, 0.317, 0.32, 0.507, 0.181, 0.191, 0.323, 0.176, 0.169, 0.465, 0.363, 0.151, 0.26, 0.154, 0.278),
        ],
    ],
)
def test_losses_of_a_few_samples_go_up_and_down(losses: list[float]) -> None:
    levels = LossLevels()
    for step, loss in enumerate(losses, 1):
        levels.add(step, loss)
    assert codes(Record(losses={"": levels})) == []


@run_each(
    "values, losses, is_over, expected",
    [
        ((0.9, 0.95, 0.1), (1.0, 0.5, 0.1), True, ["metric-fall"]),
        ((0.9, 0.95, 0.1), (1.0, 0.5, 0.1), False, []),  # the next one may be as good as ever
        ((0.9, 0.95, 0.1, 0.12), (1.0, 0.5, 0.1, 0.1), False, ["metric-fall"]),
        ((0.9, 0.95, 0.1, 0.96), (1.0, 0.5, 0.1, 0.1), True, []),
        ((0.9, 0.95, 0.1), (1.0, 0.5, 2.0), True, []),  # a training that diverges shows it by its losses
        ((0.9, 0.3, 0.8, 0.2), (1.0, 0.5, 0.4, 0.3), True, []),  # figures that always leap
        ((0.9, 0.95, 0.8), (1.0, 0.5, 0.1), True, []),  # over-fitting
    ],
)
def test_a_figure_falls_while_the_loss_does_not_rise(
    values: tuple[float, ...], losses: tuple[float, ...], is_over: bool, expected: list[str]
) -> None:
    """By hand; of an error in millimetres less is better, and its worsening is the same share."""
    for is_higher_better in (True, False):
        scores = [
            Scored(step, value if is_higher_better else 1 / value, loss)
            for step, (value, loss) in enumerate(zip(values, losses, strict=True))
        ]
        record = Record(metric="m", is_higher_better=is_higher_better, scores=scores, is_over=is_over)
        assert codes(record) == expected


def test_a_figure_of_chance_comes_and_goes() -> None:
    for best, expected in ((0.026, []), (0.26, ["metric-fall"])):
        scores = [Scored(step, best * share, 1.56) for step, share in enumerate((0.6, 1.0, 0.01))]
        assert codes(Record(metric="ap50", is_higher_better=True, scores=scores, is_over=True)) == expected


def test_modes_are_compared_on_copies() -> None:
    torch.manual_seed(0)
    model, inputs = make_network(has_norms=True), torch.randn(32, 8)
    with torch.no_grad():
        for _ in range(200):
            model.train()(torch.randn(32, 8))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    sound = compare_modes(model, ((inputs,), {}), {})
    assert sound.gap < sound.noise
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_var is not None
    norm.running_var.mul_(1e6)
    spoilt = compare_modes(model, ((inputs,), {}), {})
    assert spoilt.gap > 10 * spoilt.noise
    assert spoilt.layer == "1"
    norm.running_var.div_(1e6)
    assert all(torch.allclose(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    frozen = compare_modes(model, ((inputs,), {}), {"4": False})
    assert frozen.gap < sound.gap


def test_statistics_of_few_steps_are_told_from_spoilt_ones() -> None:
    """Small variances take many batches to be reached from 1: more steps mend that, and no earlier checkpoint does."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    inputs = 1e-3 * torch.randn(32, 8)
    for num_steps, is_young in ((40, True), (400, False)):
        with torch.no_grad():
            for _ in range(num_steps):
                model.train()(1e-3 * torch.randn(32, 8))
        found = compare_modes(model, ((inputs,), {}), {})
        assert (found.is_young, "left of its start, 1, after 40 batches" in found.words) == (is_young, is_young)
        gaps = [ModeGap(num_steps, *found, loss=0.1, start=1.0)]
        faults = find_by(mode_gap, record=Record(modes=gaps, is_over=True), mode_gaps=gaps)
        assert [(each.severity, each.action[:20]) for each in faults] == [("note", "train for more steps")] * is_young


class Packed(nn.Module):
    """A network of clouds of several sizes: their points in a row, with offsets."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, points: Tensor, *, offsets: Tensor) -> Tensor:
        return torch.stack([part.mean(0) for part in self.layer(points).tensor_split(offsets[1:-1])])


@run_each("is_packed, row, sample", [(False, 5, 5), (True, 9, 2), (True, 10, 3), (True, 0, 0)])
def test_the_sample_of_a_far_input_is_named(is_packed: bool, row: int, sample: int) -> None:
    torch.manual_seed(0)
    model = Packed() if is_packed else nn.Linear(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    offsets = torch.tensor([0, 3, 7, 10, 16])
    with sightline.watch(model, optimizer=optimizer) as watch:
        for step in range(1, 31):
            points = torch.rand(16, 3)
            if step == 20:
                points[row, 1] = 65535
            outputs = model(points, offsets=offsets) if is_packed else model(points)
            optimizer.zero_grad()
            outputs.square().mean().backward()
            optimizer.step()
    found = {finding.code: finding for finding in watch.findings}
    assert (found["far-input"].where.step, found["far-input"].where.sample) == (20, sample)
    assert (found["loss-jump"].where.step) == 20


# --- runs ---

PLUGIN = """
import sightline

CALLS = [0]


@sightline.register.transform("one_at")
class OneAt(sightline.Transform):
    '''Sets one number of one batch in one call. Source: ours.'''

    def __init__(self, *, at: int, value: float) -> None:
        self.at, self.value = at, value

    def __call__(self, draws, *, points):
        CALLS[0] += 1
        if CALLS[0] == self.at:
            points = points.clone()
            points[4, 0, 0] = self.value
        return {"points": points}
"""


LABELS = """

LABELS = [0]


@sightline.register.transform("label_at")
class LabelAt(sightline.Transform):
    '''Sets one label of one batch in one call. Source: ours.'''

    def __init__(self, *, at: int) -> None:
        self.at = at

    def __call__(self, draws, *, label):
        LABELS[0] += 1
        if LABELS[0] == self.at:
            label = label.clone()
            label[4] = 40
        return {"label": label}
"""


def write_run(folder: Path, *, at: int, epochs: int) -> tuple[str, ...]:
    """Write a config and its plugin; return the words that name both."""
    transforms = {"train": [{"name": "jitter"}, {"name": "one_at", "at": at, "value": 1e6}]}
    document = {**spoiling.CONFIG, "train": {"epochs": epochs, "batch_size": 12}, "transforms": transforms}
    (folder / "config.yaml").write_text(json.dumps(document))
    (folder / "one_at.py").write_text(PLUGIN)
    return str(folder / "config.yaml"), "--plugin", str(folder / "one_at.py"), "--device", "cpu"


def read_findings(run: Path) -> dict[str, dict[str, Any]]:
    return {finding["code"]: finding for finding in json.loads((run / "findings.json").read_text())}


def test_a_run_says_what_left_it_at_chance_and_so_does_check(tmp_path: Path) -> None:
    """Without checks, too: the finding is in its file, on the last screen, and names the sample of the data set."""
    words, out = write_run(tmp_path, at=100, epochs=13), tmp_path / "run"
    shown = succeed("train", *words, "--no-check", "--out", out)
    kept = read_findings(out)
    assert {"far-input", "metric-fall", "mode-gap"} <= set(kept)
    stream = build(read_config(out / "config.yaml"), World()).job.stream
    where = kept["far-input"]["where"]
    assert (where["step"], where["sample"]) == (100, stream.step_keys(99)[0][4].index)
    assert f"sample {where['sample']}, step 100\n  measured: 1e+06; in the 99 batches before" in shown.err, "in full"
    assert "at step 100 the inputs lay far outside" in kept["mode-gap"]["measured"]
    checked = succeed("check", out, *words[1:])
    assert {"[mode-gap warning model.norm_mode]", "[metric-fall warning model.norm_mode]"} <= set(
        re.findall(r"\[[^]]+\]", checked.out + checked.err)
    )


def test_a_resumed_run_keeps_what_it_has_found(tmp_path: Path) -> None:
    words, out = write_run(tmp_path, at=20, epochs=3), tmp_path / "run"
    succeed("train", *words, "--no-check", "--out", out)
    found = read_findings(out)["far-input"]
    succeed("train", *words, "--no-check", "--out", out, "--resume", "auto", "train.epochs=4")
    assert read_findings(out)["far-input"] == found


def test_the_record_of_a_run_changes_no_bit_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {**spoiling.CONFIG, "train": {"epochs": 7, "batch_size": 12}}  # both modes are compared after 54 steps
    left = []
    for name in ("recorded", "bare"):
        if name == "bare":
            for event in ("on_forward", "take_loss", "take_score", "compare", "on_end"):
                monkeypatch.setattr(RecordMonitor, event, lambda *_, **__: ())
        folder = sightline.train_run(config, out=tmp_path / name, checks=False, device="cpu").path
        assert folder is not None
        files = [
            path for path in sorted(folder.rglob("*")) if path.suffix == ".safetensors" or path.name == "state.json"
        ]
        left.append([path.read_bytes() for path in files])
    assert left[0]
    assert left[0] == left[1]


def test_the_record_of_a_loop_changes_no_bit_of_it() -> None:
    left = []
    for is_watched in (True, False):
        torch.manual_seed(0)
        model = make_network(has_norms=True)
        optimizer = torch.optim.Adam(model.parameters())
        with sightline.watch(model, optimizer=optimizer) if is_watched else contextlib.nullcontext() as watch:
            for step in range(1, 121):
                loss = model.train()(torch.randn(16, 8)).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if step % 30 == 0:
                    with torch.no_grad():
                        model.eval()(torch.randn(16, 8))
        if watch is not None:
            assert [gap.step for gap in watch.recording.record.modes] == [60, 120]
        left.append([*model.state_dict().values(), torch.get_rng_state()])
    assert all(torch.equal(one, other) for one, other in zip(*left, strict=True))


def test_a_label_out_of_range_names_its_sample(tmp_path: Path) -> None:
    """A rare one, which no check before the training reads: no traceback, and the finding is kept."""
    words, out = write_run(tmp_path, at=1000, epochs=2), tmp_path / "run"
    plugin = tmp_path / "one_at.py"
    plugin.write_text(plugin.read_text() + LABELS)
    transforms = "transforms.train=[{name: jitter}, {name: label_at, at: 12}]"
    ended = run_here("train", *words, transforms, "--no-check", "--out", out)
    sample = build(read_config(out / "config.yaml"), World()).job.stream.step_keys(11)[0][4].index
    found = read_findings(out)["label-range"]
    assert (ended.code, found["where"]) == (1, {"step": 12, "sample": sample})
    assert ended.err.rpartition("\nerror: ")[2].startswith("[label-range error data.label_mapping] 'label' of a sample")
    assert "Traceback" not in ended.err
