"""Samples that are not what their data set promises."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sightline.contract.types import Field
from sightline.engine.distributed import World
from sightline.store.loading.batch_reader import NamedTransform
from sightline.workbench.check.suite import run_all
from tests.doctor.planting import Wrapped, assert_healthy, caught, make, with_data
from tests.doctor.segmenting import Edited, PerPoint, make_rooms


def changed(name: str, change: Any, **info: Any) -> Any:
    return lambda inner: Wrapped(inner, lambda batch, keys: {**batch, name: change(batch[name])}, **info)


def test_millimetres_for_metres(tmp_path: Path) -> None:
    finding = caught(
        with_data(make(tmp_path), changed("points", lambda points: points * 1000)),
        "channel-contract",
        "data.normalisation",
    )
    assert "millimetres for metres" in finding.summary
    assert finding.evidence["field"] == "points"
    assert finding.where.sample is not None
    assert "of the train part" in finding.evidence["looked_at"]


def test_bytes_for_shares(tmp_path: Path) -> None:
    built = with_data(make(tmp_path), changed("normals", lambda normals: normals * 255))
    assert "0..255 for 0..1" in caught(built, "channel-contract", "data.normalisation").summary


def test_metres_for_millimetres_is_only_suspected(tmp_path: Path) -> None:
    built = with_data(make(tmp_path), changed("normals", lambda normals: normals / 1000))
    caught(built, "channel-contract", "data.normalisation", "warning")


def test_rounding_beyond_a_bound_is_no_fault(tmp_path: Path) -> None:
    """Half precision may put a number of size 1 off by 2^-11."""
    assert_healthy(with_data(make(tmp_path), changed("points", lambda points: points * (1 + 2**-11))))


def test_axes_exchanged(tmp_path: Path) -> None:
    built = with_data(make(tmp_path), changed("points", lambda points: points.transpose(1, 2).contiguous()))
    finding = caught(built, "channel-contract", "data.layout")
    assert "(3, 32)" in finding.summary
    assert "32 3" in finding.expected
    assert any("first-step" in line for line in finding.evidence["explains"])


def test_whole_numbers_for_coordinates(tmp_path: Path) -> None:
    built = with_data(make(tmp_path), changed("normals", lambda normals: (normals > 0).to(torch.uint8)))
    finding = caught(built, "channel-contract", "data.normalisation")
    assert finding.measured.startswith("uint8")
    assert finding.expected == "float32"


def test_in_channels_that_are_not_there(tmp_path: Path) -> None:
    finding = caught(
        with_data(make(tmp_path), changed("points", Tensor.clone, facts={"in_channels": 6})),
        "channel-contract",
        "cfg.contract",
    )
    assert "points 3 = 3 channels" in finding.measured
    assert "encode.0.linear" in finding.measured
    assert "in_channels = 6" in finding.expected


def test_features_count_as_channels(tmp_path: Path) -> None:
    from sightline.engine.distributed import World
    from sightline.workbench.check.checks.data.channel_contract import channel_contract
    from sightline.workbench.check.context import Context

    wrap = changed("points", Tensor.clone, facts={"in_channels": 6}, features=("normals",))
    assert channel_contract(Context(with_data(make(tmp_path), wrap), World())) == []


@pytest.mark.parametrize("shape", ["any", "points 3", "32 3"])
def test_words_stand_for_any_number(tmp_path: Path, shape: str) -> None:
    def wrap(inner: Any) -> Any:
        fields = {**inner.info.fields, "points": dataclasses.replace(inner.info.fields["points"], shape=shape)}
        return Wrapped(inner, lambda batch, keys: None, fields=fields)

    assert_healthy(with_data(make(tmp_path), wrap))


def test_a_field_that_promises_nothing_is_not_measured(tmp_path: Path) -> None:
    def wrap(inner: Any) -> Any:
        fields = {**inner.info.fields, "part": Field("any", "float64")}
        return Wrapped(inner, lambda batch, keys: None, fields=fields)

    assert_healthy(with_data(make(tmp_path), wrap))


def of_channels(declared: int) -> Any:
    """Ragged rooms that state this number of channels; they have three coordinates and one grey value."""
    return lambda inner: Edited(inner, facts={"in_channels": declared})


def test_a_ragged_set_that_states_other_channels(tmp_path: Path) -> None:
    """Both numbers are told, though the clouds are of all sizes; the model, built for the fact, would die of it."""
    model = PerPoint(in_channels=6, num_classes=4)
    finding = caught(make_rooms(tmp_path, of_channels(6), model=model), "channel-contract", "cfg.contract")
    assert "states in_channels 6, its samples have 4" in finding.summary
    assert "points 3 + grey 1 = 4 channels; the model's first layer 'first' takes 6" in finding.measured
    assert any("first-step" in line for line in finding.evidence["explains"])


class Widen:
    """Puts a second grey value beside the first."""

    def __call__(self, draws: Any, *, grey: Tensor) -> dict[str, Tensor]:
        return {"grey": grey.repeat(1, 1, 2)}


def test_a_transform_that_adds_a_channel(tmp_path: Path) -> None:
    built = make_rooms(tmp_path, transforms=[NamedTransform("widen", Widen())])
    finding = caught(built, "channel-contract", "cfg.contract")
    assert "states in_channels 4, its training batches have 5" in finding.summary
    assert "points 3 + grey 1 = 4" in finding.measured


def test_features_that_a_set_joins_itself_count(tmp_path: Path) -> None:
    """Coordinates and a ready field `features`: four channels as stated."""

    def edit(sample: dict, index: int) -> dict:
        return {"points": sample["points"], "features": sample["grey"], "label": sample["label"]}

    def wrap(inner: Any) -> Any:
        fields = dict(inner.info.fields)
        fields["features"] = fields.pop("grey")
        return Edited(inner, edit, fields=fields, features=())

    assert_healthy(make_rooms(tmp_path, wrap))
    wrong = make_rooms(tmp_path, lambda inner: wrap(of_channels(3)(inner)))
    (finding,) = [each for each in run_all(wrong, World()) if each.code == "channel-contract"]
    assert "states in_channels 3, its samples have 4" in finding.summary
