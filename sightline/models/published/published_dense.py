"""Names of the published weights of the dense Point Transformer in terms of ours, one table per layout."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["DENSE_LAYOUTS"]


def _attention(theirs: str, ours: str) -> dict[str, str]:
    return {
        f"{theirs}.fc1": f"{ours}.enter",
        f"{theirs}.w_qs": f"{ours}.query",
        f"{theirs}.w_ks": f"{ours}.key",
        f"{theirs}.w_vs": f"{ours}.value",
        **{f"{theirs}.fc_delta.{i}": f"{ours}.place.{i}" for i in (0, 2)},
        **{f"{theirs}.fc_gamma.{i}": f"{ours}.weigh.{i}" for i in (0, 2)},
        f"{theirs}.fc2": f"{ours}.leave",
    }


def _transition_down(theirs: str, ours: str) -> dict[str, str]:
    return {
        **{f"{theirs}.sa.mlp_convs.{i}": f"{ours}.group.network.layers.{i}.linear" for i in range(2)},
        **{f"{theirs}.sa.mlp_bns.{i}": f"{ours}.group.network.layers.{i}.norm" for i in range(2)},
    }


def _level(step: int) -> dict[str, str]:
    return {
        **_transition_down(f"backbone.transition_downs.{step}", f"encoder.downs.{step}"),
        **_attention(f"backbone.transformers.{step}", f"encoder.levels.{step + 1}.0"),
    }


def _way_up(step: int) -> dict[str, str]:
    return {
        f"transition_ups.{step}.fc1.0": f"decoder.ups.{step}.coarse.linear",
        f"transition_ups.{step}.fc1.2": f"decoder.ups.{step}.coarse.norm",
        f"transition_ups.{step}.fc2.0": f"decoder.ups.{step}.skip.linear",
        f"transition_ups.{step}.fc2.2": f"decoder.ups.{step}.skip.norm",
        **_attention(f"transformers.{step}", f"decoder.layers.{step}"),
    }


_BACKBONE = {
    **{f"backbone.fc1.{i}": f"encoder.embed.{i}" for i in (0, 2)},
    **_attention("backbone.transformer1", "encoder.levels.0.0"),
    **{their_key: our_key for i in range(4) for their_key, our_key in _level(i).items()},
}

_CLS = {**_BACKBONE, **{f"fc2.{i}": f"head.{i}" for i in (0, 2, 4)}}

_PARTS = {
    **_BACKBONE,
    **{f"fc2.{i}": f"decoder.bottom.{i}" for i in (0, 2, 4)},
    **_attention("transformer2", "decoder.bottom_attention"),
    **{their_key: our_key for i in range(4) for their_key, our_key in _way_up(i).items()},
    **{f"fc3.{i}": f"head.{i}" for i in (0, 2, 4)},
}

DENSE_LAYOUTS: Mapping[str, Mapping[str, str]] = {
    "qq456cvb_point_transformer_cls": _CLS,
    "qq456cvb_point_transformer_parts": _PARTS,
}
"""Per published layout: their module -> our module, as `published.LAYOUTS`."""
