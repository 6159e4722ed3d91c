"""Semantic segmentation: one label per point, or per pixel of a range image and the points behind it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, Literal

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
from sightline.contract.types import Batch, Surroundings
from sightline.draw.drawn_rows import LEFT_OUT, are_drawn
from sightline.draw.pictures import UNLABELLED, Axis, Picture, label_colors, pad_to_3d, render_clouds, with_legend
from sightline.layers.cloud_layouts import as_packed
from sightline.ops.dtypes import widen_labels
from sightline.ops.voxels.lift import KNNVote, lift_knn
from sightline.parts.tasks.supervised import Decoder, Supervised
from sightline.parts.tasks.windows import (
    BlockWindows,
    FragmentWindows,
    Origin,
    SphereWindows,
    TileWindows,
    Windows,
    split_clouds,
)

NUM_SHOWN = 6
NUM_IMAGES = 2
_MAX_ASPECT = 3
"""Largest ratio of the width of a picture of range images to its height, but for rounding: rows are repeated."""
WRONG = np.array([200, 48, 42], dtype=np.uint8)
"""Red of wrongly predicted points."""


class BlockWindowsConfig(TypedDict):
    """Block windows: columns over squares of `size_m` every `stride_m`, predicted `num_points` points at a time."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    size_m: PositiveFloat
    stride_m: PositiveFloat
    num_points: Count


