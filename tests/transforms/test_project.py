"""Range images of batches, and points that sampling leaves out: labels and predictions stay with their points."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn

from sightline.areas.clouds.sets.synthetic_shapes import SyntheticShapes
from sightline.areas.scans.range_projection import Project, RingFromOrder
from sightline.contract.binding import AvailableKeys
from sightline.contract.dataset import Dataset
from sightline.contract.draws import Draws
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.registry import transforms
from sightline.contract.types import ComponentConfig, DataInfo, Field, Sample, SampleKey
from sightline.parts.tasks.segment import Segment
from sightline.parts.transforms.point_selection import DropPoints, SamplePoints
from sightline.parts.transforms.points import Flip, Jitter, Rotate, Scale, Translate
from sightline.store.loading.batch_reader import BatchReader
from sightline.store.loading.transform_pipeline import NamedTransform
from tests.cases import run_each
from tests.ops.scans.lidar_scene import NAMES, cast_scan
from tests.transforms.scenes import draws_of

MEAN, STD = (12.12, 10.88, 0.23, -1.04, 0.21), (12.32, 11.47, 6.91, 0.86, 0.16)
FACTS = {
    "fov_deg": (3.0, -25.0),
    "azimuth_deg": (180.0, -180.0),
    "input_mean": MEAN,
    "input_std": STD,
    "ignore_index": 0,
}
LENGTHS = (900, 0, 1, 400)


def projecting(**arguments: Any) -> Project:
    return transforms.build(ComponentConfig("project", {"height": 16, "width": 64, **arguments}), facts=FACTS)


def bands(points: Tensor) -> Tensor:
    """The class of a point of `make_scan`, from its height alone: 1 to 7, whole metres from -3 m."""
    return points[..., 2].round().long() + 4


def make_scan(num_points: int, *, seed: int = 0) -> dict[str, Tensor]:
    """One scan whose heights are whole metres and whose remission and ring number the points."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(num_points, 3, generator=generator) * 15
    points[:, 2] = torch.randint(-3, 4, (num_points,), generator=generator).float()
    number = torch.arange(num_points)
    return {"points": points, "remission": number[:, None] / 1024, "label": bands(points), "ring": number % 16}


def lifted(scan: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: field[None] for name, field in scan.items()}


class Scans(Dataset):
    """Uneven scans, one of them empty, as a data set of ragged clouds gives them."""

    def __init__(self, *, has_ring: bool = False) -> None:
        ragged = {"collate": "concatenate"}
        fields = {
            "points": Field("points 3", "float32", **ragged),  # type: ignore[arg-type]
            "remission": Field("points 1", "float32", **ragged),  # type: ignore[arg-type]
            "label": Field("points", "int64", **ragged),  # type: ignore[arg-type]
        }
        self.names = [*fields, *(["ring"] if has_ring else [])]
        fields |= {"ring": Field("points", "int64", **ragged)} if has_ring else {}  # type: ignore[arg-type]
        self.info = DataInfo(facts={}, fields=fields, features=("remission",))

    def __len__(self) -> int:
        return len(LENGTHS)

    def __getitem__(self, key: SampleKey) -> dict[str, Tensor]:
        scan = make_scan(LENGTHS[key.index], seed=key.index)
        return {name: scan[name] for name in self.names}


def read(*steps: Any, has_ring: bool = False) -> dict[str, Tensor]:
    """One batch of all scans."""
    named = [NamedTransform(type(step).__name__, step) for step in steps]
    return BatchReader(Scans(has_ring=has_ring), named)([SampleKey(i, 2, 3) for i in range(len(LENGTHS))])


# --- what a batch holds -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", ["pitch", "ring"])
def test_a_batch_of_uneven_scans_keeps_points_and_adds_images(rows: str) -> None:
    batch = read(projecting(rows=rows), has_ring=True)
    plain = read(has_ring=True)
    assert all(torch.equal(batch[name], plain[name]) for name in plain if name != "label")
    assert torch.equal(batch["whole_label"], plain["label"])
    assert torch.equal(batch["whole_offsets"], plain["offsets"])
    assert batch["image"].shape == (4, 5, 16, 64)
    assert batch["label"].shape == batch["range_image"].shape == (4, 16, 64)
    for scan, (first, last) in enumerate(zip(plain["offsets"], plain["offsets"][1:], strict=False)):
        near, far = batch["nearest"][first:last], batch["point_range"][first:last]
        shown = batch["range_image"][scan].flatten()
        assert (shown[near] <= far).all(), "no pixel shows a point behind one of its own"
        assert (shown >= 0).sum() == len(near.unique())
        assert (batch["label"][scan].flatten()[shown < 0] == 0).all()
        own = (shown[near] == far).nonzero()[:, 0]  # the points that are drawn
        assert torch.equal(batch["label"][scan].flatten()[near[own]], plain["label"][first:last][own])


