"""The user's own images with boxes in YOLO text files.

Reader of YOLO text files: one row per box, in relative coordinates, next to the image.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from sightline.contract.errors import DataError
from sightline.store.boxes.image_listing import UNREAD_KIND, UnreadImages, guess_split, is_other_photo, list_images
from sightline.store.boxes.label_table import (
    AnnotationFaults,
    CategoryIds,
    Files,
    LabelFormat,
    LabelledBox,
    LabelledImage,
    LabelledSet,
)
from sightline.store.boxes.label_writing import SPLIT_WORDS, group_by_split
from sightline.store.boxes.other_formats import name_other_set
from sightline.store.boxes.yolo_ids import FirstId, RowIds
from sightline.store.boxes.yolo_rows import KeyPointSigns, has_rows, read_rows
from sightline.store.files.image_files import IMAGE_SUFFIXES
from sightline.store.files.input_files import expand_home, list_files, parsed_yaml, read_file
from sightline.store.files.text_tables import parse_count

_NAME_LISTS = ("classes.txt", "obj.names", "names.txt")
_NAMING = (".yaml", ".yml", ".data")
"""Suffixes of files that name the classes and the splits."""
_SPLIT_KEYS = {"train": "train", "test": "test", "val": "validation"}
_SPLIT_FOLDER = re.compile(r"(?:train|val|test)(?:ing|id|idation)?[0-9]*")
_ESCAPED = re.compile("[\x7f-\xa0\u2028\u2029\ufeff\ufffe\uffff]")
"""Characters that JSON holds as they are, and YAML does not."""


def read_yolo(source: Path, *, names: tuple[str, ...] | None = None, first_id: FirstId | None = None) -> LabelledSet:
    """Read the images below a folder with their text files; `names` are the classes if no file names them.

    `first_id` is the id of the first class in rows, 0 if nothing states it; ids that then seem to count from 1 are
    refused. Rows that can only be boxes with key points are read as such, with a note, although no `kpt_shape` states
    it.

    Raises DataError for a folder without images or without any text file of theirs, for classes without names, and
    for rows that are boxes with key points as well as polygons.
    """
    root, named = expand_home(source).resolve(), None
    if root.suffix in _NAMING and root.is_file():  # as trainers take it: the folder around it is meant
        root, named = root.parent, root
    signs = KeyPointSigns()
    read = partial(_read_set, root, names, signs, named=named, first_id=first_id)
    labels = read(has_key_points=False)
    if not signs.are_possible:
        return labels
    where, num_points = f"{root}: the {signs.num_rows} rows of {signs.num_words} numbers", signs.num_words // 2 - 2
    if not signs.cross:
        raise DataError(
            f"{where} are boxes with {num_points} key points, or polygons of {num_points + 2} corners, first: "
            f"{signs.first}; both fit: in the YAML file that names the classes, write "
            f"'kpt_shape: [{num_points}, 2]' for key points, 'kpt_shape: [0, 2]' for polygons"
        )
    signs.refute()  # what is stated needs no signs
    labels = read(has_key_points=True)
    note = (
        f"{where} count as boxes with {num_points} key points: all points are in their box, and as polygons they cross"
    )
    return replace(labels, notes=[*labels.notes, f"{note} themselves; 'kpt_shape: [0, 2]' in the YAML file denies it"])


def _read_set(
    root: Path,
    names: tuple[str, ...] | None,
    signs: KeyPointSigns,
    *,
    named: Path | None,
    first_id: FirstId | None,
    has_key_points: bool,
) -> LabelledSet:
    """Read a folder; rows that are longer than a box hold key points if the YAML file, or the caller, states it.

    `named` is the file of the classes that the user gave, of several in the folder.
    """
    if root.is_file():
        raise DataError(f"{root}: is a file; give the folder around images and labels: --from {_as_word(root.parent)}")
    paths = list_images(root)
    config_path, config = _read_config(root, named)
    classes = _read_classes(root, names, config_path, config)
    stated = _read_splits(root, config_path, config)
    split_by = stated.split_by
    label_paths = {path: _find_label_file(root, path) for path in paths}
    faults, numbers = AnnotationFaults(), assign_image_ids(paths)
    if (shape := config.get("kpt_shape")) is not None:
        signs.refute()
        has_key_points = not (isinstance(shape, list) and shape[:1] == [0])
    unread, ids = Counter[str](), RowIds(classes, first_id)
    read = partial(read_rows, ids=ids, faults=faults, unread=unread, has_key_points=has_key_points, signs=signs)
    for entry in stated.missing:
        faults.add("stated splits that are not there", f"{config_path} states {entry}, which is not below {root}")
    shared = [path for path in (config_path, *_list_name_files(root), *stated.lists) if path is not None]
    images: list[LabelledImage] = []
    unlabelled: list[Path] = []
    for path, labels in label_paths.items():
        split = guess_image_split(path.relative_to(root).parent) if split_by is None else split_by.get(path)
        if split is None:
            faults.add(f"images in none of the splits that {config_path} states", path.relative_to(root).as_posix())
            continue
        unlabelled += [path] if labels is None else []
        files = tuple(shared if labels is None else [labels, *shared])
        name, boxes = path.relative_to(root).as_posix(), () if labels is None else read(labels)
        images.append(LabelledImage(split, name, path, boxes, numbers[path], None, files, relative=True))
    if not images:
        raise DataError(f"{config_path}: the splits that it states hold none of the {len(paths)} images below {root}")
    unused, notes = _find_unused_label_files(root, label_paths)
    if len(unlabelled) == len(images):
        advice = _describe_misplaced(root, unused[0], [*label_paths]) if unused else "give their folder"
        advice += name_other_set(root, "yolo_txt")
        raise DataError(
            f"{root}: none of {len(images)} images has a text file beside it, or in labels/ beside images/; {advice}"
        )
    users = Counter(text for text in label_paths.values() if text is not None)
    shared_files = [text for text, count in users.items() if count > 1]
    notes += count_note([path.relative_to(root) for path in unlabelled], "images have no text file and count as empty")
    notes += [*stated.notes, *ids.describe(root)]
    notes += _describe_shared(config_path, stated)
    notes += count_note(shared_files, "text files are those of several images, which all have their boxes")
    for path in sorted((split_by or {}).keys() - label_paths.keys()):
        faults.add("images that are missing or damaged", f"{path}, which {config_path} states")
    unread_images = UnreadImages(root)
    others = _list_other_files(root) if unused else {}
    for text in unused:
        photo = next(
            filter(None, (unread_images.take(text.stem, folder) for folder in _list_image_folders(text))), None
        )
        alike = "".join(f", there is {other.name}" for other in others.get(text.stem, [])[:1])
        faults.add(
            "text files without an image" if photo is None else UNREAD_KIND,
            f"{photo or text}{alike if photo is None else ''}",
        )
    notes += unread_images.list_notes()
    return LabelledSet(root, "yolo_txt", classes, images, faults, notes, unread)


def _describe_shared(config_path: Path | None, stated: _StatedSplits) -> list[str]:
    """Describe images that a YAML file states for two splits, and what is trained and tested on instead."""
    keys, num_shared = " and ".join(stated.shared_keys), len({*stated.shared})
    if num_shared and num_shared == len(stated.split_by or ()):
        return [
            f"{config_path}: {keys} state the same {num_shared} images, so that none would be left to test on; "
            "sightline draws splits of its own from them, by data.test_share=0.2 and data.validation_share=0.1; state "
            "other images for val and test to choose them"
        ]
    counted = f"images are stated for {keys} and count for the one that their folder is called as, else the first"
    return count_note(stated.shared, counted)


def count_note(locations: Sequence[object], text: str) -> list[str]:
    """Return a note on the number of places and the first of them; none without places."""
    return [f"{len(locations)} {text}, first: {locations[0]}"] if locations else []


def guess_image_split(folder: Path) -> str:
    """Guess the split of a folder's images, from folders that are named after a split, else from the words in names."""
    named = [part for part in folder.parts if _SPLIT_FOLDER.fullmatch(part.lower())]
    return guess_split(Path(*named) if named else folder)


