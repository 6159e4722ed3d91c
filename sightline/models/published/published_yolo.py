"""Names of the published weights of Darknet-53, YOLOv3 and YOLOX in terms of ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from sightline.models.darknet import DARKNET53

__all__ = ["YOLO_LAYOUTS", "darknet_names", "units_of_yolov3", "yolov3_names"]

_NUM_LEVELS = 3
_PARTS = ("conv", "norm")


def _units(pairs: Mapping[str, str], parts: Sequence[str]) -> dict[str, str]:
    """Return the names of convolutions with their norms; `parts` are the names of both below a unit of theirs."""
    return {
        f"{theirs}.{name}": f"{ours}.{part}"
        for theirs, ours in pairs.items()
        for name, part in zip(parts, _PARTS, strict=True)
    }


def darknet_names(theirs: str, ours: str) -> dict[str, str]:
    """Return the module names of Darknet-53 in NuayHL's code; `theirs` and `ours` are prefixes of each name."""
    units = {f"{theirs}conv1": f"{ours}stem"}
    for stage, depth in enumerate(DARKNET53):
        units[f"{theirs}conv{stage + 2}"] = f"{ours}stages.{stage}.0"
        for block in range(depth):
            for index in range(2):
                unit = f"{theirs}residual_block{stage + 1}.{block}.conv{index + 1}"
                units[unit] = f"{ours}stages.{stage}.{block + 1}.layers.{index}"
    return _units(units, ("0", "1"))


def yolov3_names(blocks: Sequence[str], towers: Sequence[str], routes: Sequence[str]) -> dict[str, str]:
    """Return the module names of neck and head in NuayHL's code, the finest level first."""
    units: dict[str, str] = {}
    for level in range(_NUM_LEVELS):
        units |= {f"{blocks[level]}.{index}": f"neck.blocks.{level}.{index}" for index in range(5)}
        units |= {f"{towers[level]}.0": f"head.towers.{level}", f"{towers[level]}.1": f"head.outputs.{level}"}
    return _units(units | {name: f"neck.routes.{level}" for level, name in enumerate(routes)}, ("0", "1"))


def units_of_yolov3() -> Iterator[str]:
    """Iterate over our convolutions in the order of darknet's own files: backbone, then levels, the coarsest first."""
    yield "backbone.stem"
    for stage, depth in enumerate(DARKNET53):
        yield f"backbone.stages.{stage}.0"
        yield from (f"backbone.stages.{stage}.{block + 1}.layers.{index}" for block in range(depth) for index in (0, 1))
    for level in reversed(range(_NUM_LEVELS)):
        if level < _NUM_LEVELS - 1:
            yield f"neck.routes.{level}"
        yield from (f"neck.blocks.{level}.{index}" for index in range(5))
        yield from (f"head.towers.{level}", f"head.outputs.{level}")


def _odtask() -> dict[str, str]:
    numbers = range(_NUM_LEVELS, 0, -1)
    names = darknet_names("backbone.", "backbone.") | yolov3_names(
        [f"yolodetector{number}" for number in numbers],
        [f"to_featuremap{number}" for number in numbers],
        ["conv2to3", "conv1to2"],
    )
    return names | {f"core.{theirs}": ours for theirs, ours in names.items()}


def _csp(theirs: str, ours: str, max_blocks: int) -> dict[str, str]:
    """Return the names of a CSP block with the largest published number of bottlenecks."""
    units = {f"{theirs}.conv{index + 1}": f"{ours}.{part}" for index, part in enumerate(("enter", "past", "leave"))}
    for block in range(max_blocks):
        for index in range(2):
            units[f"{theirs}.m.{block}.conv{index + 1}"] = f"{ours}.blocks.{block}.layers.{index}"
    return units


_MAX_BLOCKS = (4, 12, 12, 4)
"""Blocks of the stages of YOLOX-x; blocks of its neck have as many as the first."""


def _yolox() -> dict[str, str]:
    body, stages = "backbone.backbone.", "backbone.stages."
    units = {f"{body}stem.conv": "backbone.stem"}
    for stage in range(4):
        units[f"{body}dark{stage + 2}.0"] = f"{stages}{stage}.0"
        index = 2 if stage == 3 else 1
        units |= _csp(f"{body}dark{stage + 2}.{index}", f"{stages}{stage}.{index}", _MAX_BLOCKS[stage])
    units |= {f"{body}dark5.1.conv{1 + index}": f"{stages}3.1.{part}" for index, part in enumerate(("enter", "leave"))}
    pairs = (
        ("lateral_conv0", "reduce.1"),
        ("reduce_conv1", "reduce.0"),
        ("bu_conv2", "strided.0"),
        ("bu_conv1", "strided.1"),
    )
    units |= {f"backbone.{theirs}": f"neck.{ours}" for theirs, ours in pairs}
    for theirs, ours in (("C3_p4", "down.1"), ("C3_p3", "down.0"), ("C3_n3", "up.0"), ("C3_n4", "up.1")):
        units |= _csp(f"backbone.{theirs}", f"neck.{ours}", _MAX_BLOCKS[0])
    outputs = {}
    for level in range(_NUM_LEVELS):
        units[f"head.stems.{level}"] = f"head.stems.{level}"
        for theirs, ours in (("cls", "class"), ("reg", "box")):
            units |= {
                f"head.{theirs}_convs.{level}.{index}": f"head.{ours}_towers.{level}.{index}" for index in range(2)
            }
        for theirs, ours in (("cls", "classes"), ("reg", "boxes"), ("obj", "objects")):
            outputs[f"head.{theirs}_preds.{level}"] = f"head.{ours}.{level}.conv"
    return _units(units, ("conv", "bn")) | outputs


YOLO_LAYOUTS: Mapping[str, Mapping[str, str]] = {
    "darknet_darknet53": {
        f"{place}.{part}": f"{unit.replace('backbone', 'images')}.{part}"
        for place, unit in enumerate(units_of_yolov3())
        for part in _PARTS
        if unit.startswith("backbone.")
    },
    "darknet_yolov3": {
        f"{place}.{part}": f"{unit}.{part}"
        for place, unit in enumerate(units_of_yolov3())
        for part in (_PARTS[:1] if unit.startswith("head.outputs") else _PARTS)
    },
    "odtask_darknet53": darknet_names("", "images.") | {"fc": "head"},
    "odtask_yolov3": _odtask(),
    "yolox": _yolox(),
}
"""Per published layout: their module -> our module, as `published.LAYOUTS`."""
