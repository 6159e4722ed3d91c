"""Listing of the user's own scenes by split: one folder of files, or a folder for each split."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sightline.data.clouds.cloud_listing import SPLITS
from sightline.data.clouds.modelnet_classes import natural_sort_key
from sightline.data.files.cloud_files import is_cloud_file
from sightline.data.store.prepared_set import MANIFEST, summarise_folder
from sightline.errors import DataError

__all__ = ["ListedScene", "list_scenes", "read_class_names"]

CLASSES_FILE = "classes.txt"
_LAYOUTS = "files in one folder, or in its folders train and test (and validation)"


class ListedScene(NamedTuple):
    """File of a scene and its split."""

    path: Path
    split: str

    @property
    def name(self) -> str:
        return self.path.name


def list_scenes(root: Path, *, test_share: float, validation_share: float, seed: int) -> tuple[str, list[ListedScene]]:
    """Find the layout (`folder` or `split_folders`) and list its scenes, sorted by name.

    Files of one folder are split by a hash of seed and name: shares are rounded to the nearest, at least one scene;
    files that are added later change the split of few others.
    Raises DataError for a folder without scenes, with too few, or with folders other than the splits.
    """
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder; give one with scenes: {_LAYOUTS}")
    if (root / MANIFEST).is_file():
        raise DataError(f"{root}: is prepared already; give the folder of the files")
    folders = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    files = _list_files(root)
    if not folders:
        return "folder", _split_by_hash(root, files, test_share, validation_share, seed)
    unknown = [name for name in folders if name not in SPLITS]
    if unknown or files:
        contents = f"the folder {unknown[0]}" if unknown else f"{files[0].name} beside the folder {folders[0]}"
        raise DataError(f"{root}: holds {contents}; lay it out as {_LAYOUTS}")
    if not {"train", "test"} <= set(folders):
        raise DataError(f"{root}: has the folders {', '.join(folders)}, train and test are needed")
    scenes = [ListedScene(path, split) for split in SPLITS if split in folders for path in _list_files(root / split)]
    empty = [split for split in folders if not any(scene.split == split for scene in scenes)]
    if empty:
        raise DataError(f"{root / empty[0]}: holds no scene, it holds {summarise_folder(root / empty[0])}; add one")
    return "split_folders", scenes


def read_class_names(root: Path) -> tuple[str, ...] | None:
    """Read the class names from `classes.txt`, one per line; None without the file. Raises DataError for duplicates."""
    path = root / CLASSES_FILE
    if not path.is_file():
        return None
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text; write one class name a line") from error
    names = [line.strip() for line in lines]
    for number, name in enumerate(names, start=1):
        if not name or name in names[: number - 1]:
            fault = "is empty" if not name else f"names '{name}' a second time"
            raise DataError(f"{path}:{number}: {fault}; write one class name a line, that of label 0 first")
    return tuple(names)


def _list_files(folder: Path) -> list[Path]:
    paths = filter(is_cloud_file, folder.iterdir())
    clouds = (path for path in paths if path.name != CLASSES_FILE and not path.name.startswith("."))
    return sorted(clouds, key=lambda path: natural_sort_key(path.name))


def _split_by_hash(
    root: Path, paths: Sequence[Path], test_share: float, validation_share: float, seed: int
) -> list[ListedScene]:
    num_test = max(1, round(test_share * len(paths)))
    num_validation = max(1, round(validation_share * len(paths))) if validation_share else 0
    if num_test + num_validation >= len(paths):
        raise DataError(
            f"{root}: holds {len(paths)} scenes, too few for {num_test} to test, {num_validation} to validate and one "
            f"to train on; add some, or lay it out as {_LAYOUTS}"
        )
    order = sorted(
        paths, key=lambda path: hashlib.sha256(f"{seed}/{path.name}".encode(errors="surrogateescape")).hexdigest()
    )
    split_by_path = {path: "test" for path in order[:num_test]}
    split_by_path |= {path: "validation" for path in order[num_test : num_test + num_validation]}
    return [ListedScene(path, split_by_path.get(path, "train")) for path in paths]
