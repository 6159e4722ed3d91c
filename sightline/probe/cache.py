"""Cache of features on disk, keyed by everything that their bits depend on."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sightline.data.files.atomic_write import open_atomic
from sightline.data.store.prepared_set import compute_sha256
from sightline.errors import UserError
from sightline.probe.features import Features
from sightline.regular_files import parse_json, read_regular_file
from sightline.runs.atomic_files import disk_failure, replace_atomic

__all__ = ["FeatureCache", "weights_digest"]

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
