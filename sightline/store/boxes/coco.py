"""COCO instances, and every export in that format: images with boxes of classes in a JSON file."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from sightline.contract.errors import DataError
from sightline.contract.regular_files import JsonEntries, parse_json
from sightline.store.boxes.coco_annotations import CocoBoxes, parse_id
from sightline.store.boxes.image_listing import (
    UNREAD_KIND,
    NameEnds,
    UnreadImages,
    guess_split,
    guess_split_of_parts,
    is_other_photo,
    list_images,
)
from sightline.store.boxes.label_table import (
    AnnotationFaults,
    CategoryIds,
    Files,
    LabelFormat,
    LabelledBox,
    LabelledImage,
    LabelledSet,
    area_of,
)
from sightline.store.boxes.label_writing import group_by_split, json_bytes, name_file, plain, xyxy_to_xywh
from sightline.store.boxes.other_formats import name_other_set
from sightline.store.files.input_files import expand_home, list_folders, read_file
from sightline.store.prepared.prepared_set import summarise_folder

_KEYS = ("images", "annotations", "categories")
_IMAGE_KEYS = ("id", "file_name", "height", "width")
_SPLITS = ("train", "validation", "test", "all")


def read_coco(
    source: Path,
    *,
    annotations: tuple[str, ...] | None = None,
    images: str | None = None,
    areas: Literal["boxes"] | None = None,
) -> LabelledSet:
    """Read the images of a JSON file of COCO instances, or of a folder with such files.

    `annotations` and `images` are the paths of the JSON files and of the images' folder, from the folder, or that of
    the file, on. The images of a file in a folder `annotations` may be in the folders beside it, as COCO lays them
    out. `areas` are as stated, or those of the boxes. Images that no file names are faults beside those
    that one names, and noted in other folders. Raises DataError for a folder without such files, for a file in another
    format, for an id of two images, and for splits whose categories differ.
    """
    path = expand_home(source).resolve()
    folder = path.parent if path.is_file() else path
    stated = [Path(os.path.normpath(folder / expand_home(name))) for name in annotations or ()]
    files = stated or ([path] if path.is_file() else [])
    base = None if images is None else (folder / expand_home(images)).resolve()
    root = _find_root(folder, files, base)
    documents = _find_documents(root, files)
    faults = AnnotationFaults()
    classes, notes = _read_classes(documents)
    listed: list[LabelledImage] = []
    missing: list[tuple[str, str]] = []
    unread, unread_images = Counter[str](), UnreadImages(root)
    parents = (item for document in documents for item in document.read_categories().items())
    unread["supercategory"] = len({key for key, (name, parent) in parents if parent not in ("None", "none", "", name)})
    num_root = len(os.path.join(root, ""))
    listed_images = list_images(root if base is None else base, may_lack=True)
    found = {text: path for path in listed_images if (text := str(path))[:num_root] == os.path.join(root, "")}
    for document in documents:
        entries, file = document.index_images(), document.path
        names = {key: str(entry["file_name"]).replace("\\", "/") for key, entry in entries.items()}
        split = guess_split(Path(os.path.relpath(file, folder)))
        paths, lost, note = _find_images(root, file, names, split, base, found)
        notes += note
        missing += lost
        sizes = {key: _stated_size(entry) for key, entry in entries.items()}
        boxes = document.boxes.assign(names, classes, faults)
        notes += document.boxes.list_notes(names, trusts_areas=areas is None)
        if areas == "boxes":
            boxes = {key: [box._replace(area=None) for box in rows] for key, rows in boxes.items()}
        unread += document.boxes.unread
        num_text = sum(isinstance(entry.get("id"), str) for entry in entries.values()) + document.boxes.num_text_ids
        notes += [f"{file.name}: ids of {num_text} entries are text, and read as numbers"] if num_text else []
        listed += [
            LabelledImage(
                *(split, str(paths[key])[num_root:], paths[key], boxes.get(key, ())),
                *(key, sizes[key], (file,)),
            )
            for key in entries
            if key in paths
        ]
    named = {image.path for image in listed}
    below_root = listed_images if base is None else list_images(root, may_lack=True)
    unlisted = [] if files else [path for path in below_root if path not in named]
    folders = {path.parent for path in named}
    for path in unlisted:
        if path.parent in folders:
            faults.add("images that no annotation file names", str(path))
    unlisted = [path for path in unlisted if path.parent not in folders]  # of a part without annotations: test2017
    notes += (
        [f"{len(unlisted)} images are in no annotation file and are left out, first: {unlisted[0]}"] if unlisted else []
    )
    for name, fault in missing:
        unread_path = unread_images.take(name)
        text = fault if unread_path is None else f"{unread_path}"
        faults.add("images that are missing or damaged" if unread_path is None else UNREAD_KIND, text)
    notes += unread_images.list_notes()
    layout = "instances_json" if len(documents) == 1 else "instances_jsons"
    return LabelledSet(root, layout, classes, listed, faults, notes, unread)


def _find_root(folder: Path, files: Sequence[Path], images: Path | None) -> Path:
    """Find the lowest folder that holds a folder, the JSON files that are stated, and their images."""
    beside = [] if images is None else [images]
    if images is None and files and folder.name == "annotations" and not list_images(folder, may_lack=True):
        beside = [folder.parent]
    return Path(os.path.commonpath([folder, *(file.parent for file in files), *beside]))


class _Document:
    """Images, categories and boxes of a JSON file, and the names of its entries as `contents`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.images: list[Any] = []
        self.categories: list[Any] = []
        self.boxes = CocoBoxes()
        self.contents: list[str] = []
        self.is_instances = self._read()

    def _read(self) -> bool:
        """Read the file; return True if it is one of COCO instances. Raises DataError for a file that is not JSON."""
        try:
            text = read_file(self.path).decode("utf-8-sig")
            if not text.lstrip().startswith("{"):
                self.contents = [f"a {type(parse_json(text)).__name__}"]
                return False
            lists = set()
            for key, value in JsonEntries(text):
                self.contents.append(key)
                if key in _KEYS and isinstance(value, Iterator):
                    lists.add(key)
                    self._add(key, value)
        except ValueError as error:
            raise DataError(f"{self.path}: does not read as JSON ({error}); export it again") from error
        return len(lists) == len(_KEYS)

    def _add(self, key: str, values: Iterator[Any]) -> None:
        if key == "annotations":
            for annotation in values:
                self.boxes.add(annotation)
        elif key == "images":
            self.images = [_select(entry) if isinstance(entry, dict) else entry for entry in values]
        else:
            setattr(self, key, list(values))

    def index_images(self) -> dict[int, Mapping[str, Any]]:
        """Return the images by their id. Raises DataError for an id or a file that occurs twice."""
        entries: dict[int, Mapping[str, Any]] = {}
        ids: dict[str, int] = {}
        for entry in self.images:
            try:
                key, name = parse_id(entry["id"]), str(entry["file_name"])
                _ = [parse_id(entry[side]) for side in ("height", "width") if entry.get(side) is not None]
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(
                    f"{self.path}: the image {str(entry)[:80]} lacks a file_name, or whole numbers as id, height and "
                    f"width ({error}); export it again"
                ) from error
            if key in entries:
                raise DataError(
                    f"{self.path}: '{entries[key]['file_name']}' and '{name}' both have the id {key}; number them anew"
                )
            if name in ids:
                raise DataError(f"{self.path}: '{name}' has the ids {ids[name]} and {key}; keep one of them")
            entries[key], ids[name] = entry, key
        return entries

    def read_categories(self) -> dict[int, tuple[str, str]]:
        """Return name and supercategory by id. Raises DataError for a category without an id or a name."""
        try:
            rows = [(parse_id(c["id"]), str(c["name"]), str(c.get("supercategory"))) for c in self.categories]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{self.path}: a category lacks a whole number 'id' or a 'name' ({error}); export it again"
            ) from error
        categories = {number: (name, parent) for number, name, parent in rows}
        if len(categories) < len(rows):
            raise DataError(f"{self.path}: two categories have one id; export it again")
        return categories


