"""What notes on joints in volumes ask for of any network: layers, the first loss, a few samples."""

from __future__ import annotations

import json
import math
import re
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sightline
from sightline.areas.clouds.models.pointnet import PointNetPlain
from sightline.areas.pose.v2v import V2VSmall
from sightline.contract import registry
from tests.command import run_here
from tests.doctor.segmenting import Logits
from tests.engine.published_weights import registered
from tests.mission.joints_by_hand import draw_gaussians, to_cells
from tests.mission.rows import part, row
from tests.mission.small import (
    CPU,
    NETWORK,
    SOLIDS,
    document,
    find_fault,
    findings,
    learn,
    said,
    skip_but,
)
from tests.mission.volumes import CLOUDS, CUBE, FEW, HANDS, ONCE
from tests.runtime.planted_loops import PLANTS

# --- layers -----------------------------------------------------------------------------------------------------------


@row(
    "S1.7",
    "check forward and backward of every layer, and of every loss",
    "`sightline check CONFIG --deep`, finding `loss-gradient`",
)
def _deep(work: Path) -> None:
    assert "0.99" in find_fault("N8", "layer-gradient", "--deep", cause="model.numerics")["measured"]
    assert find_fault("L9", "loss-gradient")["severity"] == "error"
    with registered(registry.models, off=Off):
        words = (*SOLIDS, "model={name: off}", "losses=[{name: cross_entropy}]", skip_but("layer-forward"), "--deep")
        found = findings(CLOUDS, *words)
    assert "layer-forward" in found
    assert found["layer-forward"]["where"]["layer"] == "head.0.linear"
    assert "off by 0.01 of" in found["layer-forward"]["measured"]


class Off(PointNetPlain):
    """A network of which one linear layer returns a hundredth too much."""

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels, embedding=16)
        self.head[0].linear.__class__ = HundredthMore


class HundredthMore(nn.Linear):
    """A linear layer, but for a hundredth."""

    def forward(self, values: Tensor) -> Tensor:
        return super().forward(values) * 1.01


_ROUGH = """
from sightline.areas.clouds.models.pointnet import PointNetPlain


class Rough(PointNetPlain):
    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels, embedding=16)
        first = self.head[0].linear
        first.forward, exact = lambda values: exact(values).half().to(values.dtype), first.forward
"""


@row("S1.8", "catch a layer that loses precision", "`sightline compare CONFIG --against float64`")
def _precision(work: Path) -> None:
    words = (CLOUDS, *SOLIDS, "--against", "float64", "--steps", 0, *CPU, "--json", work / "found.json")
    assert run_here("compare", *words, *NETWORK).code == 0
    (work / "rough.py").write_text(_ROUGH + '\n\nimport sightline\n\nsightline.register.model("rough")(Rough)\n')
    model = ("model={name: rough}", "losses=[{name: cross_entropy}]", "--plugin", work / "rough.py")
    done = run_here("compare", *words, *model)
    assert done.code == 1, done.err
    assert json.loads((work / "found.json").read_text())["first"]["layer"].startswith("head.0")


# --- the first loss, and a few samples --------------------------------------------------------------------------------


@row(
    "S1.10",
    "explain the first loss of heat maps",
    "`sightline check CONFIG`, note `initial-squares`: `first loss 3.3e-4, all-zero maps 3.2115e-4`",
)
def _first_loss(work: Path) -> None:
    fitted = fit(work, "--samples", 1, "--steps", 1)
    found = fitted["loss"]
    assert found["floor"] < 1e-12 < found["constant"] < found["start"]
    maps = _draw_maps(fitted["samples"]["indices"][0], cells=8)
    assert found["zero"] == pytest.approx((maps**2).mean(), rel=1e-4)
    assert found["constant"] == pytest.approx(maps.var(axis=(1, 2, 3)).mean(), rel=1e-3)  # of one number a joint


def _draw_maps(index: int, *, cells: int, words: tuple[str, ...] = (*FEW, "evaluate.select=test")) -> np.ndarray:
    """Draw the maps (J, V, V, V) of a training frame by NumPy."""
    frame = sightline.load_data(HANDS, "train", overrides=words, transforms="none")[index]
    joints, reference = (frame[name].double().numpy() for name in ("joints", "reference"))
    return draw_gaussians(to_cells(joints, reference, side_mm=200.0, cells=cells), cells)


