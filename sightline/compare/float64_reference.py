"""The reference's answer to what a variant's module was given: in float64, forward and backward.

A module that calls others is run with those calls answered by the variant: its own code alone is then judged, by what
it gives to the modules inside and by what it makes of their results. So an error cannot travel on to another row.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sightline.compare.convolution import Float64Convolutions
from sightline.compare.formats import FORMATS, Float32Draws, Format, coarser
from sightline.compare.recording import Formats, ModuleCall
from sightline.layers.native_batch_norm import Native
from sightline.pytree import tree_leaves, tree_map

__all__ = [
    "CONVOLUTIONS",
    "PRODUCTS",
    "LayerUnit",
    "MisalignedError",
    "MovedOperations",
    "Perturbation",
    "ReferenceResult",
    "actual",
    "computes_as",
    "moving",
    "run_reference",
]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
PRODUCTS = (nn.Linear, *CONVOLUTIONS)
_SILENT = frozenset("__doc__ __init__ __module__ __repr__ extra_repr reset_parameters".split())
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def computes_as(module: nn.Module, kinds: Sequence[type[nn.Module]]) -> bool:
    """Whether a module computes exactly what one of these classes computes, not only derives from it.

    Nothing that the class has is defined anew, in a class that derives from it or on the module itself, but for what
    builds and prints it; and no hook is on the module. Torch's own kernels without cuDNN are torch's.
    """
    classes = type(module).__mro__
    kind = next((each for each in classes if each in kinds), None)
    if kind is None or any(getattr(module, hooks) for hooks in _HOOKS):
        return False
    derived = [each for each in classes[: classes.index(kind)] if each is not Native]
    return not any(
        name not in _SILENT and callable(getattr(kind, name, None))
        for each in (module, *derived)
        for name in vars(each)
    )


class MisalignedError(Exception):
    """The reference calls other modules than the variant did, or with other tensors."""


@dataclass(frozen=True)
class Perturbation:
    """How inputs are moved: by `units` in the last place of `format`, the directions by `seed`.

    With `inside` the result of every operation of torch is moved as well, forward and backward, by one unit: what a
    network of many operations does where each of them is rounded. Source: Parker 1997, Monte Carlo Arithmetic.
    """

    format: Format
    seed: int
    units: int = 1
    inside: bool = False


@dataclass(frozen=True)
class LayerUnit:
    """What is judged at once: a call, with the calls inside that are answered by the variant.

    `run(*args, **kwargs)` computes it in the reference; `modules` are, for `inner`, the modules that are answered for,
    and `owner` holds the parameters and buffers that it may use, under names that begin with `prefix`. Where nothing is
    answered for, a nudge moves what modules inside make as well; `is_whole` marks that the variant did call some.
    `is_partial` marks that the reference calls more than `inner`, some of it by the same modules.
    """

    call: ModuleCall
    inner: tuple[ModuleCall, ...]
    run: Callable[..., Any]
    modules: tuple[nn.Module, ...]
    owner: nn.Module
    prefix: str
    device: torch.device
    is_whole: bool = False
    is_partial: bool = False

    def num_added(self, name: str) -> int:
        """How many values are added, one after another at worst, for each entry of a tensor, by its name in an answer.

        A gradient of a parameter is a sum over the rows of the largest tensor around. Products of matrices add up
        blocks of `_BLOCK`, whatever the length. Nothing is known of the inside of other modules.
        """
        if name.startswith("to parameter."):
            around = (self.call.given, self.call.made, [(inner.given, inner.made) for inner in self.inner])
            sizes = [tensor.numel() for _, tensor in tree_leaves(around)]
            shapes = {each: p.shape for each, p in self.owner.named_parameters(prefix=self.prefix)}
            return max([1, *sizes]) // max(1, *shapes[name.removeprefix("to parameter.")][:1])
        weight = getattr(self.owner, "weight", None)
        is_product = computes_as(self.owner, PRODUCTS)
        if not is_product or not isinstance(weight, Tensor) or not name.startswith(("out.", "to given.")):
            return 1
        return min(_BLOCK, max(1, *weight.shape[:2]) * weight.shape[2:].numel())  # channels in or out, and the kernel


_BLOCK = 384
"""Terms of a sum that kernels of matrix products keep in registers, about: OpenBLAS and oneDNN take 256 to 384."""


@dataclass
class ReferenceResult:
    """Values by name, and gradients by name: `out.<place>`, `<n>.given.<place>` and `buffer.<name>` of the forward
    pass, `given.<place>`, `<n>.made.<place>` and `parameter.<name>` of the backward pass; n counts the calls inside.
    `coarsest` is the coarsest format of what its operations made, where nothing was moved."""

    values: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    coarsest: Format = FORMATS[torch.float64]

    def items(self) -> dict[str, Tensor]:
        """All of them, gradients under names that begin with `to `."""
        return {**self.values, **{f"to {name}": value for name, value in self.gradients.items()}}


def actual(unit: LayerUnit) -> dict[str, Tensor]:
    """What the variant had under the names of `Answer.items`, but for parameters: theirs are of the whole step."""
    call = unit.call
    found = {f"out.{place}": tensor for place, tensor in tree_leaves(call.made)}
    found |= {f"to given.{place}": tensor for place, tensor in call.to_given.items()}
    found |= {f"buffer.{name}": after for name, (_, after) in call.buffers.items()}
    for number, inner in enumerate(unit.inner):
        found |= {f"{number}.given.{place}": tensor for place, tensor in tree_leaves(inner.given)}
        found |= {f"to {number}.made.{place}": tensor for place, tensor in inner.to_made.items()}
    return found


def run_reference(
    unit: LayerUnit, nudge: Perturbation | None = None, *, dtype: torch.dtype = torch.float64
) -> ReferenceResult:
    """Run the reference on what the variant's call was given, moved by `nudge`, and on the gradients that it got."""
    mover = _Mover(nudge, unit.device, dtype)
    sources: dict[str, Tensor] = {}
    forced = _Forced(unit, mover, sources)
    given = tree_map(unit.call.given, _as_source(mover, "given", unit.call.to_given, sources))
    noise, draws, seen = _noisy(unit, mover, nudge), _drawing(unit.call), [FORMATS[torch.float64]]
    watch = contextlib.nullcontext() if nudge is not None else Formats(seen.append)
    same = contextlib.nullcontext() if unit.call.format.name == "float64" else Float32Draws()
    with (
        _buffers_kept(unit) as changed,
        noise,
        draws,
        same,
        torch.enable_grad(),
        mover.inside(),
        watch,
        Float64Convolutions(),
    ):
        with forced.answering():
            args, kwargs = given
            made = unit.run(*args, **kwargs)
        forced.assert_done()
        values = {f"out.{place}": tensor for place, tensor in tree_leaves(made)} | forced.given
        found = _gradients(unit, values, _arriving(unit), sources, mover)
    kept = {name: tensor.detach() for name, tensor in values.items()}
    kept |= {f"buffer.{name}": after for name, after in changed.items()}
    return ReferenceResult(kept, found, reduce(coarser, seen))