def _select(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: entry[key] for key in _IMAGE_KEYS if key in entry}


def _find_documents(root: Path, stated: Sequence[Path]) -> list[_Document]:
    """Read the JSON files of COCO instances below `root`.

    These are the `stated` files, else those called instances_*.json, else those with the keys of the format.
    Raises DataError if a file with images is none of these, and no other one is about its split.
    """
    if stated:
        return [_check(_Document(path)) for path in stated]
    if not root.is_dir():
        raise DataError(f"{root}: there is no such file or folder; give a JSON file of COCO instances, or its folder")
    folders = [root, *list_folders(root)]
    files = [path for folder in folders for path in sorted(folder.glob("*.json"))]
    named = [path for path in files if path.name.startswith("instances_")]
    read = {path: _Document(path) for path in named or files}
    documents = [document for document in read.values() if named or document.is_instances]
    if not documents:
        raise DataError(
            f"{root}: holds {summarise_folder(root)}, no JSON file with {', '.join(_KEYS)} in it or in a folder of it; "
            f"give the file itself{name_other_set(root, 'coco')}"
        )
    splits = [guess_split(document.path.relative_to(root)) for document in documents]
    if len(set(splits)) < len(splits):
        names = ", ".join(document.path.relative_to(root).as_posix() for document in documents)
        raise DataError(
            f"{root}: {names} are not one file for each of train, val and test; choose by annotations=[FILE, FILE]"
        )
    for path in files:
        is_covered = guess_split(path.relative_to(root)) in (*splits, "all")
        is_covered |= path.name.startswith("image_info_")  # COCO's test images, which have no annotations
        document = None if is_covered else read.get(path) or _Document(path)
        if document is not None and "images" in document.contents:
            lists = f"lists of {', '.join(_KEYS)} are needed, it has {', '.join(document.contents)}"
            fault = "others are called instances_*.json, and alone are read" if document.is_instances else lists
            raise DataError(f"{path}: {fault}; no other is about its part: choose some by annotations=[FILE, FILE]")
    return [*map(_check, documents)]