def assign_image_ids(paths: Sequence[Path]) -> dict[Path, int]:
    """Return the ids of images in result files: the number in the file name if all have one, else the index from 1."""
    stems = [path.stem for path in paths]
    has_numbers = all(stem.isascii() and stem.isdecimal() and len(stem) < 19 for stem in stems)
    numbers = [*map(int, stems)] if has_numbers else []
    return dict(zip(paths, numbers if len({*numbers}) == len(paths) else range(1, len(paths) + 1), strict=True))


def _read_config(root: Path, named: Path | None) -> tuple[Path | None, dict[str, Any]]:
    """Find the YAML file of a folder that names the classes, or Darknet's .data; return its path and content, or None.

    It is `named`, if the user gave one. Raises DataError for two YAML files with other names or splits.
    """
    configs: list[tuple[Path, dict[str, Any]]] = []
    for path in sorted(root.glob("*.y*ml")) if named is None else [named] * (named.suffix != ".data"):
        content = read_file(path)
        document = parsed_yaml(content, path, name="a file of classes") if b"names" in content else None
        if isinstance(document, dict) and "names" in document:
            configs.append((path, document))
    for path, document in configs[1:]:
        if any(document.get(key) != configs[0][1].get(key) for key in ("names", *_SPLIT_KEYS)):
            raise DataError(f"{configs[0][0]} and {path} state other names or splits; keep one of them in the folder")
    for path in (sorted(root.glob("*.data")) if named is None else [named]) if not configs else ():
        rows = [line.split("=", 1) for line in read_file(path).decode("utf-8-sig", "replace").splitlines()]
        stated = {row[0].strip(): row[1].strip() for row in rows if len(row) == 2}
        configs += [(path, {"train": stated["train"], "val": stated.get("valid")})] if "train" in stated else []
    return configs[0] if configs else (None, {})


