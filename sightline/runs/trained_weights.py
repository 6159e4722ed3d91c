"""The weights of a trained run, wherever a path leads: to a checkpoint, or to the packed model of a compressed run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from sightline.data.store.prepared_set import compute_sha256
from sightline.errors import CheckpointError
from sightline.runs import checkpoint
from sightline.runs.packed import assert_whole, read_packed

__all__ = [
    "PACKED_FILE",
    "assert_sha256",
    "evaluated_sha256",
    "is_packed",
    "load_losses",
    "load_trained_state",
    "resolve_weights",
]

PACKED_FILE = "model.slq"
"""The file of a run directory that holds its weights where the run is packed; such a run has no checkpoints."""


def is_packed(run: Path) -> bool:
    """Whether a run directory holds a packed model."""
    return (run / PACKED_FILE).is_file()


def resolve_weights(path: Path) -> Path:
    """The checkpoint folder or the packed file that a user's path means. Raises CheckpointError where it is neither."""
    if is_packed(path):
        return path / PACKED_FILE
    return path if path.suffix == ".slq" and path.is_file() else checkpoint.resolve(path)


def load_trained_state(path: Path, *, remedy: str | None = None) -> Mapping[str, Tensor]:
    """The weights whose figures count, by plain names: the average where a run kept one.

    `remedy`: what to do with a sound checkpoint where this one is damaged. Raises CheckpointError for damaged files.
    """
    if is_packed(path) or path.suffix == ".slq":
        return read_packed(resolve_weights(path)).state
    return (checkpoint.load(path) if remedy is None else checkpoint.load(path, remedy=remedy)).evaluation_weights


def load_losses(path: Path) -> Mapping[str, Tensor]:
    """The parameters of losses beside the weights whose figures count, `<loss>.<parameter>`; empty where none are kept.

    A packed model leaves them out: a prediction needs none of them.
    """
    return {} if is_packed(path) or path.suffix == ".slq" else checkpoint.load(path).evaluated_losses


def evaluated_sha256(place: Path) -> str:
    """The SHA-256 of the weights whose figures count, of what `find` gives.

    Raises CheckpointError for a packed file whose size is not the one that it promises.
    """
    if not place.is_dir():
        assert_whole(place)
        return compute_sha256(place)
    average = place / "ema.safetensors"
    return compute_sha256(average if average.exists() else place / "model.safetensors")


def assert_sha256(path: Path, expected: str | None) -> str:
    """The SHA-256 of a teacher's weights. Raises CheckpointError where others are expected."""
    found = evaluated_sha256(resolve_weights(path))
    if expected not in (None, found):
        raise CheckpointError(
            f"{path}: holds other weights (SHA-256 {found[:16]}...) than this run was trained with "
            f"({str(expected)[:16]}...); name the checkpoint that has those: teacher.from=PATH"
        )
    return found
