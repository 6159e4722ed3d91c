"""Records of one training step by a program in any language: NPY files or one NPZ, read as plain numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sightline.contract.errors import UserError, join_some
from sightline.contract.regular_files import assert_fits_memory
from sightline.instrument.formats import FORMATS, Format
from sightline.store.files.array_files import npz_array, npz_names, read_npy

STAGES = ("inputs", "weights", "forward", "loss", "gradients", "after")
"""Stages of a step, as names of arrays have them: `weights` are those before it, `after` those behind it."""
_NAME = re.compile(rf"(\d{{1,9}})\.({'|'.join(STAGES)})\.(\S{{1,200}})")
_MAX_ARRAYS = 100_000
_MAX_BYTES = 1 << 34
_MAX_AXES = 8
_FORM = "NUMBER.STAGE.NAME, as in 0007.forward.conv3.out; stages are " + ", ".join(STAGES)


@dataclass(frozen=True)
class RecordedTensor:
    """Input or result of the call number `call_index` of a layer, in a record's own names; or its gradient."""

    layer: str
    call_index: int
    side: str
    values: Tensor
    is_gradient: bool = False

    @property
    def name(self) -> str:
        """The name as the record has it, with the number of the call if it is not the first."""
        return f"{self.layer}.{self.side}" + (f" (call {self.call_index + 1})" if self.call_index else "")


@dataclass(frozen=True)
class StepRecord:
    """Record of one training step: tensors by the record's own names, in its order.

    `forward` are results (`out`) and inputs (`in`) of layers, `output_gradients` the gradients of results, in the order
    of the forward pass. Floating tensors are in the format in which they were written.
    """

    path: Path
    inputs: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    forward: tuple[RecordedTensor, ...] = ()
    losses: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    output_gradients: tuple[RecordedTensor, ...] = ()
    after: dict[str, Tensor] = field(default_factory=dict)

    @property
    def format(self) -> Format:
        """The coarsest number format of what the program computed."""
        computed = [tensor.values for tensor in (*self.forward, *self.output_gradients)]
        computed += [*self.losses.values(), *self.gradients.values(), *self.after.values()]
        formats = [FORMATS[tensor.dtype] for tensor in computed if tensor.dtype in FORMATS]
        return min(formats, key=lambda format_: format_.digits, default=FORMATS[torch.float32])


def is_record(path: Path) -> bool:
    """Return True if a path is a folder, or is named as an archive of NumPy."""
    return path.suffix == ".npz" or path.is_dir()


def read_record(path: Path) -> StepRecord:
    """Read the record of a step; nothing in it is run.

    Raises UserError in one line for a name of another form, an array that is damaged or holds no plain numbers, a
    record without weights or inputs, and one that memory cannot hold.
    """
    arrays = {}
    for name, values in _read_arrays(path):
        match = _NAME.fullmatch(name)
        if match is None:
            raise UserError(f"{path}: '{name}' is not a name of a record; use {_FORM}")
        arrays[int(match[1]), match[2], match[3]] = _to_tensor(values, f"{path}: {name}")
    by_stage: dict[str, list[tuple[str, Tensor]]] = {stage: [] for stage in STAGES}
    for number, stage, name in sorted(arrays):
        by_stage[stage].append((name, arrays[number, stage, name]))
    for stage in ("inputs", "weights"):
        if not by_stage[stage]:
            raise UserError(f"{path}: the record has no {stage}; write them as NUMBER.{stage}.NAME")
    weights = _to_dict(path, "weights", by_stage["weights"])
    of_results = [entry for entry in by_stage["gradients"] if entry[0].endswith(".out") and entry[0] not in weights]
    of_weights = [entry for entry in by_stage["gradients"] if not any(entry is other for other in of_results)]
    return StepRecord(
        path,
        inputs=_to_dict(path, "inputs", by_stage["inputs"]),
        weights=weights,
        forward=tuple(_count_calls(path, "forward", by_stage["forward"], sides=("out", "in"))),
        losses=_to_dict(path, "loss", by_stage["loss"]),
        gradients=_to_dict(path, "gradients", of_weights),
        output_gradients=tuple(_count_calls(path, "gradients", of_results[::-1], sides=("out",))),
        after=_to_dict(path, "after", by_stage["after"]),
    )


def _read_arrays(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield names and arrays; what they take in memory is checked before any is read."""
    is_archive = path.suffix == ".npz"
    try:
        entries = [] if is_archive else sorted(file for file in path.iterdir() if not file.name.startswith("."))
        files = [file for file in entries if file.suffix == ".npy"]
        unknown = [file.name for file in entries if file.suffix != ".npy"]
        size = path.stat().st_size if is_archive else sum(file.stat().st_size for file in files)
        assert_fits_memory(path, 3 * size)  # the step is computed in float64
    except OSError as error:
        raise UserError(f"--against {path}: cannot be read: {error.strerror}") from None
    names = npz_names(path) if is_archive else [file.stem for file in files]
    if not names:
        raise UserError(f"--against {path}: holds no arrays of a record; write files named {_FORM}")
    if unknown:
        raise UserError(f"--against {path}: {join_some(unknown, most=3)}: is no array of a record; move it elsewhere")
    if len(names) > _MAX_ARRAYS or size > _MAX_BYTES:
        raise UserError(
            f"--against {path}: {len(names):,} arrays of {size:,} bytes; at most {_MAX_ARRAYS:,} of {_MAX_BYTES:,} are "
            "read: record one step of fewer samples"
        )
    if len(set(names)) < len(names):
        raise UserError(f"--against {path}: an array is there twice; write each once")
    for name in names:
        yield name, npz_array(path, name) if is_archive else read_npy(path / f"{name}.npy")


def _to_tensor(values: np.ndarray, where: str) -> Tensor:
    """Convert an array; integers become int64. Raises UserError for other kinds of values."""
    if values.dtype.kind not in "fiub" or values.dtype.itemsize > 8 or values.ndim > _MAX_AXES:
        raise UserError(f"{where}: is {values.dtype} with {values.ndim} axes; store real numbers of up to 8 bytes each")
    if values.dtype.kind in "iu":
        if values.size and int(values.max()) > 2**63 - 1:
            raise UserError(f"{where}: holds {values.max()}, which is beyond 64 bits")
        return torch.from_numpy(values.astype(np.int64))
    return torch.from_numpy(np.array(values, dtype=values.dtype.newbyteorder("="), order="C"))


def _to_dict(path: Path, stage: str, tensors: list[tuple[str, Tensor]]) -> dict[str, Tensor]:
    names = [name for name, _ in tensors]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1] if len(set(names)) < len(names) else []
    if twice:
        raise UserError(f"{path}: {stage}.{join_some(twice, most=3)} is there twice; record one step")
    return dict(tensors)


def _count_calls(
    path: Path, stage: str, tensors: list[tuple[str, Tensor]], *, sides: tuple[str, ...]
) -> Iterator[RecordedTensor]:
    """Yield the tensors of layers; of one that is there again and again, each is of the next call."""
    counts: dict[str, int] = {}
    for name, values in tensors:
        layer, _, side = name.rpartition(".")
        if not layer or side not in sides:
            known = f" or {stage}.".join(f"LAYER.{side}" for side in sides)
            raise UserError(f"{path}: {stage}.{name} names no tensor; write {stage}.{known}")
        yield RecordedTensor(layer, counts.get(name, 0), side, values, is_gradient=stage == "gradients")
        counts[name] = counts.get(name, 0) + 1
