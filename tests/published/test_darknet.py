"""Darknet's files against a literal reading: numbers in the order of its cfg, a network by its layers."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sightline
from sightline.ops.boxes.codes import decode_deltas
from sightline.ops.boxes.priors import make_anchors
from sightline.published.files import make_meta_model, read_published
from sightline.published.rows import read_layout
from sightline.runs.weight_sources import open_source
from tests.cases import run_each
from tests.command import refuse, succeed

HEADERS = {"0.1": struct.pack("<iiii", 0, 1, 0, 5), "0.2": struct.pack("<iiiq", 0, 2, 5, 32_013_312)}
BACKBONE_SIZE, YOLOV3_SIZE = 162_482_580, 248_007_048
"""Bytes of darknet53.conv.74 and of yolov3.weights as published, with headers of 20 bytes."""
PUBLISHED_ANCHORS = (
    ((10, 13), (16, 30), (33, 23)),
    ((30, 61), (62, 45), (59, 119)),
    ((116, 90), (156, 198), (373, 326)),
)
Layer = tuple[Any, ...]


def conv(filters: int, size: int, stride: int = 1, is_plain: bool = False) -> Layer:
    return "convolutional", filters, size, stride, is_plain


def residuals(filters: int, count: int) -> list[Layer]:
    return [conv(2 * filters, 3, 2), *[conv(filters, 1), conv(2 * filters, 3), ("shortcut", -3)] * count]


def detection(filters: int, num_classes: int) -> list[Layer]:
    return [*[conv(filters, 1), conv(2 * filters, 3)] * 3, conv(3 * (5 + num_classes), 1, 1, True), ("yolo",)]


def yolov3_cfg(num_classes: int) -> list[Layer]:
    """The layers of yolov3.cfg; the routes to 61 and 36 count from the first."""
    backbone = [conv(32, 3)]
    for filters, count in ((32, 1), (64, 2), (128, 8), (256, 8), (512, 4)):
        backbone += residuals(filters, count)
    layers = [*backbone, *detection(512, num_classes)]
    for filters, source in ((256, 61), (128, 36)):
        layers += [("route", -4), conv(filters, 1), ("upsample",), ("route", -1, source)]
        layers += detection(filters, num_classes)
    return layers


def read_convolutions(file: Path, layers: list[Layer]) -> Iterator[list[Tensor]]:
    """Biases, scales, means and variances if there is a norm, and kernels, as load_convolutional_weights reads them."""
    numbers, start, channels = np.fromfile(file, "<f4", offset=20), 0, [3]
    for layer in layers:
        kind, *values = layer
        if kind != "convolutional":
            sources = values[1:] if kind == "route" and len(values) > 1 else []
            before = channels[-4] if layer == ("route", -4) else channels[-1]
            channels.append(before + sum(channels[source + 1] for source in sources))
            continue
        filters, size, _, is_plain = values
        tensors = []
        for shape in [(filters,)] * (1 if is_plain else 4) + [(filters, channels[-1], size, size)]:
            count = int(np.prod(shape))
            tensors.append(torch.from_numpy(numbers[start : start + count].reshape(shape)))
            start += count
        channels.append(filters)
        yield tensors
    assert start == len(numbers)


def run_cfg(file: Path, layers: list[Layer], image: Tensor) -> list[Tensor]:
    """The maps before each yolo layer, the coarsest first, by the layers of the cfg one after another."""
    convolutions, outputs, found = read_convolutions(file, layers), [], []
    values = image
    for kind, *arguments in layers:
        if kind == "convolutional":
            _, size, stride, is_plain = arguments
            bias, *norm, kernel = next(convolutions)
            values = F.conv2d(values, kernel, stride=stride, padding=size // 2)
            if norm:
                scale, mean, variance = (each[:, None, None] for each in norm)
                values = (values - mean) / (variance + 1e-5).sqrt() * scale
            values = values + bias[:, None, None]
            values = values if is_plain else torch.where(values > 0, values, 0.1 * values)
        elif kind == "shortcut":
            values = values + outputs[arguments[0]]
        elif kind == "route":
            values = torch.cat([outputs[source] for source in arguments], dim=1)
        elif kind == "upsample":
            values = values.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        else:
            found.append(values)
        outputs.append(values)
    return found


def write_file(path: Path, layers: list[Layer], version: str = "0.2") -> Path:
    """Random numbers for a cfg: norms near 1, kernels that keep the size of maps."""
    generator, channels = np.random.default_rng(5), [3]
    with path.open("wb") as file:
        file.write(HEADERS[version])
        for kind, *values in layers:
            width = channels[-1]
            if kind == "route":
                width = channels[-4] if values == [-4] else width + channels[values[1] + 1]
            if kind == "convolutional":
                filters, size, _, is_plain = values
                parts = [generator.uniform(0.5, 1.5, filters) for _ in range(1 if is_plain else 4)]
                parts.append(
                    generator.standard_normal(filters * width * size**2, np.float32) / (width * size**2) ** 0.5
                )
                file.write(b"".join(part.astype("<f4").tobytes() for part in parts))
                width = filters
            channels.append(width)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of YOLOv3 for 80 classes, and its first 52 convolutions alone."""
    whole = write_file(tmp_path_factory.mktemp("darknet") / "yolov3.weights", yolov3_cfg(80))
    start = whole.with_name("darknet53.conv.74")
    with whole.open("rb") as content:
        start.write_bytes(content.read(BACKBONE_SIZE))
    assert whole.stat().st_size == YOLOV3_SIZE
    return {"yolov3": whole, "backbone": start}


