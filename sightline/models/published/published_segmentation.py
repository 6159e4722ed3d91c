"""Names of published weights of segmentation networks in terms of ours, one table per layout."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["ANTAO97_DGCNN_PARTS", "SEGMENTATION_LAYOUTS", "yanx27_alignment"]


def _antao97(theirs: str, ours: str) -> dict[str, str]:
    """Return the names of a convolution with its batch norm, which is also an attribute of the same number."""
    return {
        f"conv{theirs}.0": f"{ours}.linear",
        f"conv{theirs}.1": f"{ours}.norm",
        f"bn{theirs}": f"{ours}.norm",
    }


_ANTAO97_LEVELS = {
    **_antao97("1", "levels.edges.0.network.layers.0"),
    **_antao97("2", "levels.edges.0.network.layers.1"),
    **_antao97("3", "levels.edges.1.network.layers.0"),
    **_antao97("4", "levels.edges.1.network.layers.1"),
    **_antao97("5", "levels.edges.2.edge"),
    **_antao97("6", "levels.embed"),
}

ANTAO97_DGCNN_PARTS = {
    **{f"transform_net.{key}": ours for key, ours in _antao97("1", "alignment.edge.network.layers.0").items()},
    **{f"transform_net.{key}": ours for key, ours in _antao97("2", "alignment.edge.network.layers.1").items()},
    "transform_net.conv3.0": "alignment.embed.linear",
    "transform_net.conv3.1": "alignment.embed.norm",
    "transform_net.linear1": "alignment.head.0.linear",
    "transform_net.bn3": "alignment.head.0.norm",
    "transform_net.linear2": "alignment.head.1.linear",
    "transform_net.bn4": "alignment.head.1.norm",
    "transform_net.transform": "alignment.head.2",
    **_ANTAO97_LEVELS,
    **_antao97("7", "category"),
    **_antao97("8", "join"),
    **_antao97("9", "head.1"),
    **_antao97("10", "head.3"),
    "conv11": "head.4",
}
"""DGCNN parts. The transform's `bn3` is assigned twice: it is the norm after `linear1`, not after `conv3`."""

_ANTAO97_DGCNN_SCENES = {
    **_ANTAO97_LEVELS,
    **_antao97("7", "join"),
    **_antao97("8", "head.0"),
    "conv9": "head.2",
}


def _jittor_attention(number: int) -> dict[str, str]:
    """Return the names of an attention layer; queries and keys are one tensor, convolutions are one level deeper."""
    theirs, ours = f"sa{number + 1}", f"attend.layers.{number}"
    return {
        f"{theirs}.q_conv.conv": f"{ours}.query",
        f"{theirs}.k_conv.conv": f"{ours}.query",
        f"{theirs}.v_conv.conv": f"{ours}.value",
        f"{theirs}.trans_conv.conv": f"{ours}.change.linear",
        f"{theirs}.after_norm": f"{ours}.change.norm",
    }


_MENGHAO_PCT_PARTS = {
    **{f"conv{i + 1}.conv": f"embed.{i}.linear" for i in range(2)},
    **{f"bn{i + 1}": f"embed.{i}.norm" for i in range(2)},
    **{key: ours for number in range(4) for key, ours in _jittor_attention(number).items()},
    "conv_fuse.0.conv": "fuse.linear",
    "conv_fuse.1": "fuse.norm",
    "label_conv.0.conv": "category.linear",
    "label_conv.1": "category.norm",
    "convs1.conv": "join.linear",
    "bns1": "join.norm",
    "convs2.conv": "head.1.linear",
    "bns2": "head.1.norm",
    "convs3.conv": "head.2",
}


