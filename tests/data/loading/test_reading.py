"""Readers: in-memory and per-sample paths give the same bits; nothing stored changes; transforms bind by name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sightline.data.loading.batch_reader import BatchReader, NamedTransform, stratified_split
from sightline.data.synthetic.synthetic_shapes import SyntheticShapes
from sightline.draws import Draws
from sightline.errors import ConfigError, DataError
from sightline.transforms.point_selection import DropPoints, SamplePoints, ShufflePoints
from sightline.transforms.points import Jitter, Rotate
from sightline.transforms.scene_points import CropPoints, SampleBlock, VoxelSample
from sightline.types import DataInfo, Field, Sample, SampleKey
from tests.cases import run_each

KEYS = [SampleKey(index, 3, 1) for index in (5, 0, 7)]


class OneByOne:
    """The same set without its batched access."""

    def __init__(self, dataset: SyntheticShapes) -> None:
        self.dataset, self.info = dataset, dataset.info

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: SampleKey) -> dict:
        return self.dataset[key]


@pytest.fixture
def shapes() -> SyntheticShapes:
    return SyntheticShapes(split="train", train_size=24, num_points=64)


def transforms() -> list[NamedTransform]:
    return [
        NamedTransform("sample_points", SamplePoints(num_points=32)),
        NamedTransform("rotate", Rotate(up_axis="z")),
        NamedTransform("jitter", Jitter()),
    ]


def test_whole_batches_and_single_samples_give_the_same_bits(shapes: SyntheticShapes) -> None:
    together = BatchReader(shapes, transforms())(KEYS)
    alone = BatchReader(OneByOne(shapes), transforms())(KEYS)
    assert together.keys() == alone.keys()
    for name in together:
        assert torch.equal(together[name], alone[name]), name


def test_a_batch_does_not_depend_on_what_was_read_before(shapes: SyntheticShapes) -> None:
    reader = BatchReader(shapes, transforms())
    first = reader(KEYS)
    reader([SampleKey(5, 4, 1), SampleKey(9, 3, 1)])
    first["points"].zero_()
    assert not torch.equal(reader(KEYS)["points"], first["points"])
    assert torch.equal(reader(KEYS)["points"], BatchReader(shapes, transforms())(KEYS)["points"])


def test_epochs_draw_anew(shapes: SyntheticShapes) -> None:
    reader = BatchReader(shapes, transforms())
    assert not torch.equal(reader([SampleKey(5, 0, 1)])["points"], reader([SampleKey(5, 1, 1)])["points"])


def test_two_transforms_of_one_name_draw_independently(shapes: SyntheticShapes) -> None:
    once = BatchReader(shapes, [NamedTransform("jitter", Jitter())])(KEYS)["points"]
    twice = BatchReader(shapes, [NamedTransform("jitter", Jitter())] * 2)(KEYS)["points"]
    plain = BatchReader(shapes)(KEYS)["points"]
    assert not torch.allclose(twice - once, once - plain)


def test_a_transform_that_names_a_missing_field_is_refused(shapes: SyntheticShapes) -> None:
    class Recolour:
        def __call__(self, draws: Draws, *, colors: Tensor) -> dict[str, Tensor]:
            return {"colors": colors}

    with pytest.raises(ConfigError, match=r"transform 'recolour' needs 'colors'; the data set offers .*points"):
        BatchReader(shapes, [NamedTransform("recolour", Recolour())])


def test_a_tenth_of_every_class_is_held_out(shapes: SyntheticShapes) -> None:
    import numpy as np

    strata = np.repeat([0, 1, 2, 3], [100, 40, 2, 1])
    kept, held = stratified_split(len(strata), strata, seed=3)
    assert np.bincount(strata[held], minlength=4).tolist() == [10, 4, 1, 0]
    assert sorted([*kept, *held]) == list(range(len(strata)))
    assert not np.array_equal(held, stratified_split(len(strata), strata, seed=4)[1])
    assert np.array_equal(held, stratified_split(len(strata), strata, seed=3)[1])


class Stored:
    """A set of NumPy arrays that must not be written to, as the house style shows."""

    def __init__(self, shapes: SyntheticShapes) -> None:
        self.info = shapes.info
        self.clouds = [shapes[SampleKey(i, 0, 0)]["points"].numpy() for i in range(8)]
        for cloud in self.clouds:
            cloud.setflags(write=False)

    def __len__(self) -> int:
        return len(self.clouds)

    def __getitem__(self, key: SampleKey) -> dict:
        if key.index == 7:
            raise FileNotFoundError("cloud_7.npy")
        return {"points": self.clouds[key.index], "label": key.index}


def test_arrays_are_transformed_like_tensors(shapes: SyntheticShapes) -> None:
    batch = BatchReader(Stored(shapes), [NamedTransform("jitter", Jitter())])(KEYS[:2])
    expected = BatchReader(OneByOne(shapes), [NamedTransform("jitter", Jitter())])(KEYS[:2])
    assert torch.equal(batch["points"], expected["points"])


def test_whatever_reading_fails_of_names_the_sample(shapes: SyntheticShapes) -> None:
    with pytest.raises(DataError, match=r"Stored: sample 7: FileNotFoundError: cloud_7\.npy"):
        BatchReader(Stored(shapes))(KEYS)


@pytest.mark.parametrize("as_single", [False, True])
def test_stages_are_the_sample_as_read_and_after_each_transform_so_far(
    shapes: SyntheticShapes, as_single: bool
) -> None:
    dataset = OneByOne(shapes) if as_single else shapes
    stages = list(BatchReader(dataset, transforms()).sample_stages(KEYS[0]))
    assert [name for name, _ in stages] == ["", "sample_points", "rotate", "jitter"]
    for num_transforms, (_, sample) in enumerate(stages):
        batch = BatchReader(dataset, transforms()[:num_transforms])([KEYS[0]])
        for name in ("points", "normals", "part", "label"):
            assert torch.equal(sample[name], batch[name][0]), (num_transforms, name)


def test_stages_without_transforms_are_the_sample_alone(shapes: SyntheticShapes) -> None:
    reader = BatchReader(shapes)
    assert not reader.has_transforms
    assert [name for name, _ in reader.sample_stages(KEYS[0])] == [""]


class WithIntensity:
    """Clouds of eight points, each with an intensity, which no transform of ours names."""

    info = DataInfo({}, {"points": Field("8 3", "float32"), "intensity": Field("8", "float32")}, {"train": 1})

    def __len__(self) -> int:
        return 1

    def __getitem__(self, key: SampleKey) -> Sample:
        return {"points": torch.arange(24.0).view(8, 3), "intensity": torch.arange(8.0)}


@pytest.mark.parametrize(
    "transform",
    [SamplePoints(num_points=4), ShufflePoints(), DropPoints(), VoxelSample(), CropPoints(up_axis="z", max_points=4)],
    ids=lambda transform: type(transform).__name__,
)
def test_a_field_of_points_is_never_parted_from_them(transform) -> None:
    with pytest.raises(ConfigError, match=r"'mine' chooses points, and would leave 'intensity' .* unchanged"):
        BatchReader(WithIntensity(), [NamedTransform("mine", transform)])


def test_transforms_that_only_move_points_leave_other_fields_alone() -> None:
    batch = BatchReader(WithIntensity(), [NamedTransform("jitter", Jitter())])([SampleKey(0, 0, 0)])
    assert batch["intensity"].tolist() == [list(map(float, range(8)))]


@run_each(
    "second",
    [
        SamplePoints(num_points=4, order="first"),
        ShufflePoints(),
        DropPoints(),
        VoxelSample(),
        CropPoints(up_axis="z", max_points=4),
        SampleBlock(up_axis="z"),
    ],
)
@run_each("first", [SamplePoints(num_points=8, score_all=True), VoxelSample(score_all=True)])
def test_nothing_chooses_points_after_score_all(first, second) -> None:
    dataset = SyntheticShapes(split="test", target="parts", num_points=16, test_size=12)
    with pytest.raises(ConfigError, match="'two' chooses points and cannot follow 'one' with score_all"):
        BatchReader(dataset, [NamedTransform("one", first), NamedTransform("two", second)])
    BatchReader(dataset, [NamedTransform("two", second), NamedTransform("one", first)])
