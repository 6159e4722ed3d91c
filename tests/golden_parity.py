"""Compare a model with the numbers that a public reference implementation gave for rule-made weights.

The rule and the tolerances are those of `golden/points/README.md` among the shared samples. A test makes its own model
in float64, gives it the golden state through `sightline.published.translation`, calls `assert_outputs` in
`each_mode`, and after a backward pass `assert_gradients_and_buffers`.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

OUTPUT_BOUND = 1e-10
"""Of the largest entry. Most agree to 1e-12; nets with batch statistics of few samples are off by 8e-12 at most."""
GRADIENT_BOUND = 1e-7
"""Of a gradient's own norm; of the largest norm where the true gradient is zero."""
BUFFER_BOUND = 1e-10


@dataclass(frozen=True)
class Golden:
    """One golden file: its description and its arrays."""

    info: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[name])

    def state(self) -> dict[str, Tensor]:
        """The rule-made weights under the reference's names."""
        return rule_made_state(self.info["state"])


def load_golden(shared: Path, name: str, *, area: str = "points") -> Golden:
    """The golden file `name` of one area; of a network without running statistics it has none of them."""
    stem = shared / "golden" / area / name
    none = {"train.buffer_norm": np.empty(0), "train.buffer_first8": np.empty((0, 8))}
    with np.load(stem.with_suffix(".npz"), allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files}
    info = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
    return Golden({"buffer_names": [], **info}, {**none, **arrays})


