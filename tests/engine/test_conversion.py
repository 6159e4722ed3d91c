"""Published weights as runs: outputs of the authors' own code come back, whatever data lies there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import sightline
from sightline.areas.clouds.sets.modelnet import ModelNet40
from sightline.areas.pose.sets.hand_sets import MsraHands
from sightline.areas.scenes import point_transformer
from sightline.contract import registry
from sightline.contract.errors import ConfigError
from sightline.contract.types import DataInfo, Field
from sightline.runs import checkpoint
from tests.command import run_here, succeed
from tests.data.depth.depth_trees import no_progress, write_msra
from tests.engine.published_weights import FactsAlone, Fifty, convert_state, registered, saved, small_state
from tests.golden_parity import OUTPUT_BOUND, assert_near_largest, cloud_inputs, load_golden, stored_part
from tests.models.test_point_transformer import padded_as_theirs, ragged_input
from tests.published_layouts import MODELS


class Case(NamedTuple):
    """A golden file, the layout of its weights, its sizes, and what its constructor had that no tensor shows."""

    golden: str
    layout: str
    num_classes: int = 40
    in_channels: int = 3
    given: tuple[str, ...] = ()


SCENES = "postech_point_transformer_seg"
PRETRAINED = "lulutang0608_point_bert_pretrained"
"""Without a head, tested in test_point_bert_conversion.py."""
CASES = [
    Case("dgcnn_cls_antao", "antao97_dgcnn_cls"),
    Case("dgcnn_cls_wang", "wangyueft_dgcnn_cls", 15, given=("model.num_neighbours=10",)),
    Case("pointnet_simple_wang", "wangyueft_pointnet"),
    Case("pointnet_cls_xyz", "yanx27_pointnet_cls"),
    Case("pointnet_cls_normal", "yanx27_pointnet_cls", 15, 6),
    Case("pct_cls", "strawberry_pct_cls"),
    Case("pct_cls_posenc", "strawberry_pct_cls_new", 15),
    Case("pct_menghao_sjtu", "qq456cvb_pct_cls", 40, 6),
    Case("pt_sjtu_cls_full", "qq456cvb_point_transformer_cls", 40, 6),
    Case("pointnet2_ssg_cls_xyz", "yanx27_pointnet2_ssg_cls"),
    Case("pointnet2_ssg_cls_normal", "yanx27_pointnet2_ssg_cls", 40, 6),
    Case("pointnet2_msg_cls", "yanx27_pointnet2_msg_cls"),
    Case("pointbert_cls_full", "lulutang0608_point_bert_cls"),
]
OF_POINTS = [
    Case("dgcnn_partseg_antao", "antao97_dgcnn_parts", 50, given=("model.num_neighbours=20",)),
    Case("dgcnn_semseg_antao", "antao97_dgcnn_scenes", 13, 9),
    Case("pt_sjtu_partseg_full", "qq456cvb_point_transformer_parts", 50, 6, ("data.has_normals=true",)),
    Case("pct_partseg_jittor", "menghaoguo_pct_parts", 50),
    Case("pointnet_partseg", "yanx27_pointnet_parts", 50),
    Case("pointnet_semseg", "yanx27_pointnet_scenes", 13, 9),
    Case("pointnet2_ssg_partseg", "yanx27_pointnet2_ssg_parts", 50),
    Case("pointnet2_ssg_semseg", "yanx27_pointnet2_ssg_scenes", 13, 9),
    Case("pointbert_partseg", "lulutang0608_point_bert_parts", 50),
]
LARGE = {
    *("pct_menghao_sjtu", "pt_sjtu_cls_full", "pt_sjtu_partseg_full", "pointbert_cls_full", "pointbert_partseg"),
    *("pointnet2_ssg_cls_normal", "pointnet2_msg_cls"),
    *("pointnet_cls_normal", "pct_cls_posenc", "pointnet2_ssg_semseg"),
}
"""Take up to seconds each, and their networks have tests of their own in tests/models."""


def params_of(cases: Sequence[Case]) -> list[Any]:
    return [pytest.param(case, id=case.golden, marks=[pytest.mark.long] * (case.golden in LARGE)) for case in cases]


class Fifteen(FactsAlone):
    """Fifteen classes, with or without normals. Source: this test."""

    def __init__(self, *, split: str, has_normals: bool = False) -> None:
        names = ("points", *(("normals",) if has_normals else ()))
        self.info = DataInfo(
            facts={
                "num_classes": 15,
                "class_names": tuple(f"class_{i}" for i in range(15)),
                "in_channels": 3 * len(names),
                "up_axis": "z",
            },
            fields={name: Field("points 3", "float32") for name in names} | {"label": Field("", "int64")},
            features=names[1:],
        )


class Thirteen(FactsAlone):
    """Coloured rooms of thirteen classes, ragged; on request with the place of each point. Source: this test."""

    def __init__(self, *, split: str, has_place: bool = False) -> None:
        features = ("colours", *(("normalised_position",) if has_place else ()))
        names = tuple(f"class_{i}" for i in range(13))
        of_points = {name: Field("points 3", "float32", collate="concatenate") for name in ("points", *features)}
        self.info = DataInfo(
            facts={"num_classes": 13, "class_names": names, "in_channels": 3 + 3 * len(features), "up_axis": "z"},
            fields=of_points | {"label": Field("points", "int64", collate="concatenate")},
            features=features,
        )


@pytest.fixture(autouse=True)
def _sets() -> Iterator[None]:
    """Data sets of other classes while a test runs."""
    with registered(registry.data, fifteen=Fifteen, fifty=Fifty, thirteen=Thirteen):
        yield


def data_of(case: Case, tmp_path: Path) -> dict[str, Any]:
    """The data set of a case's classes; ModelNet40 need not be there."""
    if case.num_classes == 40:
        return {"overrides": (f"data.root={tmp_path / 'none'}", *case.given)}
    has_normals = f"data.has_normals={str(case.in_channels == 6).lower()}"
    return {"data_name": "fifteen", "overrides": (*case.given, has_normals)}