def yanx27_alignment(theirs: str, ours: str) -> dict[str, str]:
    """Return the module names of a T-Net of yanx27/Pointnet_Pointnet2_pytorch."""
    return {
        **{f"{theirs}.conv{i + 1}": f"{ours}.encode.{i}.linear" for i in range(3)},
        **{f"{theirs}.bn{i + 1}": f"{ours}.encode.{i}.norm" for i in range(3)},
        **{f"{theirs}.fc{i + 1}": f"{ours}.head.{i}.linear" for i in range(2)},
        **{f"{theirs}.bn{i + 4}": f"{ours}.head.{i}.norm" for i in range(2)},
        f"{theirs}.fc3": f"{ours}.head.2",
    }


_YANX27_POINTNET_PARTS = {
    **yanx27_alignment("stn", "input_alignment"),
    **yanx27_alignment("fstn", "feature_alignment"),
    **{f"conv{i + 1}": f"embed.{i}.linear" for i in range(3)},
    **{f"bn{i + 1}": f"embed.{i}.norm" for i in range(3)},
    **{f"conv{i + 4}": f"encode.{i}.linear" for i in range(2)},
    **{f"bn{i + 4}": f"encode.{i}.norm" for i in range(2)},
    "convs1": "join.linear",
    "bns1": "join.norm",
    **{f"convs{i + 2}": f"head.{i}.linear" for i in range(2)},
    **{f"bns{i + 2}": f"head.{i}.norm" for i in range(2)},
    "convs4": "head.2",
}

_YANX27_POINTNET_SCENES = {
    **yanx27_alignment("feat.stn", "input_alignment"),
    **yanx27_alignment("feat.fstn", "feature_alignment"),
    "feat.conv1": "embed.linear",
    "feat.bn1": "embed.norm",
    **{f"feat.conv{i + 2}": f"encode.{i}.linear" for i in range(2)},
    **{f"feat.bn{i + 2}": f"encode.{i}.norm" for i in range(2)},
    "conv1": "join.linear",
    "bn1": "join.norm",
    **{f"conv{i + 2}": f"head.{i}.linear" for i in range(2)},
    **{f"bn{i + 2}": f"head.{i}.norm" for i in range(2)},
    "conv4": "head.2",
}


def _yanx27_mlp(theirs: str, ours: str, count: int) -> dict[str, str]:
    return {
        **{f"{theirs}.mlp_convs.{i}": f"{ours}.{i}.linear" for i in range(count)},
        **{f"{theirs}.mlp_bns.{i}": f"{ours}.{i}.norm" for i in range(count)},
    }


def _yanx27_pointnet2(num_groups: int, num_propagations: int) -> dict[str, str]:
    """Return the names of set abstractions, propagations from the coarsest points back, and the head of both forms."""
    names: dict[str, str] = {}
    for level in range(num_groups):
        names |= _yanx27_mlp(f"sa{level + 1}", f"abstractions.{level}.groups.0.network.layers", 3)
    for step in range(num_propagations):
        is_last = step == num_propagations - 1
        names |= _yanx27_mlp(f"fp{num_propagations - step}", f"propagations.{step}.layers", 3 if is_last else 2)
    return names | {"conv1": "head.0.linear", "bn1": "head.0.norm", "conv2": "head.2"}


SEGMENTATION_LAYOUTS: Mapping[str, Mapping[str, str]] = {
    "antao97_dgcnn_parts": ANTAO97_DGCNN_PARTS,
    "antao97_dgcnn_scenes": _ANTAO97_DGCNN_SCENES,
    "menghaoguo_pct_parts": _MENGHAO_PCT_PARTS,
    "yanx27_pointnet2_ssg_parts": _yanx27_pointnet2(2, 3) | _yanx27_mlp("sa3", "encode", 3),
    "yanx27_pointnet2_ssg_scenes": _yanx27_pointnet2(4, 4),
    "yanx27_pointnet_parts": _YANX27_POINTNET_PARTS,
    "yanx27_pointnet_scenes": _YANX27_POINTNET_SCENES,
}
"""Per published layout: their module -> our module, as `published.LAYOUTS`."""
