"""Weights of each published layout, made by a rule from names and shapes alone."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["write_weights"]


def write_weights(place: Path, layout: str) -> None:
    """The files of a layout: one, two where images have one of their own, and Darknet's form where it is its own."""
    from sightline.published.files import IMAGE_PREFIX, POINT_PREFIX
    from sightline.published.rows import read_layout

    place.mkdir()
    if read_layout(layout).is_darknet:
        _write_darknet(place / "weights.pth", layout)
        return
    state = _published_state(layout)
    if not read_layout(layout).has_image_file:
        torch.save({"model_state_dict": state}, place / "weights.pth")
        return
    for name, prefix in (("weights", POINT_PREFIX), ("images", IMAGE_PREFIX)):
        part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        torch.save({"model_state_dict": part}, place / f"{name}.pth")


def _published_state(layout: str) -> dict[str, Tensor]:
    """A tensor for every name of the layout, of the sizes of our model for the layout's data set."""
    from sightline.published.rows import read_layout

    table, state = read_layout(layout).names, {}
    for name, value in _own_state(layout).items():
        module, _, leaf = name.rpartition(".")
        values = _rule_made(name, value)
        for theirs, ours in table.items():
            if ours == name:
                state[theirs] = values
            elif ours == module:
                state[f"{theirs}.{leaf}"] = values
    return state


def _own_state(layout: str) -> dict[str, Tensor]:
    from sightline.contract import registry
    from sightline.contract.members import DataMembers
    from sightline.published.files import make_meta_model
    from sightline.published.rows import read_layout

    published = read_layout(layout)
    promise = DataMembers.expected_info.get(registry.data.get_entry(published.protocol.data).builder)
    promised = dict(promise().facts) if promise is not None else {}
    facts = {"num_classes": 12, "in_channels": 3, "num_categories": 16, "num_joints": 21, **promised}
    if published.class_indices:
        facts["num_classes"] = max(published.class_indices) + 1
    if layout.endswith("_scenes") or published.protocol.data == "semantic_kitti":
        facts["in_channels"] = 9 if layout.endswith("_scenes") else 5
    return dict(make_meta_model(published, **facts).state_dict())


def _rule_made(name: str, like: Tensor) -> Tensor:
    """Values that only the name, the place and the shape decide; variances are positive, counts whole."""
    if not like.is_floating_point():
        return torch.full(like.shape, 7, dtype=like.dtype)
    start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:3], "big")
    places = torch.arange(like.numel(), dtype=torch.int64)
    values = ((places * 2654435761 + start) % 1000003).double() / 1000003
    return (values + 0.5 if name.endswith("running_var") else (values - 0.5) * 0.1).float().reshape(like.shape)


def _write_darknet(path: Path, layout: str) -> None:
    from sightline.published.files import darknet_shapes

    shapes = dict(darknet_shapes(layout, 80))
    values = [_rule_made(f"{name}.running_var", torch.empty(shape)) for name, shape in shapes.items()]
    header = np.array([0, 2, 0, 0, 0], "<i4").tobytes()
    path.write_bytes(header + b"".join(each.numpy().astype("<f4").tobytes() for each in values))
