"""Features kept on disk, under everything that their bits depend on; what no longer fits is never found."""

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
    """A folder of features: `<split>-<digest of the key>.npz` (rows, labels) and a `.json` with key and file hash.

    A key that differs in anything has another name, so features of other weights or data are never taken for these.
    `assert_own` raises where the folder is in a run that is another one by now, before anything is written.
    """

    folder: Path
    assert_own: Callable[[], None] | None = None

    def load(self, key: Mapping[str, Any]) -> Features | None:
        """The features kept under this key, verified by their hash; None where there are none, or damaged ones."""
        arrays, document = self._paths(key)
        try:
            kept = parse_json(read_regular_file(document))
            if kept["key"] != _plain(key):
                return None
            if compute_sha256(arrays) != kept["sha256"]:
                logger.warning("%s: is not what was written (SHA-256); the features are computed anew", arrays)
                return None
            with np.load(arrays, allow_pickle=False) as archive:
                return Features(archive["rows"], archive["labels"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s: does not read (%s); the features are computed anew", document, error)
            return None

    def assert_writable(self) -> None:
        """Raises UserError where this process could keep nothing; asked before features are computed."""
        try:
            self._make_folder()
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            self._assert_own_folder()
            raise UserError(
                f"{self.folder}: features cannot be kept there ({error.strerror or error}); give another folder with "
                "--cache DIR"
            ) from error

    def save(self, key: Mapping[str, Any], features: Features) -> None:
        """Keep features under this key, whole or not at all. Raises RunError where the disk refuses them."""
        arrays, document = self._paths(key)
        try:
            self._make_folder()
            with open_atomic(arrays) as file:
                np.savez(file, rows=features.rows, labels=features.labels)
            self._assert_own_folder()
            kept = {"key": _plain(key), "sha256": compute_sha256(arrays), "samples": len(features)}
            text = json.dumps(kept, indent=2, ensure_ascii=False) + "\n"
            replace_atomic(document, text.encode(errors="backslashreplace"))
        except OSError as error:
            self._assert_own_folder()
            raise disk_failure(error, arrays) from error

    def _make_folder(self) -> None:
        """The folder, and those around it where it is in no run that may have been moved just now."""
        self._assert_own_folder()
        self.folder.mkdir(parents=self.assert_own is None, exist_ok=True)

    def _assert_own_folder(self) -> None:
        if self.assert_own is not None:
            self.assert_own()

    def _paths(self, key: Mapping[str, Any]) -> tuple[Path, Path]:
        digest = hashlib.sha256(json.dumps(_plain(key), sort_keys=True).encode()).hexdigest()[:16]
        stem = f"{key['split']}-{digest}"
        return self.folder / f"{stem}.npz", self.folder / f"{stem}.json"


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and bytes of all tensors of a model's state."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _plain(key: Mapping[str, Any]) -> Any:
    """The key as JSON gives it back."""
    return json.loads(json.dumps({"format": FORMAT_VERSION, **key}))
