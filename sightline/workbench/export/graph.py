"""Network of a run as one graph: its last transforms' arithmetic, the network, and the decoding of its outputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sightline.contract.binding import AvailableKeys, bind
from sightline.contract.errors import UserError
from sightline.contract.model import Model, NetworkParts
from sightline.contract.types import Batch
from sightline.store.loading.transform_pipeline import NamedTransform
from sightline.workbench.compare.variants import deterministic_copy
from sightline.workbench.probe.features import get_encode

Inside = tuple[str, Callable[..., dict[str, Tensor]]]
"""Name of a transform, and its arithmetic on the fields that its parameters name."""
MAX_POINTS = 4096
"""Maximum number of points of a cloud on which a file is recorded and checked."""
_PACKED = ("points", "features")
"""Inputs with a row a point."""
_GATHERED = 3
"""Samples whose rows are gathered in one input, so that some tables have places without a row."""


class SplitTransforms(NamedTuple):
    """Transforms that stay outside a file, and those at the end whose arithmetic is inside."""

    outside: tuple[NamedTransform, ...]
    inside: tuple[Inside, ...]


def get_parts(model: nn.Module) -> NetworkParts | None:
    """Return the parts of a network that gathers points first, None for any other."""
    split = model.split_for_graph if isinstance(model, Model) else None
    return None if split is None else split()


def split_transforms(transforms: Sequence[NamedTransform], model: nn.Module) -> SplitTransforms:
    """Split transforms into those outside and those inside a file: the last ones that a graph can contain.

    Before a network that gathers points first, all are outside.
    """
    outside: list[NamedTransform] = list(transforms)
    inside: list[Inside] = []
    if get_parts(model) is not None:
        return SplitTransforms(tuple(outside), ())
    while outside and (split := outside[-1].apply.split_for_graph) is not None:
        name = outside.pop().name
        rest, arithmetic = split()
        inside.insert(0, (name, arithmetic))
        if rest is not None:
            outside.append(NamedTransform(f"{name}: order of axes", rest))
            break
    return SplitTransforms(tuple(outside), tuple(inside))


class GraphNetwork(nn.Module):
    """Network with its last transforms and the decoding of its task: tensors in the order of `names` -> a dict.

    `names` are the keys of a batch that are inputs, or the tables that the network gathers of it. Clouds are dense,
    (B, N, ...); a network without a decoding, as those of contrastive learning, returns the feature of its encoder.
    """

    def __init__(self, model: nn.Module, task: Any, example: Batch, inside: Sequence[Inside] = ()) -> None:
        super().__init__()
        self.model = _unhide_modules(deterministic_copy(model, dtype=torch.float32, device=torch.device("cpu")))
        self.model.eval().requires_grad_(False)
        self.is_encoder = task.compares_rows
        self._inside = tuple(inside)
        make_decoding = task.make_decoding
        self._decode = None if self.is_encoder or make_decoding is None else make_decoding(example)
        self._keys = frozenset(example) - (model.targets if isinstance(model, Model) else frozenset())
        if (parts := get_parts(self.model)) is None:
            self._inputs = tuple(name for name in self._bind(self._find_call()) if name != "offsets")
        else:
            self._inputs = tuple(inspect.signature(parts.compute).parameters)
        more = ("placement",) if "placement" in example and self._decode is not None else ()
        self.names = (*self._inputs, *more)

    @property
    def row_axes(self) -> dict[str, str]:
        """What the rows of inputs (B, R, ...) are, by the name of the input: points, for example."""
        parts = get_parts(self.model)
        return {name: "points" if parts is None else parts.rows for name in self.names if parts or name in _PACKED}

    def forward(self, *values: Tensor) -> dict[str, Tensor]:
        """Compute outputs and predictions."""
        dtype = next(self.model.parameters()).dtype
        batch = dict(zip(self.names, values, strict=True))
        for _, arithmetic in self._inside:
            fields = [name for name in inspect.signature(arithmetic).parameters if name in batch]
            batch |= arithmetic(**{name: batch[name].to(dtype) for name in fields})
        batch = {name: value.to(dtype) if value.is_floating_point() else value for name, value in batch.items()}
        outputs = self._find_call()(**{name: batch[name] for name in self._inputs})
        if self.is_encoder:
            return {"encoding": outputs}
        outputs = {name: value for name, value in outputs.items() if isinstance(value, Tensor)}
        return outputs if self._decode is None else {**outputs, **self._decode(outputs, batch)}

    def _find_call(self) -> Callable[..., Any]:
        if self.is_encoder:
            return get_encode(self.model)
        parts = get_parts(self.model)
        return self.model.forward if parts is None else parts.compute

    def _bind(self, call: Callable[..., Any]) -> Sequence[str]:
        return bind(call, AvailableKeys("the batch", self._keys), owner=type(self.model).__name__).names

    def arrange(self, batch: Batch) -> list[tuple[Tensor, ...]]:
        """Arrange a batch as inputs: one tuple, or one a cloud where they are of different sizes.

        Clouds of any size are thinned to `MAX_POINTS`, evenly: the plain forms inside hold a matrix of all pairs. The
        tables of a network that gathers points are of three samples each, the longest first.
        """
        if (gathered := get_parts(self.model)) is not None:
            return self._gather(gathered, batch)
        tensors = {name: torch.as_tensor(batch[name]) for name in self.names}
        if "offsets" not in batch or "points" not in tensors or tensors["points"].ndim == 3:
            return [tuple(tensors.values())]
        sizes = batch["offsets"].diff().tolist()
        packed = [name for name in self.names if name in _PACKED]
        parts = {name: [_thin(part) for part in tensors[name].split(sizes)] for name in packed}
        if len({len(part) for part in parts["points"]}) == 1:
            return [tuple(torch.stack(parts[name]) if name in parts else tensors[name] for name in self.names)]
        return [
            tuple(parts[name][row][None] if name in parts else tensors[name][row : row + 1] for name in self.names)
            for row in range(len(sizes))
        ]

    def arrange_nothing(self, batch: Batch) -> list[tuple[Tensor, ...]]:
        """Arrange a sample without any points, for a network that gathers them: its tables have no row."""
        parts = get_parts(self.model)
        if parts is None:
            return []
        tensors = _take_samples(self._read_keys(parts, batch), 0, 1)
        empty = {name: _empty_rows(name, value, "offsets" in tensors) for name, value in tensors.items()}
        return [self._gather_once(parts, empty)]

    def read_whole(self, batch: Batch) -> dict[str, Tensor] | None:
        """Read what the whole network takes of the first samples of a batch, for one that gathers points; else None."""
        parts = get_parts(self.model)
        return None if parts is None else _take_samples(self._read_keys(parts, batch), 0, _GATHERED)

    def _gather(self, parts: NetworkParts, batch: Batch) -> list[tuple[Tensor, ...]]:
        tensors = self._read_keys(parts, batch)
        count = len(tensors["offsets"]) - 1 if "offsets" in tensors else len(next(iter(tensors.values())))
        groups = [
            self._gather_once(parts, _take_samples(tensors, first, first + _GATHERED))
            for first in range(0, count, _GATHERED)
        ]
        groups.sort(key=lambda tables: -tables[0].shape[1])
        if groups[0][0].shape[1] < 2:  # which a recorded graph would take for a constant
            raise UserError(
                f"export: the samples have fewer than two {parts.rows} to record and check the file with; give files "
                "with more points in the network's extent with --inputs"
            )
        return groups

    def _read_keys(self, parts: NetworkParts, batch: Batch) -> dict[str, Tensor]:
        return {name: torch.as_tensor(batch[name]) for name in self._bind(parts.gather)}

    def _gather_once(self, parts: NetworkParts, tensors: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        gathered = parts.gather(**tensors)
        return tuple(gathered[name] for name in self.names)


def _thin(part: Tensor) -> Tensor:
    """Take at most `MAX_POINTS` rows of a cloud, evenly spaced in the order of its points."""
    if len(part) <= MAX_POINTS:
        return part
    return part[torch.linspace(0, len(part) - 1, MAX_POINTS, dtype=torch.float64).round().long()]


def _take_samples(tensors: Mapping[str, Tensor], first: int, last: int) -> dict[str, Tensor]:
    """Take the samples `first` to `last` of a batch, of which packed tensors have `offsets`."""
    if "offsets" not in tensors:
        return {name: value[first:last] for name, value in tensors.items()}
    offsets = tensors["offsets"]
    last = min(last, len(offsets) - 1)
    rows = slice(int(offsets[first]), int(offsets[last]))
    taken = {name: value[rows] if name in _PACKED else value[first:last] for name, value in tensors.items()}
    return {**taken, "offsets": offsets[first : last + 1] - offsets[first]}


def _empty_rows(name: str, value: Tensor, is_packed: bool) -> Tensor:
    if name == "offsets":
        return torch.zeros_like(value)
    if name not in _PACKED:
        return value
    return value[:0] if is_packed else value[:, :0]


class _RenamedModules(dict[str, nn.Module | None]):
    """Modules of which some have other names: the old ones lead to them."""

    def __missing__(self, name: str) -> nn.Module | None:
        return self[f"{name}_"]


def _unhide_modules(model: nn.Module) -> nn.Module:
    """Rename submodules that a method of the same name hides, which torch.export cannot find."""
    for module in model.modules():
        hidden = {name for name in module._modules if hasattr(type(module), name)}
        if hidden:
            renamed = {f"{name}_" if name in hidden else name: child for name, child in module._modules.items()}
            module.__dict__["_modules"] = _RenamedModules(renamed)
    return model