def read_into_model(file: Path, layout: str, **facts: int) -> nn.Module:
    """The layout's model with the weights of a file; a head that it does not have is left without memory."""
    source = open_source(str(file))
    assert source.layout == layout
    model = make_meta_model(read_layout(layout), in_channels=3, **facts).eval()
    left = model.load_state_dict(dict(source.read()), strict=False, assign=True)
    assert (left.unexpected_keys, [key for key in left.missing_keys if not key.startswith("head.")]) == ([], [])
    return model


def test_a_backbone_is_read_as_darknet_reads_it(files: dict[str, Path]) -> None:
    """As the start of a training: its map is that of the cfg's first 75 layers."""
    image, file = torch.rand(1, 3, 64, 64), files["backbone"]
    model = read_into_model(file, "darknet_darknet53")
    with torch.no_grad():
        ours, theirs = model.images(image)[-1], run_cfg(file, [*yolov3_cfg(80)[:75], ("yolo",)], image)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_an_older_header_is_shorter(tmp_path: Path) -> None:
    file = tmp_path / "older.weights"
    with file.open("wb") as opened:
        opened.write(HEADERS["0.1"] + np.arange(32, dtype="<f4").tobytes())
        opened.truncate(BACKBONE_SIZE - 4)
    assert read_published(file).state["0.norm.bias"].tolist() == [*range(32)]


@pytest.mark.long  # the network itself is compared below
def test_a_file_becomes_a_run(files: dict[str, Path], tmp_path: Path) -> None:
    succeed("weights", "convert", files["yolov3"], "--layout", "darknet_yolov3", "--to", tmp_path / "run")
    found, expected = sightline.load_run(tmp_path / "run").model.state_dict(), open_source(str(files["yolov3"])).read()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_yolov3_is_that_of_its_cfg(files: dict[str, Path]) -> None:
    """What the network gives at every anchor, and the boxes that section 2.1 of the paper makes of it."""
    image, strides, layout = torch.rand(1, 3, 64, 96), (8, 16, 32), "darknet_yolov3"
    model, anchors = read_into_model(files["yolov3"], layout, num_classes=80), read_layout(layout).task["anchors"]
    with torch.no_grad():
        ours, theirs = model(image=image), run_cfg(files["yolov3"], yolov3_cfg(80), image)[::-1]
    maps = [values.unflatten(1, (3, 85)).permute(0, 3, 4, 1, 2)[0] for values in theirs]
    found = torch.cat([ours["codes"], ours["objectness"][..., None], ours["logits"]], dim=2)[0]
    torch.testing.assert_close(found, torch.cat([values.flatten(0, 2) for values in maps]), rtol=1e-4, atol=1e-4)
    priors = make_anchors([values.shape[:2] for values in maps], strides, anchors["sizes"])
    boxes = decode_deltas(priors.coordinates, model.head.to_deltas(ours["codes"] / 50, priors))
    expected = []
    for values, stride, sizes in zip(maps, strides, PUBLISHED_ANCHORS, strict=True):
        row, column = torch.meshgrid(*(torch.arange(side) for side in values.shape[:2]), indexing="ij")
        codes = values[..., :4] / 50  # so that no size is near the largest that is decoded
        centre = (codes[..., :2].sigmoid() + torch.stack([column, row], dim=2)[:, :, None]) * stride
        half = codes[..., 2:].exp() * torch.tensor(sizes) / 2
        expected.append(torch.cat([centre - half, centre + half], dim=3).flatten(0, 2))
    torch.testing.assert_close(boxes[0], torch.cat(expected), rtol=1e-4, atol=1e-3)


