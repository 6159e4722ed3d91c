"""Points that sampling leaves out are answered for by the nearest one that stays; nothing else may move them about."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn

from sightline.binding import AvailableKeys
from sightline.data.loading.batch_reader import BatchReader, NamedTransform
from sightline.data.synthetic.synthetic_shapes import SyntheticShapes
from sightline.draws import Draws
from sightline.errors import ConfigError, DataError
from sightline.tasks.segment import Segment
from sightline.transforms.point_selection import SamplePoints
from sightline.types import DataInfo, Dataset, Field, Sample, SampleKey
from tests.cases import run_each

ORDERS = ("first", "random")


def draws_of(num_clouds: int) -> Draws:
    return Draws.for_samples([SampleKey(index, 0, 5) for index in range(num_clouds)])


def clouds(num_clouds: int = 4, num_points: int = 300) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    points = torch.randn(num_clouds, num_points, 3, generator=generator)
    points[:, 100:120] = points[:, 200:220]  # points that coincide
    return points, torch.randint(0, 9, points.shape[:2], generator=generator)


@pytest.mark.parametrize("order", ORDERS)
def test_every_point_is_answered_by_the_nearest_kept_one(order: str) -> None:
    points, label = clouds()
    transform = SamplePoints(num_points=64, order=order, score_all=True)  # type: ignore[arg-type]
    found = transform(draws_of(4), points=points, label=label)
    assert torch.equal(found["whole_label"], label)
    for cloud, kept, nearest in zip(points, found["points"], found["nearest"], strict=True):
        distance = np.linalg.norm((cloud - kept[nearest]).double().numpy(), axis=1)
        smallest, _ = cKDTree(kept.double().numpy()).query(cloud.double().numpy())
        np.testing.assert_allclose(distance, smallest, rtol=1e-6, atol=1e-7)  # coordinates are float32


@pytest.mark.parametrize("order", ORDERS)
def test_kept_points_stand_for_themselves_even_where_points_coincide(order: str) -> None:
    points, _ = clouds()
    points[:, :] = points[:, :1]  # all of a cloud: the nearest one says nothing
    transform = SamplePoints(num_points=200, order=order, score_all=True)  # type: ignore[arg-type]
    found = transform(draws_of(4), points=points, label=torch.arange(300).expand(4, -1))
    for kept, nearest in zip(found["label"], found["nearest"], strict=True):
        assert nearest[kept].tolist() == list(range(200))


def test_the_same_key_keeps_the_same_points_in_evaluation() -> None:
    """A random choice is one of sample and seed: an evaluation repeated gives the same answers."""
    points, label = clouds()
    transform = SamplePoints(num_points=64, score_all=True)
    one, two = (transform(draws_of(4), points=points, label=label) for _ in range(2))
    for name, value in one.items():
        assert torch.equal(value, two[name])


@run_each("order", ORDERS)
@run_each("num_points", [300, 301, 750, 900])
def test_clouds_of_fewer_points_repeat_all_of_them_alike(order: str, num_points: int) -> None:
    points, _ = clouds()
    number = torch.arange(300).expand(4, -1)
    transform = SamplePoints(num_points=num_points, order=order, if_fewer="repeat", score_all=True)  # type: ignore[arg-type]
    found = transform(draws_of(4), points=points, label=number)
    for kept, nearest in zip(found["label"], found["nearest"], strict=True):
        times = torch.bincount(kept, minlength=300)
        assert set(times.tolist()) <= {num_points // 300, -(-num_points // 300)}
        assert torch.equal(kept[nearest], number[0])  # each point is answered by itself


def test_fewer_points_are_refused_unless_asked_for() -> None:
    points, label = clouds()
    with pytest.raises(DataError, match=r"have 300 points, num_points asks for 301; .* or if_fewer: repeat"):
        SamplePoints(num_points=301)(draws_of(4), points=points, label=label)


def test_labels_of_whole_clouds_are_refused() -> None:
    points, _ = clouds()
    with pytest.raises(ConfigError, match=r"score_all: predicts points, but the labels .* whole clouds"):
        SamplePoints(num_points=64, score_all=True)(draws_of(4), points=points, label=torch.arange(4))


def test_clouds_without_labels_are_answered_for_too() -> None:
    points, _ = clouds()
    assert set(SamplePoints(num_points=64, score_all=True)(draws_of(4), points=points)) == {"points", "nearest"}


# --- in batches -------------------------------------------------------------------------------------------------------


class Heights(nn.Module):
    """A model that answers with the height of a point, so that who answered for whom can be seen."""

    def forward(self, *, points: Tensor) -> dict[str, Tensor]:
        up = points[..., 2]
        return {"logits": torch.stack([up, torch.zeros_like(up)], dim=-1)}


class Ragged:
    """Clouds of 40 to 70 points."""

    info = DataInfo(
        facts={},
        fields={
            "points": Field("points 3", "float32", collate="concatenate"),
            "label": Field("points", "int64", collate="concatenate"),
        },
    )

    def __len__(self) -> int:
        return 5

    def __getitem__(self, key: SampleKey) -> Sample:
        random = np.random.default_rng(key.index)
        points = random.normal(size=(40 + 6 * key.index, 3)).astype(np.float32)
        return {"points": torch.from_numpy(points), "label": torch.from_numpy(random.integers(0, 2, len(points)))}


@pytest.mark.parametrize(
    "dataset",
    [Ragged(), SyntheticShapes(split="test", test_size=12, num_points=70, target="parts")],
    ids=["ragged", "whole batches"],
)
def test_the_task_answers_for_every_point_of_the_set(dataset: Dataset) -> None:
    sampled = BatchReader(dataset, [NamedTransform("sample_points", SamplePoints(num_points=32, score_all=True))])
    whole = BatchReader(dataset)
    keys = [SampleKey(index, 0, 0) for index in (3, 0, 4)]
    batch, original = sampled(keys), whole(keys)
    assert sampled.keys >= batch.keys() >= {"nearest", "whole_label", "whole_offsets"}
    task = Segment(
        model=Heights(),
        losses={},
        batch_keys=AvailableKeys("the data", sampled.keys),
        output_keys=AvailableKeys("the model", frozenset({"logits"})),
    )
    answers = task.predict(Heights(), batch)
    assert torch.equal(answers["target"], original["label"].flatten())
    starts = answers["cloud_offsets"].tolist()
    points, kept = original["points"].reshape(-1, 3), batch["points"].reshape(3, 32, 3)
    assert starts[-1] == len(points) == len(answers["probabilities"])
    for cloud, (start, end) in enumerate(itertools.pairwise(starts)):
        _, nearest = cKDTree(kept[cloud].numpy()).query(points[start:end].numpy())
        height = kept[cloud, nearest, 2]
        torch.testing.assert_close(answers["probabilities"][start:end, 0], height.sigmoid(), rtol=1e-5, atol=1e-6)
