"""COCO's form from files to samples: gaps in ids, odd images, masks, faults by name, splits, classes by choice."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.areas.detect.sets.formats import Coco
from sightline.areas.detect.transforms import FitImage
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.types import SampleKey
from sightline.store.boxes.detections import Detections
from sightline.store.loading.batch_reader import BatchReader
from sightline.store.loading.transform_pipeline import NamedTransform
from tests.cases import run_each
from tests.command import refuse, succeed
from tests.data.boxes.box_writers import digest_of, pattern, quiet, write_coco, write_image
from tests.data.preparing import cut, prepare_set

ONE = [(1, "a.png", 8, 6)]
BOX = {"image_id": 1, "category_id": 3, "bbox": [1.25, 2, 3.5, 4]}


def prepare(source: Path, target: Path, **options: Any) -> dict[str, Any]:
    return Coco.prepare(source=source, target=target, name="coco", progress=quiet, **options)


def all_of(root: Path, **arguments: Any) -> Coco:
    """Every image of a set without splits, but for the last, in the training part."""
    return Coco(split="train", root=str(root), test_share=0.0, validation_share=0.0, **arguments)


def made(tmp_path: Path, annotations: list[dict[str, Any]], **changed: Any) -> Coco:
    """A set of one image of 8 x 6 pixels with these annotations."""
    write_image(tmp_path / "in" / "a.png", pattern(6, 8))
    write_coco(tmp_path / "in" / "all.json", ONE, annotations, **changed)
    prepare(tmp_path / "in", tmp_path / "set")
    return all_of(tmp_path / "set")


def test_classes_are_numbered_by_their_ids_and_boxes_keep_their_fractions(tmp_path: Path) -> None:
    images = made(
        tmp_path,
        [
            BOX | {"area": 9.5},
            {"image_id": 1, "category_id": 90, "bbox": [0, 0, 8, 6], "iscrowd": 1},
            {"image_id": 1, "category_id": 7, "bbox": [0.1, 0.2, 1 / 3, 0.25], "ignore": 1, "area": 0.01},
        ],
    )
    assert images.classes == (("person", "car", "hat"), (3, 7, 90))
    assert images.info.facts["class_names"] == ("person", "car", "hat")
    record = images.record(0)
    assert record.boxes.tolist() == [[1.25, 2, 4.75, 6], [0, 0, 8, 6], [0.1, 0.2, 0.1 + 1 / 3, 0.45]]
    assert record.label.tolist() == [0, 2, 1]
    assert record.is_ignored.tolist() == [False, True, True]
    assert record.area.tolist() == [9.5, 48, 0.01]  # stated, or else of the box; never that of a resized image
    sample = images[SampleKey(0, 0, 0)]
    assert np.array_equal(sample["image"], pattern(6, 8))
    assert sample["boxes"].dtype == torch.float32
    assert sample["truth"][:, :4].tolist() == record.boxes.tolist()
    assert sample["truth"][:, 4:].tolist() == [[0, 9.5, 0], [2, 48, 1], [1, 0.01, 1]]
    assert images.image(0) == ("a.png", 1, 6, 8)


def test_samples_are_pure_and_nothing_reaches_the_records(tmp_path: Path) -> None:
    """Trap T1: boxes scaled in place drifted every epoch; here the records refuse, and samples are copies."""
    images = made(tmp_path, [BOX, BOX | {"iscrowd": 1}])
    before = digest_of(images)
    first = images[SampleKey(0, 0, 0)]
    for epoch in range(3):
        sample = images[SampleKey(0, epoch, 5)]
        for name, value in sample.items():
            torch.testing.assert_close(value, first[name], rtol=0, atol=0, equal_nan=True)
        for name in ("boxes", "truth", "image", "label"):
            sample[name].mul_(2)
        assert digest_of(images) == before
    for array in (each for each in vars(images.record(0)).values() if each is not None):
        with pytest.raises(ValueError, match="read-only"):
            array *= 2
    copied = pickle.loads(pickle.dumps(images))
    assert torch.equal(copied[SampleKey(0, 0, 0)]["boxes"], images[SampleKey(0, 0, 0)]["boxes"])


def test_batches_hold_images_of_any_size_and_areas_of_the_file(tmp_path: Path) -> None:
    """Trap T8: whatever the size of the canvas, a box is small, medium or large by its area in the file."""
    sizes = [(40, 30), (200, 100), (90, 120)]
    for number, (width, height) in enumerate(sizes, start=1):
        write_image(tmp_path / "in" / f"{number}.png", pattern(height, width))
    entries = [(number, f"{number}.png", *size) for number, size in enumerate(sizes, start=1)]
    boxes = [{"image_id": 2, "category_id": 7, "bbox": [0, 0, side, side]} for side in (31, 32, 96, 97)]
    write_coco(tmp_path / "in" / "all.json", entries, boxes)
    manifest = prepare(tmp_path / "in", tmp_path / "set")
    assert manifest["statistics"]["images_without_boxes"] == 2
    images = all_of(tmp_path / "set")
    areas = []
    for side in (64, 160):
        reader = BatchReader(images, [NamedTransform("fit_image", FitImage(height=side, width=side))])
        batch = reader([SampleKey(index, 0, 0) for index in range(3)])
        assert batch["image"].shape == (3, side, side, 3)
        assert batch["box_offsets"].tolist() == batch["truth_offsets"].tolist() == [0, 0, 4, 4]
        assert batch["truth"].shape == (4, 7)
        np.testing.assert_allclose(batch["boxes"][:, 2], np.array([31, 32, 96, 97]) * side / 200, rtol=1e-6)
        areas.append(batch["truth"][:, 5].tolist())
    assert areas == [[961, 1024, 9216, 9409]] * 2


def test_a_set_without_any_box_is_prepared(tmp_path: Path) -> None:
    images = made(tmp_path, [])
    assert images.record(0).boxes.shape == (0, 4)


def test_records_and_results_agree_with_pycocotools(tmp_path: Path) -> None:
    """The same file read by COCO's own code: boxes, areas, classes, crowds; and what we write, scored by it."""
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    evaluator = pytest.importorskip("pycocotools.cocoeval").COCOeval
    generator = np.random.default_rng(0)
    entries = [(11 * number, f"{number}.png", 50, 40) for number in range(1, 6)]
    for _, name, *_ in entries:
        write_image(tmp_path / "in" / name, pattern(40, 50))
    annotations = []
    for _ in range(40):
        bbox = [*generator.uniform(0, 20, 2), *generator.uniform(2, 20, 2)]
        area = float(generator.uniform(1, 400))
        place = {"image_id": 11 * int(generator.integers(1, 5)), "category_id": int(generator.choice([3, 7, 90]))}
        annotations.append({**place, "bbox": bbox, "area": area, "iscrowd": int(generator.random() < 0.2)})
    path = write_coco(tmp_path / "in" / "all.json", entries, annotations)
    prepare(tmp_path / "in", tmp_path / "set")
    images, theirs = all_of(tmp_path / "set"), coco.COCO(str(path))
    found = []
    for index in range(len(images)):
        image, record = images.image(index), images.record(index)
        rows = theirs.loadAnns(theirs.getAnnIds(imgIds=image.image_id))
        corners = [[x, y, x + width, y + height] for x, y, width, height in (row["bbox"] for row in rows)]
        assert record.boxes.tolist() == corners
        assert record.area.tolist() == [row["area"] for row in rows]
        assert [images.classes.ids[label] for label in record.label] == [row["category_id"] for row in rows]
        assert record.is_ignored.tolist() == [bool(row["iscrowd"]) for row in rows]
        found += Detections(image, record.boxes, np.ones(len(rows)), record.label).to_coco(images.classes.ids)
    judged = evaluator(theirs, theirs.loadRes(found), "bbox")
    judged.evaluate()
    judged.accumulate()
    judged.summarize()
    assert judged.stats[0] == pytest.approx(1.0)  # the boxes themselves, taken for what was found


