"""Over-fitting: healthy runs are fitted, beside what constants reach; of planted faults the cause is named."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sightline.config import read_config
from sightline.doctor.evidence.levels import LossBounds
from sightline.engine.build import TrainingSetup, build
from sightline.engine.distributed import World
from sightline.workbench.fit.fit import OWN, FitResult, fit_samples
from sightline.workbench.fit.samples import choose_samples, measure_bounds, move_batch, training_score
from tests.cases import run_each
from tests.command import run_here, succeed
from tests.doctor.planting import Wrapped, assert_complete, with_data, with_losses
from tests.fit import nets
from tests.fit.nets import run
from tests.limits import ENDLESS_S
from tests.runs.small import ROOT, TINY


def fitted(built: TrainingSetup, samples: int = 2, steps: int = 30, seconds: float = ENDLESS_S) -> FitResult:
    return fit_samples(built, samples, lambda line: None, steps=steps, seconds=seconds)


# --- healthy ---------------------------------------------------------------------------------------------------------


def test_a_healthy_run_is_fitted_by_its_own_optimiser_and_no_other_is_tried(tmp_path: Path) -> None:
    result = fitted(run(tmp_path, model=nets.Net()))
    assert result.is_fitted
    assert result.findings == ()
    assert {each.optimizer for each in result.attempts} == {OWN}
    assert result.attempts[-1].score == 1.0


def test_twice_the_same_numbers_and_nothing_of_the_run_is_changed(tmp_path: Path) -> None:
    built = run(tmp_path, "model.dropout=0.5", "model.embedding=8")
    before = {name: value.clone() for name, value in built.job.model.state_dict().items()}
    state = torch.get_rng_state()
    first = fitted(built, steps=6).to_dict()
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(3)
    assert fitted(built, steps=6).to_dict() == first
    assert all(torch.equal(before[name], value) for name, value in built.job.model.state_dict().items())
    assert not built.job.optimizer.state


def test_the_first_loss_and_the_losses_are_those_of_plain_steps(tmp_path: Path) -> None:
    """Against a loop written out by hand: SGD without momentum on the same clouds."""
    net = nets.Net()
    result = fitted(run(tmp_path, "optimizer.momentum=0", model=net), steps=6)
    batch = result.samples.batch
    plain = nets.Net()
    plain.load_state_dict(net.state_dict())
    seen = []
    for _ in range(7):
        loss = nn.functional.cross_entropy(plain(points=batch["points"])["logits"], batch["label"])
        seen.append(loss.item())
        plain.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in plain.parameters():
                assert parameter.grad is not None
                parameter -= 0.1 * parameter.grad
    own = result.attempts[0]
    assert own.rate == 0.1
    assert own.losses == pytest.approx(seen[: len(own.losses)], rel=1e-5)


def test_augmentation_is_off_and_named(tmp_path: Path) -> None:
    built = run(tmp_path, "transforms.train=[{name: jitter}, {name: shuffle_points}]")
    assert choose_samples(built, None).left_out == ("jitter",)
    assert len(choose_samples(built, None).indices) == 4


def test_the_time_is_bounded(tmp_path: Path) -> None:
    result = fitted(run(tmp_path, "optimizer.lr=1e-7", model=nets.Net()), seconds=0.0)
    assert {(each.stop, len(each.losses)) for each in result.attempts} == {("time", 1)}
    assert result.verdict == "stopped by time"
    assert [(each.severity, each.cause) for each in result.findings] == [("warning", "sys.resource")]
    assert "rate 1e-07: 0 of 30 steps" in result.findings[0].measured


class Normed(nets.Net):
    """The head reads vectors that a batch norm has divided by their spread over the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(64)

    def forward(self, *, points: Tensor) -> nets.Logits:
        return {"logits": self.head(self.norm(torch.relu(self.each(points)).amax(1)))}


