"""Depth frames at every stage: where joints appear, what is told of them, and that mistakes show in these numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sightline.areas.pose.task import Pose
from sightline.areas.pose.v2v import Voxelize
from sightline.contract.binding import AvailableKeys
from sightline.contract.draws import Draws
from sightline.contract.transform import Transform
from sightline.contract.types import Sample, SampleKey
from sightline.draw.pictures import PALETTE
from sightline.engine.device.numerics import Precision
from sightline.store.loading.batch_reader import BatchReader
from sightline.store.loading.transform_pipeline import NamedTransform
from sightline.view.sample_predictor import SamplePredictor
from sightline.view.samples import Branch, view_sample
from sightline.view.sheet import draw_sheet, make_tiles
from sightline.view.stages import Stage, ViewedSample
from tests.view.frames import JOINTS, NAMES, Frames, Transposed, reader, transforms

STAGES = ["raw", "train 1: place_cube", "train 2: voxelize", "train 3: draw_heatmaps"]
CELL_MM = 25.0  # 200 mm in 8 cells
VARIED: dict[str, Any] = {"scale": (0.8, 1.2), "max_angle_rad": 0.7, "max_shift": 1.0}


def subject_of(read: BatchReader, *, predictor: SamplePredictor | None = None, epoch: int = 0) -> ViewedSample:
    branch = Branch("train" if predictor is None else "evaluate", read, epoch)
    facts = read.dataset.info.facts
    return view_sample(0, name="it", branches=[branch], seed=1, facts=facts, predictor=predictor)


def stage(subject: ViewedSample, word: str) -> Stage:
    return next(cloud for cloud in subject.stages if word in cloud.stage)


def test_every_stage_has_its_points_its_pictures_and_its_joints() -> None:
    subject = subject_of(reader())
    assert [cloud.stage for cloud in subject.stages] == STAGES
    assert [len(cloud.points) for cloud in subject.stages[:3]] == [3, 3, 3]
    assert [len(cloud.panels) for cloud in subject.stages] == [1, 1, 3, 3]
    assert [cloud.unit for cloud in subject.stages] == ["mm", "voxels", "voxels", "voxels"]
    assert subject.stages[-1].description.endswith("model input in training")
    # Bones and joints by hand: the cube's corner lies at (-100, -100, 330) mm, a voxel has 12.5 mm.
    expected = (JOINTS.double().numpy() - (-100, -100, 330)) / 12.5
    for cloud in subject.stages[1:]:
        assert np.allclose(cloud.skeletons[0].joints, expected, atol=1e-9)
        assert cloud.skeletons[0].bones == ((0, 1), (0, 2))
    # The pixel of a joint is at most half a pixel off it: 0.5 * 480 / 100 = 2.4 mm along an axis, 0.2 of a voxel.
    assert np.array_equal(np.sort(stage(subject, "voxelize").points, axis=0), np.sort(np.floor(expected) + 0.5, axis=0))


@pytest.mark.parametrize("fy", [-100.0, 100.0])
def test_a_joint_lies_on_the_pixel_that_measures_it(fy: float) -> None:
    frames = Frames(fy=fy)
    subject = subject_of(reader(frames))
    panel = stage(subject, "raw").panels[0]
    times = 352 // 40
    assert panel.pixels.shape == (30 * times, 40 * times, 3)
    for number, (x, y, z) in enumerate(JOINTS.tolist()):
        column, row = (100 * x / z + 20 + 0.5) * times, (fy * y / z + 15 + 0.5) * times
        assert np.array_equal(panel.pixels[int(row), int(column)], PALETTE[number])
    assert subject.up_axis == ("camera_y_up" if fy < 0 else "camera_y_down")


def test_the_numbers_of_a_sound_sample() -> None:
    subject = subject_of(reader(**VARIED), epoch=3)
    raw, placed, voxels, target = (cloud.to_dict()["figures"] for cloud in subject.stages)
    assert raw["joint_to_surface_mm"] < 3.4  # half a pixel along two axes, at 480 mm
    assert placed["num_joints_inside"] == voxels["num_joints_inside"] == 3
    assert placed["round_trip_mm"] < 1e-9
    assert voxels["num_voxels"] == 3
    assert voxels["joint_to_surface_voxels"] < 1.2  # the middle of the voxel beside it
    assert target["target_off_cells"] <= 0.501
    assert target["target_off_max_mm"] <= target["cell_mm"] * 0.501 * np.sqrt(3)
    assert 25 / 1.2 <= target["cell_mm"] <= 25 / 0.8
    assert [cloud.is_right for cloud in subject.stages] == [None, True, True, True]
    told = subject.stages[-1].description
    assert told.startswith(f"joints read from the heat maps are at most {target['target_off_max_mm']:.1f} mm from the ")
    assert f"a cell is {target['cell_mm']:.1f} mm wide" in told


def test_transposed_targets_are_told_in_cells() -> None:
    wrong = [*transforms()[:2], NamedTransform("draw_heatmaps", Transposed(sigma=1.0))]
    cloud = stage(subject_of(BatchReader(Frames(), wrong)), "heatmaps")
    # x and z of the first joint: (10 + 100) / 25 = 4.4 and (400 - 330) / 25 = 2.8; of the second 3.2 and 3.6; of the
    # third 4.96 and 6. The middle of the largest cell is then off by |4.5 - 2.8|, |2.5 - 4.4|, ...: 1.9 at most.
    assert cloud.figures["target_off_cells"] == pytest.approx(1.9, abs=1e-5)
    assert cloud.is_right is False
    assert cloud.description.startswith("MORE THAN HALF A CELL OFF, ")
    assert "1.90 of a cell along an axis: " in cloud.description


def test_joints_of_a_data_set_with_swapped_axes_lie_off_the_image() -> None:
    class Swapped(Frames):
        def __getitem__(self, key: SampleKey) -> Sample:
            sample = super().__getitem__(key)
            return {**sample, "joints": sample["joints"][:, [1, 0, 2]]}

    right, wrong = (subject_of(reader(frames)).stages[0] for frames in (Frames(), Swapped()))
    assert right.figures["joint_to_surface_mm"] < 3
    assert wrong.figures["joint_to_surface_mm"] > 25  # the joints lie 28, 35 and 55 mm from where they are
    assert "mm from the measured surface" in wrong.description


def test_voxels_with_swapped_axes_lie_off_the_joints() -> None:
    class Wrong(Voxelize):
        def __call__(self, draws: Draws, *, depth: Tensor, camera: Tensor, placement: Tensor) -> dict[str, Tensor]:
            right = super().__call__(draws, depth=depth, camera=camera, placement=placement)["volume"]
            return {"volume": right.transpose(-1, -3).contiguous()}

    first, _, last = transforms()
    read = BatchReader(Frames(), [first, NamedTransform("voxelize", Wrong()), last])
    assert stage(subject_of(reader()), "voxelize").figures["joint_to_surface_voxels"] < 1
    assert stage(subject_of(read), "voxelize").figures["joint_to_surface_voxels"] > 2


def test_a_transform_that_moves_joints_is_told_by_the_way_back() -> None:
    class Moved(Transform):
        def __call__(self, draws: Draws, *, joints: Tensor) -> dict[str, Tensor]:
            return {"joints": joints + torch.tensor([3.0, 4.0, 0.0])}

    read = BatchReader(Frames(), [NamedTransform("moved", Moved()), *transforms()])
    subject = subject_of(read)
    assert [cloud.stage for cloud in subject.stages][1] == "train 1: moved"
    placed = stage(subject, "place_cube")
    assert placed.figures["round_trip_mm"] == pytest.approx(5.0)
    assert "A TRANSFORM MOVED JOINTS BY 5.0 mm AGAINST THE IMAGE" in placed.description
    assert placed.is_right is False


def test_the_authors_order_of_axes_is_drawn_as_ours() -> None:
    ours, theirs = subject_of(reader()), subject_of(reader(axes="zyx"))
    for one, other in zip(ours.stages[2:], theirs.stages[2:], strict=True):
        assert np.array_equal(one.points, other.points)
        assert other.is_right is True
        for a, b in zip(one.panels, other.panels, strict=True):
            assert np.array_equal(a.pixels, b.pixels)


def test_joints_that_are_not_labelled_are_neither_drawn_nor_counted() -> None:
    class Half(Frames):
        def __getitem__(self, key: SampleKey) -> Sample:
            sample = super().__getitem__(key)
            return {**sample, "visible": torch.tensor([True, False, True]), "joints": sample["joints"] * SEEN}

    SEEN = torch.tensor([1.0, 0.0, 1.0])[:, None]
    subject = subject_of(reader(Half()))
    for cloud in subject.stages:
        assert cloud.skeletons[0].known_joint_indices().tolist() == [0, 2]
    assert subject.stages[-1].figures["num_joints"] == 2
    assert subject.stages[-1].is_right is True
    assert set(subject.stages[-1].to_dict()["classes"]["joint"]) == {"wrist", "tip"}


class Answer(nn.Module):
    """Answers the target, moved by some cells along y."""

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.cells = cells
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, *, heatmaps: Tensor) -> Mapping[str, Tensor]:
        return {"likelihood": heatmaps.roll(self.cells, dims=-2) + self.weight}


def test_a_prediction_stands_beside_the_truth_with_its_error() -> None:
    read = reader()
    model = Answer(1)
    keys = AvailableKeys("batch", read.keys)
    outputs = AvailableKeys("model", {"likelihood"})
    task = Pose(model=model, losses={}, batch_keys=keys, output_keys=outputs)
    predictor = SamplePredictor(model, task, read, Precision("float32"), torch.device("cpu"))
    subject = subject_of(read, predictor=predictor)
    cloud = subject.stages[-1]
    figures = subject.facts["prediction"]
    assert cloud.stage == "prediction"
    assert list(figures["error_mm"]) == list(NAMES)
    assert figures["mean_error_mm"] == pytest.approx(CELL_MM, abs=0.2)  # the parabola is exact but for float32 tails
    assert cloud.description.startswith(f"joints are {figures['mean_error_mm']:.1f} mm off on average, ")
    assert "hollow" not in cloud.description
    true, found = cloud.skeletons
    assert not len(found.unsure_joint_indices())
    assert np.allclose(found.joints - true.joints, (0, 2, 0), atol=0.02)  # in voxels, two a cell
    assert [panel.name for panel in cloud.panels] == ["predicted and true", "xy, front", "xz, from above", "yz, side"]


def test_a_joint_without_a_peak_is_drawn_hollow_and_named() -> None:
    read = reader()

    class Faint(Answer):
        """Answers the target, that of the last joint a hundredth as high."""

        def forward(self, *, heatmaps: Tensor) -> Mapping[str, Tensor]:
            heights = torch.tensor([1.0, 1.0, 0.01])[:, None, None, None]
            return {"likelihood": heatmaps * heights + self.weight}

    model = Faint(0)
    keys, outputs = AvailableKeys("batch", read.keys), AvailableKeys("model", {"likelihood"})
    task = Pose(model=model, losses={}, batch_keys=keys, output_keys=outputs)
    predictor = SamplePredictor(model, task, read, Precision("float32"), torch.device("cpu"))
    cloud = subject_of(read, predictor=predictor).stages[-1]
    assert cloud.description.endswith("; not found, drawn hollow (peak below 0.1): tip")
    assert cloud.skeletons[1].unsure_joint_indices().tolist() == [2]
    assert [line.is_hollow for line in cloud.skeletons[1].lines()] == [False, True]


def test_a_sheet_has_the_cards_of_a_stage_in_one_row() -> None:
    subject = subject_of(reader())
    assert [tile.caption for tile in make_tiles(subject)][:4] == [
        "raw (3)",
        "depth and joints",
        STAGES[1],
        "in the cube",
    ]
    sheet = draw_sheet(subject, tile_px=100)
    assert sheet.shape[1] == 4 * (100 + 4) + 4  # a voxel stage has four cards
    hidden = draw_sheet(subject, hidden=["true joints"], tile_px=100)
    assert not np.array_equal(sheet, hidden)
