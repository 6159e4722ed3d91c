"""Folders with files of labels: each file states the names of its images, which may be of another machine."""

from __future__ import annotations

import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from sightline.contract.errors import DataError
from sightline.store.boxes.image_listing import (
    UNREAD_KIND,
    NameEnds,
    UnreadImages,
    guess_split,
    is_other_photo,
    list_images,
)
from sightline.store.boxes.label_table import AnnotationFaults, CategoryIds, LabelledBox, LabelledImage, LabelledSet
from sightline.store.boxes.label_writing import SPLIT_WORDS
from sightline.store.boxes.other_formats import name_other_set
from sightline.store.boxes.tools.boxes import BAD_BOX, NoBoxError
from sightline.store.boxes.yolo_txt import assign_image_ids, guess_image_split
from sightline.store.files.image_files import UNREAD_SUFFIXES
from sightline.store.files.input_files import expand_home, list_files
from sightline.store.prepared.prepared_set import describe_contents

BAD_IMAGE = "images that are missing or damaged"
Entry = TypeVar("Entry")
UNLISTED = ""
"""Split of an image that is in none of the lists that state splits."""


class StatedImage(NamedTuple):
    """Image as a file of labels states it: name or path, height and width (or None), boxes, and the line of its entry.

    `subset` is the word for its split, if the file states one. Boxes are in pixels, or in shares of width and height if
    they are `relative`.
    """

    name: str
    size_px: tuple[int, int] | None
    boxes: Sequence[LabelledBox]
    subset: str = ""
    line: int = 0
    relative: bool = False


@dataclass
class LabelReport:
    """Report on label files: class names, faults by kind, habits with their places, counts of fields not read."""

    class_names: list[str] = field(default_factory=list)
    faults: AnnotationFaults = field(default_factory=AnnotationFaults)
    habits: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    unread: Counter[str] = field(default_factory=Counter)

    def collect_boxes(
        self, entries: Iterable[tuple[str, Entry]], parse: Callable[[Entry], LabelledBox]
    ) -> tuple[LabelledBox, ...]:
        """Return the boxes of objects, given with their place in the file; add a fault for each that is none.

        `parse` raises NoBoxError for an object of another kind, and any error of its values for an impossible box.
        """
        boxes = []
        for where, entry in entries:
            try:
                boxes.append(parse(entry))
            except NoBoxError as error:
                self.faults.add(error.kind, f"{where}: {error}")
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
                self.faults.add(BAD_BOX, f"{where}: {str(entry)[:120]} ({error})")
        return tuple(boxes)

    def list_notes(self) -> list[str]:
        """Return a note for each habit, with its count and first place."""
        return [f"{len(places)} {text}, first: {places[0]}" for text, places in self.habits.items() if places]


