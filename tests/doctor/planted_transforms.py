"""Transforms and data sets as users write them, wrong in one way each; the last ones are right."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.contract.types import Sample, SampleKey


def _turn(angle: Tensor) -> Tensor:
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    c, s = angle.cos(), angle.sin()
    return torch.stack(
        [torch.stack([c, -s, zero], -1), torch.stack([s, c, zero], -1), torch.stack([zero, zero, one], -1)], -2
    )


class TurnPoints:
    """Normals stay."""

    def __call__(self, draws: Any, *, points: Tensor) -> dict[str, Tensor]:
        return {"points": points @ _turn(draws.uniform(high=6.28)).transpose(1, 2)}


class TurnNormalsBack(TurnPoints):
    """Normals turn the other way."""

    def __call__(self, draws: Any, *, points: Tensor, normals: Tensor) -> dict[str, Tensor]:
        matrix = _turn(draws.uniform(high=6.28))
        return {"points": points @ matrix.transpose(1, 2), "normals": normals @ matrix}


class MirrorPoints:
    def __call__(self, draws: Any, *, points: Tensor) -> dict[str, Tensor]:
        sign = torch.where(draws.uniform(1, 1) < 0.5, -1.0, 1.0)
        return {"points": points * torch.cat([sign, torch.ones_like(sign), torch.ones_like(sign)], -1)}


class StretchPoints:
    def __call__(self, draws: Any, *, points: Tensor) -> dict[str, Tensor]:
        return {"points": points * draws.uniform(1, 3, low=0.5, high=2.0)}


class ShufflePoints:
    """The labels, or the normals, keep their rows; the declaration `chooses_points` is missing."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def __call__(self, draws: Any, *, points: Tensor, normals: Tensor, label: Tensor) -> dict[str, Tensor]:
        order = draws.permutation(points.shape[1])
        pick = order[..., None].expand(-1, -1, 3)
        moved = {"points": points.gather(1, pick), "normals": normals.gather(1, pick), "label": label.gather(1, order)}
        return {name: moved[name] for name in self.names}


class RollLabels:
    def __init__(self, by: int = 1) -> None:
        self.by = by

    def __call__(self, draws: Any, *, label: Tensor) -> dict[str, Tensor]:
        return {"label": label.roll(self.by, 1)}


class FlipImages:
    """Boxes stay."""

    def __init__(self, axis: int = 2) -> None:
        self.axis = axis

    def __call__(self, draws: Any, *, image: Tensor) -> dict[str, Tensor]:
        is_flipped = draws.uniform(1, 1, 1) < 0.5
        return {"image": torch.where(is_flipped, image.flip(self.axis), image)}


