"""Frozen features of a data subset in data-set order, the input of every probe.

Cache of features on disk, keyed by everything that their bits depend on.

Digests of the code that features depend on: plugins, and modules of sightline.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sightline.contract import registry
from sightline.contract.binding import AvailableKeys, bind
from sightline.contract.errors import ConfigError, DataError, UserError
from sightline.contract.members import ModelMembers
from sightline.contract.plugins import loaded_sha256
from sightline.contract.regular_files import parse_json, read_regular_file
from sightline.contract.types import ComponentConfig
from sightline.engine.batch_stream import evaluation_keys, read_batches
from sightline.engine.build import DataSubset
from sightline.engine.device import Precision, to_device
from sightline.engine.distributed import World
from sightline.store.files.atomic_write import disk_failure, open_atomic, replace_atomic
from sightline.store.prepared.prepared_set import compute_sha256


@dataclass(frozen=True, eq=False)
class Features:
    """Features `rows` (N, D) float32 and `labels` (N,) int64, in the order of the data set."""

    rows: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: np.ndarray) -> Features:
        """Select samples by index (M,), in this order."""
        return Features(self.rows[index], self.labels[index])


def label_key(part: DataSubset) -> str | None:
    """Return the field with one class per cloud: `label`, else `category` (if labels are of points), else None."""
    fields = part.dataset.info.fields
    return next((name for name in ("label", "category") if name in fields and not fields[name].shape.split()), None)


def extract(
    model: nn.Module, part: DataSubset, world: World, *, batch_size: int, seed: int, precision: str, workers: int = 0
) -> Features:
    """Extract the features of all samples by the model's `encode` in evaluation mode, without gradients.

    Batches are distributed over the processes, and every process returns all rows: the same bits for any number of
    processes. Raises ConfigError for a model without `encode` and for data without classes, DataError for features that
    are not finite; if one process cannot read a cloud, all raise.
    """
    key = label_key(part)
    if key is None:
        raise ConfigError(
            f"{part.split}: the data set gives no class for each cloud (label or category); none to probe"
        )
    encode = bind(
        get_encode(model), AvailableKeys("the data set", part.reader.keys), owner=f"{type(model).__name__}.encode"
    )
    plan = evaluation_keys(part.indices, batch_size, epoch=0, seed=seed)
    own_batches = range(world.rank, len(plan), world.size)
    was_training, precision_context = model.training, Precision(precision)
    # Results are allocated first: kept piece by piece between freed blocks, they fragment the heap by gigabytes.
    num_rows = sum(len(plan[batch_index]) for batch_index in own_batches)
    width: Any = model.feature_width
    rows = torch.zeros(num_rows, int(width))
    labels, sample_indices = torch.zeros(2, num_rows, dtype=torch.int64)
    end = 0
    batches = read_batches(part.reader, (plan[batch_index] for batch_index in own_batches), workers)
    model.eval()
    with torch.no_grad(), contextlib.closing(batches), share_errors(world):
        for batch in batches:
            inputs = to_device(encode.select(batch), world.device, float_dtype=precision_context.parameter_dtype)
            with precision_context.autocast(world.device):
                encoded: Tensor = encode.function(**inputs)
            start, end = end, end + len(encoded)
            rows[start:end] = encoded.float().cpu()
            labels[start:end] = batch[key]
            sample_indices[start:end] = batch["sample_index"]
    model.train(was_training)
    gathered = [world.gather_rows(array, operation="features")[0] for array in (rows, labels, sample_indices)]
    return _sort_samples(part, *gathered)


@contextlib.contextmanager
def share_errors(world: World) -> Iterator[None]:
    """Context that raises an error of one process on all of them, so that none waits for the others."""
    fault: Exception | None = None
    try:
        yield
    except Exception as error:  # noqa: BLE001 - raised again below
        fault = error
    faults = world.gather_text("" if fault is None else str(fault) or type(fault).__name__, operation="faults")
    if fault is not None:
        raise fault
    if any(faults):
        raise DataError(next(filter(None, faults)))


def get_encode(model: nn.Module) -> Any:
    """Get the model's `encode`. Raises ConfigError for a model without it."""
    encode = ModelMembers.encode.get(model)
    if not callable(encode) or ModelMembers.feature_width.get(model) is None:
        raise ConfigError(
            f"{type(model).__name__}: has no `encode` and `feature_width`; probes need a model that derives from an "
            "encoder, such as dgcnn, intrapoint or crosspoint"
        )
    return encode


def feature_statistics(rows: np.ndarray) -> dict[str, float]:
    """Compute statistics of features (N, D): mean norm, deviations of dimensions, share of constant dimensions.

    `variance` is the sum over dimensions, the mean squared distance from the mean: the scale that matters to a linear
    classifier with an offset.
    """
    norms = np.linalg.norm(rows.astype(np.float64), axis=1)
    deviation = rows.std(axis=0, dtype=np.float64)
    is_dead = rows.max(axis=0) == rows.min(axis=0)
    return {
        "width": rows.shape[1],
        "mean_norm": float(norms.mean()),
        "variance": float((deviation**2).sum()),
        "deviation_median": float(np.median(deviation)),
        "deviation_smallest": float(deviation.min()),
        "deviation_largest": float(deviation.max()),
        "dead_share": float(is_dead.mean()),
    }