@part("S1.10", "G")
def _all_zero_maps(work: Path) -> None:
    one = ("data.train_size=1", "data.test_size=3", "train.batch_size=1", "evaluate.select=test", *FEW[3:])
    text = said("check", HANDS, *one, *SPARSE, skip_but("initial-squares"), "--verbose", *CPU)
    numbers = re.search(r"first loss ([^\s,]+), all-zero maps ([^\s,]+), best constants ([^\s,;]+)", text)
    assert numbers is not None, text
    first, zeros, constants = map(float, numbers.groups())
    maps = _draw_maps(0, cells=16, words=one)
    assert zeros == pytest.approx((maps**2).mean(), rel=1e-3)
    assert constants == pytest.approx(maps.var(axis=(1, 2, 3)).mean(), rel=1e-3)
    assert 0 < zeros < first < 1.1 * zeros  # the network begins near zeros
    _assert_published_level()


def _assert_published_level() -> None:
    """Assert that zeros have 3.2115e-4 of a joint well inside 44 cells: (1.7 sqrt(pi) / 44)^3."""
    sizes = ("transforms.train.0.size=88", "transforms.evaluate.0.size=88")
    maps = sightline.load_data(HANDS, "train", overrides=(*FEW, *sizes))[0]["heatmaps"]
    squares = maps.double().square().mean(dim=(1, 2, 3))
    assert float(squares.max()) == pytest.approx((1.7 * math.sqrt(math.pi) / 44) ** 3, rel=1e-4)
    assert f"{float(squares.max()):.4e}" == "3.2115e-04"


SPARSE = ("transforms.train.0.size=32", "transforms.evaluate.0.size=32")
"""Cubes of which heat maps fill a small part, as those of the notes; of 16 voxels a side constants are half of them."""


def fit(work: Path, *words: object, code: int | None = None) -> Any:
    """Over-fit a few hands; return what `sightline fit` writes."""
    done = run_here("fit", HANDS, *FEW, *words, *CPU, "--json", work / "fit.json")
    assert code is None or done.code == code, done.err
    return json.loads((work / "fit.json").read_text())["fit"]


@row(
    "S1.11",
    "have unsuitable initial weights named, of classes and of maps",
    "`sightline check CONFIG`, finding `initial-loss`",
)
def _initial_weights(work: Path) -> None:
    assert "standard deviation 1.31e+03" in find_fault("O10", "initial-loss")["summary"]


@part("S1.11", "G")
def _initial_weights_of_maps(work: Path) -> None:
    class Loud(V2VSmall):
        def likelihood(self, volume: Tensor) -> Tensor:
            return super().likelihood(volume) * 1e5

    with registered(registry.models, loud=Loud):
        assert "initial-loss" in findings(HANDS, *FEW, skip_but("initial-loss"), "model={name: loud}")


@row(
    "S1.12",
    "be told that a loss sits at a trivial plateau",
    "`sightline check RUN`, finding `trivial-plateau`",
    letter="G",
)
def _plateau(work: Path) -> None:
    words = ("optimizer={name: sgd, lr: 1e-9}", "schedule.name=constant", "train.steps=120", "train.epochs=60")
    run = learn("pose/synthetic_hands_v2v_small", work / "run", *FEW, *ONCE, "evaluate.select=test", *words)
    found = findings(run, skip_but("trivial-plateau"))
    assert "trivial-plateau" in found
    assert "the loss stays at the level of all-zero outputs" in found["trivial-plateau"]["summary"]
    measured = found["trivial-plateau"]["measured"]
    numbers = re.search(
        r"^(\S+) at first, (\S+) from step (\d+) to (\d+); .* has (\S+), all-zero outputs (\S+)$", measured
    )
    assert numbers is not None, measured
    start, mean, first, last, trained, zeros = map(float, numbers.groups())
    assert 1 <= first < last <= 120
    squares = [(_draw_maps(index, cells=8) ** 2).mean() for index in range(6)]
    assert zeros == pytest.approx(np.mean(squares), rel=0.01)
    assert [start, mean, trained] == pytest.approx([zeros] * 3, rel=0.2)


