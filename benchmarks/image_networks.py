"""Textbook forms of SalsaNext and RetinaNet, with the weights of ours, and benchmarks of a training step against them.

Networks of plain layers of torch, zeros around images, channels first. RetinaNet's targets and losses are those of an
image at a time, as in most code.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.case import BenchmarkCase, ExactComparison, Implementation, Run
from benchmarks.gpu_steps import ROOT
from benchmarks.networks import close_in_float32, same_numbers, spread_norms
from sightline.areas.scans.models.salsanext import SalsaNext
from sightline.config import read_config
from sightline.engine.build import build
from sightline.engine.distributed import World
from sightline.engine.step import prepare_step

_NUM_CLASSES, _NUM_CHANNELS = 20, 5
_POSITIVE, _NEGATIVE, _IGNORED, _BACKGROUND = 0.5, 0.4, -2, -1
_BETA = 1 / 9

Step = Callable[[dict[str, Any]], AbstractContextManager[Run]]


def cases() -> list[BenchmarkCase]:
    in_float64 = ExactComparison(_in_float64, same_numbers)
    sizes: list[tuple[str, dict[str, int], dict[str, int], Any, Step, Step]] = [
        (
            "salsanext_step_{batch}x{columns}",
            {"batch": 2, "columns": 512},
            {"columns": 64},
            make_scans,
            salsanext_step(copy.deepcopy),
            salsanext_step(TextbookSalsaNext),
        ),
        (
            "retinanet_step_{batch}x{side}",
            {"batch": 2, "side": 256},
            {"side": 64},
            make_crowds,
            retinanet_step,
            textbook_retinanet_step,
        ),
    ]
    return [
        BenchmarkCase(
            suite="models",
            label=label,
            size=size,
            quick=quick,
            make=make,
            baseline=Implementation("textbook", textbook, close_in_float32),
            variants=(Implementation("sightline", ours, close_in_float32),),
            exactly=in_float64,
        )
        for label, size, quick, make, ours, textbook in sizes
    ]


# --- SalsaNext --------------------------------------------------------------------------------------------------------


def _convolution(width_in: int, width_out: int, size: int, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(width_in, width_out, size, padding=dilation * (size - 1) // 2, dilation=dilation)


def _unit(width_in: int, width_out: int, size: int, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(_convolution(width_in, width_out, size, dilation), nn.LeakyReLU(), nn.BatchNorm2d(width_out))


class _Context(nn.Module):
    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.shortcut = nn.Sequential(_convolution(width_in, width, 1), nn.LeakyReLU())
        self.units = nn.Sequential(_unit(width, width, 3), _unit(width, width, 3, dilation=2))

    def forward(self, image: Tensor) -> Tensor:
        shortcut = self.shortcut(image)
        result: Tensor = shortcut + self.units(shortcut)
        return result


class _Fields(nn.Module):
    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.first, self.second = _unit(width_in, width, 3), _unit(width, width, 3, dilation=2)
        self.third, self.join = _unit(width, width, 2, dilation=2), _unit(3 * width, width, 1)

    def forward(self, image: Tensor) -> Tensor:
        first = self.first(image)
        second = self.second(first)
        result: Tensor = self.join(torch.cat([first, second, self.third(second)], dim=1))
        return result


class _Down(nn.Module):
    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.shortcut = nn.Sequential(_convolution(width_in, width, 1), nn.LeakyReLU())
        self.fields = _Fields(width_in, width)

    def forward(self, image: Tensor) -> Tensor:
        result: Tensor = self.shortcut(image) + self.fields(image)
        return result


class TextbookSalsaNext(nn.Module):
    """Textbook SalsaNext without dropout: image (B, C, H, W) -> logits (B, H, W, num_classes).

    Source: Cortinhal et al. 2020, figure 2, as in the authors' code.
    """

    def __init__(self, ours: SalsaNext) -> None:
        super().__init__()
        width, num_classes = ours.head.conv.in_channels, ours.head.conv.out_channels
        widths = [factor * width for factor in (1, 2, 4, 8, 8, 8)]
        raised = [factor * width for factor in (8, 4, 4, 2, 1)]
        self.context = nn.Sequential(*(_Context(channels, width) for channels in (ours.in_channels, width, width)))
        self.down = nn.ModuleList(_Down(*pair) for pair in pairwise(widths))
        self.up = nn.ModuleList(
            _Fields(width_in // 4 + widths[4 - level], width_out)
            for level, (width_in, width_out) in enumerate(pairwise(raised))
        )
        self.head = nn.Conv2d(width, num_classes, 1)
        _take_weights(self, ours)

    def forward(self, *, image: Tensor) -> dict[str, Tensor]:
        values, skips = self.context(image), []
        for level, down in enumerate(self.down):
            values = down(values)
            skips.append(values)
            if level < len(self.down) - 1:
                values = F.avg_pool2d(values, 3, 2, 1)
        for up, skip in zip(self.up, skips[-2::-1], strict=True):
            values = up(torch.cat([F.pixel_shuffle(values, 2), skip], dim=1))
        return {"logits": self.head(values).permute(0, 2, 3, 1)}


def make_scans(*, batch: int, columns: int) -> dict[str, Any]:
    """Make noise images of 64 rows with labels, and a model with seeded weights: contents do not affect times."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SalsaNext(num_classes=_NUM_CLASSES, in_channels=_NUM_CHANNELS, dropout=0.0, channels_last=True)
        spread_norms(model)
        image = torch.randn(batch, _NUM_CHANNELS, 64, columns)
        label = torch.randint(_NUM_CLASSES, (batch, 64, columns))
    return {"model": model, "image": image, "label": label}