@pytest.mark.shared
@pytest.mark.parametrize("case", params_of(CASES))
def test_converted_weights_give_the_outputs_of_the_authors_code(shared: Path, tmp_path: Path, case: Case) -> None:
    golden = load_golden(shared, case.golden)
    options = data_of(case, tmp_path)
    options["overrides"] += ("train.precision=float64",)
    layout = case.layout if "pct" in case.layout else None  # two PCTs have the same names and shapes
    converted = convert_state(tmp_path, golden.state(), layout, **options)
    sizes = {"num_classes": case.num_classes, "in_channels": case.in_channels}
    assert sizes.items() <= converted.lineage["from_shapes"].items()
    if "param_count" in golden.info:
        assert converted.lineage["parameters"] == golden.info["param_count"]

    run = sightline.load_run(tmp_path / "run")
    x = golden.tensor("in.x")
    channels = x if x.shape[-1] == case.in_channels else x.mT
    with torch.no_grad():
        found = run.model(points=channels[..., :3], features=channels[..., 3:] if case.in_channels > 3 else None)
    outputs: dict[str, Tensor] = {"logits": found["logits"], "logp": found["logits"].log_softmax(dim=1)}
    outputs["trans_feat"] = found.get("feature_transform", torch.empty(0))
    expected = {label.removeprefix("eval.out.") for label in golden.arrays if label.startswith("eval.out.")}
    known = expected & outputs.keys()
    assert known & {"logits", "logp"}, expected
    for name in known:
        assert_near_largest(outputs[name], golden.tensor(f"eval.out.{name}"), OUTPUT_BOUND, name)
    assert len(run.class_names) == case.num_classes


@pytest.mark.shared
@pytest.mark.parametrize("case", params_of(OF_POINTS))
def test_converted_weights_label_points_as_the_authors_code_does(shared: Path, tmp_path: Path, case: Case) -> None:
    """A run with the part metrics of the categories, or with those of a scene's classes, loaded back in float64."""
    golden, data_name = load_golden(shared, case.golden), "fifty" if case.num_classes == 50 else "thirteen"
    place = ("data.has_place=true",) if case.in_channels == 9 else ()
    overrides = ("train.precision=float64", *case.given, *place)
    converted = convert_state(tmp_path, golden.state(), case.layout, data_name=data_name, overrides=overrides)
    sizes = {"num_classes": case.num_classes, "in_channels": case.in_channels}
    assert sizes.items() <= converted.lineage["from_shapes"].items()
    assert converted.lineage["parameters"] == golden.info["param_count"]
    assert not converted.notes

    run = sightline.load_run(tmp_path / "run")
    assert run.config.task.name == "segment"
    assert [metric.name for metric in run.config.metrics] == ["part_iou" if case.num_classes == 50 else "iou"]
    assert len(run.class_names) == case.num_classes
    with torch.no_grad():
        logits = run.model(**cloud_inputs(golden))["logits"]
    known = {"logits": logits, "logp": logits.log_softmax(dim=-1)}
    compared = [name for name in known if f"eval.out.{name}" in golden.arrays]
    assert len(compared) == 1
    label = f"eval.out.{compared[0]}"
    if golden.info["eval_outputs"][label]["shape"][1] == case.num_classes:
        known = {name: value.mT.contiguous() for name, value in known.items()}
    assert_near_largest(stored_part(golden, label, known[compared[0]]), golden.tensor(label), OUTPUT_BOUND, label)


