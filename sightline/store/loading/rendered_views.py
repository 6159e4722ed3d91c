"""Views rendered on demand from the clouds of a data set in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, NotRequired

import numpy as np
from annotated_types import Ge, Le
from typing_extensions import TypedDict

from sightline.contract.arguments import Count
from sightline.contract.types import SampleKey
from sightline.ops.views.cameras import Axis, ring_cameras
from sightline.ops.views.rendering import Background, Style, on_background, render_cloud

_SIZE_PX = 64
_MAX_CACHE_BYTES = 2**28


class RenderedViewsConfig(TypedDict):
    """Number of views of each object, their size and style."""

    count: Count
    size_px: NotRequired[Annotated[int, Ge(8), Le(1024)]]
    style: NotRequired[Style]
    background: NotRequired[Background]


class RenderedViews:
    """Views of the clouds of a set, on a ring at 30 degrees elevation; cached if those of the whole set are small.

    The cache is not pickled: a worker process renders its own views, with the same bits.
    """

    def __init__(self, num_objects: int, views: RenderedViewsConfig, *, up_axis: Axis) -> None:
        self.background: Background = views.get("background", "black")
        self._style: Style = views.get("style", "shaded")
        size_px = views.get("size_px", _SIZE_PX)
        self._cameras = ring_cameras(views["count"], size_px=size_px, up_axis=up_axis)
        self._num_objects = num_objects
        self._rendered: dict[int, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_rendered": {}}

    def render(self, keys: Sequence[SampleKey], clouds: np.ndarray) -> np.ndarray:
        """Render one view per cloud (B, N, 3), drawn by seed, epoch and index of its key: (B, H, W, 3) uint8, new."""
        pairs = zip(keys, clouds, strict=True)
        images = [self._views(key.index, cloud)[key.generator().integers(len(self._cameras))] for key, cloud in pairs]
        return on_background(np.stack(images), self.background)

    def _views(self, index: int, cloud: np.ndarray) -> np.ndarray:
        """Return all views of a cloud, from the cache if it is small."""
        views = self._rendered.get(index)
        if views is None:
            views = render_cloud(cloud, self._cameras, style=self._style)
            if views.nbytes * self._num_objects <= _MAX_CACHE_BYTES:
                self._rendered[index] = views
        return views


def make_rendered_views(views: int | RenderedViewsConfig, num_objects: int, *, up_axis: Axis) -> RenderedViews | None:
    """Make the views that the argument `views` of a data set configures; None for 0."""
    if isinstance(views, int):
        return RenderedViews(num_objects, {"count": views}, up_axis=up_axis) if views else None
    return RenderedViews(num_objects, views, up_axis=up_axis)