def odd(kind: str) -> tuple[Image.Image, np.ndarray]:
    """An image of an unusual kind, and the pixels (6, 8, 3) that it shows."""
    colours = pattern(6, 8)
    grey = colours[..., :1]
    if kind == "grey":
        return Image.fromarray(grey[..., 0]), np.repeat(grey, 3, axis=2)
    if kind == "deep":
        values = grey[..., 0].astype(np.uint16) * 256 + 77
        return Image.fromarray(values), np.repeat(grey, 3, axis=2)
    if kind == "rgba":
        return Image.fromarray(np.concatenate([colours, grey], axis=2)), colours
    if kind == "bits":
        return Image.fromarray(grey[..., 0] > 99), np.repeat((grey > 99) * np.uint8(255), 3, axis=2)
    index = (np.arange(48, dtype=np.uint8) % 7).reshape(6, 8)
    image = Image.new("P", (8, 6))
    image.putdata(index.ravel().tolist())
    table = pattern(1, 7, seed=3)[0]
    image.putpalette(table.ravel().tolist())
    if kind == "clear palette":
        image.info["transparency"] = bytes(range(7))
    return image, table[index]


MODES = {"grey": "L", "deep": "I;16", "rgba": "RGBA", "bits": "1", "palette": "P", "clear palette": "P"}


