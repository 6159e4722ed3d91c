"""YOLO's text files: a row for each box, beside an image, with its place as shares of the image's sides."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sightline.data.boxes.coco_files import COLUMNS
from sightline.data.boxes.image_listing import (
    AnnotationFaults,
    CategoryIds,
    ListedImage,
    ListedImageSet,
    Values,
    guess_split,
)
from sightline.data.files.image_files import IMAGE_SUFFIXES
from sightline.data.files.input_files import read_file
from sightline.data.files.text_tables import parse_count
from sightline.data.files.yaml_files import parsed_yaml
from sightline.data.store.prepared_set import summarise_folder
from sightline.errors import DataError

__all__ = ["find_yolo", "list_images"]

_NAME_LISTS = ("classes.txt", "obj.names", "names.txt")
_SPLIT_KEYS = {"train": "train", "test": "test", "val": "validation"}
_MARGIN = 0.01
"""How far shares may lie outside 0 to 1: annotation tools round. Source: ultralytics, data/utils.py."""


def find_yolo(source: Path, *, names: Sequence[str] | None) -> ListedImageSet:
    """The images below a folder with their text files; `names` are the classes where no file names them.

    Raises DataError for a folder without images or without any text file of theirs, and for classes without names.
    """
    root = source.expanduser().resolve()
    paths = list_images(root)
    config_path, config = _config(root)
    classes = _classes(root, names, config_path, config)
    split_by, shared, missing = _stated_splits(root, config_path, config)
    texts = {path: _label_path(root, path) for path in paths}
    numbers = _image_ids(paths)
    images: list[ListedImage] = []
    bare: list[Path] = []
    for path, labels in texts.items():
        split = guess_split(path.relative_to(root)) if split_by is None else split_by.get(path)
        if split is None:
            continue  # in none of the splits that the file of names states
        bare += [path] if labels is None else []
        files = tuple(each for each in (labels, config_path) if each is not None)
        name = path.relative_to(root).as_posix()
        images.append(
            ListedImage(split, name, path, partial(_values, labels, classes, name), numbers[path], None, files)
        )
    if not images:
        raise DataError(f"{config_path}: the splits that it states hold none of the {len(paths)} images below {root}")
    if len(bare) == len(images):
        raise DataError(
            f"{root}: none of {len(images)} images has a text file in labels/ or beside it; give their folder"
        )
    notes = (
        [f"{len(bare)} images have no text file and count as empty, first: {bare[0].relative_to(root)}"] if bare else []
    )
    notes += [f"{config_path} states {each}, which is not below {root}: passed over" for each in missing]
    left_out = len(paths) - len(images)
    notes += [f"{left_out} images are in none of the splits that {config_path} states, left out"] if left_out else []
    if shared:
        counts = "none" if {*(split_by or {}).values()} == {"all"} else "the first"
        notes += [f"{len(shared)} images are stated for two splits and count for {counts}, first: {shared[0]}"]
    users = Counter(text for text in texts.values() if text is not None)
    both = [text for text, count in users.items() if count > 1]
    if both:
        notes += [f"{len(both)} text files are those of several images, which all have their boxes, first: {both[0]}"]
    faults = AnnotationFaults()
    for path in sorted((split_by or {}).keys() - texts.keys()):
        faults.add("images that are missing or damaged", f"{path}, which {config_path} states")
    for text in _without_image(texts):
        faults.add("text files without an image", str(text))
    return ListedImageSet(root, "yolo_txt", classes, images, COLUMNS, "boxes", faults, notes, "middle, size")


def _image_ids(paths: Sequence[Path]) -> dict[Path, int]:
    """The number that names an image in files of results: of files called by numbers this number, else their place."""
    stems = [path.stem for path in paths]
    has_numbers = all(stem.isascii() and stem.isdecimal() and len(stem) < 19 for stem in stems)
    numbers = [*map(int, stems)] if has_numbers else []
    return dict(zip(paths, numbers if len({*numbers}) == len(paths) else range(1, len(paths) + 1), strict=True))


def list_images(root: Path, *, may_lack: bool = False) -> list[Path]:
    """All images in a folder and its folders, links followed, in the order of their paths.

    Raises DataError where there are none, unless it `may_lack` them.
    """
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # a link back: the same images once more, or without end
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names = (name for name in files if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES)
        found.extend(Path(folder) / name for name in names)
    if not found and not may_lack:
        held = f"holds {summarise_folder(root)}" if root.is_dir() else "there is no such folder"
        raise DataError(f"{root}: {held}, no image ({', '.join(sorted(IMAGE_SUFFIXES))}); give a folder with images")
    return sorted(found)


def _config(root: Path) -> tuple[Path | None, dict[str, Any]]:
    """The YAML file of a folder that names the classes, and what it holds; nothing where there is none."""
    for path in sorted(root.glob("*.y*ml")):
        content = read_file(path)
        document = parsed_yaml(content, path, name="a file of classes") if b"names" in content else None
        if isinstance(document, dict) and "names" in document:
            return path, document
    return None, {}


def _classes(root: Path, names: Sequence[str] | None, path: Path | None, config: dict[str, Any]) -> CategoryIds:
    if names is not None:
        return CategoryIds.from_ids(dict(enumerate(names)), where="names")
    if path is not None:
        table = config["names"]
        pairs = table if isinstance(table, dict) else dict(enumerate(table)) if isinstance(table, list) else {}
        numbers = [parse_count(str(each)) for each in pairs]
        is_name = [isinstance(name, str | int | float) for name in pairs.values()]
        if None in numbers or len({*numbers}) < len(numbers) or not all(is_name):
            raise DataError(f"{path}: names needs a list of names, or a name for each of some whole numbers")
        texts = {number: str(name) for number, name in zip(numbers, pairs.values(), strict=True) if number is not None}
        return CategoryIds.from_ids(texts, where=str(path))
    for place in (folder / each for folder in (root, root / "labels") for each in _NAME_LISTS):
        if place.is_file():
            lines = read_file(place).decode("utf-8-sig", "replace").splitlines()
            return CategoryIds.from_ids(
                dict(enumerate(line.strip() for line in lines if line.strip())), where=str(place)
            )
    raise DataError(
        f"{root}: nothing names the classes: no YAML file with names, no {', '.join(_NAME_LISTS)}; state 'names=[a, b]'"
    )


def _stated_splits(
    root: Path, config_path: Path | None, config: dict[str, Any]
) -> tuple[dict[Path, str] | None, list[str], list[str]]:
    """The split of each image by the folders or lists that the file of names states; None where none is here.

    Those stated for a second split too, which would be tested on what was trained on, are named, and so are folders and
    lists that are not there. One folder for
    training and for all else says what the folder's name says, or that there are no splits.
    """
    splits: dict[Path, str] = {}
    shared: list[str] = []
    missing: list[str] = []
    base = "".join(_texts(config, "path", config_path)[:1])
    for key, split in _SPLIT_KEYS.items():
        for each in _texts(config, key, config_path):
            found = _stated_images(root, base, each)
            if found is None:
                missing.append(f"{key}: {each}")
            for path in found or ():
                if splits.setdefault(path, split) != split:
                    shared.append(str(path))
    if {*splits} == {*map(Path, shared)} and isinstance(folder := config.get("train"), str):
        splits = dict.fromkeys(splits, guess_split(Path(folder)))
    return splits or None, shared, missing


def _texts(config: dict[str, Any], key: str, path: Path | None) -> list[str]:
    """The text of an entry, or the texts in its list; none where it is left out."""
    stated = config.get(key)
    texts = stated if isinstance(stated, list) else [] if stated is None else [stated]
    wrong = next((each for each in texts if isinstance(each, bool) or not isinstance(each, str | int | float)), None)
    if wrong is not None:
        raise DataError(f"{path}: {key}: found {str(wrong)[:40]}, the path of a folder, or a list of paths, is needed")
    return [*map(str, texts)]  # a folder may be called 2024


def _stated_images(root: Path, base: str, stated: str) -> list[Path] | None:
    """The images of a folder, or of a list of paths, that stands in a file from another place: tried below `root`.

    None where neither is there.
    """
    entry = stated
    while entry.startswith(("../", "./")):
        entry = entry.partition("/")[2]
    places = (path for path in (root / base / entry, root / entry) if path.is_relative_to(root))
    place = next(filter(os.path.exists, places), None)  # which knows names that are too long for a disk
    if place is None:
        return None
    if place.is_dir():
        return list_images(place)
    lines = read_file(place).decode("utf-8-sig", "replace").splitlines()
    return [place.parent / line.strip().removeprefix("./") for line in lines]


def _label_path(root: Path, path: Path) -> Path | None:
    """The text file of an image: in `labels` where the image is in `images`, else beside it; None without one."""
    parts = path.relative_to(root).with_suffix(".txt").parts
    folders = [place for place, part in enumerate(parts[:-1]) if part == "images"]
    there = [root.joinpath(*parts[:place], "labels", *parts[place + 1 :]) for place in folders[-1:]]
    return next((each for each in (*there, root.joinpath(*parts)) if each.is_file()), None)


def _without_image(texts: Mapping[Path, Path | None]) -> list[Path]:
    """The text files in folders of their own (`labels`) that belong to no image."""
    used = {text for text in texts.values() if text is not None}
    folders = {text.parent for path, text in texts.items() if text is not None and text.parent != path.parent}
    there = (text for folder in sorted(folders) for text in sorted(folder.glob("*.txt")))
    return [text for text in there if text not in used and text.name not in _NAME_LISTS]


def _values(
    path: Path | None, classes: CategoryIds, name: str, size_px: tuple[int, int], faults: AnnotationFaults
) -> Values:
    """The boxes of a text file in pixels of an image of this height and width."""
    text = "" if path is None else read_file(path).decode("utf-8-sig", "replace")
    label_of = {number: label for label, number in enumerate(classes.ids)}
    scale = np.array(size_px[::-1] * 2, dtype=np.float64)
    boxes, labels = [], []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.split():
            continue
        try:
            label, box = _row(line)
            if label not in label_of:
                raise ValueError(f"class {label} of {len(label_of)}")
        except ValueError as error:
            faults.add("rows that cannot be meant", f"{path}:{number}: '{line[:60]}' ({error})")
            continue
        boxes.append(box * scale)
        labels.append(label_of[label])
    found = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    is_ignored = np.zeros(len(found), dtype=bool)
    area = (found[:, 2:] - found[:, :2]).prod(axis=1)
    return {"boxes": found, "label": np.array(labels, dtype=np.int64), "area": area, "is_ignored": is_ignored}


def _row(line: str) -> tuple[int, np.ndarray]:
    """The class of a row and its box in shares: of a centre and sides, or about the corners of a polygon."""
    values = np.array(line.split(), dtype=np.float64)
    places = values[1:]
    if len(places) != 4 and (len(places) < 6 or len(places) % 2):
        raise ValueError("class, centre x, centre y, width and height, or class and corners, are needed")
    if not np.isfinite(values).all() or values[0] != int(values[0]):
        raise ValueError("a whole number and finite shares are needed")
    if places.min() < -_MARGIN or places.max() > 1 + _MARGIN:
        raise ValueError("shares of the image from 0 to 1 are needed, not pixels")
    centre, half = places[:2], places[2:4] / 2
    corners = places.reshape(-1, 2)
    box = np.concatenate(
        [centre - half, centre + half] if len(places) == 4 else [corners.min(axis=0), corners.max(axis=0)]
    )
    if not (box[2:] > box[:2]).all():
        raise ValueError("width and height above 0 are needed")
    return int(values[0]), box