@row("S1.13", "over-fit one sample, or several", "`sightline fit CONFIG --samples 1`")
def _over_fit(work: Path) -> None:
    one = fit(work, "--samples", 1, "--steps", 60, code=0)
    assert one["fitted"]
    assert len(one["samples"]["indices"]) == 1
    last = one["attempts"][-1]
    assert last["fitted_after"] <= 60
    goal = one["loss"]["floor"] + 0.1 * (min(one["loss"]["start"], one["loss"]["constant"]) - one["loss"]["floor"])
    reached = [step for step, loss in enumerate(last["losses"]) if loss <= goal]
    assert last["fitted_after"] == reached[0], "a tenth of the way is left"
    assert last["score"] < 15.0, "joints of the sample that is learnt by heart are not near"
    several = (*SOLIDS, *NETWORK, "--samples", 3, "--steps", 40, *CPU)
    assert "3 samples: fitted" in said("fit", CLOUDS, *several)
    stuck = run_here("fit", CLOUDS, *several, "optimizer.lr=1e-9")
    assert stuck.code == 1
    assert "[fit error optim.lr]" in stuck.err
    assert "3 samples: NOT FITTED" in stuck.err


@row(
    "S1.14",
    "tabulate optimisers by number formats",
    "`sightline fit CONFIG --grid`: the recipe's, RMSprop and SGD by float32 and float64",
)
def _optimisers(work: Path) -> None:
    for optimizer in ("{name: sgd, lr: 0.1}", "{name: rmsprop, lr: 1e-3}"):
        words = (
            f"optimizer={optimizer}",
            "train.precision=float64",
            "--samples",
            3,
            "--steps",
            30,
        )
        assert "3 samples: fitted" in said("fit", CLOUDS, *SOLIDS, *NETWORK, *words, *CPU)


@part("S1.14", "H")
def _grid(work: Path) -> None:
    """All begin at one loss; a small first step lowers it by the rate times the squared or the absolute gradients."""
    words = (HANDS, *FEW, "--grid", "--samples", 1, "--steps", 3, "--seconds", 1000, *CPU)
    done = run_here("fit", *words, "--json", work / "grid.json")
    assert len(set(re.findall(r"│ (recipe \(adam\)|rmsprop|sgd) +│ (float32|float64) ", done.out))) == 6, done.err
    grid = json.loads((work / "grid.json").read_text())["fit"]["grid"]
    rows = {(each["optimizer"], each["precision"]): each for each in grid}
    names = ("recipe (adam)", "rmsprop", "sgd")
    assert rows.keys() == {(name, kind) for name in names for kind in ("float32", "float64")}
    starts, falls = {}, {}
    for (name, kind), shown in rows.items():
        attempts = shown["attempts"]
        assert [tried["rate"] for tried in attempts] == [1e-4, 2e-3, 1e-2, 1e-1, 1.0], "the recipe's is 2e-3"
        assert {tried["precision"] for tried in attempts} == {kind}
        starts[name, kind] = {tried["losses"][0] for tried in attempts}
        falls[name, kind] = attempts[0]["losses"][0] - attempts[0]["losses"][1]
        assert len({tuple(tried["losses"]) for tried in attempts}) == 5, "a rate changes nothing"
        best = min(attempts, key=lambda tried: (tried["fitted_after"] or math.inf, tried["lowest_share"] or math.inf))
        assert shown["best_rate"] == best["rate"]
    singles, doubles = (set().union(*(starts[name, kind] for name in names)) for kind in ("float32", "float64"))
    assert len(singles) == len(doubles) == 1
    assert singles != doubles, "float64 is float32"
    assert singles.pop() == pytest.approx(doubles.pop(), rel=1e-4)
    assert all(fall > 0 for fall in falls.values())
    adam, rms, sgd = (falls[name, "float64"] for name in names)
    assert 2 * adam < rms < 10.5 * adam  # the first mean of squares is a hundredth of the square: ten times the step
    assert sgd < 0.5 * adam