@pytest.mark.parametrize("kind", MODES)
def test_images_of_every_kind_become_rgb(tmp_path: Path, kind: str) -> None:
    image, shown = odd(kind)
    write_image(tmp_path / "in" / "a.png", image)
    write_coco(tmp_path / "in" / "all.json", ONE, [BOX])
    manifest = prepare(tmp_path / "in", tmp_path / "set")
    assert manifest["differences"] == [f"1 images are not RGB and are converted (1 {MODES[kind]}), first: a.png"]
    sample = all_of(tmp_path / "set")[SampleKey(0, 0, 0)]
    assert sample["image"].dtype == torch.uint8
    assert np.array_equal(sample["image"], shown)


@pytest.mark.parametrize(
    ("highest", "words"), [(2**12 - 1, "are 15 at most"), (2**14 - 1, "are 63 at most"), (2**15, "")]
)
def test_images_of_cameras_of_10_to_14_bits_are_reported(tmp_path: Path, highest: int, words: str) -> None:
    write_image(tmp_path / "in" / "a.png", Image.fromarray(np.full((6, 8), highest, dtype=np.uint16)))
    write_coco(tmp_path / "in" / "all.json", ONE, [BOX])
    notes = prepare(tmp_path / "in", tmp_path / "set")["differences"][1:]
    assert [words in note for note in notes] == ([True] if words else [])


def test_cmyk_is_light_that_inks_leave(tmp_path: Path) -> None:
    inks = np.zeros((16, 16, 4), dtype=np.uint8)
    inks[..., 0] = 255  # cyan takes the red out
    Image.fromarray(inks, mode="CMYK").save(write_image(tmp_path / "in" / "a.jpg", pattern(16, 16)), quality=100)
    write_coco(tmp_path / "in" / "all.json", [(1, "a.jpg", 16, 16)], [BOX])
    prepare(tmp_path / "in", tmp_path / "set")
    found = all_of(tmp_path / "set")[SampleKey(0, 0, 0)]["image"].float().mean(dim=(0, 1))
    assert (found - torch.tensor([0.0, 255.0, 255.0])).abs().max() <= 3  # JPEG rounds


