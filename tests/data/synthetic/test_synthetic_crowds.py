"""Crowds drawn by number: boxes are those of the masks, the crowds are as dense as promised, samples are pure."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from sightline.areas.detect.sets.synthetic_crowds import SyntheticCrowds
from sightline.areas.detect.transforms import FitImage
from sightline.contract.errors import ConfigError
from sightline.contract.types import SampleKey
from sightline.store.loading.batch_reader import BatchReader
from sightline.store.loading.transform_pipeline import NamedTransform

NUM_SCENES = 40


@pytest.fixture(scope="module")
def crowds() -> SyntheticCrowds:
    return SyntheticCrowds(split="train", train_size=NUM_SCENES, height=320, width=448)


def overlap(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    """Intersection over union, in whole numbers."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (sum(areas) - shared)


def test_crowds_are_as_dense_as_crowds(crowds: SyntheticCrowds) -> None:
    """The spec's bounds: people and overlapping pairs an image, shares of half-hidden and of hidden people."""
    scenes = [crowds.scene(index) for index in range(NUM_SCENES)]
    people = [person for scene in scenes for person in scene.people]
    pairs = [overlap(a.full, b.full) for scene in scenes for a, b in combinations(scene.people, 2)]
    visibility = np.array([person.visibility for person in people])
    assert len(people) / NUM_SCENES >= 10
    assert sum(pair > 0.5 for pair in pairs) / NUM_SCENES >= 1
    assert 0.25 <= (visibility < 0.65).mean() <= 0.45
    assert (visibility < 0.05).mean() <= 0.08
    assert all(1 <= len(scene.people) <= 40 for scene in scenes)
    assert 0.1 < np.mean([bool(scene.ignored) for scene in scenes]) < 0.6


def test_visible_boxes_are_those_of_the_pixels(crowds: SyntheticCrowds) -> None:
    for index in range(8):
        scene = crowds.scene(index)
        for number, person in enumerate(scene.people):
            rows, columns = np.nonzero(scene.owner == number)
            if person.visible is None:
                assert len(rows) == person.visibility == 0
                continue
            assert person.visible == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            left, top, right, bottom = person.full
            assert left <= person.visible[0] < person.visible[2] <= right
            assert top <= person.visible[1] < person.visible[3] <= bottom
            assert left <= person.head[0] < person.head[2] <= right
            assert top <= person.head[1] < person.head[3] <= bottom
            assert 0 < person.visibility <= 1


def test_boxes_are_chosen_apart_for_training_and_scoring() -> None:
    scene = SyntheticCrowds(split="test", test_size=1).scene(0)
    sample = SyntheticCrowds(split="test", test_size=1, box="visible", scored_box="head")[SampleKey(0, 0, 0)]
    shown = [person.visible or person.full for person in scene.people]
    assert sample["boxes"][: len(shown)].tolist() == [list(map(float, box)) for box in shown]
    heads = np.array([person.head for person in scene.people], dtype=float)
    np.testing.assert_array_equal(sample["truth"][: len(heads), :4].numpy(), heads)
    np.testing.assert_array_equal(sample["truth"][: len(heads), 5], (heads[:, 2:] - heads[:, :2]).prod(axis=1))
    clipped = SyntheticCrowds(split="test", test_size=1, clip=True)[SampleKey(0, 0, 0)]["boxes"]
    assert float(clipped.min()) >= 0
    assert float(clipped[:, 2].max()) <= 256
    with pytest.raises(ConfigError, match="there is no split 'val'; it has train, validation, test"):
        SyntheticCrowds(split="val")


def test_batches_hold_the_boxes_of_all_images() -> None:
    dataset = SyntheticCrowds(split="train", train_size=4)
    batch = BatchReader(dataset, [NamedTransform("fit_image", FitImage(height=96, width=128))])(
        [SampleKey(index, 0, 0) for index in (2, 0)]
    )
    counts = [len(dataset[SampleKey(index, 0, 0)]["boxes"]) for index in (2, 0)]
    assert batch["box_offsets"].tolist() == batch["truth_offsets"].tolist() == [0, counts[0], sum(counts)]
    assert batch["image"].shape == (2, 96, 128, 3)
    assert batch["truth"].shape == (sum(counts), 7)
    torch.testing.assert_close(batch["boxes"].double() * 2, batch["truth"][:, :4])
