"""Put named weights into a model: matched and counted first; the model changes only if all is well."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sightline.errors import CheckpointError
from sightline.schema import suggest

__all__ = ["WeightLoadReport", "load_weights", "plain_name", "plain_state"]

_WRAPPERS = ("module", "_orig_mod")
_SHOWN = 5


@dataclass(frozen=True)
class WeightLoadReport:
    """How much of a model, or of its sub-module `filled`, was loaded.

    `missing` stayed as it was, `unexpected` has no place in the model.
    """

    matched: int
    total: int
    matched_elements: int
    total_elements: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    filled: str | None = None

    def __str__(self) -> str:
        text = (
            f"{self.matched} of {self.total} tensors, {self.matched_elements} of {self.total_elements} elements matched"
        )
        if self.missing:
            text += f"; left as they were: {_listed(self.missing)}"
        if self.unexpected:
            text += f"; not in the model: {_listed(self.unexpected)}"
        return text

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with every name."""
        return dataclasses.asdict(self) | {"missing": list(self.missing), "unexpected": list(self.unexpected)}


def plain_name(name: str) -> str:
    """A tensor's name without the parts that data-parallel and compiled wrappers, and quantisation, put into it.

    What a quantised `weight` is computed from is called `weight`, its labels `weight.labels`.
    """
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    while len(parts) > 1 and parts[0] in _WRAPPERS:
        parts = parts[1:]
    if "parametrizations" in parts[:-2]:
        place = parts.index("parametrizations")
        attribute, _, *inner = parts[place + 1 :]  # between them `original`, or the number of a parametrisation
        parts = [*parts[:place], attribute, *inner]
    return ".".join(parts)


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model by plain names; its own tensors, not copies."""
    return {plain_name(name): value for name, value in model.state_dict().items()}


def load_weights(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    *,
    may_be_missing: Sequence[str] = (),
    modules: str | None = None,
    into: str | None = None,
) -> WeightLoadReport:
    """Load weights by name; the model is changed completely or, where an error is raised, not at all.

    Names on both sides are compared without wrappers. `modules` takes one sub-module of the weights alone, `into` fills
    one sub-module of the model alone: where it is not given the one that `modules` names, if the model has it, and else
    the whole model. Names in patterns and reports are those that tensors have, or would have, in the model. What the
    patterns of `may_be_missing` name (`head.*`, or `head` for the whole module) may be absent, of another shape, or
    without a place in the model. Floating types are cast to the model's, others must agree.
    Raises CheckpointError for anything else that does not match, and for a pattern that nothing needs.
    """
    own, given, filled = _two_sides(model.state_dict(), weights, modules, into)
    misfits = {name: _misfit(given[name], own[name]) for name in own.keys() & given.keys()}
    fitting = {name for name, misfit in misfits.items() if not misfit}
    fitting |= _tied_to(fitting, own) - given.keys()
    differing = sorted((own.keys() | given.keys()) - fitting)
    _assert_patterns_needed(may_be_missing, differing)
    _assert_ties_agree(own, given)
    report = _report(own, given, fitting, filled)
    refused = [name for name in differing if not any(_names(pattern, name) for pattern in may_be_missing)]
    if refused:
        raise CheckpointError(_complaint(report, refused, own, given, misfits))
    values = {plain: given[plain] for plain in fitting if plain in given}
    full = {name: values.get(plain_name(name), value) for name, value in model.state_dict().items()}
    model.load_state_dict(full, strict=True)
    return report


def _two_sides(
    state: Mapping[str, Tensor], weights: Mapping[str, Tensor], modules: str | None, into: str | None
) -> tuple[dict[str, Tensor], dict[str, Tensor], str | None]:
    """The tensors to fill and those to fill them with, both under the model's names; and the sub-module filled."""
    names = [plain_name(name) for name in state]
    if into is not None and not _has(names, into):
        raise CheckpointError(f"into: the model has no module '{into}' with weights{suggest(into, _modules_of(names))}")
    target = modules if into is None and modules is not None and _has(names, modules) else into
    own = _by_plain_name(state, "the model", target)
    given = _by_plain_name(weights, "the weights", modules)
    if modules is not None and not given:
        peers = suggest(modules, _modules_of([plain_name(name) for name in weights]))
        raise CheckpointError(
            f"modules: 0 of {len(own)} tensors matched: the source has no module '{modules}' with weights{peers}"
        )
    start, prefix = 0 if modules is None else len(modules) + 1, "" if target is None else f"{target}."
    return own, {prefix + name[start:]: tensor for name, tensor in given.items()}, target


def _has(names: Iterable[str], module: str) -> bool:
    return any(name.startswith(f"{module}.") for name in names)


def _modules_of(names: Iterable[str]) -> list[str]:
    """Every module that holds one of these tensors."""
    parts = [name.split(".")[:-1] for name in names]
    return list(dict.fromkeys(".".join(each[:depth]) for each in parts for depth in range(1, len(each) + 1)))


