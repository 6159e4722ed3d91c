"""Float64 reference of one module call: forward and backward pass on the recorded inputs and gradients.

If a module calls others, these calls return the variant's recorded outputs. So only the module's own code is judged: by
the inputs that it passes to its submodules and by its result. An error cannot propagate to another row.
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

from sightline.contract.pytree import tree_leaves, tree_map
from sightline.instrument import InterceptedOperators, ModuleCall, preserve_buffers, record, watch_gradient
from sightline.instrument.float64 import Float32Draws, Float64Functions
from sightline.instrument.formats import FORMATS, Format, coarser, result_format

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
PRODUCTS = (nn.Linear, *CONVOLUTIONS)
_IRRELEVANT_METHODS = frozenset("__doc__ __init__ __module__ __repr__ extra_repr reset_parameters".split())
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def computes_as(module: nn.Module, kinds: Sequence[type[nn.Module]]) -> bool:
    """Return True if a module computes exactly what one of these classes computes, not only derives from it.

    No method of the class is overridden, in a derived class or on the module itself, except those that build or print
    it; and the module has no hooks. Torch's own kernels without cuDNN count as torch's.
    """
    classes = type(module).__mro__
    kind = next((item for item in classes if item in kinds), None)
    if kind is None or any(getattr(module, hooks) for hooks in _HOOKS):
        return False
    derived = [item for item in classes[: classes.index(kind)] if "is_torch_kernel" not in vars(item)]
    return not any(
        name not in _IRRELEVANT_METHODS and callable(getattr(kind, name, None))
        for item in (module, *derived)
        for name in vars(item)
    )


class MisalignedError(Exception):
    """The reference calls other modules than the variant, or calls them with other tensors."""


@dataclass(frozen=True)
class Perturbation:
    """Perturbation of inputs by `units` in the last place of `format`, with random directions from `seed`.

    With `inside` the result of every torch operation is perturbed as well, forward and backward, by one unit: as in a
    network whose every operation is rounded. Source: Parker 1997, Monte Carlo Arithmetic.
    """

    format: Format
    seed: int
    units: int = 1
    inside: bool = False


@dataclass(frozen=True)
class LayerUnit:
    """Unit of judgement: one call, with the nested calls that return the variant's recorded outputs.

    `run(*args, **kwargs)` computes the call in the reference. `modules` are the modules of the calls in `inner`, whose
    outputs are replaced. `owner` has the parameters and buffers that the call may use, under names that begin with
    `prefix`. If no output is replaced, a perturbation changes the outputs of submodules as well; `is_whole` marks that
    the variant did call some. `is_partial` marks that the reference makes more calls than `inner`, some of them of the
    same modules.
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
        """Return the largest number of terms summed sequentially for one entry of the result `name`.

        A parameter gradient is a sum over the rows of the largest tensor of the call. Matrix products sum blocks of
        `_BLOCK`, regardless of the length. For the inside of other modules nothing is known: 1.
        """
        if name.startswith("to parameter."):
            tensors = (self.call.inputs, self.call.outputs, [(inner.inputs, inner.outputs) for inner in self.inner])
            sizes = [tensor.numel() for _, tensor in tree_leaves(tensors)]
            shapes = {parameter_name: p.shape for parameter_name, p in self.owner.named_parameters(prefix=self.prefix)}
            return max([1, *sizes]) // max([1, *shapes[name.removeprefix("to parameter.")][:1]])
        weight = getattr(self.owner, "weight", None)
        is_product = computes_as(self.owner, PRODUCTS)
        if not is_product or not isinstance(weight, Tensor) or not name.startswith(("out.", "to given.")):
            return 1
        return min(_BLOCK, max(1, *weight.shape[:2]) * weight.shape[2:].numel())  # channels in or out, and the kernel


_BLOCK = 384
"""Approximate block length of sums in kernels of matrix products: OpenBLAS and oneDNN take 256 to 384."""


@dataclass
class ReferenceResult:
    """Values and gradients of one unit by name; `coarsest` is the coarsest format of unperturbed results inside.

    Forward pass: `out.<path>`, `<n>.given.<path>` and `buffer.<name>`; backward pass: `given.<path>`, `<n>.made.<path>`
    and `parameter.<name>`; n counts the nested calls.
    """

    values: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    coarsest: Format = FORMATS[torch.float64]

    def items(self) -> dict[str, Tensor]:
        """Return values and gradients in one dict, gradients under names that begin with `to `."""
        return {**self.values, **{f"to {name}": value for name, value in self.gradients.items()}}


