"""Names of the published weights of Point-BERT in our words, one table per layout."""

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

POINT_BERT_LAYOUTS: Mapping[str, Mapping[str, str]] = {
    "lulutang0608_point_bert_cls": _CLS,
    "lulutang0608_point_bert_pretrained": {f"{_QUERY}{key}": ours for key, ours in _CLS.items()},
}
"""Per published layout: their module, or a parameter that stands in none, -> ours, as `published.LAYOUTS`."""

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
"""Names that belong to pre-training alone: the slow copy, the tokens' vocabulary, the queue, the heads."""

POINT_BERT_OPTIONAL: Mapping[str, str] = {"lulutang0608_point_bert_pretrained": "head"}
"""Our module that a file may be without as a whole: pre-training has no classes."""
