"""Semantic segmentation: one label per point, or per pixel of a range image and the points behind it.

Sliding windows over scenes too large for one pass; logits of overlapping windows are averaged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, Protocol

import numpy as np
import torch
from pydantic import ConfigDict
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import TypedDict

from sightline.contract import registry
from sightline.contract.arguments import Count, PositiveFloat
from sightline.contract.binding import AvailableKeys
from sightline.contract.errors import ConfigError
from sightline.contract.loss import Loss
from sightline.contract.types import Batch
from sightline.draw.pictures import UNLABELLED, Axis, Picture, label_colors, pad_to_3d, render_clouds, with_legend
from sightline.layers.mlp import as_packed
from sightline.ops.labels import widen_labels
from sightline.ops.lift import KNNVote, lift_knn
from sightline.parts.tasks.supervised import Decoder, Supervised

Origin = Literal["kept", "minimum"]
"""Origin of a window's coordinates: unchanged, or the smallest of each axis within the window."""
ForwardFunction = Callable[[Batch], Tensor]
"""Function from a batch to the logits of its points, one row each."""

_BLOCKS_AT_ONCE = 16


class Windows(Protocol):
    """Interface of windows: compute the logits (P, C) of one cloud from those of its windows."""

    def __call__(self, forward: ForwardFunction, cloud: Batch) -> Tensor: ...


class SphereWindows:
    """Sphere windows: neighbourhoods of at most `max_points` points that cover all points; logits are averaged.

    A cloud with no more points is one window, all of it. The points of a window keep their order.
    Source: the test of POSTECH-CVLab's Point Transformer on S3DIS, after Zhao et al. 2021.
    """

    def __init__(self, *, max_points: int, origin: Origin) -> None:
        self.max_points = max_points
        self.origin = origin

    def __call__(self, forward: ForwardFunction, cloud: Batch) -> Tensor:
        mean = _MeanLogits(len(cloud["points"]))
        for index in sphere_windows(cloud["points"], max_points=self.max_points):
            mean.add(index, forward(_make_window(cloud, index, self.origin)))
        return mean()


