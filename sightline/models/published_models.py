"""Which model of ours a published layout is, what the shapes of its tensors say, and what they do not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from sightline.models.published import LAYOUTS, translate_key

__all__ = ["MODELS", "PublishedModel", "Size", "layouts_of"]


class Size(NamedTuple):
    """A number read off one axis of one of our tensors, divided by `divisor`."""

    name: str
    axis: int
    divisor: int = 1

    def of(self, weights: Mapping[str, Tensor]) -> int:
        return weights[self.name].shape[self.axis] // self.divisor


@dataclass(frozen=True)
class PublishedModel:
    """A model as its authors published it.

    `from_shapes` are arguments that the weights show, `assumed` those that they do not, as in the authors' own recipe
    for ModelNet40; `losses`, `evaluate` and `up_axis` are that recipe's losses, evaluation transforms and frame.
    """

    model: str
    num_classes: Size
    in_channels: Size
    from_shapes: Mapping[str, Size] = field(default_factory=dict)
    assumed: Mapping[str, Any] = field(default_factory=dict)
    losses: tuple[Mapping[str, Any], ...] = ({"name": "cross_entropy"},)
    evaluate: tuple[Mapping[str, Any], ...] = ()
    up_axis: str = "y"


_SMOOTHED: tuple[Mapping[str, Any], ...] = ({"name": "cross_entropy", "label_smoothing": 0.2},)
_NORMALISED: tuple[Mapping[str, Any], ...] = ({"name": "normalize_unit_sphere"},)

_DGCNN = PublishedModel(
    model="dgcnn",
    num_classes=Size("head.4.weight", 0),
    in_channels=Size("edges.0.edge.linear.weight", 1, divisor=2),
    from_shapes={"embedding": Size("embed.linear.weight", 0)},
    assumed={"num_neighbours": 20, "dropout": 0.5},
    losses=_SMOOTHED,
)


def _pct(**assumed: Any) -> PublishedModel:
    return PublishedModel(
        model="pct",
        num_classes=Size("head.4.weight", 0),
        in_channels=Size("embed.0.linear.weight", 1),
        assumed={"num_centres": (512, 256), "num_neighbours": 32, "dropout": 0.5, **assumed},
        losses=_SMOOTHED,
    )


def _pointnet2(model: str, **assumed: Any) -> PublishedModel:
    return PublishedModel(
        model=model,
        num_classes=Size("head.4.weight", 0),
        in_channels=Size("abstractions.0.groups.0.network.layers.0.linear.weight", 1),
        assumed={"num_centres": (512, 128), "dropout": 0.4, **assumed},
        evaluate=_NORMALISED,
    )


MODELS: Mapping[str, PublishedModel] = {
    "antao97_dgcnn_cls": _DGCNN,
    "qq456cvb_pct_cls": _pct(head_activation="relu", codes_positions=False, min_squared_norm=None),
    "qq456cvb_point_transformer_cls": PublishedModel(
        model="point_transformer_dense",
        num_classes=Size("head.4.weight", 0),
        in_channels=Size("encoder.embed.0.weight", 1),
        from_shapes={"width": Size("encoder.levels.0.0.enter.weight", 0)},
        assumed={"per": "cloud", "blocks": (1, 1, 1, 1, 1), "num_neighbours": 16},
        evaluate=_NORMALISED,
    ),
    "strawberry_pct_cls": _pct(head_activation="leaky_relu", codes_positions=False, min_squared_norm=1e-3),
    "strawberry_pct_cls_new": _pct(head_activation="leaky_relu", codes_positions=True, min_squared_norm=1e-3),
    "wangyueft_dgcnn_cls": _DGCNN,
    "wangyueft_pointnet": PublishedModel(
        model="pointnet_plain",
        num_classes=Size("head.2.weight", 0),
        in_channels=Size("encode.0.linear.weight", 1),
        from_shapes={"embedding": Size("encode.4.linear.weight", 0)},
        assumed={"dropout": 0.5},
        losses=_SMOOTHED,
    ),
    "yanx27_pointnet2_msg_cls": _pointnet2("pointnet2_msg", last_dropout=0.5),
    "yanx27_pointnet2_ssg_cls": _pointnet2("pointnet2", radii=(0.2, 0.4), num_neighbours=(32, 64)),
    "yanx27_pointnet_cls": PublishedModel(
        model="pointnet",
        num_classes=Size("head.5.weight", 0),
        in_channels=Size("embed.linear.weight", 1),
        assumed={"dropout": 0.4},
        losses=({"name": "cross_entropy"}, {"name": "feature_transform_penalty", "weight": 0.001}),
        evaluate=_NORMALISED,
    ),
}
"""One for every layout of `published.LAYOUTS`."""


def layouts_of(names: Mapping[str, Tensor]) -> list[str]:
    """The layouts whose modules these published names are, no more and no fewer."""
    fitting = []
    for layout, modules in LAYOUTS.items():
        ours = [translate_key(name, layout) for name in names]
        if None not in ours and {str(name).rpartition(".")[0] for name in ours} == set(modules.values()):
            fitting.append(layout)
    return fitting