def test_channels_are_those_of_the_point_less_mean_over_deviation() -> None:
    scan = lifted(make_scan(500))
    made = projecting()(draws_of(), **scan)
    image, shown = made["image"][0], made["range_image"][0] >= 0
    assert not image[:, ~shown].any()
    values = image.double() * torch.tensor(STD, dtype=torch.float64)[:, None, None]
    values = (values + torch.tensor(MEAN, dtype=torch.float64)[:, None, None])[:, shown]
    number = (values[4] * 1024).round().long()
    given = torch.cat((scan["points"][0].norm(dim=1, keepdim=True), scan["points"][0], scan["remission"][0]), dim=1)
    # numbers below 64, less a mean and over a deviation: three roundings of 2^-24 each
    assert (values.mT - given[number]).abs().max() < 64 * 3 * 2**-24
    assert torch.equal(made["nearest"][0, number], shown.flatten().nonzero()[:, 0])
    assert torch.equal(made["label"][0][shown], scan["label"][0, number])


def test_the_published_variants_of_empty_pixels() -> None:
    scan = lifted(make_scan(50))
    zeros, as_zero, masked = (
        projecting(**arguments)(draws_of(), **scan)
        for arguments in ({}, {"empty": "normalized"}, {"append_mask": True})
    )
    shown = zeros["range_image"][0] >= 0
    assert torch.equal(as_zero["image"][0][:, shown], zeros["image"][0][:, shown])
    expected = -torch.tensor(MEAN) / torch.tensor(STD)
    assert torch.equal(as_zero["image"][0][:, ~shown], expected[:, None].expand(-1, int((~shown).sum())))
    assert torch.equal(masked["image"][:, :5], zeros["image"])
    assert torch.equal(masked["image"][0, 5], shown.float())
    assert [projecting(append_mask=mask).facts for mask in (False, True)] == [{"in_channels": 5}, {"in_channels": 6}]


def test_it_is_pure_and_draws_nothing() -> None:
    scan = lifted(make_scan(300))
    before = {name: field.clone() for name, field in scan.items()}
    first, second = projecting()(draws_of(seed=1), **scan), projecting()(draws_of(seed=2), **scan)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(scan[name], before[name]) for name in scan)
    for field in first.values():
        field.zero_()
    assert all(torch.equal(scan[name], before[name]) for name in scan), "an output is shared with an input"


def test_scans_without_labels_have_none() -> None:
    scan = lifted(make_scan(20))
    del scan["label"]
    assert projecting()(draws_of(), **scan).keys() == {"image", "range_image", "nearest", "point_range"}


def test_wrong_arguments_and_scans_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"fov_deg \(-25, 3\).*upper border"):
        transforms.build(ComponentConfig("project", {}), facts={**FACTS, "fov_deg": (-25.0, 3.0)})
    with pytest.raises(ConfigError, match="0 beams for a height of 16 rows"):
        projecting(rows="table")
    with pytest.raises(ConfigError, match="every deviation must be positive"):
        transforms.build(ComponentConfig("project", {}), facts={**FACTS, "input_std": (1.0, 1.0, 0.0, 1.0, 1.0)})
    with pytest.raises(ConfigError, match="'fov_deg' is given by the data set"):
        projecting(fov_deg=(3.0, -25.0))
    scan = lifted(make_scan(20))
    with pytest.raises(DataError, match=r"project: ring\[4\], point 4 of scan 0, is 4; .* rows 0 to 3"):
        projecting(rows="ring", height=4)(draws_of(), **scan)
    with pytest.raises(ConfigError, match="'DropPoints' chooses points and cannot follow 'Project'"):
        read(projecting(), DropPoints(max_ratio=0.5, fill="none"))


# --- augmentations ----------------------------------------------------------------------------------------------------

AUGMENTATIONS = (
    Flip(axes=("y",)),
    Rotate(up_axis="z"),
    Translate(ranges=((-5.0, 5.0), (-3.0, 3.0), (-0.1, 0.0))),
    Scale(low=0.95, high=1.05, isotropic=True),
    Jitter(std=0.01, clip=0.05),
    DropPoints(max_ratio=0.5, fill="none"),
)
"""Together they change a height of 3 m by at most 0.05 * 3.1 + 0.1 + 0.05 m, less than half a metre."""


@pytest.mark.parametrize("epoch", range(4))
def test_augmented_points_keep_their_labels_and_remission(epoch: int) -> None:
    named = [NamedTransform(type(each).__name__, each) for each in (*AUGMENTATIONS, projecting())]
    keys = [SampleKey(i, epoch, 5) for i in range(len(LENGTHS))]
    batch = BatchReader(Scans(has_ring=True), named)(keys)
    assert torch.equal(bands(batch["points"]), batch["whole_label"]), "recomputed from the augmented heights"
    for scan, (first, last) in enumerate(zip(batch["offsets"], batch["offsets"][1:], strict=False)):
        number = (batch["remission"][first:last, 0] * 1024).round().long()
        assert torch.equal(number, number.unique()), "in their order, none twice"
        assert torch.equal(batch["ring"][first:last], number % 16)
        assert torch.equal(batch["whole_label"][first:last], make_scan(LENGTHS[scan], seed=scan)["label"][number])
        height = batch["image"][scan, 3] * STD[3] + MEAN[3]
        shown = batch["range_image"][scan] >= 0
        assert torch.equal(height[shown].round().long() + 4, batch["label"][scan][shown])