def salsanext_step(form: Callable[[Any], nn.Module]) -> Step:
    """Make steps: forward, cross-entropy of all pixels, backward and SGD."""

    def loss(model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        logits = model(image=inputs["image"])["logits"]
        return logits, F.cross_entropy(logits.flatten(0, 2), inputs["label"].flatten())

    return _make_step(form, loss)


# --- RetinaNet --------------------------------------------------------------------------------------------------------


class _Block(nn.Module):
    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width_in, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, image: Tensor) -> Tensor:
        return F.relu(self.layers(image) + self.shortcut(image))


class TextbookRetinaNet(nn.Module):
    """Textbook RetinaNet on ResNet-18: image (B, 3, H, W) -> logits (B, P, K) and codes (B, P, 4).

    Sources: He et al. 2016, table 1; Lin et al. 2017, Feature Pyramid Networks, and Focal Loss, figure 3.
    """

    def __init__(self, ours: Any) -> None:
        super().__init__()
        width, self.num_classes = ours.neck.channels[0], ours.head.num_classes
        num_anchors, num_convs = ours.head.priors_per_cell, len(ours.head.class_tower)
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        widths = (64, 64, 128, 256, 512)
        self.stages = nn.ModuleList(
            nn.Sequential(_Block(width_in, width_out, 1 if level == 0 else 2), _Block(width_out, width_out, 1))
            for level, (width_in, width_out) in enumerate(pairwise(widths))
        )
        self.laterals = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in widths[2:])
        self.outputs = nn.ModuleList(nn.Conv2d(width, width, 3, 1, 1) for _ in widths[2:])
        self.coarser = nn.ModuleList(nn.Conv2d(width, width, 3, 2, 1) for _ in range(2))
        towers = ([m for _ in range(num_convs) for m in (nn.Conv2d(width, width, 3, 1, 1), nn.ReLU())] for _ in "cb")
        self.class_tower, self.box_tower = (nn.Sequential(*layers) for layers in towers)
        self.classes = nn.Conv2d(width, num_anchors * self.num_classes, 3, 1, 1)
        self.boxes = nn.Conv2d(width, num_anchors * 4, 3, 1, 1)
        _take_weights(self, ours)

    def forward(self, *, image: Tensor) -> dict[str, Tensor]:
        values, maps = F.max_pool2d(self.stem(image), 3, 2, 1), []
        for stage in self.stages:
            values = stage(values)
            maps.append(values)
        merged = [lateral(level_map) for lateral, level_map in zip(self.laterals, maps[1:], strict=True)]
        for level in range(len(merged) - 1, 0, -1):
            merged[level - 1] = merged[level - 1] + F.interpolate(merged[level], merged[level - 1].shape[2:])
        levels = [output(level_map) for output, level_map in zip(self.outputs, merged, strict=True)]
        levels.append(self.coarser[0](levels[-1]))
        levels.append(self.coarser[1](F.relu(levels[-1])))
        logits = [_flatten(self.classes(self.class_tower(level_map)), self.num_classes) for level_map in levels]
        codes = [_flatten(self.boxes(self.box_tower(level_map)), 4) for level_map in levels]
        return {"logits": torch.cat(logits, dim=1), "codes": torch.cat(codes, dim=1)}


def _flatten(level_map: Tensor, numbers: int) -> Tensor:
    """Reorder (B, A * numbers, H, W) to (B, H * W * A, numbers)."""
    batch, _, rows, columns = level_map.shape
    apart = level_map.view(batch, -1, numbers, rows, columns).permute(0, 3, 4, 1, 2)
    return apart.reshape(batch, -1, numbers)


