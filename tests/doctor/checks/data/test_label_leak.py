"""Channels that hold the label, inputs that change nothing, and what only looks like it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sightline.contract.types import SampleKey
from sightline.engine.distributed import World
from sightline.workbench.check.checks.data.label_leak import _find_function, label_channel
from sightline.workbench.check.context import Context
from tests.doctor.own_networks import CloudNet, Logits, PartNet, RoomNet, findings_of
from tests.doctor.planting import Wrapped, assert_healthy, caught, make, with_data, with_model
from tests.doctor.segmenting import Edited, make_rooms

Batches = Callable[[dict[str, Any], Sequence[SampleKey]], Any]
NUM_CLASSES = 12


def with_column(column: Callable[[Tensor, Tensor], Tensor]) -> Batches:
    """Add `column(label, points)`, one value for each cloud or for each point, to the points."""

    def edit(batch: dict[str, Any], keys: Sequence[SampleKey]) -> dict[str, Any]:
        points = batch["points"]
        values = column(batch["label"], points).to(points.dtype)
        values = values[:, None, None].expand(*points.shape[:2], 1) if values.ndim == 1 else values[..., None]
        return {**batch, "points": torch.cat([points, values], dim=-1)}

    return edit


LEAKS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "as it is": lambda label, points: label,
    "scaled": lambda label, points: (label - 3) / NUM_CLASSES,
    "one class": lambda label, points: label == 2,
    "permuted": lambda label, points: (label * 5) % NUM_CLASSES,
}
OTHERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ones": lambda label, points: torch.ones(len(label)),
    "height": lambda label, points: points[..., 2],
    "size": lambda label, points: points.flatten(1).abs().amax(dim=1),
    "rounded size": lambda label, points: (points.flatten(1).abs().amax(dim=1) * 4).round(),
}


def run(folder: Path, edit: Batches, seed: int) -> Any:
    fields: dict[str, Any] = {}
    built = with_data(
        make(folder, f"seed={seed}"), lambda inner: Wrapped(inner, edit, facts={"in_channels": 4}, **fields)
    )
    torch.manual_seed(seed)
    return with_model(built, CloudNet(num_classes=NUM_CLASSES, in_channels=4))


def codes(folder: Path, edit: Batches, seed: int) -> list[str]:
    return [finding.summary for finding in label_channel(Context(run(folder, edit, seed), World()))]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", LEAKS)
def test_a_label_among_the_channels_of_a_cloud_is_found(tmp_path: Path, name: str, seed: int) -> None:
    assert codes(tmp_path, with_column(LEAKS[name]), seed) == ["channel 3 of 'points' holds the label"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", OTHERS)
def test_other_channels_are_healthy(tmp_path: Path, name: str, seed: int) -> None:
    assert codes(tmp_path, with_column(OTHERS[name]), seed) == []


def test_a_label_among_the_features_of_points_comes_first(tmp_path: Path) -> None:
    def edit(sample: dict[str, Any], index: int) -> dict[str, Any]:
        return {**sample, "grey": sample["label"][:, None].float() / 3}

    built = make_rooms(tmp_path, lambda inner: Edited(inner, edit), model=RoomNet(num_classes=4))
    finding = caught(built, "label-channel", "data.label_leak")
    assert "channel 0 of 'features'" in finding.summary


class Restoring(PartNet):
    """Restores labels that it is given with errors: there is no other input."""

    def forward(self, *, label: Tensor) -> Logits:
        points = torch.stack([label, label.roll(1, 1), label * 0 + 1], dim=-1).float()
        return super().forward(points=points)


def test_a_network_of_its_target_alone_reconstructs_it() -> None:
    assert "label-input" not in [f.code for f in findings_of("parts", Restoring)]


class Shut(CloudNet):
    """A network that multiplies its points by 0."""

    def enter(self, points: Tensor) -> Tensor:
        return points * 0


class Started(CloudNet):
    """A network whose last layer starts at 0."""

    def __init__(self, *, num_classes: int, in_channels: int = 3) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        nn.init.zeros_(self.head.weight)


def test_points_that_a_network_ignores_come_before_dead_units() -> None:
    findings = [f for f in findings_of("classify", Shut, deep=True) if f.severity != "note"]
    assert [(f.code, f.cause) for f in findings] == [("idle-input", "model.constant_output")]


def test_points_set_to_zero_come_before_dead_units(tmp_path: Path) -> None:
    def zero(batch: dict[str, Any], keys: Sequence[SampleKey]) -> dict[str, Any]:
        return {**batch, "points": batch["points"] * 0}

    caught(with_data(make(tmp_path), lambda inner: Wrapped(inner, zero)), "idle-input", "data.corrupt_sample")


def test_a_last_layer_that_starts_at_zero_is_healthy(tmp_path: Path) -> None:
    assert_healthy(with_model(make(tmp_path), Started(num_classes=NUM_CLASSES)))


def test_a_mask_of_pixels_that_no_point_fell_into_is_healthy() -> None:
    """Where nothing was measured the class is 0 and every channel 0: the mask follows from the class."""
    draw = torch.Generator().manual_seed(0)
    label = torch.randint(0, 4, (200,), generator=draw)
    mask = (label != 0).float()[:, None]
    measured = torch.cat([torch.rand(200, 3, generator=draw) * mask, mask], dim=1)
    assert _find_function(measured, label) is None
    assert _find_function(torch.cat([measured, label[:, None]], dim=1), label) is not None