def test_the_share_of_dropped_points_is_uniform_up_to_its_limit() -> None:
    scan = lifted(make_scan(1000))
    drop = DropPoints(max_ratio=0.5, fill="none")
    shares = torch.tensor([1 - drop(draws_of(first=i), **scan)["points"].shape[1] / 1000 for i in range(400)])
    assert shares.max() < 0.5 + 4 * 0.5 / 1000**0.5, "four deviations of 1,000 draws at one half"
    # uniform in [0, 0.5): mean 0.25, deviation 0.144; five standard errors of 400
    assert abs(shares.mean() - 0.25) < 5 * 0.144 / 20
    with pytest.raises(DataError, match="got 2 clouds stacked"):
        drop(draws_of(2), points=torch.zeros(2, 9, 3))


def test_shifts_fill_the_range_of_each_axis() -> None:
    ranges = ((-5.0, 5.0), (-3.0, 3.0), (-1.0, 0.0))
    moved = Translate(ranges=ranges)(draws_of(2000), points=torch.zeros(2000, 1, 3))["points"][:, 0]
    for axis, (low, high) in enumerate(ranges):
        assert low <= moved[:, axis].min() < low + 0.01 * (high - low)  # missed by all once in 0.99^-2000 = 5e8
        assert high >= moved[:, axis].max() > high - 0.01 * (high - low)
    assert abs(np.corrcoef(moved.mT)[0, 1]) < 5 / 2000**0.5, "each axis draws for itself"


def test_wrong_ranges_are_refused() -> None:
    with pytest.raises(ConfigError, match="in place of max_shift"):
        Translate(max_shift=0.3, ranges=((0.0, 1.0),) * 3)
    with pytest.raises(ConfigError, match="begin with its low"):
        Translate(ranges=((0.0, 1.0), (0.0, 1.0), (1.0, 0.0)))


# --- rings ------------------------------------------------------------------------------------------------------------


def test_rings_of_the_file_outlast_what_moves_and_drops_points() -> None:
    scan = cast_scan(num_azimuths=256)
    given = {"points": scan.points[None], "remission": torch.rand(1, len(scan.points), 1), "label": scan.label[None]}
    numbering = transforms.build(ComponentConfig("ring_from_order"), facts={**FACTS, "num_beams": 64})
    found = numbering(draws_of(), points=given["points"])
    assert torch.equal(found["ring"][0], scan.ring)
    fewer = RingFromOrder(num_beams=60)(draws_of(), points=given["points"])
    assert torch.equal(fewer["ring"][0], scan.ring.clamp(max=59))
    for step in (*AUGMENTATIONS, projecting(rows="ring", height=64, width=256)):
        taken = inspect.signature(step.__call__).parameters
        given |= {**found, **given}
        given |= step(draws_of(), **{name: field for name, field in given.items() if name in taken})
    assert torch.equal(given["nearest"] // 256, given["ring"])
    assert given["whole_label"].max() < len(NAMES)


# --- points that sampling leaves out ----------------------------------------------------------------------------------


ORDERS = ("first", "random")


def point_draws(num_clouds: int) -> Draws:
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
    found = transform(point_draws(4), points=points, label=label)
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
    found = transform(point_draws(4), points=points, label=torch.arange(300).expand(4, -1))
    for kept, nearest in zip(found["label"], found["nearest"], strict=True):
        assert nearest[kept].tolist() == list(range(200))


@run_each("order", ORDERS)
@run_each("num_points", [300, 301, 750, 900])
def test_clouds_of_fewer_points_repeat_all_of_them_alike(order: str, num_points: int) -> None:
    points, _ = clouds()
    number = torch.arange(300).expand(4, -1)
    transform = SamplePoints(num_points=num_points, order=order, if_fewer="repeat", score_all=True)  # type: ignore[arg-type]
    found = transform(point_draws(4), points=points, label=number)
    for kept, nearest in zip(found["label"], found["nearest"], strict=True):
        times = torch.bincount(kept, minlength=300)
        assert set(times.tolist()) <= {num_points // 300, -(-num_points // 300)}
        assert torch.equal(kept[nearest], number[0])  # each point is answered by itself


def test_labels_of_whole_clouds_are_refused() -> None:
    points, _ = clouds()
    with pytest.raises(ConfigError, match=r"score_all: predicts points, but the labels .* whole clouds"):
        SamplePoints(num_points=64, score_all=True)(point_draws(4), points=points, label=torch.arange(4))


# --- in batches -------------------------------------------------------------------------------------------------------


class Heights(nn.Module):
    """A model that answers with the height of a point, so that who answered for whom can be seen."""

    def forward(self, *, points: Tensor) -> dict[str, Tensor]:
        up = points[..., 2]
        return {"logits": torch.stack([up, torch.zeros_like(up)], dim=-1)}


class Ragged(Dataset):
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