class BlockWindows:
    """Block windows: vertical columns over squares of `size_m`, every `stride_m`, of `num_points` points each.

    Horizontal coordinates are relative to the centre of the square. The points of a column are assigned to its windows
    in turn, so that each window covers the column regardless of the order of points; windows are filled up with
    repeated points of the column, whose predictions count like any other.
    Source: Qi et al. 2017 (PointNet), section 5.1 (blocks of 1 m), and its code (stride one half at test).
    """

    def __init__(self, *, size_m: float, stride_m: float, num_points: int) -> None:
        self.size_m = size_m
        self.stride_m = stride_m
        self.num_points = num_points

    def __call__(self, forward: ForwardFunction, cloud: Batch) -> Tensor:
        points = cloud["points"]
        mean = _MeanLogits(len(points))
        waiting: list[tuple[Tensor, Tensor]] = []
        for middle, index in column_windows(points, size_m=self.size_m, stride_m=self.stride_m):
            times = -(-len(index) // self.num_points)
            filled = index.repeat(times * self.num_points // len(index) + 1)[: times * self.num_points]
            waiting += [(middle, part) for part in filled.view(self.num_points, times).unbind(dim=1)]
            if len(waiting) >= _BLOCKS_AT_ONCE:
                self._add_logits(forward, cloud, waiting, mean)
                waiting = []
        if waiting:
            self._add_logits(forward, cloud, waiting, mean)
        return mean()

    def _add_logits(
        self, forward: ForwardFunction, cloud: Batch, blocks: list[tuple[Tensor, Tensor]], mean: _MeanLogits
    ) -> None:
        middles, indices = (torch.stack(column) for column in zip(*blocks, strict=True))
        batch = {**cloud, "points": cloud["points"][indices] - middles[:, None]}
        del batch["offsets"]
        if "features" in cloud:
            batch["features"] = cloud["features"][indices]
        if "category" in cloud:
            batch["category"] = cloud["category"].expand(len(blocks))
        mean.add(indices.flatten(), forward(batch))


def sphere_windows(points: Tensor, *, max_points: int) -> Iterator[Tensor]:
    """Yield the rows (at most `max_points`,) int64, rising, of neighbourhoods that cover all `points` (P, 3).

    Each is centred at the first point that no earlier one contains, and takes the nearest points to it.
    """
    if len(points) <= max_points:
        yield torch.arange(len(points), device=points.device)
        return
    is_seen = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    while not bool(is_seen.all()):
        middle = points[int((~is_seen).to(torch.uint8).argmax())]  # the first of equal maxima
        squared = (points - middle).square().sum(dim=1)
        index = squared.topk(max_points, largest=False).indices.sort().values
        is_seen[index] = True
        yield index


def column_windows(points: Tensor, *, size_m: float, stride_m: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield centre (3,), 0 in height, and rows (K,) of every column that contains points (P, 3); z is up.

    The squares start at the smallest coordinates and reach the largest; every point is in at least one.
    """
    low, high = points.amin(dim=0)[:2], points.amax(dim=0)[:2]
    counts = [max(1, math.ceil((extent - size_m) / stride_m) + 1) for extent in (high - low).tolist()]
    for row in range(counts[0]):
        for column in range(counts[1]):
            corner = low + points.new_tensor([row, column]) * stride_m
            is_last = torch.tensor([row == counts[0] - 1, column == counts[1] - 1], device=points.device)
            across = points[:, :2] - corner
            is_inside = (across >= 0) & ((across <= size_m) | is_last)  # the last include rounded sums
            index = is_inside.all(dim=1).nonzero().flatten()
            if len(index):
                yield torch.cat([corner + size_m / 2, corner.new_zeros(1)]), index


def split_clouds(batch: Batch) -> Iterator[Batch]:
    """Split a packed batch into batches of one cloud: points, features, category."""
    for number, (start, end) in enumerate(pairwise(batch["offsets"].tolist())):
        cloud: dict[str, Any] = {"points": batch["points"][start:end]}
        cloud["offsets"] = torch.tensor([0, end - start], device=batch["points"].device)
        if "features" in batch:
            cloud["features"] = batch["features"][start:end]
        if "category" in batch:
            cloud["category"] = batch["category"][number : number + 1]
        yield cloud


class _MeanLogits:
    """Accumulator of the mean logits of each point over its predictions."""

    def __init__(self, num_points: int) -> None:
        self.num_points = num_points
        self.total: Tensor | None = None
        self.times: Tensor | None = None

    def add(self, index: Tensor, logits: Tensor) -> None:
        rows = logits.flatten(0, -2)
        rows = rows if rows.dtype == torch.float64 else rows.float()
        if self.total is None:
            self.total = rows.new_zeros(self.num_points, rows.shape[1])
            self.times = rows.new_zeros(self.num_points)
        assert self.times is not None
        # One window at a time, so that the order of the sum is fixed; rows that a window holds twice are added apart.
        self.total.index_add_(0, index, rows)
        self.times.index_add_(0, index, torch.ones_like(rows[:, 0]))

    def __call__(self) -> Tensor:
        assert self.total is not None, "no window was predicted"
        assert self.times is not None
        return self.total / self.times[:, None]


def _make_window(cloud: Batch, index: Tensor, origin: Origin) -> Batch:
    points = cloud["points"][index]
    if origin == "minimum":
        points = points - points.amin(dim=0)
    window = {**cloud, "points": points, "offsets": torch.tensor([0, len(index)], device=index.device)}
    if "features" in cloud:
        window["features"] = cloud["features"][index]
    return window


NUM_SHOWN = 6
NUM_IMAGES = 2
WRONG = np.array([200, 48, 42], dtype=np.uint8)
"""Red of wrongly predicted points."""


class BlockWindowsConfig(TypedDict):
    """Block windows: columns over squares of `size_m` every `stride_m`, predicted `num_points` points at a time."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    size_m: PositiveFloat
    stride_m: PositiveFloat
    num_points: Count


@registry.tasks.add("segment")
class Segment(Supervised):
    """Predicts class probabilities of every point from `logits`; voting averages probabilities over passes.

    Predictions are packed: `probabilities` (P, C) of the points of all clouds, `cloud_offsets` (S+1,), the first row of
    each cloud, and, if the batch has labels, `target` (P,); `seen` is the predicted class of every input point or
    pixel. If a transform thinned the clouds and stored `nearest`, the row of the remaining point that represents each
    point of the whole cloud, predictions are those of the whole cloud, and `target` is its `whole_label`. The same
    holds for `logits` of the pixels of range images (S, H, W, C): `nearest` is the pixel of each point of the whole
    scan. `lift` converts predictions of pixels to points: the pixel's probabilities, or a vote of its neighbours of
    similar range (`knn`), whose class then has probability 1.

    In evaluation and prediction, `max_points` divides larger clouds into neighbourhoods of at most that many points,
    with coordinates relative to `origin`; `blocks` divides all clouds into columns, for models with a fixed number of
    points. Logits of several windows are averaged. Training is not affected: its transforms crop.
    Source: made here.
    """

    predicts = frozenset({"probabilities", "target", "cloud_offsets", "seen"})
    evaluation_arguments = frozenset({"blocks", "lift", "max_points", "origin"})

    @property
    def left_to_caller(self) -> tuple[str, ...]:  # type: ignore[override]
        """Steps that follow the network here and cannot be in a file of it."""
        steps = ["a point of the whole cloud or scan takes the probabilities of the point or pixel that stands for it"]
        if self.windows is not None:
            steps.insert(0, "larger clouds are divided into windows, and the logits of a point are averaged over them")
        return tuple(steps)

    def __init__(
        self,
        *,
        model: nn.Module,
        losses: Mapping[str, Loss],
        batch_keys: AvailableKeys,
        output_keys: AvailableKeys,
        max_points: Count | None = None,
        origin: Origin = "kept",
        blocks: BlockWindowsConfig | None = None,
        lift: Literal["nearest", "knn"] = "nearest",
        up_axis: Axis = "z",
        ignore_index: int | None = None,
        class_names: tuple[str, ...] = (),
        azimuth_deg: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(model=model, losses=losses, batch_keys=batch_keys, output_keys=output_keys)
        self.up_axis = up_axis
        self.is_full_turn = azimuth_deg is None or abs(azimuth_deg[0] - azimuth_deg[1]) == 360
        self.ignore_index = ignore_index
        self.class_names = tuple(class_names)
        self.lift = lift
        if lift == "knn" and "range_image" not in batch_keys.keys:
            raise ConfigError("segment.lift: knn votes among the pixels of range images, which no transform makes here")
        if blocks is not None and (max_points is not None or origin != "kept"):
            raise ConfigError("segment: blocks cannot be combined with max_points or origin; leave out either")
        if blocks is not None and up_axis != "z":
            raise ConfigError(f"segment: blocks are columns along z, the data set's {up_axis} is up")
        if max_points is None and origin != "kept":
            raise ConfigError("segment: origin is that of windows; give max_points, or leave it out")
        if "range_image" in batch_keys.keys and (blocks is not None or max_points is not None):
            raise ConfigError("segment: max_points and blocks divide clouds, not range images; leave them out")
        self.windows: Windows | None = None
        if blocks is not None:
            self.windows = BlockWindows(
                size_m=blocks["size_m"], stride_m=blocks["stride_m"], num_points=blocks["num_points"]
            )
        elif max_points is not None:
            self.windows = SphereWindows(max_points=max_points, origin=origin)

    def losses_and_predictions(
        self, model: nn.Module, batch: Batch, context: Any
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Compute loss sums over the model's input points, and predictions.

        With windows, a loss of other outputs than the logits is NaN: these exist once per window.
        """
        outputs = self.evaluated_outputs(model, batch)
        self.on_phase_end("forward")
        nan = torch.full((), torch.nan)
        sums = {
            name: term(batch, outputs) if set(term.names) <= batch.keys() | outputs.keys() else nan
            for name, term in self._terms.items()
        }
        self.on_phase_end("loss")
        return sums, self.postprocess(outputs, batch)

    def vote(self, passes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Average the probabilities (P, C) of several passes over varied input."""
        sizes = {len(predictions["probabilities"]) for predictions in passes}
        assert len(sizes) == 1, f"passes answer for {sizes} points; voting needs the same points in every pass"
        total = passes[0]["probabilities"].clone()
        for predictions in passes[1:]:
            total += predictions["probabilities"]
        return {**passes[0], "probabilities": total / len(passes)}

    def hardness(self, batch: Batch, predictions: Mapping[str, Any]) -> Tensor:
        """Return the share of labelled points or pixels of each sample (B,) that are predicted wrongly."""
        label, seen = batch["label"].flatten(), predictions["seen"].flatten()
        is_counted = (
            torch.ones_like(label, dtype=torch.bool) if self.ignore_index is None else label != self.ignore_index
        )
        sums = torch.stack([(seen != label) & is_counted, is_counted]).cumsum(dim=1)
        wrong, counted = F.pad(sums, (1, 0))[:, _sample_offsets(batch, batch["label"])].diff(dim=1).double()
        return wrong / counted.clamp(min=1)

    def show(self, batch: Batch, predictions: Mapping[str, Any]) -> list[Picture]:
        """Draw the first clouds of a batch: by true class, by predicted class, and errors in red."""
        if "label" not in batch:
            return []
        if batch["label"].ndim == 3:
            return [self._draw_range_images(batch["label"], predictions["seen"])]
        offsets = _sample_offsets(batch, batch["label"]).tolist()
        spans = [slice(*span) for span in pairwise(offsets[: NUM_SHOWN + 1])]
        points = pad_to_3d(batch["points"].flatten(0, -2).float().cpu().numpy())
        predicted, label = (
            labels.flatten().cpu().numpy() for labels in (predictions["seen"], widen_labels(batch["label"]))
        )
        if self.ignore_index is not None:
            label = np.where(label == self.ignore_index, -1, label)
        wrong = (predicted != label) & (label >= 0)
        shown = slice(0, offsets[len(spans)])
        captions = [f"predicted, {_format_accuracy(wrong[span], label[span])} right" for span in spans]
        pixels = render_clouds(
            [points[span] for span in spans] * 3,
            captions=[*("ground truth" for _ in spans), *captions, *("errors" for _ in spans)],
            colors=[
                *(label_colors(label[span]) for span in spans),
                *(label_colors(predicted[span]) for span in spans),
                *(np.where(wrong[span][:, None], WRONG, UNLABELLED) for span in spans),
            ],
            up_axis=self.up_axis,
            columns=len(spans),
        )
        pixels = with_legend(pixels, np.concatenate([label[shown], predicted[shown]]), self.class_names)
        return [Picture("predictions", pixels, f"{_format_accuracy(wrong[shown], label[shown])} of the points right")]

    def _draw_range_images(self, label: Tensor, predicted: Tensor) -> Picture:
        """Draw the first range images of (S, H, W): predicted classes, labels, wrong pixels in red."""
        true_images = label[:NUM_IMAGES].cpu().numpy()
        predicted_images = predicted.view(label.shape)[:NUM_IMAGES].cpu().numpy()
        is_counted = (
            np.ones_like(true_images, dtype=bool) if self.ignore_index is None else true_images != self.ignore_index
        )
        wrong = np.where((is_counted & (predicted_images != true_images))[..., None], WRONG, UNLABELLED)
        rows = np.stack([label_colors(predicted_images), label_colors(true_images), wrong], axis=1).astype(np.uint8)
        share = (predicted_images == true_images)[is_counted].mean() if is_counted.any() else 0.0
        return Picture("predictions", rows.reshape(-1, *rows.shape[3:]), f"{share:.1%} of the labelled pixels right")

    def _vote_neighbours(self, batch: Batch, predicted: Tensor, probabilities: Tensor) -> Tensor:
        """Return one-hot probabilities (P, C) of the class that a point's neighbours in the range image vote for."""
        image = batch["range_image"]
        voted = lift_knn(
            predicted.view(image.shape),
            range_image=image,
            pixel=batch["nearest"],
            point_range=batch["point_range"],
            offsets=batch["whole_offsets"],
            vote=KNNVote(void=-1 if self.ignore_index is None else self.ignore_index, is_circular=self.is_full_turn),
        )
        return F.one_hot(voted, probabilities.shape[1]).to(probabilities.dtype)

    def evaluated_outputs(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """Compute the outputs of one pass, or the logits (..., C) of every point averaged over its windows."""
        if self.windows is None:
            return self.outputs(model, batch)
        points, features, offsets = as_packed(batch["points"], batch.get("features"), batch.get("offsets"))
        packed = {**batch, "points": points, "offsets": offsets, **({} if features is None else {"features": features})}
        logits = [
            self.windows(lambda part: self.outputs(model, part)["logits"], cloud) for cloud in split_clouds(packed)
        ]
        return {"logits": torch.cat(logits).view(*batch["points"].shape[:-1], -1)}

    def postprocess(self, outputs: Mapping[str, Any], batch: Batch) -> dict[str, Any]:
        """Convert logits to probabilities (P, C) of every point, in the whole cloud if the input was thinned."""
        logits = outputs["logits"].flatten(0, -2)
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        probabilities = logits.to(dtype).softmax(dim=1)
        predicted = probabilities.argmax(dim=1)
        offsets = _sample_offsets(batch, outputs["logits"][..., 0])
        label = batch.get("label")
        if "nearest" in batch:
            whole_offsets = batch["whole_offsets"]
            if self.lift == "knn":
                probabilities = self._vote_neighbours(batch, predicted, probabilities)
            else:
                probabilities = probabilities[batch["nearest"] + offsets[:-1].repeat_interleave(whole_offsets.diff())]
            offsets, label = whole_offsets, batch.get("whole_label")
        target = {} if label is None else {"target": widen_labels(label).flatten()}
        return {"probabilities": probabilities, "cloud_offsets": offsets, "seen": predicted, **target}

    def make_decoding(self, example: Batch) -> Decoder:
        """Make the decoding of an exported file: `probabilities` (..., C) of the points or pixels of the input."""
        return lambda outputs, batch: {"probabilities": outputs["logits"].softmax(dim=-1)}


def _sample_offsets(batch: Batch, rows: Tensor) -> Tensor:
    """Return the first row of each sample (S + 1,), of packed rows (P,), or of (B, N) or (S, H, W)."""
    if rows.ndim == 1:
        offsets: Tensor = batch["offsets"]
        return offsets
    return torch.arange(len(rows) + 1, device=rows.device) * rows[0].numel()


def _format_accuracy(wrong: np.ndarray, label: np.ndarray) -> str:
    """Format the share of labelled points that are predicted correctly, in per cent."""
    num_counted = int((label >= 0).sum())
    return f"{1 - wrong.sum() / num_counted:.1%}" if num_counted else "none"