def rule_made_state(entries: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Weights drawn from a generator seeded by each key, as the README says; `tied_to` names an earlier tensor."""
    state: dict[str, Tensor] = {}
    for entry in entries:
        key, tied_to = entry["key"], entry.get("tied_to")
        state[key] = state[tied_to] if tied_to else _rule_made(key, entry["kind"], tuple(entry["shape"]))
    return state


def _rule_made(key: str, kind: str, shape: tuple[int, ...]) -> Tensor:
    draw = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    match kind:
        case "running_var":
            value = 1 + 0.2 * draw.random(shape)
        case "running_mean":
            value = 0.1 * draw.standard_normal(shape)
        case "num_batches_tracked":
            return torch.zeros(shape, dtype=torch.int64)
        case "norm_weight":
            value = 1 + 0.1 * draw.standard_normal(shape)
        case "vector":
            value = 0.05 * draw.standard_normal(shape)
        case "table":
            value = 0.5 * draw.standard_normal(shape)
        case "kernel":
            value = draw.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))
        case "matrix":
            value = draw.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        case "transposed":
            value = draw.standard_normal(shape) / np.sqrt(shape[0] * np.prod(shape[2:]))
        case _:
            raise AssertionError(f"{key}: no rule for the kind '{kind}'")
    return torch.from_numpy(np.asarray(value))


def cloud_inputs(golden: Golden) -> dict[str, Tensor]:
    """What a network over clouds is given: `points`, further channels as `features`, a one-hot row as `category`.

    Whichever way round the reference takes its channels; of 22, the last sixteen are the category's, at every point.
    """
    channels = golden.tensor("in.x")
    if channels.shape[1] < channels.shape[2]:
        channels = channels.mT
    given = {"points": channels[..., :3]}
    if channels.shape[-1] == 22:
        channels, one_hot = channels.split([6, 16], dim=-1)
        assert torch.equal(one_hot, one_hot[:, :1].expand_as(one_hot))
        given["category"] = one_hot[:, 0].argmax(dim=-1)
    if channels.shape[-1] > 3:
        given["features"] = channels[..., 3:]
    if "in.onehot" in golden.arrays:
        given["category"] = golden.tensor("in.onehot").flatten(1).argmax(dim=1)
    return given


def assert_near_largest(found: Tensor, expected: Tensor, bound: float, what: str) -> None:
    """Every difference is at most `bound` times the largest expected entry."""
    assert found.shape == expected.shape, (
        f"{what}: found the shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    )
    error = ((found.detach() - expected).abs().max() / expected.abs().max()).item()
    assert error <= bound, f"{what}: off by {error:.1e} of the largest entry, bound {bound:.0e}"


def stored_part(golden: Golden, label: str, value: Tensor) -> Tensor:
    """What the golden file keeps of an array: all of it, or every `flat_stride`-th entry of the flattened one."""
    tables = ("eval_outputs", "eval_mids", "train_outputs")
    entry = next(golden.info[table][label] for table in tables if label in golden.info.get(table, {}))
    assert tuple(value.shape) == tuple(entry["shape"]), (
        f"{label}: found {tuple(value.shape)}, expected {entry['shape']}"
    )
    return value if entry["flat_stride"] is None else value.flatten()[:: entry["flat_stride"]]


def assert_outputs(golden: Golden, mode: str, outputs: Mapping[str, Tensor], loss: Tensor) -> None:
    """All golden outputs of `mode` (`eval` or `train`) are given and agree, and so does the loss."""
    prefix = f"{mode}.out."
    expected = {label.removeprefix(prefix) for label in golden.arrays if label.startswith(prefix)}
    assert set(outputs) == expected
    for name, value in outputs.items():
        label = prefix + name
        assert_near_largest(stored_part(golden, label, value), golden.tensor(label), OUTPUT_BOUND, label)
    assert_near_largest(loss.detach(), golden.tensor(f"{mode}.loss"), OUTPUT_BOUND, f"{mode}.loss")


def each_mode(model: nn.Module) -> Iterator[str]:
    """`eval`, then `train` as the golden numbers mean it: batch statistics, but no dropout."""
    model.eval()
    yield "eval"
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    yield "train"


def assert_gradients_and_buffers(golden: Golden, model: nn.Module, our_name: Callable[[str], str | None]) -> None:
    """After one training forward and backward pass: norms and first values of every gradient and running statistic."""
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    norms = golden.tensor("train.grad_norm")
    largest = norms[~norms.isnan()].max().item()
    zeros = set(golden.info["zero_gradient_names"])
    for name, norm, first in zip(golden.info["grad_names"], norms, golden.tensor("train.grad_first8"), strict=True):
        gradient = parameters[_ours(name, our_name)].grad
        if norm.isnan():
            assert gradient is None, f"{name}: has a gradient, the reference gives none"
            continue
        assert gradient is not None, f"{name}: no gradient"
        scale = largest if name in zeros else norm.item()
        _assert_norm_and_first(gradient, norm, first, GRADIENT_BOUND * scale, f"gradient of {name}")
    stored = zip(
        golden.info["buffer_names"],
        golden.tensor("train.buffer_norm"),
        golden.tensor("train.buffer_first8"),
        strict=True,
    )
    for name, norm, first in stored:
        _assert_norm_and_first(buffers[_ours(name, our_name)], norm, first, BUFFER_BOUND * norm.item(), name)
    covered = {_ours(name, our_name) for name in golden.info["grad_names"]}
    assert covered == set(parameters), f"parameters that the reference lacks: {sorted(set(parameters) - covered)}"


def _assert_norm_and_first(found: Tensor, norm: Tensor, first: Tensor, bound: float, what: str) -> None:
    error = abs(torch.linalg.vector_norm(found).item() - norm.item())
    assert error <= bound, f"{what}: norm off by {error:.1e}, bound {bound:.1e}"
    expected = first[~first.isnan()]
    head = found.flatten()[:8]
    assert len(head) == len(expected), f"{what}: {found.numel()} values, the reference has {len(expected)}"
    error = (head - expected).abs().max().item()
    assert error <= bound, f"{what}: first values off by {error:.1e}, bound {bound:.1e}"


def _ours(name: str, our_name: Callable[[str], str | None]) -> str:
    found = our_name(name)
    assert found is not None, f"no name of ours for '{name}'"
    return found
