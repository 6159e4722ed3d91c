"""Small random weights in files, under the names of published layouts, and the parts of a set that they label."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sightline
from sightline.areas.clouds.sets.shapenet_part import ShapeNetPart
from sightline.contract import registry
from sightline.contract.dataset import Dataset
from sightline.contract.types import DataInfo, Field, Sample, SampleKey
from sightline.workbench.weights.conversion import ConversionResult, convert_published_weights
from tests.published_layouts import LAYOUTS, MODELS


def small_state(layout: str = "wangyueft_pointnet", **facts: int) -> dict[str, Tensor]:
    """Random weights of a small model under the names of a layout without doubled names."""
    theirs = {ours: name for name, ours in LAYOUTS[layout].items()}
    sizes = facts if "num_joints" in facts else {"num_classes": 40, "in_channels": 3, **facts}
    arguments = {"embedding": 8} if layout == "wangyueft_pointnet" else {}
    model = sightline.build_model(MODELS[layout].model, **sizes, **arguments)
    own = model.state_dict()
    return {f"{theirs[k.rpartition('.')[0]]}.{k.rpartition('.')[2]}": value for k, value in own.items()}


def convert_state(folder: Path, state: Mapping[str, Tensor], layout: str | None, **options: Any) -> ConversionResult:
    """Save a state in a folder, and make a run of it beside it."""
    return convert_published_weights(saved(folder / "a.pth", state), layout=layout, target=folder / "run", **options)


@contextlib.contextmanager
def registered(kind: registry.Registry, **parts: Any) -> Iterator[None]:
    """Parts of tests under names of their own, which are gone afterwards."""
    kind.names()
    for name, part in parts.items():
        kind.add(name)(part)
    yield
    for name in parts:
        kind._entries.pop(name)


def saved(path: Path, state: Mapping[str, Tensor]) -> Path:
    torch.save({"epoch": 1, "model_state_dict": dict(state)}, path)
    return path


class FactsAlone(Dataset):
    """Data set of facts and fields, without a sample."""

    def __len__(self) -> int:
        return 0

    def __getitem__(self, key: SampleKey) -> Sample:
        raise IndexError(key)


class Fifty(FactsAlone):
    """The fifty parts of ShapeNetPart's sixteen categories, with or without normals. Source: this test."""

    def __init__(self, *, split: str, has_normals: bool = False) -> None:
        names = ("points", *(("normals",) if has_normals else ()))
        self.info = DataInfo(
            facts={**ShapeNetPart.expected_info().facts, "in_channels": 3 * len(names)},
            fields={name: Field("points 3", "float32") for name in names}
            | {"label": Field("points", "int64"), "category": Field("", "int64")},
            features=names[1:],
        )
