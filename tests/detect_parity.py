"""Detectors against the numbers of public reference code, as `golden/detect/README.md` describes them.

What the references do in their own way (slopes, the order of their outputs, the names of their tensors) is undone here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.golden_parity import OUTPUT_BOUND, Golden, assert_gradients_and_buffers, assert_near_largest, rule_made_state
from tests.lidar_parity import assert_buffers, load_lidar_golden, theirs_of
from tests.published_layouts import residual_network

__all__ = [
    "anchor_major",
    "assert_training",
    "load_detect_golden",
    "load_theirs",
    "our_name",
    "retina_names",
    "tower_names",
]


def load_detect_golden(shared: Path, name: str) -> Golden:
    return load_lidar_golden(shared, name, area="detect")


def our_name(key: str, names: Mapping[str, str]) -> str | None:
    """Our name of one of theirs; None for a tensor that ours has no use for."""
    if key in names:
        return names[key]
    module, _, leaf = key.rpartition(".")
    return f"{names[module]}.{leaf}" if module in names else None


def load_theirs(golden: Golden, model: nn.Module, names: Mapping[str, str]) -> None:
    """Give a model their weights under our names; of a frozen norm, which counts nothing there, a count of 0."""
    state = {our_name(key, names): value for key, value in rule_made_state(golden.info["state"]).items()}
    counts = {name: value for name, value in model.state_dict().items() if name.endswith("num_batches_tracked")}
    model.load_state_dict({**counts, **{name: value for name, value in state.items() if name is not None}})


def assert_training(
    golden: Golden,
    model: nn.Module,
    names: Mapping[str, str],
    outputs: Mapping[str, Tensor],
    bound: float = OUTPUT_BOUND,
) -> None:
    """Outputs in training, the loss made of them, its gradients and the running statistics are theirs.

    The loss is the sum over outputs of the mean of value times cosine of place.
    """
    for name, value in outputs.items():
        theirs_of(golden, value, f"train.{name}")
    loss = torch.stack(
        [(each.flatten() * torch.arange(each.numel(), dtype=each.dtype).cos()).mean() for each in outputs.values()]
    ).sum()
    assert_near_largest(loss.detach(), golden.tensor("train.loss"), bound, "train.loss")
    loss.backward()
    assert_buffers(golden, model, lambda key: our_name(key, names))
    kept = [place for place, name in enumerate(golden.info["grad_names"]) if our_name(name, names) is not None]
    rows = {key: golden.arrays[f"train.{key}"][kept] for key in ("grad_norm", "grad_first8")}
    ours = Golden(
        {**golden.info, "grad_names": [golden.info["grad_names"][place] for place in kept]},
        {**golden.arrays, **{f"train.{key}": value for key, value in rows.items()}},
    )
    if kept:
        assert_gradients_and_buffers(ours, model, lambda key: our_name(key, names))


def tower_names(theirs: str, ours: str, names: Sequence[str]) -> dict[str, str]:
    return {f"{theirs}.{name}": f"{ours}.{place}.conv" for place, name in enumerate(names)}


def retina_names(
    depths: Sequence[int], num_convolutions: int, *, neck: str, towers: Mapping[str, str]
) -> dict[str, str]:
    """Names of the RetinaNets of NuayHL; `towers` are the names of our towers and outputs there."""
    names = residual_network("backbone.", "backbone.", depths, num_convolutions)
    for place in range(3):
        names[f"{neck}.P{place + 3}_1"] = f"neck.laterals.{place}.conv"
        names[f"{neck}.P{place + 3}_2"] = f"neck.outputs.{place}.conv"
    return names | {f"{neck}.P6": "neck.coarser.0.conv", f"{neck}.P7_2": "neck.coarser.1.conv"} | dict(towers)


def anchor_major(values: Tensor, shapes: Tensor) -> Tensor:
    """Ours (B, P, n) in the order of NuayHL's code (B, n, P): per level all cells of an anchor, then of the next."""
    counts = shapes[0].prod(dim=1).tolist()
    per_cell = values.shape[1] // sum(counts)
    levels = values.split([count * per_cell for count in counts], dim=1)
    return torch.cat([part.unflatten(1, (-1, per_cell)).permute(0, 3, 2, 1).flatten(2) for part in levels], dim=2)
