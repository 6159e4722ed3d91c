"""Nested batches keep their structure; floats take the run's type; strange leaves are named by path."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch

from sightline.engine.device import to_device

Pair = namedtuple("Pair", "left right")


@dataclass(frozen=True)
class Boxes:
    corners: torch.Tensor
    names: tuple[str, ...]


def test_structures_keep_their_types() -> None:
    boxes = Boxes(torch.ones(4), ("y",))
    batch = {"a": [torch.zeros(2), (torch.ones(1), 3)], "b": Pair(torch.zeros(1), "x"), "c": boxes}
    moved = to_device(batch, torch.device("meta"), float_dtype=torch.float64)
    assert moved["a"][0].device.type == moved["c"].corners.device.type == "meta"
    assert isinstance(moved["b"], Pair)
    assert isinstance(moved["a"][1], tuple)
    assert moved["b"].right == "x"
    assert moved["c"].names == ("y",)
    assert moved["a"][0].dtype == torch.float64
    assert batch["a"][0].dtype == torch.float32


def test_integers_and_masks_keep_their_type() -> None:
    moved = to_device({"i": torch.arange(2), "m": torch.tensor([True])}, torch.device("cpu"), float_dtype=torch.float64)
    assert moved["i"].dtype == torch.int64
    assert moved["m"].dtype == torch.bool


def test_a_strange_leaf_is_named_by_its_path() -> None:
    with pytest.raises(TypeError, match=r"batch\['a'\]\[1\]: .*set"):
        to_device({"a": [1, {2}]}, torch.device("cpu"))
