"""Object detection: assignment of priors to boxes before the forward pass, detections after it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import TypedDict

from sightline.areas.detect.assignment_pictures import ImageBoxes, show_assignments, show_priors
from sightline.areas.detect.output import (
    DetectionFilter,
    GreedyNMS,
    UnsuppressedDetections,
    clip_boxes,
    concatenate_detections,
    to_file_pixels,
)
from sightline.areas.detect.pictures import MIN_DRAWN_SCORE, get_image_pixels, show_detections
from sightline.areas.detect.tiles import PhotoTiles
from sightline.contract import registry
from sightline.contract.arguments import (
    AssignerBlock,
    Count,
    FractionBelowOne,
    NonNegativeFloat,
    PositiveFloat,
    SuppressionBlock,
)
from sightline.contract.binding import AvailableKeys, BoundFunction
from sightline.contract.errors import ConfigError, RunError
from sightline.contract.loss import Loss
from sightline.contract.model import model_output_keys
from sightline.contract.registry import Need
from sightline.contract.task import AllReduce
from sightline.contract.types import Batch
from sightline.draw.pictures import Picture
from sightline.ops.boxes.codes import decode_boxes
from sightline.ops.boxes.overlaps import box_iou
from sightline.ops.boxes.priors import IGNORED, PRESETS, AnchorShapes, PriorGrid, Priors, make_anchors, make_points
from sightline.ops.dtypes import widen_labels
from sightline.ops.waits import POSITIVE, fetch, read_list, recall, remember
from sightline.parts.boxes.assigner import Assignment, PriorPredictions
from sightline.parts.boxes.padded import PaddedBoxes
from sightline.parts.tasks.supervised import Decoder, Supervised

_BOXES, _TARGETS, _SIDES = "boxes at each prior:", "targets of", "numbers of a box:"
"""Topics of needs."""
_BY_RUN = "run's weights; it chooses by predictions, those of this checkpoint"
_BY_RANDOM_WEIGHTS = "random weights; it chooses by predictions, and a config has no trained weights"
"""Remarks on a picture of an assigner that reads predictions."""


class AnchorBlock(TypedDict, total=False):
    """Anchors of a cell: a preset of `ops.boxes.priors`, of which single values may be replaced.

    `sizes` replace all other values, which may come from a base config: widths and heights in pixels of the anchors
    of a cell, level by level, the finest first.
    """

    preset: Literal["retinanet", "crowddet", "s3"]
    scales: tuple[PositiveFloat, ...]
    ratios: tuple[PositiveFloat, ...]
    base_strides: PositiveFloat
    whole_px: bool
    sizes: tuple[tuple[tuple[PositiveFloat, PositiveFloat], ...], ...]


class GridBlock(TypedDict, total=False):
    """Positions of cells: `offset` in steps, 0.5 for their centres; a step is the stride, or image side / cells.

    `offset_px` replaces `offset`, in pixels at every level. See `ops.boxes.priors.PriorGrid`.
    """

    offset: FractionBelowOne
    offset_px: NonNegativeFloat
    steps: Literal["stride", "image"]


@registry.tasks.add("detect")
class Detect(Supervised):
    """Predicts `detections` (D, 6) in pixels of the files: left, top, right, bottom, score, class.

    Detections of image b are the rows `detection_offsets[b]` to `detection_offsets[b + 1]`, by falling score. Targets
    are assigned to priors once a step, before the forward pass. Losses and metrics read these keys:
    - `priors` (P, 4) or (P, 2), and `prior_stride` (P,), the pixels between the cells of their level;
    - `target` (B, P): class of the assigned box, -1 for background, -2 for priors that no loss counts;
    - `matched_boxes` (B, P, 4), and for a loss that reads it `matched_density` (B, P), the highest IoU of that box
      with another one of its image that is not ignored;
    - `is_unmatched` (G,): boxes of the batch that are not ignored, but assigned to no prior;
    - `second_match` (B, P), for heads of two predictions per prior: row of the second box in the batch, -1, or -2.

    Each step logs the unmatched boxes (`unmatched_gt`), the priors with a box (`n_pos`) and the ignored priors
    (`n_ignore`). `anchors` are RetinaNet's by default; for a head of one anchor per cell, squares of eight strides.
    `grid` positions anchors and points: at the centres of cells, a stride apart, by default.
    `suppression`, `score`, `per_level`, `most` and `clip` change evaluation alone. `score` is the probability above
    which a class is detected (before its centre-ness counts), `per_level` the largest number of a level before
    suppression, `most` that of an image after it. Without `clip`, boxes may exceed the file's border.
    Source: Lin et al. 2017, Focal Loss for Dense Object Detection, sections 4 and 5.
    """

    predicts = frozenset({"detections", "detection_offsets"})
    context_keys = frozenset(
        {"priors", "prior_stride", "target", "matched_boxes", "matched_density", "second_match", "is_unmatched"}
    )
    evaluation_arguments = frozenset({"suppression", "score", "per_level", "most", "clip"})

    def __init__(
        self,
        *,
        model: nn.Module,
        losses: Mapping[str, Loss],
        batch_keys: AvailableKeys,
        output_keys: AvailableKeys,
        assigner: AssignerBlock,
        anchors: AnchorBlock | None = None,
        grid: GridBlock | None = None,
        suppression: SuppressionBlock | None = None,
        score: FractionBelowOne = 0.05,
        per_level: Count = 1000,
        most: Count = 100,
        clip: bool = True,
        class_names: tuple[str, ...] = (),
    ) -> None:
        self._head: Any = getattr(model, "head", None)
        if self._head is None:
            raise ConfigError(f"task: detect needs a model with a head, such as detector, found {type(model).__name__}")
        super().__init__(model=model, losses=losses, batch_keys=batch_keys, output_keys=output_keys)
        self._model = model
        self._shapes = _make_anchor_shapes(anchors, self._head)
        self._grid: GridBlock = grid or {}
        self._assigner = assigner
        _assert_compatible(assigner, self._head)
        _assert_losses(self._terms, self._head)
        _assert_losses_match_assigner(losses, assigner)
        if suppression is None:
            suppression = registry.suppressions.get_entry("greedy").builder()
        _assert_offered(suppression, output_keys, self._head)
        self._reads_density = any("matched_density" in loss.names for loss in self._terms.values())
        self._select = DetectionFilter(suppression, min_score=score, max_per_level=per_level, max_detections=most)
        self._clip, self._class_names = clip, class_names
        self._made: dict[tuple[Any, ...], Priors] = {}

    @property
    def selection(self) -> DetectionFilter:
        """Selection of the detections from the predictions."""
        return self._select

    def context(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """Assign every prior its target: `target` (B, P), `matched_boxes` (B, P, 4) and the other `context_keys`."""
        priors = self.get_priors(batch["image"])
        predictions = self._predict_priors(model, batch) if self._assigner.needs_predictions else None
        targets, boxes, densities, second = [], [], [], []
        positive: list[tuple[Tensor, ...]] = []
        is_matched = torch.zeros(len(batch["boxes"]) + 1, dtype=torch.bool, device=batch["boxes"].device)
        slices, labels = _image_slices(batch["box_offsets"]), widen_labels(batch["label"])
        for rows, (matched, _, other) in zip(slices, self._assign(priors, batch, predictions), strict=True):
            image_boxes = batch["boxes"][rows].to(priors.coordinates)
            # Row -1 is of priors without a box: a row of zeros behind the boxes, and the last flag of `is_matched`.
            has_box, box_index = matched >= 0, matched.clamp(min=-1)
            is_matched.scatter_(0, torch.where(has_box, matched + rows.start, -1) % len(is_matched), True)
            if (index := recall(matched, POSITIVE)) is not None:
                positive.append(index)
            targets.append(torch.where(has_box, functional.pad(labels[rows], (0, 1))[box_index], matched))
            boxes.append(functional.pad(image_boxes, (0, 0, 0, 1))[box_index])
            if self._reads_density:
                density = _compute_densities(image_boxes, batch["is_ignored"][rows])
                densities.append(functional.pad(density, (0, 1))[box_index])
            if other is not None:
                second.append(torch.where(other >= 0, other + rows.start, other))
                is_matched.scatter_(0, second[-1].clamp(min=-1) % len(is_matched), True)
        target = torch.stack(targets)
        if len(positive) == len(targets):
            remember(target, POSITIVE, _join_images(positive))
        return {
            **({"second_match": torch.stack(second)} if second else {}),
            **({"matched_density": torch.stack(densities)} if densities else {}),
            "priors": priors.coordinates,
            "prior_stride": priors.prior_stride,
            "target": target,
            "matched_boxes": torch.stack(boxes),
            "is_unmatched": ~(batch["is_ignored"] | is_matched[:-1]),
        }

    def prepare_outputs(
        self, model: nn.Module, batch: Batch, world: AllReduce
    ) -> tuple[dict[str, Tensor], list[dict[str, Any]], dict[str, Any]] | None:
        """Return what `prepare` does for a batch, and the outputs that its assigner has read; None if it reads none."""
        if not self._assigner.needs_predictions or any(map(self._is_changed, _OF_ONE_PASS)):
            return None
        outputs = self.outputs(model, batch)
        self.on_phase_end("forward")
        known: Any = _KnownOutputs(outputs)
        return *self.prepare(known, [batch], world), outputs

    def _is_changed(self, method: str) -> bool:
        """Return True if a subclass, or whoever has changed this task, has a method of its own."""
        return getattr(getattr(self, method), "__func__", None) is not getattr(Detect, method)

    def _assign(
        self, priors: Priors, batch: Batch, predictions: Sequence[PriorPredictions] | None
    ) -> Sequence[Assignment]:
        """Assign the boxes of each image."""
        labels = batch["label"] if predictions is not None or self._assigner.needs_labels else None
        boxes = batch["boxes"].to(priors.coordinates)
        padded = PaddedBoxes.from_rows(boxes, batch["box_offsets"], batch["is_ignored"], labels)
        return self._assigner.assign_batch(priors, padded, predictions)

    @torch.no_grad()
    def _predict_priors(self, model: nn.Module, batch: Batch) -> list[PriorPredictions]:
        """Compute the predictions of each image that an assigner reads.

        The model keeps its device and state; its running statistics do not see the batch a second time.
        """
        image = batch["image"]
        if isinstance(model, _KnownOutputs):
            return self._to_predictions(model.outputs, image)
        reference = next(model.parameters(), image) if isinstance(model, nn.Module) else image  # else a stand-in
        is_compatible = (reference.device, reference.dtype) == (image.device, image.dtype)
        with _buffers_preserved(model):
            outputs = self.outputs(model, batch if is_compatible else {**batch, "image": image.to(reference)})
        return self._to_predictions(outputs, image)

    def _to_predictions(self, outputs: Mapping[str, Any], image: Tensor) -> list[PriorPredictions]:
        rows = self.get_priors(image).coordinates
        names = [name for name in ("logits", "codes", "objectness") if name in outputs]
        logits, codes, *objectness = (outputs[name].detach().to(image.device) for name in names)
        if codes.ndim == 4:  # of a head of several predictions at each prior
            rows = rows[:, None]
        return [
            PriorPredictions.from_tensors(*tensors)
            for tensors in zip(logits, decode_boxes(rows, codes), *objectness, strict=True)
        ]

    def step_counts(self, contexts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Count priors with a box, ignored priors, and unmatched boxes over a step's micro-batches."""
        target = torch.cat([context["target"].flatten() for context in contexts])
        unmatched = torch.cat([context["is_unmatched"] for context in contexts]).sum()
        return {"n_pos": (target >= 0).sum(), "n_ignore": (target == IGNORED).sum(), "unmatched_gt": unmatched}

    def get_priors(self, image: Tensor) -> Priors:
        """Return the priors of images (B, 3, H, W), on their device, cached; levels have a cell per begun stride."""
        key = (*image.shape[2:], image.device, image.dtype)
        if key not in self._made:
            maps = [tuple(-(-side // stride) for side in image.shape[2:]) for stride in self._head.strides]
            by_image = self._grid.get("steps") == "image"
            sides = (image.shape[2], image.shape[3]) if by_image else None
            grid = PriorGrid(self._grid.get("offset", 0.5), sides, self._grid.get("offset_px"))
            form: Any = {"grid": grid, "device": image.device}
            form["dtype"] = torch.promote_types(image.dtype, torch.float32)
            if self._head.priors == "anchors":
                made = make_anchors(maps, self._head.strides, self._shapes, **form)
            else:
                made = make_points(maps, self._head.strides, **form)
            self._made = {key: made}  # one size only: canvases seldom change, and hundreds would fill the memory
        return self._made[key]

    def outputs(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """Compute the model's outputs for a batch. Raises RunError if its maps differ from those of the priors."""
        outputs = super().outputs(model, batch)
        priors = self.get_priors(batch["image"])
        maps = priors.maps
        map_sizes = [tuple(size) for size in outputs["level_shapes"][0].tolist()]
        if map_sizes != list(maps):
            raise RunError(
                f"task detect: the model's maps of {tuple(batch['image'].shape[2:])} pixels have {map_sizes} cells, "
                f"priors of the strides {self._head.strides} lie on {list(maps)}; state the strides that the network "
                "has"
            )
        to_deltas = self._head.to_deltas
        return outputs if to_deltas is None else {**outputs, "codes": to_deltas(outputs["codes"], priors)}

    def postprocess(self, outputs: dict[str, Any], batch: Batch) -> dict[str, Any]:
        """Convert outputs to detections (D, 6) in pixels of the files."""
        priors, canvas_maps = self.get_priors(batch["image"]), [batch[name] for name in ("to_canvas", "file_px")]
        decoded = self._select.decode(outputs, priors)

        canvas_px = torch.tensor(batch["image"].shape[2:])
        about = {"to_canvas": canvas_maps[0], "file_px": canvas_maps[1], "canvas_px": canvas_px}  # `vote` reads them
        detections = [
            to_file_pixels(self._select.suppress(unsuppressed), *maps, clip=self._clip)
            for unsuppressed, maps in zip(decoded, zip(*fetch(canvas_maps), strict=True), strict=True)
        ]
        return {**outputs, **about, **concatenate_detections(detections, outputs["codes"].device)}

    @property
    def left_to_caller(self) -> tuple[str, ...]:  # type: ignore[override]
        """Steps that follow the network here and are not in a file of it."""
        select = self._select
        name = type(select.suppression).__name__
        first = "" if self.greedy_threshold is not None else f"boxes are suppressed ({name}), and "
        return (
            f"{first}the {select.max_detections} highest-scoring of each image are kept",
            "boxes are mapped from the canvas to the pixels of the file by the inverse of `to_canvas`"
            + (", and clipped to its border" if self._clip else ""),
        )

    @property
    def greedy_threshold(self) -> float | None:  # type: ignore[override]
        """The IoU of a suppression that ONNX has, greedy and of each class by itself; None for another."""
        suppression = self._select.suppression
        is_of_onnx = type(suppression) is GreedyNMS and (suppression.per_class or self._head.num_classes == 1)
        return suppression.iou_threshold if isinstance(suppression, GreedyNMS) and is_of_onnx else None

    def make_decoding(self, example: Batch) -> Decoder:
        """Make the decoding of an exported file: `boxes` (B, P, 4) and `scores` (B, P, C), 0 for those not selected.

        Boxes are on the canvas, which has the size of the example's.
        """
        priors, to_deltas = self.get_priors(example["image"]), self._head.to_deltas

        def decode(outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
            if to_deltas is not None:
                outputs = {**outputs, "codes": to_deltas(outputs["codes"], priors)}
            boxes, scores = self._select.score_in_graph(outputs, priors)
            return {"boxes": boxes, "scores": scores}

        return decode

    def vote(self, passes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """Merge the predictions of several passes, suppressed jointly in pixels of the files."""
        passes, detections = [*passes], []
        decoded = [self._decode_in_files(predictions) for predictions in passes]
        for file_px, *of_image in zip(fetch(passes[0]["file_px"]), *decoded, strict=True):
            survivors = self._select.suppress(UnsuppressedDetections.concatenate(of_image))
            detections.append(clip_boxes(survivors, file_px) if self._clip else survivors)
        return {**passes[0], **concatenate_detections(detections, passes[0]["codes"].device)}

    def _decode_in_files(self, predictions: Mapping[str, Any]) -> list[UnsuppressedDetections]:
        """Decode the detections of one pass in each image before suppression, in pixels of its file."""
        like = predictions["codes"].new_empty(0, 3, *predictions["canvas_px"].tolist())
        decoded = self._select.decode(predictions, self.get_priors(like))
        canvas_maps = zip(*fetch([predictions[name] for name in ("to_canvas", "file_px")]), strict=True)
        return [
            unsuppressed._replace(detections=to_file_pixels(unsuppressed.detections, *canvas_map, clip=False))
            for unsuppressed, canvas_map in zip(decoded, canvas_maps, strict=True)
        ]

    def make_tiling(self, *, size_px: int, overlap: float, min_score: float = 0.0) -> PhotoTiles:
        """Make the tiling of photos that are larger than `size_px`, for detections that reach `min_score`."""
        layout: Any = {"size_px": size_px, "overlap": overlap, "min_score": min_score}
        return PhotoTiles(self._decode_in_files, self._select, clip=self._clip, **layout)

    def show(
        self,
        batch: Batch,
        predictions: Mapping[str, Any],
        *,
        pixels: np.ndarray | None = None,
        score: float = MIN_DRAWN_SCORE,
    ) -> list[Picture]:
        """Draw the first images with true and false positives and missed labels; `pixels` (H, W, 3) of the first."""
        if "truth" not in batch:
            return []
        return show_detections(batch, predictions, class_names=self._class_names, least_score=score, pixels=pixels)

    def show_targets(
        self, batch: Batch, *, pixels: np.ndarray | None = None, all_stages: bool = False, is_trained: bool = False
    ) -> dict[str, tuple[list[Picture], dict[str, Any]]]:
        """Draw, for the first image, the assignment by the config's assigner.

        `all_stages` also draws a cell's anchors on each level, and the assignment by every other compatible assigner,
        with its defaults. Assigners that need predictions get those of the current model: `is_trained`, of a run.
        """
        rows = _image_slices(batch["box_offsets"])[0]
        pixels = get_image_pixels(batch, 0, pixels)
        priors = self.get_priors(batch["image"])
        boxes = batch["boxes"][rows].to(priors.coordinates)
        image = ImageBoxes(boxes, batch["is_ignored"][rows], batch["label"][rows], self._class_names)
        name = _get_assigner_name(self._assigner)
        assigners = {name: self._assigner}
        if all_stages:
            assigners = {f"{name} (this config's)": self._assigner, **_make_other_assigners(name, self._head)}
        remarks = {name: assigner.remark for name, assigner in assigners.items()}
        calls: dict[str, Any] = dict(assigners)
        by_network = [name for name, assigner in assigners.items() if assigner.needs_predictions]
        if by_network:
            [predicted] = self._predict_priors(self._model, {**batch, "image": batch["image"][:1]})
            known = {"labels": image.label, "predicted": predicted}
            calls |= {name: partial(assigners[name], **known) for name in by_network}
            remarks |= dict.fromkeys(by_network, _BY_RUN if is_trained else _BY_RANDOM_WEIGHTS)
        pictures, reports = show_assignments(pixels, priors, image, calls, remarks)
        stages = {"assignment": (pictures, {"assigners": reports})}
        return {"priors": (show_priors(pixels, priors, boxes), {}), **stages} if all_stages else stages


class _KnownOutputs(NamedTuple):
    """Stand-in for a model whose outputs for the batch are known."""

    outputs: Mapping[str, Any]


_OF_ONE_PASS = ("prepare", "context", "losses", "losses_of", "outputs")
"""Methods that a step of one pass replaces or divides."""


@contextmanager
def _buffers_preserved(model: nn.Module) -> Iterator[None]:
    """Context that restores the buffers (running statistics) of a model in training mode."""
    is_trained = isinstance(model, nn.Module) and model.training
    saved = [(buffer, buffer.clone()) for buffer in model.buffers()] if is_trained else []
    try:
        yield
    finally:
        for buffer, values in saved:
            buffer.copy_(values)


def _compute_densities(boxes: Tensor, is_ignored: Tensor) -> Tensor:
    """Compute the highest IoU (G,) of each box (G, 4) with another one that is not ignored, 0 without any."""
    overlap = torch.where(is_ignored, 0.0, box_iou(boxes, boxes)).fill_diagonal_(0.0)
    return functional.pad(overlap, (0, 1)).amax(dim=1)


def _image_slices(offsets: Tensor) -> list[slice]:
    return [slice(*pair) for pair in pairwise(read_list(offsets))]


def _join_images(index_of_images: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor]:
    """Join the priors (n,) of each image to indices (N,) of images and of priors."""
    images = [torch.full_like(priors, image) for image, (priors,) in enumerate(index_of_images)]
    return torch.cat(images), torch.cat([priors for (priors,) in index_of_images])


def _make_anchor_shapes(block: AnchorBlock | None, head: Any) -> AnchorShapes | Sequence[Sequence[tuple[float, float]]]:
    """Make the anchor shapes of a cell. Raises ConfigError if the head predicts another number, or from points."""
    if head.priors != "anchors":
        if block is not None:
            raise ConfigError(f"anchors: {type(head).__name__} predicts from points; leave anchors out")
        return PRESETS["retinanet"]
    if head.priors_per_cell == 1 and block is None:
        return AnchorShapes((1.0,), (1.0,), base_strides=8.0)
    values: dict[str, Any] = dict(block or {})
    sizes = values.pop("sizes", None)
    if sizes is not None and (len(sizes) != len(head.strides) or len({*map(len, sizes)}) != 1):
        raise ConfigError(
            f"anchors: sizes take as many (width, height) for each of the {len(head.strides)} levels; found "
            f"{[len(level) for level in sizes]} of {len(sizes)}"
        )
    shapes = sizes or replace(PRESETS[values.pop("preset", "retinanet")], **values)
    count = len(sizes[0] if sizes else shapes.sizes(1))
    if count != head.priors_per_cell:
        stated = "sizes" if sizes else f"{len(shapes.scales)} scales x {len(shapes.ratios)} ratios"
        raise ConfigError(
            f"anchors: {stated} are {count} anchors a cell, the head predicts {head.priors_per_cell}; set "
            f"model.head.num_anchors={count}"
        )
    return shapes


def _get_assigner_name(assigner: Any) -> str:
    """Return an assigner's name in configs, or that of its class if it is not registered."""
    names = (
        name for name in registry.assigners.names() if registry.assigners.get_entry(name).builder is type(assigner)
    )
    return next(names, type(assigner).__name__)


def _list_needs(name: str, assigner: Any, count: int, head: Any) -> list[Need]:
    """List the needs of a head, and of an assigner, or class of them, that gives each prior `count` boxes."""
    kinds, predictor = getattr(assigner, "prior_kinds", ()), type(head).__name__
    if not kinds or isinstance(kinds, str):
        kinds = ["that its `prior_kinds` name, such as frozenset({'anchors'})"]
    outputs, names = _head_output_keys(head), head.assigners
    trained = outputs - {*assigner.excludes}
    return [
        _need_four(name, assigner),
        Need("priors", name, kinds, predictor, {head.priors}),
        *(Need(_TARGETS, predictor, {output}, name, trained) for output in sorted(outputs)),
        *([] if names is None else [Need(_TARGETS, predictor, names, name, {name})]),
        Need(_BOXES, name, {count}, predictor, {head.predictions_per_prior}),
    ]


def _need_four(name: str, part: Any) -> Need:
    """Return the need of an assigner, or a suppression: boxes of 4 numbers are all that there are in images."""
    return Need(_SIDES, name, {part.num_sides}, "the task detect", {4})


def _head_output_keys(head: Any) -> frozenset[str]:
    """Return the keys that a head returns; empty for a user's head that does not state them."""
    try:
        return model_output_keys(head, owner="the head")
    except ConfigError:
        return frozenset()


def _find_fitting(head: Any) -> dict[str, dict[str, Any]]:
    """Find the registered assigners that a head can be trained with, each with the required arguments."""
    expected, fitting = head.predictions_per_prior, {}
    for name in registry.assigners.names():
        entry = registry.assigners.get_entry(name)
        arguments = {"boxes_per_prior": expected} if "boxes_per_prior" in entry.parameters else {}
        assigner = registry.assigners.get_class(name)
        count = expected if arguments else assigner.boxes_per_prior
        if registry.find_mismatch(_list_needs(name, assigner, count, head)) is None:
            fitting[name] = arguments
    return fitting


def _make_other_assigners(excluded: str, head: Any) -> dict[str, Any]:
    """Make the other assigners that a head can be trained with, with their default arguments."""
    names = _find_fitting(head)
    entries = {name: registry.assigners.get_entry(name) for name in names if name != excluded}
    return {
        name: entry.builder(**names[name])
        for name, entry in entries.items()
        if not any(parameter.is_required for parameter in entry.parameters.values())
    }


def _assert_met(section: str, needs: Iterable[Need], advice: str) -> None:
    """Raise ConfigError, with the advice, if components of a section do not fit others."""
    if mismatch := registry.find_mismatch(needs):
        raise ConfigError(f"{section}: {mismatch}; {advice}")


def _assert_compatible(assigner: Any, head: Any) -> None:
    """Raise ConfigError for an assigner that a head cannot be trained with."""
    name, fitting = _get_assigner_name(assigner), _find_fitting(head)
    count, advice = assigner.boxes_per_prior, f"take {', '.join(fitting) or 'one of your own'}"
    if fitting.get(name):
        advice = f"set task.assigner.boxes_per_prior={fitting[name]['boxes_per_prior']}"
    _assert_met("assigner", _list_needs(name, assigner, count, head), advice)


def _assert_losses(losses: Mapping[str, BoundFunction], head: Any) -> None:
    """Raise ConfigError for a loss of one prediction per prior if the head has two, and the reverse."""
    offered = {head.predictions_per_prior}
    for name, loss in losses.items():
        is_of_pairs = "second_match" in loss.names
        if {"logits", "codes"} & {*loss.names}:
            advice = "take the head retina_emd, or another loss" if is_of_pairs else "take earth_mover"
            need = Need(_BOXES, name, {2 if is_of_pairs else 1}, type(head).__name__, offered)
            _assert_met("losses", [need], advice)


def _assert_losses_match_assigner(losses: Mapping[str, Loss], assigner: Any) -> None:
    """Raise ConfigError for losses made for another assigner, and for an assigner without its losses."""
    name = _get_assigner_name(assigner)
    owned = {entry: loss for entry, loss in losses.items() if loss.assigner is not None}
    for entry, loss in owned.items():
        advice = f"set task.assigner.name={loss.assigner}, or take other losses"
        _assert_met("losses", [Need(_TARGETS, entry, {loss.assigner}, name, {name})], advice)
        for key in sorted(vars(assigner).keys() & vars(loss).keys()):
            if getattr(assigner, key) != getattr(loss, key):
                raise ConfigError(
                    f"losses: {entry} has {key}={getattr(loss, key)}, its assigner {name} {getattr(assigner, key)}; "
                    "state the same for both"
                )
    required = [entry for entry in registry.losses.names() if registry.losses.get_class(entry).assigner == name]
    needs = [Need("the loss", name, required, "the config", losses)] if required else []
    _assert_met("assigner", needs, "take such losses, or another assigner")


def _assert_offered(suppression: Any, output_keys: AvailableKeys, head: Any) -> None:
    """Raise ConfigError for a suppression of other boxes, or that reads a key which the head does not predict."""
    name = type(suppression).__name__
    _assert_met("suppression", [_need_four(name, suppression)], "take one for images, such as greedy")
    offered = {*output_keys.keys} | ({"proposal"} if head.predictions_per_prior > 1 else set())
    advice = {
        "density": "set model.head.density=true for retina, and train it with the loss box_density",
        "proposal": "take a head of two predictions at each prior, such as retina_emd",
    }
    for key in sorted(suppression.reads):
        need = Need("the output", name, {key}, type(head).__name__, offered)
        _assert_met("suppression", [need], advice[key])
