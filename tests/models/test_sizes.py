"""Published numbers of parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sightline.areas.clouds.models.dgcnn import DGCNN, DGCNNParts, DGCNNScenes
from sightline.areas.clouds.models.pct import PCT, NaivePCT, PCTParts, SimplePCT
from sightline.areas.clouds.models.point_bert import PointBERT, PointBERTParts
from sightline.areas.clouds.models.point_transformer_dense import DensePointTransformer
from sightline.areas.clouds.models.pointnet import PointNet, PointNetParts, PointNetPlain, PointNetScenes
from sightline.areas.clouds.models.pointnet2 import PointNet2, PointNet2MultiScale, PointNet2Parts, PointNet2Scenes
from sightline.areas.pose.refiner import ScaleNet
from sightline.areas.pose.v2v import V2V, V2VSmall
from sightline.areas.scenes.point_transformer import PointTransformer
from sightline.contract.registry import models
from tests.cases import run_each

PUBLISHED: list[tuple[Any, dict[str, Any], dict[tuple[int, int], int]]] = [
    (PCT, {}, {(40, 3): 2_876_136, (15, 3): 2_869_711, (10, 3): 2_868_426, (40, 6): 2_876_328}),
    (PCT, {"codes_positions": True}, {(15, 3): 2_804_687}),
    (SimplePCT, {}, {(40, 3): 1_360_552}),
    (NaivePCT, {}, {(40, 3): 1_360_552}),
    (PCTParts, {"num_categories": 16}, {(50, 3): 2_446_130}),
    (DGCNN, {}, {(40, 3): 1_809_576, (15, 3): 1_803_151, (10, 3): 1_801_866}),
    (DGCNNParts, {"num_categories": 16}, {(50, 3): 1_460_361}),
    (DGCNNScenes, {}, {(13, 9): 983_552}),
    (
        PointNet,
        {},
        {(40, 3): 3_471_473, (40, 6): 3_471_857, (15, 3): 3_465_048, (15, 6): 3_465_432, (10, 3): 3_463_763},
    ),
    (PointNetPlain, {}, {(40, 3): 696_168}),
    (PointNetParts, {"num_categories": 16}, {(50, 3): 8_342_395, (50, 6): 8_342_779}),
    (PointNetScenes, {}, {(13, 9): 3_529_558}),
    (PointNet2, {}, {(40, 3): 1_475_688, (40, 6): 1_475_880, (15, 3): 1_469_263, (10, 3): 1_467_978}),
    (PointNet2MultiScale, {}, {(40, 3): 1_747_368}),
    (PointNet2Parts, {"num_categories": 16}, {(50, 3): 1_411_250, (50, 6): 1_411_826}),
    (PointNet2Scenes, {}, {(13, 9): 968_269}),  # as the golden file counts it; the paper gives none
    (PointTransformer, {}, {(13, 6): 7_767_729, (13, 3): 7_767_633, (50, 6): 7_768_950}),
    (PointTransformer, {"per": "cloud"}, {(40, 3): 5_073_266, (40, 6): 5_073_362}),
    (DensePointTransformer, {"per": "cloud"}, {(40, 6): 9_584_136, (40, 3): 9_584_040, (10, 3): 9_582_090}),
    (DensePointTransformer, {"num_categories": 16}, {(50, 6): 19_397_362, (50, 3): 19_397_266}),
    (DensePointTransformer, {"num_categories": None}, {(13, 9): 19_394_541, (13, 6): 19_394_445}),
    (PointBERT, {}, {(40, 3): 22_065_960, (15, 3): 22_059_535, (10, 3): 22_058_250}),
    (PointBERTParts, {"num_categories": 16}, {(50, 3): 27_085_874}),
    # Of four classes by hand: 16 classes less are 16 * 257 weights less.
    ("deeplabv3", {"depth": 50}, {(20, 5): 39_644_884, (4, 5): 39_640_772}),
    ("deeplabv3", {"depth": 101}, {(20, 5): 58_637_012}),
    # Of four classes by hand: 16 classes less are 16 (9 * 32 + 1) weights less.
    ("rangenet21", {}, {(20, 5): 24_712_980, (4, 5): 24_708_356}),
    ("rangenet53", {}, {(20, 5): 50_377_364}),
    ("salsanext", {}, {(20, 5): 6_711_572, (4, 5): 6_711_044}),
    ("squeezeseg", {"crf": False}, {(20, 5): 915_540, (4, 5): 906_308}),
    ("squeezeseg", {"crf": True}, {(20, 5): 915_960}),
    ("squeezesegv2", {"crf": False}, {(20, 5): 928_464, (4, 6): 919_872}),
    ("squeezesegv2", {"crf": True}, {(20, 5): 928_884}),
]
"""A class or a registered name, its arguments, and parameters by numbers of classes and of input channels."""
POSE: list[tuple[type[nn.Module], dict[str, Any], int]] = [
    *((V2V, {"num_joints": joints}, 3_409_760 + 33 * joints) for joints in (21, 16, 15, 14)),
    (V2VSmall, {"num_joints": 21}, 72_357),  # by hand: kernel^3 x in x out + out of a convolution, 2 x out of its norm
    (ScaleNet, {}, 3_567_651),
]


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@run_each("kind, arguments, published", PUBLISHED)
def test_networks_have_the_published_size(kind: Any, arguments: dict[str, Any], published: dict[Any, int]) -> None:
    build = models.get_entry(kind).builder if isinstance(kind, str) else kind
    with torch.device("meta"):
        built = {facts: build(num_classes=facts[0], in_channels=facts[1], **arguments) for facts in published}
    assert {facts: count(model) for facts, model in built.items()} == published


@run_each("kind, arguments, published", POSE)
def test_networks_of_poses_have_the_published_size(kind: Any, arguments: dict[str, Any], published: int) -> None:
    with torch.device("meta"):
        assert count(kind(**arguments)) == published