class TileWindowsConfig(TypedDict):
    """Tiles: squares of `size_m`, each predicted with all points up to `halo_m` around it."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    size_m: PositiveFloat
    halo_m: PositiveFloat


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
    points. Logits of several windows are averaged. `tiles` divides clouds into squares, each predicted with what is
    around it, which give the logits of the whole where that reaches far enough. `fragments_m` divides clouds into
    fragments of one point in each cube of that side, whose probabilities are averaged. Training is not affected: its
    transforms crop.
    Source: made here.
    """

    predicts = frozenset({"probabilities", "target", "cloud_offsets", "seen"})
    evaluation_arguments = frozenset({"blocks", "fragments_m", "lift", "max_points", "origin", "tiles"})

    @property
    def protocol(self) -> str:  # type: ignore[override]
        """How clouds are predicted: by `fragments`, `windows`, `blocks` or `tiles`, or a point as its `voxel`."""
        return self._whole_protocol if self.windows is None else self.windows.protocol

    @property
    def left_to_caller(self) -> tuple[str, ...]:  # type: ignore[override]
        """Steps that follow the network here and cannot be in a file of it."""
        steps = ["a point of the whole cloud or scan takes the probabilities of the point or pixel that stands for it"]
        if self.windows is not None:
            steps.insert(0, "clouds are divided into windows, and what these say of a point is averaged")
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
        fragments_m: PositiveFloat | None = None,
        tiles: TileWindowsConfig | None = None,
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
        if fragments_m is not None and (blocks is not None or max_points is not None):
            raise ConfigError("segment: fragments_m cannot be combined with blocks or max_points; leave out either")
        if tiles is not None and (blocks, max_points, fragments_m) != (None, None, None):
            raise ConfigError(
                "segment: tiles cannot be combined with blocks, max_points or fragments_m; leave out either"
            )
        is_image = not {"range_image", "pixel"}.isdisjoint(batch_keys.keys)
        if is_image and (blocks, max_points, fragments_m, tiles) != (None,) * 4:
            raise ConfigError(
                "segment: max_points, blocks, fragments_m and tiles divide clouds, not images of scans; leave them out"
            )
        self._whole_protocol = "voxel" if hasattr(model, "grid_m") else ""
        self.windows: Windows | None = None
        if blocks is not None:
            self.windows = BlockWindows(
                size_m=blocks["size_m"], stride_m=blocks["stride_m"], num_points=blocks["num_points"]
            )
        elif tiles is not None:
            self.windows = TileWindows(size_m=tiles["size_m"], halo_m=tiles["halo_m"], up_axis=up_axis)
        elif fragments_m is not None:
            self.windows = FragmentWindows(size_m=fragments_m)
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

    def vote(self, passes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """Average the probabilities (P, C) of several passes over varied input, of which two at a time are kept."""
        remaining = iter(passes)
        first = next(remaining)
        total, count = first["probabilities"].clone(), 1
        for predictions in remaining:
            sizes = len(total), len(predictions["probabilities"])
            assert len({*sizes}) == 1, f"passes answer for {sizes} points; voting needs the same points in every pass"
            total += predictions["probabilities"]
            count += 1
        return {**first, "probabilities": total / count}

    def hardness(self, batch: Batch, predictions: Mapping[str, Any]) -> Tensor:
        """Return the share of labelled points or pixels of each sample (B,) that are predicted wrongly."""
        label, seen = batch["label"].flatten(), predictions["seen"].flatten()
        is_counted = (
            torch.ones_like(label, dtype=torch.bool) if self.ignore_index is None else label != self.ignore_index
        )
        sums = torch.stack([(seen != label) & is_counted, is_counted]).cumsum(dim=1)
        wrong, counted = F.pad(sums, (1, 0))[:, _sample_offsets(batch, batch["label"])].diff(dim=1).double()
        return wrong / counted.clamp(min=1)

    def show(
        self, batch: Batch, predictions: Mapping[str, Any], *, surroundings: Surroundings = "none"
    ) -> list[Picture]:
        """Draw the first clouds of a batch: by true class, by predicted class, and errors in red.

        The three are below one another, those of a single cloud side by side. Of scans and rooms (`surroundings`),
        points that would hide or dwarf the others are left out.
        """
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
        drawn = [span.start + np.flatnonzero(are_drawn(points[span], surroundings, self.up_axis)) for span in spans]
        pixels = render_clouds(
            [points[rows] for rows in drawn] * 3,
            captions=[*("ground truth" for _ in spans), *captions, *("errors" for _ in spans)],
            colors=[
                *(label_colors(label[rows]) for rows in drawn),
                *(label_colors(predicted[rows]) for rows in drawn),
                *(np.where(wrong[rows][:, None], WRONG, UNLABELLED) for rows in drawn),
            ],
            up_axis=self.up_axis,
            columns=len(spans) if len(spans) > 1 else 3,
        )
        pixels = with_legend(pixels, np.concatenate([label[shown], predicted[shown]]), self.class_names)
        caption = f"{_format_accuracy(wrong[shown], label[shown])} of the points right"
        note = LEFT_OUT.get(surroundings)
        return [Picture("predictions", pixels, f"{caption}; {note}" if note else caption)]

    def _draw_range_images(self, label: Tensor, predicted: Tensor) -> Picture:
        """Draw the first range images of (S, H, W): predicted classes, labels, wrong pixels in red."""
        true_images = label[:NUM_IMAGES].cpu().numpy()
        predicted_images = predicted.view(label.shape)[:NUM_IMAGES].cpu().numpy()
        is_counted = (
            np.ones_like(true_images, dtype=bool) if self.ignore_index is None else true_images != self.ignore_index
        )
        wrong = np.where((is_counted & (predicted_images != true_images))[..., None], WRONG, UNLABELLED)
        labels = np.where(is_counted, true_images, -1)
        rows = np.stack([label_colors(predicted_images), label_colors(labels), wrong], axis=1).astype(np.uint8)
        rows = rows.reshape(-1, *rows.shape[3:])
        rows = rows.repeat(max(1, round(rows.shape[1] / len(rows) / _MAX_ASPECT)), axis=0)
        pixels = with_legend(rows, np.concatenate([labels.ravel(), predicted_images.ravel()]), self.class_names)
        share = (predicted_images == true_images)[is_counted].mean() if is_counted.any() else 0.0
        order = "from above: predicted, labelled, and wrong pixels in red"
        return Picture("predictions", pixels, f"{share:.1%} of the labelled pixels right; {order}")

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
