"""Prepared sets of images with boxes, whatever files they are read from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from sightline.arguments import FractionBelowOne, NonNegativeFloat, Seed
from sightline.data.boxes.dealing import SplitRule, deal_by
from sightline.data.boxes.detections import ImageRef, SetIndex
from sightline.data.boxes.image_listing import CategoryIds
from sightline.data.boxes.records import BOX_FIELDS, BoxRecord, box_facts, make_sample
from sightline.data.files.image_files import read_image
from sightline.data.store.location import prepared_root
from sightline.data.store.prepared_set import LISTED, PreparedSet, open_prepared, verify
from sightline.data.store.splits import check_part, make_splits
from sightline.errors import ConfigError, DataError
from sightline.schema import suggest
from sightline.types import DataInfo, Dealing, Sample, SampleKey

__all__ = ["BoxColumns", "LabelledImages", "OtherClasses"]

OtherClasses = Literal["left_out", "ignored"]
"""What becomes of the boxes of classes that a config does not choose."""


@dataclass(frozen=True)
class BoxColumns:
    """The stored columns of the boxes that are trained on and of those that are scored, and of what is ignored."""

    boxes: str = "boxes"
    scored: str = "boxes"
    is_ignored: str = "is_ignored"
    is_scored_ignored: str = "is_ignored"
    area: str | None = "area"
    clip: bool = False

    @property
    def box_type(self) -> str:
        """The name of the boxes that are scored, for reports; `annotated` where a set has one kind."""
        return "annotated" if self.scored == "boxes" else self.scored


class LabelledImages:
    """Images are decoded from where their files lie, at each reading; boxes are in pixels of the file, never rounded.

    Boxes narrower or lower than `ignore_below_px` pixels of the file are ignored in training and scoring. Parts that
    the source does not state are dealt by `split_rule`: `seeded`, alike in classes and folders, or the last by name.

    Pure: the same key gives the same sample, and nothing done to a sample reaches what is stored.
    """

    set_name: ClassVar[str]

    def __init__(
        self,
        *,
        split: str,
        root: str | None = None,
        classes: tuple[str, ...] = (),
        other_classes: OtherClasses = "left_out",
        ignore_below_px: NonNegativeFloat = 0.0,
        tested: tuple[str, ...] = (),
        test_share: FractionBelowOne = 0.2,
        validation_share: FractionBelowOne = 0.1,
        split_rule: SplitRule = "seeded",
        split_seed: Seed = 0,
    ) -> None:
        prepared = open_prepared(prepared_root(root, self.set_name), set_names=(self.set_name,))
        self._columns = self._columns_in(prepared)
        parts = make_splits(
            prepared,
            test_names=tested,
            test_share=test_share,
            validation_share=validation_share,
            what="image",
            deal=deal_by(split_rule, prepared, seed=split_seed),
        )
        check_part(parts, split, root=prepared.root, what="image")
        self._prepared = prepared
        self._rows = parts.rows[split]
        names = {stored: prepared.names(stored) for stored in prepared.splits}
        self._names = tuple(names[stored][row] for stored, row in self._rows)
        self._keeps_others = other_classes == "ignored"
        self._least_px = ignore_below_px
        self.classes = _chosen(prepared, classes)
        chosen = {name: label for label, name in enumerate(self.classes.names)}
        self._class_of = np.array([chosen.get(name, -1) for name in prepared.manifest["classes"]["names"]])
        facts = box_facts(self.classes.names, self._columns.box_type)
        sizes = {name: len(rows) for name, rows in parts.rows.items() if rows}
        dealing = Dealing(split_rule, split_seed if split_rule == "seeded" else None, parts.dealt)
        self.info = DataInfo(facts, BOX_FIELDS, split_sizes=sizes, folds=parts.folds, dealing=dealing)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: SampleKey) -> Sample:
        """One image of its own size with its boxes: fresh tensors. Raises IndexError where there is no such sample.

        Raises DataError naming the file that is missing, was changed, or cannot be decoded.
        """
        record, (split, row) = self.record(key.index), self._rows[key.index]
        path = self._prepared.listing(split).paths(row)[0]
        pixels = read_image(path, orientation=int(self._stored(key.index, "orientation")))
        found, wanted = (" x ".join(map(str, each)) for each in (pixels.shape[:2], self._stored(key.index, "size_px")))
        if found != wanted:
            raise DataError(f"{path}: has {found} pixels, {wanted} when the set was prepared; prepare it again")
        return make_sample(pixels, record)

    def record(self, index: int) -> BoxRecord:
        """The boxes of an image, read-only, without its pixels."""
        columns = self._columns
        label = self._class_of[self._stored(index, "label")]
        is_other = label < 0
        kept = np.ones_like(is_other) if self._keeps_others else ~is_other
        boxes, scored = (self._stored(index, name)[kept] for name in (columns.boxes, columns.scored))
        is_ignored, is_scored_ignored = (
            (self._stored(index, name) | is_other)[kept] for name in (columns.is_ignored, columns.is_scored_ignored)
        )
        area = (scored[:, 2:] - scored[:, :2]).prod(axis=1)
        if columns.area is not None:
            area = self._stored(index, columns.area)[kept]
        if columns.clip:
            height, width = self._stored(index, "size_px")
            boxes = np.clip(boxes, 0, [width, height, width, height])
        is_ignored |= _least_side(boxes) < self._least_px
        is_scored_ignored |= _least_side(scored) < self._least_px
        visible = self._visible(index)
        visible = None if visible is None else visible[kept]
        return BoxRecord(boxes, scored, label[kept], is_ignored, area, is_scored_ignored, visible)

    def image(self, index: int) -> ImageRef:
        """What names an image in files of results, and its size."""
        height, width = self._stored(index, "size_px").tolist()
        return ImageRef(self._names[index], int(self._stored(index, "image_id")), height, width)

    def set_index(self) -> SetIndex:
        """Every image and every class of the prepared set, whether of this part and chosen or not."""
        prepared = self._prepared
        ids = {each for split in prepared.splits for each in prepared.array(split, "image_id").tolist()}
        names = {name for split in prepared.splits for name in prepared.names(split)}
        return SetIndex(frozenset(ids | names), frozenset(prepared.manifest["classes"]["ids"]))

    def name_of(self, index: int) -> str:
        """The name of an image, as its source has it."""
        return self._names[index]

    @classmethod
    def describe(cls, root: Path) -> dict[str, Any]:
        """What a prepared folder holds, from its manifest: images, sizes, boxes, classes, and where the files lie."""
        prepared = open_prepared(root, set_names=(cls.set_name,))
        manifest, listed = prepared.manifest, prepared.manifest[LISTED]
        return {
            "set": manifest["set"],
            "layout": manifest["layout"],
            "root": str(prepared.root.resolve()),
            "files": f"{listed['num_files']:,} files, {listed['num_bytes']:,} bytes, in place below {listed['root']}",
            **manifest["statistics"],
            "differences": manifest["differences"],
        }

    @classmethod
    def verify(cls, root: Path) -> int:
        """Read every file again and compare its hash; how many there are. Raises DataError naming a wrong one."""
        return verify(root)

    def _stored(self, index: int, column: str) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.set_name} has the samples 0 to {len(self) - 1}, asked for {index}")
        split, row = self._rows[index]
        return self._prepared.row(split, column, row)

    def _visible(self, index: int) -> np.ndarray | None:
        """The share of every stored box of an image that is visible, NaN where it is unknown; None of sets without."""
        return None

    def _columns_in(self, prepared: PreparedSet) -> BoxColumns:
        """The columns that are read; of sets of several kinds of boxes, those that the config chooses."""
        return BoxColumns()


def _least_side(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2]).min(axis=1)


def _chosen(prepared: PreparedSet, names: tuple[str, ...]) -> CategoryIds:
    """The chosen classes in the order of the config, all of them where it names none. Raises ConfigError."""
    stored = CategoryIds(*(tuple(prepared.manifest["classes"][key]) for key in ("names", "ids")))
    unknown = [name for name in names if name not in stored.names]
    if unknown:
        raise ConfigError(f"classes: {prepared.root} has no class '{unknown[0]}'{suggest(unknown[0], stored.names)}")
    if len(set(names)) < len(names):
        raise ConfigError("classes: names a class twice; name each once")
    chosen = names or stored.names
    return CategoryIds(chosen, tuple(stored.ids[stored.names.index(name)] for name in chosen))