@pytest.mark.parametrize(("stated", "is_turned"), [((6, 8), True), ((8, 6), False)])
def test_images_are_turned_when_the_stated_size_shows_it(
    tmp_path: Path, stated: tuple[int, int], is_turned: bool
) -> None:
    """6 rows of 8 pixels are stored, to be turned by a quarter clockwise; sizes in the file are (width, height)."""
    stored = pattern(6, 8)
    write_image(tmp_path / "in" / "a.png", stored, orientation=6)
    write_image(tmp_path / "in" / "square.png", pattern(6, 6), orientation=3)  # no size shows it: as the others
    write_coco(tmp_path / "in" / "all.json", [(1, "a.png", *stated), (2, "square.png", 6, 6)], [BOX])
    prepare(tmp_path / "in", tmp_path / "set")
    images = all_of(tmp_path / "set")
    expected = np.rot90(stored, k=-1) if is_turned else stored
    assert np.array_equal(images[SampleKey(0, 0, 0)]["image"], expected)
    assert images.image(0)[2:] == expected.shape[:2] == stated[::-1]
    square = np.rot90(pattern(6, 6), k=2) if is_turned else pattern(6, 6)
    assert np.array_equal(images[SampleKey(1, 0, 0)]["image"], square)


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "NaN": ({"bbox": [math.nan, 0, 1, 1]}, r"1 impossible boxes, first: b\.png: annotation 2: bbox is \[nan"),
    "right before left": ({"bbox": [5, 0, -2, 1]}, "bbox is \\[5, 0, -2, 1\\]"),
    "no height": ({"bbox": [5, 0, 2, 0]}, "bbox is \\[5, 0, 2, 0\\]"),
    "three numbers": ({"bbox": [5, 0, 2]}, "bbox is \\[5, 0, 2\\]"),
    "text": ({"bbox": "5022"}, "bbox is 5022"),
    "text of numbers": ({"bbox": [1, 2, "3", 4]}, "impossible boxes, first: b.png: annotation 2"),  # `float` takes '3'
    "true": ({"bbox": [True, 2, 3, 4]}, "impossible boxes"),
    "a crowd by text": (
        {"bbox": [0, 0, 1, 1], "iscrowd": "0"},
        "annotation 2: iscrowd is 0 ",
    ),  # any text but '' counts as a mark
    "ignored by text": ({"bbox": [0, 0, 1, 1], "ignore": "no"}, "annotation 2: ignore is no "),
    "area by text": ({"bbox": [0, 0, 1, 1], "area": "12"}, "annotation 2: area is 12 "),
    "masks alone": ({"segmentation": [[1, 2, 4.5, 2, 4.5, 6]]}, "bbox is missing .there is no bbox"),
    "nothing": ({}, "bbox is missing .there is no bbox; export boxes beside masks"),
    "category": ({"bbox": [0, 0, 1, 1], "category_id": 4}, "boxes of unknown categories, .* has the category 4"),
    "category list": ({"bbox": [0, 0, 1, 1], "category_id": [3]}, r"boxes of unknown categories, .* \[3\]"),
    "category null": ({"bbox": [0, 0, 1, 1], "category_id": None}, "unknown categories, .*b.png: category_id is null"),
    "image null": (
        {"bbox": [0, 0, 1, 1], "image_id": None},
        "images that are not in the file, first: image_id is null",
    ),
    "huge": ({"bbox": [0, 0, 10**400, 1]}, "impossible boxes"),
    "far": ({"bbox": [1e308, 0, 1e308, 1]}, "finite numbers, of pixels at most 16,777,216 from the corner"),
    "far on the left": ({"bbox": [-1e300, 0, 1e300, 1], "iscrowd": 1}, "at most 16,777,216 from the corner"),
    "area": ({"bbox": [0, 0, 1, 1], "area": 1e300}, r"area is 1e\+300 \(a number of pixels up to 16,777,216, squared"),
    "area list": (
        {"bbox": [0, 0, 1, 1], "area": [600]},
        r"first: b\.png: annotation 2: area is \[600\] \(a number is needed, not a list\)",
    ),
    "rotation": (
        {"bbox": [0, 0, 1, 1], "attributes": {"rotation": "half"}},
        "attributes is .*rotation is 'half', a num",
    ),
    "image": ({"bbox": [0, 0, 1, 1], "image_id": 9}, "images that are not in the file, first: annotation 2 has the i"),
}


