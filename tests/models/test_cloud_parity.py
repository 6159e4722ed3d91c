"""Networks over clouds against the authors' code: outputs, losses, gradients, running statistics, values inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from sightline.areas.clouds.models.dgcnn import DGCNN, DGCNNParts, DGCNNScenes
from sightline.areas.clouds.models.pct import PCT, PCTParts
from sightline.areas.clouds.models.point_bert import PointBERT, PointBERTParts
from sightline.areas.clouds.models.point_transformer_dense import DensePointTransformer
from sightline.areas.clouds.models.pointnet import PointNet, PointNetParts, PointNetPlain, PointNetScenes
from sightline.areas.clouds.models.pointnet2 import PointNet2, PointNet2MultiScale, PointNet2Parts, PointNet2Scenes
from sightline.layers.mlp import LinearNorm
from sightline.parts.losses.classification import CrossEntropy
from sightline.parts.losses.feature_transform import FeatureTransformPenalty
from sightline.published.translation import convert_state_dict, translate_key
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

Value = Callable[[nn.Module, Any, Any], Tensor]
"""A tensor from a module, its arguments and its output."""


def get_output(module: nn.Module, given: Any, value: Any) -> Tensor:
    return value[-1] if isinstance(value, tuple) else value


def norm_alone(module: nn.Module, given: Any, value: Any) -> Tensor:
    assert isinstance(module, LinearNorm)
    return value if module.training else LinearNorm.forward(module, *given)


def join(module: nn.Module, given: Any, value: Any) -> Tensor:
    whole, each = given
    return torch.cat([whole[:, None].expand(-1, each.shape[1], -1), each], dim=-1)


class Case(NamedTuple):
    """A golden file's network: how it is built, which values of it the file has, and which forms are compared.

    `taps` and `outputs` go from a label of the file, or its beginning, to a module's path and the value taken there.
    """

    kind: type[nn.Module]
    layout: str
    arguments: Mapping[str, Any]
    taps: Mapping[str, tuple[str, Value] | str] = {}
    outputs: Mapping[str, tuple[str, Value]] = {}
    smoothing: float = 0.0
    forms: tuple[bool | None, ...] = (True, False)
    long: tuple[bool | None, ...] = ()
    plain_alone: tuple[str, ...] = ()
    """Taps that the fused form does not have."""
    channels_last: tuple[str, ...] = ()
    """Beginnings of labels whose values the file has as we do, not with channels second."""
    untapped: tuple[str, ...] = ()
    """Beginnings of labels that are not compared."""


CLASSES, PARTS = {"num_classes": 40, "in_channels": 3}, {"num_classes": 50, "in_channels": 3, "num_categories": 16}
SCENES = {"num_classes": 13, "in_channels": 9}
ONLY_FUSED, NO_FORMS = (True,), (None,)
PCT_TAPS = {"group stage 1": "groups.0", "group stage 2": "groups.1", "fuse": "fuse", "linear1 raw": "head.0.linear"}
PCT_TAPS |= {f"attention layer {number}": f"attend.layers.{number - 1}" for number in (1, 4)}
PCT_SJTU_TAPS = {label: place for label, place in PCT_TAPS.items() if label not in ("linear1 raw", "attention layer 1")}
PCT_PARTS_TAPS = {"fuse": "fuse", "label embedding (B,64,1)": "category"}
PCT_PARTS_TAPS |= {f"attention layer {number}": f"attend.layers.{number - 1}" for number in (1, 4)}
PCT_SMALL = {"min_squared_norm": 1e-3}
EMBED = ("embed", norm_alone)
EDGES = {f"block{number}": f"levels.edges.{number - 1}.network.layers.1" for number in (1, 2)}
EDGES |= {"block3": "levels.edges.2.edge"}
LEVELS = {"conv6": ("levels.embed", norm_alone), **EDGES}
CENTRES = {f"sa{number} centres": (f"abstractions.{number - 1}", lambda _, given, value: value[0]) for number in (1, 2)}
FIRST_CENTRES = {"sa1 centres": CENTRES["sa1 centres"]}
POOLED = {"global": ("head", lambda _, given, value: given[0])}
COARSEST = ("propagations.0", lambda _, given, value: given[3])
BERT_SMALL = {"width": 96, "depth": 3, "num_heads": 4, "num_groups": 12, "group_size": 8, "drop_path": 0.0}
SMALL = {"num_blocks": (1, 1, 1), "num_neighbours": 8, "width": 64}
DENSE_CLASSES, DENSE_PARTS = "qq456cvb_point_transformer_cls", "qq456cvb_point_transformer_parts"
DENSE_TAPS = {"stem fc1": "encoder.embed", "block 0 out (B,N,32)": "encoder.levels.0.0"}
DENSE_TAPS |= {"block 1 out": "encoder.levels.1.0", "block last out": "encoder.levels.2.0"}
DENSE_PARTS_TAPS = {"bottom mlp fc2": "decoder.bottom", "up 1 out": "decoder.ups.0"}
DENSE_PARTS_TAPS |= {"last block out": "decoder.layers.1"}
INSIDE_GROUPS = ("sa1 last bn", "sa2 last bn", "sa3 last bn")
INSIDE_POINTNET = ("conv3+bn3", "bn1 after fc1")
BERT_TAPS = {"block 3": "trunk.blocks.3"}
BERT_TAPS |= {f"propagation_{number} last bn": f"propagations.{number}.layers.1.norm" for number in (0, 2)}
BERT_CLASS_TAPS = {"position code": "embed.position", "block 0": "trunk.blocks.0", "norm": "trunk.norm"}
BERT_CLASS_TAPS |= {"encoder tokens": "embed.patches"}
BERT_TAPS |= {"dgcnn_pro_2 (B,384,256)": "edges.1", "dgcnn_pro_1 (B,384,512)": "edges.0"}


def of_last_group(_: nn.Module, given: Any, value: Tensor) -> Tensor:
    return value.view(2, 16, 32, -1).transpose(1, 2)


LAST_GROUP = {"sa4 last bn": ("abstractions.3.groups.0.network.layers.-1.norm", of_last_group)}
PROPAGATED = {f"fp{3 - step} last bn": f"propagations.{step}.layers.-1.norm" for step in range(3)}
PROPAGATED_SCENES = {"fp4 last bn": "propagations.0.layers.-1.norm", "fp1 last bn": "propagations.3.layers.-1.norm"}
GOLDEN = {
    "pct_cls": Case(PCT, "strawberry_pct_cls", CLASSES | PCT_SMALL, PCT_TAPS, smoothing=0.2, long=(False,)),
    "pct_cls_posenc": Case(
        PCT,
        "strawberry_pct_cls_new",
        PCT_SMALL | {"num_classes": 15, "in_channels": 3, "codes_positions": True},
        PCT_TAPS,
        smoothing=0.2,
        forms=ONLY_FUSED,
    ),
    "pct_menghao_sjtu": Case(
        PCT,
        "qq456cvb_pct_cls",
        {"num_classes": 40, "in_channels": 6, "head_activation": "relu"},
        PCT_SJTU_TAPS,
        forms=ONLY_FUSED,
    ),
    "pct_partseg_jittor": Case(PCTParts, "menghaoguo_pct_parts", PARTS, PCT_PARTS_TAPS, smoothing=0.2),
    "dgcnn_cls_antao": Case(
        DGCNN,
        "antao97_dgcnn_cls",
        CLASSES | {"num_neighbours": 20, "embedding": 1024},
        {"conv5": EMBED},
        smoothing=0.2,
        untapped=("edge", "linear1"),
    ),
    "dgcnn_cls_wang": Case(
        DGCNN,
        "wangyueft_dgcnn_cls",
        {"num_classes": 15, "in_channels": 3, "num_neighbours": 10, "embedding": 256},
        {"conv5": EMBED},
        smoothing=0.2,
        untapped=("edge", "linear1"),
    ),
    "dgcnn_partseg_antao": Case(
        DGCNNParts,
        "antao97_dgcnn_parts",
        PARTS | {"num_neighbours": 20},
        LEVELS | {"transform 3x3 row-major (B,9)": "alignment", "conv10": "head.3", "label embedding": "category"},
        smoothing=0.2,
        plain_alone=tuple(EDGES),
    ),
    "dgcnn_semseg_antao": Case(
        DGCNNScenes,
        "antao97_dgcnn_scenes",
        SCENES | {"num_neighbours": 20, "first_graph": "normalised_position"},
        LEVELS,
        smoothing=0.2,
        plain_alone=tuple(EDGES),
    ),
    "pointnet_cls_xyz": Case(
        PointNet,
        "yanx27_pointnet_cls",
        CLASSES,
        {"input transform 3x3": "input_alignment"},
        forms=NO_FORMS,
        channels_last=("input",),
        untapped=INSIDE_POINTNET,
    ),
    "pointnet_cls_normal": Case(
        PointNet,
        "yanx27_pointnet_cls",
        {"num_classes": 15, "in_channels": 6},
        {"input transform 3x3": "input_alignment"},
        forms=NO_FORMS,
        channels_last=("input",),
        untapped=INSIDE_POINTNET,
    ),
    "pointnet_simple_wang": Case(
        PointNetPlain, "wangyueft_pointnet", CLASSES, smoothing=0.2, forms=NO_FORMS, untapped=("conv5", "linear1")
    ),
    "pointnet_partseg": Case(
        PointNetParts,
        "yanx27_pointnet_parts",
        PARTS,
        {"input transform": "input_alignment", "conv5+bn5": "encode.1", "bns3": "head.1.norm"},
        channels_last=("input",),
    ),
    "pointnet_semseg": Case(
        PointNetScenes, "yanx27_pointnet_scenes", SCENES, {"point features cat (B,1088,N)": ("join", join)}
    ),
    "pointnet2_ssg_cls_xyz": Case(
        PointNet2, "yanx27_pointnet2_ssg_cls", CLASSES, FIRST_CENTRES, POOLED, untapped=INSIDE_GROUPS, forms=ONLY_FUSED
    ),
    "pointnet2_ssg_cls_normal": Case(
        PointNet2,
        "yanx27_pointnet2_ssg_cls",
        CLASSES | {"in_channels": 6},
        FIRST_CENTRES,
        POOLED,
        untapped=INSIDE_GROUPS,
        long=(True,),
    ),
    "pointnet2_msg_cls": Case(
        PointNet2MultiScale,
        "yanx27_pointnet2_msg_cls",
        CLASSES,
        CENTRES,
        POOLED,
        forms=ONLY_FUSED,
        long=(True,),
    ),
    "pointnet2_ssg_partseg": Case(
        PointNet2Parts, "yanx27_pointnet2_ssg_parts", PARTS, PROPAGATED, {"global": COARSEST}
    ),
    "pointnet2_ssg_semseg": Case(
        PointNet2Scenes,
        "yanx27_pointnet2_ssg_scenes",
        SCENES,
        PROPAGATED_SCENES | LAST_GROUP,
        {"deepest": COARSEST},
        plain_alone=tuple(LAST_GROUP),
        long=(True,),
    ),
    "pt_sjtu_cls_small": Case(
        DensePointTransformer,
        DENSE_CLASSES,
        SMALL | {"num_classes": 10, "in_channels": 3, "per": "cloud"},
        DENSE_TAPS,
        channels_last=("",),
        untapped=("transition down 1", "block 1 attention"),
    ),
    "pt_sjtu_cls_full": Case(
        DensePointTransformer,
        DENSE_CLASSES,
        {"num_classes": 40, "in_channels": 6, "per": "cloud"},
        forms=ONLY_FUSED,
        long=(True,),
        untapped=("",),
    ),
    "pt_sjtu_partseg_small": Case(
        DensePointTransformer, DENSE_PARTS, SMALL | PARTS | {"in_channels": 6}, DENSE_PARTS_TAPS, channels_last=("",)
    ),
    "pt_sjtu_partseg_full": Case(
        DensePointTransformer, DENSE_PARTS, PARTS | {"in_channels": 6}, forms=(), untapped=("",)
    ),
    "pointbert_cls_full": Case(
        PointBERT,
        "lulutang0608_point_bert_cls",
        CLASSES | PCT_SMALL,
        BERT_CLASS_TAPS | {"last block": "trunk.blocks.11"},
        smoothing=0.2,
        forms=NO_FORMS,
        long=NO_FORMS,
        channels_last=("",),
        untapped=("centres",),
    ),
    "pointbert_cls_small": Case(
        PointBERT,
        "lulutang0608_point_bert_cls",
        PCT_SMALL | BERT_SMALL | {"num_classes": 15, "in_channels": 3},
        BERT_CLASS_TAPS | {"last block": "trunk.blocks.2"},
        smoothing=0.2,
        forms=NO_FORMS,
        channels_last=("",),
        untapped=("centres",),
    ),
    "pointbert_partseg": Case(
        PointBERTParts,
        "lulutang0608_point_bert_parts",
        PARTS | PCT_SMALL,
        BERT_TAPS,
        {"group_features": ("trunk.norm", lambda _, given, value: value[:, 1:])},
        forms=NO_FORMS,
        channels_last=("block 3",),
    ),
}
LARGEST = "pt_sjtu_partseg_full"
"""Its case is in tests/long/test_networks.py."""
OUTPUTS: dict[str, Callable[[Any], Tensor]] = {
    "logits": lambda found: found["logits"],
    "logp": lambda found: found["logits"].log_softmax(dim=-1),
    "trans_feat": lambda found: found["feature_transform"],
}


def channels_second(value: Tensor, shape: list[int]) -> Tensor:
    """Our values, channels last, in the shape of a file that has them second."""
    return value.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1).contiguous()


def tap(model: nn.Module, places: Mapping[str, tuple[str, Value] | str]) -> dict[str, list[Tensor]]:
    """What passes these places at each call from now on, by label."""
    seen: dict[str, list[Tensor]] = {label: [] for label in places}
    for label, place in places.items():
        path, value = (place, get_output) if isinstance(place, str) else place

        def keep(*call: Any, passed: list[Tensor] = seen[label], value: Value = value) -> None:
            passed.append(value(*call))

        module = model
        for step in path.split("."):
            module = module[int(step)] if step == "-1" else getattr(module, step)  # type: ignore[index]
        module.register_forward_hook(keep)
    return seen


def find_tap(taps: Mapping[str, Any], label: str) -> str | None:
    return next((tapped for tapped in taps if label.removeprefix("eval.mid.").startswith(tapped)), None)


def assert_agrees(golden: Golden, case: Case, fused: bool | None) -> None:
    """Every output, loss, gradient and running statistic of the file agrees, and what passed inside in evaluation."""
    model = case.kind(**case.arguments, **({} if fused is None else {"fused": fused})).double()
    model.load_state_dict(convert_state_dict(golden.state(), case.layout))
    label, arrays = golden.tensor("in.label"), golden.arrays
    weights = tuple(golden.tensor("in.weight").tolist()) if "in.weight" in arrays else None
    arguments = {"num_classes": case.arguments["num_classes"], "label_smoothing": case.smoothing}
    entropy, penalty = CrossEntropy(**arguments, class_weights=weights), FeatureTransformPenalty()
    taps = {name: place for name, place in case.taps.items() if not (fused and name in case.plain_alone)}
    seen, given = tap(model, {**taps, **case.outputs}), cloud_inputs(golden)
    for mode in each_mode(model):
        with torch.set_grad_enabled(mode == "train"):
            found = model(**given)
        loss = entropy(logits=found["logits"], label=label) / entropy.count(label=label)
        outputs = {}
        for key, entry in golden.info[f"{mode}_outputs"].items():
            name = key.removeprefix(f"{mode}.out.")
            value = seen[name][-1] if name in case.outputs else OUTPUTS[name](found)
            outputs[name] = value if list(value.shape) == entry["shape"] else channels_second(value, entry["shape"])
        if "trans_feat" in outputs:
            loss = loss + 0.001 * penalty(feature_transform=found["feature_transform"]) / len(label)
        assert_outputs(golden, mode, outputs, loss)
    loss.backward()
    assert_gradients_and_buffers(golden, model, lambda key: translate_key(key, case.layout))
    left = {mid: find_tap(taps, mid) for mid in golden.info["eval_mids"]}
    for mid, tapped in left.items():
        if tapped is not None:
            value, shape = seen[tapped][0], golden.info["eval_mids"][mid]["shape"]
            value = (
                value.reshape(shape) if tapped.startswith(case.channels_last or "-") else channels_second(value, shape)
            )
            assert_near_largest(stored_part(golden, mid, value), golden.tensor(mid), 1e-10, mid)
        else:
            skipped = case.untapped + (case.plain_alone if fused else ())
            assert mid.removeprefix("eval.mid.").startswith(skipped or ("-",)), f"{mid} is not compared"
    assert set(left.values()) >= set(taps)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "fused"),
    [
        pytest.param(name, fused, marks=[pytest.mark.long] if fused in case.long else [])
        for name, case in GOLDEN.items()
        for fused in case.forms
    ],
)
def test_numbers_are_those_of_the_authors_code(shared: Path, name: str, fused: bool | None) -> None:
    assert_agrees(load_golden(shared, name), GOLDEN[name], fused)
