"""Figures of others beside a run: the table as data, and which rows a run gets to see."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest

from sightline.areas.detect.sets.formats import Coco
from sightline.areas.scans.sets.semantic_kitti import SemanticKitti
from sightline.config import read_config
from sightline.config.plain_values import to_plain
from sightline.contract import registry
from sightline.contract.types import CloudInputSpec, ComponentConfig, DataInfo, Field, Folds
from sightline.runs.preprocessing_signature import format_setting, preprocessing_signature
from sightline.training import published_results
from sightline.training.published_results import describe_foreign_data, explain_no_rows, format_figure, list_published
from tests.cases import run_each
from tests.command import run_here, succeed
from tests.trained import copy_run

CONFIGS = Path(__file__).parents[2] / "configs"

FIGURES = {
    "ap", "ap50", "ap75", "by_hand_accuracy", "class_miou", "class_miou_all_parts", "crowd_ap", "detection_rate",
    "instance_miou", "instance_miou_all_parts", "ji", "mean_class_accuracy", "mean_error_mm", "miou", "mr2",
    "mr_reasonable", "overall_accuracy", "pixel_miou", "point_accuracy", "probe_svm_accuracy",
}  # fmt: skip
"""Names that metrics of the package compute."""
WORDS = {
    "batch size", "checkpoint", "checkpoints averaged", "epochs", "mean", "model", "neighbours", "points",
    "points of a room",
    "pre-training", "run", "suppression", "tested on", "votes",
}  # fmt: skip
SECTIONS = {"data": "data", "model": "models", "optimizer": "optimizers", "task": "tasks", "transforms": "transforms"}


def rows() -> list[dict[str, Any]]:
    return list(published_results._read_table()["rows"])


def of_models() -> list[dict[str, Any]]:
    """Rows of trained models and of features by hand; those of other probes state their protocol in words."""
    return [row for row in rows() if "model" in row["protocol"] or "by_hand_accuracy" in row["metrics"]]


def beside(config: str, metrics: dict[str, float]) -> list[dict[str, Any]]:
    read = read_config(CONFIGS / config)
    return list_published(read.data, DataInfo({}, {}), metrics, model=read.model)


# --- the table ------------------------------------------------------------------------------------------------------


def test_rows_are_of_data_sets_metrics_and_keys_that_the_package_has() -> None:
    for row in of_models():
        metrics = row["metrics"]
        assert row["data"] in registry.data.names()
        assert row["source"]
        assert {name.removesuffix("_to") for name in metrics} <= FIGURES, row
        assert all(1 < value < 20 if name.endswith("_mm") else 0 < value < 1 for name, value in metrics.items())
        for name in row["protocol"]:
            section, *names = name.split(".")
            assert (name in WORDS or "by_hand_accuracy" in metrics) if not names else section in SECTIONS, name
            if section == "data":
                entry = registry.data.entry(read_config(CONFIGS / config_on(row["data"])).data)
                assert names[0] in entry.arguments, name
            elif names:  # a key that some component of the kind has; a slip would read "not stated here"
                kind = registry.REGISTRIES[SECTIONS[section]]
                known = {argument for each in kind.names() for argument in kind.entry(ComponentConfig(each)).arguments}
                assert names[2 if section == "transforms" else 0] in known | {"name"}, name


@functools.cache
def config_on(data: str) -> str:
    shipped = {
        path: read_config(path).data.name for path in sorted(CONFIGS.glob("*/[!_]*.yaml")) if data[:4] in path.name
    }
    return next((str(path.relative_to(CONFIGS)) for path, name in shipped.items() if name == data), "")


# --- the rows of a run ----------------------------------------------------------------------------------------------


@run_each(
    "config, metrics, who",
    [
        ("classify/modelnet40_dgcnn.yaml", {"overall_accuracy": 0.9}, "DGCNN (paper)"),
        ("segment/shapenet_part_dgcnn.yaml", {"instance_miou_all_parts": 0.8}, "DGCNN (paper)"),
        ("segment/s3dis_point_transformer.yaml", {"miou": 0.6}, "Point Transformer (paper)"),
        ("pose/msra_v2v.yaml", {"mean_error_mm": 9.0}, "V2V-PoseNet (paper)"),
        ("pose/itop_v2v.yaml", {"detection_rate": 0.8}, "V2V-PoseNet (paper)"),
        ("segment/semantic_kitti_squeezesegv2.yaml", {"miou": 0.5}, "SqueezeSegV2"),
        ("detect/crowdhuman_retinanet.yaml", {"mr2": 0.6, "crowd_ap": 0.8}, "RetinaNet"),
        ("detect/coco_retinanet.yaml", {"ap": 0.3}, "RetinaNet"),
    ],
)
def test_the_row_that_a_recipe_reproduces_comes_first(config: str, metrics: dict[str, float], who: str) -> None:
    first, *_ = beside(config, metrics)
    assert first["who"] == who
    assert first["here"] == metrics


COCO_NAMES = Coco.expected_info().facts["class_names"]
HDL64 = SemanticKitti.expected_info().facts
OUSTER = SemanticKitti.expected_info(sensor={"preset": "os1_64"}).facts
MAP = SemanticKitti.expected_info(label_map="multi").facts


@pytest.mark.parametrize(
    ("config", "info", "reason"),
    [
        ("coco_retinanet", DataInfo({"class_names": COCO_NAMES}, {}, {"test": 5000}), None),
        ("coco_retinanet", DataInfo({"class_names": COCO_NAMES[::-1]}, {}, {"test": 4952}), None),
        ("coco_retinanet", DataInfo({"class_names": ("cup", "pen")}, {}, {"test": 5000}), "classes are cup, pen here"),
        ("coco_retinanet", DataInfo({"class_names": COCO_NAMES[:1]}, {}), "are person here, person, bicycle, c"),
        ("coco_retinanet", DataInfo({"class_names": COCO_NAMES}, {}, {"test": 37}), "are 37 here, 5,000 there"),
        ("crowdhuman_retinanet", DataInfo({"class_names": ("person",)}, {}, {"test": 60}), "are 60 here, 4,370 there"),
        ("kitti", DataInfo(HDL64, {}, {"test": 4071}, folds=Folds(("00", "08"), ("08",))), None),
        ("kitti", DataInfo(HDL64, {}, {"test": 5662}, folds=Folds(("08", "09"), ("08", "09"))), None),
        ("kitti", DataInfo(HDL64, {}, {"test": 500}, folds=Folds(("00", "08"), ("08",))), "are 500 here, 4,071 there"),
        ("kitti", DataInfo(HDL64, {}, {"test": 500}, folds=Folds(("00", "42"), ("42",))), "is tested on 42, which"),
        ("kitti", DataInfo(OUSTER, {}, {"test": 4071}, folds=Folds(("00", "08"), ("08",))), "beams are at degrees of"),
        ("kitti", DataInfo(MAP, {}, {"test": 4071}, folds=Folds(("00", "08"), ("08",))), "its classes are"),
    ],
)
def test_a_set_of_ones_own_in_a_published_layout_gets_no_rows(config: str, info: DataInfo, reason: str | None) -> None:
    """Classes, sensor and the number of test samples decide."""
    path = "segment/semantic_kitti_salsanext" if config == "kitti" else f"detect/{config}"
    read = read_config(CONFIGS / f"{path}.yaml")
    figures = {"miou": 0.5, "ap": 0.3, "mr2": 0.6}
    found = list_published(read.data, info, figures, model=read.model)
    told = describe_foreign_data(read.data, info)
    if reason is None:
        assert (told, len(found) > 5) == (None, True)
    else:
        assert found == []
        assert told is not None
        assert reason in told


def test_sources_are_papers_and_repositories() -> None:
    """What we wrote down for ourselves is no source; PointNet's rows state what its paper does."""
    assert not [row for row in rows() if "spec" in row["source"] or "not stated" in row["protocol"].values()]
    of_pointnet = [row for row in rows() if row["data"] == "modelnet40" and row["who"].startswith("PointNet")]
    stated = {row["source"]: row["protocol"] for row in of_pointnet}
    assert stated["Qi et al. 2017"]["points"] == 1024
    assert stated["yanx27/Pointnet_Pointnet2_pytorch"]["epochs"] == 200


