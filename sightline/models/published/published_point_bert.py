"""Names of the published weights of Point-BERT in terms of ours, one table per layout."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["POINT_BERT_LAYOUTS", "POINT_BERT_OPTIONAL", "POINT_BERT_UNUSED"]

_DEPTH = 12
_QUERY = "transformer_q."


def _block(number: int) -> dict[str, str]:
    theirs, ours = f"blocks.blocks.{number}", f"trunk.blocks.{number}"
    return {
        f"{theirs}.norm1": f"{ours}.attend_norm",
        f"{theirs}.attn.qkv": f"{ours}.attend.qkv",
        f"{theirs}.attn.proj": f"{ours}.attend.project",
        f"{theirs}.norm2": f"{ours}.change_norm",
        f"{theirs}.mlp.fc1": f"{ours}.change.0",
        f"{theirs}.mlp.fc2": f"{ours}.change.2",
    }


_TRUNK = {
    "cls_token": "embed.class_token",
    "cls_pos": "embed.class_position",
    "encoder.first_conv.0": "embed.patches.enter.linear",
    "encoder.first_conv.1": "embed.patches.enter.norm",
    "encoder.first_conv.3": "embed.patches.widen",
    "encoder.second_conv.0": "embed.patches.join.linear",
    "encoder.second_conv.1": "embed.patches.join.norm",
    "encoder.second_conv.3": "embed.patches.leave",
    "reduce_dim": "embed.reduce",
    **{f"pos_embed.{i}": f"embed.position.{i}" for i in (0, 2)},
    **{key: ours for number in range(_DEPTH) for key, ours in _block(number).items()},
    "norm": "trunk.norm",
}

_CLS = {**_TRUNK, "cls_head_finetune.0": "head.0", "cls_head_finetune.3": "head.3"}


def _propagation(number: int) -> dict[str, str]:
    theirs, ours = f"propagation_{number}", f"propagations.{number}.layers"
    return {
        **{f"{theirs}.mlp_convs.{i}": f"{ours}.{i}.linear" for i in range(2)},
        **{f"{theirs}.mlp_bns.{i}": f"{ours}.{i}.norm" for i in range(2)},
    }


def _edges(number: int) -> dict[str, str]:
    theirs, ours = f"dgcnn_pro_{number + 1}", f"edges.{number}"
    return {
        **{f"{theirs}.layer{i + 1}.0": f"{ours}.linears.{i}" for i in range(2)},
        **{f"{theirs}.layer{i + 1}.1": f"{ours}.norms.{i}" for i in range(2)},
    }


_PARTS = {
    **_TRUNK,
    **{key: ours for number in range(3) for key, ours in _propagation(number).items()},
    **{key: ours for number in range(2) for key, ours in _edges(number).items()},
    "conv1": "head.0.linear",
    "bn1": "head.0.norm",
    "conv2": "head.2",
}

POINT_BERT_LAYOUTS: Mapping[str, Mapping[str, str]] = {
    "lulutang0608_point_bert_cls": _CLS,
    "lulutang0608_point_bert_parts": _PARTS,
    "lulutang0608_point_bert_pretrained": {f"{_QUERY}{key}": ours for key, ours in _CLS.items()},
}
"""Per published layout: their module, or a parameter outside any, -> ours, as `published.LAYOUTS`."""

POINT_BERT_UNUSED: Mapping[str, tuple[str, ...]] = {
    "lulutang0608_point_bert_pretrained": (
        "transformer_k.*",
        "dvae.*",
        "queue*",
        f"{_QUERY}cls_head.*",
        f"{_QUERY}mask_token",
        f"{_QUERY}lm_head.*",
        "mask_token",
        "lm_head.*",
    ),
}
"""Names of pre-training alone: the momentum encoder, the tokens' vocabulary, the queue, the heads."""

POINT_BERT_OPTIONAL: Mapping[str, str] = {"lulutang0608_point_bert_pretrained": "head"}
"""Our module that may be missing from a file as a whole: pre-training has no classes."""