def collect_recorded(unit: LayerUnit) -> dict[str, Tensor]:
    """Return the recorded tensors of a unit under the names of `ReferenceResult.items`, without parameter gradients.

    The variant's parameter gradients are sums over the whole step.
    """
    call = unit.call
    tensors = {f"out.{path}": tensor for path, tensor in tree_leaves(call.outputs)}
    tensors |= {f"to given.{path}": tensor for path, tensor in call.input_gradients.items()}
    tensors |= {f"buffer.{name}": final for name, (_, final) in call.buffers.items()}
    for number, inner in enumerate(unit.inner):
        tensors |= {f"{number}.given.{path}": tensor for path, tensor in tree_leaves(inner.inputs)}
        tensors |= {f"to {number}.made.{path}": tensor for path, tensor in inner.output_gradients.items()}
    return tensors


def replay(
    unit: LayerUnit, nudge: Perturbation | None = None, *, dtype: torch.dtype = torch.float64
) -> ReferenceResult:
    """Run the reference on the recorded inputs and output gradients of a call, perturbed by `nudge` if given."""
    convert = _Converter(nudge, unit.device, dtype)
    sources: dict[str, Tensor] = {}
    forced = _ReplacedCalls(unit, convert, sources)
    inputs = tree_map(unit.call.inputs, _make_source(convert, "given", unit.call.input_gradients, sources))
    noisy_submodules, random_state, result_formats = (
        _perturb_submodules(unit, convert, nudge),
        _restore_random_state(unit.call),
        [FORMATS[torch.float64]],
    )
    format_watch = contextlib.nullcontext() if nudge is not None else record({}, operators=_note_format(result_formats))
    float32_draws = contextlib.nullcontext() if unit.call.format.name == "float64" else Float32Draws()
    with (
        _preserve_buffers(unit) as changed,
        noisy_submodules,
        random_state,
        float32_draws,
        torch.enable_grad(),
        convert.inside(),
        format_watch,
        Float64Functions(),
    ):
        with forced.replacing():
            args, kwargs = inputs
            outputs = unit.run(*args, **kwargs)
        forced.assert_done()
        values = {f"out.{path}": tensor for path, tensor in tree_leaves(outputs)} | forced.inputs
        gradients = _compute_gradients(unit, values, _output_gradients(unit), sources, convert)
    results = {name: tensor.detach() for name, tensor in values.items()}
    results |= {f"buffer.{name}": final for name, final in changed.items()}
    return ReferenceResult(results, gradients, reduce(coarser, result_formats))


def _note_format(formats: list[Format]) -> Callable[..., None]:
    """Return an observer that appends the format of each operator's result."""

    def note(innermost: Any, operator: Any, args: Any, kwargs: Any, result: Any) -> None:
        format_ = result_format(operator, result)
        if format_ is not None:
            formats.append(format_)

    return note


def _output_gradients(unit: LayerUnit) -> dict[str, Tensor]:
    """Return the variant's gradients of the unit's outputs and of the inputs of its nested calls."""
    gradients = {f"out.{path}": gradient for path, gradient in unit.call.output_gradients.items()}
    for number, inner in enumerate(unit.inner):
        gradients |= {f"{number}.given.{path}": gradient for path, gradient in inner.input_gradients.items()}
    return gradients


def _compute_gradients(
    unit: LayerUnit,
    values: Mapping[str, Tensor],
    arriving: Mapping[str, Tensor],
    sources: Mapping[str, Tensor],
    convert: _Converter,
) -> dict[str, Tensor]:
    """Compute the gradients of inputs, of the replaced outputs, and of the parameters that were used."""
    output_names = [
        name
        for name, gradient in arriving.items()
        if name in values and values[name].requires_grad and values[name].shape == gradient.shape
    ]
    if not output_names:
        return {}
    parameters = {
        f"parameter.{name}": p for name, p in unit.owner.named_parameters(prefix=unit.prefix) if p.requires_grad
    }
    leaves = {**sources, **parameters}
    if not leaves:
        return {}
    gradients = torch.autograd.grad(
        [values[name] for name in output_names],
        list(leaves.values()),
        [convert(arriving[name]) for name in output_names],
        allow_unused=True,
    )
    gradient_by_name = dict(zip(leaves, gradients, strict=True))
    # An unused parameter has no gradient; the gradient of an unused input is zero.
    return {
        name: torch.zeros_like(leaves[name]) if gradient is None else gradient.detach()
        for name, gradient in gradient_by_name.items()
        if gradient is not None or name in sources
    }


