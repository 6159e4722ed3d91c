"""Weights of each published layout, made by a rule from names and shapes alone."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["write_weights"]


def write_weights(place: Path, layout: str) -> None:
    """The file of a layout, in a folder of its own."""
    place.mkdir()
    torch.save({"model_state_dict": _published_state(layout)}, place / "weights.pth")


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
    from sightline.published.files import make_meta_model
    from sightline.published.rows import read_layout

    published = read_layout(layout)
    promise = registry.data.get_class(published.protocol.data).expected_info
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