def _sort_samples(part: DataSubset, rows: Tensor, labels: Tensor, sample_indices: Tensor) -> Features:
    order = np.argsort(sample_indices.numpy(), kind="stable")
    assert np.array_equal(sample_indices.numpy()[order], np.sort(part.indices)), "every sample is encoded exactly once"
    ordered = rows.numpy()[order]
    broken = np.flatnonzero(~np.isfinite(ordered).all(axis=1))
    if len(broken):
        name = part.sample_name(int(broken[0]))
        raise DataError(f"{part.split}/{name}: its feature is not finite ({len(broken)} such); sightline check RUN")
    return Features(ordered, labels.numpy()[order])


FORMAT_VERSION = 1

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeatureCache:
    """Cache folder: `<split>-<digest of the key>.npz` (rows, labels) and a `.json` with key and file hash.

    Different keys have different file names, so features of other weights or data are never mistaken for these.
    `assert_own` raises before anything is written if the folder's run was replaced by another.
    """

    folder: Path
    assert_own: Callable[[], None] | None = None

    def load(self, key: Mapping[str, Any]) -> Features | None:
        """Load the features of this key, verified by their hash; None if missing or damaged."""
        arrays, document = self._paths(key)
        try:
            stored = parse_json(read_regular_file(document))
            if stored["key"] != _to_plain(key):
                return None
            if compute_sha256(arrays) != stored["sha256"]:
                logger.warning("%s: differs from what was written (SHA-256); the features are computed again", arrays)
                return None
            with np.load(arrays, allow_pickle=False) as archive:
                return Features(archive["rows"], archive["labels"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s: cannot be read (%s); the features are computed again", document, error)
            return None

    def assert_writable(self) -> None:
        """Raise UserError if this process cannot write to the cache; called before features are computed."""
        try:
            self._make_folder()
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            self._assert_own_folder()
            raise UserError(
                f"{self.folder}: features cannot be saved there ({error.strerror or error}); give another folder with "
                "--cache DIR"
            ) from error

    def save(self, key: Mapping[str, Any], features: Features) -> None:
        """Save features under this key, complete or not at all. Raises RunError if the disk cannot be written."""
        arrays, document = self._paths(key)
        try:
            self._make_folder()
            with open_atomic(arrays) as file:
                np.savez(file, rows=features.rows, labels=features.labels)
            self._assert_own_folder()
            record = {"key": _to_plain(key), "sha256": compute_sha256(arrays), "samples": len(features)}
            text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
            replace_atomic(document, text.encode(errors="backslashreplace"))
        except OSError as error:
            self._assert_own_folder()
            raise disk_failure(error, arrays) from error

    def _make_folder(self) -> None:
        """Make the folder; parent folders only if it is not in a run, which may have been moved meanwhile."""
        self._assert_own_folder()
        self.folder.mkdir(parents=self.assert_own is None, exist_ok=True)

    def _assert_own_folder(self) -> None:
        if self.assert_own is not None:
            self.assert_own()

    def _paths(self, key: Mapping[str, Any]) -> tuple[Path, Path]:
        digest = hashlib.sha256(json.dumps(_to_plain(key), sort_keys=True).encode()).hexdigest()[:16]
        stem = f"{key['split']}-{digest}"
        return self.folder / f"{stem}.npz", self.folder / f"{stem}.json"


def weights_digest(model: nn.Module) -> str:
    """Compute the SHA-256 of the names, dtypes, shapes and bytes of all tensors of a model's state."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _to_plain(key: Mapping[str, Any]) -> Any:
    """Return the key as JSON reads it back."""
    return json.loads(json.dumps({"format": FORMAT_VERSION, **key}))


ROOMS = (
    *(".", "areas", "ops", "layers", "config", "contract", "engine", "instrument", "parts/models", "parts/transforms"),
    *("store", "workbench/probe"),
)
"""Folders of the code from a cloud file to its feature; the package's top-level modules are used by all."""


def plugin_digests(*blocks: tuple[str, ComponentConfig]) -> dict[str, str]:
    """Return the plugins of these blocks and of blocks inside them: file name and SHA-256 of the loaded code.

    Further imports of a plugin are not included.
    """
    digests: dict[str, str] = {}
    for kind, component in blocks:
        for block in registry.REGISTRIES[kind].bind(component).iterate():
            for part in getattr(block.entry.builder, "__mro__", (block.entry.builder,)):
                digests |= loaded_sha256(part)
    return digests


@cache
def source_sha256() -> str:
    """Compute the SHA-256 of the modules that make features and of the tables that they read (e.g. class names).

    The package version does not identify a checkout that is being edited.
    """
    digest = hashlib.sha256()
    package = resources.files("sightline")
    for room in ROOMS:
        for name, file in _iterate_modules(package.joinpath(room), room, is_deep=room != "."):
            digest.update(f"{name}\n".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _iterate_modules(folder: Traversable, path: str, *, is_deep: bool) -> Iterator[tuple[str, Traversable]]:
    """Iterate over modules and tables of a folder by name, with paths; with `is_deep` also over its sub-folders."""
    entries = sorted(folder.iterdir(), key=lambda entry: (entry.is_dir(), entry.name))
    for entry in entries:
        if entry.is_dir() and is_deep:
            yield from _iterate_modules(entry, f"{path}/{entry.name}", is_deep=True)
        elif entry.name.endswith((".py", ".json", ".yaml")):
            yield f"{path}/{entry.name}", entry