def _arriving(unit: LayerUnit) -> dict[str, Tensor]:
    """The gradients that the variant had for what the unit makes, and for what it gives to the calls inside."""
    arriving = {f"out.{place}": gradient for place, gradient in unit.call.to_made.items()}
    for number, inner in enumerate(unit.inner):
        arriving |= {f"{number}.given.{place}": gradient for place, gradient in inner.to_given.items()}
    return arriving


def _gradients(
    unit: LayerUnit,
    values: Mapping[str, Tensor],
    arriving: Mapping[str, Tensor],
    sources: Mapping[str, Tensor],
    mover: _Mover,
) -> dict[str, Tensor]:
    """The gradients of inputs, of what was answered, and of parameters that had a part."""
    ends = [
        name
        for name, gradient in arriving.items()
        if name in values and values[name].requires_grad and values[name].shape == gradient.shape
    ]
    if not ends:
        return {}
    parameters = {
        f"parameter.{name}": p for name, p in unit.owner.named_parameters(prefix=unit.prefix) if p.requires_grad
    }
    wanted = {**sources, **parameters}
    if not wanted:
        return {}
    gradients = torch.autograd.grad(
        [values[name] for name in ends],
        list(wanted.values()),
        [mover(arriving[name]) for name in ends],
        allow_unused=True,
    )
    found = dict(zip(wanted, gradients, strict=True))
    # Of a parameter without a part nothing is known; an input without a part has a gradient, which is zero.
    return {
        name: torch.zeros_like(wanted[name]) if gradient is None else gradient.detach()
        for name, gradient in found.items()
        if gradient is not None or name in sources
    }