class _Converter:
    """Converter of tensors to float64 on the reference's device, perturbed if asked; integers keep their values."""

    def __init__(self, nudge: Perturbation | None, device: torch.device, dtype: torch.dtype) -> None:
        self._nudge, self._device, self._dtype = nudge, device, dtype
        self._generator = None if nudge is None else torch.Generator().manual_seed(nudge.seed)
        self._operations = (
            PerturbedOperations(nudge.format, self._generator) if nudge is not None and nudge.inside else None
        )

    def __call__(self, tensor: Tensor) -> Tensor:
        with _suspend_perturbation(self._operations):
            if not tensor.is_floating_point():
                return tensor.to(self._device)
            wide = tensor.to(self._device, self._dtype)
            if self._nudge is None or self._generator is None:
                return wide
            return self._nudge.format.perturb(wide, self._generator, units=self._nudge.units)

    def inside(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which results of operations are perturbed, if the perturbation includes them."""
        return contextlib.nullcontext() if self._operations is None else self._operations


class PerturbedOperations(InterceptedOperators):
    """Mode that perturbs each float64 result of torch by one unit, except of operations that only copy or select."""

    def __init__(self, format_: Format, generator: Any) -> None:
        super().__init__(self._perturb)
        self.is_suspended = False
        self._format, self._generator = format_, generator

    def _perturb(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = operator(*args, **kwargs)
        name = operator.overloadpacket.__name__
        if self.is_suspended or name.rstrip("_") in _EXACT_OPERATIONS:
            return result
        storages = {tensor.untyped_storage()._cdata for _, tensor in tree_leaves((args, kwargs))}
        if name.endswith("_") and isinstance(result, Tensor) and result.dtype == torch.float64:
            return result.copy_(self._format.perturb(result, self._generator))

        def perturb(path: str, tensor: Tensor) -> Tensor:
            if tensor.dtype != torch.float64 or tensor.untyped_storage()._cdata in storages:
                return tensor
            return self._format.perturb(tensor, self._generator)

        return tree_map(result, perturb)


class PerturbedDecisions(PerturbedOperations):
    """Mode that perturbs the results of operations without gradients alone: those of decisions, not of layers."""

    def _perturb(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return operator(*args, **kwargs) if torch.is_grad_enabled() else super()._perturb(operator, args, kwargs)


_EXACT_OPERATIONS = frozenset(
    "abs alias amax amin arange cat ceil clamp clamp_max clamp_min clone constant_pad_nd copy detach diag embedding "
    "empty empty_like empty_strided expand eye fill flip floor frexp full full_like gather hardtanh index "
    "index_fill index_select ldexp masked_fill masked_select max max_pool2d_with_indices max_pool3d_with_indices "
    "maximum min minimum nan_to_num neg new_empty new_full new_ones new_zeros ones ones_like permute rand randint "
    "relu repeat roll round scatter select_scatter sign slice_backward select_backward slice_scatter sort split "
    "squeeze stack threshold_backward topk transpose tril triu unfold unfold_backward where zero zeros zeros_like "
    "_to_copy _unsafe_view index_copy value_selecting_reduction_backward "
    "segment_reduce scatter_reduce index_reduce".split()
)
"""Operations without rounding: their results are values of their inputs, or the negated values.

The last three round sums, but not maxima: their backward passes look for the input that equals the result.
"""


@contextlib.contextmanager
def _suspend_perturbation(operations: PerturbedOperations | None) -> Iterator[None]:
    """Suspend the perturbation of results for our own arithmetic, which is not the unit's."""
    if operations is None or operations.is_suspended:
        yield
        return
    operations.is_suspended = True
    try:
        yield
    finally:
        operations.is_suspended = False


def _make_source(
    convert: _Converter, prefix: str, gradients: Mapping[str, Tensor], sources: dict[str, Tensor]
) -> Callable[[str, Tensor], Tensor]:
    """Return a converter of recorded tensors; it requires grad where the variant's tensor received a gradient."""

    def make_source(path: str, tensor: Tensor) -> Tensor:
        wide = convert(tensor)
        if path not in gradients:
            return wide.clone() if wide.data_ptr() == tensor.data_ptr() else wide
        source = wide.detach().clone() if wide.data_ptr() == tensor.data_ptr() else wide.detach()
        sources[f"{prefix}.{path}"] = source.requires_grad_()
        return source.clone()

    return make_source


class _ReplacedCalls:
    """Replacement of nested calls, in order, by the variant's recorded outputs; `inputs` collects their inputs."""

    def __init__(self, unit: LayerUnit, convert: _Converter, sources: dict[str, Tensor]) -> None:
        self.inputs: dict[str, Tensor] = {}
        self._unit, self._convert, self._sources = unit, convert, sources
        self._next = 0
        self._counts: Counter[nn.Module] = Counter()
        self._index_by_call: dict[tuple[nn.Module, int], int] = {}
        num_calls: Counter[nn.Module] = Counter()
        for number, (call, module) in enumerate(zip(unit.inner, unit.modules, strict=True)):
            self._index_by_call[module, call.call_index if unit.is_partial else num_calls[module]] = number
            num_calls[module] += 1

    @contextlib.contextmanager
    def replacing(self) -> Iterator[None]:
        modules = list(dict.fromkeys(self._unit.modules))
        for module in modules:
            module.forward = self._replaced_forward(module)  # an attribute of the instance hides the method
        try:
            yield
        finally:
            for module in modules:
                del module.forward

    def assert_done(self) -> None:
        if self._next != len(self._unit.inner):
            raise MisalignedError(f"{self._unit.inner[self._next].name} was not called")

    def _replaced_forward(self, module: nn.Module) -> Callable[..., Any]:
        original_forward = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            number = self._index_by_call.get((module, self._counts[module]))
            self._counts[module] += 1
            if number is None and self._unit.is_partial:
                return original_forward(*args, **kwargs)
            if number is None or number != self._next:
                raise MisalignedError(f"{type(module).__name__} was called out of turn")
            call = self._unit.inner[number]
            inputs = dict(tree_leaves((args, kwargs)))
            if _shapes(inputs) != _shapes(dict(tree_leaves(call.inputs))):
                raise MisalignedError(f"{call.name} was called with other tensors")
            self.inputs |= {f"{number}.given.{path}": tensor for path, tensor in inputs.items()}
            self._next += 1
            return tree_map(
                call.outputs, _make_source(self._convert, f"{number}.made", call.output_gradients, self._sources)
            )

        return forward


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {path: tensor.shape for path, tensor in tensors.items()}


@contextlib.contextmanager
def _preserve_buffers(unit: LayerUnit) -> Iterator[dict[str, Tensor]]:
    """Set buffers as before the variant's call; yield those that change inside, and restore them afterwards."""
    buffers = dict(unit.owner.named_buffers(prefix=unit.prefix, remove_duplicate=False))
    changed: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, (initial, _) in unit.call.buffers.items():
            if name in buffers:
                buffers[name].copy_(initial)
    snapshot = {name: buffer.detach().clone() for name, buffer in buffers.items()}
    with preserve_buffers(unit.owner):
        try:
            yield changed
        finally:
            for name, buffer in unit.owner.named_buffers(prefix=unit.prefix):
                if name in snapshot and not torch.equal(buffer, snapshot[name]):
                    changed[name] = buffer.detach().clone()


def _perturb_submodules(
    unit: LayerUnit, convert: _Converter, nudge: Perturbation | None
) -> contextlib.AbstractContextManager[Any]:
    """Perturb the outputs of submodules and their gradients as well."""
    if nudge is None or unit.inner:
        return contextlib.nullcontext()
    submodules = {path: module for path, module in unit.owner.named_modules() if path}
    return record(
        submodules, leave=lambda *called: tree_map(called[-1], lambda _, tensor: perturb_with_gradient(tensor, convert))
    )


def perturb_with_gradient(tensor: Tensor, mover: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply `mover` to a floating tensor and to its gradient; return other tensors unchanged."""
    if not tensor.is_floating_point():
        return tensor
    perturbed = tensor + (mover(tensor.detach()) - tensor.detach())
    if perturbed.requires_grad:
        watch_gradient(perturbed, mover)
    return perturbed


@contextlib.contextmanager
def _restore_random_state(call: ModuleCall) -> Iterator[None]:
    """Restore the random state with which the variant's call began."""
    if call.random_state is None:
        yield
        return
    of_host, *of_gpu = call.random_state
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if of_gpu else []):
        torch.set_rng_state(of_host)
        for state in of_gpu:
            torch.cuda.set_rng_state(state)
        yield
