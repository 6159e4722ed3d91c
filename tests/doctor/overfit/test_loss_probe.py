"""The loss on its own: floors against closed forms, gradients against wrong ones."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.workbench.fit.fit_attempt import FitSetup
from sightline.workbench.fit.fit_one import FitOptions, make_setup
from sightline.workbench.fit.loss_probe import LossProbe, probe_loss
from tests.doctor.overfit import nets
from tests.doctor.overfit.nets import regression, run, with_loss
from tests.runs.small import ROOT


def probed(built: nets.TrainingSetup, samples: int = 3) -> tuple[LossProbe, FitSetup]:
    bench, _ = make_setup(built, FitOptions(samples=samples))
    return probe_loss(bench), bench


@pytest.mark.parametrize("over", ["others", "all"])
def test_the_floor_of_smoothed_labels_is_the_entropy_of_the_target(tmp_path: Path, over: str) -> None:
    built = run(
        tmp_path, f"losses=[{{name: cross_entropy, label_smoothing: 0.3, smoothing_over: {over}}}]", model=nets.Net()
    )
    probe, _ = probed(built)
    rest = 0.3 / (11 if over == "others" else 12)
    label = 0.7 + (0 if over == "others" else rest)
    assert probe.floor == pytest.approx(-(label * math.log(label) + 11 * rest * math.log(rest)), abs=1e-8)


def test_the_floor_of_a_distance_is_zero_and_its_start_is_the_mean_square(tmp_path: Path) -> None:
    built = regression(tmp_path, nets.Regressor(rectified=False))
    probe, bench = probed(built)
    assert probe.floor == pytest.approx(0.0, abs=1e-12)
    with torch.no_grad():
        heat = built.job.model(points=bench.batch["points"])["heat"]
    assert probe.start == pytest.approx(float((heat - bench.batch["target"]).square().mean()), rel=1e-5)
    assert (probe.inputs, probe.targets, probe.read) == (("points",), ("target",), ("heat",))


def test_the_floor_of_rows_that_are_told_apart(tmp_path: Path) -> None:
    """NT-Xent of M pairs, temperature t: M directions as far apart as they can be have cosines -1 / (M - 1)."""
    from sightline.config import read_config
    from sightline.engine.build import build
    from sightline.engine.distributed import World

    small = ("data.num_points=32", "data.train_size=40", "model.points={name: dgcnn, num_neighbours: 4, embedding: 16}")
    config = ROOT / "configs" / "contrast" / "synthetic_shapes_intrapoint_parts.yaml"
    hot = "losses.0.temperature=1.0"
    probe, _ = probed(build(read_config(config, [*small, "data.target=class", hot]), World()), samples=4)
    cosine = -1 / 3
    assert probe.floor == pytest.approx(math.log(1 + 6 * math.exp(cosine - 1)), abs=1e-4)


class Doubled(nets.Entropy):
    """A gradient twice what its value says."""

    def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
        value = super().forward(logits=logits, label=label)
        return 2 * value - value.detach()


class Kinked(nets.Entropy):
    """Not smooth everywhere, and right."""

    def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
        return F.multi_margin_loss(logits, label, reduction="sum")


def test_gradients_are_held_against_differences(tmp_path: Path) -> None:
    built = run(tmp_path, model=nets.Net())
    ratios = {}
    for name, loss in {
        "right": nets.Entropy(),
        "turned": nets.TurnedGradient(),
        "detached": nets.Detached(),
        "doubled": Doubled(),
        "kinked": Kinked(),
    }.items():
        slope = probed(with_loss(built, loss))[0].slopes["cross_entropy"]
        ratios[name] = slope.ratio
        assert slope.is_right == (name in ("right", "kinked")), name
    assert ratios == pytest.approx({"right": 1, "turned": -1, "detached": 0, "doubled": 2, "kinked": 1}, abs=1e-2)


def test_a_loss_that_falls_for_ever_has_no_floor(tmp_path: Path) -> None:
    probe, _ = probed(with_loss(run(tmp_path, model=nets.Net()), nets.Entropy(-1.0)))
    assert probe.floor is None
    assert probe.lowest < -1e3


def test_a_loss_below_zero_may_have_a_floor(tmp_path: Path) -> None:
    class Cosine(nets.Entropy):
        def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
            return -F.cosine_similarity(logits, F.one_hot(label, nets.NUM_CLASSES).to(logits.dtype)).sum()

    probe, _ = probed(with_loss(run(tmp_path, model=nets.Net()), Cosine()))
    assert probe.floor == pytest.approx(-1.0, abs=1e-6)


def test_outputs_may_lie_in_memory_as_they_like(tmp_path: Path) -> None:
    class Turned(nets.Regressor):
        def forward(self, *, points: Tensor) -> nets.Map:
            made = super().forward(points=points)
            return {**made, "heat": made["heat"].movedim(0, -1).contiguous().movedim(-1, 0)}

    found = []
    for kind in (nets.Regressor, Turned):
        torch.manual_seed(0)
        found.append(probed(regression(tmp_path, kind(rectified=False)))[0])
    plain, turned = found
    assert turned.start == pytest.approx(plain.start)
    assert turned.floor == pytest.approx(0.0, abs=1e-12)
