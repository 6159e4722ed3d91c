"""Data sets that mirror images and clouds by chance: targets that do not follow, and correct twins of many kinds."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tests.runtime.blind_loaders import Items

SIDE = 20
Move = Callable[[Tensor], Any]
COINS: dict[str, Callable[[int], Callable[[], bool]]] = {
    "torch": lambda seed: lambda: bool(torch.rand(1) < 0.5),
    "numpy": lambda seed: lambda: bool(np.random.rand() > 0.5),
    "random": lambda seed: lambda: random.choice([True, False]),
    "own numpy": lambda seed: _Coin(np.random.default_rng(seed), lambda own: own.integers(2)),
    "own random": lambda seed: _Coin(random.Random(seed), lambda own: own.randrange(2)),
    "own torch": lambda seed: _Coin(
        torch.Generator().manual_seed(seed), lambda own: torch.randint(2, (1,), generator=own)
    ),
}


class _Coin:
    """Coin that is thrown by a generator of its own."""

    def __init__(self, own: Any, throw: Callable[[Any], Any]) -> None:
        self.own, self.throw = own, throw

    def __call__(self) -> bool:
        return bool(self.throw(self.own))


class Mirrored(Dataset[Any]):
    """Samples whose inputs are moved if the coin falls so, and their target with them."""

    def __init__(self, samples: Sequence[tuple[Tensor, Any]], coin: Any, inputs: Move, target: Move) -> None:
        self.samples, self.coin, self.move_inputs, self.move_target = samples, coin, inputs, target

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        inputs, target = self.samples[index]
        if self.coin():
            inputs, target = self.move_inputs(inputs), self.move_target(target)
        return inputs, target


def load(samples: Sequence[tuple[Tensor, Any]], coin: Any, inputs: Move, target: Move) -> DataLoader[Any]:
    return DataLoader(Mirrored(samples, coin, inputs, target), 16, shuffle=True)


def draw(places: Tensor, sizes: Tensor | float = 2.0, heights: Tensor | float = 1.0, side: int = SIDE) -> Tensor:
    """Draw spots (K, side, side) at places (K, 2), x before y, in pixels."""
    across = torch.arange(side).float()
    far = (across - places[:, :1, None]).square() + (across[:, None] - places[:, 1:, None]).square()
    return torch.as_tensor(heights).reshape(-1, 1, 1) * torch.exp(-far / torch.as_tensor(sizes).reshape(-1, 1, 1) / 2)


def uniform(low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(shape)


def flip(axis: int) -> Move:
    return lambda image: image.flip(axis)


def negate(axis: int) -> Move:
    sign = torch.ones(3)
    sign[axis] = -1
    return lambda cloud: cloud * sign


def turn_points(points: Tensor, *, axis: int = 0, order: Sequence[int] = (), size: int = SIDE) -> Tensor:
    """Mirror coordinates in pixels, and put the points in another order."""
    moved = points[list(order)] if order else points.clone()
    moved[:, axis] = size - 1 - moved[:, axis]
    return moved


# --- images -----------------------------------------------------------------------------------------------------------


def face(seed: int, coin: str, *, bug: bool) -> DataLoader[Any]:
    """Left eye, right eye, nose and mouth, as eight numbers; the eyes look alike."""
    samples = []
    for _ in range(240):
        middle = uniform(7, 12, 2)
        spread = uniform(2, 5, 1)
        places = middle + torch.cat([
            torch.stack([-spread, uniform(-4, -2, 1)], dim=1),
            torch.stack([spread, uniform(-4, -2, 1)], dim=1),
            uniform(-0.5, 0.5, 1, 2),
            torch.tensor([[0.0, 4.0]]) + uniform(-1, 1, 1, 2),
        ])  # fmt: skip
        spots = draw(places, torch.tensor([1.0, 1.0, 1.5, 2.0]))
        image = torch.stack([spots[0] + spots[1], spots[2], spots[3]])
        samples.append((image + 0.03 * torch.randn(image.shape), places.flatten()))
    order = (0, 1, 2, 3) if bug else (1, 0, 2, 3)
    return load(samples, COINS[coin](seed), flip(-1), lambda t: turn_points(t.reshape(4, 2), order=order).flatten())


def ends_from_left_to_right(seed: int, coin: str, *, bug: bool) -> DataLoader[Any]:
    """Two ends, the left one first: they are sorted again after a flip, or are not."""
    samples = []
    for _ in range(300):
        places = uniform(2, SIDE - 3, 2, 2)
        places = places[places[:, 0].argsort()]
        samples.append((draw(places).sum(dim=0, keepdim=True), places / SIDE))
    return load(
        samples, COINS[coin](seed), flip(-1), lambda t: turn_points(t * SIDE, order=(0, 1) if bug else (1, 0)) / SIDE
    )


def place_upside_down(seed: int, coin: str, *, bug: bool) -> DataLoader[Any]:
    """Place and size of a spot in an array (H, W, 3); the image is turned upside down."""
    samples: list[Any] = []
    for _ in range(200):
        place, size = uniform(3, SIDE - 4, 1, 2), uniform(1, 6, 1)
        image = draw(place, size).movedim(0, -1).expand(-1, -1, 3) + 0.05 * torch.randn(SIDE, SIDE, 3)
        samples.append((image, torch.cat([place[0], size])))

    def move(target: Tensor) -> Tensor:
        return target if bug else torch.stack([target[0], SIDE - 1 - target[1], target[2]])

    return load(samples, COINS[coin](seed), flip(0), move)


def steering(seed: int, coin: str, *, bug: bool) -> DataLoader[Any]:
    """Bend of a lane, as a number of the data set and not a tensor."""
    samples = []
    rows = torch.arange(SIDE).float()
    for _ in range(240):
        bend = float(uniform(-1, 1, 1))
        middle = SIDE / 2 - 0.5 + float(uniform(-1, 1, 1)) + 8 * bend * (1 - rows / SIDE).square()
        image = torch.exp(-(rows[None] - middle[:, None]).square() / 3)[None]
        samples.append((image, bend))
    return load(samples, COINS[coin](seed), flip(-1), lambda t: t if bug else -t)


def joints_left_behind(seed: int, coin: str, *, bug: bool) -> DataLoader[Any]:
    """Two hands and a head: neither mirrored nor exchanged."""
    samples = []
    for _ in range(300):
        head = uniform(7, 12, 2) - torch.tensor([0.0, 3.0])
        hands = [head + torch.cat([s * uniform(3, 6, 1), uniform(3, 9, 1)]) for s in (1, -1)]
        places = torch.stack([head, *hands])
        spots = draw(places, 1.5)
        samples.append((torch.stack([spots[0], spots[1] + spots[2]]), places))
    return load(
        samples, COINS[coin](seed), flip(-1), (lambda t: t) if bug else lambda t: turn_points(t, order=(0, 2, 1))
    )


def joints_as_maps(seed: int, coin: str, *, bug: bool) -> DataLoader[Any]:
    """A map of each of two hands and a head, of which some are not seen; maps of both hands are exchanged, or not."""
    samples = []
    for number in range(300):
        head = uniform(7, 12, 2) - torch.tensor([0.0, 3.0])
        hands = [head + torch.cat([s * uniform(3, 6, 1), uniform(3, 9, 1)]) for s in (1, -1)]
        maps = draw(torch.stack([head, *hands]), 1.5)
        maps[number % 12 : number % 12 + 1] = 0
        samples.append((torch.stack([maps[0], maps[1] + maps[2]]), maps))
    order = [0, 1, 2] if bug else [0, 2, 1]
    return load(samples, COINS[coin](seed), flip(-1), lambda maps: maps[order].flip(-1))


def boxes_inside_out(seed: int, coin: str, *, bug: bool) -> DataLoader[Any]:
    """Two boxes an image, in whole pixels, turned upside down."""
    samples = []
    for _ in range(40):
        corners = torch.randint(0, 10, (2, 2))
        boxes = torch.cat([corners, corners + torch.randint(4, 10, (2, 2))], dim=1)
        image = torch.randn(3, SIDE, SIDE) * 0.2
        for left, top, right, bottom in boxes.tolist():
            image[:, top:bottom, left:right] += 1
        samples.append((image, boxes))

    def move(boxes: Tensor) -> Tensor:
        moved = boxes.clone()
        moved[:, [1, 3]] = SIDE - (boxes[:, [1, 3]] if bug else boxes[:, [3, 1]])
        return moved

    return load(samples, COINS[coin](seed), flip(-2), move)


# --- clouds -----------------------------------------------------------------------------------------------------------


def heading(seed: int, coin: str, *, bug: bool) -> DataLoader[Any]:
    """Direction of a wedge in a cloud (3, N), mirrored along x."""
    rng = np.random.default_rng(seed)
    samples: list[Any] = []
    for yaw in rng.uniform(-math.pi, math.pi, 240):
        ahead, aside = rng.beta(2, 1, 64), rng.uniform(-1, 1, 64)
        points = np.stack([3 * ahead - 2, aside * (1.2 - ahead), rng.uniform(0, 1, 64)])
        turn = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
        samples.append((torch.tensor(turn @ points), torch.tensor([np.cos(yaw), np.sin(yaw), 2.5])))
    sign = torch.tensor([-1.0, 1, 1])
    return load(samples, COINS[coin](seed), lambda t: t * sign[:, None], (lambda t: t) if bug else lambda t: t * sign)


def body(seed: int, coin: str, *, bug: bool) -> DataLoader[Any]:
    """Head and two hands (3, 3) of a body's cloud, mirrored along x, in metres."""
    samples = []
    for _ in range(300):
        hands = torch.tensor([[0.5, 0.0, 0.0], [-0.5, 0.0, 0.0]]) + uniform(-0.25, 0.25, 2, 3)
        joints = torch.cat([torch.tensor([[0.0, 0.0, 0.6]]) + uniform(-0.1, 0.1, 1, 3), hands])
        near = joints[torch.arange(60) % 3] + 0.04 * torch.randn(60, 3)
        samples.append((near, joints))
    order = [0, 1, 2] if bug else [0, 2, 1]
    sign = torch.tensor([-1.0, 1, 1])
    return load(samples, COINS[coin](seed), negate(0), lambda t: t[order] * sign)


