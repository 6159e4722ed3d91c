"""Mosaic and mix-up: every box is found again by its colours in every quadrant; the same bits for any workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sightline.areas.detect.combined_images import MixUp, Mosaic
from sightline.areas.detect.sets.synthetic_crowds import SyntheticCrowds
from sightline.areas.detect.transforms import TurnImage
from sightline.config import read_config
from sightline.contract.dataset import Dataset
from sightline.contract.draws import Draws
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.transform import Transform
from sightline.contract.types import DataInfo, Sample, SampleKey
from sightline.engine.batches.sampler import BatchSampler
from sightline.engine.batches.stream import BatchStream
from sightline.engine.run_data import build_data
from sightline.store.box_fields import BOX_FIELDS
from sightline.store.boxes.records import BoxRecord, box_facts, make_sample
from sightline.store.loading.batch_reader import BatchReader
from sightline.store.loading.transform_pipeline import NamedTransform, TransformPipeline
from tests.processes import ROOT

SIZE = (96, 128)
NUM = 12
CONFIG = ROOT / "configs" / "detect" / "synthetic_crowds_retinanet.yaml"
HEAVY = (
    "[{name: mosaic, height: 96, width: 128, plain_share: 0.34}, {name: turn_image, degrees: 0.373, "
    "shear_degrees: 0.602, shift: 0.245, scale: 0.5, canvas: [96, 128], min_side_px: 2, max_aspect: 20}, "
    "{name: mix_up, plain_share: 0.34}, {name: flip_image}, "
    "{name: fit_image, height: 96, width: 128}, {name: normalize_image}]"
)


class Painted(Dataset):
    """Crowds whose pixels are the number of their image (red) and of the person whom they show (green, from 1).

    Boxes are the visible ones, of masks that say so exactly; the class is 100 x image + person.
    """

    info = DataInfo(box_facts(("any",), "visible"), BOX_FIELDS)

    def __init__(self) -> None:
        self.scenes = [
            SyntheticCrowds(split="train", train_size=NUM, height=SIZE[0], width=SIZE[1]).scene(i) for i in range(NUM)
        ]

    def __len__(self) -> int:
        return NUM

    def __getitem__(self, key: SampleKey) -> Sample:
        scene = self.scenes[key.index]
        shown = [number for number, person in enumerate(scene.people) if person.visible is not None]
        boxes = np.array([scene.people[number].visible for number in shown], dtype=np.float64).reshape(-1, 4)
        image = np.zeros((*SIZE, 3), dtype=np.uint8)
        image[..., 0] = key.index + 1
        image[..., 1] = scene.owner + 1
        is_ignored = np.array([number % 5 == 0 for number in shown], dtype=bool)
        label = np.array([100 * key.index + number for number in shown], dtype=np.int64)
        return make_sample(image, BoxRecord(boxes, boxes.copy(), label, is_ignored, np.ones(len(boxes))))


@pytest.fixture(scope="module")
def painted() -> Painted:
    return Painted()


def reader_of(dataset: Any, *transforms: Any, others: Any = None) -> BatchReader:
    named = [NamedTransform(type(each).__name__.lower(), each) for each in transforms]
    return BatchReader(dataset, named, mixing_indices=np.arange(len(dataset)) if others is None else np.array(others))


def mosaic(**arguments: Any) -> Mosaic:
    return Mosaic(**{"height": SIZE[0], "width": SIZE[1], "plain_share": 0.0, **arguments})


def test_every_visible_mask_lies_exactly_in_its_box_in_each_quadrant(painted: Painted) -> None:
    """T20. An image as large as a quadrant is not resized, so that the box about a mask is its box: IoU 1."""
    reader = reader_of(painted, mosaic(), others=range(4, NUM))
    met = np.zeros(4, dtype=int)
    for index in range(4):
        sample = reader([SampleKey(index, 0, 3)])
        sample = {**sample, "image": sample["image"][0]}
        assert sample["image"].shape == (2 * SIZE[0], 2 * SIZE[1], 3)
        assert sample["image"][sample["image"][..., 2] > 0].unique().tolist() == [114]
        numbers = sample["image"].long()
        at = np.argwhere((numbers[..., 0] == index + 1).numpy())
        corner = at.max(axis=0) + 1  # of the first image, which lies at the upper left
        assert (abs(corner - SIZE) <= np.array(SIZE) / 2).all()
        for box, label in zip(sample["boxes"], sample["label"].tolist(), strict=True):
            number, person = divmod(label, 100)
            mask = (numbers[..., 0] == number + 1) & (numbers[..., 1] == person + 1) & (numbers[..., 2] == 0)
            rows, columns = mask.nonzero(as_tuple=True)
            if not len(rows):
                continue  # no pixel of this person is left, though a corner of the box is
            seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            is_cut = bool((box[:2] == 0).any() or box[2] == 2 * SIZE[1] or box[3] == 2 * SIZE[0])
            own = painted.scenes[number].people[person].visible
            is_whole = (box[2:] - box[:2]).tolist() == [own[2] - own[0], own[3] - own[1]]
            assert is_whole or is_cut
            if is_whole and (labels := sample["label"].tolist()).count(label) == 1:
                assert box.tolist() == seen, label
                met[2 * (rows.min() >= corner[0]) + (columns.min() >= corner[1])] += 1
            assert labels.count(label) >= 1
    assert (met >= 4).all(), met


def test_what_is_left_decides_and_ignored_boxes_travel(painted: Painted) -> None:
    """A box is ignored where it was, or where less than a tenth of it is left on the canvas."""
    loose, strict = (reader_of(painted, mosaic(min_visible=share)) for share in (0.0, 0.5))
    clipped, whole = (
        reader_of(painted, mosaic(min_visible=0.5)),
        reader_of(painted, mosaic(min_visible=0.5, clip=False)),
    )
    met = 0
    for index in range(NUM):
        key = [SampleKey(index, 0, 3)]
        first, second, left, full = (each(key) for each in (loose, strict, clipped, whole))
        assert first["is_ignored"].tolist() == [label % 100 % 5 == 0 for label in first["label"].tolist()]
        area = (left["boxes"][:, 2:] - left["boxes"][:, :2]).prod(1)
        uncut = (full["boxes"][:, 2:] - full["boxes"][:, :2]).prod(1)
        expected = first["is_ignored"] | (area < 0.5 * uncut)
        assert second["is_ignored"].tolist() == expected.tolist()
        met += int((expected & ~first["is_ignored"]).sum())
    assert met >= 3


def test_small_and_thin_rests_are_ignored_after_the_affine_map() -> None:
    """The rules of the heavy preset: sides of at most 2 px, and one 20 times the other."""
    turn = TurnImage(scale=0.0, shift=0.0, min_side_px=2, max_aspect=20, canvas=(40, 60))
    boxes = torch.tensor(
        [[[40.0, 30, 43, 40], [40, 30, 42, 40], [40, 30, 80, 32], [40, 30, 80, 32.5], [30, 25, 90, 27.9]]]
    )
    changed = turn(
        Draws.for_samples([SampleKey(0, 0, 0)]),
        image=torch.zeros(1, 80, 120, 3),
        boxes=boxes,
        to_canvas=torch.eye(3, dtype=torch.float64)[None, :2],
        label=torch.arange(5)[None],
        is_ignored=torch.zeros(1, 5, dtype=torch.bool),
    )
    assert changed["image"].shape == (1, 40, 60, 3)
    np.testing.assert_allclose(changed["boxes"][0, 0], [10, 10, 13, 20], atol=1e-5)  # the middle 40 x 60 of 80 x 120
    assert changed["is_ignored"][0].tolist() == [False, True, True, False, True]


def test_draws_depend_on_seed_epoch_and_index_alone(painted: Painted) -> None:
    """Any number of workers, and a run that goes on from a step, read the same bits; every epoch another mosaic."""
    turn = TurnImage(scale=0.5, shift=0.245, degrees=0.373, shear_degrees=0.602, canvas=SIZE)
    reader = reader_of(painted, mosaic(), turn, MixUp(probability=0.5, plain_share=0.0))
    plan = BatchSampler(np.arange(NUM), 4, 7)
    runs = [
        [*BatchStream(plan, reader, workers=workers).iterate(start, 5)] for workers, start in ((0, 0), (2, 0), (1, 2))
    ]
    for other, start in ((runs[1], 0), (runs[2], 2)):
        for (ours,), (theirs,) in zip(runs[0][start:], other, strict=True):
            assert all(torch.equal(value, theirs[name]) for name, value in ours.items() if name != "truth_visible")
    first, again, later = (reader([SampleKey(0, epoch, 7)])["image"] for epoch in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)


def test_others_come_from_the_part_that_is_trained_on(painted: Painted) -> None:
    reader = reader_of(painted, mosaic(), others=[1, 4, 9])
    seen = {int(each) for i in range(NUM) for each in reader([SampleKey(i, 0, 0)])["image"][..., 0].unique()}
    alone = {int(each) for each in reader([SampleKey(4, 0, 0)])["image"][..., 0].unique()}
    assert alone <= {2, 5, 10, 114}
    assert seen - {114} == {*range(1, NUM + 1)}
    stored = [painted.scenes[i].image.copy() for i in range(NUM)]
    reader([SampleKey(i, 1, 0) for i in range(NUM)])["boxes"].zero_()
    assert all(np.array_equal(scene.image, kept) for scene, kept in zip(painted.scenes, stored, strict=True))


@pytest.mark.parametrize(
    ("arguments", "epoch"), [({"probability": 0.0}, 0), ({"plain_share": 0.4, "num_epochs": 5}, 3)]
)
def test_plain_images_lie_alone_in_the_middle(painted: Painted, arguments: dict[str, Any], epoch: int) -> None:
    reader = reader_of(painted, mosaic(**arguments))
    sample, own = dict(reader.sample_stages(SampleKey(2, epoch, 0)))["mosaic"], painted[SampleKey(2, 0, 0)]
    assert torch.equal(sample["image"][48:144, 64:192], own["image"])
    assert sample["image"].long().sum() == own["image"].long().sum() + 3 * 114 * 3 * 96 * 128
    assert torch.equal(sample["boxes"], own["boxes"] + torch.tensor([64.0, 48, 64, 48]))
    assert torch.equal(sample["to_canvas"], torch.tensor([[1.0, 0, 64], [0, 1, 48]], dtype=torch.float64))
    if epoch:
        assert mosaic(**arguments).until_epoch == 3
        others = reader([SampleKey(2, 2, 0)])["image"][..., 0].unique()
        assert len(others) > 2


def test_mix_up_blends_two_images_and_keeps_the_boxes_of_both(painted: Painted) -> None:
    """Each pixel is between its two; the share has the mean 1/2 and the deviation of Beta(32, 32), 1 / sqrt(4 x 65)."""
    reader, shares = reader_of(painted, MixUp(probability=1.0, plain_share=0.0)), []
    for index in range(60):
        batch = reader([SampleKey(index % NUM, index // NUM, 0)])
        numbers = (batch["label"] // 100).unique_consecutive().tolist()
        own, other = index % NUM, numbers[-1]
        assert len(batch["boxes"]) == sum(len(painted[SampleKey(each, 0, 0)]["boxes"]) for each in (own, other))
        if own != other:
            red = batch["image"][0, 0, 0, 0].double()
            shares.append(float((red - other - 1) / (own - other)))
            one, two = (painted[SampleKey(each, 0, 0)]["image"].double() for each in (own, other))
            blended = shares[-1] * one + (1 - shares[-1]) * two
            assert torch.allclose(batch["image"][0].double(), blended, atol=1e-4)
    deviation = (4 * 65) ** -0.5
    assert abs(np.mean(shares) - 0.5) < 4 * deviation / len(shares) ** 0.5
    assert np.std(shares) == pytest.approx(deviation, rel=0.25)
    rare = reader_of(painted, MixUp(plain_share=0.0))
    counts = [len((rare([SampleKey(1, epoch, 0)])["label"] // 100).unique()) > 1 for epoch in range(200)]
    assert 0.13 < np.mean(counts) < 0.32  # 0.243 x 11/12, give or take 3 deviations

    class Uneven(Painted):
        def __getitem__(self, key: SampleKey) -> Sample:
            sample = super().__getitem__(key)
            return {**sample, "image": sample["image"][: 90 - key.index]}

    with pytest.raises(
        DataError, match=r"mix_up: images have \d+ x 128 and \d+ x 128 pixels; put fit_image, or mosaic"
    ):
        reader_of(Uneven(), MixUp(probability=1.0, plain_share=0.0))([SampleKey(i, 0, 0) for i in range(4)])


def test_a_config_trains_on_mosaics_and_never_evaluates_them(tmp_path: Path) -> None:
    small = [
        "data.train_size=12",
        "data.height=96",
        "data.width=128",
        "train.epochs=3",
        "transforms.evaluate.0={name: fit_image, height: 96, width: 128}",
    ]
    heavy = read_config(CONFIG, [*small, f"transforms.train={HEAVY}"])
    data = build_data(heavy)
    batch = data.train.reader([SampleKey(i, 0, 0) for i in range(8)])
    assert batch["image"].shape == (8, 3, 96, 128)
    assert len(batch["label"]) == len(batch["is_ignored"]) == len(batch["boxes"]) == batch["box_offsets"][-1]
    steps = [name for name, _ in data.train.reader.sample_stages(SampleKey(0, 0, 0))]
    assert steps == ["", "mosaic", "turn_image", "mix_up", "flip_image", "fit_image", "normalize_image"]
    with pytest.raises(
        ConfigError, match=r"transform 'mosaic' combines several samples of the training part; it belon"
    ):
        build_data(read_config(CONFIG, [*small[:-1], f"transforms.evaluate={HEAVY}"]))
    small.remove("train.epochs=3")
    short = build_data(read_config(CONFIG, [*small, "train.epochs=1", f"transforms.train={HEAVY}"])).train.reader
    assert (short([SampleKey(0, 0, 0)])["label"] >= 0).all()
    assert Mosaic(height=96, width=128, plain_share=0.99, num_epochs=1).until_epoch == 1


def test_a_transform_begins_with_its_draws() -> None:
    class Doubled(Transform):
        def __call__(self, image: Any) -> dict[str, Any]:
            return {"image": 2 * image}

    with pytest.raises(
        ConfigError, match=r"transform 'doubled': Doubled.*; write def __call__\(self, draws, \*, image\)$"
    ):
        TransformPipeline([NamedTransform("doubled", Doubled())], {"image"}, source="data set 'mine'")
