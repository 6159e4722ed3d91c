"""Parameters that a model does not register, and those that are frozen by their kind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn

from sightline.doctor.objects import iter_reachable
from sightline.workbench.check.context import FindingBuilder
from sightline.workbench.check.core.finding import Fault, diagnose

_MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))

no_gradient = FindingBuilder(
    code="no-gradient",
    causes=("model.frozen_unintended", "loss.detached", "model.structure"),
    expected="a gradient for each parameter that the optimiser holds",
    action="look for detach(), no_grad or an unused output; freeze on purpose with requires_grad_(False)",
)


def registration_faults(model: nn.Module) -> Iterator[Fault]:
    """Yield a fault for parameters in plain lists, dicts or objects, which are not trained, moved or saved.

    The model has the gradients of a backward pass.
    """
    registered = {id(parameter) for parameter in model.parameters()}
    for name, module in model.named_modules():
        attributes = {key: value for key, value in vars(module).items() if key not in _MODULE_ATTRIBUTES}
        paths = [
            path
            for path, value in iter_reachable(attributes, nn.Parameter)
            if id(value) not in registered and value.requires_grad and value.grad is not None
        ]
        if not paths:
            continue
        registered |= {id(value) for _, value in iter_reachable(attributes, nn.Parameter)}
        attribute = paths[0].split("]", 1)[0].strip("['")
        kind, names = type(attributes.get(attribute)).__name__, [f"{name}.{attribute}".lstrip(".")]
        measured = f"{len(paths)} parameters in a {kind} get gradients, and are not among model.parameters()"
        yield diagnose(
            __file__,
            "unregistered",
            measured,
            layer=name or type(module).__name__,
            attribute=attribute,
            number=len(names),
        )


def is_frozen_by_kind(modules: Iterable[nn.Module]) -> bool:
    """Return True if all biases train, and no other parameter of their modules: BitFit (Ben Zaken et al. 2022)."""
    own = [list(module.named_parameters(recurse=False)) for module in modules]
    mixed = [named for named in own if len({p.requires_grad for _, p in named}) == 2]
    return len(mixed) > 1 and all(p.requires_grad == name.endswith("bias") for named in mixed for name, p in named)