@row(
    "S1.15",
    "grow from one sample to the task, rung by rung",
    "`sightline fit CONFIG --grow 1,8,64,all`",
    letter="I",
)
def _ladder(work: Path) -> None:
    """Of twelve classes, evenly: constants are right about one of them, and have a loss of ln 12."""
    quick = ("schedule.name=constant", "transforms.train=[]", "train.epochs=10", *ONCE)
    solids = ("data.train_size=48", *SOLIDS[1:])
    words = (CLOUDS, *solids, *NETWORK, *quick, "--steps", 60, *CPU, "--json", work / "found.json")
    done = run_here("fit", *words, "--grow", "1,2,32,all", "optimizer={name: adam, lr: 1e-2}")
    one, few, many, task = json.loads((work / "found.json").read_text())["ladder"]["rungs"]
    assert [each["rung"] for each in (one, few, many, task)] == [1, 2, 32, "all"]
    assert one["verdict"] == "not judged", "batch norm takes two"
    text = " ".join(done.err.split())
    for each in (few, many):
        assert each["verdict"] == "passed"
        assert 0 < each["figures"]["fitted_after"] <= 60
        assert each["figures"]["way_left"] <= 0.1
        assert f"rung {each['rung']}: passed" in text
    assert many["figures"]["best_constant"] == pytest.approx(1 / 12)
    assert many["figures"]["held_out"] > 1 / 12, "the fitted network scores no better than a constant"
    reached = task["figures"]
    assert reached["steps"] == 50  # ten epochs of 36 samples
    assert reached["constant"] == pytest.approx(1 / 12)
    assert reached["constant_loss"] == pytest.approx(math.log(12), rel=1e-3)
    assert reached["last_loss"] < 0.8 * reached["constant_loss"]
    assert reached["of_training"] > 0.3
    assert reached["closeness"] == pytest.approx((reached["held_out"] - 1 / 12) / (11 / 12))
    assert (task["verdict"] == "passed") == (reached["closeness"] >= 0.25)
    stuck = run_here("fit", *words, "--grow", "2,4", "optimizer={name: adam, lr: 1e-9}")
    assert stuck.code == 1
    tried = json.loads((work / "found.json").read_text())["ladder"]["rungs"]
    assert [(each["rung"], each["verdict"]) for each in tried] == [(2, "failed")], "the climb ends there"


class Rectified(V2VSmall):
    """A network of volumes that ends in a ReLU: the bug of the notes."""

    def likelihood(self, volume: Tensor) -> Tensor:
        return torch.nn.functional.relu(super().likelihood(volume))


@row(
    "S1.16",
    "have a ReLU that ends a network of volumes named",
    "`sightline check CONFIG`, cause `model.activation`; `sightline fit CONFIG`: an error",
    letter="J",
)
def _final_relu(work: Path) -> None:
    small = ("data.train_size=2", "data.test_size=2", "train.batch_size=1", *FEW[3:])
    small += ("transforms.train.0.size=24", "transforms.evaluate.0.size=24")  # see SPARSE
    with registered(registry.models, rectified=Rectified):
        found = findings(HANDS, *small, "model={name: rectified}")
        named = [finding for finding in found.values() if finding["cause"] == "model.activation"]
        assert [finding["severity"] for finding in named] == ["warning"]
        fitted = run_here("fit", HANDS, *small, "model={name: rectified}", "--steps", 20, *CPU)
        assert fitted.code == 1
        assert "[fit error model.activation]" in fitted.err
    assert "model.activation" not in [finding["cause"] for finding in findings(HANDS, *small).values()]


@row(
    "S1.17",
    "watch the gradients of every layer, and find dead units",
    "`sightline train CONFIG log.gradients=true`, finding `dead-units`",
)
def _gradients(work: Path) -> None:
    with registered(registry.models, watched=Watched):
        words = (*FEW, "evaluate.select=test", "log.gradients=true", "model={name: watched}")
        run = learn("pose/synthetic_hands_v2v_small", work / "run", *words)
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    norms = {name: value for name, value in line.items() if name.startswith("gradient/")}
    expected = Watched.norms()
    assert {"gradient/stem.0.conv", "gradient/output"} <= expected.keys()
    assert norms == pytest.approx(expected, rel=1e-4)
    assert sum(value**2 for value in norms.values()) ** 0.5 == pytest.approx(line["grad_norm"], rel=1e-4)
    assert "dead-units" in [finding.code for finding in PLANTS["dead units"].run().findings]


