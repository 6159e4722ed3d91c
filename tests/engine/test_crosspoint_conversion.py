"""CrossPoint's files and those of image networks as runs: the authors' outputs come back, and all else is told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sightline
from sightline.contract import registry
from sightline.contract.errors import CheckpointError, ConfigError
from sightline.contract.types import ComponentConfig, DataInfo, Field
from sightline.published.translation import published_name
from sightline.runs.weights import load_weights
from tests.command import succeed
from tests.engine.published_weights import FactsAlone, Fifty, convert_state, registered, saved
from tests.golden_parity import OUTPUT_BOUND, assert_near_largest, cloud_inputs, load_golden
from tests.models.test_image_encoders import SIZES

IMAGES = {"vit_tiny": "timm_vit_tiny", "resnet18": "torchvision_resnet18"}


class Thousand(FactsAlone):
    """Images of a thousand classes. Source: this test."""

    def __init__(self, *, split: str) -> None:
        names = tuple(f"class_{number}" for number in range(1000))
        fields = {"image": Field("height width channels", "uint8"), "label": Field("", "int64")}
        self.info = DataInfo(facts={"num_classes": 1000, "class_names": names}, fields=fields)


@pytest.fixture(autouse=True)
def _sets() -> Iterator[None]:
    with registered(registry.data, thousand=Thousand, fifty=Fifty):
        yield


def published_state(layout: str, model: torch.nn.Module) -> dict[str, Tensor]:
    """A model's own weights under the names of a layout that has one name for each."""
    return {published_name(name, layout): value for name, value in model.state_dict().items()}


def image_classifier(encoder: str, **arguments: Any) -> torch.nn.Module:
    return sightline.build_model("image_classifier", num_classes=1000, images={"name": encoder, **arguments})


# --- the authors' numbers --------------------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "layout", "parameters"),
    [
        ("crosspoint_cls", "crosspoint_cls", 2_980_480),
        pytest.param("crosspoint_ddp_cls", "crosspoint_cls", 2_980_480, marks=pytest.mark.long),
        pytest.param("crosspoint_seg_pretrain", "crosspoint_seg", 2_341_001 - 1_408, marks=pytest.mark.long),
        ("crosspoint_ddp_seg_pretrain", "crosspoint_seg", 2_341_001 - 1_408),
    ],
)
def test_pre_trained_branches_become_runs_with_the_authors_outputs(
    shared: Path, tmp_path: Path, name: str, layout: str, parameters: int
) -> None:
    golden = load_golden(shared, name)
    state = {f"module.{key}": value for key, value in golden.state().items()}
    precision = ("train.precision=float64",)
    converted = convert_state(tmp_path, state, layout, data_name="synthetic_shapes", overrides=precision)
    lineage = converted.lineage
    assert (lineage["model"], lineage["parameters"]) == ("intrapoint", parameters)
    assert lineage["from_shapes"] == {"in_channels": 3, "points.embedding": 1024, "embedding": 256, "hidden": 1024}
    assert lineage["assumed"] == {"points.num_neighbours": 15}
    assert lineage["unused"] == ({} if layout == "crosspoint_cls" else {f"bn{number}.*": 5 for number in range(7, 11)})
    assert "trained with y up, 'synthetic_shapes' has z up" in converted.notes[0]

    run = sightline.load_run(tmp_path / "run")
    assert run.config.task.name == "contrast"
    points = golden.tensor("in.x").mT
    with torch.no_grad():
        feature = run.model.encode(points=points)
        outputs = {"feat": feature, "proj": run.model.points_head(feature)}
    for label, found in outputs.items():
        assert_near_largest(found, golden.tensor(f"eval.out.{label}"), OUTPUT_BOUND, label)


@pytest.mark.shared
def test_both_branches_in_one_file_become_a_run(shared: Path, tmp_path: Path) -> None:
    golden = load_golden(shared, "crosspoint_step")
    overrides = ("train.precision=float64", "model.points.num_neighbours=10", f"data.root={tmp_path / 'none'}")
    converted = convert_state(tmp_path, golden.state(), "crosspoint_cls_resnet18", overrides=overrides)
    assert converted.notes[0].startswith("shapenet_render: its facts are the published ones")
    assert converted.lineage["parameters"] == golden.info["param_count"]
    assert converted.lineage["assumed"] == {}
    run = sightline.load_run(tmp_path / "run")
    given = {"points": "x", "other_points": "view2", "image": "image"}
    with torch.no_grad():
        found = run.model(**{field: golden.tensor(f"in.{theirs}") for field, theirs in given.items()})
    rows = {"proj": torch.cat([found["first"], found["second"]]), "image_proj": found["pictured"]}
    for label, value in rows.items():
        assert_near_largest(value, golden.tensor(f"eval.out.{label}"), OUTPUT_BOUND, label)


@pytest.mark.shared
def test_a_fine_tuned_file_becomes_a_run_on_parts(shared: Path, tmp_path: Path) -> None:
    golden = load_golden(shared, "crosspoint_seg_finetune")
    overrides = ("train.precision=float64", "model.num_neighbours=15")
    converted = convert_state(tmp_path, golden.state(), "crosspoint_parts", data_name="fifty", overrides=overrides)
    assert converted.lineage["parameters"] == 1_460_361
    assert converted.lineage["unused"] == {"inv_head.*": 9}
    with torch.no_grad():
        logits = sightline.load_run(tmp_path / "run").model(**cloud_inputs(golden))["logits"]
    assert_near_largest(logits.mT, golden.tensor("eval.out.logits"), OUTPUT_BOUND, "logits")


