"""Layouts of published weights: rows of the YAML files in `layouts/`, with their pairs of names written out.

A row's `names` are pairs of modules, theirs and ours, or of parameters outside any module. Groups on both sides count
together: `{1..3}` numbers, `{conv,bn}` words, and `<resnet50>` the pairs of the row `resnet50` or `_resnet50`. `base`
names rows that it builds on: mappings merge, anything else is replaced. A row whose name begins with _ is a part of
others.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from sightline.contract.errors import CheckpointError

if TYPE_CHECKING:  # the command line lists names, and does not import torch for it
    from torch import Tensor

FOLDER = Path(__file__).with_name("layouts")
FACTS = ("in_channels", "num_classes", "num_joints")
"""Sizes that are facts of a data set; any other is an argument of the model."""
_GROUP = re.compile(r"\{([^{}]*)\}|<(\w+)>")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


class AxisSize(NamedTuple):
    """Number read from one axis of one of our tensors: less `less`, divided by `divisor`."""

    name: str
    axis: int
    divisor: int = 1
    less: int = 0

    def read(self, weights: Mapping[str, Tensor]) -> int:
        return (weights[self.name].shape[self.axis] - self.less) // self.divisor


class NumModules(NamedTuple):
    """Number of modules directly below one of ours."""

    name: str

    def read(self, weights: Mapping[str, Tensor]) -> int:
        below = f"{self.name}."
        return len({name.removeprefix(below).split(".")[0] for name in weights if name.startswith(below)})


class ImageSide(NamedTuple):
    """Side of a square image in pixels: one position is the class token's, the others are patches'."""

    positions: str
    patches: str

    def read(self, weights: Mapping[str, Tensor]) -> int:
        return math.isqrt(weights[self.positions].shape[1] - 1) * weights[self.patches].shape[2]


Size: TypeAlias = AxisSize | NumModules | ImageSide


@dataclass(frozen=True)
class PublishedProtocol:
    """PublishedProtocol of published weights: the task, the data set, its metrics and the quoted number.

    `arguments` are those of the data set for a number of channels per point, or for images if there are no points.
    """

    task: str
    data: str
    metrics: Sequence[Mapping[str, Any]]
    metric: str
    batch_size: int
    arguments: Mapping[int, Mapping[str, Any]]


@dataclass(frozen=True)
class PublishedLayout:
    """PublishedLayout of published weights: the source, the names of tensors, and the model and recipe of the authors.

    `names` maps modules of theirs to ours. `unused` are patterns of names that our model does not use, `optional` is
    our module that may be missing as a whole, `changes` are those of `translation.CHANGES`. `sizes` are numbers that
    follow from the weights, `assumed` arguments that do not, `blocks` the components of the model by argument; their
    own arguments are named with a dot. `losses`, `trains`, `evaluate`, `task` and `up_axis` are the recipe.
    `takes_first_points`: their clouds are a set's first points. `keeps_head`: a head for other classes than the data
    set's is an error; else it is left out. `class_indices` are the indices of the classes of `protocol` among those of
    the file, if these have gaps. `parts` are the files of a folder that contains the network in parts, and the prefix
    of the names in each. `convolutions` are ours in the order of a Darknet file, which has no names: the index of the
    convolution is the name, in `names`. `unseen` says what no tensor shows, and spoils weights where it is wrong.
    """

    name: str
    url: str
    names: Mapping[str, str]
    model: str
    sizes: Mapping[str, Size]
    protocol: PublishedProtocol
    losses: Sequence[Mapping[str, Any]]
    evaluate: Sequence[Mapping[str, Any]] = ()
    trains: Sequence[Mapping[str, Any]] = ()
    task: Mapping[str, Any] = field(default_factory=dict)
    blocks: Mapping[str, str] = field(default_factory=dict)
    assumed: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)
    unused: Sequence[str] = ()
    convolutions: Sequence[str] = ()
    class_indices: Sequence[int] = ()
    unseen: Sequence[str] = ()
    optional: str | None = None
    up_axis: str | None = None
    takes_first_points: bool = False
    keeps_head: bool = False

    @property
    def facts(self) -> dict[str, AxisSize]:
        """Sizes that are facts of a data set, not arguments of the model."""
        return {name: size for name in FACTS if isinstance(size := self.sizes.get(name), AxisSize)}

    @property
    def num_classes(self) -> AxisSize | None:
        """Size of the head, None for a model without classes."""
        return self.facts.get("num_classes")

    @property
    def makes(self) -> str:
        """Our model with its blocks, its task and the data set of the authors."""
        blocks = f" of {', '.join(self.blocks.values())}" if self.blocks else ""
        return f"{self.model}{blocks}: {self.protocol.task} on {self.protocol.data}"


def list_names() -> list[str]:
    """List the names of all layouts in order."""
    return sorted(name for name in _find_rows() if not name.startswith("_"))


def list_layouts() -> list[PublishedLayout]:
    """List all layouts by name."""
    return [read_layout(name) for name in list_names()]


@functools.cache
def read_layout(name: str) -> PublishedLayout:
    """Read the row of a layout. Raises CheckpointError for an unknown name."""
    names = list_names()
    if name not in names:
        from sightline.contract.schema import suggest  # imports pydantic, which no help text needs

        raise CheckpointError(f"no published layout is called '{name}'{suggest(name, names)}")
    row = dict(_read_row(name))
    protocol = row.pop("protocol")
    arguments = {int(count): value for count, value in protocol["arguments"].items()}
    return PublishedLayout(
        name=name,
        names=_number_convolutions(row["convolutions"]) if "convolutions" in row else _read_names(name),
        sizes={key: _make_size(size) for key, size in row.pop("sizes").items()},
        protocol=PublishedProtocol(**protocol | {"arguments": arguments}),
        **{key: value for key, value in row.items() if key not in ("base", "names")},
    )


def model_arguments(layout: PublishedLayout) -> dict[str, Any]:
    """Collect the model's blocks and the arguments that its authors chose, by dotted path."""
    return {**{f"{name}.name": block for name, block in layout.blocks.items()}, **layout.assumed}