@run_each(
    "header, num_bytes, message",
    [
        (
            HEADERS["0.2"],
            BACKBONE_SIZE - 4,
            "holds 40,620,639 numbers after its header; darknet_darknet53 has",
        ),
        (HEADERS["0.2"], BACKBONE_SIZE - 1, "holds 40,620,639 numbers and 3 bytes after its header"),
        (HEADERS["0.2"], BACKBONE_SIZE + 4, "holds 40,620,641 numbers after its header"),
        (HEADERS["0.2"], 20, "holds 0 numbers after its header"),
        (HEADERS["0.2"], 14, "holds 0 numbers after its header"),
        (HEADERS["0.2"], 11, "has 11 bytes, fewer than Darknet's header"),
        (HEADERS["0.2"], 0, "has 0 bytes, fewer than Darknet's header"),
        (struct.pack("<3i", 0, 3, 0), BACKBONE_SIZE, "version 0.3 of Darknet's files, 0.1 and 0.2 are known"),
        (b"GGUF" * 4, BACKBONE_SIZE, "0.1 and 0.2 are known; is it a file of Darknet"),
        (HEADERS["0.2"], YOLOV3_SIZE + 4 * 5_385 * 9_921, "darknet_yolov3 has 61,576,342, 5,385 more for each further"),
        (HEADERS["0.2"], 2**40, "holds 274,877,906,939 numbers after its header"),
    ],
)
def test_what_is_no_such_file_is_one_line(tmp_path: Path, header: bytes, num_bytes: int, message: str) -> None:
    """Its header and size alone decide: the files are sparse, the longest would fit no memory."""
    file = tmp_path / "own.bin"
    with file.open("wb") as opened:
        opened.write(header)
        opened.truncate(num_bytes)
    line = refuse("weights", "convert", file, "--layout", "darknet_darknet53", "--to", tmp_path / "run")
    assert message in line
    assert line.count("\n") <= 1
    assert not (tmp_path / "run").exists()


@run_each(
    "name, message",
    [("pipe", "it is not a plain file; check the path"), ("none.bin", "No such file"), (".", "Is a directory")],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, name: str, message: str) -> None:
    """A pipe is not opened: nobody writes to it."""
    with contextlib.suppress(FileExistsError):
        os.mkfifo(tmp_path / "pipe")
    assert message in refuse(
        "weights", "convert", tmp_path / name, "--layout", "darknet_yolov3", "--to", tmp_path / "run"
    )


def test_a_pickle_under_a_name_of_darknet_is_read_as_one(tmp_path: Path) -> None:
    torch.save({"state_dict": {"fc.weight": torch.ones(2)}}, tmp_path / "best.weights")
    assert {*read_published(tmp_path / "best.weights").state} == {"fc.weight"}
    line = refuse(
        "weights", "convert", tmp_path / "best.weights", "--layout", "darknet_yolov3", "--to", tmp_path / "run"
    )
    assert "0.1 and 0.2 are known; is it a file of Darknet?" in line
