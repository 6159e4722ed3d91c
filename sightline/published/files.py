"""Files of published weights: `.pth`, `.safetensors` and Darknet files, folders of parts. The one caller of torch.load.

Published weights come as pickles, and a pickle is a program. torch's weights-only reader runs none of it: it knows
tensors and plain containers, and stops at the name of anything else. NumPy's scalars are allowed, too, because
training scripts store accuracies as such with the weights; a scalar is a type and some bytes, and calls nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError  # the error of torch's weights-only reader; nothing here unpickles
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from sightline.contract import registry
from sightline.contract.errors import CheckpointError, escape_to_one_line, join_some
from sightline.contract.regular_files import check_regular_file, read_regular_file
from sightline.contract.types import ComponentConfig
from sightline.instrument.random_state import preserve_random_state
from sightline.published.rows import PublishedLayout, list_layouts, model_arguments, nest_paths, read_layout
from sightline.published.translation import convert_state_dict, find_layouts

CONTAINERS = ("state_dict", "model_state_dict", "model", "base_model", "net", "network", "weights")
"""Entries under which training scripts keep a model's weights, next to epoch, optimiser and the like."""

_FACTS: Mapping[str, Any] = {
    "num_classes": 2,
    "in_channels": 9,
    "num_categories": 2,
    "num_joints": 2,
    "image_size_px": (512, 64),
}
"""Facts of models whose names alone matter, and shapes that do not depend on a data set."""
_WRAPPER = "module."
_MAX_NAMES_SHOWN = 5
_MAX_BYTES = 1 << 36
_MAX_DEPTH = 10
"""Highest depth of nested containers; training scripts have one or two."""
_GLOBAL = re.compile(r"(?:GLOBAL|[Uu]nsupported (?:global|class)[: ]+(?:GLOBAL )?)\s*([\w.]+)")
_DARKNET_NAME = re.compile(r"\.(weights|conv\.\d+)$", re.IGNORECASE)
"""Pattern of the names of Darknet files: of a whole network, or of its first convolutions."""
_DARKNET_ORDER = ("norm.bias", "conv.bias", "norm.weight", "norm.running_mean", "norm.running_var", "conv.weight")
_DARKNET_SEEN = {(0, 1): "<i", (0, 2): "<q"}
"""Number of images seen, the last entry of the header, by version: 32 or 64 bits."""
_MAX_CLASSES = 10_000
_SCHEMES = ("hf:", "torchvision:", "https:")
"""Beginnings of names that are fetched, as paths have them."""
_SCALAR_TYPES = (np.float64, np.float32, np.float16, np.int64, np.int32, np.bool_)


class PublishedFile(NamedTuple):
    """Weights of a file by their published names, the containers around them, and the other entries of the file."""

    state: dict[str, Tensor]
    containers: tuple[str, ...]
    other_entries: tuple[str, ...]


def read_source(file: Path, layout: PublishedLayout | None = None) -> PublishedFile:
    """Read the weights of a file, or of a folder with a file for each part, which become one state.

    The parts are those of `layout`, without one those of the layout that has the most of them, all in the folder.
    Raises CheckpointError for unreadable files and for a folder with a part that the layout would leave out.
    """
    if layout is not None and layout.convolutions:
        return PublishedFile(_load_darknet(file), (), ())
    parts = find_parts(file) if layout is None else layout.parts
    if not parts or not file.is_dir():
        return read_published(file)
    part_names = {name for other in list_layouts() for name in other.parts}
    unexpected = sorted(name for name in part_names - parts.keys() if (file / name).exists())
    if layout is not None and unexpected:
        raise CheckpointError(
            f"{file}: holds {', '.join(unexpected)}, which the layout '{layout.name}' does not have; take --layout "
            f"{layout.name}_crf"
        )
    read = {prefix: read_published(file / name) for name, prefix in parts.items()}
    return PublishedFile(
        {f"{prefix}{name}": value for prefix, part in read.items() for name, value in part.state.items()},
        tuple(dict.fromkeys(name for part in read.values() for name in part.containers)),
        tuple(dict.fromkeys(name for part in read.values() for name in part.other_entries)),
    )