def _match(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Match anchors (P, 4) to boxes (M, 4) by their IoU, and each box's best anchors to it. Source: mmdetection."""
    low = torch.maximum(anchors[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(anchors[:, None, 2:], boxes[None, :, 2:])
    inner = (high - low).clamp(min=0).prod(dim=2)
    areas = [(corners[:, 2:] - corners[:, :2]).prod(dim=1) for corners in (anchors, boxes)]
    overlap = inner / (areas[0][:, None] + areas[1][None] - inner)
    highest, matched = overlap.max(dim=1)
    matched[highest < _POSITIVE] = _IGNORED
    matched[highest < _NEGATIVE] = _BACKGROUND
    for box, best in enumerate(overlap.max(dim=0)[0]):
        if best > 0:
            matched[overlap[:, box] == best] = box
    return matched


def _encode(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Encode boxes as deltas of anchors. Source: Girshick et al. 2014, appendix C."""
    sides, box_sides = anchors[:, 2:] - anchors[:, :2], boxes[:, 2:] - boxes[:, :2]
    offsets = (boxes[:, :2] + boxes[:, 2:] - anchors[:, :2] - anchors[:, 2:]) / 2 / sides
    return torch.cat([offsets, torch.log(box_sides / sides)], dim=1)


def _compute_losses(outputs: dict[str, Tensor], inputs: dict[str, Any]) -> Tensor:
    """Compute the focal loss and the smooth L1 of each image in turn. Source: Lin et al. 2017, equation 5."""
    anchors = inputs["model"].task.get_priors(inputs["image"]).coordinates
    bounds, total, num_positive = inputs["box_offsets"].tolist(), torch.zeros_like(anchors[0, 0]), 0
    for image, (first, last) in enumerate(pairwise(bounds)):
        boxes, labels = inputs["boxes"][first:last], inputs["label"][first:last]
        matched = _match(anchors, boxes)
        has_box, counts = matched >= 0, matched != _IGNORED
        target = torch.zeros_like(outputs["logits"][image])
        target[has_box, labels[matched[has_box]]] = 1
        logits, target = outputs["logits"][image][counts], target[counts]
        probability = logits.sigmoid()
        miss = target * (1 - probability) + (1 - target) * probability
        alpha = 0.25 * target + 0.75 * (1 - target)
        entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        true = _encode(anchors[has_box], boxes[matched[has_box]])
        total = total + (alpha * miss**2 * entropy).sum()
        total = total + F.smooth_l1_loss(outputs["codes"][image][has_box], true, beta=_BETA, reduction="sum")
        num_positive += int(has_box.sum())
    return total / max(1, num_positive)


class _Subject(nn.Module):
    """Detector with its task."""

    def __init__(self, model: nn.Module, task: Any) -> None:
        super().__init__()
        self.model, self.task = model, task


def make_crowds(*, batch: int, side: int) -> dict[str, Any]:
    """Make the model, the task and the first batch of drawn crowds, of which no box is ignored."""
    sides = f"[{{name: fit_image, height: {side}, width: {side}}}, {{name: normalize_image}}]"
    words = (
        *(f"train.batch_size={batch}", "train.precision=float32", "task.assigner.low_quality=overwrite"),
        *(f"transforms.{name}={sides}" for name in ("train", "evaluate")),
    )
    job = build(read_config(ROOT / "configs" / "detect" / "synthetic_crowds_retinanet.yaml", words), World()).job
    [[batch_of_job]] = [micro_batches for micro_batches in job.stream.iterate(0, 1)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        spread_norms(job.model)
    tensors = {name: batch_of_job[name] for name in ("image", "boxes", "label", "box_offsets")}
    tensors["is_ignored"] = torch.zeros_like(batch_of_job["is_ignored"])
    tensors["sample_index"] = batch_of_job["sample_index"]
    return {"model": _Subject(job.model, job.task), **tensors}


def _compute_our_losses(subject: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    step = prepare_step(subject.task, subject.model, [inputs], World(device=inputs["image"].device))
    kept: list[Tensor] = []
    with subject.model.register_forward_hook(lambda module, inputs_of_model, outputs: kept.append(outputs["logits"])):
        sums = step.loss_sums(subject.model)
    return kept[-1], torch.stack([*step.loss_means(sums).values()]).sum()


def _compute_textbook_losses(model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    outputs = model(image=inputs["image"])
    return outputs["logits"], _compute_losses(outputs, inputs)


# --- both -------------------------------------------------------------------------------------------------------------


def _take_weights(textbook: nn.Module, ours: nn.Module) -> None:
    """Give a textbook form the weights of ours, which come in the same order."""
    textbook.to(next(ours.parameters()).dtype)
    textbook.load_state_dict(dict(zip(textbook.state_dict(), ours.state_dict().values(), strict=True)))


def _make_step(
    form: Callable[[Any], nn.Module], loss: Callable[[nn.Module, dict[str, Any]], tuple[Tensor, Tensor]]
) -> Step:
    """Make steps of forward, loss, backward and SGD; each returns logits and the gradients of all weights."""

    @contextmanager
    def open_step(inputs: dict[str, Any]) -> Iterator[Run]:
        model = form(inputs["model"]).to(inputs["image"].device).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

        def run() -> dict[str, Any]:
            optimizer.zero_grad(set_to_none=True)
            logits, total = loss(model, inputs)
            total.backward()
            optimizer.step()
            return {"logits": logits.detach(), "gradients": [parameter.grad for parameter in model.parameters()]}

        yield run

    return open_step


retinanet_step = _make_step(copy.deepcopy, _compute_our_losses)
textbook_retinanet_step = _make_step(lambda subject: TextbookRetinaNet(subject.model), _compute_textbook_losses)


def _in_float64(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the same inputs and weights in float64."""
    wide = {n: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for n, v in inputs.items()}
    return {**wide, "model": copy.deepcopy(inputs["model"]).double()}
