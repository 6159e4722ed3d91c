"""Published weights of networks over range images as runs: the authors' outputs come back, of a folder of parts too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.api import load_run
from sightline.areas.scans.sets.semantic_kitti import LABEL_MAPS
from sightline.contract import registry
from sightline.contract.draws import Draws
from sightline.contract.transform import Transform
from sightline.contract.types import DataInfo, Field
from sightline.store.label_maps import read_label_map
from tests.command import Outcome, run_here, succeed
from tests.data.scans.lidar_writers import street_scan, write_bin
from tests.engine.published_weights import FactsAlone, registered
from tests.golden_parity import Golden
from tests.lidar_parity import load_lidar_golden, theirs_of
from tests.marks import long_but
from tests.published_layouts import MODELS

CASES = {
    "lidar_bonnetal_darknet21": "lb_darknet21",
    "lidar_bonnetal_darknet53": "lb_darknet53",
    "lidar_bonnetal_squeezeseg": "lb_squeezeseg",
    "lidar_bonnetal_squeezeseg_crf": "lb_squeezeseg_crf",
    "lidar_bonnetal_squeezesegv2": "lb_squeezesegv2",
    "lidar_bonnetal_squeezesegv2_crf": "lb_squeezesegv2_crf",
    "salsanext": "salsanext",
}
LARGEST = "lidar_bonnetal_darknet53"
"""Its case is in tests/long/test_networks.py."""
PARTS = {
    "backbone": "backbone",
    "decoder": "segmentation_decoder",
    "head": "segmentation_head",
    "CRF": "segmentation_CRF",
}
"""Files of a folder of lidar-bonnetal, by the part of the network that they hold."""
RECIPE = """
data: {name: four_numbers}
task: {name: segment}
transforms: {evaluate: [{name: five_channels}], train: [{name: five_channels}]}
model: {name: MODEL}
losses: [{name: cross_entropy}]
metrics: [{name: iou}]
optimizer: {name: sgd, lr: 0.01}
train: {epochs: 1, batch_size: 2, precision: float64}
evaluate: {metric: miou}
"""


class FourNumbers(FactsAlone):
    """Scans of points and remissions, of twenty classes. Source: this test."""

    def __init__(self, *, split: str) -> None:
        point = {"collate": "concatenate"}
        self.info = DataInfo(
            facts={
                "num_classes": 20,
                "class_names": tuple(f"class_{i}" for i in range(20)),
                "in_channels": 4,
                "up_axis": "z",
            },
            fields={
                "points": Field("points 3", "float32", **point),
                "remission": Field("points 1", "float32", **point),
                "label": Field("points", "int64", **point),
            },
            features=("remission",),
        )


class FiveChannels(Transform):
    """States that models see five channels, as a projection does. Source: this test."""

    facts: Mapping[str, Any] = {"in_channels": 5}

    def __call__(self, draws: Draws, *, points: Tensor) -> dict[str, Tensor]:
        return {"points": points}


@pytest.fixture(autouse=True)
def _components() -> Iterator[None]:
    with (
        registered(registry.data, four_numbers=FourNumbers),
        registered(registry.transforms, five_channels=FiveChannels),
    ):
        yield


def golden_state(golden: Golden) -> dict[str, Tensor]:
    """The rule-made weights beside the constants of the CRF, of any value."""
    names = [each["key"] for each in golden.info["state_dict"] if each["kind"] == "constant (kept)"]
    return golden.state() | {name: torch.tensor(0.5) for name in names}


def convert(file: Path, layout: str, folder: Path) -> Outcome:
    config = folder / "config.yaml"
    config.write_text(RECIPE.replace("MODEL", MODELS[layout].model))
    return run_here(
        "weights", "convert", file, "--layout", layout, "--config", config, "--to", folder / "run",
    )  # fmt: skip


def in_parts(state: dict[str, Tensor], folder: Path) -> Path:
    folder.mkdir()
    for part, name in PARTS.items():
        inside = {key.removeprefix(f"{part}."): value for key, value in state.items() if key.startswith(f"{part}.")}
        if inside:
            torch.save(inside, folder / name)
    return folder


def assert_their_outputs(golden: Golden, run: Path) -> None:
    model = load_run(run).model.double().eval()
    with torch.no_grad():
        logits = model(image=golden.tensor("in.x"))["logits"]
    theirs_of(golden, logits.permute(0, 3, 1, 2).softmax(dim=1), "eval.out")


def test_every_layout_of_range_images_has_a_case() -> None:
    of_scans = {name: model.model for name, model in MODELS.items() if model.protocol.data == "semantic_kitti"}
    others = {"frnet", "minkunet"}  # compute on points, and have tests of their own
    assert {name for name, model in of_scans.items() if model not in others} == set(CASES)


@pytest.mark.shared
@pytest.mark.parametrize(
    "layout", long_but(CASES.keys() - {"lidar_bonnetal_darknet21"}, sorted(CASES.keys() - {LARGEST}))
)
def test_the_authors_outputs_come_back(shared: Path, tmp_path: Path, layout: str) -> None:
    """Of one file as a training script saves it; lidar-bonnetal's from its folder of a file for each part."""
    assert_outputs_come_back(shared, tmp_path, layout)


