"""Heads with objectness and with two predictions at each anchor over-fit eight drawn crowds in 600 steps."""

from __future__ import annotations

import dataclasses

import pytest

from sightline.config import read_config
from sightline.doctor.overfit.attempts import fit
from sightline.doctor.overfit.fit_one import Asked, bench_of
from sightline.doctor.overfit.recipes import candidates, own_rate
from sightline.engine.build import build
from sightline.engine.distributed import World
from tests.conftest import ROOT

FEW = ("data.train_size=8", "data.validation_size=8", "data.test_size=8", "train.batch_size=8")
PAIRS = (
    "task.assigner.boxes_per_prior=2",
    "task.suppression.name=set",
    "model.head.name=retina_emd",
    "losses=[{name: earth_mover}]",
)
CASES = {
    "yolov3": ("yolov3", ("model.backbone.width=32",)),
    "yolox": ("yolox", ()),
    "retina_emd": ("retinanet", ("model.backbone.width=32", *PAIRS)),
}
STEPS, BAR = 600, 0.9


@pytest.mark.parametrize("name", CASES)
def test_eight_crowds_are_found_after_600_steps(name: str) -> None:
    """By the recipe's own optimiser and rate, without decay, AP50 of the very images; the loss has no goal."""
    config, words = CASES[name]
    built = build(read_config(ROOT / f"configs/detect/synthetic_crowds_{config}.yaml", [*FEW, *words]), World())
    bench, _ = bench_of(built, Asked(samples=8, steps=STEPS))
    own = candidates(built)[0]
    rate = own_rate(built)
    bench = dataclasses.replace(bench, floor=0.0)
    curve = fit(bench, "recipe", own.make, rate, bench.precision, clip=True, goal=1e-9)
    assert curve.stop == "steps"
    assert curve.score >= BAR, f"AP50 {curve.score:.3f}, loss {curve.losses[0]:.3g} to {curve.losses[-1]:.3g}"