@pytest.mark.shared
def test_a_converted_run_starts_fine_tuning(shared: Path, tmp_path: Path) -> None:
    """All tensors of the encoder find their place in the network for parts; what is left is its head."""
    state = load_golden(shared, "crosspoint_seg_pretrain").state()
    convert_state(tmp_path, state, "crosspoint_seg", data_name="synthetic_shapes")
    encoder = sightline.load_run(tmp_path / "run").model.points
    model = sightline.build_model("dgcnn_parts", num_classes=50, in_channels=3, num_categories=16)
    report = load_weights(model, encoder.state_dict(), may_be_missing=("category", "join", "head"))
    assert report.matched == len(encoder.state_dict())
    assert {name.split(".")[0] for name in report.missing} == {"category", "join", "head"}
    assert not report.unexpected


@pytest.mark.shared
@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ("model.points.name=pointnet",),
            "model.points: is 'pointnet', the layout 'crosspoint_cls' is of 'dgcnn'; set",
        ),
        (("model.points.num_neighbors=5",), "model.points.num_neighbors: 'dgcnn' has no such argument; did you mean"),
        (("model.name=dgcnn",), "the config's model is 'dgcnn', the layout 'crosspoint_cls' is of 'intrapoint'"),
    ],
)
def test_a_config_that_contradicts_the_weights_is_refused(
    shared: Path, tmp_path: Path, overrides: tuple[str, ...], told: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        convert_state(tmp_path, load_golden(shared, "crosspoint_cls").state(), "crosspoint_cls", overrides=overrides)
    assert told in str(caught.value)
    assert not (tmp_path / "run").exists()


# --- image networks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", IMAGES)
def test_image_networks_come_back_with_their_head(tmp_path: Path, encoder: str) -> None:
    layout, model = IMAGES[encoder], image_classifier(encoder).eval()
    converted = convert_state(tmp_path, published_state(layout, model), layout, data_name="thousand")
    assert (converted.notes, converted.lineage["fresh"], converted.lineage["assumed"]) == ((), [], {})
    assert converted.lineage["parameters"] == SIZES[encoder][0] + 1000 * (SIZES[encoder][1] + 1)
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(
            sightline.load_run(tmp_path / "run").model(image=image)["logits"], model(image=image)["logits"]
        )


def test_sizes_of_a_vision_transformer_are_seen_in_its_weights(tmp_path: Path) -> None:
    state = published_state("timm_vit_tiny", image_classifier("vit_tiny", size_px=96, patch_px=32))
    assert state["pos_embed"].shape == (1, 10, 192)
    converted = convert_state(tmp_path, state, "timm_vit_tiny", data_name="thousand")
    assert {"images.size_px": 96, "images.patch_px": 32}.items() <= converted.lineage["from_shapes"].items()
    assert sightline.load_run(tmp_path / "run").config.transforms.evaluate[0].arguments == {"size_px": 96}
    (tmp_path / "other").mkdir()
    with pytest.raises(CheckpointError, match="another shape than this model of the layout 'timm_vit_small'"):
        convert_state(tmp_path / "other", state, "timm_vit_small", data_name="thousand")


def test_a_head_of_other_classes_is_left_out_and_told(tmp_path: Path) -> None:
    """As when a network is taken to another task: its encoder is whole, its head is new, and both are said."""
    model = image_classifier("resnet18")
    file = saved(tmp_path / "a.pth", published_state("torchvision_resnet18", model))
    succeed(
        "weights", "convert", file, "--layout", "torchvision_resnet18", "--to", tmp_path / "run",
        "--json", tmp_path / "out.json",
    )  # fmt: skip
    reason = (
        "the file's head of 1000 classes is left out: that of the 12 classes of 'synthetic_shapes' is made from seed 0"
    )
    assert json.loads((tmp_path / "out.json").read_text())["notes"][0].startswith(f"{reason}; train it")
    run = sightline.load_run(tmp_path / "run")
    assert run.model.head.weight.shape == (12, 512)
    own = model.images.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in run.model.images.state_dict().items())

    target = registry.models.build(
        ComponentConfig("crosspoint", {"points": {"name": "dgcnn"}, "images": {"name": "resnet18"}}),
        facts={"in_channels": 3},
    )
    report = load_weights(target, run.model.state_dict(), modules="images")
    assert report.matched == report.total == len(own)


def test_a_file_older_than_the_counts_of_batch_norms_is_converted(tmp_path: Path) -> None:
    """torchvision's ResNets were saved before torch 0.4.1, whose batch norms were the first to count batches."""
    state = published_state("torchvision_resnet18", image_classifier("resnet18"))
    old = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    assert len(old) == len(state) - 20
    convert_state(tmp_path, old, "torchvision_resnet18", data_name="thousand")
    norm = sightline.load_run(tmp_path / "run").model.images.stem.norm
    assert torch.equal(norm.running_var, state["bn1.running_var"].to(norm.running_var))
    assert norm.num_batches_tracked == 0