def assert_outputs_come_back(shared: Path, tmp_path: Path, layout: str) -> None:
    golden = load_lidar_golden(shared, CASES[layout])
    state, file = golden_state(golden), tmp_path / "SalsaNext"
    if layout == "salsanext":
        torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}, file)
    else:
        file = in_parts(state, tmp_path / "published")
    outcome = convert(file, layout, tmp_path)
    assert outcome.code == 0, outcome.err
    assert_their_outputs(golden, tmp_path / "run")


@pytest.mark.shared
def test_a_folder_without_a_part_and_one_with_too_many_are_named(shared: Path, tmp_path: Path) -> None:
    golden = load_lidar_golden(shared, "lb_squeezeseg_crf")
    folder = in_parts(golden_state(golden), tmp_path / "published")
    outcome = convert(folder, "lidar_bonnetal_squeezeseg", tmp_path)
    assert outcome.code == 2
    assert "holds segmentation_CRF, which the layout 'lidar_bonnetal_squeezeseg' does not have" in outcome.err
    assert "--layout lidar_bonnetal_squeezeseg_crf" in outcome.err
    (folder / "segmentation_head").unlink()
    outcome = convert(folder, "lidar_bonnetal_squeezeseg_crf", tmp_path)
    assert outcome.code == 2
    assert "segmentation_head: there is no such file" in outcome.err
    assert not (tmp_path / "run").exists()


@pytest.mark.shared
def test_published_weights_label_a_scan_before_any_data_is_prepared(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights to a picture: the run states the sensor and the ids of SemanticKITTI, and its cloud is viewed."""
    monkeypatch.setenv("SIGHTLINE_DATA", str(tmp_path / "nothing"))
    golden = load_lidar_golden(shared, CASES["lidar_bonnetal_squeezesegv2"])
    folder = in_parts(golden_state(golden), tmp_path / "published")
    small = ("transforms.evaluate.0.height=16", "transforms.evaluate.0.width=64")
    outcome = succeed(
        "weights", "convert", folder, "--layout", "lidar_bonnetal_squeezesegv2", "--to", tmp_path / "run", *small
    )
    assert "semantic_kitti: its facts are the published ones" in outcome.err
    _, scan = street_scan(0)
    write_bin(tmp_path / "sequences/11/velodyne/000000.bin", scan)
    succeed("predict", tmp_path / "run", tmp_path / "sequences", "--device", "cpu", "--out", tmp_path / "out")
    ids = np.fromfile(tmp_path / "out/sequences/11/predictions/000000.label", dtype="<u4")
    label_map = read_label_map("single", LABEL_MAPS)
    assert np.array_equal(label_map.ids(np.load(tmp_path / "out/000000.labels.npy")), ids)
    assert len(ids) == len(scan.points)
    succeed("view", tmp_path / "out/000000.ply", "--out", tmp_path / "view")
    assert (tmp_path / "view/view.html").exists()