def test_text_that_no_file_can_hold_is_refused(tmp_path: Path) -> None:
    """Before, an error of a codec; odd bytes in a file's name, which Python writes as U+DC80 to U+DCFF, are read."""
    for name in ("\ud800.png", "\ude00\ud83d.png"):
        write_coco(tmp_path / "all.json", [(1, name, 8, 6)], [BOX])
        with pytest.raises(DataError, match=r"all\.json: does not read as JSON \(text holds half a character, U\+D"):
            Coco.survey(tmp_path)
    write_coco(tmp_path / "all.json", [(1, "x" * 5000, 8, 6)], [BOX])
    with pytest.raises(DataError, match=r"'x{200}': there is no such file in .*images=FOLDER"):
        Coco.survey(tmp_path)
    (tmp_path / "all.json").write_text(
        (tmp_path / "all.json").read_text().replace('"width": 8', f'"width": {"8" * 5000}')
    )
    with pytest.raises(DataError, match=r"all\.json: does not read as JSON \(a number has thousands of digits\)"):
        Coco.survey(tmp_path)
    odd = "\udcff\U0001f600.png"
    write_image(tmp_path / odd, pattern(6, 8))
    write_coco(tmp_path / "all.json", [(1, odd, 8, 6)], [BOX])
    assert Coco.survey(tmp_path)["images"] == {"all": 1}


def test_the_same_preparation_again_decodes_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "in" / "a.png", pattern(6, 8))
    path = write_coco(tmp_path / "in" / "all.json", ONE, [BOX])
    prepare(tmp_path / "in", tmp_path / "set")
    with monkeypatch.context() as patched:
        patched.setattr("sightline.store.boxes.image_listing.check_image", lambda _: pytest.fail("decodes"))
        assert prepare(tmp_path / "in", tmp_path / "set")["outcome"] == "already there"
    status = path.stat()
    path.write_text(path.read_text().replace('"category_id": 3', '"category_id": 7'))  # of equal size
    assert path.stat().st_size == status.st_size
    with pytest.raises(DataError, match=r"before its files changed \(size or time\)"):
        prepare(tmp_path / "in", tmp_path / "set")


def test_ids_that_are_digits_in_text_are_numbers(tmp_path: Path) -> None:
    write_image(tmp_path / "in" / "a.png", pattern(6, 8))
    box = {"image_id": "1", "category_id": "3", "bbox": [1, 2, 3, 4]}
    path = write_coco(tmp_path / "in" / "all.json", ONE, [box], categories=[{"id": "3", "name": "person"}])
    notes = prepare(tmp_path / "in", tmp_path / "set")["differences"]
    assert "all.json: ids of 1 entries are text, and read as numbers" in notes
    assert all_of(tmp_path / "set").record(0).boxes.tolist() == [[1, 2, 4, 6]]
    path.write_text(path.read_text().replace('"image_id"', '"item_id"'))
    with pytest.raises(DataError, match=r"first: image_id is missing, there is category_id, item_id: annotation 1 is"):
        prepare(tmp_path / "in", tmp_path / "other")


@pytest.mark.parametrize("kind", FAULTS)
def test_faulty_annotations_are_named_or_left_out(tmp_path: Path, kind: str) -> None:
    fault, message = FAULTS[kind]
    for name in "ab":
        write_image(tmp_path / "in" / f"{name}.png", pattern(6, 8))
    faulty = {"image_id": 2, "category_id": 3, **fault}
    write_coco(tmp_path / "in" / "all.json", [*ONE, (2, "b.png", 8, 6)], [BOX, faulty, BOX | {"image_id": 2}])
    with pytest.raises(DataError, match=f"{message}.*correct them, or leave them out by faulty=leave_out"):
        prepare(tmp_path / "in", tmp_path / "set")
    manifest = prepare(tmp_path / "in", tmp_path / "set", faulty="leave_out")
    assert "left out: 1 " in manifest["differences"][0]
    images = all_of(tmp_path / "set")
    assert [images.record(index).boxes.tolist() for index in range(2)] == 2 * [[[1.25, 2, 4.75, 6]]]


