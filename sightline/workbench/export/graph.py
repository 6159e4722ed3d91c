"""Network of a run as one graph: its last transforms' arithmetic, the network, and the decoding of its outputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sightline.contract.binding import AvailableKeys, bind
from sightline.contract.model import Model
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


class SplitTransforms(NamedTuple):
    """Transforms that stay outside a file, and those at the end whose arithmetic is inside."""

    outside: tuple[NamedTransform, ...]
    inside: tuple[Inside, ...]


def split_transforms(transforms: Sequence[NamedTransform]) -> SplitTransforms:
    """Split transforms into those outside and those inside a file: the last ones that a graph can contain."""
    outside: list[NamedTransform] = list(transforms)
    inside: list[Inside] = []
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

    `names` are the keys of a batch that are inputs. Clouds are dense, (B, N, ...); a network without a decoding, as
    those of contrastive learning, returns the feature of its encoder.
    """

    def __init__(self, model: nn.Module, task: Any, example: Batch, inside: Sequence[Inside] = ()) -> None:
        super().__init__()
        self.model = _unhide_modules(deterministic_copy(model, dtype=torch.float32, device=torch.device("cpu")))
        self.model.eval().requires_grad_(False)
        self.is_encoder = task.compares_rows
        self._inside = tuple(inside)
        make_decoding = task.make_decoding
        self._decode = None if self.is_encoder or make_decoding is None else make_decoding(example)
        call = self._find_call()
        inputs = frozenset(example) - (model.targets if isinstance(model, Model) else frozenset())
        keys = bind(call, AvailableKeys("the batch", inputs), owner=type(model).__name__).names
        self._inputs = tuple(name for name in keys if name != "offsets")
        more = ("placement",) if "placement" in example and self._decode is not None else ()
        self.names = (*self._inputs, *more)

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
        return get_encode(self.model) if self.is_encoder else self.model.forward

    def arrange(self, batch: Batch) -> list[tuple[Tensor, ...]]:
        """Arrange a batch as inputs: one tuple, or one a cloud where they are of different sizes.

        Clouds of any size are thinned to `MAX_POINTS`, evenly: the plain forms inside hold a matrix of all pairs.
        """
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


def _thin(part: Tensor) -> Tensor:
    """Take at most `MAX_POINTS` rows of a cloud, evenly spaced in the order of its points."""
    if len(part) <= MAX_POINTS:
        return part
    return part[torch.linspace(0, len(part) - 1, MAX_POINTS, dtype=torch.float64).round().long()]


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
