"""Names of published weights in terms of ours: one table per layout, and the conversion of a state dict."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from sightline.errors import CheckpointError
from sightline.models.published.published_crosspoint import CROSSPOINT_LAYOUTS, CROSSPOINT_UNUSED
from sightline.models.published.published_dense import DENSE_LAYOUTS
from sightline.models.published.published_detection import DETECTION_LAYOUTS, DETECTION_OPTIONAL, complete_state_dict
from sightline.models.published.published_images import IMAGE_LAYOUTS, IMAGE_OPTIONAL
from sightline.models.published.published_point_bert import POINT_BERT_LAYOUTS, POINT_BERT_OPTIONAL, POINT_BERT_UNUSED
from sightline.models.published.published_range_images import RANGE_IMAGE_LAYOUTS, RANGE_IMAGE_UNUSED
from sightline.models.published.published_segmentation import SEGMENTATION_LAYOUTS, yanx27_alignment
from sightline.models.published.published_volumes import VOLUME_LAYOUTS
from sightline.schema import suggest

__all__ = ["LAYOUTS", "OPTIONAL", "UNUSED", "convert_state_dict", "published_name", "translate_key", "unused_names"]

_WANG_DGCNN = {
    **{f"conv{i + 1}.0": f"edges.{i}.edge.linear" for i in range(4)},
    **{f"conv{i + 1}.1": f"edges.{i}.edge.norm" for i in range(4)},
    **{f"bn{i + 1}": f"edges.{i}.edge.norm" for i in range(4)},
    "conv5.0": "embed.linear",
    "conv5.1": "embed.norm",
    "bn5": "embed.norm",
    "linear1": "head.0.linear",
    "bn6": "head.0.norm",
    "linear2": "head.2.linear",
    "bn7": "head.2.norm",
    "linear3": "head.4",
}
"""DGCNN of WangYueFt. Each batch norm of the graph part has two names: as an attribute and in its convolution."""

_WANG_POINTNET = {
    **{f"conv{i + 1}": f"encode.{i}.linear" for i in range(5)},
    **{f"bn{i + 1}": f"encode.{i}.norm" for i in range(5)},
    "linear1": "head.0.linear",
    "bn6": "head.0.norm",
    "linear2": "head.2",
}


_YANX27_POINTNET = {
    **yanx27_alignment("feat.stn", "input_alignment"),
    **yanx27_alignment("feat.fstn", "feature_alignment"),
    "feat.conv1": "embed.linear",
    "feat.bn1": "embed.norm",
    "feat.conv2": "encode.0.linear",
    "feat.bn2": "encode.0.norm",
    "feat.conv3": "encode.1.linear",
    "feat.bn3": "encode.1.norm",
    "fc1": "head.0.linear",
    "bn1": "head.0.norm",
    "fc2": "head.1",
    "bn2": "head.3",
    "fc3": "head.5",
}

_YANX27_POINTNET2_HEAD = {
    **{f"sa3.mlp_convs.{i}": f"encode.{i}.linear" for i in range(3)},
    **{f"sa3.mlp_bns.{i}": f"encode.{i}.norm" for i in range(3)},
    "fc1": "head.0.linear",
    "bn1": "head.0.norm",
    "fc2": "head.2.linear",
    "bn2": "head.2.norm",
    "fc3": "head.4",
}

_YANX27_POINTNET2_SSG = {
    f"sa{level + 1}.mlp_{theirs}.{i}": f"abstractions.{level}.groups.0.network.layers.{i}.{ours}"
    for level in range(2)
    for i in range(3)
    for theirs, ours in (("convs", "linear"), ("bns", "norm"))
} | _YANX27_POINTNET2_HEAD

_YANX27_POINTNET2_MSG = {
    f"sa{level + 1}.{theirs}_blocks.{scale}.{i}": f"abstractions.{level}.groups.{scale}.network.layers.{i}.{ours}"
    for level in range(2)
    for scale in range(3)
    for i in range(3)
    for theirs, ours in (("conv", "linear"), ("bn", "norm"))
} | _YANX27_POINTNET2_HEAD


def _strawberry_layers(theirs: str, ours: str, count: int = 2) -> dict[str, str]:
    return {
        **{f"{theirs}conv{i + 1}": f"{ours}.{i}.linear" for i in range(count)},
        **{f"{theirs}bn{i + 1}": f"{ours}.{i}.norm" for i in range(count)},
    }


def _strawberry_attention(theirs: str, ours: str) -> dict[str, str]:
    """Return the names of an attention layer; queries and keys are one tensor under two names."""
    return {
        f"{theirs}.q_conv": f"{ours}.query",
        f"{theirs}.k_conv": f"{ours}.query",
        f"{theirs}.v_conv": f"{ours}.value",
        f"{theirs}.trans_conv": f"{ours}.change.linear",
        f"{theirs}.after_norm": f"{ours}.change.norm",
    }


_STRAWBERRY_PCT_NEW = {
    **_strawberry_layers("", "embed"),
    **_strawberry_layers("gather_local_0.", "groups.0.network.layers"),
    **_strawberry_layers("gather_local_1.", "groups.1.network.layers"),
    **_strawberry_layers("pt_last.", "prepare", count=1),
    "pt_last.pos_xyz": "attend.position",
    **{
        their_key: our_key
        for i in range(4)
        for their_key, our_key in _strawberry_attention(f"pt_last.sa{i + 1}", f"attend.layers.{i}").items()
    },
    "conv_fuse.0": "fuse.linear",
    "conv_fuse.1": "fuse.norm",
    "linear1": "head.0.linear",
    "bn6": "head.0.norm",
    "linear2": "head.2.linear",
    "bn7": "head.2.norm",
    "linear3": "head.4",
}

_STRAWBERRY_PCT = {key: ours for key, ours in _STRAWBERRY_PCT_NEW.items() if key != "pt_last.pos_xyz"} | (
    _strawberry_layers("pt_last.", "prepare")
)


def _postech_block(theirs: str, ours: str) -> dict[str, str]:
    attention = {
        **{f"linear_{short}": name for short, name in (("q", "query"), ("k", "key"), ("v", "value"))},
        "linear_p.0": "position.linear",
        "linear_p.1": "position.norm",
        "linear_p.3": "code",
        "linear_w.0": "norm",
        "linear_w.2": "reduce.linear",
        "linear_w.3": "reduce.norm",
        "linear_w.5": "score",
    }
    return {
        f"{theirs}.linear1": f"{ours}.before.linear",
        f"{theirs}.bn1": f"{ours}.before.norm",
        **{f"{theirs}.transformer2.{key}": f"{ours}.attention.{name}" for key, name in attention.items()},
        f"{theirs}.bn2": f"{ours}.norm",
        f"{theirs}.linear3": f"{ours}.after.linear",
        f"{theirs}.bn3": f"{ours}.after.norm",
    }


_POSTECH_BLOCKS = (1, 2, 3, 5, 2)
_POSTECH_POINT_TRANSFORMER_SEG = {
    key: name
    for level, num_blocks in enumerate(_POSTECH_BLOCKS)
    for part in (
        {
            f"enc{level + 1}.0.linear": f"stages.{level}.down.edge.linear",
            f"enc{level + 1}.0.bn": f"stages.{level}.down.edge.norm",
        },
        *(_postech_block(f"enc{level + 1}.{i + 1}", f"stages.{level}.blocks.{i}") for i in range(num_blocks)),
        _postech_block(f"dec{level + 1}.1", f"decoder.blocks.{level}"),
        {
            f"dec{level + 1}.0.linear{which}.{place}": f"decoder.ups.{level}.{ours}.{part}"
            for which, ours in ((1, "skip"), (2, "coarse"))
            for place, part in ((0, "linear"), (1, "norm"))
        }
        if level < len(_POSTECH_BLOCKS) - 1
        else {
            f"dec{level + 1}.0.linear1.0": "decoder.context.mix.linear",
            f"dec{level + 1}.0.linear1.1": "decoder.context.mix.norm",
            f"dec{level + 1}.0.linear2.0": "decoder.context.mean",
        },
    )
    for key, name in part.items()
} | {"cls.0": "head.0.linear", "cls.1": "head.0.norm", "cls.3": "head.2"}
"""Point Transformer of POSTECH. Its transitions down and up count as the first block of a level."""

LAYOUTS: Mapping[str, Mapping[str, str]] = {
    "antao97_dgcnn_cls": _WANG_DGCNN,
    **CROSSPOINT_LAYOUTS,
    **IMAGE_LAYOUTS,
    **POINT_BERT_LAYOUTS,
    "postech_point_transformer_seg": _POSTECH_POINT_TRANSFORMER_SEG,
    "qq456cvb_pct_cls": _STRAWBERRY_PCT,
    **DENSE_LAYOUTS,
    **DETECTION_LAYOUTS,
    "strawberry_pct_cls": _STRAWBERRY_PCT,
    "strawberry_pct_cls_new": _STRAWBERRY_PCT_NEW,
    "wangyueft_dgcnn_cls": _WANG_DGCNN,
    "wangyueft_pointnet": _WANG_POINTNET,
    "yanx27_pointnet2_msg_cls": _YANX27_POINTNET2_MSG,
    "yanx27_pointnet2_ssg_cls": _YANX27_POINTNET2_SSG,
    "yanx27_pointnet_cls": _YANX27_POINTNET,
    **RANGE_IMAGE_LAYOUTS,
    **SEGMENTATION_LAYOUTS,
    **VOLUME_LAYOUTS,
}
"""Per published layout: their module -> our module. Leaves (`weight`, `running_mean`, ...) have the same names.

