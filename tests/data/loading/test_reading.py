"""From samples to batches: readers, ways to combine, several sets as one; the same bits on every path."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.areas.clouds.sets.synthetic_shapes import SyntheticShapes
from sightline.areas.scenes.transforms import CropPoints, SampleBlock, VoxelSample
from sightline.config import read_config
from sightline.contract import registry
from sightline.contract.dataset import Dataset
from sightline.contract.draws import Draws
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.transform import Transform
from sightline.contract.types import ComponentConfig, DataInfo, Field, Sample, SampleKey
from sightline.engine.build import TrainingSetup, build
from sightline.engine.distributed import World
from sightline.parts.transforms.point_selection import DropPoints, SamplePoints, ShufflePoints
from sightline.parts.transforms.points import Jitter, Rotate
from sightline.store.loading.batch_reader import BatchReader
from sightline.store.loading.collation import batch_keys, collate
from sightline.store.loading.stratified import stratified_split
from sightline.store.loading.transform_pipeline import NamedTransform
from tests.cases import run_each
from tests.runs.small import ROOT

KEYS = [SampleKey(index, 3, 1) for index in (5, 0, 7)]


class OneByOne(Dataset):
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
    class Recolour(Transform):
        def __call__(self, draws: Draws, *, colors: Tensor) -> dict[str, Tensor]:
            return {"colors": colors}

    with pytest.raises(ConfigError, match=r"transform 'recolour' needs 'colors'; the data set offers .*points"):
        BatchReader(shapes, [NamedTransform("recolour", Recolour())])


def test_a_tenth_of_every_class_is_held_out(shapes: SyntheticShapes) -> None:
    strata = np.repeat([0, 1, 2, 3], [100, 40, 2, 1])
    kept, held = stratified_split(len(strata), strata, seed=3)
    assert np.bincount(strata[held], minlength=4).tolist() == [10, 4, 1, 0]
    assert sorted([*kept, *held]) == list(range(len(strata)))
    assert not np.array_equal(held, stratified_split(len(strata), strata, seed=4)[1])
    assert np.array_equal(held, stratified_split(len(strata), strata, seed=3)[1])


class Stored(Dataset):
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


@pytest.mark.parametrize(
    "change",
    [
        lambda points: points[::-1],
        lambda points: points[:, ::-1],
        lambda points: points.astype(">f4"),
        lambda points: np.broadcast_to(points[:1], points.shape),
        np.asfortranarray,
    ],
)
def test_an_array_of_any_layout_is_read_as_numpy_reads_it(change: Any, shapes: SyntheticShapes) -> None:
    """Flipping a cloud or an image gives negative strides, which torch refuses; so it does a foreign byte order."""
    expected = []

    class Changed(OneByOne):
        def __getitem__(self, key: SampleKey) -> dict:
            points = change(self.dataset[key]["points"].numpy().copy())
            expected.append(points.astype(np.float32))
            return {**self.dataset[key], "points": points}

    read = BatchReader(Changed(shapes))(KEYS)["points"].numpy()
    assert np.array_equal(read, np.stack(expected))


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


class WithIntensity(Dataset):
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


# --- Samples to batches: every way to combine, and the errors that name the sample ---


SAMPLE_KEYS = [SampleKey(index, 0, 0) for index in (4, 9, 2)]


def fields(**how: str) -> dict[str, Field]:
    return {name: Field("any", "any", collate=word) for name, word in how.items()}  # type: ignore[arg-type]


def ragged(*lengths: int) -> list[dict]:
    return [{"points": torch.full((n, 2), float(n)), "label": torch.arange(n)} for n in lengths]


def test_equal_shapes_stack_and_indices_are_kept() -> None:
    samples = [{"x": torch.tensor([i, i + 1]), "y": i, "z": np.float32(i), "name": str(i)} for i in range(3)]
    batch = collate(samples, SAMPLE_KEYS, {})
    assert batch["x"].tolist() == [[0, 1], [1, 2], [2, 3]]
    assert batch["y"].tolist() == [0, 1, 2]
    assert batch["name"] == ["0", "1", "2"]
    assert batch["sample_index"].tolist() == [4, 9, 2]


def test_nested_samples_stack_inside() -> None:
    samples = [{"views": {"a": torch.tensor(i), "b": [torch.tensor([i]), torch.tensor([2 * i])]}} for i in range(3)]
    batch = collate(samples, SAMPLE_KEYS, {})
    assert batch["views"]["a"].tolist() == [0, 1, 2]
    assert batch["views"]["b"][1].tolist() == [[0], [2], [4]]


def test_ragged_fields_concatenate_with_offsets() -> None:
    batch = collate(ragged(2, 0, 3), SAMPLE_KEYS, fields(points="concatenate", label="concatenate"))
    assert batch["points"][:, 0].tolist() == [2, 2, 3, 3, 3]
    assert batch["label"].tolist() == [0, 1, 0, 1, 2]
    assert batch["offsets"].tolist() == [0, 2, 2, 5]


def test_ragged_fields_pad_with_a_mask() -> None:
    batch = collate(ragged(2, 1, 3), SAMPLE_KEYS, fields(points="pad", label="list"))
    assert batch["points"].shape == (3, 3, 2)
    assert batch["points_mask"].sum(1).tolist() == [2, 1, 3]
    assert (batch["points"][~batch["points_mask"]] == 0).all()
    assert [len(each) for each in batch["label"]] == [2, 1, 3]


def test_declared_keys_are_those_of_the_batch() -> None:
    how = fields(points="pad", label="concatenate")
    assert batch_keys(how) == set(collate(ragged(2, 1, 3), SAMPLE_KEYS, how))


@pytest.mark.parametrize(
    ("samples", "how", "message"),
    [
        (ragged(2, 2, 3), {}, r"sample 2: 'points' has shape \(3, 2\), sample 4 has \(2, 2\)"),
        ([*ragged(2, 2), {"points": torch.zeros(2, 2)}], {}, "sample 2: has no 'label'"),
        (
            [{"points": torch.zeros(2, 2), "label": torch.zeros(3)}] * 3,
            fields(points="concatenate", label="concatenate"),
            "sample 4: 'label' has 3 rows, other concatenated fields have 2",
        ),
    ],
)
def test_samples_that_do_not_fit_are_named(samples: list, how: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        collate(samples, SAMPLE_KEYS, how)


# --- several sets as one ----------------------------------------------------------------------------------------------


ONE = {"name": "synthetic_shapes", "num_points": 16, "train_size": 12, "test_size": 6}
OTHER = {**ONE, "train_size": 20, "data_seed": 3}


def built(*sets: dict[str, Any], split: str = "train") -> Any:
    return registry.data.build(ComponentConfig("concat", {"sets": list(sets)}), facts={"split": split})


def alone(of: dict[str, Any], split: str = "train") -> Any:
    return registry.data.build(
        ComponentConfig(of["name"], {k: v for k, v in of.items() if k != "name"}), facts={"split": split}
    )


def test_samples_are_those_of_the_sets_one_after_another() -> None:
    both, first, second = built(ONE, OTHER), alone(ONE), alone(OTHER)
    assert len(both) == 32
    assert both.info.split_sizes == {"train": 32, "test": 12}
    for index, whose, place in ((0, first, 0), (11, first, 11), (12, second, 0), (31, second, 19)):
        ours, theirs = both[SampleKey(index, 2, 5)], whose[SampleKey(place, 2, 5)]
        assert all(torch.equal(torch.as_tensor(ours[name]), torch.as_tensor(theirs[name])) for name in theirs)
    assert both.strata.tolist() == [*first.strata, *second.strata]
    assert both.sample_name(12) == "2/train_00000"
    for index in (-1, 32):
        with pytest.raises(IndexError, match="concat: sample"):
            both[SampleKey(index, 0, 0)]


def test_counts_of_classes_add_up() -> None:
    counts = [each.info.facts["class_counts"] for each in (alone(ONE), alone(OTHER), built(ONE, OTHER))]
    assert [a + b for a, b in zip(*counts[:2], strict=True)] == list(counts[2])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({**ONE, "target": "parts"}, "sets: fields must agree; 'category' is Field.* in set 2 and nothing in set 1"),
        ({"name": "synthetic_rooms"}, "sets: fields must agree; '.*' is .* in set 2 and .* in set 1"),
    ],
)
def test_sets_that_do_not_fit_are_refused(other: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        built(ONE, other)
    assert re.search(message, str(error.value)), error.value


def test_a_run_trains_on_several_sets(tmp_path: Path) -> None:
    config = tmp_path / "concat.yaml"

    def run(sets: str) -> TrainingSetup:
        recipe = (
            f"base: {ROOT}/configs/classify/synthetic_shapes_pointnet.yaml\ndata: {{name: concat, sets: [{sets}]}}\n"
        )
        config.write_text(recipe)
        return build(read_config(config, ["model={name: pointnet}"]), World())

    small = "{name: synthetic_shapes, num_points: 64, train_size: 30, test_size: 20"
    data = run(f"{small}}}, {small}, data_seed: 1}}").data
    assert len(data.train.indices) + len(data.selection.indices) == 60
    assert len(data.test.indices) == 40
    with pytest.raises(ConfigError, match=r"concat.yaml:2: data.sets.0.num_pionts: .*no such argument"):
        run("{name: synthetic_shapes, num_pionts: 64}")
    with pytest.raises(ConfigError, match=r"concat.yaml:2: data.sets: is empty"):
        run("")
