"""Base class of supervised tasks: losses bound to batch and outputs, with counts summed over the step.

Classification: one label per sample.

Pose estimation: joint positions decoded from one heat map per joint.

Centre refinement: a network predicts the offset from a depth frame's reference point to a better one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sightline.contract import registry
from sightline.contract.binding import AvailableKeys, BoundFunction, bind, locate_output_error
from sightline.contract.errors import UserError
from sightline.contract.loss import Loss, bad_count_error, cast_forward
from sightline.contract.task import AllReduce, Task
from sightline.contract.types import Batch
from sightline.draw.pictures import Axis, Picture, label_colors, pad_to_3d, render_clouds, with_legend
from sightline.ops.heat_maps import Decoding, decode, peaks
from sightline.ops.pinhole import CropPlacement, from_crop_coordinates
from sightline.ops.voxels import CubePlacement, permute_axes, to_camera
from sightline.ops.waits import require

Decoder = Callable[[Mapping[str, Tensor], Batch], dict[str, Tensor]]
"""Function from the outputs of a network and its batch to what an exported file predicts beside them."""


class Supervised(Task):
    """Supervised task: calls the model and each loss with the keys that their signatures name.

    What a task computes from a batch before the forward pass, such as the assignment of priors to boxes, it returns
    from `context` and names in `context_keys`: losses, their counts and metrics may name these keys, too.
    Raises ConfigError, naming both sides, if a key is missing or available twice.
    """

    def __init__(
        self, *, model: nn.Module, losses: Mapping[str, Loss], batch_keys: AvailableKeys, output_keys: AvailableKeys
    ) -> None:
        self._output_keys = output_keys.keys
        self._forward = bind(model.forward, batch_keys, owner=f"model '{type(model).__name__}'")
        self._counts: dict[str, BoundFunction] = {}
        self._terms: dict[str, BoundFunction] = {}
        context = [AvailableKeys("the task", self.context_keys)] if self.context_keys else []
        for name, loss in losses.items():
            self._counts[name] = bind(loss.count, batch_keys, *context, owner=f"the count of losses.{name}")
            self._terms[name] = bind(cast_forward(loss), batch_keys, output_keys, *context, owner=f"losses.{name}")

    @property
    def bound_losses(self) -> dict[str, tuple[BoundFunction, BoundFunction]]:
        """Each loss's sum and count, with the keys that they take."""
        return {name: (term, self._counts[name]) for name, term in self._terms.items()}

    def prepare(
        self, model: nn.Module, micro_batches: Sequence[Batch], world: AllReduce
    ) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        """Return each loss's count over all micro-batches and processes, and the context of each micro-batch."""
        with torch.no_grad():
            contexts = [self.context(model, batch) for batch in micro_batches]
        counts = {
            name: _sum_counts(name, [count(*pair) for pair in zip(micro_batches, contexts, strict=True)])
            for name, count in self._counts.items()
        }
        return world.all_reduce_sum(counts, operation="loss counts"), contexts

    def context(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """Compute what losses and metrics read in addition to batch and outputs; without gradient."""
        return {}

    def losses(self, model: nn.Module, batch: Batch, context: Any) -> dict[str, Tensor]:
        """Return each loss's sum over this micro-batch."""
        return self.losses_of(batch, self.outputs(model, batch), context)

    def losses_of(self, batch: Batch, outputs: dict[str, Any], context: Any) -> dict[str, Tensor]:
        """Return each loss's sum over this micro-batch, from the model's outputs."""
        self.on_phase_end("forward")
        return self._sums(batch, outputs, context)

    def outputs(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """Compute the model's outputs for a batch."""
        return model(**self.inputs(batch))

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """Select the model's inputs from a batch."""
        return self._forward.select(batch)

    def evaluated_outputs(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """Compute the outputs for predictions: those of one pass, unless a task divides samples into windows."""
        return self.outputs(model, batch)

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """Compute the predictions that metrics and pictures read."""
        return self.postprocess(self.evaluated_outputs(model, batch), batch)

    def losses_and_predictions(
        self, model: nn.Module, batch: Batch, context: Any
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Compute loss sums and predictions of one forward pass; predictions include the context."""
        outputs = self.evaluated_outputs(model, batch)
        self.on_phase_end("forward")
        sums = self._sums(batch, outputs, context)
        self.on_phase_end("loss")
        return sums, {**self.postprocess(outputs, batch), **context}

    def postprocess(self, outputs: dict[str, Any], batch: Batch) -> dict[str, Any]:
        """Convert outputs to predictions: the outputs themselves, unless a task overrides this."""
        return outputs

    def with_one_loss(self, name: str) -> Supervised:
        """Copy the task with the loss `name` alone."""
        copied = copy.copy(self)
        copied._counts, copied._terms = {name: self._counts[name]}, {name: self._terms[name]}
        return copied

    def _sums(self, batch: Batch, outputs: dict[str, Any], context: Mapping[str, Any]) -> dict[str, Tensor]:
        sums = {}
        for name, term in self._terms.items():
            try:
                sums[name] = _assert_scalar(name, "forward", term(batch, outputs, context))
            except (AttributeError, RuntimeError, TypeError, ValueError) as error:
                reads, forward = [key for key in term.names if key in self._output_keys], self._forward.function
                located = locate_output_error(error, outputs, owner=f"losses.{name}", reads=reads, forward=forward)
                if located is None:
                    raise
                raise located from error
        return sums


def _assert_scalar(name: str, method: str, returned: Any) -> Tensor:
    """Return what a loss returned, as a tensor (). Raises UserError if that is no tensor of one number."""
    if isinstance(returned, Tensor) and returned.numel() == 1:
        return returned.reshape(()) if returned.ndim else returned
    description = f"a tensor {tuple(returned.shape)}" if isinstance(returned, Tensor) else type(returned).__name__
    raise UserError(f"losses.{name}: {method} returned {description}; return one number, a tensor ()")


def _sum_counts(name: str, returned: list[Any]) -> Tensor:
    """Sum a loss's counts of micro-batches. Raises UserError for one that is negative or not finite."""
    counts = []
    for value in returned:
        count = _assert_scalar(name, "count", value)
        counts.append(count if count.is_floating_point() else count.long())  # truths would add up to a truth
        is_sound = (count >= 0) & (count < torch.inf) if count.is_floating_point() else count >= 0
        require(is_sound, partial(bad_count_error, name, count))
    return sum(counts[1:], counts[0])


NUM_SHOWN = 12


@registry.tasks.add("classify")
class Classify(Supervised):
    """Predicts class probabilities from `logits`; voting averages probabilities over passes. Source: made here."""

    predicts = frozenset({"probabilities"})

    def __init__(
        self,
        *,
        model: nn.Module,
        losses: Mapping[str, Loss],
        batch_keys: AvailableKeys,
        output_keys: AvailableKeys,
        class_names: tuple[str, ...] = (),
        up_axis: Axis = "z",
    ) -> None:
        super().__init__(model=model, losses=losses, batch_keys=batch_keys, output_keys=output_keys)
        self.class_names = tuple(class_names)
        self.up_axis = up_axis

    def postprocess(self, outputs: dict[str, Any], batch: Batch) -> dict[str, Any]:
        """Add `probabilities` (B, C), the softmax of `logits` (B, C)."""
        dtype = torch.float64 if outputs["logits"].dtype == torch.float64 else torch.float32
        return {**outputs, "probabilities": outputs["logits"].to(dtype).softmax(dim=1)}

    def make_decoding(self, example: Batch) -> Decoder:
        """Make the decoding of an exported file: `probabilities` (B, C)."""
        return lambda outputs, batch: {"probabilities": outputs["logits"].softmax(dim=1)}

    def vote(self, passes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Average the probabilities (B, C) of several passes over varied input."""
        return {"probabilities": torch.stack([p["probabilities"] for p in passes]).mean(dim=0)}

    def hardness(self, batch: Batch, predictions: Mapping[str, Any]) -> Tensor:
        """Return 1 minus the probability of the true class (B,), and 1 more where the prediction is wrong.

        It is 0 for a label that is no class, and for several labels a sample.
        """
        probabilities, label = predictions["probabilities"], batch["label"]
        if label.shape != probabilities.shape[:1]:
            return probabilities.new_zeros(len(probabilities))
        is_class = (label >= 0) & (label < probabilities.shape[1])
        true_class = torch.where(is_class, label, 0).long()
        hardness = 1 - probabilities.gather(1, true_class[:, None])[:, 0] + (probabilities.argmax(dim=1) != label)
        return hardness * is_class

    def show(self, batch: Batch, predictions: Mapping[str, Any]) -> list[Picture]:
        """Draw the first clouds of a batch, coloured by predicted class; captions name a true class that differs."""
        if "points" not in batch:
            return []
        shown = min(NUM_SHOWN, len(batch["label"]))
        predicted = predictions["probabilities"][:shown].argmax(dim=1).tolist()
        labels = batch["label"][:shown].tolist()
        captions = [
            self._class_name(predicted_label)
            if predicted_label == label
            else f"{self._class_name(predicted_label)} (is {self._class_name(label)})"
            for predicted_label, label in zip(predicted, labels, strict=True)
        ]
        clouds = _first_clouds(batch, shown)
        is_right_of_clouds = [
            predicted_label == label for predicted_label, label in zip(predicted, labels, strict=True)
        ]
        colors = list(label_colors(np.array(predicted)))
        pixels = render_clouds(
            clouds, captions=captions, is_right=is_right_of_clouds, colors=colors, up_axis=self.up_axis
        )
        pixels = with_legend(pixels, np.array(predicted), self.class_names)
        return [Picture("predictions", pixels, f"{sum(is_right_of_clouds)} of {shown} right")]

    def _class_name(self, index: int) -> str:
        return self.class_names[index] if index < len(self.class_names) else str(index)


def _first_clouds(batch: Batch, count: int) -> list[np.ndarray]:
    """Return the first clouds (N, 3) of a batch that is stacked, padded, listed or packed with offsets."""
    points = batch["points"]
    if "offsets" in batch:
        clouds = [points[start:end] for start, end in pairwise(batch["offsets"][: count + 1].tolist())]
    elif "points_mask" in batch:
        clouds = [cloud[mask] for cloud, mask in zip(points[:count], batch["points_mask"][:count], strict=True)]
    else:
        clouds = list(points[:count])
    return [pad_to_3d(cloud.float().cpu().numpy()) for cloud in clouds]


@registry.tasks.add("pose")
class Pose(Supervised):
    """Predicts `joints_mm` (B, J, 3), camera frame, and each map's `peaks` (B, J) from `likelihood`.

    `decoding` is how a coordinate is read from a heat map: `parabola` around the largest cell, its middle (`argmax`),
    `soft` or `centroid`. Votes are averaged in camera coordinates, each pass converted by its own placement.
    Source: Moon et al. 2018, section 4 (heat maps of joints in a volume).
    """

    predicts = frozenset({"joints_mm", "peaks"})

    def __init__(
        self,
        *,
        model: nn.Module,
        losses: Mapping[str, Loss],
        batch_keys: AvailableKeys,
        output_keys: AvailableKeys,
        decoding: Decoding = "parabola",
    ) -> None:
        super().__init__(model=model, losses=losses, batch_keys=batch_keys, output_keys=output_keys)
        self.decoding: Decoding = decoding

    def postprocess(self, outputs: dict[str, Any], batch: Batch) -> dict[str, Any]:
        """Add `joints_mm` (B, J, 3), camera frame, and `peaks` (B, J), decoded from the heat maps."""
        likelihood = outputs["likelihood"]
        joints_mm = decode_joints(likelihood, CubePlacement.from_rows(batch["placement"]), decoding=self.decoding)
        return {**outputs, "joints_mm": joints_mm, "peaks": peaks(likelihood).float()}

    def make_decoding(self, example: Batch) -> Decoder:
        """Make the decoding of an exported file: `joints_mm` (B, J, 3) and `peaks` (B, J), in the example's grid."""
        grid = CubePlacement.from_rows(example["placement"])

        def decode(outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
            rows, likelihood = batch["placement"].double(), outputs["likelihood"]
            placement = replace(
                grid, reference_mm=rows[:, :3], scale=rows[:, 3], angle_rad=rows[:, 4], shift=rows[:, 5:8]
            )
            joints_mm = decode_joints(likelihood, placement, decoding=self.decoding)
            return {"joints_mm": joints_mm.to(likelihood.dtype), "peaks": peaks(likelihood)}

        return decode

    def vote(self, passes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Average joints (B, J, 3) and peaks (B, J) of several passes over varied input."""
        return {
            name: torch.stack([predictions[name] for predictions in passes]).mean(dim=0)
            for name in ("joints_mm", "peaks")
        }


def decode_joints(likelihood: Tensor, placement: CubePlacement, *, decoding: Decoding) -> Tensor:
    """Decode heat maps (B, J, V, V, V) to joints (B, J, 3) float64, in mm, camera frame.

    The authors' release reads the index of the largest cell alone, for any `decoding`, and adds half a voxel.
    """
    maps = permute_axes(likelihood.detach(), placement.axes)
    pooling = placement.size / maps.shape[-1]
    if placement.compat == "release":
        return to_camera((decode(maps, decoding="argmax") - 0.5) * pooling, placement)
    return to_camera(decode(maps, decoding=decoding) * pooling, placement)


@registry.tasks.add("centre")
class CentreRefinement(Supervised):
    """Predicts `centre_mm` (B, 3), camera frame, where the joint in the middle is, from `offset`.

    What it finds are the reference points of another run: `sightline predict --data` writes them.
    Source: Oberweger and Lepetit 2017, DeepPrior++, section 3.1.
    """

    predicts = frozenset({"centre_mm"})

    def postprocess(self, outputs: dict[str, Any], batch: Batch) -> dict[str, Any]:
        """Add `centre_mm` (B, 3), camera frame, computed from `offset` (B, 3) and the placement of each crop."""
        placement = CropPlacement.from_rows(batch["crop_placement"])
        return {**outputs, "centre_mm": from_crop_coordinates(outputs["offset"].detach()[:, None], placement)[:, 0]}
