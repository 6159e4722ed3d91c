"""Transforms of scans for networks on points and pixels: the pixel of each point, gaps filled, scans mixed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch
from annotated_types import Len
from torch import Tensor

from sightline.contract import registry
from sightline.contract.arguments import Count, Probability
from sightline.contract.draws import Draws
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.transform import Transform
from sightline.contract.types import Field
from sightline.ops.dtypes import widen_labels
from sightline.ops.views.projection import RangeView, Rows, compute_pixels, project_scans
from sightline.parts.transforms.point_selection import full_cloud_fields

DrawSamples = Callable[[int], list[dict[str, Any]]] | None


@registry.transforms.add("assign_pixels")
class AssignPixels(Transform):
    """The pixel of every point in the range image of its scan, for networks that compute on both; all points stay.

    It adds `pixel`, row * W + column, and the labels of pixels, `pixel_label` (B, H, W): the commonest class of the
    points in each, of equally common ones the lowest, but one that is not ignored first; `ignore_index` where empty. A
    label above all classes, which losses of points refuse, counts as that. A point outside of the view gets the closest
    pixel. Rows are as in `project`. Draws nothing; transforms that move, drop or add points come before it. States the
    size of the image.
    Raises DataError for rings outside the image and points that are not finite; ConfigError for a view without area.

    >>> import torch
    >>> from sightline.areas.scans.frustums import AssignPixels
    >>> from sightline.contract.draws import Draws
    >>> view = {"fov_deg": (10.0, -10.0), "azimuth_deg": (180.0, -180.0), "height": 2, "width": 4}
    >>> assign = AssignPixels(**view, num_classes=3, ignore_index=0)
    >>> points = torch.tensor([[[3.0, -3, 0.1], [6, -6, 0.1], [4, -4, 0.1], [-2, 2, -0.1]]])
    >>> assign(Draws.from_seed(0), points=points, label=torch.tensor([[1, 2, 2, 0]]))
    {'pixel': tensor([[2, 2, 2, 4]]), 'pixel_label': tensor([[[0, 0, 2, 0],
             [0, 0, 0, 0]]])}

    Source: Xu et al. 2023 (FRNet), section 3.2, and its training code (labels of pixels).
    """

    adds: Mapping[str, Field] = {
        "pixel": Field("points", "int64", unit="pixel", low=0, collate="concatenate"),
        "pixel_label": Field("H W", "int64", unit="class", low=0),
    }

    def __init__(
        self,
        *,
        fov_deg: tuple[float, float],
        azimuth_deg: tuple[float, float],
        num_classes: int,
        ignore_index: int,
        beams_deg: tuple[float, ...] = (),
        height: Count = 64,
        width: Count = 512,
        rows: Rows = "pitch",
    ) -> None:
        self.view = RangeView(height, width, rows, fov_deg, azimuth_deg, beams_deg)
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.facts = {"image_size_px": (width, height)}

    def __call__(
        self, draws: Draws, *, points: Tensor, label: Tensor | None = None, ring: Tensor | None = None
    ) -> dict[str, Tensor]:
        pixel = _locate("assign_pixels", points, self.view, ring)
        if label is None:
            return {"pixel": pixel}
        return {"pixel": pixel, "pixel_label": self._elect(pixel, widen_labels(label))}

    def _elect(self, pixel: Tensor, label: Tensor) -> Tensor:
        """Return the commonest class (B, H, W) of the points of each pixel."""
        scan = torch.arange(len(pixel))[:, None] * self.view.num_pixels
        num_kinds = max(self.num_classes, self.ignore_index + 1)
        label = label.where(label < num_kinds, self.ignore_index)  # no class: the numbers by which files are predicted
        bins = len(pixel) * self.view.num_pixels * num_kinds
        counts = torch.bincount(((scan + pixel) * num_kinds + label).flatten(), minlength=bins).view(-1, num_kinds)
        counts *= 2
        counts[:, self.ignore_index] -= 1  # after the others where it is as common
        counts[:, self.ignore_index].clamp_(min=0)
        elected = torch.where(counts.sum(dim=1) > 0, counts.argmax(dim=1), self.ignore_index)
        return elected.view(len(pixel), self.view.height, self.view.width)


@registry.transforms.add("interpolate_ranges")
class InterpolateRanges(Transform):
    """Points added where a pixel of the range image is empty and both its neighbours in the row are filled: their mean.

    So is the remission; the class is theirs if they agree, else `ignore_index`, the ring that of the left one. Added
    points come last, and are not scored: `nearest` and `whole_label` are those of the scan's own points. Pixels in the
    first and the last column stay empty. The published code takes the pixel that shows point 0 for empty; it is filled
    here. Draws nothing.
    Raises DataError for stacked scans, and as `assign_pixels`.

    >>> import torch
    >>> from sightline.areas.scans.frustums import InterpolateRanges
    >>> from sightline.contract.draws import Draws
    >>> view = {"fov_deg": (10.0, -10.0), "azimuth_deg": (180.0, -180.0), "height": 1, "width": 8}
    >>> points = torch.tensor([[[1.0, 3, 0], [3, -1, 0]]])  # columns 2 and 4
    >>> fields = {"points": points, "remission": torch.zeros(1, 2, 1), "label": torch.tensor([[4, 4]])}
    >>> filled = InterpolateRanges(**view, ignore_index=0)(Draws.from_seed(0), **fields)
    >>> filled["points"][0, 2], filled["label"], filled["nearest"]
    (tensor([2., 1., 0.]), tensor([[4, 4, 4]]), tensor([[0, 1]]))

    Source: Xu et al. 2023 (FRNet), section 3.5.
    """

    chooses_points = True
    adds: Mapping[str, Field] = full_cloud_fields()

    def __init__(
        self,
        *,
        fov_deg: tuple[float, float],
        azimuth_deg: tuple[float, float],
        ignore_index: int,
        beams_deg: tuple[float, ...] = (),
        height: Count = 64,
        width: Count = 2048,
        rows: Rows = "pitch",
    ) -> None:
        self.view = RangeView(height, width, rows, fov_deg, azimuth_deg, beams_deg)
        self.ignore_index = ignore_index

    def __call__(
        self,
        draws: Draws,
        *,
        points: Tensor,
        remission: Tensor | None = None,
        label: Tensor | None = None,
        ring: Tensor | None = None,
    ) -> dict[str, Tensor]:
        if len(points) != 1:
            raise DataError(f"interpolate_ranges: got {len(points)} scans stacked, which would come to differ in size")
        left, right = self._find_neighbours(points, ring)
        fields: dict[str, Tensor] = {"points": _append(points, (points[:, left] + points[:, right]) / 2)}
        fields["nearest"] = torch.arange(points.shape[1])[None]
        if remission is not None:
            fields["remission"] = _append(remission, (remission[:, left] + remission[:, right]) / 2)
        if ring is not None:
            fields["ring"] = _append(ring, ring[:, left])
        if label is not None:
            agrees = label[:, left] == label[:, right]
            fields["label"] = _append(label, torch.where(agrees, label[:, left], self.ignore_index).to(label))
            fields["whole_label"] = widen_labels(label).clone()
        return fields

    def _find_neighbours(self, points: Tensor, ring: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the rows of the points left and right of each gap of one pixel."""
        ring = None if ring is None else ring[0]
        offsets = torch.tensor([0, points.shape[1]])
        try:
            shown = project_scans(points[0], view=self.view, offsets=offsets, ring=ring).point_index[0]
        except ValueError as error:
            raise DataError(f"interpolate_ranges: {error}") from error
        left, middle, right = shown[:, :-2], shown[:, 1:-1], shown[:, 2:]
        is_gap = (middle < 0) & (left >= 0) & (right >= 0)
        return left[is_gap], right[is_gap]