def _by_plain_name(tensors: Mapping[str, object], owner: str, modules: str | None) -> dict[str, Tensor]:
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        short = plain_name(name)
        if modules is not None and not short.startswith(f"{modules}."):
            continue
        if not isinstance(tensor, Tensor):
            if owner == "the model":  # a module's extra state: it has no elements to match and stays as it is
                continue
            raise CheckpointError(f"{name}: is a {type(tensor).__name__} in {owner}, not a tensor")
        if short in plain:
            raise CheckpointError(f"{short}: {owner} hold it twice, with and without a wrapper's prefix")
        plain[short] = tensor
    return plain


def _misfit(given: Tensor, own: Tensor) -> str:
    """What keeps a tensor from its place, or nothing."""
    if given.shape != own.shape:
        return f"{list(given.shape)} in the weights, {list(own.shape)} in the model"
    if given.dtype != own.dtype and not (given.is_floating_point() and own.is_floating_point()):
        return f"{given.dtype} in the weights, {own.dtype} in the model"
    return ""


def _place(tensor: Tensor) -> Hashable:
    """Equal for two names of the same memory; None for a tensor without elements."""
    return (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else None


def _tied_to(fitting: set[str], own: Mapping[str, Tensor]) -> set[str]:
    """Names whose memory another name fills: a tied tensor may be given under one of its names."""
    filled = {_place(own[name]) for name in fitting} - {None}
    return {name for name, tensor in own.items() if _place(tensor) in filled}


def _assert_ties_agree(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    holders: dict[Hashable, str] = {}
    for name in own.keys() & given.keys():
        place = _place(own[name])
        holder = holders.setdefault(place, name)
        if place is None or holder == name or given[holder].shape != given[name].shape:
            continue
        if not torch.allclose(given[holder], given[name].to(given[holder].dtype), rtol=0, atol=0, equal_nan=True):
            first, second = sorted((holder, name))
            raise CheckpointError(f"{second}: is one tensor with '{first}' in the model, but not in the weights")


def _names(pattern: str, name: str) -> bool:
    return name == pattern or name.startswith(f"{pattern}.") or fnmatch.fnmatchcase(name, pattern)


def _assert_patterns_needed(patterns: Sequence[str], differing: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(_names(pattern, name) for name in differing):
            found = f"missing are {_first(differing)}" if differing else "nothing is missing"
            raise CheckpointError(
                f"may_be_missing: '{pattern}' names nothing that is missing; {found}; remove or mend it"
            )


def _report(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor], fitting: set[str], filled: str | None
) -> WeightLoadReport:
    return WeightLoadReport(
        matched=len(fitting),
        total=len(own),
        matched_elements=sum(own[name].numel() for name in fitting),
        total_elements=sum(tensor.numel() for tensor in own.values()),
        missing=tuple(name for name in own if name not in fitting),
        unexpected=tuple(name for name in given if name not in own),
        filled=filled,
    )


def _complaint(
    report: WeightLoadReport,
    refused: Sequence[str],
    own: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    misfits: Mapping[str, str],
) -> str:
    """One line: how much matched, the first few of each kind of fault, and what they may mean."""
    missing = {name: own[name] for name in refused if name not in given}
    unexpected = {name: given[name] for name in refused if name not in own}
    differing = [f"{name} ({misfits[name]})" for name in refused if misfits.get(name)]
    kinds = {"missing": list(missing), "different": differing, "unexpected": list(unexpected)}
    counted = (
        f"{report.matched} of {report.total} tensors, {report.matched_elements} of {report.total_elements} elements"
    )
    return "; ".join(
        [
            f"{counted} matched",
            *(f"{kind}: {_first(names)}" for kind, names in kinds.items() if names),
            *filter(None, [_guess(missing, unexpected)]),
            "name in may_be_missing what may stay as it is",
        ]
    )


def _guess(missing: Mapping[str, Tensor], unexpected: Mapping[str, Tensor]) -> str:
    """A prefix that was renamed, if several tensors of one shape agree on it; else the nearest name."""
    by_ending: dict[str, list[str]] = {}
    for name in unexpected:
        for ending in _endings(name):
            by_ending.setdefault(ending, []).append(name)
    prefixes: Counter[tuple[str, str]] = Counter()
    for name, tensor in missing.items():
        pairs = ((other, end) for end in _endings(name) for other in by_ending.get(end, [])[:100])
        for other, end in pairs:
            if unexpected[other].shape == tensor.shape:
                prefixes[other.removesuffix(end), name.removesuffix(end)] += 1
                break
    if prefixes:
        (theirs, ours), count = prefixes.most_common(1)[0]
        return f"perhaps '{theirs}*' of the weights is '{ours}*' of the model ({count} tensors agree in shape)"
    for name in list(missing)[:_SHOWN]:
        for other in difflib.get_close_matches(name, unexpected, n=1):
            return f"perhaps '{other}' of the weights is '{name}' of the model"
    return ""


def _endings(name: str) -> Iterable[str]:
    """`a.b.c`, `b.c`, `c`."""
    parts = name.split(".")
    return (".".join(parts[start:]) for start in range(len(parts)))


def _listed(names: Sequence[str]) -> str:
    """The names where they are few, and else how many of them each outermost module holds."""
    if len(names) <= _SHOWN:
        return ", ".join(names)
    held = Counter(name.split(".")[0] for name in names)
    return f"{len(names)} tensors (" + ", ".join(f"{module} {count}" for module, count in held.items()) + ")"


def _first(names: Sequence[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
