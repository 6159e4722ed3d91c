"""`sightline describe` as a user meets it: table, totals, JSON, drawing, plugins, absent data, models that fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.command import run_here, succeed

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs" / "classify"
SMALL = ("data.num_points=64", "data.train_size=48", "train.batch_size=8")


def test_everything_of_a_model(tmp_path: Path) -> None:
    svg, document = tmp_path / "made" / "net.svg", tmp_path / "net.json"
    config = CONFIGS / "synthetic_shapes_pointnet.yaml"
    told = succeed("describe", config, *SMALL, "--svg", svg, "--json", document)
    found = json.loads(document.read_text())
    assert [row["path"] for row in found["modules"][:2]] == ["", "input_alignment"]
    assert found["modules"][0]["outputs"] == [[3, 12], [3, 64, 64]]
    assert found["modules"][0]["output_names"] == ["logits", "feature_transform"]
    assert set(found["modules"][0]) >= set("path class_name call inputs outputs parameters shared macs depth".split())
    assert found["parameters"] == found["trainable"] == sum(row["parameters"] for row in found["modules"])
    # a product that the batch shares is a fraction for each sample, so this is a sum of floats
    assert found["macs_per_sample"] == pytest.approx(sum(row["macs"] for row in found["modules"]), rel=1e-12)
    assert f"{found['parameters']:,}" in told.out
    assert svg.read_text().startswith("<svg")


def test_depth_adds_inner_calls_to_the_shown_ones() -> None:
    told = succeed("describe", CONFIGS / "synthetic_shapes_pointnet.yaml", *SMALL, "--depth", "1")
    assert "input_alignment" in told.out
    assert "input_alignment.encode" not in told.out


def test_a_plugin_with_clouds_of_different_sizes(tmp_path: Path) -> None:
    examples, to = ROOT / "examples", ("--svg", tmp_path / "a.svg", "--json", tmp_path / "a")
    plugins = ("--plugin", examples / "my_plugin.py", "--plugin", examples / "my_transform.py")
    assert "OffsetNet" in succeed("describe", examples / "my_plugin.yaml", *plugins, *to).out
    assert "OffsetNet" not in (tmp_path / "a.svg").read_text(), "the model is opened to its layers"
    assert json.loads((tmp_path / "a").read_text())["parameters"] == 3 * 32 + 32 + 32 * 32 + 32 + 32 * 3 + 3


def test_a_model_that_fails_is_one_line_with_the_module() -> None:
    code, out, err = run_here("describe", CONFIGS / "synthetic_shapes_dgcnn.yaml", *SMALL[1:], "data.num_points=8")
    assert (code, out) == (1, "")
    assert err.startswith(
        "error: model 'dgcnn', 3 samples: the forward pass failed in the model itself (DGCNN), given "
    )
    assert "(3, 8, 3)" in err
    assert err.count("\n") == 1


def test_a_drawing_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    code, out, err = run_here("describe", "none.yaml", "--svg", tmp_path)
    assert (code, out) == (2, "")
    assert err == f"error: --svg {tmp_path}: is a folder; give a file in it\n"


SCANS = ("data.train_size=8", "data.test_size=4", "data.num_columns=64", "model.width=2", "train.batch_size=2")
NARROW = ("transforms.train.2.width=32", "transforms.evaluate.0.width=32")


def test_range_images_and_their_ceiling_are_described(tmp_path: Path) -> None:
    """Two azimuths share a column: a half of the points is shown, and a perfect network misses some of the others."""
    config = ROOT / "configs/segment/synthetic_lidar_salsanext.yaml"
    words = (*SCANS, *NARROW, "--depth", "1", "--device", "cpu", "--json", tmp_path / "told.json")
    done = succeed("describe", config, *words)
    found = json.loads((tmp_path / "told.json").read_text())["projection"]
    assert found["image"] == [64, 32]
    assert 0.5 < found["points_shown"] < 0.6
    assert 0.5 < found["ceiling_nearest"] < 1
    assert f"{found['ceiling_nearest']:.4f} by lift: nearest" in done.out + done.err
