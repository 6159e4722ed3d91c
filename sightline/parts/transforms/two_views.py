"""Two independently augmented views of every cloud."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

from torch import Tensor

from sightline.contract import registry
from sightline.contract.arguments import TransformBlock
from sightline.contract.draws import Draws
from sightline.contract.errors import ConfigError
from sightline.contract.transform import Transform
from sightline.contract.types import Field


@registry.transforms.add("two_views")
class TwoViews(Transform):
    """Two augmented views of each cloud, `points` and `other_points`, both by the transforms of `each`.

    The two draw from streams of their own. A transform of `each` takes points alone, and keeps their number.

    >>> import torch
    >>> from sightline.contract.draws import Draws
    >>> from sightline.parts.transforms.points import Jitter
    >>> from sightline.parts.transforms.two_views import TwoViews
    >>> views = TwoViews(transforms=(Jitter(),))(Draws.from_seed(0), points=torch.zeros(1, 2, 3))
    >>> {name: tuple(view.shape) for name, view in views.items()}
    {'points': (1, 2, 3), 'other_points': (1, 2, 3)}
    >>> torch.equal(views["points"], views["other_points"])
    False

    Source: Afham et al. 2022, CrossPoint, section 3.1.
    """

    adds: Mapping[str, Field] = {"other_points": Field("as points", "float32", "as points", "as points")}

    def __init__(self, *, transforms: tuple[TransformBlock, ...]) -> None:
        for index, transform in enumerate(transforms):
            needed = _list_required_fields(transform)
            if needed != {"points"}:
                raise ConfigError(
                    f"two_views.transforms: transform {index} takes {', '.join(sorted(needed))}; only those of points "
                    "alone can be drawn twice"
                )
        self.transforms: tuple[Transform, ...] = transforms

    def __call__(self, draws: Draws, *, points: Tensor) -> dict[str, Tensor]:
        return {
            "points": self._view(draws.stream("first"), points),
            "other_points": self._view(draws.stream("second"), points),
        }

    def _view(self, draws: Draws, points: Tensor) -> Tensor:
        for index, transform in enumerate(self.transforms):
            points = transform(draws.stream(str(index)), points=points)["points"]
        return points


def _list_required_fields(transform: Transform) -> set[str]:
    """Return the names of the fields that a transform requires."""
    parameters = inspect.signature(transform.__call__).parameters.values()
    return {p.name for p in parameters if p.default is inspect.Parameter.empty} - {"draws", "self"}
