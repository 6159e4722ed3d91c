"""Images and boxes that were paired by another order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sightline.areas.detect.sets.synthetic_crowds import SyntheticCrowds
from sightline.contract.types import Sample, SampleKey
from sightline.doctor.finding import Finding
from sightline.engine.distributed import World
from sightline.workbench.check.checks.data.boxed_images import mismatched_boxes
from sightline.workbench.check.context import Context
from tests.doctor.detecting import READ, make_crowds
from tests.doctor.planting import assert_complete
from tests.marks import long_but

Edit = Callable[[SyntheticCrowds, SampleKey], Sample]


def shifted(steps: int, *names: str) -> Edit:
    """Fields of the sample some indices on."""

    def read(dataset: SyntheticCrowds, key: SampleKey) -> Sample:
        other = READ(dataset, SampleKey((key.index + steps) % len(dataset), 0, 0))
        return {**READ(dataset, key), **{name: other[name] for name in names}}

    return read


BOXES = ("boxes", "label", "is_ignored", "truth", "truth_visible")


def judge(monkeypatch: pytest.MonkeyPatch, read: Edit, seed: int) -> list[Finding]:
    monkeypatch.setattr(SyntheticCrowds, "__getitem__", read)
    return mismatched_boxes(Context(make_crowds(seed=seed), World()))


@pytest.mark.parametrize("seed", long_but([0], [0, 1, 2]))
@pytest.mark.parametrize(
    ("read", "shift"),
    [(shifted(1, "image"), 1), (shifted(-2, "image"), -2), (shifted(1, *BOXES), -1)],
    ids=["the next image", "the image before the last", "the next boxes"],
)
def test_another_image(monkeypatch: pytest.MonkeyPatch, read: Edit, shift: int, seed: int) -> None:
    (finding,) = judge(monkeypatch, read, seed)
    assert_complete(finding)
    assert (finding.cause, finding.severity) == ("data.pairing", "warning")
    assert finding.evidence["shift"] == shift


def blank(dataset: SyntheticCrowds, key: SampleKey) -> Sample:
    """Images without edges say nothing about where boxes are."""
    sample = READ(dataset, key)
    return {**sample, "image": torch.full_like(sample["image"], 90)}


def without_boxes(dataset: SyntheticCrowds, key: SampleKey) -> Sample:
    sample: dict[str, Any] = READ(dataset, key)
    return {**sample, **{name: sample[name][:0] for name in BOXES}} if key.index % 3 == 0 else sample


def apart(dataset: SyntheticCrowds, key: SampleKey) -> Sample:
    """Boxes at random places: wrong, but the images next to it do not fit better."""
    sample = READ(dataset, key)
    generator = torch.Generator().manual_seed(key.index)
    middles = torch.rand(len(sample["boxes"]), 2, generator=generator) * torch.tensor([200.0, 140.0])
    return {**sample, "boxes": torch.cat([middles, middles + 40], dim=1)}


@pytest.mark.parametrize("seed", long_but([0], [0, 1, 2]))
@pytest.mark.parametrize("read", [READ, blank, without_boxes, apart], ids=["as it is", "blank", "few boxes", "apart"])
def test_what_is_not_judged(monkeypatch: pytest.MonkeyPatch, read: Edit, seed: int) -> None:
    assert judge(monkeypatch, read, seed) == []