def test_voted_and_averaged_figures_stand_beside_those_made_alike() -> None:
    figures = {"overall_accuracy": 0.92, "overall_accuracy_vote10": 0.93}
    found = beside("classify/modelnet40_point_bert.yaml", figures)
    here = {entry["metrics"]["overall_accuracy"]: entry["here"]["overall_accuracy"] for entry in found}
    assert (here[0.9267], here[0.9324]) == (0.92, 0.93)
    first, *_ = beside("pose/icvl_v2v.yaml", {"mean_error_mm": 9.0, "mean_error_mm_ensemble10": 8.0})
    assert first["here"] == {"mean_error_mm": 8.0}


def test_a_contrast_run_stands_beside_probes_with_the_whole_protocol() -> None:
    found = beside("contrast/modelnet40_crosspoint_cpu.yaml", {"probe_svm_accuracy": 0.8})
    paper = next(entry for entry in found if "DGCNN (paper)" in entry["who"])["protocol"]
    assert (paper["encoder"], paper["pre-training"], paper["pairs per step"]) == ("dgcnn", "shapenet_render", 20)


def test_nothing_fits_other_metrics_or_data() -> None:
    assert beside("classify/modelnet40_dgcnn.yaml", {"other": 0.9}) == []
    assert beside("classify/synthetic_shapes_dgcnn.yaml", {"overall_accuracy": 0.9}) == []
    info = DataInfo({}, {})
    assert explain_no_rows(ComponentConfig("modelnet40"), info, ["x"]) == (
        "the published results on 'modelnet40' have other metrics than x"
    )
    assert "there are no published results on 'concat'" in explain_no_rows(ComponentConfig("concat"), info, ["x"])