def test_after_the_statistics_are_taken_evaluation_gives_what_training_gave(tmp_path: Path) -> None:
    built = run(tmp_path, model=Normed())
    samples, model = choose_samples(built, 3), built.job.model
    batch = move_batch(samples.batch, built.job, built.job.precision)
    with torch.no_grad():
        expected = model.train()(points=batch["points"])["logits"]
        score = training_score(built, built.job, batch, samples.indices)
        found = model.eval()(points=batch["points"])["logits"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert score == pytest.approx(float((expected.argmax(1) == batch["label"]).double().mean()))


def assert_fitted(name: str, overrides: tuple[str, ...]) -> None:
    words = ["data.train_size=60", "data.test_size=24", *overrides]
    result = fitted(build(read_config(ROOT / "configs" / f"{name}.yaml", words), World()), samples=4, steps=40)
    assert result.is_fitted, result.findings
    assert [finding for finding in result.findings if finding.severity != "note"] == []


def test_a_recipe_is_fitted() -> None:
    """Larger ones: tests/long/test_recipes.py."""
    small = ("data.num_points=64", "model={num_centres: [32, 16], num_neighbours: 8}")
    assert_fitted("classify/synthetic_shapes_pct", small)


# --- the losses that need no network ---------------------------------------------------------------------------------


def bounded(built: TrainingSetup, samples: int = 3) -> LossBounds:
    return measure_bounds(built, choose_samples(built, samples).batch)


def test_the_floor_of_smoothed_labels_and_the_best_constant_are_entropies(tmp_path: Path) -> None:
    """Label smoothing 0.3 over the others of 12 classes; the best constant is the mean of the targets."""
    built = run(tmp_path, "losses=[{name: cross_entropy, label_smoothing: 0.3}]", model=nets.Net())
    bounds = bounded(built)
    targets = torch.full((3, 12), 0.3 / 11, dtype=torch.float64)
    targets[range(3), choose_samples(built, 3).batch["label"]] = 0.7
    entropies = -(targets * targets.log()).sum(1)
    assert bounds.floor == pytest.approx(float(entropies.mean()), abs=1e-8)
    assert bounds.constant == pytest.approx(float(-(targets.mean(0) * targets.mean(0).log()).sum()), abs=1e-6)
    assert bounds.floor is not None
    assert bounds.goal == pytest.approx(0.9 * bounds.floor + 0.1 * min(bounds.start, bounds.constant))


def test_the_best_constant_of_squares_is_the_mean(tmp_path: Path) -> None:
    built = nets.regression(tmp_path)
    bounds = bounded(built)
    target = choose_samples(built, 3).batch["target"]
    assert bounds.floor == pytest.approx(0.0, abs=1e-12)
    assert bounds.constant == pytest.approx(float((target - target.mean(0)).square().mean()), rel=1e-5)


def test_the_floor_of_rows_that_are_told_apart() -> None:
    """NT-Xent of M pairs, temperature t: M directions as far apart as they can be have cosines -1 / (M - 1)."""
    small = ("data.num_points=32", "data.train_size=40", "model.points={name: dgcnn, num_neighbours: 4, embedding: 16}")
    config = ROOT / "configs" / "contrast" / "synthetic_shapes_intrapoint_parts.yaml"
    hot = "losses.0.temperature=1.0"
    bounds = bounded(build(read_config(config, [*small, "data.target=class", hot]), World()), samples=4)
    assert bounds.floor == pytest.approx(math.log(1 + 6 * math.exp(-1 / 3 - 1)), abs=1e-4)
    assert bounds.constant == pytest.approx(math.log(7), abs=1e-6)


def test_one_target_proves_nothing(tmp_path: Path) -> None:
    edit = lambda batch, keys: {**batch, "label": 0 * batch["label"]}  # noqa: E731
    alone = with_data(run(tmp_path, model=nets.Net()), lambda inner: Wrapped(inner, edit))
    assert [finding.cause for finding in fitted(alone).findings] == ["data.target_encoding"]


# --- planted ---------------------------------------------------------------------------------------------------------

DECAYING = "optimizer={name: adam, lr: 0.03, weight_decay: 100.0}"
PLANTED: dict[str, tuple[str, Callable[[Path], TrainingSetup]]] = {
    "sign": ("loss.sign", lambda p: with_losses(run(p, model=nets.Net()), {"cross_entropy": nets.MinusEntropy()})),
    "constant": ("model.constant_output", lambda p: run(p, model=nets.Constant())),
    "low rate": ("optim.lr", lambda p: run(p, "optimizer.lr=1e-8", model=nets.Net())),
    "clip": ("optim.clip", lambda p: run(p, "train.clip_norm=1e-6", model=nets.Net())),
    "shape": ("cfg.contract", lambda p: run(p, model=nets.Narrow())),
    "relu": ("model.activation", lambda p: nets.regression(p, model=nets.Dead())),
    "decay": ("optim.hyper", lambda p: run(p, DECAYING, model=nets.Net())),
}
"""Cause that is named, and the run."""


@run_each("name", PLANTED)
def test_the_cause_of_a_planted_fault_is_named(name: str, tmp_path: Path) -> None:
    cause, make = PLANTED[name]
    result = fitted(make(tmp_path), samples=3)
    assert not result.is_fitted
    (finding,) = result.findings
    assert finding.severity == "error"
    assert cause in (finding.cause, *finding.alternatives), str(finding)
    assert_complete(finding)
    json.dumps(result.to_dict(), allow_nan=False)


# --- slow, or stuck --------------------------------------------------------------------------------------------------

ADAM = "optimizer={name: adam, lr: 1e-4}"
VOLUMES = (
    "data.train_size=40",
    "data.test_size=8",
    "transforms.train=[{name: place_cube, size: 16}, {name: voxelize}, {name: draw_heatmaps}]",
    "transforms.evaluate=[{name: place_cube, size: 16}, {name: voxelize}, {name: draw_heatmaps}]",
    "optimizer={name: adam, lr: 1e-4}",
)


def volumes(folder: Path, *overrides: str) -> TrainingSetup:
    return build(read_config(ROOT / "configs/pose/synthetic_hands_v2v_small.yaml", [*VOLUMES, *overrides]), World())


Make = Callable[..., TrainingSetup]
PACES: dict[str, tuple[str, int, Make]] = {
    "classes": ("not yet", 40, lambda p, *o: run(p, "optimizer.lr=1e-3", *o, model=nets.Net())),
    "vectors": ("not yet", 30, lambda p, *o: nets.regression(p, ADAM, *o)),
    "batch norms": ("not yet", 12, lambda p, *o: run(p, "optimizer={name: adam, lr: 1e-5}", "model.embedding=8", *o)),
    "volumes": ("not yet", 6, volumes),
    "constant": ("not fitted", 20, lambda p, *o: run(p, *o, model=nets.Constant())),
    "dead": ("not fitted", 20, lambda p, *o: nets.regression(p, *o, model=nets.Dead())),
    "bounded": ("not fitted", 30, lambda p, *o: nets.regression(p, *o, model=nets.Bounded())),
    "probabilities": ("not fitted", 60, lambda p, *o: run(p, *o, model=nets.Probabilities())),
    "low rate": ("not fitted", 30, lambda p, *o: run(p, "optimizer.lr=1e-6", *o, model=nets.Net())),
    "clip": ("not fitted", 30, lambda p, *o: run(p, "train.clip_norm=1e-6", *o, model=nets.Net())),
}
"""Verdict after so many steps, on three seeds, and the run."""


@run_each("name", PACES)
def test_a_network_that_needs_more_steps_is_told_from_one_that_is_stuck(name: str, tmp_path: Path) -> None:
    verdict, steps, make = PACES[name]
    for seed in range(3):
        torch.manual_seed(seed)
        result = fitted(make(tmp_path, f"seed={seed}"), samples=4, steps=steps)
        assert result.verdict == verdict, [(each.rate, each.lowest_share) for each in result.attempts]
        assert [each.severity for each in result.findings] == ["warning" if verdict == "not yet" else "error"]


@run_each("steps", [4, 6, 8, 10])
def test_few_steps_are_no_error(steps: int, tmp_path: Path) -> None:
    """Of a rate so low that nothing is fitted by any of these numbers, nor by Adam's."""
    result = fitted(run(tmp_path, "optimizer.lr=1e-3", model=nets.Net()), samples=16, steps=steps)
    assert (result.verdict, [each.severity for each in result.findings]) == ("not yet", ["warning"])
    assert "--steps " in result.findings[0].action


def test_the_steps_that_are_named_suffice(tmp_path: Path) -> None:
    make = lambda: run(tmp_path, "optimizer.lr=1e-2", model=nets.Net())  # noqa: E731
    torch.manual_seed(0)
    first = fitted(make(), samples=4, steps=20)
    assert "the loss still falls" in first.findings[0].summary
    steps = int(first.findings[0].action.rpartition(" ")[2])
    torch.manual_seed(0)
    assert fitted(make(), samples=4, steps=steps).is_fitted


def test_another_rate_than_the_recipes_is_noted(tmp_path: Path) -> None:
    torch.manual_seed(0)
    result = fitted(run(tmp_path, "optimizer.lr=1e-2", model=nets.Net()), samples=4, steps=60)
    assert [each.is_fitted for each in result.attempts] == [False, False, True]
    (finding,) = result.findings
    assert (finding.severity, finding.cause) == ("note", "optim.lr")
    assert "rate 0.1: fitted after" in finding.measured
    assert "10 times the recipe's" in finding.action


# --- the command -----------------------------------------------------------------------------------------------------

SMALL = ("model.embedding=8", "--steps", "12", "--samples", "2")


def test_what_is_not_fitted_is_an_error_and_names_the_cause(tmp_path: Path) -> None:
    code, out, err = run_here("fit", TINY, *SMALL, "optimizer.lr=1e-8")
    assert code == 1
    assert "[fit error optim.lr] the recipe's optimiser does not fit these samples, Adam does" in err
    assert "2 samples: NOT FITTED" in err
    assert "adam" in out


def test_a_fit_its_grid_and_its_layers_are_shown_and_written(tmp_path: Path) -> None:
    expected = "expect=[{layer: head, at: last, zeros: [0.5, null]}, {layer: head, shape: [null, 12]}]"
    words = (*SMALL, "--grid", "--trace", expected, "--json", tmp_path / "found.json")
    code, out, err = run_here("fit", TINY, *words)
    assert code == 1
    assert "recipe" in out
    assert "2 samples: fitted" in err
    assert "the best constants" in err
    assert "[expect error model.init] head: zeros is not as expected after" in err
    assert "expected: zeros at least 0.5" in err
    assert out.count("float32") == out.count("float64") == 3
    assert out.count("encode.0.linear") == 2
    found = json.loads((tmp_path / "found.json").read_text())["fit"]
    assert (found["fitted"], found["verdict"]) == (True, "fitted")
    assert found["loss"]["floor"] < found["loss"]["constant"]
    assert len(found["grid"]) == 6
    assert found["trace"][0]["step"] == 0


def test_a_ladder_is_told_and_written(tmp_path: Path) -> None:
    words = ("model.embedding=8", "--steps", "12", "--grow", "1,8", "--json", tmp_path / "found.json")
    _, _, err = succeed("fit", TINY, *words)
    assert "rung 1: not judged; batch norm takes two samples or more" in err
    assert "rung 8: passed; fitted after" in err
    rungs = json.loads((tmp_path / "found.json").read_text())["ladder"]["rungs"]
    assert [(each["rung"], each["verdict"]) for each in rungs] == [(1, "not judged"), (8, "passed")]


def test_expectations_of_the_initial_weights_are_judged_without_a_fit() -> None:
    entries = "expect=[{layer: head, at: first, std: [0, 0.01]}, {layer: head, at: last, std: [0, 0.01]}]"
    code, _, err = run_here("check", TINY, "model.embedding=8", entries)
    assert code == 1
    assert err.count("[expect error") == 1


@run_each(
    "words, told",
    [
        (("--samples", "5000"), "the training part has 48 samples"),
        (("--grow", "8,1"), "--grow 8,1: rungs must rise, as 1,8,64,all"),
        (("--grow", "8,8"), "--grow 8,8: rungs must rise"),
        (("--grow", "all,64"), "--grow all,64: rungs must rise"),
        (("--grow", "0"), "--grow 0: '0' is no rung; give numbers of samples from 1, and all for the task"),
        (("--grow", "1,,8"), "--grow 1,,8: '' is no rung"),
        (("--grow", ""), "--grow : '' is no rung"),
        (("--grow", "8,5000"), "--grow: rung 5000: the training part has 48 samples; give at most as many"),
        (("--grow", "1,8", "--grid"), "--grid: is not taken with --grow, whose rungs are numbers of samples"),
        (("--grow", "1,8", "--samples", "2"), "--samples: is not taken with --grow"),
        (("--budget", "3"), "No such option: --budget"),
        (("expect=[{layer: haed, std: [0, 1]}]",), "expect.0.layer: no layer 'haed' is called .*did you mean 'head'"),
    ],
)
def test_mistakes_are_one_line_and_two(words: tuple[str, ...], told: str) -> None:
    code, _, err = run_here("fit", TINY, "model.embedding=8", *words)
    assert code == 2, err
    assert re.search(told.replace("(", r"\(").replace(")", r"\)"), err), err
    assert "Traceback" not in err
