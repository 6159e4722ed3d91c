"""Label Studio: tasks in its JSON or its short form (JSON_MIN), about many images each, in percent of their sides."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from sightline.contract.errors import join_some
from sightline.store.boxes.label_table import BoxCorners, LabelFormat, LabelledBox, LabelledSet, parse_number
from sightline.store.boxes.tools.boxes import NO_BOX, NoBoxError, Turn, find_bounds, make_box, parse_points, parse_size
from sightline.store.boxes.tools.folders import BAD_IMAGE, LabelFolder, LabelReport, StatedImage, name_subset
from sightline.store.files.image_files import IMAGE_SUFFIXES, UNREAD_SUFFIXES
from sightline.store.files.input_files import parse_json_content, read_file

_MAX_LISTED = 5
_UPLOADED = re.compile(r"[0-9a-f]{8}-(?=.)")
"""What Label Studio puts before the name of an uploaded file."""
_BOXES: Mapping[str, tuple[str, ...]] = {
    "rectangle": ("x", "y", "width", "height"),
    "ellipse": ("x", "y", "radiusX", "radiusY"),
}
"""Shape → its numbers; they, and those of `points` of a polygon, are percent of the sides of the image."""
_REGION_KEYS = frozenset({"x", "points", "rle"})
"""Keys of which a region of an image has one: a rectangle, ellipse or point, a polygon, a mask."""
_UNLABELLED = "images that nobody has labelled"
_WITHOUT_PREFIX = "images are known without what Label Studio puts before the names of uploads"
_Result = Mapping[str, Any]


def read_label_studio(source: Path) -> LabelledSet:
    """Read Label Studio's tasks in JSON files anywhere below a folder; names of files, else folders, state the splits.

    Raises DataError for a folder without such files.
    """
    folder = LabelFolder(
        source,
        layout="label_studio",
        suffixes=(".json",),
        needs="Label Studio has tasks as JSON or JSON-MIN, beside photos",
        is_alone=False,
    )
    return folder.read(partial(_read_file, folder=folder))


def _read_file(file: Path, report: LabelReport, *, folder: LabelFolder) -> Iterator[StatedImage]:
    """Yield the images of a file: none of JSON of another kind.

    Polygons and ellipses become the boxes about them. Tasks that nobody has labelled, or several people, are faults.
    Raises DataError for damaged JSON. Source: Label Studio's documentation, Export annotations.
    """
    document = parse_json_content(read_file(file), where=str(file), advice="export it again")
    tasks = document if isinstance(document, list) else []
    if not any(isinstance(task, dict) and ("data" in task or _list_short_results(task)) for task in tasks):
        report.habits["JSON files are not of Label Studio and are passed over"].append(str(file))
        return
    for number, task in enumerate(tasks):
        where = f"{file}: task {task.get('id', number) if isinstance(task, dict) else number}"
        try:
            stated = _find_name(task.get("data", task))
            results = _choose_results(task) if "data" in task else _list_short_results(task)
            if not results and "data" not in task and task.get("annotation_id") is None:
                raise NoBoxError(_UNLABELLED, "has no annotation")
            yield _read_task(stated, results, where, report, folder, name_subset(file))
        except NoBoxError as error:
            report.faults.add(error.kind, f"{where}: {error}")
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            report.faults.add(BAD_IMAGE, f"{where}: {error}")


def _find_name(data: Mapping[str, Any]) -> str:
    """Return the name of the image of a task: the path in an address, or behind `?d=` of local files.

    Raises ValueError if there is no such name, or if there are several.
    """
    paths = []
    for text in data.values():
        if isinstance(text, str):
            is_address = re.match(r"[A-Za-z][A-Za-z0-9+.-]+://|/data/", text) is not None
            address = urlsplit(text)
            path = unquote((parse_qs(address.query).get("d") or [address.path])[0]) if is_address else text
            paths += [path] if Path(path).suffix.lower() in IMAGE_SUFFIXES | UNREAD_SUFFIXES else []
    if len({*paths}) != 1:
        raise ValueError(f"names {join_some(paths, most=_MAX_LISTED) if paths else 'no image'}; it has to name one")
    return paths[0]


def _choose_results(task: Mapping[str, Any]) -> Sequence[_Result]:
    """Return the results of the annotation that counts: the only one, or the only ground truth of several.

    Raises NoBoxError for a task without one, and for several.
    """
    stated = task.get("annotations", task.get("completions")) or []
    chosen = [annotation for annotation in stated if not annotation.get("was_cancelled")]
    if len(chosen) > 1:
        chosen = [annotation for annotation in chosen if annotation.get("ground_truth")] or chosen
    if len(chosen) != 1:
        kind = "images with several annotations" if chosen else _UNLABELLED
        text = f"has {len(chosen)}; mark one of them as ground truth" if chosen else "has no annotation"
        raise NoBoxError(kind, text)
    return list(chosen[0]["result"])


def _list_short_results(task: Mapping[str, Any]) -> Sequence[_Result]:
    """Return the regions of a task of the short form, in which a value has the keys of its result, too."""
    lists = [items for items in task.values() if isinstance(items, list)]
    values = [value for items in lists for value in items if isinstance(value, dict) and _REGION_KEYS & value.keys()]
    return [{**value, "value": value} for value in values]


def _read_task(
    stated: str, results: Sequence[_Result], where: str, report: LabelReport, folder: LabelFolder, subset: str
) -> StatedImage:
    """Return the image of a task. Raises ValueError for one that was labelled turned, and for an impossible size."""
    turns = {result.get("image_rotation") or 0 for result in results}
    if turns - {0}:
        raise ValueError(f"was labelled while it was turned by {max(turns):g} degrees, which is not read")
    size = next((result for result in results if result.get("original_width")), {})
    size_px = parse_size(size.get("original_height"), size.get("original_width"))
    base = Path(stated).name
    if not folder.has_image(base) and folder.has_image(original := _UPLOADED.sub("", base, count=1)):
        report.habits[_WITHOUT_PREFIX].append(where)
        stated = original
    objects = dict[str, list[_Result]]()  # by id and shape: a region has a result for each control that it was given
    for result in results:
        value = result.get("value") or {}
        shape = [value.get(key) for key in ("x", "y", "width", "height", "points", "rle")]
        if _REGION_KEYS & value.keys():
            objects.setdefault(f"{result.get('id')} {shape}", []).append(result)
        else:
            report.unread.update([f"{str(result.get('type', result.get('from_name')))[:40]} of an image"])
    entries = ((f"{where}, {stated}", parts) for parts in objects.values())
    boxes = report.collect_boxes(entries, partial(_read_object, size_px=size_px, report=report))
    return StatedImage(stated, size_px, boxes, subset, relative=True)


def _read_object(parts: Sequence[_Result], *, size_px: tuple[int, int] | None, report: LabelReport) -> LabelledBox:
    """Return the box, in shares, of an object whose shape and labels may be in several results."""
    values = [part["value"] for part in parts]
    labels = {key: value[key] for value in values for key in value if key.endswith("labels") and value[key]}
    names = [*dict.fromkeys(str(name) for group in labels.values() for name in group)]
    if len(names) > 1:
        raise ValueError(f"it has the classes {join_some(names, most=_MAX_LISTED)}, a box has one")
    shape: dict[str, Any] = {key: item for value in values for key, item in value.items()}
    turn = Turn(shape.get("rotation"))
    corners = _find_corners(shape, names[0] if names else "", turn, size_px)
    kinds = {"polygon"} if "points" in shape else {"ellipse"} if "radiusX" in shape else set[str]()
    report.unread.update(f"{kind}s, but the boxes about them" for kind in kinds)
    unused_keys = ("choices", "text", "rating", "number", "taxonomy")
    report.unread.update(f"{key} of a box" for key in unused_keys if shape.get(key))
    return make_box(names[0] if names else None, corners, {}, line=0, is_turned=not turn.is_upright)


def _find_corners(shape: Mapping[str, Any], label: str, turn: Turn, size_px: tuple[int, int] | None) -> BoxCorners:
    """Return the box about a shape in percent, as shares.

    A rectangle is turned about its upper left corner, an ellipse about its middle, in pixels of the image. Raises
    NoBoxError for a shape without a box, ValueError for a turned one of an image without a size.
    """
    if "points" in shape:
        return find_bounds(parse_points(shape["points"]) / 100)
    kind = next((kind for kind, keys in _BOXES.items() if {*keys} <= shape.keys()), None)
    if kind is None:
        raise NoBoxError(NO_BOX, f"'{label[:40]}' is {'a mask of a brush' if 'rle' in shape else 'a point'}")
    if shape.get("rotation") and size_px is None:
        raise ValueError(f"it is turned by {shape['rotation']} degrees, and no original_width and height are stated")
    high, wide = size_px if size_px is not None and shape.get("rotation") else (1, 1)
    x, y, width, height = (parse_number(shape[key]) / 100 for key in _BOXES[kind])
    turn_shape = turn.turn_about_corner if kind == "rectangle" else turn.turn_ellipse
    left, top, right, bottom = turn_shape(x * wide, y * high, width * wide, height * high)
    return left / wide, top / high, right / wide, bottom / high


LABEL_STUDIO = LabelFormat(
    read=read_label_studio,
    turns=True,
    known_by={
        ".json": rb'"(?:from_name|file_upload|(?:rectangle|polygon|brush|ellipse|keypoint)labels)"\s*:',
    },
)