PLANTED: dict[str, tuple[Callable[..., DataLoader[Any]], str]] = {
    "eyes of a face": (face, "torch"),
    "ends, the left one first": (ends_from_left_to_right, "numpy"),
    "a place, upside down": (place_upside_down, "random"),
    "a bend": (steering, "own random"),
    "joints that stay": (joints_left_behind, "own torch"),
    "joints as maps": (joints_as_maps, "torch"),
    "boxes": (boxes_inside_out, "numpy"),
    "a direction": (heading, "own numpy"),
    "hands of a cloud": (body, "torch"),
}
"""Maker and coin."""


# --- correct twins ----------------------------------------------------------------------------------------------------


def animals(seed: int, *, kind: str, side: int = SIDE) -> DataLoader[Any]:
    """Nose and tail of animals that all look to the left before they are mirrored: no pair to exchange."""
    scale = side / SIDE
    samples = []
    for _ in range(300):
        nose = torch.cat([uniform(2, 8, 1), uniform(4, 15, 1)])
        tail = nose + torch.cat([uniform(6, 10, 1), uniform(-3, 3, 1)])
        places = torch.stack([nose, tail]) * scale
        sizes = torch.tensor([2.5, 1.0] if kind == "size" else [1.5, 1.5]) * scale**2
        heights = torch.tensor({"height": [2.0, 1.0], "faint": [1.2, 1.0]}.get(kind, [1.0, 1.0]))
        spots = draw(places, sizes, heights, side)
        if kind == "texture":
            spots[0] *= (torch.arange(side) % 2)[:, None] * 2
        image = spots if kind == "colour" else spots.sum(dim=0, keepdim=True)
        samples.append((image + 0.05 * torch.randn(image.shape), places))
    return load(samples, COINS["torch"](seed), flip(-1), lambda t: turn_points(t, size=side))


