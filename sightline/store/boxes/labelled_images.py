"""Base of the prepared data sets of images with boxes.

Seeded splits of a set of images with boxes, stratified by class and folder, if its source states none.
"""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from sightline.config.yaml_writer import format_inline
from sightline.contract.arguments import FractionBelowOne, NonNegativeFloat, Seed
from sightline.contract.draws import Draws
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.schema import suggest
from sightline.contract.types import DataInfo, Dealing, Sample, SampleKey
from sightline.store.box_fields import BOX_FIELDS
from sightline.store.boxes.detections import ImageRef, SetIndex
from sightline.store.boxes.image_listing import plan_image_set, survey_images
from sightline.store.boxes.label_table import CategoryIds, FaultPolicy, LabelFormat
from sightline.store.boxes.photo_bases import BASES
from sightline.store.boxes.photo_orientation import OrientationRule
from sightline.store.boxes.records import BoxRecord, box_facts, make_sample
from sightline.store.files.image_files import read_image
from sightline.store.files.input_files import prepare_again
from sightline.store.prepared.columns import BOXES, CLASSES, ColumnForm
from sightline.store.prepared.prepared_data import describe_foreign_label, with_options
from sightline.store.prepared.prepared_rows import PreparedRows
from sightline.store.prepared.prepared_set import PreparedSet
from sightline.store.prepared.prepared_writer import PreparationPlan, Progress
from sightline.store.prepared.splits import RowRefs, check_part, count_held, make_splits


def _check_values(prepared: PreparedSet, split: str, forms: Mapping[str, ColumnForm]) -> None:
    """Raise DataError for labels of no class, and for boxes that no preparation writes: not finite, or turned over."""
    if fault := describe_foreign_label(prepared, split):
        raise DataError(fault)
    for name in prepared.manifest["columns"]:
        if forms.get(name) is BOXES:
            boxes = prepared.array(split, name)
            is_wrong = ~(np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] >= boxes[:, :2]).all(axis=1))
            if is_wrong.any():
                row = int(is_wrong.argmax())
                raise prepare_again(f"{prepared.root}: box {row} of '{split}.{name}' is {boxes[row].tolist()}")


def _deal_seeded(
    prepared: PreparedSet, seed: int, rows: Sequence[tuple[str, int]], share: float
) -> tuple[RowRefs, RowRefs]:
    names = {split: prepared.names(split) for split in {split for split, _ in rows}}
    folders = [names[split][row].rpartition("/")[0] for split, row in rows]
    images, labels = _list_classes(prepared, rows)
    is_held = hold_out_images(images, labels, folders, count=count_held(len(rows), share), seed=seed)
    remaining, held_out = (
        tuple(row for row, is_row_held in zip(rows, is_held, strict=True) if is_row_held is side)
        for side in (False, True)
    )
    return remaining, held_out