def _check(document: _Document) -> _Document:
    if not document.is_instances:
        raise DataError(
            f"{document.path}: lists of {', '.join(_KEYS)} are needed, it has {', '.join(document.contents)}; export "
            f"COCO instances{name_other_set(document.path, 'coco')}"
        )
    return document


def _read_classes(documents: Sequence[_Document]) -> tuple[CategoryIds, list[str]]:
    """Read the classes of files, and notes on categories that only group others, as Roboflow's root does.

    Such a category has no annotation, and is the supercategory of another one. Raises DataError for categories of
    files that differ, and as `CategoryIds.from_ids`.
    """
    first, tables = documents[0], [document.read_categories() for document in documents]
    names = [{number: name for number, (name, _) in table.items()} for table in tables]
    for document, other in zip(documents, names, strict=True):
        if other != names[0]:
            raise DataError(
                f"{document.path}: its categories are not those of {first.path}; export both with the same ones"
            )
    used = {number for document in documents for number in document.boxes.categories}
    parents = [(number, parent) for table in tables for number, (_, parent) in table.items()]
    groups = {
        number: name
        for number, name in names[0].items()
        if number not in used and any(parent == name and other != number for other, parent in parents)
    }
    groups = {} if len(groups) == len(names[0]) else groups
    notes = [
        f"{first.path}: the category {number}, '{name}', is no class: it groups others and has no annotation"
        for number, name in groups.items()
    ]
    classes = {number: name for number, name in names[0].items() if number not in groups}
    return CategoryIds.from_ids(classes, where=str(first.path)), notes


def _find_images(
    root: Path,
    path: Path,
    names: Mapping[int, str],
    split: str,
    images: Path | None,
    found: Mapping[str, Path],
) -> tuple[dict[int, Path], list[tuple[str, str]], list[str]]:
    """Find the files of images by id: where a name says beside the annotations, else the only one that ends alike.

    `found` are all images below `root`, and below `images` if it is stated, by their path.
    Others are looked for in the folder `images`, else below `root` but for the folders of other splits. None stands for
    a file outside of `root` with other bytes, nor for one of another folder that `..` states, if other names lead to
    images. Also returns names and faults of what is missing, and a note on images that are elsewhere than stated.
    """
    base, splits = root, {split, "all"} if split != "all" else {*_SPLITS}
    if images is not None:
        base, splits = images, {*_SPLITS}
    start = base if images is not None else path.parent
    stated = {key: os.path.normpath(os.path.join(start, name)) for key, name in names.items()}
    paths = {key: found[file] for key, file in stated.items() if file in found}
    if len(paths) == len(names):
        return paths, [], []
    num_base, num_root = (len(os.path.join(folder, "")) for folder in (base, root))
    listed = {
        text[num_base:].replace(os.sep, "/"): file
        for text, file in found.items()
        if guess_split_of_parts(text[num_root:].split(os.sep)) in splits
    }
    ends = NameEnds(listed)
    matches = {key: ends.find(name) for key, name in names.items() if key not in paths}
    outside = {
        key
        for key, fits in matches.items()
        if len(fits) == 1 and _is_another(names[key], stated[key], root, listed[fits[0]], has_others=bool(paths))
    }
    claims = Counter([*paths.values(), *(listed[fits[0]] for fits in matches.values() if len(fits) == 1)])
    missing, moved = [], []
    for key, fits in matches.items():
        if key in outside:
            text = f"is {stated[key]}, outside of {root}, and {fits[0]} is another image; give the folder above both"
            missing.append((names[key], f"'{names[key][:200]}' {text} by --from, and annotations=[FILE]"))
        elif len(fits) == 1 and claims[listed[fits[0]]] == 1:
            paths[key] = listed[fits[0]]
            file_path, name = (unicodedata.normalize("NFC", f"/{text}") for text in (fits[0], names[key]))
            moved += [] if file_path.endswith(name) else [key]
        else:
            several = f", and {len(fits)} images below {base} fit it" if fits else ""
            advice = "get it, or state the images' folder by images=FOLDER; --from is a folder above it"
            missing.append((names[key], f"'{names[key][:200]}': there is no such file in {start}{several}; {advice}"))
    notes = [
        f"{len(moved)} images are not where {path} says, and are known by the end of their names, first: "
        f"'{names[key]}' is {paths[key].relative_to(root)}"
        for key in moved[:1]
    ]
    return paths, missing, notes


