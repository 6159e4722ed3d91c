"""Crowds of people with exact boxes, from numbers alone: the embedded set of detection."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from sightline import registry
from sightline.arguments import Count, Seed
from sightline.data.boxes.detections import ImageRef, SetIndex
from sightline.data.boxes.image_listing import CategoryIds
from sightline.data.boxes.records import BOX_FIELDS, BoxRecord, box_facts, make_sample
from sightline.data.synthetic.crowd_scenes import Scene, draw_scene
from sightline.data.synthetic.synthetic_shapes import Many
from sightline.errors import ConfigError
from sightline.types import DataInfo, Sample, SampleKey

__all__ = ["SyntheticCrowds", "record_of"]

BoxType = Literal["full", "visible", "head"]

_SPLITS = ("train", "validation", "test")
_LEAST_VISIBLE = 0.05
_MAX_CACHE_BYTES = 2**29


@registry.data.add("synthetic_crowds")
class SyntheticCrowds:
    """Images of 1 to 40 people with their full, visible and head boxes, a pure function of (data_seed, split, index).

    `box` are the boxes that are trained on, `scored_box` those that are scored. People of whom less than a twentieth
    shows, far crowds and printed figures are ignored: neither targets nor background. Full boxes reach beyond the
    image; `clip` cuts them at its border for training. Epoch and seed of a key change nothing.
    Source: made here; sightline/data/synthetic/crowd_scenes.py.
    """

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
        if split not in _SPLITS:
            raise ConfigError(f"synthetic_crowds: there is no split '{split}'; it has {', '.join(_SPLITS)}")
        self._split = split
        self._sizes = dict(zip(_SPLITS, (train_size, validation_size, test_size), strict=True))
        self._size = (height, width)
        self._boxes: tuple[BoxType, BoxType] = (box, scored_box)
        self._clip = clip
        self._data_seed = data_seed
        self._made: dict[int, tuple[np.ndarray, BoxRecord]] = {}
        self._made_bytes = 0
        self.info = DataInfo(facts=box_facts(("person",), scored_box), fields=BOX_FIELDS, split_sizes=self._sizes)

    @classmethod
    def card(cls) -> dict[str, str]:
        """What `sightline data info` says of this set."""
        return {
            "layout": "no files: every image is drawn from data_seed, the split and its index",
            "obtain": "nothing to obtain; it is part of sightline",
            "terms": "free to use in any way, under the licence of sightline",
        }

    @property
    def fingerprint(self) -> str:
        """Another text when the same arguments make other samples."""
        return "synthetic_crowds 1"

    def __len__(self) -> int:
        return self._sizes[self._split]

    def __getitem__(self, key: SampleKey) -> Sample:
        return make_sample(*self._stored(key.index))

    def __getstate__(self) -> dict[str, Any]:
        """Without the images made so far: a worker process makes its own, with the same bits."""
        return self.__dict__ | {"_made": {}, "_made_bytes": 0}

    def name_of(self, index: int) -> str:
        """The name of an image."""
        return f"{self._split}_{index:05d}"

    def record(self, index: int) -> BoxRecord:
        """The boxes of an image, read-only."""
        return self._stored(index)[1]

    def image(self, index: int) -> ImageRef:
        """What names an image in files of results, and its size; ids count from 1."""
        return ImageRef(self.name_of(index), index + 1, *self._size)

    def set_index(self) -> SetIndex:
        """No further images or classes: ids count from 1 in every part."""
        return SetIndex()

    def scene(self, index: int) -> Scene:
        """An image with everybody's boxes and masks."""
        if not 0 <= index < len(self):
            raise IndexError(f"synthetic_crowds: sample {index} of '{self._split}', which has {len(self)}")
        generator = SampleKey(index, _SPLITS.index(self._split), self._data_seed).generator()
        return draw_scene(generator, height=self._size[0], width=self._size[1])

    def _stored(self, index: int) -> tuple[np.ndarray, BoxRecord]:
        if index in self._made:
            return self._made[index]
        scene = self.scene(index)
        made = scene.image, record_of(scene, *self._boxes, clip=self._clip)
        if self._made_bytes + scene.image.nbytes <= _MAX_CACHE_BYTES:
            self._made[index] = made
            self._made_bytes += scene.image.nbytes
        return made


def record_of(scene: Scene, box: BoxType, scored_box: BoxType, *, clip: bool) -> BoxRecord:
    """The boxes of a scene, ignored regions last; who does not show at all has the full box for a visible one."""
    height, width = scene.image.shape[:2]
    kinds = []
    for kind in (box, scored_box):
        people = [getattr(person, kind) or person.full for person in scene.people]
        kinds.append(np.array([*people, *scene.ignored], dtype=np.float64).reshape(-1, 4))
    trained, scored = kinds
    is_ignored = [person.visibility < _LEAST_VISIBLE for person in scene.people] + [True] * len(scene.ignored)
    if clip:
        trained = np.clip(trained, 0, [width, height, width, height])
    area = (scored[:, 2:] - scored[:, :2]).prod(axis=1)
    label = np.zeros(len(trained), dtype=np.int64)
    visible = np.array([*(person.visibility for person in scene.people), *[np.nan] * len(scene.ignored)])
    return BoxRecord(trained, scored, label, np.array(is_ignored), area, visible=visible)
