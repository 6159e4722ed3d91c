"""Normal noise that a model draws at a scale of its own, and how a penalty of the loss pulls at that scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sightline.doctor.attempts import NotApplicableError
from sightline.doctor.evidence import measure
from sightline.doctor.subject import Subject
from sightline.instrument.random_state import seed_all

_DRAWS = frozenset(("randn", "randn_like", "normal_", "normal"))
_FORMS = frozenset("to type float double view reshape expand expand_as unsqueeze squeeze contiguous flatten".split())
"""Functions that return the same noise in another form."""
_PRODUCTS = frozenset(("mul", "__mul__", "__rmul__", "multiply", "addcmul"))
_MIN_PLACES, _MAX_CHAIN, _SHARE = 32, 16, 0.5
_POWERS = (0.5, 1.0, 2.0, 4.0)


class ScalePull(NamedTuple):
    """Pull of a penalty at the scale of noise: slope over its logarithm, as a·scale^power − b, by how it fits.

    `layer` is the one that the scale comes from, `errors` are the largest differences from the fit for each power, as a
    share of the slopes' range, `least` the scale at which the slope is 0 for the `power` that fits best.
    """

    layer: str
    smallest: float
    largest: float
    power: float
    least: float
    errors: dict[float, float]


class _NoiseMode(TorchFunctionMode):
    """Mode in which the product of noise and a scale has no gradient for that scale: other paths to it are left.

    `scales` are such factors, `parents` the only tensor with a gradient that a result was made of, by its identity.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scales: list[Tensor] = []
        self.parents: dict[int, tuple[Tensor, Tensor]] = {}
        self._noise: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        tensors = [each for each in args if isinstance(each, Tensor)]
        if name in _PRODUCTS and any(id(each) in self._noise for each in tensors):
            factors = tensors[1:] if name == "addcmul" else tensors
            self.scales += [each for each in factors if each.requires_grad]
            kept = {id(each) for each in factors}
            args = tuple(each.detach() if isinstance(each, Tensor) and id(each) in kept else each for each in args)
            if name == "addcmul":
                args = (tensors[0], *args[1:])
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and not result.requires_grad:
            is_form = name in _FORMS and len(tensors) == 1 and id(tensors[0]) in self._noise
            if is_form or (name in _DRAWS and _is_standard(args, kwargs)):
                self._noise[id(result)] = result
        learnt = [each for each in tensors if each.requires_grad]
        if len(learnt) == 1 and not isinstance(learnt[0], nn.Parameter):
            for each in result if isinstance(result, tuple | list) else (result,):
                if isinstance(each, Tensor) and each.requires_grad:
                    self.parents[id(each)] = (each, learnt[0])
        return result


def _is_standard(args: Any, kwargs: dict[str, Any]) -> bool:
    """Return True for draws of mean 0 and deviation 1, as far as arguments name them."""
    mean, std = kwargs.get("mean"), kwargs.get("std")
    given = [value for value in (mean, std) if value is not None]
    if len(args) > 1 and all(isinstance(each, Tensor | float) for each in args[:2]):
        given = [*args[:2]]
    if not given:
        return True
    return len(given) == 2 and bool((torch.as_tensor(given[0]) == 0).all() and (torch.as_tensor(given[1]) == 1).all())


@measure(passes=2)
def scale_pulls(subject: Subject) -> list[ScalePull]:
    """Cut the scales of noise out of what the noise does, and read how the rest of the loss pulls at them."""
    model = subject.jitter(subject.copy("train"), seed=3, share=_SHARE)
    names: dict[int, tuple[str, Tensor]] = {}

    def keep(path: str, outputs: Any) -> None:
        if isinstance(outputs, Tensor):
            names[id(outputs)] = path, outputs

    for path, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):  # it takes no hooks
            module.register_forward_hook(lambda _, __, outputs, path=path: keep(path, outputs))
    seed_all(0)
    with _NoiseMode() as mode:
        value = subject.run(model, subject.batches[0]).value
    found = []
    for scale in mode.scales:
        pull = _read(scale, value, mode, names) if scale.is_floating_point() else None
        found += [] if pull is None else [pull]
    if not found:
        raise NotApplicableError("no noise whose scale has a penalty of its own")
    return found


def _read(scale: Tensor, value: Tensor, mode: _NoiseMode, names: dict[int, tuple[str, Tensor]]) -> ScalePull | None:
    """Read the slope of the loss at the first tensor of a scale's making that it reaches without the noise."""
    chain = [scale]
    while len(chain) < _MAX_CHAIN and (made := mode.parents.get(id(chain[-1]))) is not None:
        chain.append(made[1])
    layer = next((names[id(each)][0] for each in chain if id(each) in names), "")
    slopes = torch.autograd.grad(value, chain, allow_unused=True, retain_graph=True)
    for tensor, slope in zip(chain, slopes, strict=True):
        if slope is None or not bool((slope != 0).any()):
            continue
        own = (
            torch.ones_like(scale)
            if tensor is scale
            else torch.autograd.grad(scale.sum(), tensor, retain_graph=True)[0]
        )
        is_read = own != 0
        if int(is_read.sum()) != scale.numel():
            return None
        sizes = scale.detach().flatten().double()
        pulls = sizes * slope[is_read].double() / own[is_read].double()
        return _fit(sizes[pulls != 0], pulls[pulls != 0], layer)
    return None


def _fit(scales: Tensor, pulls: Tensor, layer: str) -> ScalePull | None:
    """Fit slopes over the logarithm of scales by powers of them, and a constant."""
    if len(scales) < _MIN_PLACES or not bool(pulls.isfinite().all() and (scales > 0).all()):
        return None
    extent = float(pulls.max() - pulls.min())
    errors, roots = dict[float, float](), dict[float, float]()
    for power in _POWERS:
        table = torch.stack((scales**power, torch.ones_like(scales)), 1)
        factor, constant = torch.linalg.lstsq(table, pulls[:, None]).solution[:, 0].tolist()
        rest = factor * table[:, 0] + constant - pulls
        errors[power] = float(rest.abs().max()) / max(extent, 1e-30)
        roots[power] = (-constant / factor) ** (1 / power) if factor * constant < 0 else 0.0
    best = min(errors, key=lambda power: errors[power])
    return ScalePull(layer, float(scales.min()), float(scales.max()), best, roots[best], errors)