class _Mover:
    """Tensors in float64 on the reference's device, moved by a nudge; integers stay as they are."""

    def __init__(self, nudge: Perturbation | None, device: torch.device, dtype: torch.dtype) -> None:
        self._nudge, self._device, self._dtype = nudge, device, dtype
        self._generator = None if nudge is None else torch.Generator().manual_seed(nudge.seed)
        self._operations = (
            MovedOperations(nudge.format, self._generator) if nudge is not None and nudge.inside else None
        )

    def __call__(self, tensor: Tensor) -> Tensor:
        with _resting(self._operations):
            if not tensor.is_floating_point():
                return tensor.to(self._device)
            wide = tensor.to(self._device, self._dtype)
            if self._nudge is None or self._generator is None:
                return wide
            return self._nudge.format.perturb(wide, self._generator, units=self._nudge.units)

    def inside(self) -> contextlib.AbstractContextManager[Any]:
        """Where the results of operations are moved as well, if they are to be."""
        return contextlib.nullcontext() if self._operations is None else self._operations


class MovedOperations(TorchDispatchMode):
    """Moves what every operation of torch makes in float64 by one unit, but for those that only move or choose data."""

    def __init__(self, format_: Format, generator: Any) -> None:
        super().__init__()
        self.is_resting = False
        self._format, self._generator = format_, generator

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if self.is_resting or name.rstrip("_") in _EXACT:
            return result
        storages = {tensor.untyped_storage()._cdata for _, tensor in tree_leaves((args, kwargs or {}))}
        if name.endswith("_") and isinstance(result, Tensor) and result.dtype == torch.float64:
            return result.copy_(self._format.perturb(result, self._generator))

        def move(place: str, tensor: Tensor) -> Tensor:
            if tensor.dtype != torch.float64 or tensor.untyped_storage()._cdata in storages:
                return tensor
            return self._format.perturb(tensor, self._generator)

        return tree_map(result, move)


_EXACT = frozenset(
    "abs alias amax amin arange cat ceil clamp clamp_max clamp_min clone constant_pad_nd copy detach diag embedding "
    "empty empty_like empty_strided expand eye fill flip floor frexp full full_like gather hardtanh index "
    "index_fill index_select ldexp masked_fill masked_select max max_pool2d_with_indices max_pool3d_with_indices "
    "maximum min minimum nan_to_num neg new_empty new_full new_ones new_zeros ones ones_like permute rand randint "
    "relu repeat roll round scatter select_scatter sign slice_backward select_backward slice_scatter sort split "
    "squeeze stack threshold_backward topk transpose tril triu unfold unfold_backward where zero zeros zeros_like "
    "_to_copy _unsafe_view index_copy value_selecting_reduction_backward".split()
)
"""Operations without rounding: what they make are values that were there before, or their opposites."""


@contextlib.contextmanager
def _resting(operations: MovedOperations | None) -> Iterator[None]:
    """Inside, results are left alone: this is our own arithmetic, not the unit's."""
    if operations is None or operations.is_resting:
        yield
        return
    operations.is_resting = True
    try:
        yield
    finally:
        operations.is_resting = False


def _as_source(
    mover: _Mover, prefix: str, wanted: Mapping[str, Tensor], sources: dict[str, Tensor]
) -> Callable[[str, Tensor], Tensor]:
    """Makes of each recorded tensor one of the reference's, which asks for a gradient where the variant's got one."""

    def make(place: str, tensor: Tensor) -> Tensor:
        wide = mover(tensor)
        if place not in wanted:
            return wide.clone() if wide.data_ptr() == tensor.data_ptr() else wide
        source = wide.detach().clone() if wide.data_ptr() == tensor.data_ptr() else wide.detach()
        sources[f"{prefix}.{place}"] = source.requires_grad_()
        return source.clone()

    return make


