"""Which scenes a user's own set holds, in which part: from a folder of files, or from a folder for each part."""

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
    """One file and its part."""

    path: Path
    split: str

    @property
    def name(self) -> str:
        return self.path.name


def list_scenes(root: Path, *, test_share: float, validation_share: float, seed: int) -> tuple[str, list[ListedScene]]:
    """The layout (`folder` or `split_folders`) and its scenes, in an order of their names alone.

    Files of one folder are dealt by a hash of seed and name: shares are rounded to the nearest, at least one scene;
    files that are added later move few of the others.
    Raises DataError for a folder that holds no scenes, too few, or other folders than those of the parts.
    """
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder; give one with scenes: {_LAYOUTS}")
    if (root / MANIFEST).is_file():
        raise DataError(f"{root}: is prepared already; give the folder of the files")
    folders = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    loose = _files_in(root)
    if not folders:
        return "folder", _dealt(root, loose, test_share, validation_share, seed)
    other = [name for name in folders if name not in SPLITS]
    if other or loose:
        found = f"the folder {other[0]}" if other else f"{loose[0].name} beside the folder {folders[0]}"
        raise DataError(f"{root}: holds {found}; lay it out as {_LAYOUTS}")
    if not {"train", "test"} <= set(folders):
        raise DataError(f"{root}: has the folders {', '.join(folders)}, train and test are needed")
    scenes = [ListedScene(path, split) for split in SPLITS if split in folders for path in _files_in(root / split)]
    empty = [split for split in folders if not any(scene.split == split for scene in scenes)]
    if empty:
        raise DataError(f"{root / empty[0]}: holds no scene, it holds {summarise_folder(root / empty[0])}; add one")
    return "split_folders", scenes


def read_class_names(root: Path) -> tuple[str, ...] | None:
    """The names in `classes.txt` of a folder, one a line; None without the file. Raises DataError for a name twice."""
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


def _files_in(folder: Path) -> list[Path]:
    paths = filter(is_cloud_file, folder.iterdir())
    clouds = (path for path in paths if path.name != CLASSES_FILE and not path.name.startswith("."))
    return sorted(clouds, key=lambda path: natural_sort_key(path.name))


def _dealt(
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
    part = {path: "test" for path in order[:num_test]}
    part |= {path: "validation" for path in order[num_test : num_test + num_validation]}
    return [ListedScene(path, part.get(path, "train")) for path in paths]