@pytest.mark.parametrize("kind", ["missing", "cut", "text", "size"])
def test_faulty_images_are_named_and_counted_or_left_out(tmp_path: Path, kind: str) -> None:
    for name in "abc":
        write_image(tmp_path / "in" / f"{name}.png", pattern(32, 40))
    sizes = [(40, 32), (40, 32), (40, 33) if kind == "size" else (40, 32)]
    entries = [(number, f"{name}.png", *size) for number, name, size in zip((1, 2, 3), "abc", sizes, strict=True)]
    write_coco(tmp_path / "in" / "all.json", entries, [BOX | {"image_id": number} for number in (1, 2, 3)])
    bad = tmp_path / "in" / "c.png"
    harms = {"missing": Path.unlink, "cut": lambda path: cut(path, by=100), "text": lambda path: path.write_text("x")}
    harms.get(kind, str)(bad)
    message = "of another size .*c.png is 40 wide and 32 high, .* state 40 and 33" if kind == "size" else "c.png"
    with pytest.raises(DataError, match=f"1 images .*{message}"):
        prepare(tmp_path / "in", tmp_path / "set")
    assert not (tmp_path / "set").exists()
    manifest = prepare(tmp_path / "in", tmp_path / "set", faulty="leave_out")
    assert manifest["statistics"]["images"] == {"all": 2}
    assert [all_of(tmp_path / "set").sample_name(index) for index in range(2)] == ["a.png", "b.png"]