def _list_classes(prepared: PreparedSet, rows: Sequence[tuple[str, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the unique pairs of image and class: indices into `rows` (P,) int64, and labels (P,) int64."""
    images, labels = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for split in prepared.splits:
        index_by_row = np.full(len(prepared.names(split)), -1)
        index_by_row[[row for name, row in rows if name == split]] = [
            n for n, row in enumerate(rows) if row[0] == split
        ]
        image = index_by_row[np.repeat(np.arange(len(index_by_row)), np.diff(prepared.offsets(split)))]
        is_shown = (image >= 0) & ~prepared.array(split, "is_ignored")
        images.append(image[is_shown])
        labels.append(np.asarray(prepared.array(split, "label"))[is_shown])
    image, label = np.concatenate(images), np.concatenate(labels).astype(np.int64)
    num_classes = int(label.max(initial=0)) + 1
    pairs = np.unique(image * num_classes + label)
    return pairs // num_classes, pairs % num_classes


def hold_out_images(
    images: np.ndarray, labels: np.ndarray, folders: Sequence[str], *, count: int, seed: int
) -> list[bool]:
    """Return the hold-out mask of a stratified split: `count` images are True.

    Images are drawn at even distances from a list that is ordered by the rarest class of each, then by folder, then
    randomly; a class of a single image is trained on, if there are enough others. Source: systematic sampling, Cochran
    1977, chapter 8.
    """
    num_images, num_classes = len(folders), int(labels.max(initial=-1)) + 1
    sizes = np.bincount(labels, minlength=num_classes)
    draws = Draws.for_samples([SampleKey(0, 0, seed)])
    [order] = draws.stream("dealt images").permutation(num_images).numpy()
    rank = np.lexsort((np.arange(num_classes), sizes)).argsort()
    rarest = np.full(num_images, num_classes)
    np.minimum.at(rarest, images, rank[labels])
    folder = np.unique(folders, return_inverse=True)[1]
    candidates = order[np.lexsort((folder[order], rarest[order]))]
    is_single = np.isin(np.arange(num_images), images[sizes[labels] == 1])
    if count <= (~is_single).sum():
        candidates = candidates[~is_single[candidates]]
    is_held = np.zeros(num_images, dtype=bool)
    if count:
        start = float(draws.stream("first of the held out").uniform().item())
        is_held[candidates[((np.arange(count) + start) * len(candidates) / count).astype(np.int64)]] = True
    return is_held.tolist()


_KEYWORD = inspect.Parameter.KEYWORD_ONLY
_FAULTY = inspect.Parameter("faulty", _KEYWORD, default="refuse", annotation=FaultPolicy)
_ORIENTATION = inspect.Parameter("orientation", _KEYWORD, default="sizes", annotation=OrientationRule)


def _make_plan(label_format: LabelFormat) -> Callable[..., PreparationPlan]:
    """Make the class method `plan` of a set of images, by the options of its reader, of photos, and `faulty`."""
    parameters = [*label_format.options, _ORIENTATION, _FAULTY]

    def plan(
        cls: type[LabelledImages], root: Path, *, target: Path, progress: Progress, **options: Any
    ) -> PreparationPlan:
        """Plan to list the images that labels name, and to keep their boxes.

        Raises DataError as the reader, and for images and boxes that cannot be used unless `faulty` is `leave_out`.
        """
        stated = {item.name: options.pop(item.name, item.default) for item in (_ORIENTATION, _FAULTY)}
        stated |= {item.name: options.get(item.name, item.default) for item in label_format.options}
        return plan_image_set(
            label_format.load(root, **options),
            label_format,
            set_name=cls.set_name,
            faulty=stated["faulty"],
            orientation=stated["orientation"],
            options={name: list(value) if isinstance(value, tuple) else value for name, value in stated.items()},
            progress=progress,
            target=target,
        )

    return with_options(plan, parameters)


def _make_survey(label_format: LabelFormat) -> Callable[..., dict[str, Any]]:
    """Make the class method `survey` of a set of images, by the options of its reader and of photos."""

    def survey(cls: type[LabelledImages], source: Path, **options: Any) -> dict[str, Any]:
        """Survey images, sizes, classes and faults of unprepared files. Raises DataError as the reader."""
        orientation = options.pop(_ORIENTATION.name, _ORIENTATION.default)
        return survey_images(label_format.load(source, **options), label_format, orientation=orientation)

    return with_options(survey, [*label_format.options, _ORIENTATION])


OtherClasses = Literal["left_out", "ignored"]
"""Treatment of boxes of classes that a config does not choose."""


_TEST_SHARE = 0.2
"""Of photos whose parts nothing states."""


class LabelledImages(PreparedRows):
    """Base of sets of images with boxes; images are decoded at each access, boxes are in pixels of the file.

    Boxes narrower or lower than `ignore_below_px` pixels of the file are ignored in training and scoring. Splits
    that the source does not state are drawn by `split_seed`, stratified by class and folder.

    Pure: the same key gives the same sample, and changes to a sample do not reach the stored arrays.
    """

    label_format: ClassVar[LabelFormat]
    regions: ClassVar[tuple[str, ...]] = ()
    """Classes that are no objects: their boxes are ignored, whatever classes are chosen."""
    config_bases = BASES
    printed = ("layout", "differences")
    forms: ClassVar[Mapping[str, ColumnForm]] = {
        **dict.fromkeys(("boxes", "full", "visible", "head"), BOXES),
        "label": CLASSES,
    }
    _stored_boxes: tuple[str, str] = ("boxes", "boxes")
    """Stored columns of the boxes to train on and of those to score."""
    _clip = False

    def __init_subclass__(cls) -> None:
        if "label_format" in vars(cls):
            cls.plan = classmethod(_make_plan(cls.label_format))  # type: ignore[assignment]
            cls.survey = classmethod(_make_survey(cls.label_format))  # type: ignore[assignment]
        super().__init_subclass__()

    def __init__(
        self,
        *,
        split: str,
        root: str | None = None,
        classes: tuple[str, ...] = (),
        other_classes: OtherClasses = "left_out",
        ignore_below_px: NonNegativeFloat = 0.0,
        tested: tuple[str, ...] = (),
        test_share: FractionBelowOne = _TEST_SHARE,
        validation_share: FractionBelowOne = 0.1,
        split_seed: Seed = 0,
    ) -> None:
        prepared = self.open_root(root)
        parts = make_splits(
            prepared,
            test_names=tested,
            test_share=test_share,
            validation_share=validation_share,
            what="image",
            deal=partial(_deal_seeded, prepared, split_seed),
        )
        check_part(parts, split, root=prepared.root, what="image")
        for stored in {stored for stored, _ in parts.rows[split]}:
            _check_values(prepared, stored, self.forms)
        self._prepared = prepared
        self._rows = parts.rows[split]
        self._keeps_other_classes = other_classes == "ignored"
        self._min_px = ignore_below_px
        self.classes = _select_classes(prepared, classes, self.regions)
        chosen = {name: label for label, name in enumerate(self.classes.names)}
        self._is_region = np.isin(prepared.manifest["classes"]["names"], self.regions)
        self._class_of = np.array([chosen.get(name, -1) for name in prepared.manifest["classes"]["names"]])
        facts = box_facts(self.classes.names, self.box_type)
        sizes = {name: len(rows) for name, rows in parts.rows.items() if rows}
        dealing = Dealing("seeded", split_seed, parts.dealt)
        self.info = DataInfo(facts, BOX_FIELDS, split_sizes=sizes, folds=parts.folds, dealing=dealing)

    @property
    def box_type(self) -> str:
        """Name of the scored boxes, for reports; `annotated` if a set has one kind of boxes."""
        return "annotated" if self._stored_boxes[1] == "boxes" else self._stored_boxes[1]

    def __getitem__(self, key: SampleKey) -> Sample:
        """Read one image at its original size with its boxes, as new tensors.

        Raises IndexError for an index out of range, and DataError with the file that is missing, was changed, or cannot
        be decoded.
        """
        record, (split, row) = self.record(key.index), self._rows[key.index]
        path = self._prepared.listing(split).paths(row)[0]
        pixels = read_image(path, orientation=int(self._read_column(key.index, "orientation")))
        actual, expected = (
            " x ".join(map(str, size)) for size in (pixels.shape[:2], self._read_column(key.index, "size_px"))
        )
        if actual != expected:
            raise DataError(f"{path}: has {actual} pixels, {expected} when the set was prepared; prepare it again")
        return make_sample(pixels, record)

    def record(self, index: int) -> BoxRecord:
        """Return the boxes of an image as read-only arrays, without its pixels."""
        stored = self._read_column(index, "label")
        label = self._class_of[stored]
        is_other = label < 0
        selected = np.ones_like(is_other) if self._keeps_other_classes else ~is_other | self._is_region[stored]
        boxes, scored = (self._read_column(index, name)[selected] for name in self._stored_boxes)
        is_ignored, is_scored_ignored = (
            (self._read_column(index, ignored_column(name)) | is_other)[selected] for name in self._stored_boxes
        )
        area = (scored[:, 2:] - scored[:, :2]).prod(axis=1)
        if "area" in self.label_format.columns:
            area = self._read_column(index, "area")[selected]
        if self._clip:
            height, width = self._read_column(index, "size_px")
            boxes = np.clip(boxes, 0, [width, height, width, height])
        is_ignored |= _shorter_side(boxes) < self._min_px
        is_scored_ignored |= _shorter_side(scored) < self._min_px
        visible = self._visible(index)
        visible = None if visible is None else visible[selected]
        return BoxRecord(boxes, scored, label[selected], is_ignored, area, is_scored_ignored, visible)

    def image(self, index: int) -> ImageRef:
        """Return the identity of an image in result files, and its size."""
        height, width = self._read_column(index, "size_px").tolist()
        return ImageRef(self.sample_name(index), int(self._read_column(index, "image_id")), height, width)

    def set_index(self) -> SetIndex:
        """Return all images and classes of the prepared set, also those that this split does not contain."""
        prepared = self._prepared
        ids = {number for split in prepared.splits for number in prepared.array(split, "image_id").tolist()}
        names = {name for split in prepared.splits for name in prepared.names(split)}
        return SetIndex(frozenset(ids | names), frozenset(prepared.manifest["classes"]["ids"]))

    @classmethod
    def describe(cls, root: Path) -> dict[str, Any]:
        """Summary of a prepared folder for `data info`."""
        described = super().describe(root)
        return {"set": described["set"], "layout": described.pop("layout"), **described}

    @classmethod
    def summarise(cls, prepared: PreparedSet) -> dict[str, Any]:
        """Return the statistics of images and boxes, and a canvas for them."""
        manifest = prepared.manifest
        return {**manifest["statistics"], "proposed_canvas": manifest.get("proposed_canvas", {})}

    @classmethod
    def propose(cls, prepared: PreparedSet, base: Mapping[str, Any]) -> list[str]:
        """Return the classes and the canvas."""
        manifest = prepared.manifest
        canvas = manifest.get("proposed_canvas", {}).get("for_config", "")
        return [f"data.classes={format_inline(manifest['classes']['names'])}", *shlex.split(canvas)]

    @classmethod
    def count_training(cls, prepared: PreparedSet) -> int:
        """Return the number of photos to train on."""
        counts = prepared.manifest["statistics"]["images"]
        return int(counts["train"]) if "train" in counts else round((1 - _TEST_SHARE) * counts.get("all", 0))

    def _read_column(self, index: int, column: str) -> np.ndarray:
        split, row = self._locate(index)
        return self._prepared.row(split, column, row)

    def _visible(self, index: int) -> np.ndarray | None:
        """Return the visible share (G,) of the stored boxes, NaN if unknown; None for sets without that label."""
        return None


def ignored_column(boxes: str) -> str:
    """Return the name of the stored column of the ignore marks of boxes."""
    return "is_head_ignored" if boxes == "head" else "is_ignored"


def _shorter_side(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2]).min(axis=1)


def _select_classes(prepared: PreparedSet, names: tuple[str, ...], regions: Sequence[str]) -> CategoryIds:
    """Select classes by name, in the order of the config; all but `regions` if it names none. Raises ConfigError."""
    stored = CategoryIds(*(tuple(prepared.manifest["classes"][key]) for key in ("names", "ids")))
    unknown = [name for name in names if name not in stored.names]
    if unknown:
        raise ConfigError(f"classes: {prepared.root} has no class '{unknown[0]}'{suggest(unknown[0], stored.names)}")
    if len(set(names)) < len(names):
        raise ConfigError("classes: names a class twice; name each once")
    chosen = names or tuple(name for name in stored.names if name not in regions)
    return CategoryIds(chosen, tuple(stored.ids[stored.names.index(name)] for name in chosen))
