"""Boxes of things in images: priors get boxes to predict before the forward pass, detections come after it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import TypedDict

from sightline import registry
from sightline.arguments import AssignerBlock, Count, Fraction, Size, SuppressionBlock
from sightline.binding import Offer
from sightline.errors import ConfigError, RunError
from sightline.geometry.boxes.priors import IGNORED, PRESETS, AnchorShapes, Grid, Priors, make_anchors, make_points
from sightline.losses.base import Loss
from sightline.pictures import Picture, stretched
from sightline.tasks.box_stages import show_detections
from sightline.tasks.box_targets import show_assignments, show_priors
from sightline.tasks.detections import KeepAll, Selection, to_file
from sightline.tasks.supervised import Supervised
from sightline.types import Batch

__all__ = ["AnchorBlock", "Detect", "GridBlock"]


class AnchorBlock(TypedDict, total=False):
    """The anchors of a cell: a preset of `geometry.boxes.priors`, of which single values may be replaced.

    `sizes` take the place of all else, which may come from a base config: widths and heights in pixels of the anchors
    of a cell, level by level, the finest first.
    """

    preset: Literal["retinanet", "crowddet", "s3"]
    scales: tuple[Size, ...]
    ratios: tuple[Size, ...]
    base_strides: Size
    keeps: Literal["area", "width"]
    whole_px: bool
    sizes: tuple[tuple[tuple[Size, Size], ...], ...]


class GridBlock(TypedDict, total=False):
    """Where cells lie: `offset` in steps, 0.5 their middles; a step is the stride, or the image's side over the cells.

    See `geometry.boxes.priors.Grid`.
    """

    offset: Fraction
    steps: Literal["stride", "image"]


@registry.tasks.add("detect")
class Detect(Supervised):
    """Predicts `detections` (D, 6) in pixels of the files: left, top, right, bottom, score, class.

    Those of image b are the rows `detection_offsets[b]` to `detection_offsets[b + 1]`, the surest first. Every prior
    gets its target once a step, before the forward pass: losses and metrics read `priors` (P, 4) or (P, 2), `target`
    (B, P), the class of its box, -1 for background and -2 for what counts in no loss, `matched_boxes` (B, P, 4), and
    `is_unmatched` (G,), the boxes of the batch that no prior is to predict, though they are not ignored. Each step logs
    how many these are (`unmatched_gt`), and the priors with a box (`n_pos`) and ignored ones (`n_ignore`).
    `anchors` are RetinaNet's where they are left out; for a head of one anchor a cell, squares of eight strides. `grid`
    places anchors and points alike: in the middles of cells, a stride apart, unless published weights want another.
    `suppression`, `score`, `per_level`, `most` and `clip` change evaluation alone; boxes may lie outside of the file
    where `clip` is false. Source: Lin et al. 2017, Focal Loss for Dense Object Detection, sections 4 and 5.
    """

    predicts = frozenset({"detections", "detection_offsets"})
    reads = frozenset({"image", "boxes", "label", "is_ignored", "box_offsets", "to_canvas", "file_px"})
    offers = frozenset({"priors", "target", "matched_boxes", "is_unmatched"})
    evaluation_arguments = frozenset({"suppression", "score", "per_level", "most", "clip"})
    keeps_candidates = False
    """Whether predictions hold `candidates` (C, 6) and `candidate_offsets`, too: detections before suppression."""

    def __init__(
        self,
        *,
        model: nn.Module,
        losses: Mapping[str, Loss],
        batch_keys: Offer,
        output_keys: Offer,
        assigner: AssignerBlock,
        anchors: AnchorBlock | None = None,
        grid: GridBlock | None = None,
        suppression: SuppressionBlock | None = None,
        score: Fraction = 0.05,
        per_level: Count = 1000,
        most: Count = 100,
        clip: bool = True,
    ) -> None:
        self._head: Any = getattr(model, "head", None)
        if self._head is None:
            raise ConfigError(f"task: detect needs a model with a head, such as detector, found {type(model).__name__}")
        super().__init__(model=model, losses=losses, batch_keys=batch_keys, output_keys=output_keys)
        self._shapes = _shapes_of(anchors, self._head)
        self._grid: GridBlock = grid or {}
        self._assigner = assigner
        _assert_pair(assigner, self._head)
        if suppression is None:
            suppression = registry.suppressions.entry_of("greedy").builder()
        self._select = Selection(suppression, score, per_level, most)
        self._clip = clip
        self._made: dict[tuple[Any, ...], Priors] = {}

    @property
    def selection(self) -> Selection:
        """Which predictions become detections."""
        return self._select

    def context(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """The target of every prior."""
        priors = self.priors_of(batch["image"])
        targets, boxes = [], []
        is_unmatched = ~batch["is_ignored"]
        for rows in _images(batch["box_offsets"]):
            own = batch["boxes"][rows].to(priors.rows)
            matched = self._assigner(priors, own, batch["is_ignored"][rows]).matched
            has_box, place = matched >= 0, matched.clamp(min=-1)  # the last row, of zeros, is of priors without a box
            is_unmatched[matched[has_box] + rows.start] = False
            targets.append(torch.where(has_box, functional.pad(batch["label"][rows], (0, 1))[place], matched))
            boxes.append(functional.pad(own, (0, 0, 0, 1))[place])
        return {
            "priors": priors.rows,
            "target": torch.stack(targets),
            "matched_boxes": torch.stack(boxes),
            "is_unmatched": is_unmatched,
        }

    def tallies(self, contexts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Priors with a box, ignored priors, and boxes that no prior is to predict, over a step's micro-batches."""
        target = torch.cat([each["target"].flatten() for each in contexts])
        unmatched = torch.cat([each["is_unmatched"] for each in contexts]).sum()
        return {"n_pos": (target >= 0).sum(), "n_ignore": (target == IGNORED).sum(), "unmatched_gt": unmatched}

    def priors_of(self, image: Tensor) -> Priors:
        """The priors of images (B, 3, H, W), on their device; levels have a cell for every begun stride of pixels."""
        key = (*image.shape[2:], image.device, image.dtype)
        if key not in self._made:
            maps = [tuple(-(-side // stride) for side in image.shape[2:]) for stride in self._head.strides]
            by_image = self._grid.get("steps") == "image"
            grid = Grid(self._grid.get("offset", 0.5), (image.shape[2], image.shape[3]) if by_image else None)
            form: Any = {"grid": grid, "device": image.device}
            form["dtype"] = torch.promote_types(image.dtype, torch.float32)
            if self._head.priors == "anchors":
                made = make_anchors(maps, self._head.strides, self._shapes, **form)
            else:
                made = make_points(maps, self._head.strides, **form)
            self._made = {key: made}  # of one size: canvases seldom change, and hundreds of them would fill the memory
        return self._made[key]

    def outputs(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """The model's outputs for a batch. Raises RunError where its maps are not those that the priors lie on."""
        outputs = super().outputs(model, batch)
        maps = self.priors_of(batch["image"]).maps
        found = [tuple(each) for each in outputs["level_shapes"][0].tolist()]
        if found != list(maps):
            raise RunError(
                f"task detect: the model's maps of {tuple(batch['image'].shape[2:])} pixels have {found} cells, priors "
                f"of the strides {self._head.strides} lie on {list(maps)}; state the strides that the network has"
            )
        return outputs

    def interpret(self, outputs: dict[str, Any], batch: Batch) -> dict[str, Any]:
        """Detections in the pixels of the files."""
        detections, offsets = self._selected(outputs, batch, self._select)
        found = {**outputs, "detections": detections, "detection_offsets": offsets}
        if self.keeps_candidates:
            everything = replace(self._select, suppression=KeepAll(), most=sys.maxsize)
            found["candidates"], found["candidate_offsets"] = self._selected(outputs, batch, everything)
        return found

    def _selected(self, outputs: dict[str, Any], batch: Batch, select: Selection) -> tuple[Tensor, Tensor]:
        """Detections (D, 6) of all images, and where each image's begin."""
        priors = self.priors_of(batch["image"])
        found = [
            to_file(select(outputs, image, priors), batch["to_canvas"][image], batch["file_px"][image], clip=self._clip)
            for image in range(len(batch["image"]))
        ]
        return torch.cat(found), torch.tensor([0, *(len(each) for each in found)]).cumsum(0)

    def show(self, batch: Batch, predictions: Mapping[str, Any]) -> list[Picture]:
        """The first images with what was found, made up and missed."""
        return show_detections(batch, predictions) if "truth" in batch else []

    def show_targets(self, batch: Batch) -> dict[str, tuple[list[Picture], dict[str, Any]]]:
        """Of the first image: a cell's anchors on each level, and what each assigner that the head takes gives.

        The run's own comes first, with its own arguments, the others have their defaults.
        """
        rows = _images(batch["box_offsets"])[0]
        pixels = stretched(batch["image"][0].float().permute(1, 2, 0).numpy())
        priors = self.priors_of(batch["image"])
        boxes, is_ignored = batch["boxes"][rows].to(priors.rows), batch["is_ignored"][rows]
        own = _name_of(self._assigner)
        others = {name: registry.assigners.entry_of(name).builder() for name in _assigners_of(self._head) - {own}}
        assigners = {f"{own} (this config's)": self._assigner, **dict(sorted(others.items()))}
        pictures, reports = show_assignments(pixels, priors, boxes, is_ignored, assigners)
        return {"priors": (show_priors(pixels, priors, boxes), {}), "assignment": (pictures, {"assigners": reports})}


def _images(offsets: Tensor) -> list[slice]:
    return [slice(*pair) for pair in pairwise(offsets.tolist())]


def _shapes_of(block: AnchorBlock | None, head: Any) -> AnchorShapes | Sequence[Sequence[tuple[float, float]]]:
    """The anchors of a cell. Raises ConfigError where the head predicts another number, or no anchors at all."""
    if head.priors != "anchors":
        if block is not None:
            raise ConfigError(f"anchors: {type(head).__name__} predicts from points; leave anchors out")
        return PRESETS["retinanet"]
    if head.priors_per_cell == 1 and block is None:
        return AnchorShapes((1.0,), (1.0,), base_strides=8.0)
    given: dict[str, Any] = dict(block or {})
    sizes = given.pop("sizes", None)
    if sizes is not None and (len(sizes) != len(head.strides) or len({*map(len, sizes)}) != 1):
        raise ConfigError(
            f"anchors: sizes take as many (width, height) for each of the {len(head.strides)} levels; found "
            f"{[len(level) for level in sizes]} of {len(sizes)}"
        )
    shapes = sizes or replace(PRESETS[given.pop("preset", "retinanet")], **given)
    count = len(sizes[0] if sizes else shapes.of(1))
    if count != head.priors_per_cell:
        stated = "sizes" if sizes else f"{len(shapes.scales)} scales x {len(shapes.ratios)} ratios"
        raise ConfigError(
            f"anchors: {stated} are {count} anchors a cell, the head predicts {head.priors_per_cell}; set "
            f"model.head.num_anchors={count}"
        )
    return shapes


def _name_of(assigner: Any) -> str:
    """An assigner's name in configs; that of its class where it is not registered."""
    names = (name for name in registry.assigners.names() if registry.assigners.entry_of(name).builder is type(assigner))
    return next(names, type(assigner).__name__)


def _assigners_of(head: Any) -> set[str]:
    """The registered assigners that a head can be trained with."""
    return {*head.assigners} & {*registry.assigners.names()}


def _assert_pair(assigner: Any, head: Any) -> None:
    """Raises ConfigError for an assigner that the head cannot be trained with."""
    name = _name_of(assigner)
    if head.priors not in assigner.takes or name in {*registry.assigners.names()} - {*head.assigners}:
        raise ConfigError(
            f"assigner: {name} does not fit {type(head).__name__}, which predicts from {head.priors}; it takes "
            f"{', '.join(sorted(_assigners_of(head)))}"
        )