A parameter outside any module of theirs has its full name, on both sides.
"""

UNUSED: Mapping[str, tuple[str, ...]] = {**CROSSPOINT_UNUSED, **POINT_BERT_UNUSED, **RANGE_IMAGE_UNUSED}
"""Per published layout: patterns of names in its files that our model does not use."""

OPTIONAL: Mapping[str, str] = {**DETECTION_OPTIONAL, **IMAGE_OPTIONAL, **POINT_BERT_OPTIONAL}
"""Per published layout: our module that may be missing from its files as a whole."""


def convert_state_dict(state: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """Convert published weights to our names and shapes; tensors are shared, the input is unchanged.

    Convolutions of size 1 become matrices, except those that are convolutions here too, as all over volumes are; a
    leading `module.` on every name, from DataParallel, is removed, and so are names in `UNUSED`; for detectors see
    `published_detection.complete_state_dict`. Raises CheckpointError for an unknown layout, for names that the layout
    does not have, and for a module stored under two names with different values.
    """
    _assert_known(layout)
    used = dict(zip(_without_wrapper(state), state.values(), strict=True))
    for key in unused_names(used, layout):
        del used[key]
    names = {key: translate_key(key, layout) for key in used}
    unknown = [key for key, ours in names.items() if ours is None]
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} of {len(names)} names do not belong to the layout '{layout}': "
            f"{', '.join(unknown[:5])}{', ...' if len(unknown) > 5 else ''}; choose the layout of the file"
        )
    translated: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for key, tensor in used.items():
        ours = names[key]
        assert ours is not None
        is_map = tensor.ndim in (3, 4) and tensor.shape[2:].numel() == 1 and not ours.endswith(".conv.weight")
        value = tensor.flatten(1) if is_map else tensor
        if ours in translated and not torch.equal(translated[ours], value):
            raise CheckpointError(
                f"'{origin[ours]}' and '{key}' are one tensor in the layout '{layout}' but hold different values; "
                "the file is damaged or was edited by hand"
            )
        translated[ours], origin[ours] = value, key
    return complete_state_dict(translated, layout)


def unused_names(names: Iterable[str], layout: str) -> dict[str, str]:
    """Return the published names that a model of this layout does not use, each with its pattern."""
    patterns = UNUSED.get(layout, ())
    matches = (
        (name, next((name_pattern for name_pattern in patterns if fnmatch.fnmatchcase(name, name_pattern)), None))
        for name in names
    )
    return {name: pattern for name, pattern in matches if pattern is not None}


def translate_key(key: str, layout: str) -> str | None:
    """Return our name of a published name, None if the layout has none.

    Raises CheckpointError for an unknown layout.
    """
    _assert_known(layout)
    table = LAYOUTS[layout]
    if key in table:
        return table[key]
    module, _, leaf = key.rpartition(".")
    ours = table.get(module)
    return f"{ours}.{leaf}" if ours is not None else None


def published_name(ours: str, layout: str) -> str:
    """Return the layout's name of one of our tensors; the first if there are several."""
    module, _, leaf = ours.rpartition(".")
    for theirs, name in LAYOUTS[layout].items():
        if name == ours:
            return theirs
        if name == module:
            return f"{theirs}.{leaf}"
    raise AssertionError(f"the layout '{layout}' has no name for '{ours}'")


def _assert_known(layout: str) -> None:
    if layout not in LAYOUTS:
        raise CheckpointError(f"no published layout is called '{layout}'{suggest(layout, LAYOUTS)}")


def _without_wrapper(state: Mapping[str, Tensor]) -> list[str]:
    if state and all(key.startswith("module.") for key in state):
        return [key.removeprefix("module.") for key in state]
    return list(state)
