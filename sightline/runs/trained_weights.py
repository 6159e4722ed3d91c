"""Trained weights of a run, from a checkpoint or from the packed model of a compressed run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from sightline.compression.packed_file import assert_whole, read_packed
from sightline.contract.errors import CheckpointError
from sightline.runs.checkpoint import load, resolve
from sightline.store.prepared.prepared_set import compute_sha256

PACKED_FILE = "model.slq"
"""File of a run directory that contains its weights if the run is packed; such a run has no checkpoints."""


def is_packed(run: Path) -> bool:
    """Return True if a run directory contains a packed model."""
    return (run / PACKED_FILE).is_file()


def resolve_weights(path: Path) -> Path:
    """Resolve a user's path to a checkpoint folder or a packed file. Raises CheckpointError if it is neither."""
    if is_packed(path):
        return path / PACKED_FILE
    return path if path.suffix == ".slq" and path.is_file() else resolve(path)


def load_trained_state(path: Path, *, remedy: str | None = None) -> Mapping[str, Tensor]:
    """Load the weights to evaluate, by plain names: the EMA if the run has one.

    `remedy` states what to do with a sound checkpoint if this one is damaged. Raises CheckpointError for damaged files.
    """
    if is_packed(path) or path.suffix == ".slq":
        return read_packed(resolve_weights(path)).state
    return (load(path) if remedy is None else load(path, remedy=remedy)).evaluation_weights


def load_losses(path: Path) -> Mapping[str, Tensor]:
    """Load the parameters of losses to evaluate, `<loss>.<parameter>`; empty if none are stored.

    A packed model leaves them out: predictions do not need them.
    """
    return {} if is_packed(path) or path.suffix == ".slq" else load(path).evaluated_losses


def evaluated_sha256(weights_path: Path) -> str:
    """Compute the SHA-256 of the weights to evaluate, at a path from `resolve_weights`.

    Raises CheckpointError for a packed file whose size differs from the one in its header.
    """
    if not weights_path.is_dir():
        assert_whole(weights_path)
        return compute_sha256(weights_path)
    average = weights_path / "ema.safetensors"
    return compute_sha256(average if average.exists() else weights_path / "model.safetensors")


def assert_sha256(path: Path, expected: str | None) -> str:
    """Compute the SHA-256 of a teacher's weights. Raises CheckpointError if it differs from `expected`."""
    digest = evaluated_sha256(resolve_weights(path))
    if expected not in (None, digest):
        raise CheckpointError(
            f"{path}: holds other weights (SHA-256 {digest[:16]}...) than this run was trained with "
            f"({str(expected)[:16]}...); name the checkpoint that has those: teacher.from=PATH"
        )
    return digest