def _list_name_files(root: Path) -> list[Path]:
    return [path for path in (root / part / name for part in ("", "labels") for name in _NAME_LISTS) if path.is_file()]


def _read_classes(root: Path, names: Sequence[str] | None, path: Path | None, config: dict[str, Any]) -> CategoryIds:
    if names is not None:
        return CategoryIds.from_ids(dict(enumerate(names)), where="names")
    if path is not None and "names" in config:
        table = config["names"]
        pairs = table if isinstance(table, dict) else dict(enumerate(table)) if isinstance(table, list) else {}
        numbers = [parse_count(str(key)) for key in pairs]
        is_name = [isinstance(name, str | int | float) for name in pairs.values()]
        if None in numbers or len({*numbers}) < len(numbers) or not all(is_name):
            raise DataError(f"{path}: names needs a list of names, or a name for each of some whole numbers")
        texts = {number: str(name) for number, name in zip(numbers, pairs.values(), strict=True) if number is not None}
        return CategoryIds.from_ids(texts, where=str(path))
    for list_path in _list_name_files(root)[:1]:
        try:
            lines = [*map(str.strip, read_file(list_path).decode("utf-8-sig").rstrip().splitlines())]
        except UnicodeDecodeError as error:
            raise DataError(f"{list_path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
        if "" in lines:
            line = lines.index("") + 1
            raise DataError(f"{list_path}:{line}: is empty; write one class name a line, that of class 0 first")
        return CategoryIds.from_ids(dict(enumerate(lines)), where=str(list_path))
    above = next((file for folder in root.parents[:2] for file in sorted(folder.glob("*.y*ml")) if _names(file)), None)
    around = "" if above is None else f", or give the folder of {above}, which does: --from {_as_word(above.parent)}"
    raise DataError(
        f"{root}: nothing names the classes: no YAML file with names, no {', '.join(_NAME_LISTS)}; state "
        f"'names=[a, b]'{around}{name_other_set(root, 'yolo_txt')}"
    )


def _names(file: Path) -> bool:
    """Return True if a YAML file seems to name classes."""
    try:
        return re.search(rb"^names\s*:", read_file(file), re.MULTILINE) is not None
    except DataError:
        return False


def _as_word(path: Path) -> str:
    return shlex.quote(str(path))


class _StatedSplits(NamedTuple):
    """Splits that a YAML file states: image → split, None if no image is stated; `shared` are those of two splits.

    `shared_keys` are the keys that state these. `notes` are about paths of which only the end leads below the folder;
    `missing` are entries that lead nowhere; `lists` are files that name images.
    """

    split_by: dict[Path, str] | None
    shared: list[str]
    notes: list[str]
    missing: list[str]
    lists: list[Path]
    shared_keys: tuple[str, ...] = ()


def _read_splits(root: Path, config_path: Path | None, config: dict[str, Any]) -> _StatedSplits:
    """Read the splits of images from the folders or lists that the YAML file states.

    Images stated for two splits are training images that would be tested. If one folder is stated for both, its name
    decides the split. If all images are in two splits, they are of training where their folder is called so, else of no
    split.
    """
    splits: dict[Path, str] = {}
    first_keys: dict[Path, str] = {}
    shared_keys: dict[str, None] = {}
    stated = _StatedSplits(None, [], [], [], [])
    base = "".join(_read_texts(config, "path", config_path)[:1])
    entries = [(key, entry) for key in _SPLIT_KEYS for entry in _read_texts(config, key, config_path)]
    entry_by_path: dict[Path, str] = {}
    key_by_path: dict[Path, str] = {}
    for key, entry in entries:
        path, is_moved = _find_stated_path(root, base, entry)
        if path is None or (is_moved and entry_by_path.setdefault(path, entry) != entry):
            stated.missing.append(f"{key}: {entry}")
            continue
        entry_by_path[path] = entry
        if is_moved:
            stated.notes.append(f"{config_path} states {key}: {entry}; {path.relative_to(root)} is read for it")
        stated.lists.extend([] if path.is_dir() else [path])
        key_by_path.setdefault(path, key)
        is_of_key = (
            key_by_path[path] != key and path.is_dir() and guess_split(path.relative_to(root)) == _SPLIT_KEYS[key]
        )
        for image in list_images(path) if path.is_dir() else _read_list(root, path, stated.notes):
            first_key = first_keys.setdefault(image, key)
            if splits.setdefault(image, _SPLIT_KEYS[key]) != _SPLIT_KEYS[key]:
                stated.shared.append(str(image))
                shared_keys |= {first_key: None, key: None}
                splits[image] = _SPLIT_KEYS[key] if is_of_key else splits[image]
    if {*splits} == {*map(Path, stated.shared)} and isinstance(folder := config.get("train"), str):
        splits = dict.fromkeys(splits, "train" if guess_split(Path(folder)) == "train" else "all")
    return stated._replace(split_by=splits or None, shared_keys=tuple(shared_keys))


def _read_texts(config: dict[str, Any], key: str, path: Path | None) -> list[str]:
    """Return the text of an entry, or the texts in its list; [] if the entry is missing."""
    stated = config.get(key)
    texts = stated if isinstance(stated, list) else [] if stated is None else [stated]
    wrong = next((text for text in texts if isinstance(text, bool) or not isinstance(text, str | int | float)), None)
    if wrong is not None:
        raise DataError(f"{path}: {key}: found {str(wrong)[:40]}, the path of a folder, or a list of paths, is needed")
    return [*map(str, texts)]  # a folder may be called 2024


def _find_stated_path(root: Path, base: str, stated: str, *, min_parts: int = 1) -> tuple[Path | None, bool]:
    r"""Find a stated path below `root`, else the longest end of it that is there, of at least `min_parts` parts.

    Returns None if there is none, or one with other bytes than the stated file, and True if the stated path has more
    folders than those of `base`. It may be one of another machine, or of Windows (C:\\set\\images).
    """
    path = _normalise_below(root, root / base / stated)
    if path.is_relative_to(root) and os.path.exists(path):  # os.path.exists accepts names too long for the file system
        return path, False
    folders, parts = (
        [part for part in text.replace("\\", "/").split("/") if part not in ("", ".", "..")] for text in (base, stated)
    )
    for start in range(len(folders) + len(parts) - min_parts + 1):
        path, outside = root.joinpath(*[*folders, *parts][start:]), os.path.join(root, base, stated)
        if os.path.exists(path) and not (os.path.isfile(path) and is_other_photo(outside, path)):
            return path, start > len(folders)
    return None, False


def _read_list(root: Path, path: Path, notes: list[str]) -> list[Path]:
    """Read the images that a list names, resolved below `root`; note those of which only the end of the path fits."""
    images, moved = [], []
    for line in read_file(path).decode("utf-8-sig", "replace").splitlines():
        if not (entry := line.strip()):
            continue
        image, is_moved = _find_stated_path(root, str(path.parent), entry, min_parts=2)
        moved += [f"{entry}; {image.relative_to(root)} is read for it"] if is_moved and image else []
        images.append(image or _normalise_below(root, path.parent / entry))
    notes += [f"{path}: {note}" for note in count_note(moved, "images are stated in other folders")]
    return images


def _normalise_below(root: Path, path: Path) -> Path:
    """Return a stated path without `..`; one outside of `root` may lead to it, or into it, by a link."""
    plain = Path(os.path.normpath(path))
    if plain.is_relative_to(root) or "\0" in str(plain):
        return plain
    link = next((folder for folder in plain.parents if os.path.realpath(folder) == str(root)), None)
    return root / plain.relative_to(link) if link else Path(os.path.realpath(plain.parent), plain.name)


def _find_label_file(root: Path, path: Path) -> Path | None:
    """Find the text file of an image: in `labels` if the image is in `images`, else next to it; None if missing."""
    beside = path.relative_to(root).with_suffix(".txt")
    return next((file for file in (root / _in_labels(beside.parts), root / beside) if file.is_file()), None)


def _find_unused_label_files(root: Path, label_paths: Mapping[Path, Path | None]) -> tuple[list[Path], list[str]]:
    """List text files that lack their image: in folders of text files, or called as an image that has no text file.

    Of those beside images, and in other folders, files of rows count, and empty ones beside images. Also returns notes
    on files of rows in other folders, and on images with a text file in `labels` and another one beside them.
    """
    used = {text for text in label_paths.values() if text is not None}
    apart = {text.parent for path, text in label_paths.items() if text is not None and text.parent != path.parent}
    apart |= {parent for folder in apart for parent in folder.parents if parent.name == "labels" and parent != root}
    beside = {text.parent for text in used} - apart
    names = {name for path, text in label_paths.items() if text is None for name in (path.stem, path.name)}
    second = {path.with_suffix(".txt") for path, text in label_paths.items() if text is not None} - used
    unused, doubled, elsewhere = list[Path](), list[Path](), list[Path]()
    for text in list_files(root, {".txt"}):
        if text in used or text.name in _NAME_LISTS:
            continue
        if text in second:
            doubled.append(text)
        elif not apart.isdisjoint(text.parents) or text.stem in names:
            unused.append(text)
        elif has_rows(text):
            (unused if text.parent in beside else elsewhere if text.stat().st_size else []).append(text)
    notes = count_note(doubled, "text files beside images are not read, for the images have one in labels")
    what = "text files of rows in folders without images are those of no image, and are left out"
    return unused, notes + count_note(elsewhere, what)


def _list_image_folders(text: Path) -> list[Path]:
    """Return the folders where the image of a text file may be: beside it, or in `images` beside `labels`."""
    parts = text.parent.parts
    named = [index for index, part in enumerate(parts) if part == "labels"]
    return [text.parent, *(Path(*parts[:index], "images", *parts[index + 1 :]) for index in named)]


def _list_other_files(root: Path) -> dict[str, list[Path]]:
    """Return the files but text and images by their names up to each dot: a.jpg.download by a, and by a.jpg."""
    files: defaultdict[str, list[Path]] = defaultdict(list)
    for path in list_files(root):
        if path.suffix.lower() not in {".txt", *IMAGE_SUFFIXES}:
            parts = path.name.split(".")
            for end in range(1, len(parts)):
                files[".".join(parts[:end])].append(path)
    return files


def _describe_misplaced(root: Path, text: Path, images: Sequence[Path]) -> str:
    """Say where the text file of an image is; with the command that moves its folder, if only that is called otherwise.

    Where the file of an image in images/train belongs is labels/train.
    """
    expected = {(root / _in_labels(path.relative_to(root).with_suffix(".txt").parts)) for path in images}
    parts = text.relative_to(root).parts
    for index in range(len(parts) - 1):
        folder = root.joinpath(*parts[: index + 1])
        labels = folder.with_name("labels")
        if labels.joinpath(*parts[index + 1 :]) in expected and not labels.exists():
            return f"their folder is called {folder.name}: mv {_as_word(folder)} {_as_word(labels)}"
    return f"{text} is elsewhere, or named otherwise"


def _in_labels(parts: Sequence[str]) -> Path:
    """Return a path with its last folder `images` called `labels`."""
    last = max((index for index, part in enumerate(parts[:-1]) if part == "images"), default=None)
    return Path(*(("labels" if index == last else part) for index, part in enumerate(parts)))


def write_yolo(labels: LabelledSet) -> Files:
    """Yield a text file for each image, in shares of its sides, and data.yaml with the classes and the splits.

    Trainers need the keys `train` and `val`: where a set has no such part, they state another one's folder.
    """
    for image in labels.images:
        assert image.size_px is not None
        height, width = image.size_px
        rows = []
        for box in image.boxes:
            assert box.box is not None
            left, top, right, bottom = box.box
            shares = (left + right) / 2 / width, (top + bottom) / 2 / height, (right - left) / width
            texts = [f"{share:.12g}" for share in (*shares, (bottom - top) / height)]
            rows.append(f"{labels.classes.names.index(box.class_name)} {' '.join(texts)}\n")
        yield _label_path(image.name), "".join(rows).encode()
    folders = {word: f"images/{word}".rstrip("/") for word in group_by_split(labels.images)}
    first = folders.get("train", next(iter(folders.values())))
    stated = {"train": first, "val": first, **{word: folder for word, folder in folders.items() if word}}
    names = (f"  {number}: {_quote(name)}\n" for number, name in enumerate(labels.classes.names))
    lines = [*(f"{key}: {folder}\n" for key, folder in stated.items()), "names:\n", *names]
    yield "data.yaml", "".join(lines).encode()


def _quote(name: str) -> str:
    """Return a name in quotes, as YAML reads it; what it would take for a line break, or refuse, is escaped."""
    return _ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(name, ensure_ascii=False))