def test_normals_of_a_points_network_are_seen_in_its_weights(tmp_path: Path) -> None:
    """PointNet++ feeds every channel beside its place: 9 columns are 6 channels, which the plain recipe asks for."""
    layout = "yanx27_pointnet2_ssg_parts"
    state = small_state(layout, num_classes=50, in_channels=6, num_categories=16)
    with pytest.raises(ConfigError, match=r"have in_channels = 6, .*'fifty' has 3; .* data\.normals=file"):
        convert_state(tmp_path, state, layout, data_name="fifty")
    convert_state(tmp_path, state, layout, data_name="fifty", overrides=("data.has_normals=true",))
    assert sightline.load_run(tmp_path / "run").facts["in_channels"] == 6


@pytest.mark.parametrize(
    ("layout", "facts", "data"),
    [
        ("yanx27_pointnet_parts", {"num_classes": 50, "in_channels": 6, "num_categories": 16}, {"normals": "file"}),
        (
            "yanx27_pointnet_scenes",
            {"num_classes": 13, "in_channels": 9},
            {"colours": True, "normalised_position": True},
        ),
    ],
)
def test_weights_for_points_know_the_set_they_were_published_for(
    tmp_path: Path, layout: str, facts: dict[str, int], data: dict[str, Any]
) -> None:
    """ShapeNetPart's 50 parts and S3DIS's 13 classes, of sets that are not there, with the channels of the weights."""
    root = f"data.root={tmp_path / 'none'}"
    converted = convert_state(tmp_path, small_state(layout, **facts), layout, overrides=(root,))
    assert "its facts are the published ones" in converted.notes[0]
    run = sightline.load_run(tmp_path / "run")
    assert data.items() <= run.config.data.arguments.items()
    assert (len(run.class_names), run.facts["in_channels"]) == (facts["num_classes"], facts["in_channels"])
    assert run.class_names[0] in ("airplane_0", "ceiling")
    if "normals" in data:
        assert [transform.name for transform in run.transforms] == ["sample_points"]
    else:
        assert run.config.task.arguments["blocks"]["num_points"] == 4096