class FlipBoxesWrongly:
    """x for y, or the width of another frame."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __call__(self, draws: Any, *, image: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        width = image.shape[2]
        left, top, right, bottom = boxes.unbind(-1)
        if self.how == "corners":  # right and left not exchanged, then put in order
            flipped = torch.stack(
                [width - left - (right - left) / 2, top, width - left + (right - left) / 2, bottom], -1
            )
        elif self.how == "height":
            flipped = torch.stack([image.shape[1] - right, top, image.shape[1] - left, bottom], -1)
        else:
            flipped = torch.stack([left, image.shape[1] - bottom, right, image.shape[1] - top], -1)
        return {"image": image.flip(2), "boxes": flipped}


class ShrinkImages:
    """The content of an image is made smaller in its corner; the boxes are not."""

    def __call__(self, draws: Any, *, image: Tensor) -> dict[str, Tensor]:
        small = image[:, ::2, ::2]
        grey = torch.full_like(image, 114)
        grey[:, : small.shape[1], : small.shape[2]] = small
        return {"image": grey}


class ShiftImages:
    def __call__(self, draws: Any, *, image: Tensor) -> dict[str, Tensor]:
        return {"image": image.roll((20, 30), (1, 2))}


class MoveRangeImage:
    """One of the fields of a projected scan is flipped, rolled or emptied, the others are not."""

    def __init__(self, how: str, *names: str) -> None:
        self.how, self.names = how, names

    def __call__(self, draws: Any, *, image: Tensor, range_image: Tensor, label: Tensor) -> dict[str, Tensor]:
        given = {"image": image, "range_image": range_image, "label": label}
        rows = {"image": 2, "range_image": 1, "label": 1}
        moved = {}
        for name in self.names:
            value, row = given[name].clone(), rows[name]
            if self.how == "upside down":
                value = value.flip(row)
            elif self.how == "mirrored":
                value = value.flip(row + 1)
            elif self.how == "rolled":
                value = value.roll(20, row + 1)
            else:
                value.narrow(row, value.shape[row] // 4, value.shape[row] // 4).fill_(0)
            moved[name] = value
        return moved


class OwnProjection:
    """What a user's projection makes: the shipped one's, with rows upside down, or every other row empty."""

    def __init__(self, inner: Any, how: str) -> None:
        self.inner, self.how, self.adds, self.facts = inner, how, inner.adds, inner.facts

    def __call__(
        self, draws: Any, *, points: Tensor, remission: Tensor, label: Tensor, ring: Tensor
    ) -> dict[str, Tensor]:
        if self.how == "upside down":
            ring = self.inner.view.height - 1 - ring
        elif self.how == "bands":
            ring = ring // 4 * 4
        return self.inner(draws, points=points, remission=remission, label=label, ring=ring)


class TurnVolume:
    def __call__(self, draws: Any, *, volume: Tensor) -> dict[str, Tensor]:
        return {"volume": volume.rot90(1, (2, 3))}


class MirrorDepth:
    """A depth image mirrored without its joints."""

    def __call__(self, draws: Any, *, depth: Tensor) -> dict[str, Tensor]:
        return {"depth": depth.flip(2)}


class Metres:
    def __init__(self, *names: str) -> None:
        self.names = names

    def __call__(self, draws: Any, *, depth: Tensor, joints: Tensor, reference: Tensor) -> dict[str, Tensor]:
        given = {"depth": depth, "joints": joints, "reference": reference}
        return {name: given[name] / 1000 for name in self.names}


class MoveJoints:
    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        self.change = change

    def __call__(self, draws: Any, *, joints: Tensor) -> dict[str, Tensor]:
        return {"joints": self.change(joints)}


class SameViews:
    """Both views by the same numbers."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.adds = inner, inner.adds

    def __call__(self, draws: Any, *, points: Tensor) -> dict[str, Tensor]:
        made = self.inner(draws, points=points)
        return {"points": made["points"], "other_points": made["points"].clone()}


_GENERATOR = np.random.default_rng(0)


class Noise:
    """Jitter from a generator that is not the sample's."""

    def __init__(self, kind: str, *, field: str = "points") -> None:
        self.kind = kind
        self.generator: Any = {
            "numpy": lambda: np.random.default_rng(0),
            "torch": lambda: torch.Generator().manual_seed(0),
            "random": lambda: random.Random(0),
        }.get(kind, lambda: None)()

    def __call__(self, draws: Any, *, points: Tensor) -> dict[str, Tensor]:
        return {"points": points + 0.01 * self._draw(points.shape)}

    def _draw(self, shape: Any) -> Tensor:
        if self.kind == "numpy":
            return torch.from_numpy(self.generator.normal(size=tuple(shape))).float()
        if self.kind == "torch":
            return torch.randn(shape, generator=self.generator)
        if self.kind == "random":
            return torch.tensor(self.generator.gauss(0, 1))
        if self.kind == "global numpy":
            return torch.from_numpy(np.random.normal(size=tuple(shape))).float()
        if self.kind == "global torch":
            return torch.randn(shape)
        if self.kind == "global random":
            return torch.tensor(random.gauss(0, 1))
        if self.kind == "of the module":
            return torch.from_numpy(_GENERATOR.normal(size=tuple(shape))).float()
        if self.kind == "fresh":  # no seed: another one at each call
            return torch.from_numpy(np.random.default_rng().normal(size=tuple(shape))).float()
        assert self.kind == "again"  # the same noise for every sample
        return torch.from_numpy(np.random.default_rng(0).normal(size=tuple(shape))).float()