class Watched(V2VSmall):
    """The small network; it keeps the gradient that each parameter of the last one that was made gets first."""

    gradients: ClassVar[dict[str, Tensor]] = {}

    def __init__(self, *, num_joints: int) -> None:
        super().__init__(num_joints=num_joints)
        self.gradients.clear()
        for name, parameter in self.named_parameters():
            parameter.register_post_accumulate_grad_hook(partial(self._keep, name))

    def _keep(self, name: str, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self.gradients.setdefault(name, parameter.grad.detach().double().clone())

    @classmethod
    def norms(cls) -> dict[str, float]:
        """Compute the norm of the gradients of each layer, by the names that the log has."""
        squares: dict[str, float] = {}
        for name, gradient in cls.gradients.items():
            layer = f"gradient/{name.rpartition('.')[0]}"
            squares[layer] = squares.get(layer, 0.0) + float(gradient.square().sum())
        return {layer: total**0.5 for layer, total in squares.items()}


@row(
    "S1.18",
    "follow samples through the layers, and state beforehand what must hold",
    "`sightline fit CONFIG --trace`, `expect: [{layer: head, zeros: [0, 0.5]}]`",
    letter="K",
)
def _trace(work: Path) -> None:
    words = (*SOLIDS, *NETWORK, "--samples", 2, "--steps", 3, *CPU)
    text = run_here("fit", CLOUDS, *words, "--trace").out
    assert "encode.0.linear" in text
    assert "head.2" in text
    broken = run_here("fit", CLOUDS, *words, "--trace", "expect=[{layer: head.2, mean: [1000, 2000]}]")
    assert broken.code == 1
    assert "head.2" in broken.err
    _assert_known_trace(work)


class Fixed(nn.Module):
    """A layer that returns four known numbers, whatever it gets."""

    def forward(self, points: Tensor) -> Tensor:
        return points.new_tensor([0.0, 0.0, 1.0, 3.0])


class Answer(nn.Module):
    """A layer that returns the same scores for all samples: zeros before training."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(num_classes))

    def forward(self, points: Tensor) -> Tensor:
        return self.scores.expand(len(points), -1)


class Known(sightline.Model):
    """A network of which all that a trace shows is known."""

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.fixed, self.answer = Fixed(), Answer(num_classes)

    def forward(self, *, points: Tensor) -> Logits:
        return {"logits": self.answer(points) + 0 * self.fixed(points).sum()}


def _assert_known_trace(work: Path) -> None:
    """Assert what a trace says of layers that are known.

    The gradient of the mean cross entropy at equal scores is 1/12 of each class, less 1 of the true one, by two.
    """
    words = ("model={name: known}", "losses=[{name: cross_entropy}]", "--samples", 2, "--steps", 3)
    expect = "expect=[{layer: fixed, zeros: [0, 0.5], mean: [0.9, 1.1]}, {layer: fixed, zeros: [0, 0.4]}]"
    with registered(registry.models, known=Known):
        run_here("fit", CLOUDS, *SOLIDS, *words, "--trace", expect, *CPU, "--json", work / "trace.json")
    found = json.loads((work / "trace.json").read_text())
    before, after = ({layer["layer"]: layer for layer in snapshot["layers"]} for snapshot in found["fit"]["trace"])
    names = ("mean", "std", "min", "max", "zeros")
    for snapshot in (before, after):
        assert [snapshot["fixed"][name] for name in names] == pytest.approx([1.0, 1.5**0.5, 0.0, 3.0, 0.5])
    assert [before["answer"][name] for name in names] == [0.0, 0.0, 0.0, 0.0, 1.0]
    assert before["answer"]["gradient"] == pytest.approx(((121 + 11) / 144 / 2) ** 0.5, rel=1e-4)
    assert before["answer"]["weight_gradient"] > 0
    assert before["answer"]["shape"] == [2, 12]
    assert after["answer"]["std"] > 0 == after["answer"]["zeros"]
    broken = [finding["summary"] for finding in found["findings"] if finding["code"] == "expect"]
    assert broken == [f"fixed: zeros is not as expected {when}" for when in ("before the first step", "after 4 steps")]


@row(
    "S1.19",
    "compare a small network with the full one",
    "`sightline study CONFIG --arm small= --arm 'published=model={name: v2v}' --out DIR`",
)
def _two_sizes(work: Path) -> None:
    size = CUBE.replace("16", "32")
    few = (*FEW[:3], f"transforms.train={size}", f"transforms.evaluate={size}", "train.precision=float32")
    arms = ("--arm", "small=", "--arm", "published=model={name: v2v}", "--seeds", 1, *CPU, "--out", work / "out")
    text = said("study", HANDS, *few, "train.steps=1", "evaluate.select=test", "log.tensorboard=false", *arms)
    shown = re.search(r"│ small │ 1 │ (\d+\.\d+) │.*│ published │ 1 │ (\d+\.\d+) │", text)
    assert shown is not None, text
    runs = [work / f"out/arm_{arm}/seed_0" for arm in ("small", "published")]
    sizes = [sum(p.numel() for p in sightline.load_run(run).model.parameters()) for run in runs]
    assert sizes == [72357, 3410453]
    errors = [document(run)["metrics"]["mean_error_mm"] for run in runs]
    assert [float(number) for number in shown.groups()] == pytest.approx(errors, rel=1e-3)
    assert errors[0] != errors[1]
