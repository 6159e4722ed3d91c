"""Networks over range images against the numbers of their authors' code, as `golden/lidar/README.md` describes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sightline.contract import registry
from sightline.contract.types import ComponentConfig
from sightline.published.translation import convert_state_dict, translate_key
from tests.golden_parity import (
    Golden,
    assert_gradients_and_buffers,
    assert_near_largest,
    rule_made_state,
)

__all__ = ["assert_buffers", "assert_parity", "load_lidar_golden", "theirs_of"]

_KINDS = {"zero": "num_batches_tracked", "bias": "vector", "weight": "matrix", "convT": "transposed"}
_BOUND = 1e-12
"""Of the largest entry of an output or a running statistic."""
_NOTHING = 1e-12
"""Of the largest gradient: less is the rounding of a sum that is zero, of a bias in front of a batch norm."""


def load_lidar_golden(shared: Path, name: str, *, area: str = "lidar") -> Golden:
    """A network's golden file, in the words of the other areas; constants of the CRF are left out of its state.

    Those of the area `detect` have the same form.
    """
    stem = shared / "golden" / area / name
    with np.load(stem.with_suffix(".npz"), allow_pickle=False) as archive:
        arrays = {key.replace("/", "."): archive[key] for key in archive.files}
    info: dict[str, Any] = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
    entries = [
        {"tied_to": None, **entry, "kind": _KINDS.get(entry["kind"], entry["kind"])}
        for entry in info["state_dict"]
        if entry["kind"] != "constant (kept)"
    ]
    norms = arrays["train.grad_norm"]
    zeros = [name for name, norm in zip(info["grad_params"], norms, strict=True) if norm < _NOTHING * np.nanmax(norms)]
    buffers = {"train.buffer_norm": np.empty(0), "train.buffer_first8": np.empty((0, 8))}
    tables = {key.replace("/", "."): table for key, table in info["arrays"].items()}
    words = {
        "arrays": tables,
        "state": entries,
        "grad_names": info["grad_params"],
        "zero_gradient_names": zeros,
        "buffer_names": [],
    }
    return Golden({**info, **words}, {**arrays, **buffers})


def theirs_of(golden: Golden, found: Tensor, name: str) -> None:
    """An array (S, C, H, W) of ours is theirs, at the places that are stored and in sum."""
    table = golden.info["arrays"].get(name)
    expected = golden.tensor(name)
    if table is not None:
        assert list(found.shape) == table["full_shape"], name
        error = abs(found.abs().sum().item() - table["abs_sum"]) / table["abs_sum"]
        assert error <= _BOUND, f"{name}: sum of magnitudes off by {error:.1e}"
        found = found.flatten()[:: table["flat_step"]]
    assert_near_largest(found, expected, _BOUND, name)


def assert_parity(golden: Golden, layout: str, component: ComponentConfig) -> nn.Module:
    """Outputs, loss, gradients and running statistics are theirs, with weights through the layout's own table."""
    model: nn.Module = registry.models.build(component, facts={"num_classes": 20, "in_channels": 5}).double()
    model.load_state_dict(convert_state_dict(rule_made_state(golden.info["state"]), layout))
    assert sum(parameter.numel() for parameter in model.parameters()) == golden.info["trainable_parameters"]
    image, label = golden.tensor("in.x"), golden.tensor("in.label").long()
    model.eval()
    theirs_of(golden, _probabilities(model, image), "eval.out")
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    found = _probabilities(model, image)
    theirs_of(golden, found, "train.out")
    weights = (1 + torch.arange(20, dtype=torch.float64) / 10) * (torch.arange(20) > 0)
    chosen = found.clamp(min=1e-8).log().gather(1, label[:, None])[:, 0]
    loss = -(weights[label] * chosen).sum() / weights[label].sum()
    assert_near_largest(loss.detach(), golden.tensor("train.loss"), _BOUND, "train.loss")
    loss.backward()
    assert_gradients_and_buffers(golden, model, lambda key: translate_key(key, layout))
    assert_buffers(golden, model, lambda key: translate_key(key, layout))
    return model


def assert_buffers(golden: Golden, model: nn.Module, our_name: Callable[[str], str | None]) -> None:
    """Running statistics after one training forward pass are theirs."""
    buffers = dict(model.named_buffers())
    prefix = "train.buffer_after."
    for name in (key for key in golden.arrays if key.startswith(prefix)):
        ours = our_name(name.removeprefix(prefix))
        assert ours is not None, name
        assert_near_largest(buffers[ours], golden.tensor(name), _BOUND, name)


def _probabilities(model: nn.Module, image: Tensor) -> Tensor:
    return model(image=image)["logits"].permute(0, 3, 1, 2).softmax(dim=1)