class ShuffleRoom:
    """Rooms whose points are put into another order, and may be turned, without a field of them."""

    def __init__(self, name: str, *, is_turned: bool) -> None:
        self.name, self.is_turned = name, is_turned

    def __call__(self, draws: Any, *, points: Tensor, colours: Tensor, label: Tensor) -> dict[str, Tensor]:
        order = draws.permutation(points.shape[1])
        pick = order[..., None].expand(-1, -1, 3)
        turned = points @ _turn(draws.uniform(high=6.28)) if self.is_turned else points
        moved = {"colours": colours.gather(1, pick), "label": label.gather(1, order)}
        return {"points": turned.gather(1, pick), self.name: moved[self.name]}


class RollRows:
    """Of a set that gives whole batches, a field of the sample before."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, draws: Any, *, points: Tensor, label: Tensor) -> dict[str, Tensor]:
        return {self.name: {"points": points, "label": label}[self.name].roll(1, 0)}


class CentreBatch:
    """Points less the mean of the batch, not of the cloud."""

    def __call__(self, draws: Any, *, points: Tensor) -> dict[str, Tensor]:
        return {"points": points - points.mean(dim=(0, 1)) + 0.1 * points.mean(dim=1, keepdim=True).amax()}


# --- transforms without a bug -----------------------------------------------------------------------------------------


class TurnBoth(TurnPoints):
    def __call__(self, draws: Any, *, points: Tensor, normals: Tensor) -> dict[str, Tensor]:
        matrix = _turn(draws.uniform(high=6.28)).transpose(1, 2)
        return {"points": points @ matrix, "normals": normals @ matrix}


class DropPoints:
    """A random part of the points with all that belongs to them, moved to the origin and with fewer classes."""

    chooses_points = True

    def __call__(self, draws: Any, *, points: Tensor, normals: Tensor, label: Tensor) -> dict[str, Tensor]:
        order = draws.permutation(points.shape[1])[:, :48]
        pick = order[..., None].expand(-1, -1, 3)
        return {
            "points": points.gather(1, pick),
            "normals": normals.gather(1, pick),
            "label": label.gather(1, order) // 2,
        }


class FlipBoth:
    def __call__(self, draws: Any, *, image: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        left, top, right, bottom = boxes.unbind(-1)
        width = image.shape[2]
        return {"image": image.flip(2), "boxes": torch.stack([width - right, top, width - left, bottom], -1)}


class ErasePixels:
    """A grey rectangle in a random place: boxes keep theirs, as a person behind a car does."""

    def __call__(self, draws: Any, *, image: Tensor) -> dict[str, Tensor]:
        top, left = (
            int(share * (side - 40)) for share, side in zip(draws.uniform(2)[0], image.shape[1:3], strict=True)
        )
        erased = image.clone()
        erased[:, top : top + 40, left : left + 40] = 114
        return {"image": erased}


class CropBoth:
    """The left two thirds; boxes outside are taken out."""

    def __call__(
        self, draws: Any, *, image: Tensor, boxes: Tensor, label: Tensor, is_ignored: Tensor
    ) -> dict[str, Tensor]:
        width = image.shape[2] * 2 // 3
        rows = (boxes[0, :, 0] < width - 4).nonzero()[:, 0]
        limit = torch.tensor([width, 10_000] * 2)
        kept = {"boxes": torch.minimum(boxes, limit), "label": label, "is_ignored": is_ignored}
        return {"image": image[:, :, :width], **{name: value[:, rows] for name, value in kept.items()}}


class DropRows:
    """Random rows of a range image are emptied, as if lasers had failed; labels stay."""

    def __call__(self, draws: Any, *, image: Tensor) -> dict[str, Tensor]:
        is_kept = draws.uniform(image.shape[2]) > 0.2
        return {"image": image * is_kept[:, None, :, None]}


class MirrorAll:
    def __call__(self, draws: Any, *, image: Tensor, range_image: Tensor, label: Tensor) -> dict[str, Tensor]:
        noise = 0.05 * draws.normal(*image.shape[1:])
        return {"image": image.flip(3) + noise, "range_image": range_image.flip(2), "label": label.flip(2)}


class MirrorHand:
    """A left hand of a right one: depth and joints are mirrored, and the middle of the camera."""

    def __call__(
        self, draws: Any, *, depth: Tensor, joints: Tensor, camera: Tensor, reference: Tensor
    ) -> dict[str, Tensor]:
        sign, middle = torch.tensor([-1.0, 1.0, 1.0]), camera.clone()
        middle[:, 2] = depth.shape[2] - 1 - camera[:, 2]
        noise = torch.where(depth > 0, 2 * draws.normal(*depth.shape[1:]), 0.0)
        return {
            "depth": (depth + noise).flip(2),
            "joints": joints * sign,
            "reference": reference * sign,
            "camera": middle,
        }


class Jitter:
    def __call__(self, draws: Any, *, points: Tensor) -> dict[str, Tensor]:
        return {"points": points + 0.02 * draws.normal(*points.shape[1:])}


# --- samples ----------------------------------------------------------------------------------------------------------


def edit_always(
    edit: Callable[[Any, Sample, SampleKey], Sample],
) -> Callable[[], Callable[[Any, Sample, SampleKey], Sample]]:
    return lambda: edit


def own_generator() -> Callable[[Any, Sample, SampleKey], Sample]:
    """A generator made with the set, of the same seed."""
    generator = np.random.default_rng(0)

    def edit(inner: Any, sample: Sample, key: SampleKey) -> Sample:
        return {**sample, "points": sample["points"] * float(generator.uniform(0.5, 1))}

    return edit


def one_cloud(inner: Any, sample: Sample, key: SampleKey) -> Sample:
    first = inner[SampleKey(0, 0, 0)]
    return {**sample, **{name: first[name] for name in ("points", "normals") if name in first}}


def one_sample(inner: Any, sample: Sample, key: SampleKey) -> Sample:
    return dict(inner[SampleKey(0, 0, 0)])


def ten_clouds(inner: Any, sample: Sample, key: SampleKey) -> Sample:
    first = inner[SampleKey(key.index % 10, 0, 0)]
    return {**sample, **{name: first[name] for name in ("points", "normals") if name in first}}


def next_depth(inner: Any, sample: Sample, key: SampleKey) -> Sample:
    return {**sample, "depth": inner[SampleKey((key.index + 1) % len(inner), 0, 0)]["depth"]}


def field(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Any, Sample, SampleKey], Sample]:
    return lambda inner, sample, key: {**sample, name: change(sample[name])}


def far_reference(reference: Tensor) -> Tensor:
    return reference + torch.tensor([0.0, 0.0, 250.0])


def with_background(inner: Any, sample: Sample, key: SampleKey) -> Sample:
    """The centre as the mean over all pixels, of which those of the background are 0 mm away (O45)."""
    depth, (fx, fy, u0, v0) = sample["depth"].double(), sample["camera"].tolist()
    z = float(depth.mean())
    rows, columns = torch.meshgrid(torch.arange(depth.shape[0]), torch.arange(depth.shape[1]), indexing="ij")
    is_seen = depth > 0
    u, v = float(columns[is_seen].double().mean()), float(rows[is_seen].double().mean())
    return {**sample, "reference": torch.tensor([(u - u0) * z / fx, (v - v0) * z / fy, z], dtype=torch.float32)}


class Collated:
    """A data set that makes its batches itself, with the labels of the samples in the opposite order."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.info = inner, inner.info

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, key: SampleKey) -> Sample:
        return dict(self.inner[key])

    def collate(self, samples: list[Sample]) -> dict[str, Any]:
        batch = {name: torch.stack([torch.as_tensor(s[name]) for s in samples]) for name in samples[0]}
        return {**batch, "label": batch["label"].flip(0)}