def find_parts(folder: Path) -> Mapping[str, str]:
    """Find the parts of a layout that a folder holds: all of the most, or some; none in a folder of something else."""
    present = [row.parts for row in list_layouts() if any((folder / name).exists() for name in row.parts)]
    complete = [parts for parts in present if all((folder / name).exists() for name in parts)]
    return max(complete, key=len) if complete else min(present, key=len, default={})


def read_published(path: Path) -> PublishedFile:
    """Read the weights in a file, on the CPU, without `CONTAINERS` and a leading `module.`.

    Raises CheckpointError for a file that is missing, truncated or of another format, that contains any object but
    tensors, numbers, text and containers of them, and that contains no weights or more than one set of them.
    """
    return _unwrap(_load(path), path)


def choose_layout(state: Mapping[str, Tensor], name: str, *, is_for_weights: bool, advice: str) -> str:
    """Choose the layout of a state by its names, and by its shapes among those that read these names alike.

    Shapes that no data set decides come first, then the channels of points of the authors' set.

    Of layouts that shapes do not tell apart either, the first will do if all make the same run, or for the weights
    alone. Raises CheckpointError, with `advice`, if several are left over, and if the names are of none.
    """
    fitting = [read_layout(match) for match in find_layouts(state)]
    if not fitting:
        names = join_some(sorted(state), most=_MAX_NAMES_SHOWN)
        raise CheckpointError(
            f"{name}: its {len(state)} names ({names}) are of no known layout by names alone; see 'sightline list "
            "layouts', and sightline weights convert --layout NAME"
        )
    are_alike = all(row.names == fitting[0].names and row.changes == fitting[0].changes for row in fitting)
    if len(fitting) > 1 and are_alike:
        try:
            weights = convert_state_dict(state, fitting[0].name)
        except CheckpointError as error:
            raise CheckpointError(f"{name}: {error}") from None
        counts = [_count_equal_shapes(weights, row) for row in fitting]
        fitting = [row for row, count in zip(fitting, counts, strict=True) if count == max(counts)]
        fitting = [row for row in fitting if _has_known_channels(weights, row)] or fitting
    runs = [dataclasses.replace(row, name="", url="", unused=()) for row in fitting]
    if all(run == runs[0] for run in runs) or (are_alike and is_for_weights):
        return fitting[0].name
    differ = "differ in arguments that no tensor shows" if are_alike else "read them differently"
    raise CheckpointError(
        f"{name}: its names are those of the layouts {', '.join(row.name for row in fitting)}, which {differ}; {advice}"
    )


def _has_known_channels(weights: Mapping[str, Tensor], layout: PublishedLayout) -> bool:
    """Return True if points of the data set of a layout's authors can have as many channels as the weights read."""
    size = layout.facts.get("in_channels")
    return size is not None and size.read(weights) in layout.protocol.arguments


def _count_equal_shapes(weights: Mapping[str, Tensor], layout: PublishedLayout) -> int:
    expected = make_meta_model(layout).state_dict()
    return sum(name in weights and weights[name].shape == value.shape for name, value in expected.items())


def make_meta_model(layout: PublishedLayout, **facts: int) -> nn.Module:
    """Build a layout's model on the meta device, with the authors' arguments and these facts of a data set."""
    block = ComponentConfig(layout.model, nest_paths(model_arguments(layout)))
    with preserve_random_state(), torch.device("meta"):
        model: nn.Module = registry.models.build(block, facts={**_FACTS, **facts})
    return model


# --- pickles ----------------------------------------------------------------------------------------------------------