class _ScanMix(Transform):
    """Base of transforms that put points of another training scan into a scan; a subclass defines `choose`."""

    chooses_points = True

    def __init__(self, *, probability: float) -> None:
        self.probability = probability

    def __call__(
        self,
        draws: Draws,
        draw_samples: DrawSamples,
        *,
        points: Tensor,
        label: Tensor,
        remission: Tensor | None = None,
        ring: Tensor | None = None,
    ) -> dict[str, Tensor]:
        if draw_samples is None or float(draws.uniform()[0]) >= self.probability:
            return {}
        (other,) = draw_samples(1)
        kept, added = self.choose(draws, {"points": points, "label": label}, other)
        given = {"points": points, "label": label, "remission": remission, "ring": ring}
        return {
            name: torch.cat([own[:, kept], other[name][:, added]], dim=1)
            for name, own in given.items()
            if own is not None
        }

    def choose(self, draws: Draws, own: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return masks (N,) and (M,) of the points that stay, and of those of the other scan that join them."""
        raise NotImplementedError


@registry.transforms.add("mix_frustums")
class MixFrustums(_ScanMix):
    """With a probability, a part of a scan is replaced by the same part of another training scan, labels with it.

    In half of the cases the rows of an image are divided into one of `bands`, drawn, of equal height, of which every
    second is that of the other scan; in the rest it is half of the columns, from one in the first half on. The other
    scan is drawn by seed, epoch and sample, and has been through the transforms before this one with random numbers of
    its own. Raises DataError as `assign_pixels`.

    >>> import torch
    >>> from sightline.areas.scans.frustums import MixFrustums
    >>> from sightline.contract.draws import Draws
    >>> ring = torch.linspace(-3, 3, 7)
    >>> scan = {"points": torch.stack([ring.cos(), ring.sin(), 0 * ring], dim=1)[None], "label": torch.zeros(1, 7)}
    >>> other = {**scan, "label": torch.ones(1, 7)}
    >>> view = {"fov_deg": (10.0, -10.0), "azimuth_deg": (180.0, -180.0)}
    >>> mix = MixFrustums(**view, bands=(3,))
    >>> mixed = mix(Draws.from_seed(3), lambda count: [other] * count, **scan)
    >>> mixed["points"].shape, mixed["label"].sum()  # each direction once, of either scan
    (torch.Size([1, 7, 3]), tensor(3.))

    Source: Xu et al. 2023 (FRNet), section 3.5.
    """

    def __init__(
        self,
        *,
        fov_deg: tuple[float, float],
        azimuth_deg: tuple[float, float],
        height: Count = 64,
        width: Count = 512,
        bands: Annotated[tuple[Count, ...], Len(1)] = (3, 4, 5, 6),
        probability: Probability = 1.0,
    ) -> None:
        super().__init__(probability=probability)
        self.view = RangeView(height, width, "pitch", fov_deg, azimuth_deg)
        if max(bands) > height or width < 2:
            raise ConfigError(
                f"mix_frustums: {max(bands)} bands of {height} rows and {width} columns; give fewer bands"
            )
        self.bands = bands

    def choose(self, draws: Draws, own: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        of_bands, place = draws.uniform(2)[0].tolist()
        is_other = self._bands(place) if of_bands < 0.5 else self._sector(place)
        parts = [is_other[_locate("mix_frustums", scan["points"], self.view, None)[0]] for scan in (own, other)]
        return ~parts[0], parts[1]

    def _bands(self, place: float) -> Tensor:
        """Return a mask of the pixels of the other scan: every second band of rows."""
        number = self.bands[int(place * len(self.bands))]
        bounds = torch.tensor([band * self.view.height // number for band in range(1, number)])
        band = torch.searchsorted(bounds, torch.arange(self.view.height), right=True)
        return (band % 2 == 1).repeat_interleave(self.view.width)

    def _sector(self, place: float) -> Tensor:
        half = self.view.width // 2
        column = torch.arange(self.view.width) - int(place * half)
        return ((column >= 0) & (column < half)).repeat(self.view.height)


@registry.transforms.add("copy_classes")
class CopyClasses(_ScanMix):
    """With a probability, all points of some classes of another training scan are added to a scan, with their labels.

    `classes` are the names of the rare ones. The other scan is drawn as by `mix_frustums`. Raises ConfigError for a
    class that the data set does not have.

    >>> import torch
    >>> from sightline.areas.scans.frustums import CopyClasses
    >>> from sightline.contract.draws import Draws
    >>> scan = {"points": torch.zeros(1, 2, 3), "label": torch.tensor([[0, 1]])}
    >>> other = {"points": torch.ones(1, 2, 3), "label": torch.tensor([[1, 2]])}
    >>> copy = CopyClasses(class_names=("road", "car", "person"), classes=("person",))
    >>> copy(Draws.from_seed(0), lambda count: [other] * count, **scan)["label"]
    tensor([[0, 1, 2]])

    Source: Xu et al. 2023 (FRNet), its training code.
    """

    def __init__(
        self,
        *,
        class_names: tuple[str, ...],
        classes: Annotated[tuple[str, ...], Len(1)],
        probability: Probability = 1.0,
    ) -> None:
        super().__init__(probability=probability)
        if unknown := [name for name in classes if name not in class_names]:
            raise ConfigError(f"copy_classes: no class {', '.join(unknown)}; the classes are {', '.join(class_names)}")
        self.classes = torch.tensor([class_names.index(name) for name in classes])

    def choose(self, draws: Draws, own: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        stays = torch.ones(own["label"].shape[1], dtype=torch.bool)
        return stays, torch.isin(other["label"][0], self.classes)


def _locate(name: str, points: Tensor, view: RangeView, ring: Tensor | None) -> Tensor:
    """Return the pixel (B, N) of each point in the image of its own scan."""
    shape = points.shape[:2]
    offsets = torch.arange(shape[0] + 1) * shape[1]
    try:
        pixels = compute_pixels(
            points.flatten(0, 1), view=view, offsets=offsets, ring=None if ring is None else ring.flatten()
        )
    except ValueError as error:
        raise DataError(f"{name}: {error}") from error
    return pixels.pixel.view(shape)


def _append(own: Tensor, added: Tensor) -> Tensor:
    return torch.cat([own, added.to(own)], dim=1)