@pytest.mark.shared
def test_converted_weights_of_scenes_give_the_outputs_of_the_authors_code(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The golden clouds are smaller than the authors' neighbourhoods, so their rule for those is put in."""
    monkeypatch.setattr(point_transformer, "build_pyramid", padded_as_theirs)
    golden, precision = load_golden(shared, "pt_korea_seg_c6"), ("train.precision=float64",)
    converted = convert_state(tmp_path, golden.state(), SCENES, data_name="thirteen", overrides=precision)
    assert converted.lineage["from_shapes"] == {"num_classes": 13, "in_channels": 6}
    assert converted.lineage["parameters"] == golden.info["param_count"]
    run = sightline.load_run(tmp_path / "run")
    assert run.config.task.name == "segment"
    assert run.config.evaluate.metric == "miou"
    with torch.no_grad():
        logits = run.model(**ragged_input(golden))["logits"]
    assert_near_largest(logits.flatten()[::2], golden.tensor("eval.out.logits"), OUTPUT_BOUND, "logits")


def test_every_layout_has_a_case() -> None:
    tested_elsewhere = (
        *(
            "crosspoint_",
            "crowddet_",
            "darknet_",
            "dragonbook_",
            "frnet_",
            "lidar_bonnetal_",
            "odtask_",
            "salsanext",
            "timm_",
        ),
        *("minkowski_", "pointcept_", "spvnas_", "torch_pointcloud_", "torchvision_", "yolox"),
    )
    elsewhere = {name for name in MODELS if name.startswith(tested_elsewhere)}
    assert {case.layout for case in CASES + OF_POINTS} | {SCENES, PRETRAINED} == set(MODELS) - elsewhere


def test_what_is_written_is_a_run_and_tells_its_lineage(tmp_path: Path) -> None:
    state = small_state()
    file, target = saved(tmp_path / "a.pth", state), tmp_path / "runs" / "x"
    data = f"data.root={tmp_path / 'none'}"
    done = succeed("weights", "convert", file, "--to", target, data, "--json", tmp_path / "out.json")
    assert "no tensor shows model.dropout" in done.err
    lineage = json.loads((target / "lineage.json").read_text())
    assert lineage.items() <= json.loads((tmp_path / "out.json").read_text()).items()
    assert lineage["from_shapes"] == {"num_classes": 40, "in_channels": 3, "embedding": 8}
    assert (lineage["containers"], lineage["left_out"]) == (["model_state_dict"], ["epoch"])
    assert sorted(path.name for path in (target / "checkpoints").iterdir()) == ["best", "last", "step_00000000"]

    shown = run_here("show", target, "--json", tmp_path / "show.json")
    assert f"weights converted from {file}" in shown.err
    assert json.loads((tmp_path / "show.json").read_text())["lineage"] == lineage
    run = sightline.load_run(target, checkpoint="best")
    assert run.class_names == ModelNet40.expected_info().facts["class_names"]
    assert torch.equal(run.model.state_dict()["head.2.bias"], state["linear2.bias"])


def test_what_a_run_in_a_config_leaves_open_comes_from_the_weights(tmp_path: Path) -> None:
    config, target = tmp_path / "mine.yaml", tmp_path / "run"
    config.write_text(
        "data: {name: synthetic_shapes, train_size: 24, test_size: 12, num_points: 32}\n"
        "model: {name: pointnet_plain, dropout: 0.25}\nlosses: [{name: cross_entropy}]\nmetrics: [{name: accuracy}]\n"
        "optimizer: {name: sgd, lr: 0.01, momentum: 0.9}\ntrain: {epochs: 1, batch_size: 8, ema_decay: 0.9}\n"
        "evaluate: {metric: overall_accuracy}\nlog: {tensorboard: false}\n"
    )
    converted = convert_state(tmp_path, small_state(num_classes=12), "wangyueft_pointnet", config_path=config)
    assert converted.lineage["assumed"] == {}
    assert "trained with y up, 'synthetic_shapes' has z up" in converted.notes[0]
    run = sightline.load_run(target)
    assert {"embedding": 8, "dropout": 0.25}.items() <= run.config.model.arguments.items()
    assert "class_counts" in run.facts

    evaluated = run_here("evaluate", target, "--device", "cpu", "--json", tmp_path / "e.json")
    assert (evaluated.code, "weights converted from" in evaluated.err) == (0, True), evaluated.err
    assert json.loads((tmp_path / "e.json").read_text())["lineage"]["layout"] == "wangyueft_pointnet"

    words = ("--no-check", "--device", "cpu", "--out")
    again = succeed("train", target, "optimizer.lr=1e-12", *words, tmp_path / "tuned")
    assert "init from" in again.err
    before, after = (checkpoint.load(path).model for path in (target, tmp_path / "tuned"))
    difference = (before["head.2.weight"] - after["head.2.weight"]).abs().max().item()
    assert difference < 1e-9, "at a rate of next to nothing the weights stay where they were taken from"

    resumed = succeed("train", target / "config.yaml", *words, target, "--resume", "auto")
    assert "resumed at step 0" in resumed.err
    assert not torch.equal(before["head.2.weight"], checkpoint.load(target).model["head.2.weight"])


@pytest.mark.parametrize("layout", ["wangyueft_pointnet", "dragonbook_v2v"])
def test_what_is_written_depends_on_no_data_that_lies_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    """Nothing, a set of other joints and points prepared from a few files, and a folder of something else."""
    facts = {"num_joints": 21} if layout == "dragonbook_v2v" else {"num_classes": 40}
    state = small_state(layout, **facts)
    places = {name: tmp_path / name for name in ("nothing", "prepared", "broken")}
    write_msra(tmp_path / "msra" / "cvpr15_MSRAHandGestureDB", {"P0/1": 3, "P1/1": 2})
    MsraHands.prepare(
        source=tmp_path / "msra", target=places["prepared"] / "msra_hands", name="msra_hands", progress=no_progress
    )
    for name in ("msra_hands", "modelnet40"):
        (places["broken"] / name).mkdir(parents=True)
        (places["broken"] / name / "manifest.json").write_text("[")
    made = {}
    for name, place in places.items():
        monkeypatch.setenv("SIGHTLINE_DATA", str(place))
        (note,) = convert_state(tmp_path, state, layout).notes[:1]
        assert "its facts are the published ones, whether or not it is prepared here" in note
        files = sorted(path for path in (tmp_path / "run").rglob("*") if path.is_file())
        made[name] = {
            path.relative_to(tmp_path): path.read_bytes() for path in files if path.name != "environment.json"
        }
        shutil.rmtree(tmp_path / "run")
    assert made["nothing"] == made["prepared"] == made["broken"]