class LabelFolder:
    """Label files and images below a folder (or one label file, and the images below its folder), and what is wrong.

    `layout` is the name of the set, `suffixes` are those of its files, and `needs` says what a folder has to hold. A
    file that `is_alone` is about one image, and may be called as it is. Images in folders called as one of
    `unlabelled` have no labels, and a note counts them.
    """

    def __init__(
        self,
        source: Path,
        *,
        layout: str,
        suffixes: Collection[str],
        needs: str,
        is_alone: bool = True,
        unlabelled: Collection[str] = (),
    ) -> None:
        path = expand_home(source).resolve()
        self.is_folder = not path.is_file()
        self.root = path if self.is_folder else path.parent
        self.files = list_files(path, suffixes) if self.is_folder else [path]
        self.lists: list[Path] = []
        self.report = LabelReport()
        self._layout, self._needs, self._is_alone = layout, needs, is_alone
        self._names = []
        self._unread = UnreadImages(self.root)
        for name in (path.relative_to(self.root) for path in list_images(self.root, may_lack=True)):
            folders = [part for part in name.parent.parts if part in unlabelled]
            if folders:
                text = f"images are in {folders[0]}, which has no labels, and are left out"
                self.report.habits[text].append(name.as_posix())
            else:
                self._names.append(name.as_posix())
        self._ends = NameEnds(self._names)

    def has_image(self, name: str) -> bool:
        """Return True if an image below the folder has the last part of a name."""
        return bool(self._ends.find(name))

    def read(self, read_file: ReadFile, splits: Mapping[Path, str] = MappingProxyType({})) -> LabelledSet:
        """Read all label files to a set in the order of the images' names; `splits` are those of files in lists.

        Images that no file is about, or that are in no list, are faults. Raises DataError for a folder without such
        files, or whose files name no class.
        """
        report, images = self.report, dict(sorted(self._read_files(read_file, splits).items()))
        if not images:
            report.faults.raise_or_note("refuse", root=self.root)
            contents = describe_contents(self.root)
            other = name_other_set(self.root, self._layout)
            raise DataError(f"{self.root}: {contents}; {self._needs}: give the folder with them{other}")
        for name in self._names if self.is_folder else ():
            if name not in images:
                report.faults.add("images that no annotation file is about", name)
        names = dict.fromkeys([*report.class_names, *sorted({b.class_name for i in images.values() for b in i.boxes})])
        if not names:
            report.faults.raise_or_note("refuse", root=self.root)
        classes = CategoryIds.from_ids(dict(enumerate(names, start=1)), where=str(self.root))
        ids = assign_image_ids([Path(name) for name in images])
        listed = []
        for name, image in images.items():
            if image.split == UNLISTED:
                report.faults.add("images in none of the lists that state splits", name)
                continue
            listed.append(replace(image, image_id=ids[Path(name)], files=(*image.files, *self.lists)))
        layout, notes = self._layout, [*report.list_notes(), *self._unread.list_notes()]
        return LabelledSet(self.root, layout, classes, listed, report.faults, notes, report.unread)

    def _read_files(self, read_file: ReadFile, splits: Mapping[Path, str]) -> dict[str, LabelledImage]:
        images: dict[str, LabelledImage] = {}
        for file in self.files:
            try:
                for stated in read_file(file, self.report):
                    image = self._resolve_image(stated, file, splits.get(file, "all"))
                    if image is not None and (other := images.setdefault(image.name, image)) is not image:
                        text = f"{image.name}: {other.files[0]}, {file}"
                        self.report.faults.add("images that two files, or two entries of a file, are about", text)
            except (OverflowError, TypeError, ValueError) as error:
                text = str(error) if isinstance(error, DataError) else f"{file}: {error}"
                self.report.faults.add("annotation files that are missing or damaged", text)
        return images

    def _resolve_image(self, stated: StatedImage, file: Path, split: str) -> LabelledImage | None:
        """Return the image that a file states; a fault and None if it is not there, or if two may be meant."""
        where = f"{file}:{stated.line}" if stated.line else f"{file}"
        try:
            name = self._find(stated, file)
            unread = self._unread.take(stated.name or file.stem) if name is None else None
            if unread is not None:
                self.report.faults.add(UNREAD_KIND, f"{where}: {unread}")
                return None
            if name is None:
                raise ValueError(f"there is no image '{stated.name[:200] or file.stem}' below {self.root}")
        except ValueError as error:
            self.report.faults.add(BAD_IMAGE, f"{where}: {error}")
            return None
        split = guess_split(Path(stated.subset)) if split == "all" else split
        split = guess_image_split(Path(name).parent) if split == "all" else split
        return LabelledImage(split, name, self.root / name, stated.boxes, 0, stated.size_px, (file,), stated.relative)

    def _find(self, stated: StatedImage, file: Path) -> str | None:
        """Return the name of an image: of those with the longest end in common with what is stated, the nearest one.

        A file about one image can be called as it is. Raises ValueError if two images fit as well.
        """
        named = self._ends.find(f"{stated.subset}/{stated.name}") if stated.name else []
        alike = self._ends.find(file.stem) if self._is_alone else []
        if named and alike and {*named}.isdisjoint(alike):
            raise ValueError(f"states the image '{stated.name}', and is called as {alike[0]}; rename one of them")
        if not (fitting := named or alike):
            return None
        if stated.name and not named:
            text = "files state another name than that of the image called as they are"
            self.report.habits[text].append(f"{file}: {stated.name}")
        suffixes = [os.path.splitext(name)[1].lower() for name in (stated.name, fitting[0])]
        if named and suffixes[0] in UNREAD_SUFFIXES and suffixes[0] != suffixes[1]:
            text = "images are known without the suffix that labels state, whose kind is not read"
            self.report.habits[text].append(f"{file}: {stated.name} is {named[0]}")
        folder = file.parent.relative_to(self.root).parts
        far = [_count_between(Path(name).parent.parts, folder) for name in fitting]
        best = [name for name, distance in zip(fitting, far, strict=True) if distance == min(far)]
        if len(best) > 1:
            raise ValueError(f"states the image '{stated.name}', which {best[0]} and {best[1]} may be; rename one")
        path = os.path.join(file.parent, stated.name.replace("\\", "/"))
        if is_other_photo(path, self.root / best[0]):
            text = f"states the image '{stated.name}', outside of {self.root}, where {best[0]} is another one"
            raise ValueError(f"{text}; give the folder above both")
        return best[0]


def label_reader(
    *, layout: str, suffixes: Collection[str], needs: str, is_alone: bool = True, unlabelled: Collection[str] = ()
) -> Callable[[Callable[..., Iterator[StatedImage]]], Callable[..., LabelledSet]]:
    """Make a reader of sources of a reader of files, `read(file, report, *, ...)`: its options are their options.

    The arguments are those of `LabelFolder`. The reader that is made takes a folder or file, and raises DataError for
    one without such files.
    """

    def decorate(read_file: Callable[..., Iterator[StatedImage]]) -> Callable[..., LabelledSet]:
        @wraps(read_file)
        def read(source: Path, **options: Any) -> LabelledSet:
            folder = LabelFolder(
                source, layout=layout, suffixes=suffixes, needs=needs, is_alone=is_alone, unlabelled=unlabelled
            )
            return folder.read(partial(read_file, **options))

        return read

    return decorate


def name_subset(file: Path) -> str:
    """Return the word for the split in the name of a file about many images, "" without one."""
    return SPLIT_WORDS[guess_split(Path(file.name))]


def path_in_split(name: str, split: str) -> str:
    """Return SPLIT/NAME, or NAME for images of no split, as a path whose folders are read as that split again.

    A folder `images`, and one of the split, that the name already has, are not repeated. Where other folders of the
    name are called as a split, its own comes last; images of no split then lie in one folder.
    """
    word = SPLIT_WORDS[split]
    rest = name.removeprefix("images/").removeprefix(f"{word}/")
    path = f"{word}/{rest}" if word else rest
    if guess_image_split(Path(path).parent) == split:
        return path
    parent, _, file = rest.rpartition("/")
    return f"{parent}/{word}/{file}" if word else rest.replace("/", "_")


def _count_between(first: Sequence[str], second: Sequence[str]) -> int:
    """Count the folders of two paths that are not those of the other one, from the root or from the end."""
    common = _count_equal(first, second) + _count_equal(first[::-1], second[::-1])
    return len(first) + len(second) - 2 * min(common, len(first), len(second))


def _count_equal(first: Sequence[str], second: Sequence[str]) -> int:
    pairs = zip(first, second, strict=False)
    return len([*itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)])


ReadFile = Callable[[Path, LabelReport], Iterator[StatedImage]]
"""Reader of one file: yields its images, and reports faults, habits and class names."""