class _Forced:
    """Answers the calls inside a unit, in order, with what the variant made there; notes what they are given."""

    def __init__(self, unit: LayerUnit, mover: _Mover, sources: dict[str, Tensor]) -> None:
        self.given: dict[str, Tensor] = {}
        self._unit, self._mover, self._sources = unit, mover, sources
        self._next = 0
        self._counts: Counter[nn.Module] = Counter()
        self._turns: dict[tuple[nn.Module, int], int] = {}
        seen: Counter[nn.Module] = Counter()
        for number, (call, module) in enumerate(zip(unit.inner, unit.modules, strict=True)):
            seen[module] += 1
            self._turns[module, call.number if unit.is_partial else seen[module]] = number

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        modules = list(dict.fromkeys(self._unit.modules))
        for module in modules:
            module.forward = self._answers_for(module)  # an attribute of the instance hides the method
        try:
            yield
        finally:
            for module in modules:
                del module.forward

    def assert_done(self) -> None:
        if self._next != len(self._unit.inner):
            raise MisalignedError(f"{self._unit.inner[self._next].name} was not called")

    def _answers_for(self, module: nn.Module) -> Callable[..., Any]:
        computed = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            self._counts[module] += 1
            number = self._turns.get((module, self._counts[module]))
            if number is None and self._unit.is_partial:
                return computed(*args, **kwargs)
            if number is None or number != self._next:
                raise MisalignedError(f"{type(module).__name__} was called out of turn")
            call = self._unit.inner[number]
            found = dict(tree_leaves((args, kwargs)))
            if _shapes(found) != _shapes(dict(tree_leaves(call.given))):
                raise MisalignedError(f"{call.name} was called with other tensors")
            self.given |= {f"{number}.given.{place}": tensor for place, tensor in found.items()}
            self._next += 1
            return tree_map(call.made, _as_source(self._mover, f"{number}.made", call.to_made, self._sources))

        return forward


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {place: tensor.shape for place, tensor in tensors.items()}


@contextlib.contextmanager
def _buffers_kept(unit: LayerUnit) -> Iterator[dict[str, Tensor]]:
    """Buffers begin as they were before the variant's call; those that change inside are given, and put back."""
    held = dict(unit.owner.named_buffers(prefix=unit.prefix))
    changed: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, (before, _) in unit.call.buffers.items():
            if name in held:
                held[name].copy_(before)
    kept = {name: buffer.detach().clone() for name, buffer in held.items()}
    try:
        yield changed
    finally:
        with torch.no_grad():
            for name, buffer in held.items():
                if not torch.equal(buffer, kept[name]):
                    changed[name] = buffer.detach().clone()
                    buffer.copy_(kept[name])


@contextlib.contextmanager
def _noisy(unit: LayerUnit, mover: _Mover, nudge: Perturbation | None) -> Iterator[None]:
    """What modules inside make, and the gradients that come to it, are moved too."""

    def move(module: nn.Module, args: Any, made: Any) -> Any:
        return tree_map(made, lambda _, tensor: moving(tensor, mover))

    inside = [] if nudge is None or unit.inner else list(unit.owner.modules())[1:]
    handles = [module.register_forward_hook(move) for module in inside]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def moving(tensor: Tensor, mover: Callable[[Tensor], Tensor]) -> Tensor:
    """A floating tensor moved, whose gradient is moved as well; another one as it is."""
    if not tensor.is_floating_point():
        return tensor
    moved = tensor + (mover(tensor.detach()) - tensor.detach())
    if moved.requires_grad:
        moved.register_hook(mover)
    return moved


@contextlib.contextmanager
def _drawing(call: ModuleCall) -> Iterator[None]:
    """The random state that the variant's call began with."""
    if call.random_state is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(call.random_state)
        yield