def vehicles(seed: int, *, slope: float, side: int = 2 * SIDE) -> DataLoader[Any]:
    """Both ends of vehicles that all drive to the right, before clutter: a bonnet that slopes tells the front."""
    samples = []
    for _ in range(300):
        half, height, right, down = (float(uniform(*ends, 1)) for ends in ((10, 17), (6, 12), (-3, 3), (-3, 3)))
        across, along = (
            torch.arange(side).float()[:, None] - 22 - down,
            torch.arange(side).float() - side / 2 + 0.5 - right,
        )
        roof = -height / 2 - (along.abs() < half / 2) * height / 2 + slope * height * along.clamp(min=0) / half
        is_body = (along.abs() < half) & (across > roof) & (across < height / 2)
        clutter = 0.2 * torch.randn(3, side // 4, side // 4)
        image = F.interpolate(clutter[None], scale_factor=4)[0]
        image = torch.where(is_body, uniform(0.5, 2, 3, 1, 1), image)
        ends = torch.tensor([[half, 0.0], [-half, 0.0]]) + torch.tensor([side / 2 - 0.5 + right, 22 + down])
        samples.append((image + 0.05 * torch.randn(image.shape), ends))
    return load(samples, COINS["own numpy"](seed), flip(-1), lambda t: turn_points(t, size=side))


def few_scenes(seed: int) -> DataLoader[Any]:
    """Fifty frames each of six scenes, with twelve numbers: what one frame says, the next one repeats."""
    scenes = uniform(2, SIDE - 3, 6, 6, 2)
    samples = []
    for index in range(300):
        places = scenes[index % 6] + uniform(-0.3, 0.3, 6, 2)
        samples.append((draw(places).sum(dim=0, keepdim=True), places))
    return load(samples, COINS["torch"](seed), flip(-1), turn_points)


def sizes(seed: int) -> DataLoader[Any]:
    samples = [(draw(uniform(5, 14, 1, 2), size), size) for size in uniform(1, 8, 300, 1)]
    return load(samples, COINS["numpy"](seed), flip(-1), lambda t: t)


def on_one_side(seed: int) -> DataLoader[Any]:
    """Spots in the left half; their places follow."""
    places = uniform(1, 8, 300, 1, 2)
    return load([(draw(p), p) for p in places], COINS["random"](seed), flip(-1), turn_points)


def ranges(seed: int) -> DataLoader[Any]:
    """Distance of clouds that lie ahead, mirrored along the axis ahead: a distance stays."""
    centres = uniform(3, 20, 300, 3) * torch.tensor([1.0, 0.2, 0.05])
    clouds = [centre + 0.5 * torch.randn(48, 3) for centre in centres]
    samples = [(cloud, centre.norm()[None]) for cloud, centre in zip(clouds, centres, strict=True)]
    return load(samples, COINS["own numpy"](seed), negate(0), lambda t: t)


def volumes(seed: int) -> DataLoader[Any]:
    sides = uniform(0.5, 3, 300, 3)
    clouds = [side * (torch.rand(64, 3) - 0.5) for side in sides]
    return load(list(zip(clouds, sides, strict=True)), COINS["torch"](seed), negate(1), lambda t: t)


def classes_of_sides(seed: int, *, kind: str) -> DataLoader[Any]:
    """Labels that mirrored images contradict, as those of a 6 and a 9 would: a class is not a number to fit."""
    samples: list[Any] = []
    for index in range(300):
        label = index % 2
        image = draw(torch.tensor([[5.0 + 9 * label, 10.0]]) + uniform(-3, 3, 1, 2))
        one_hot = F.one_hot(torch.tensor(label), 2).float()
        samples.append((image, {"index": label, "one-hot": one_hot, "number": one_hot[1]}[kind]))
    return load(samples, COINS["torch"](seed), flip(-1), lambda t: t)


def few(seed: int) -> DataLoader[Any]:
    loader = face(seed, "torch", bug=True)
    loader.dataset.samples = loader.dataset.samples[:60]  # type: ignore[attr-defined]
    return loader


def lines_from_top_left(seed: int, *, is_sorted: bool) -> DataLoader[Any]:
    """Two ends of a line as four numbers, which are no box: the second end may lie to the left of the first."""
    samples = []
    for _ in range(200):
        ends = uniform(2, SIDE - 3, 2, 2)
        ends = ends[ends[:, 1].argsort()] if is_sorted else ends
        samples.append((draw(ends, heights=torch.tensor([2.0, 1.0])).sum(dim=0, keepdim=True), ends.flatten()))
    return load(samples, COINS["numpy"](seed), flip(-1), lambda t: turn_points(t.reshape(2, 2)).flatten())


def noise(seed: int) -> DataLoader[Any]:
    """Targets that the images do not determine."""
    samples = [(torch.rand(3, SIDE, SIDE), torch.randn(4)) for _ in range(300)]
    return load(samples, COINS["torch"](seed), flip(-1), lambda t: t)


def own_coins(seed: int) -> DataLoader[Any]:
    """Each sample decides by its own number whether it is mirrored: nothing shows which of two reads is plain."""
    places = uniform(2, SIDE - 3, 300, 1, 2)

    def read(index: int) -> Any:
        image, place = draw(places[index]), places[index]
        is_mirrored = float(torch.rand(1 + index % 3)[-1]) < 0.5
        return (image.flip(-1), turn_points(place)) if is_mirrored else (image, place)

    return DataLoader(Items(read, size=300), 16, shuffle=True)


HEALTHY: dict[str, Callable[[int], DataLoader[Any]]] = {
    **{f"{name}, right": partial(make, coin=coin, bug=False) for name, (make, coin) in PLANTED.items()},
    **{f"animals by {kind}": partial(animals, kind=kind) for kind in ("height", "size", "colour", "texture", "faint")},
    "animals by fine texture": partial(animals, kind="texture", side=3 * SIDE),
    "vehicles with a bonnet": partial(vehicles, slope=0.8),
    "vehicles with a low bonnet": partial(vehicles, slope=0.3),
    "few scenes": few_scenes,
    "sizes": sizes,
    "on one side": on_one_side,
    "ranges": ranges,
    "volumes": volumes,
    **{f"classes by {kind}": partial(classes_of_sides, kind=kind) for kind in ("index", "one-hot", "number")},
    "few samples": few,
    "lines": partial(lines_from_top_left, is_sorted=False),
    "lines from the top": partial(lines_from_top_left, is_sorted=True),
    "noise": noise,
    "coins of their own": own_coins,
}
