"""The drawing: what becomes a box, and that the SVG is whole, self-contained and honest."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sightline
from sightline.workbench.describe.drawing import Figure, build_figure, draw, short_number, show_shape
from sightline.workbench.describe.trace import Trace, trace

SVG = "{http://www.w3.org/2000/svg}"


class Block(nn.Module):
    """Two layers and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, values: Tensor) -> Tensor:
        return values + self.down(self.up(values).relu())


class Stack(nn.Module):
    """Four equal blocks in a list, then a head that reads the second block too."""

    def __init__(self, *, reads_second: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.head = nn.Linear(8, 2)
        self.reads_second = reads_second

    def forward(self, *, points: Tensor) -> dict[str, Tensor]:
        kept = []
        for block in self.blocks:
            points = block(points)
            kept.append(points)
        return {"logits": self.head(points * kept[1] if self.reads_second else points)}


def traced(model: nn.Module, *shape: int) -> Trace:
    points = torch.rand(3, *shape)
    return trace(model, lambda copied: copied(points=points), num_samples=3)


def names(figure: Figure) -> list[str]:
    return [box.below or box.name for box in figure.boxes]


def drawn(figure: Figure, title: str = "a model") -> str:
    return draw(figure, title=title, subtitle="and more", num_samples=3)


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_depth_opens_calls() -> None:
    found = traced(Stack(reads_second=True), 8)
    figure = build_figure(found, depth=1)
    assert names(figure) == ["points", *(f"blocks.{number}" for number in range(4)), "head", "logits"]
    assert figure.arrows == ((0, 1), (1, 2), (2, 3), (2, 5), (3, 4), (4, 5), (5, 6))
    assert {"Block", "280", "256 MAC", "B × 8"} <= set(texts(drawn(figure)))
    opened = build_figure(found, depth=2)
    inside = [f"blocks.{number}.{name}" for number in range(4) for name in ("up", "down")]
    assert names(opened) == ["points", *inside, "head", "logits"]
    # what a block adds to its input comes from its last layer; the second block is read by the head, too
    assert {(0, 1), (1, 2), (2, 3), (4, 9), (8, 9), (9, 10)} <= set(opened.arrows)


def test_a_model_in_wrappers_is_opened_to_its_layers() -> None:
    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, points: Tensor) -> Tensor:
            return self.inner(points)

    layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    found = traced(Wrapper(Wrapper(layers)), 4)
    assert names(build_figure(found)) == ["points", "inner.inner.0", "inner.inner.1", "inner.inner.2", "output"]


def test_dgcnn_is_drawn_as_in_its_paper() -> None:
    """Wang et al. 2019, figure 3: four edge convolutions in a chain, each also joined for the embedding."""
    model = sightline.build_model("dgcnn", num_classes=10, in_channels=3, num_neighbours=4)
    figure = build_figure(traced(model, 16, 3))
    assert names(figure)[:6] == ["points", "edges.0", "edges.1", "edges.2", "edges.3", "embed"]
    assert {source for source, target in figure.arrows if target == 5} == {1, 2, 3, 4}
    assert {(place, place + 1) for place in range(5)} <= set(figure.arrows)


@pytest.mark.parametrize("name", ["pointnet", "dgcnn", "pct", "pct_naive"])
def test_drawings_are_whole(name: str) -> None:
    """Well-formed, of themselves alone, the same again; nothing over an edge or over another box."""
    small: dict[str, Any] = {"pct": {"num_centres": (16, 8), "num_neighbours": 4}, "dgcnn": {"num_neighbours": 4}}
    model = sightline.build_model(name, num_classes=10, in_channels=3, **small.get(name, {}))
    figure = build_figure(traced(model, 32, 3))
    assert 5 <= len(figure.boxes) <= 26
    svg = drawn(figure, name)
    assert svg == drawn(figure, name)
    root = ElementTree.fromstring(svg)
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= set("svg title rect path polygon text".split())
    assert svg.count("http") == 1  # the name space
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    boxes = [e.attrib for e in root.iter(f"{SVG}rect") if "x" in e.attrib]
    spans = sorted((float(box["y"]), float(box["y"]) + float(box["height"])) for box in boxes)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    assert all(float(box["x"]) >= 0 and float(box["x"]) + float(box["width"]) <= width for box in boxes)
    assert spans[-1][1] < height
    assert sum(1 for _ in root.iter(f"{SVG}polygon")) == len(figure.arrows)


def test_names_are_escaped() -> None:
    figure = build_figure(traced(Stack(reads_second=False), 8))
    assert "a<b & 'c'" in texts(drawn(figure, "a<b & 'c'"))


def test_a_shared_module_is_marked() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, *, points: Tensor) -> Tensor:
            return self.layer(self.layer(points).relu())

    told = texts(drawn(build_figure(traced(Net(), 4))))
    assert {"layer", "layer (call 2)", "20", "shared", "B × 4"} <= set(told)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((3, 1024, 64), "B × 1024 × 64"), ((3072, 64), "1024·B × 64"), ((64, 3), "64 × 3"), ((), "one number")],
)
def test_shapes_name_the_batch(shape: tuple[int, ...], expected: str) -> None:
    assert show_shape(shape, 3) == expected


def test_short_numbers() -> None:
    numbers = (0, 96, 999, 999_600, 1_809_576, 2_391_418_880, 1.5e13)
    assert [short_number(number) for number in numbers] == ["0", "96", "999", "1 M", "1.81 M", "2.39 G", "15 T"]
