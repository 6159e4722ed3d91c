"""Readers of whole sources, one file of which is damaged: public sets as they are prepared."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.long.fuzzed_readers import Reader

__all__ = ["set_readers"]

Prepare = Callable[[Path, Path], object]


def set_readers(folder: Path) -> Iterator[Reader]:
    """Of every public set that is prepared by reading its arrays: a file of each kind and folder of its source."""
    targets = itertools.count()
    for name, (write, prepare) in _sets().items():
        source = folder / name / "source"
        source.parent.mkdir(parents=True)
        write(source)
        for path in _of_each_kind(source):

            def read(source: Path = source, prepare: Prepare = prepare) -> None:
                target = folder / f"target{next(targets)}"
                try:
                    prepare(source, target)
                finally:
                    for made in folder.glob("target*"):
                        shutil.rmtree(made) if made.is_dir() else made.unlink()

            yield Reader(f"set {name} {path.relative_to(source)}", path, read)


def _of_each_kind(source: Path) -> list[Path]:
    """The first file of every suffix in each folder of a depth."""
    found: dict[tuple[int, str], Path] = {}
    for path in sorted(source.rglob("*")):
        if path.is_file() and path.suffix:  # others are read by nobody
            found.setdefault((len(path.parts), path.suffix), path)
    return list(found.values())


def _sets() -> dict[str, tuple[Callable[[Path], object], Prepare]]:
    from tests.data.set_rows import ROWS

    rows = {
        layout: (row.write, _opened(row.name, row.options, row.source, **row.arguments)) for layout, row in ROWS.items()
    }
    return {**rows, **_box_sets(), "label_map": _label_map()}


def _box_sets() -> dict[str, tuple[Callable[[Path], object], Prepare]]:
    from tests.data.boxes import test_convert, test_crowdhuman, test_labelling_tools, test_people
    from tests.data.boxes.box_writers import pattern, write_coco, write_image

    common = {"image_id": 1, "category_id": 3, "bbox": [1.0, 2, 3, 3], "area": 9.0, "iscrowd": 0}
    masks = ({"size": [6, 8], "counts": [7, 3, 38]}, {"size": [6, 8], "counts": "73V1"}, [[1.0, 2, 4, 2, 4, 5]])

    def write_boxes(root: Path) -> None:
        write_image(root / "a.png", pattern(6, 8))
        boxes = [common, *({**common, "segmentation": each} for each in masks)]
        write_coco(root / "all.json", [(1, "a.png", 8, 6)], boxes)

    def write_texts(root: Path) -> None:
        for name in ("train", "val"):
            write_image(root / f"images/{name}/one.png", pattern(16, 32))
            (root / "labels" / name).mkdir(parents=True)
            (root / f"labels/{name}/one.txt").write_text("1 0.5 0.5 0.25 0.5\n0 0.1 0.1 0.4 0.1 0.4 0.6\n")
        (root / "lists.txt").write_text("./images/val/one.png\n")
        lines = ("path: .", "train: images/train", "val: [lists.txt]", "nc: 2", "names:", "  0: person", "  1: car")
        (root / "data.yaml").write_text("\n".join(lines) + "\n")

    def write_crowd(root: Path) -> None:
        test_crowdhuman.write_set(root, train={"a,1": test_crowdhuman.CROWD}, val={"b,2": test_crowdhuman.CROWD[:1]})

    people = {
        name: (lambda root, name=name: test_people.written(name, root), _opened(name)) for name in test_people.PEOPLE
    }
    tools = {name: (write, _opened(name)) for name, write in test_labelling_tools.WRITERS.items()}
    return {
        "coco": (write_boxes, _opened("coco")),
        "yolo_txt": (write_texts, _opened("yolo_txt")),
        "crowdhuman": (write_crowd, _opened("crowdhuman")),
        **people,
        **tools,
        **{f"converted {name}": _converted(name) for name in test_convert.FORMATS},
    }


def _converted(name: str) -> tuple[Callable[[Path], object], Prepare]:
    """A set that was converted to a format, and its conversion to COCO."""
    from tests.data.boxes.test_convert import convert, write_street

    def write(root: Path) -> None:
        convert("coco", write_street(root.with_name(f"{root.name} street")), name, root)

    return write, lambda source, target: convert(name, source, "coco", target, faulty="leave_out")


def _label_map() -> tuple[Callable[[Path], object], Prepare]:
    from sightline.store.label_maps import read_label_map

    maps = "labels: {0: none, 10: car, 30: person, 40: road}\nlearning_map: {0: 0, 10: 1, 30: 1, 40: 2}\n"
    maps += "learning_map_inv: {0: 0, 1: 10, 2: 40}\nlearning_ignore: {0: True, 1: False}\n"
    maps += "class_frequency:\n  0: 0.1\n  1: 0.4\n  2: 0.5\ncolor_map:\n  0: [0, 0, 0]\n"
    maps += "  10: [1, 2, 3]\n  40: [4, 5, 6]\n"

    def write(root: Path) -> None:
        root.mkdir()
        (root / "map.yaml").write_text(maps)

    return write, lambda source, target: read_label_map(str(source / "map.yaml"), {})


def _opened(name: str, options: Mapping[str, Any] = MappingProxyType({}), inner: str = "", **arguments: Any) -> Prepare:
    """A set surveyed and prepared with `options`, and the first sample of each part read with `arguments`.

    `inner` is the place of its source in the folder.
    """
    from sightline.contract import registry
    from sightline.contract.types import SampleKey

    builder: Any = registry.data.get_entry(name).builder

    def prepare(source: Path, target: Path) -> None:
        builder.survey(source / inner, **options)
        builder.prepare(source=source / inner, target=target, name=name, progress=_quiet, **options)
        for split in ("train", "test"):
            if builder(split="train", root=str(target), **arguments).info.split_sizes.get(split):
                builder(split=split, root=str(target), **arguments)[SampleKey(0, 0, 0)]

    return prepare


def _quiet(done: int, total: int, what: str) -> None:
    """Of a damaged source any number may be announced."""