def nest_paths(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Convert dotted paths to nested mappings."""
    nested: dict[str, Any] = {}
    for path, value in arguments.items():
        *outer, last = path.split(".")
        node = nested
        for name in outer:
            node = node.setdefault(name, {})
        node[last] = value
    return nested


def expand_names(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    """Iterate over the pairs of names that a pair with groups expands to; the first group changes slowest."""
    left, right = _GROUP.search(theirs), _GROUP.search(ours)
    if left is None or right is None:
        assert left is right, f"'{theirs}' and '{ours}' have other numbers of groups"
        yield theirs, ours
        return
    pairs = _read_names(left[2]).items() if left[2] else zip(_list_words(left[1]), _list_words(right[1]), strict=True)
    assert left[2] == right[2], f"'{theirs}' and '{ours}' have other groups"
    tails = list(expand_names(theirs[left.end() :], ours[right.end() :]))
    for their_word, our_word in pairs:
        for their_tail, our_tail in tails:
            yield theirs[: left.start()] + their_word + their_tail, ours[: right.start()] + our_word + our_tail


# --- the files --------------------------------------------------------------------------------------------------------


@functools.cache
def _find_rows() -> Mapping[str, Mapping[str, Any]]:
    """Map the name of every row to the row as its file has it."""
    from sightline.store.files.input_files import parsed_yaml

    all_rows: dict[str, Mapping[str, Any]] = {}
    for file in sorted(FOLDER.glob("*.yaml")):
        rows = parsed_yaml(file.read_bytes(), file, name="rows of layouts")
        assert not all_rows.keys() & rows.keys(), f"{file}: a row is in another file, too"
        all_rows |= rows
    return all_rows


@functools.cache
def _read_row(name: str) -> Mapping[str, Any]:
    """Read a row merged over the rows of its `base`."""
    row = _find_rows()[name]
    bases = row.get("base", [])
    merged: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        merged = _merge(merged, _read_row(base))
    return _merge(merged, row)


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = {
        key: _merge(below[key], value) if isinstance(value, Mapping) and key in below else value
        for key, value in above.items()
    }
    return {**below, **both}


@functools.cache
def _read_names(name: str) -> Mapping[str, str]:
    """Read the pairs of names of a layout, or of a row that is a part of others."""
    row = _read_row(name if name in _find_rows() else f"_{name}")
    return dict(pair for theirs, ours in row["names"].items() for pair in expand_names(theirs, ours))


def _number_convolutions(convolutions: Sequence[str]) -> dict[str, str]:
    """Name our convolutions and their norms by the index of the convolution: `0.conv`, `0.norm`, `1.conv`."""
    parts = [ours.rpartition(".") for group in convolutions for _, ours in expand_names(group, group)]
    index_of = {unit: index for index, unit in enumerate(dict.fromkeys(unit for unit, _, _ in parts))}
    return {f"{index_of[unit]}.{leaf}": f"{unit}.{leaf}" for unit, _, leaf in parts}


def _list_words(text: str) -> list[str]:
    ends = _RANGE.fullmatch(text)
    if ends is None:
        return text.split(",")
    first, last = int(ends[1]), int(ends[2])
    step = 1 if first <= last else -1
    return [str(number) for number in range(first, last + step, step)]


def _make_size(row: Mapping[str, Any]) -> Size:
    if "modules_below" in row:
        return NumModules(row["modules_below"])
    if "image_side" in row:
        return ImageSide(row["image_side"], row["patches"])
    return AxisSize(row["tensor"], row["axis"], row.get("divisor", 1), row.get("less", 0))
