"""CrossPoint's networks against their published sizes and the authors' code: branches, both losses, a whole step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sightline.areas.clouds.models.dgcnn import DGCNNEncoder, DGCNNParts, DGCNNPartsEncoder
from sightline.areas.contrast.crosspoint import CrossPoint, IntraPoint, projection_head
from sightline.parts.losses.classification import CrossEntropy
from sightline.parts.losses.contrast import CrossModal, IntraModal, nt_xent
from sightline.parts.models.resnet import ResNet18Encoder, ResNet50Encoder
from sightline.published.translation import convert_state_dict, translate_key, unused_names
from tests.golden_parity import (
    Golden,
    assert_gradients_and_buffers,
    assert_near_largest,
    assert_outputs,
    cloud_inputs,
    each_mode,
    load_golden,
    stored_part,
)
from tests.marks import long_but
from tests.models.small_models import small_model

TEMPERATURE = 0.1
SEGMENTATION = 2_341_001 - 2 * (64 + 256 + 256 + 128)
"""The published count less the batch norms bn7 to bn10, which that network makes for a head that it does not have."""


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def halves_loss(rows: Tensor) -> Tensor:
    """NT-Xent where row i and row i + B/2 are a pair, as the files have it."""
    return nt_xent(*rows.chunk(2), temperature=TEMPERATURE).mean()


# --- the authors' numbers --------------------------------------------------------------------------------------------


def used(golden: Golden, layout: str) -> Golden:
    """Without the gradients and statistics of what the reference makes and never uses; it has no such gradient."""
    info, arrays = dict(golden.info), dict(golden.arrays)
    for kind, tables in (("grad", ("grad_norm", "grad_first8")), ("buffer", ("buffer_norm", "buffer_first8"))):
        names = golden.info[f"{kind}_names"]
        unused = unused_names(names, layout)
        kept = np.array([name not in unused for name in names])
        info[f"{kind}_names"] = [name for name in names if name not in unused]
        assert kind == "buffer" or np.isnan(arrays["train.grad_norm"][~kept]).all()
        arrays |= {f"train.{table}": arrays[f"train.{table}"][kept] for table in tables}
    return Golden(info, arrays)


BRANCHES: dict[str, tuple[str, Callable[..., nn.Module]]] = {
    "crosspoint_cls": ("crosspoint_cls", DGCNNEncoder),
    "crosspoint_ddp_cls": ("crosspoint_cls", DGCNNEncoder),
    "crosspoint_seg_pretrain": ("crosspoint_seg", DGCNNPartsEncoder),
    "crosspoint_ddp_seg_pretrain": ("crosspoint_seg", DGCNNPartsEncoder),
}
"""Per file: the layout and the encoder of its point branch."""


@pytest.mark.shared
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", BRANCHES)
def test_point_branches_agree_with_the_reference(shared: Path, name: str, fused: bool) -> None:
    layout, encoder = BRANCHES[name]
    golden = load_golden(shared, name)
    model = IntraPoint(points=encoder(in_channels=3, num_neighbours=15, fused=fused)).double()
    assert num_parameters(model) == {2_341_001: SEGMENTATION}.get(golden.info["param_count"], 2_980_480)
    model.load_state_dict(convert_state_dict(golden.state(), layout))
    points = golden.tensor("in.x").mT

    for mode in each_mode(model):
        with torch.set_grad_enabled(mode == "train"):
            feature = model.encode(points=points)
            projected = model.points_head(feature)
        outputs = {"feat": feature, "proj": projected}
        if f"{mode}.out.x" in golden.arrays:
            outputs["x"] = feature
        assert_outputs(golden, mode, outputs, halves_loss(projected))
    halves_loss(projected).backward()
    assert_gradients_and_buffers(used(golden, layout), model, lambda key: translate_key(key, layout))


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "encoder"),
    long_but(
        [("crosspoint_resnet18", ResNet18Encoder)],
        [("crosspoint_resnet18", ResNet18Encoder), ("crosspoint_resnet50", ResNet50Encoder)],
    ),
)
def test_image_branches_agree_with_the_reference(shared: Path, name: str, encoder: Callable[[], nn.Module]) -> None:
    golden, layout = load_golden(shared, name), name.replace("crosspoint", "crosspoint_cls")
    images = encoder()
    model = nn.ModuleDict(
        {"images": images, "images_head": projection_head(images.feature_width, 512, 256, has_bias=False)}
    ).double()
    assert num_parameters(model) == golden.info["param_count"]
    model.load_state_dict(
        convert_state_dict({f"img_model.{key}": value for key, value in golden.state().items()}, layout)
    )
    seen: dict[str, Tensor] = {}
    taps = {"after stem (conv1+bn)": images.stem.norm, "layer1": images.stages[0], "layer3": images.stages[2]}
    for label, module in taps.items():
        module.register_forward_hook(lambda m, given, value, label=label: seen.update({label: value} | seen))

    for mode in each_mode(model):
        with torch.set_grad_enabled(mode == "train"):
            feature = images.encode(image=golden.tensor("in.x"))
            seen.setdefault("pooled (B,C,1,1)", feature[..., None, None])
            projected = model["images_head"](feature)
        assert_outputs(golden, mode, {"proj": projected}, halves_loss(projected))
    halves_loss(projected).backward()
    assert_gradients_and_buffers(golden, model, lambda key: translate_key(f"img_model.{key}", layout))
    for mid in golden.info["eval_mids"]:
        value = seen[mid.removeprefix("eval.mid.")]
        assert_near_largest(stored_part(golden, mid, value), golden.tensor(mid), 1e-10, mid)


@pytest.mark.shared
@pytest.mark.parametrize("fused", [True, False])
def test_a_whole_step_agrees_with_the_reference(shared: Path, fused: bool) -> None:
    """Both views in one pass, the image branch, both losses and their sum, every gradient and running statistic."""
    golden, layout = load_golden(shared, "crosspoint_step"), "crosspoint_cls_resnet18"
    points = DGCNNEncoder(in_channels=3, num_neighbours=10, embedding=256, fused=fused)
    model = CrossPoint(points=points, images=ResNet18Encoder(), hidden=256).double()
    assert num_parameters(model) == golden.info["param_count"]
    model.load_state_dict(convert_state_dict(golden.state(), layout))
    intra, cross = IntraModal(temperature=TEMPERATURE), CrossModal(temperature=TEMPERATURE)
    fields = {"points": "x", "other_points": "view2", "image": "image"}
    given = {field: golden.tensor(f"in.{theirs}") for field, theirs in fields.items()}

    for mode in each_mode(model):
        with torch.set_grad_enabled(mode == "train"):
            found = model(**given)
        imid = intra(first=found["first"], second=found["second"]).mean()
        cmid = cross(**found).mean()
        rows = {"proj": torch.cat([found["first"], found["second"]]), "image_proj": found["pictured"]}
        assert_outputs(golden, mode, rows | {"imid": imid, "cmid": cmid, "total": imid + cmid}, imid + cmid)
    (imid + cmid).backward()
    assert_gradients_and_buffers(golden, model, lambda key: translate_key(key, layout))


@pytest.mark.shared
@pytest.mark.parametrize("fused", [True, False])
def test_a_fine_tuned_file_agrees_with_the_reference(shared: Path, fused: bool) -> None:
    """Their network carries a projection head that nothing uses; ours is without it."""
    golden, layout = load_golden(shared, "crosspoint_seg_finetune"), "crosspoint_parts"
    model = DGCNNParts(num_classes=50, in_channels=3, num_categories=16, num_neighbours=15, fused=fused).double()
    projection = num_parameters(projection_head(1024, 1024, 256, has_bias=True))
    assert (golden.info["param_count"], num_parameters(model)) == (2_774_409, 1_460_361)
    assert projection == 2_774_409 - 1_460_361 == 1_314_048
    model.load_state_dict(convert_state_dict(golden.state(), layout))
    loss = CrossEntropy(num_classes=50, label_smoothing=0.2)
    given, label = cloud_inputs(golden), golden.tensor("in.label")
    for mode in each_mode(model):
        with torch.set_grad_enabled(mode == "train"):
            logits = model(**given)["logits"]
        mean_loss = loss(logits=logits, label=label) / loss.count(label=label)
        assert_outputs(golden, mode, {"logits": logits.mT}, mean_loss)
    mean_loss.backward()
    assert_gradients_and_buffers(used(golden, layout), model, lambda key: translate_key(key, layout))


# --- pre-training and fine-tuning ------------------------------------------------------------------------------------


@pytest.mark.shared
def test_our_encoder_takes_all_of_a_pre_trained_one(shared: Path) -> None:
    """Under our names, each tensor once: all that is missing is the category's layer and the head."""
    state = convert_state_dict(load_golden(shared, "crosspoint_seg_pretrain").state(), "crosspoint_seg")
    given = {name.removeprefix("points.") for name in state if name.startswith("points.")}
    own = DGCNNParts(num_classes=50, in_channels=3, num_categories=16).state_dict().keys()
    assert given < own
    assert {name.split(".")[0] for name in own - given} == {"category", "join", "head"}
    assert given == DGCNNPartsEncoder(in_channels=3).state_dict().keys()


# --- what the models promise -----------------------------------------------------------------------------------------


def test_both_views_share_their_batch_statistics() -> None:
    """In training one pass sees both: exchanging the views exchanges the outputs, and nothing else."""
    model = small_model("intrapoint").train()
    first, second = torch.rand(4, 32, 3).double(), torch.rand(4, 32, 3).double()
    one, other = model(points=first, other_points=second), model(points=second, other_points=first)
    torch.testing.assert_close(other["first"], one["second"], rtol=1e-10, atol=1e-10)
    alone = model.points_head(model.encode(points=first))
    assert not torch.allclose(alone, one["first"], rtol=0, atol=1e-6)


def test_probes_take_the_feature_before_the_head() -> None:
    model, points = small_model("crosspoint"), torch.rand(2, 32, 3).double()
    feature = model.encode(points=points)
    assert torch.equal(feature, model.points.encode(points=points))
    assert feature.shape[1] == model.feature_width == model.points.feature_width
