"""KITTI's AP inside of a run, on its real frames: the ceiling of what is right, and the score of the files it saves."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.areas.boxes3d.prediction_writer import Box3dWriter
from sightline.areas.boxes3d.scoring import Box3dScoring
from sightline.areas.boxes3d.task import Detect3d
from sightline.config import read_config
from sightline.contract.types import SampleKey
from sightline.engine.build import TrainingSetup, build
from sightline.engine.distributed import World
from sightline.engine.evaluate import Evaluation
from tests.boxes3d.test_task import predict_perfectly
from tests.data.preparing import prepare_set

CONFIG = Path(__file__).parents[2] / "configs/boxes3d/kitti_pointpillars.yaml"
NARROW = "[{num_layers: 1, width: 4, stride: 2, up_width: 4, up_stride: 1}]"
SMALL = (
    *("data.tested=['000']", "data.validation_share=0", "transforms.train=[]", "train.batch_size=1"),
    "transforms.evaluate=[{name: limit_extent, extent_m: [0, -20.48, -3, 50, 20.48, 1]}]",
    *("model.extent_m=[0, -20.48, -3, 61.44, 20.48, 1]", "model.pillar_m=[0.32, 0.32]"),
    *("model.encoder_widths=[4]", f"model.blocks={NARROW}"),
)
LEVELS = ("easy", "moderate", "hard")


@pytest.fixture(scope="module")
def setup(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingSetup:
    target = tmp_path_factory.mktemp("kitti") / "set"
    prepare_set("kitti_boxes3d", shared / "data/kitti_object_mini", target)
    return build(read_config(CONFIG, (*SMALL, f"data.root={target}")), World(device=torch.device("cpu")))


def evaluate(setup: TrainingSetup, monkeypatch: pytest.MonkeyPatch, out: Path, *, moved_m: float) -> Evaluation:
    """Evaluate outputs that state the labels, places and angles off by about `moved_m`, and save what is found."""
    random = torch.Generator().manual_seed(0)

    def plant(self: Detect3d, model: torch.nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
        moved = batch["boxes"].clone()
        moved[:, [0, 1, 2, 6]] += moved_m * torch.randn(len(moved), 4, generator=random)
        outputs = predict_perfectly(self, self.context(model, {**batch, "boxes": moved}))
        # Of the anchors of a box, the scores are alike, and equal scores of two frames would hang on their order.
        return {**outputs, "logits": outputs["logits"] + torch.rand(outputs["logits"].shape, generator=random)}

    monkeypatch.setattr(Detect3d, "evaluated_outputs", plant)
    writer = Box3dWriter(out, setup.data.test, World())
    evaluation = setup.test_evaluator(setup.job.model, World(device=torch.device("cpu")), on_batch=writer)
    writer.finish(evaluation, {"checkpoint": "last"})
    return evaluation


def test_predictions_equal_to_the_labels_reach_the_ceiling(
    setup: TrainingSetup, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of n labels that count, (n - 1) / 40 at 40 recalls, in the image and from above, too; headings are right."""
    evaluation = evaluate(setup, monkeypatch, tmp_path / "out", moved_m=0.0)
    rows = evaluation.tables["by_difficulty"]
    counts = {name: row["count"] for name, row in rows.items()}
    assert [counts[f"Car, {level}"] for level in LEVELS] == [1, 2, 2]
    assert [counts[f"Pedestrian, {level}"] for level in LEVELS] == [1, 1, 1]
    for name, row in rows.items():
        for kind in ("ap_3d", "ap_bev", "ap_2d", "aos"):
            if not row["count"]:
                assert math.isnan(row[f"{kind}_r40"])
                continue
            assert row[f"{kind}_r40"] == pytest.approx((row["count"] - 1) / 40, abs=1e-6), (name, kind)
            assert row[f"{kind}_r11"] == pytest.approx(1 / 11, abs=1e-6), (name, kind)
    found = [evaluation.tables[name]["num_boxes"] for name in ("scored_boxes_kitti", "scored_boxes_3d")]
    assert found == [5, 4]  # beyond 50 m `limit_extent` ignores a car, which KITTI's rules look at


def test_the_figures_of_a_run_are_those_of_the_files_that_it_saves(
    setup: TrainingSetup, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Boxes are decimetres off, so that some are found; JSON holds all bits, KITTI's rows seven digits."""
    ours = evaluate(setup, monkeypatch, tmp_path / "out", moved_m=0.1)
    metrics = [block for block in setup.config.metrics if block.name == "kitti_ap"]
    for path, tolerance in ((tmp_path / "out", 1e-12), (tmp_path / "out/kitti", 1e-6)):
        theirs = Box3dScoring().score(setup.data.test, metrics, path).evaluation
        expected = {name: ours.metrics[name] for name in theirs.metrics}
        assert dict(theirs.metrics) == pytest.approx(expected, rel=0, abs=tolerance, nan_ok=True)
        assert theirs.tables["scored_boxes_kitti"] == ours.tables["scored_boxes_kitti"]
    assert 0 < ours.metrics["ap_3d_r11_moderate"] < 1 / 11
    [row] = [line.split() for line in (tmp_path / "out/kitti/000003.txt").read_text().splitlines()]
    np.testing.assert_allclose(
        [float(word) for word in row[4:8]], [614.24, 181.78, 727.31, 284.77], atol=20
    )  # 5 px a dm


def test_samples_have_the_labels_of_the_file_and_its_camera(setup: TrainingSetup) -> None:
    """Regions of no class are among them, which are no boxes of a sample."""
    dataset = setup.data.test.dataset
    names = [dataset.sample_name(index) for index in range(len(dataset))]
    index = names.index("000001")
    sample, batch = dataset[SampleKey(index, 0, 0)], setup.data.test.reader([SampleKey(index, 0, 0)])
    table = sample["kitti_truth"].numpy()
    assert table[:, 7].tolist() == [0, 2, -1, -1, -1, -1]  # Car, Cyclist, and DontCare regions; the Truck is left out
    assert table[:, 8].tolist() == [0, 0, 1, 1, 1, 1]
    np.testing.assert_allclose(table[0, 9:16], [387.63, 181.54, 423.81, 203.12, 1.85, 0, 0])
    torch.testing.assert_close(batch["kitti_truth"], sample["kitti_truth"], rtol=0, atol=0, equal_nan=True)
    assert setup.test_evaluator.exact_keys == {"kitti_truth", "to_camera", "projection"}
    assert sample["image_px"].tolist() == [1242, 375]
    assert setup.job.task.predicts >= {"detections3d_image"}
