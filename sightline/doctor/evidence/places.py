"""Places of outputs that are maps of an image: where they look, and where the loss looks for their targets."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sightline.contract.pytree import dense_leaves
from sightline.doctor.attempts import NotApplicableError
from sightline.doctor.evidence import measure
from sightline.doctor.subject import Pass, Subject

_MIN_SAMPLES, _MIN_PLACES = 8, 16


class Order(NamedTuple):
    """Order of the gradients at an output: how alike they are to the image in their own order, and in the best other.

    `own` and `other` are mean correlations of where images, and gradients, are unlike those of other samples; `t` is
    Student's of their difference over samples.
    """

    path: str
    name: str
    own: float
    other: float
    t: float


@measure(passes=4)
def orders(subject: Subject) -> list[Order]:
    """Compare where an image is unlike others with where the loss's gradients are, in several orders of places.

    Which pixels an output depends on shows first that the outputs themselves are in the order of the image.
    """
    tables: dict[str, dict[str, list[Tensor]]] = {}
    for batch in subject.batches:
        if _find_image(batch.inputs) is None:
            continue
        passed = subject.run(subject.copy("train"), batch)
        for path, own in _compare(passed).items():
            for name, values in own.items():
                tables.setdefault(path, {}).setdefault(name, []).append(values)
    found = []
    for path, table in tables.items():
        joined = {name: torch.cat(values) for name, values in table.items()}
        plain = joined.pop("")
        name = max(joined, key=lambda each: float(joined[each].mean()))
        gain = joined[name] - plain
        t = float(gain.mean() / gain.std().clamp(min=1e-9)) * math.sqrt(len(gain))
        found.append(Order(path, name, float(plain.mean()), float(joined[name].mean()), t))
    if not found:
        raise NotApplicableError("no maps of images as outputs")
    return found


def _find_image(inputs: Any) -> Tensor | None:
    """Return the images (B, K, H, W) among inputs; None unless there are one tensor of them, and enough samples."""
    images = [t for _, t in dense_leaves(inputs) if t.ndim == 4 and t.is_floating_point()]
    return images[0] if len(images) == 1 and len(images[0]) >= _MIN_SAMPLES else None


def _compare(passed: Pass) -> dict[str, dict[str, Tensor]]:
    image = _find_image(passed.inputs)
    outputs = {path: t for path, t in dense_leaves(passed.outputs) if t.requires_grad and t.ndim > 1}
    if image is None or not outputs:
        return {}
    gradients = torch.autograd.grad(passed.value, [*outputs.values()], retain_graph=True, allow_unused=True)
    found = {}
    for (path, output), gradient in zip(outputs.items(), gradients, strict=True):
        sides = None if gradient is None else _find_sides(output, image)
        if gradient is None or sides is None or math.prod(sides) < _MIN_PLACES:
            continue
        if not _reads_own_places(_to_maps(output, sides), image):
            continue
        shrunk = nn.functional.adaptive_avg_pool2d(image.detach(), sides)
        content, pulls = _contrast(shrunk.movedim(1, -1)), _contrast(_to_maps(gradient, sides))
        found[path] = {name: _correlate(content, turn(pulls)) for name, turn in _list_orders(sides).items()}
    return found


def _reads_own_places(maps: Tensor, image: Tensor) -> bool:
    """Return True if the outputs (B, h, w, K) at three corners depend on the pixels nearest to their own corner."""
    corners = [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)]
    for corner in corners[:3]:
        row, column = (int(part * (size - 1)) for part, size in zip(corner, maps.shape[1:3], strict=True))
        (gradient,) = torch.autograd.grad(maps[:, row, column].sum(), image, retain_graph=True, allow_unused=True)
        if gradient is None:
            return False
        weights = gradient.abs().sum(dim=(0, 1))
        weights = weights / weights.sum()
        centre = [
            float((weights.sum(dim=1 - axis) * torch.linspace(0, 1, size, device=weights.device)).sum())
            for axis, size in enumerate(weights.shape)
        ]
        if min(corners, key=lambda each: math.dist(each, centre)) != corner:
            return False
    return True


def _find_sides(output: Tensor, image: Tensor) -> tuple[int, int] | None:
    """Return the sides of maps (B, K, h, w), (B, h, w), (B, h w, K) or (B, h w) in the shape of an image."""
    height, width = image.shape[2:]
    if len(output) != len(image) or output.ndim > 4:
        return None
    if output.ndim == 4 or (output.ndim == 3 and output.shape[1] * width == output.shape[2] * height):
        return output.shape[-2], output.shape[-1]
    rows = math.isqrt(output.shape[1] * height // width)
    columns = output.shape[1] // max(1, rows)
    return (rows, columns) if rows * columns == output.shape[1] and rows * width == columns * height else None


def _to_maps(values: Tensor, sides: tuple[int, int]) -> Tensor:
    """Return (B, h, w, K) of maps (B, K, h, w) or (B, h, w), or of rows (B, h w, K) or (B, h w)."""
    return values.movedim(1, -1) if values.ndim == 4 else values.reshape(len(values), *sides, -1)


def _contrast(maps: Tensor) -> Tensor:
    """Return (B, h, w): how far each place is from the mean of the samples, less its means over samples and places."""
    sizes = (maps - maps.mean(dim=0)).abs().sum(dim=-1).double()
    return sizes - sizes.mean(dim=0) - sizes.mean(dim=(1, 2), keepdim=True) + sizes.mean()


def _correlate(first: Tensor, second: Tensor) -> Tensor:
    """Compute the correlation of each sample's maps (B, h, w)."""
    one, other = (nn.functional.normalize(maps.flatten(1), dim=1) for maps in (first, second))
    return (one * other).sum(dim=1)


def _list_orders(sides: tuple[int, int]) -> dict[str, Callable[[Tensor], Tensor]]:
    """List orders of maps by what has been exchanged; that of the maps themselves has no name."""
    return {
        "": lambda maps: maps,
        "with rows and columns exchanged": lambda maps: maps.reshape(len(maps), *sides[::-1]).transpose(1, 2),
        "upside down": lambda maps: maps.flip(1),
        "mirrored": lambda maps: maps.flip(2),
        "turned by 180 degrees": lambda maps: maps.flip(1, 2),
    }
