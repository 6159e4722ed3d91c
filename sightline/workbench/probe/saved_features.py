"""Features saved in a run's folder with the digests of all that they depend on, loaded where these are the same."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from safetensors import SafetensorError
from torch import nn

from sightline.config import RunConfig
from sightline.config.plain_values import to_plain
from sightline.contract.dataset import get_data_digest
from sightline.contract.plugins import loaded_plugins
from sightline.contract.regular_files import MAX_BYTES, check_regular_file, parse_json, read_regular_file
from sightline.engine.distributed import World
from sightline.engine.process_inputs import digest_package
from sightline.engine.run_data import DataSubset
from sightline.runs.environment import read_version
from sightline.store.files.atomic_write import lock_descriptor, replace_atomic
from sightline.store.loading.leaves import as_bytes
from sightline.workbench.probe.features import Features, FeatureSplit

FOLDER = "features"
"""Folder of a run that holds them; no other file of the run names it."""
MAX_FILES = 8
"""Maximum of files in the folder: saving removes those that were written first."""
_MAX_HEADER_BYTES = 1 << 16
_LIBRARIES = ("torch", "numpy", "scipy", "numba")
_ARRAYS = {"train.rows": "float32", "train.labels": "int64", "test.rows": "float32", "test.labels": "int64"}

Key = Mapping[str, str]
"""Digest of each thing that features depend on, by what it is called in a note: `weights`, `data`."""


def make_key(
    model: nn.Module, config: RunConfig, data: RunConfig, parts: tuple[DataSubset, DataSubset], device: torch.device
) -> Key | None:
    """Digest all that the features of both splits depend on; None for data that do not state what they contain.

    `config` is that of the network, `data` that of the splits. The size of the batches is part of it, as it changes the
    last bits of features. What a plugin imports from elsewhere than its own folder is not.
    """
    contents = [(part.split, len(part.indices), get_data_digest(part.dataset)) for part in parts]
    if any(digest is None for _, _, digest in contents):
        return None
    plugins = {plugin.path.name: plugin.digests() for plugin in loaded_plugins()}
    versions = {name: read_version(name) for name in _LIBRARIES}
    return {
        "weights": _digest_weights(model),
        "model settings": _digest([to_plain(config.model), to_plain(config.compress), config.train.precision]),
        "data": _digest([to_plain(data.data), data.seed, contents]),
        "evaluation transforms": _digest(to_plain(data.transforms.evaluate)),
        "evaluation batch size": _digest(data.evaluate.batch_size),
        "code": _digest([digest_package(), plugins]),
        "device or library": _digest([device.type, versions]),
    }


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _digest_weights(model: nn.Module) -> str:
    """Compute the SHA-256 of the names, types, shapes and bytes of all tensors of a model's state."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(as_bytes(tensor).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class SavedFeatures:
    """Features of a run by one kind of weights (`trained`, `random`), a file for each key.

    A file is a safetensors file whose header states the key and the SHA-256 of the arrays; it is written whole or not
    at all. What is damaged, or was saved by another key, is never loaded.
    """

    folder: Path
    kind: str

    def load_or_extract(
        self,
        key_of: Callable[[], Key | None],
        extract: Callable[[], FeatureSplit],
        *,
        world: World,
        note: Callable[[str], None],
    ) -> FeatureSplit:
        """Load the features of the key on all processes, or extract and save them; `note` gets one line on it.

        `key_of` returns None for data that do not state what they contain: their features are never saved.
        """
        prefix = "" if self.kind == "trained" else f"{self.kind} weights: "
        key = key_of()
        if key is None:
            note(f"{prefix}features are not saved: the data set states no `fingerprint` of its contents")
            return extract()
        split, reason = self._load(key)
        if all(world.gather_text("found" if split is not None else "", operation="saved features")):
            assert split is not None
            note(f"{prefix}features from {self._path(key)}")
            return split
        if reason:
            note(f"{prefix}features are computed anew: {reason}")
        computed = extract()
        line = world.rank_zero_only(self._save)(key, computed) if key_of() == key else _IMPORTED_LATE
        if line:
            note(f"{prefix}{line}")
        return computed

    def _load(self, key: Key) -> tuple[FeatureSplit | None, str]:
        """Load the features of a key; None, with the reason where there are others, or damaged ones."""
        path = self._path(key)
        try:
            size = check_regular_file(path, allow_link=False)
            data = read_regular_file(path, max_bytes=max(size, MAX_BYTES), allow_link=False)
            return _parse(data, key), ""
        except FileNotFoundError:
            return None, self._describe_nearest(key)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            text = " ".join(str(getattr(error, "strerror", None) or error).split())
            return None, f"{path} is damaged ({text})"

    def _describe_nearest(self, key: Key) -> str:
        """Describe how the most similar saved features differ from these; empty without any."""
        differences: list[list[str]] = []
        for path in self._list_files(self.kind):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
                check_regular_file(path, allow_link=False)
                with path.open("rb") as file:
                    other = _parse_metadata(file.read(8 + _MAX_HEADER_BYTES))["key"]
                differences.append([name for name in key if other.get(name) != key[name]])
        names = min(filter(None, differences), key=len, default=[])
        return f"those in {self.folder} differ in {' and '.join(names)}" if names else ""

    def _save(self, key: Key, split: FeatureSplit) -> str:
        """Save features; return a line if the disk does not take them, which is no error."""
        arrays = {
            f"{name}.{kind}": np.ascontiguousarray(getattr(part, kind))
            for name, part in (("train", split.train), ("test", split.test))
            for kind in ("rows", "labels")
        }
        metadata = {"key": json.dumps(key), "sha256": _digest_arrays(arrays)}
        try:
            self.folder.mkdir(exist_ok=True)  # without parents: a run that was moved meanwhile is not made again
            with _lock(self.folder):
                replace_atomic(self._path(key), safetensors.numpy.save(arrays, metadata))
        except OSError as error:
            return f"features are not saved: {self.folder}: {error.strerror or error}"
        with contextlib.suppress(OSError):
            for path in sorted(self._list_files("*"), key=lambda path: path.stat().st_mtime)[:-MAX_FILES]:
                path.unlink()
        return ""

    def _path(self, key: Key) -> Path:
        return self.folder / f"{self.kind}-{_digest(dict(key))[:16]}.safetensors"

    def _list_files(self, kind: str) -> list[Path]:
        return sorted(self.folder.glob(f"{kind}-{'[0-9a-f]' * 16}.safetensors"))