def test_the_recipe_to_the_paper_is_told_in_the_words_of_the_published_row() -> None:
    config = read_config(CONFIGS / "contrast" / "shapenet_render_crosspoint_dgcnn.yaml")
    stage = preprocessing_signature(
        config, DataInfo({}, {"points": Field("points 3", "float32")}, clouds=CloudInputSpec(2048))
    )
    paper = published_results._read_table()["protocols"]["crosspoint"]
    assert format_setting(to_plain(config.losses)) == paper["losses"]
    assert format_setting(stage["training"]) == paper["training transforms of points"]
    assert format_setting(stage["training_images"]) == paper["training transforms of images"]
    assert (stage["num_points"], config.train.batch_size) == (paper["points in pre-training"], paper["pairs per step"])


def test_figures_are_printed_in_their_unit() -> None:
    assert format_figure({"miou": 0.5}, "miou") == "50.00"
    assert format_figure({"mean_error_mm": 7.59}, "mean_error_mm") == "7.59"
    assert format_figure({"ap": 0.384, "ap_to": 0.387}, "ap") == "38.40 to 38.70"
    assert format_figure({"a": 0.9, "a_std": 0.02}, "a") == "90.00 +- 2.00"


# --- the verbs ------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return copy_run("plain", tmp_path)


def test_on_synthetic_data_one_line_says_that_nothing_is_published(run: Path, tmp_path: Path) -> None:
    _, out, err = succeed("evaluate", run, "--against", "published", "--device", "cpu", "--json", tmp_path / "a.json")
    assert "published figures" not in out
    (line,) = [line for line in err.splitlines() if "published" in line]
    assert line.startswith(
        "--against published: there are no published results on 'synthetic_shapes'; the table has citypersons"
    )
    assert json.loads((tmp_path / "a.json").read_text())["published"] == []


def test_evaluate_and_train_print_the_rows_that_fit(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"who": "Others", "source": "a paper", "data": "synthetic_shapes", "metrics": {"overall_accuracy": 0.75}}
    row |= {"protocol": {"model": read_config(run / "config.yaml").model.name, "epochs": 77}, "unverified": "all of it"}
    monkeypatch.setattr(published_results, "_read_table", lambda: {"protocols": {}, "samples": {}, "rows": [row]})
    asked = (
        ["evaluate", run, "--against", "published"],
        ["train", run / "config.yaml", "train.steps=1", "--no-check", "--out", tmp_path / "new"],
    )
    for number, words in enumerate(asked):
        _, out, err = succeed(*words, "--device", "cpu", "--json", tmp_path / f"{number}.json")
        assert "published figures on this data set" in out
        assert "75.00" in out
        assert "epochs 77" in err
        assert "Others (a paper): unverified: all of it" in err
        (entry,) = json.loads((tmp_path / f"{number}.json").read_text())["published"]
        assert entry["metrics"] == {"overall_accuracy": 0.75}
    assert "published" not in json.loads((tmp_path / "new" / "final.json").read_text())
    assert json.loads((tmp_path / "new" / "published.json").read_text())["rows"] == [entry]
    assert not (run / "published.json").exists(), "nothing is published on drawn clouds"
    assert "published figures" not in succeed("evaluate", run, "--device", "cpu").out


def test_against_something_else_is_refused(run: Path) -> None:
    code, _, err = run_here("evaluate", run, "--against", "paper")
    assert (code, err) == (2, "error: --against paper: must be published\n")