WRONG: dict[str, tuple[Any, str]] = {
    "ids": ({"images": [dict(id=1, file_name=name) for name in "ab"]}, "'a' and 'b' both have the id 1"),
    "names": ({"images": [dict(id=number, file_name="a.png") for number in (1, 2)]}, "'a.png' has the ids 1 and 2"),
    "text ids": ({"images": [dict(id="x", file_name="a.png")]}, "'x' is not a whole number"),
    "no name": ({"images": [dict(id=1)]}, "lacks a file_name"),
    "categories": ({"categories": [dict(id=1, name="a"), dict(id=1, name="b")]}, "two categories have one id"),
    "no categories": ({"categories": []}, "names no class"),
    "endless id": ({"images": [{"id": 2**70, "file_name": "a.png"}]}, "is not a whole number"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_files_that_contradict_themselves_are_refused(tmp_path: Path, kind: str) -> None:
    changed, message = WRONG[kind]
    with pytest.raises(DataError, match=message):
        made(tmp_path, [], **changed)


def test_what_is_not_instances_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file or folder"):
        prepare(tmp_path / "nowhere", tmp_path / "set")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "results.json").write_text("[]")
    with pytest.raises(DataError, match=r"holds results\.json, no JSON file with images, annotations, categories"):
        prepare(tmp_path / "in", tmp_path / "set")
    with pytest.raises(DataError, match="it has a list"):
        prepare(tmp_path / "in" / "results.json", tmp_path / "set")
    (tmp_path / "in" / "results.json").write_text("{")
    with pytest.raises(DataError, match="does not read as JSON"):
        prepare(tmp_path / "in", tmp_path / "set")


def test_names_with_accents_links_and_backslashes_are_found(tmp_path: Path) -> None:
    composed = unicodedata.normalize("NFC", "Übung äß 行人.png")
    decomposed = unicodedata.normalize("NFD", composed)
    write_image(tmp_path / "in" / decomposed, pattern(6, 8))
    write_image(tmp_path / "disk" / "b.png", pattern(6, 8, seed=1))
    os.symlink(tmp_path / "disk", tmp_path / "in" / "more")
    write_coco(tmp_path / "in" / "all.json", [(1, composed, 8, 6), (2, "more\\b.png", 8, 6)], [BOX])
    prepare(tmp_path / "in", tmp_path / "set")
    images = all_of(tmp_path / "set")
    found = {images.sample_name(index): images[SampleKey(index, 0, 0)]["image"].numpy() for index in range(2)}
    assert np.array_equal(found[decomposed], pattern(6, 8))
    assert np.array_equal(found["more/b.png"], pattern(6, 8, seed=1))


@pytest.mark.parametrize("layout", ["coco", "coco images", "export"])
def test_files_by_split_are_recognised(tmp_path: Path, layout: str) -> None:
    root = tmp_path / "in"
    for word, number in (("train", 5), ("val", 3)):
        if layout == "export":
            folder, document = root / word, root / word / "_annotations.coco.json"
        else:
            folder = root / ("images" if layout == "coco images" else "") / f"{word}2017"
            document = root / "annotations" / f"instances_{word}2017.json"
            (root / "annotations").mkdir(parents=True, exist_ok=True)
            (root / "annotations" / f"captions_{word}2017.json").write_text("{")  # is never opened
        entries = [(each, f"{word}{each}.png", 8, 6) for each in range(1, number + 1)]
        for _, name, *_ in entries:
            write_image(folder / name, pattern(6, 8))
        write_coco(document, entries, [BOX])
    prepare(root, tmp_path / "set")
    train = Coco(split="train", root=str(tmp_path / "set"))
    assert train.info.split_sizes == {"train": 4, "validation": 1, "test": 3}  # its validation images are tested on
    assert Path(Coco(split="test", root=str(tmp_path / "set")).sample_name(0)).name == "val1.png"
    chosen = Coco(split="test", root=str(tmp_path / "set"), tested=(train.sample_name(1),))
    assert [chosen.sample_name(index) for index in range(len(chosen))] == [train.sample_name(1)]
    with pytest.raises(DataError, match="no image's name begins with 'nobody'"):
        Coco(split="test", root=str(tmp_path / "set"), tested=("nobody",))


def test_files_that_do_not_tell_their_split_are_chosen_by_name(tmp_path: Path) -> None:
    write_image(tmp_path / "in" / "a.png", pattern(6, 8))
    for name in ("first.json", "second.json"):
        write_coco(tmp_path / "in" / name, ONE, [BOX] * len(name))
    with pytest.raises(DataError, match=r"first\.json, second\.json are not one file for each .*choose by annotatio"):
        prepare(tmp_path / "in", tmp_path / "set")
    prepare(tmp_path / "in", tmp_path / "set", annotations=("second.json",))
    assert len(all_of(tmp_path / "set").record(0).boxes) == len("second.json")


def test_splits_of_other_categories_are_refused(tmp_path: Path) -> None:
    for word in ("train", "val"):
        write_image(tmp_path / "in" / word / "a.png", pattern(6, 8))
    write_coco(tmp_path / "in" / "train" / "x.json", ONE, [BOX])
    write_coco(tmp_path / "in" / "val" / "x.json", ONE, [], categories=[{"id": 3, "name": "person"}])
    with pytest.raises(DataError, match="its categories are not those of"):
        prepare(tmp_path / "in", tmp_path / "set")


def test_classes_are_chosen_by_name(tmp_path: Path) -> None:
    boxes = [BOX | {"category_id": number, "bbox": [0, 0, number / 20, 1]} for number in (3, 7, 90)]
    made(tmp_path, boxes)
    chosen = all_of(tmp_path / "set", classes=("hat", "person"))
    assert chosen.classes == (("hat", "person"), (90, 3))
    assert chosen.record(0).label.tolist() == [1, 0]
    assert chosen.record(0).boxes[:, 2].tolist() == [0.15, 4.5]
    kept = all_of(tmp_path / "set", classes=("car",), other_classes="ignored").record(0)
    assert kept.is_ignored.tolist() == [True, False, True]
    assert kept.label.tolist() == [-1, 0, -1]
    with pytest.raises(ConfigError, match="has no class 'persn'; did you mean 'person'"):
        all_of(tmp_path / "set", classes=("persn",))
    with pytest.raises(ConfigError, match="names a class twice"):
        all_of(tmp_path / "set", classes=("car", "car"))


def test_small_boxes_are_ignored_in_training_and_scoring(tmp_path: Path) -> None:
    sides = [(3, 3), (2.5, 4), (4, 2.5), (2.5, 2.5)]
    made(tmp_path, [BOX | {"bbox": [1, 1, *side]} for side in sides])
    images = all_of(tmp_path / "set", ignore_below_px=3)
    assert images.record(0).is_ignored.tolist() == [False, True, True, True]
    sample = images[SampleKey(0, 0, 0)]
    assert sample["is_ignored"].tolist() == sample["truth"][:, 6].bool().tolist() == [False, True, True, True]
    assert not all_of(tmp_path / "set").record(0).is_ignored.any()


def test_a_file_that_changed_is_named(tmp_path: Path) -> None:
    images = made(tmp_path, [BOX])
    write_image(tmp_path / "in" / "a.png", pattern(7, 8))
    with pytest.raises(DataError, match=r"a\.png: (has|was written)"):
        images[SampleKey(0, 0, 0)]
    with pytest.raises(IndexError, match="samples 0 to 0"):
        images[SampleKey(1, 0, 0)]
    write_coco(tmp_path / "in" / "all.json", [(1, "a.png", 8, 7)], [BOX, BOX])
    with pytest.raises(DataError, match="before its files changed"):
        prepare(tmp_path / "in", tmp_path / "set")


@run_each(
    "column, value, said",
    [
        ("label", 9, r"label 0 of 'all' is 9, there are 3 classes \(0 to 2\)"),
        ("label", -1, "label 0 of 'all' is -1, there are 3 classes"),
        ("boxes", math.nan, r"box 0 of 'all\.boxes' is \[nan, nan, nan, nan\]"),
        ("boxes", [4.0, 1, 3, 2], r"box 0 of 'all\.boxes' is \[4\.0, 1\.0, 3\.0, 2\.0\]"),
    ],
)
def test_stored_labels_that_no_preparation_writes_are_refused(
    tmp_path: Path, column: str, value: float | list[float], said: str
) -> None:
    """Where size and form of the array are right: such boxes were left out in silence, a label of -1 the last class."""
    for name in ("in", "set"):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
    made(tmp_path, [BOX])
    stored = np.load(tmp_path / f"set/all.{column}.npy")
    stored[0] = value
    np.save(tmp_path / f"set/all.{column}.npy", stored)
    with pytest.raises(DataError, match=said):
        all_of(tmp_path / "set")


def test_commands_prepare_and_print(tmp_path: Path) -> None:
    write_image(tmp_path / "in" / "a.png", pattern(6, 8)[..., 0])
    write_coco(tmp_path / "in" / "all.json", ONE, [BOX, BOX | {"iscrowd": 1}, BOX | {"bbox": [0, 0, 0, 0]}])
    done = succeed("data", "info", "coco", "--from", tmp_path / "in", "--json", tmp_path / "info.json")
    assert "left out: 1 impossible boxes" in done.out
    document = json.loads((tmp_path / "info.json").read_text())
    assert document["boxes_per_class"] == {"person": 1, "car": 0, "hat": 0}
    assert document["ignored_share"] == 0.5
    assert document["image_modes"] == {"L": 1}
    where = ("--from", tmp_path / "in", "--to", tmp_path / "set")
    assert refuse("data", "prepare", "coco", *where).splitlines()[-1].startswith(f"error: {tmp_path}")
    succeed("data", "prepare", "coco", *where, "faulty=leave_out")
    assert "image_sizes: 8x6 1" in succeed("data", "info", tmp_path / "set").out.replace("\u00a0", " ")
    succeed("data", "verify", tmp_path / "set")
    succeed("data", "info", "coco")


def test_classes_without_photos_in_a_part_are_told_with_their_counts(tmp_path: Path) -> None:
    """By hand: person in 2 and 1 photos, car in 2 and none, hat in 1 and 1; an ignored box is no photo of a class."""
    photos = {"train": [(3, 7), (3, 7), (90,)], "val": [(3,), (90,)]}
    for split, labels in photos.items():
        names = [f"{split}/{number}.png" for number in range(len(labels))]
        for seed, name in enumerate(names):
            write_image(tmp_path / "in" / name, pattern(6, 8, seed))
        boxes = [
            {"image_id": number, "category_id": label, "bbox": [1, 1, 3, 3]}
            for number, each in enumerate(labels)
            for label in each
        ]
        boxes += [{"image_id": 0, "category_id": 7, "bbox": [1, 1, 3, 3], "iscrowd": 1}]
        images = [(number, name, 8, 6) for number, name in enumerate(names)]
        write_coco(tmp_path / "in" / f"instances_{split}.json", images, boxes)
    told = [note for note in Coco.survey(tmp_path / "in")["differences"] if "classes" in note]
    assert told == [
        "1 of 3 classes have boxes in at most one training image: hat (train 1, test 1); add some, or choose others by "
        "data.classes",
        "1 of 3 classes have boxes in no image of the test part: car (train 2, test 0); they are learnt and never "
        "measured",
    ]
    prepare_set("coco", tmp_path / "in", tmp_path / "set")
    assert [*Coco(split="train", root=str(tmp_path / "set")).doubts] == told