_IMPORTED_LATE = (
    "features are not saved: a plugin imported modules of its own while they were computed, whose changes would go "
    "unnoticed; import them at its top"
)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Lock a folder, so that two probes never write one temporary file; the kernel unlocks it with the process."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        lock_descriptor(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _parse_metadata(data: bytes) -> dict[str, Any]:
    """Parse the key and the digest of arrays in the beginning of a file. Raises ValueError for another file."""
    length = int.from_bytes(data[:8], "little")
    if length > _MAX_HEADER_BYTES:
        raise ValueError("its header is too long")
    metadata = parse_json(data[8 : 8 + length])["__metadata__"]
    return {"key": parse_json(metadata["key"]), "sha256": metadata["sha256"]}


def _parse(data: bytes, key: Key) -> FeatureSplit:
    """Parse a file of this key. Raises ValueError for another one, and for arrays that are not those of its digest."""
    metadata = _parse_metadata(data)
    arrays: dict[str, np.ndarray] = safetensors.numpy.load(data)
    if metadata["key"] != key or metadata["sha256"] != _digest_arrays(arrays):
        raise ValueError("its content is not what was saved, by its SHA-256")
    if {name: str(array.dtype) for name, array in arrays.items()} != _ARRAYS:
        raise ValueError("it holds other arrays than features and labels")
    train, test = (Features(arrays[f"{name}.rows"], arrays[f"{name}.labels"]) for name in ("train", "test"))
    for part in (train, test):
        if part.rows.ndim != 2 or part.labels.shape != (len(part.rows),) or not np.isfinite(part.rows).all():
            raise ValueError("its features are not finite rows with a label each")
    return FeatureSplit(train, test)


def _digest_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(as_bytes(array).data)
    return digest.hexdigest()
