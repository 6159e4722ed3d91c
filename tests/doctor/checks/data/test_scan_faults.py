"""Faults of scans and their labels that checks for all data sets find on range images too."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sightline.areas.scans.range_projection import Project
from sightline.contract.types import Sample
from sightline.engine.build import build_transforms
from sightline.engine.distributed import World
from sightline.workbench.check.checks.data.batches import broken_offsets
from sightline.workbench.check.checks.data.channel_contract import channel_contract
from sightline.workbench.check.checks.data.classes import class_balance
from sightline.workbench.check.checks.data.images import input_statistics
from sightline.workbench.check.checks.model.first_step import first_step
from sightline.workbench.check.context import Context, Rule
from sightline.workbench.check.core.finding import merge_findings
from tests.doctor.planting import with_data
from tests.doctor.scanning import Edit, make_scans
from tests.doctor.segmenting import Edited


def changed(name: str, change) -> Edit:
    def edit(dataset, sample: Sample, key) -> Sample:
        return {**sample, name: change(sample[name])}

    return edit


@pytest.mark.parametrize(
    ("check", "edit", "cause", "words"),
    [
        (first_step, changed("label", lambda x: x[:-1]), "data.corrupt_sample", "'whole_label' has"),
        (channel_contract, changed("points", lambda x: x[:, :2]), "data.layout", "has the shape"),
    ],
    ids=["one label short", "no z"],
)
def test_scans_and_labels(monkeypatch: pytest.MonkeyPatch, check: Rule, edit: Edit, cause: str, words: str) -> None:
    found = check(Context(make_scans(monkeypatch, edit=edit), World()))
    assert found
    assert found[0].cause == cause or cause in found[0].alternatives
    assert words in f"{found[0].summary} {found[0].measured}"


def test_remissions_on_another_scale_are_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics that are off by the same factor follow from it."""
    context = Context(make_scans(monkeypatch, edit=changed("remission", lambda x: x * 255)), World())
    found = merge_findings([*channel_contract(context), *input_statistics(context)])
    assert [each.code for each in found] == ["channel-contract"]
    assert any("input-statistics" in line for line in found[0].evidence["explains"])


def test_scans_of_one_class_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a sensor sees a part of the street: a third of them here."""

    def edit(dataset, sample: Sample, key) -> Sample:
        return {**sample, "label": sample["label"].clamp(max=1)} if key.index % 3 == 0 else sample

    (note,) = class_balance(Context(make_scans(monkeypatch, edit=edit), World()))
    assert note.severity == "note"
    assert "4 of 11 samples of train have a single class" in note.summary


class _Joined(Edited):
    """Makes its batches itself, also the offsets that say which points of a batch are of which scan."""

    def collate(self, samples: list[Sample]) -> dict[str, Any]:
        stacked = {name: torch.stack([each[name] for each in samples]) for name in ("image", "range_image", "label")}
        ragged = ("points", "remission", "features", "ring", "nearest", "point_range", "whole_label")
        joined = {name: torch.cat([each[name] for each in samples]) for name in ragged}
        offsets = torch.tensor([0, *(len(each["points"]) for each in samples)]).cumsum(0)
        return {**stacked, **joined, "offsets": offsets, "whole_offsets": self.edit_offsets(offsets)}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda offsets: offsets, ""),
        (lambda offsets: offsets + 1, "begins with 1"),
        (lambda offsets: (offsets - offsets.diff().min()).clamp(min=0), "has"),
        (lambda offsets: torch.cat([offsets[:1], offsets[1:-1] - 7, offsets[-1:]]), "alone it has"),
    ],
    ids=["healthy", "not from 0", "too short", "of other sizes"],
)
def test_offsets_of_the_points_of_range_images(monkeypatch: pytest.MonkeyPatch, spoil, words: str) -> None:
    built = make_scans(monkeypatch)
    joined = _Joined(built.data.train.dataset)
    joined.edit_offsets = spoil  # type: ignore[attr-defined]
    stages = build_transforms(built.config.transforms.train, joined.info.facts)
    found = broken_offsets(Context(with_data(built, lambda inner: joined, stages), World()))
    assert bool(found) == bool(words)
    assert not words or words in found[0].summary


@pytest.mark.parametrize("stated", [5, 6])
def test_channels_that_a_transform_makes(monkeypatch: pytest.MonkeyPatch, stated: int) -> None:
    """A layer that takes its width from the first batch hides it: from the next set on it would not fit."""
    monkeypatch.setattr(Project, "facts", {"in_channels": stated})
    found = channel_contract(Context(make_scans(monkeypatch), World()))
    assert [each.cause for each in found] == ([] if stated == 5 else ["cfg.contract"])
    assert not found or "state in_channels 6, their images have 5" in found[0].summary