def _load(path: Path) -> Any:
    if not path.is_file():
        problem = "is a folder, a file of weights is needed" if path.is_dir() else "there is no such file"
        if path.parts and path.parts[0] in _SCHEMES:
            name = f"{path.parts[0]}//{path.relative_to(path.parts[0])}"
            problem = (
                f"is no file of this machine; a config starts from it by init.from={name}, and 'sightline weights "
            )
            problem += f"fetch {name}' prints the path of its file"
        raise CheckpointError(f"{path}: {problem}")
    if path.suffix == ".onnx":
        raise CheckpointError(f"{path}: is a network of ONNX, not its weights; give the file that it was made from")
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    if is_darknet(path):
        return _load_darknet(path)
    try:
        with torch.serialization.safe_globals(_harmless()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of protocols that torch itself does not write: such a file fails anyway
            source = _open(path)
            return torch.load(source, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except UnpicklingError as error:
        raise CheckpointError(f"{path}: {_describe_refusal(error)}") from None
    except Exception as error:  # noqa: BLE001  a damaged file breaks the reader anywhere: struct, zip, text, memory
        raise CheckpointError(
            f"{path}: cannot be read ({type(error).__name__}: {_reason(error)}); get the file again"
        ) from None


def _open(path: Path) -> Path | io.BytesIO:
    """Return what torch reads: archives from the disk, the format before them from bytes, as its sizes take memory."""
    if not zipfile.is_zipfile(path):
        return io.BytesIO(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        num_bytes, size = sum(entry.file_size for entry in archive.infolist()), path.stat().st_size
    if num_bytes > size:
        raise CheckpointError(f"{path}: would unpack to {num_bytes:,} bytes of {size:,}; torch.save compresses nothing")
    return path


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load(read_regular_file(path, max_bytes=_MAX_BYTES))
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: is no safetensors file, or damaged ({escape_to_one_line(str(error))[:160]}); get the file again"
        ) from None


def _harmless() -> list[Any]:
    """Return NumPy's scalars under the names of its first and second major version, and their types."""
    scalar = np.float64(0).__reduce__()[0]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    return [*((scalar, name) for name in names), np.dtype, *(type(np.dtype(kind)) for kind in _SCALAR_TYPES)]


def _describe_refusal(error: Exception) -> str:
    named = _GLOBAL.search(str(error))
    if named is not None and not _is_cut_short(named[1]):
        return (
            f"holds an object of {named[1]}, which only running the file's code could make; it was not run. Ask for "
            "the state dict alone, torch.save(model.state_dict(), ...)"
        )
    return f"was not written by torch.save, or is damaged ({_reason(error)}); get the file again"


def _is_cut_short(name: str) -> bool:
    """Return True for the beginning of a name that torch writes into files: the file ends within it."""
    written = ("collections.OrderedDict", *(f"torch.{prefix}" for prefix in dir(torch)))
    start = name.removesuffix(".")
    return name.startswith("torch._utils.") or any(prefix.startswith(start) and prefix != start for prefix in written)


def _reason(error: Exception) -> str:
    """Return the first sentence of an error, without the preface of torch's reader."""
    text = " ".join(str(error).rpartition("WeightsUnpickler error:")[2].split())
    return re.split(r"\. | Check the doc", text)[0].rstrip(".")[:160] or "no reason is given"


def _unwrap(value: Any, path: Path) -> PublishedFile:
    containers: list[str] = []
    other_entries: list[str] = []
    while not _is_state(value):
        if not isinstance(value, Mapping):
            raise CheckpointError(f"{path}: holds a {type(value).__name__}, a mapping of names to tensors is needed")
        if len(containers) == _MAX_DEPTH:
            raise CheckpointError(
                f"{path}: holds itself, or mappings more than {_MAX_DEPTH} deep ({' > '.join(containers)}); save the "
                "state dict alone, torch.save(model.state_dict(), ...)"
            )
        inner = [key for key in CONTAINERS if isinstance(value.get(key), Mapping) and value[key]]
        if len(inner) != 1:
            names = join_some([*map(str, value)], most=_MAX_NAMES_SHOWN) or "nothing"
            contents = f"holds {' and '.join(inner) or names}"
            raise CheckpointError(
                f"{path}: {contents}; one set of weights is needed, by itself or under one of {', '.join(CONTAINERS)}"
            )
        other_entries += [str(key) for key in value if key != inner[0]]
        containers.append(inner[0])
        value = value[inner[0]]
    state = dict(value)
    if all(key.startswith(_WRAPPER) for key in state):
        state = {key.removeprefix(_WRAPPER): tensor for key, tensor in state.items()}
        containers.append(_WRAPPER)
    odd = [key for key, tensor in state.items() if not _is_plain(tensor)]
    if odd:
        raise CheckpointError(
            f"{path}: {len(odd)} tensors are sparse, quantised, expanded or on no device: "
            f"{join_some(odd, most=_MAX_NAMES_SHOWN)}; save dense ones of a CPU"
        )
    return PublishedFile(state, tuple(containers), tuple(other_entries))


def _is_state(value: Any) -> bool:
    """Return True if this is a mapping of names to tensors and to nothing else."""
    is_named = isinstance(value, Mapping) and bool(value) and all(isinstance(key, str) for key in value)
    return is_named and all(isinstance(item, Tensor) for item in value.values())


def _is_plain(tensor: Tensor) -> bool:
    """Return True if each element of a tensor has its own place in memory."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


# --- Darknet files: a header and numbers, without names; source: pjreddie/darknet, src/parser.c -----------------------


def is_darknet(path: Path) -> bool:
    """Return True if a file has a name of Darknet's and is no archive or pickle, which some have under such a name."""
    if _DARKNET_NAME.search(path.name) is None or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return not file.read(2).startswith((b"PK", b"\x80"))
    except OSError:  # reading it says why
        return True


def _load_darknet(path: Path) -> dict[str, Tensor]:
    """Read a Darknet file, whose layout and number of classes follow from its size, under names by convolution."""
    try:
        num_bytes = check_regular_file(path)
        start = _read_darknet_header(path)
        layout, num_classes = _choose_darknet_layout(path, max(0, num_bytes - start))
        content = read_regular_file(path, max_bytes=_MAX_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}; check the path") from None
    shapes = dict(_list_darknet_shapes(layout, num_classes))
    sizes = [shape.numel() for shape in shapes.values()]
    numbers = torch.from_numpy(np.frombuffer(content, "<f4", sum(sizes), start).astype(np.float32))
    return {name: part.view(shapes[name]) for name, part in zip(shapes, numbers.split(sizes), strict=True)}


def _choose_darknet_layout(path: Path, num_bytes: int) -> tuple[PublishedLayout, int]:
    """Choose the layout with as many numbers, and the number of its classes."""
    count, odd = divmod(num_bytes, 4)
    known = []
    for layout in list_layouts():
        if not layout.convolutions:
            continue
        one, two = (_count_darknet(layout.name, classes) for classes in (1, 2))
        more, rest = divmod(count - one, two - one) if two > one else (0, count - one)
        if not rest and not odd and 0 <= more < _MAX_CLASSES:
            return layout, 1 + more
        known.append(f"{layout.name} has {one:,}" + (f", {two - one:,} more for each further class" * (two > one)))
    raise CheckpointError(
        f"{path}: holds {count:,} numbers{f' and {odd} bytes' if odd else ''} after its header; {'; '.join(known)}; "
        "get the whole file of such a network"
    )


def _read_darknet_header(path: Path) -> int:
    """Return the size in bytes of the header: three numbers of the version, and the number of images seen."""
    with path.open("rb") as file:
        start = file.read(12)
    if len(start) < 12:
        raise CheckpointError(f"{path}: has {len(start)} bytes, fewer than Darknet's header; get the whole file")
    version = struct.unpack("<2i", start[:8])
    if version not in _DARKNET_SEEN:
        known = " and ".join(f"{major}.{minor}" for major, minor in _DARKNET_SEEN)
        raise CheckpointError(
            f"{path}: its header states version {version[0]}.{version[1]} of Darknet's files, {known} are known; is it "
            "a file of Darknet?"
        )
    return 12 + struct.calcsize(_DARKNET_SEEN[version])


@functools.cache
def _count_darknet(name: str, num_classes: int) -> int:
    return sum(shape.numel() for _, shape in _list_darknet_shapes(read_layout(name), num_classes))


def _list_darknet_shapes(layout: PublishedLayout, num_classes: int) -> Iterator[tuple[str, torch.Size]]:
    """Iterate over the names and shapes of a layout's tensors in the order of its file."""
    state = make_meta_model(layout, num_classes=num_classes, in_channels=3).state_dict()
    for index in dict.fromkeys(name.partition(".")[0] for name in layout.names):
        for leaf in _DARKNET_ORDER:
            module, _, part = leaf.partition(".")
            ours = f"{layout.names.get(f'{index}.{module}')}.{part}"
            if ours in state:
                yield f"{index}.{leaf}", state[ours].shape