def _image_path(image: LabelledImage) -> str:
    """Return images/[SPLIT/]NAME, without a folder `images` or one of the split that the name already has."""
    folder = f"{SPLIT_WORDS[image.split]}/".lstrip("/")
    return f"images/{folder}{image.name.removeprefix('images/').removeprefix(folder)}"


def _label_path(name: str) -> str:
    """Return the path of the text file of an image, as `_find_label_file` looks for it."""
    parts = PurePosixPath(name).with_suffix(".txt").parts
    index = max(position for position, part in enumerate(parts[:-1]) if part == "images")
    return "/".join((*parts[:index], "labels", *parts[index + 1 :]))


def _fit(box: LabelledBox, size_px: tuple[int, int]) -> LabelledBox | str:
    """Cut a box at the border of its image."""
    (left, top, right, bottom), (height, width) = box.box or (0.0,) * 4, size_px
    cut = max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))
    return box._replace(box=cut) if cut[0] < cut[2] and cut[1] < cut[3] else "boxes outside of their image"


YOLO_TXT = LabelFormat(
    read=read_yolo,
    turns=True,
    write=write_yolo,
    image_path=_image_path,
    holds=frozenset({"undivided"}),
    fit=_fit,
    rounds="cuts them at the border of the image",
    known_by={".yaml": rb"(?m)^names\s*:"},
)
