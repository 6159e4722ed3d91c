"""Synthetic crowds of people with exact boxes: the embedded data set of detection."""

from __future__ import annotations

from typing import Literal

import numpy as np

from sightline.areas.detect.sets.crowd_scenes import Scene, draw_scene
from sightline.contract import registry
from sightline.contract.arguments import Count, Seed
from sightline.contract.errors import ConfigError
from sightline.contract.types import DataInfo, Sample, SampleKey
from sightline.store.box_fields import BOX_FIELDS
from sightline.store.boxes.detections import ImageRef, SetIndex
from sightline.store.boxes.label_table import CategoryIds
from sightline.store.boxes.records import BoxRecord, box_facts, make_sample
from sightline.store.computed_samples import ComputedSet, Many, SampleCache
from sightline.store.prepared.splits import SPLITS

BoxType = Literal["full", "visible", "head"]

_MIN_VISIBLE = 0.05
_MAX_CACHE_BYTES = 2**29


@registry.data.add("synthetic_crowds")
class SyntheticCrowds(ComputedSet):
    """Images of 1 to 40 people with their full, visible and head boxes, a pure function of (data_seed, split, index).

    `box` are the boxes that are trained on, `scored_box` those that are scored. People with less than 5 % visible,
    distant crowds and printed figures are ignored: neither targets nor background. Full boxes reach beyond the image;
    `clip` clips them for training. Epoch and seed of a key change nothing.
    Source: made here; sightline/areas/detect/sets/synthetic_crowds.py.
    """

    computed = "image is drawn"
    fingerprint = "synthetic_crowds 1"  # changes when the same arguments give other samples
    classes = CategoryIds(("person",), (1,))

    def __init__(
        self,
        *,
        split: str,
        train_size: Many = 400,
        validation_size: Many = 100,
        test_size: Many = 100,
        height: Count = 192,
        width: Count = 256,
        box: BoxType = "full",
        scored_box: BoxType = "full",
        clip: bool = False,
        data_seed: Seed = 0,
    ) -> None:
        if split not in SPLITS:
            raise ConfigError(f"synthetic_crowds: there is no split '{split}'; it has {', '.join(SPLITS)}")
        self._split = split
        self._sizes = dict(zip(SPLITS, (train_size, validation_size, test_size), strict=True))
        self._size = (height, width)
        self._boxes: tuple[BoxType, BoxType] = (box, scored_box)
        self._clip = clip
        self._data_seed = data_seed
        self._cache = SampleCache[tuple[np.ndarray, BoxRecord]](_MAX_CACHE_BYTES, _image_bytes)
        self.info = DataInfo(facts=box_facts(("person",), scored_box), fields=BOX_FIELDS, split_sizes=self._sizes)

    def __len__(self) -> int:
        return self._sizes[self._split]

    def __getitem__(self, key: SampleKey) -> Sample:
        return make_sample(*self._draw_cached(key.index))

    def sample_name(self, index: int) -> str:
        """Name of a sample in reports."""
        return f"{self._split}_{index:05d}"

    def record(self, index: int) -> BoxRecord:
        """Return the boxes of an image as read-only arrays."""
        return self._draw_cached(index)[1]

    def image(self, index: int) -> ImageRef:
        """Return the identity of an image in result files (ids count from 1), and its size."""
        return ImageRef(self.sample_name(index), index + 1, *self._size)

    def set_index(self) -> SetIndex:
        """Return an empty index: ids count from 1 in every split, so other splits have no ids of their own."""
        return SetIndex()

    def scene(self, index: int) -> Scene:
        """Draw an image with the boxes and masks of all people."""
        if not 0 <= index < len(self):
            raise IndexError(f"synthetic_crowds: sample {index} of '{self._split}', which has {len(self)}")
        generator = SampleKey(index, SPLITS.index(self._split), self._data_seed).generator()
        return draw_scene(generator, height=self._size[0], width=self._size[1])

    def _draw_cached(self, index: int) -> tuple[np.ndarray, BoxRecord]:
        cached = self._cache.get(index)
        if cached is not None:
            return cached
        scene = self.scene(index)
        return self._cache.put(index, (scene.image, make_record(scene, *self._boxes, clip=self._clip)))


def _image_bytes(item: tuple[np.ndarray, BoxRecord]) -> int:
    return item[0].nbytes


def make_record(scene: Scene, box: BoxType, scored_box: BoxType, *, clip: bool) -> BoxRecord:
    """Make the boxes of a scene, ignored regions last; the visible box of a hidden person is the full box."""
    height, width = scene.image.shape[:2]
    box_arrays = []
    for kind in (box, scored_box):
        people = [getattr(person, kind) or person.full for person in scene.people]
        box_arrays.append(np.array([*people, *scene.ignored], dtype=np.float64).reshape(-1, 4))
    trained, scored = box_arrays
    is_ignored = [person.visibility < _MIN_VISIBLE for person in scene.people] + [True] * len(scene.ignored)
    if clip:
        trained = np.clip(trained, 0, [width, height, width, height])
    area = (scored[:, 2:] - scored[:, :2]).prod(axis=1)
    label = np.zeros(len(trained), dtype=np.int64)
    visible = np.array([*(person.visibility for person in scene.people), *[np.nan] * len(scene.ignored)])
    return BoxRecord(trained, scored, label, np.array(is_ignored, dtype=bool), area, visible=visible)