def _is_another(name: str, stated: str, root: Path, image: Path, *, has_others: bool) -> bool:
    """Return True if the path of an image, which is called as one below `root`, is that of another image.

    It leads to a file of other bytes; or `..` leads out of `root`, where `has_others` are stated, to a folder that
    the image is not in.
    """
    if os.path.isfile(stated):
        return is_other_photo(stated, image)
    _, up, end = name.rpartition("../")
    return (
        has_others
        and bool(up)
        and not Path(stated).is_relative_to(root)
        and not str(image).endswith(f"/{os.path.normpath(end)}")
    )


def _stated_size(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the height and width of an image, None if the file does not state both; some tools write 0 for that."""
    height, width = entry.get("height"), entry.get("width")
    return (parse_id(height), parse_id(width)) if height and width else None


def write_coco(labels: LabelledSet) -> Files:
    """Yield a JSON file of instances for each split.

    Ids of images are kept where no two are equal. Ids of annotations count from 1, those of categories not from 0,
    which several readers refuse. An ignored box has `iscrowd`, too, because pycocotools reads no other mark; a crowd
    has `iscrowd` alone.
    """
    are_ids = len({image.image_id for image in labels.images}) == len(labels.images)
    numbers = [image.image_id if are_ids else position for position, image in enumerate(labels.images, start=1)]
    number_by_image = {id(image): number for image, number in zip(labels.images, numbers, strict=True)}
    first = int(min(labels.classes.ids) == 0)
    ids = {name: number + first for name, number in zip(*labels.classes, strict=True)}
    for word, images in group_by_split(labels.images).items():
        entries, annotations = list[dict[str, Any]](), list[dict[str, Any]]()
        for image in images:
            height, width = image.size_px or (0, 0)
            number = number_by_image[id(image)]
            entries.append({"id": number, "file_name": image.name, "width": width, "height": height})
            for box in image.boxes:
                head = {"id": len(annotations) + 1, "image_id": number, "category_id": ids[box.class_name]}
                annotations.append({**head, **_state_box(box)})
        categories = [{"id": number, "name": name} for name, number in ids.items()]
        document = {"images": entries, "annotations": annotations, "categories": categories}
        yield name_file("instances", word, ".json"), json_bytes(document, indent=None)


def _state_box(box: LabelledBox) -> dict[str, Any]:
    """Return the keys of an annotation about its box; people with other boxes also have CrowdHuman's keys."""
    assert box.box is not None
    bbox, area = xyxy_to_xywh(box.box), area_of(box.box) if box.area is None else box.area
    flags = {"iscrowd": int(box.is_ignored), "ignore": int(box.is_ignored and not box.is_crowd)}
    stated: dict[str, Any] = {"bbox": bbox, "area": plain(area), **flags, "height": bbox[3]}
    if box.visible is not None or box.head is not None:
        boxes = {"fbox": box.box, "vbox": box.visible, "hbox": box.head}
        stated |= {key: xyxy_to_xywh(corners) for key, corners in boxes.items() if corners is not None}
    if box.share is not None:
        stated["vis_ratio"] = box.share
    if box.is_head_ignored:
        stated["head_attr"] = {"ignore": 1}
    return stated


COCO = LabelFormat(
    read=read_coco,
    write=write_coco,
    holds=frozenset({"visible", "head", "is_ignored", "is_head_ignored", "is_crowd", "visible_share", "area"})
    | {"size", "undivided", "suffix"},
    turns=True,
    known_by={".json": rb'"(?:images|categories)"\s*:\s*\[|"annotations"\s*:\s*\[\s*\{[^}]*"image_id"'},
)
