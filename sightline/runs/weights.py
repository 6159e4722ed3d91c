"""Loading of named weights into a model: matched and counted first; the model changes only if all fit."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sightline.contract.errors import CheckpointError, join_some
from sightline.contract.schema import suggest
from sightline.ops.waits import send

_WRAPPERS = ("module", "_orig_mod")
_MAX_LISTED = 5


@dataclass(frozen=True)
class WeightLoadReport:
    """Numbers of loaded tensors and elements of a model, or of its sub-module `filled`.

    `missing` kept their values, `unexpected` are not in the model. `note` says what the model has fitted of them.
    """

    matched: int
    total: int
    matched_elements: int
    total_elements: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    filled: str | None = None
    note: str = ""

    def __str__(self) -> str:
        text = (
            f"{self.matched} of {self.total} tensors, {self.matched_elements} of {self.total_elements} elements matched"
        )
        if self.missing:
            text += f"; left as they were: {_summarise_names(self.missing)}"
        if self.unexpected:
            text += f"; not in the model: {_summarise_names(self.unexpected)}"
        return f"{text}; {self.note}" if self.note else text

    def to_dict(self) -> dict[str, Any]:
        """Convert the report to plain values, with every name."""
        return dataclasses.asdict(self) | {"missing": list(self.missing), "unexpected": list(self.unexpected)}


def plain_name(name: str) -> str:
    """Remove the parts of a tensor's name that data-parallel and compiled wrappers, and quantisation, insert.

    The original of a quantised `weight` is called `weight`, its labels `weight.labels`; a parametrisation with several
    originals, as torch's weight norm, has `weight.original0` and `weight.original1`.
    """
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    while len(parts) > 1 and parts[0] in _WRAPPERS:
        parts = parts[1:]
    if "parametrizations" in parts[:-2]:
        index = parts.index("parametrizations")
        attribute, slot, *inner = parts[index + 1 :]  # `original`, `original0`, or the number of a parametrisation
        is_one_of_several = slot.startswith("original") and slot != "original"
        parts = [*parts[:index], attribute, *([slot] if is_one_of_several else []), *inner]
    return ".".join(parts)


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state of a model by plain names; the tensors are not copied. Extra states, no tensors, are left out.

    Raises CheckpointError for two tensors of one plain name: a checkpoint would lose one of them.
    """
    return _by_plain_name(model.state_dict(), "the model", None)


def find_non_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """List the names of tensors with a number that is not finite; if there is none, one wait for a device."""
    is_wide = {name: t.itemsize > 1 and (t.is_floating_point() or t.is_complex()) for name, t in tensors.items()}
    floats = {
        name: tensor.detach()
        for name, tensor in tensors.items()
        if is_wide[name] and tensor.numel() and not tensor.is_meta
    }
    if not floats:
        return []
    norms = torch._foreach_norm(list(floats.values()))  # a fifth of the time of `isfinite`; of huge numbers, infinite
    are_finite = torch.stack([send(norm, norms[0].device, torch.float64) for norm in norms]).isfinite().tolist()
    suspects = [name for name, is_finite in zip(floats, are_finite, strict=True) if not is_finite]
    return [name for name in suspects if not bool(floats[name].isfinite().all())]


def find_spoiled(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    """List the names of tensors with a number that is not finite, whose namesake in `expected` has none.

    A mask of -inf, and a running minimum that begins at inf, are as they should be.
    """
    spoiled = find_non_finite({name: tensors[name] for name in tensors.keys() & expected.keys()})
    return sorted({*spoiled} - {*find_non_finite({name: expected[name] for name in spoiled})})


def describe_non_finite(tensor: Tensor) -> str:
    """Count the numbers of a tensor (...) that are not finite."""
    spoiled = tensor[~tensor.isfinite()]
    return f"{len(spoiled):,} of {tensor.numel():,} numbers are not finite ({spoiled[0].item()} first)"


def load_weights(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    *,
    may_be_missing: Sequence[str] = (),
    modules: str | None = None,
    into: str | None = None,
    where: Path | None = None,
) -> WeightLoadReport:
    """Load weights by name; the model is changed completely or, where an error is raised, not at all.

    Names on both sides are compared without wrappers. `modules` takes one sub-module of the weights alone, `into` fills
    one sub-module of the model alone: where it is not given the one that `modules` names, if the model has it, and else
    the whole model. Names in patterns and reports are those that tensors have, or would have, in the model. What the
    patterns of `may_be_missing` name (`head.*`, or `head` for the whole module) may be absent, of another shape, or
    without a place in the model. Floating types are cast to the model's, others must agree.
    Raises CheckpointError for anything else that does not match, for a pattern that nothing needs, and for numbers that
    are not finite where the model's are; `where` is the file that it names.
    """
    state, loaded, filled = _match_names(model.state_dict(), weights, modules, into)
    misfits = {name: _describe_misfit(loaded[name], state[name]) for name in state.keys() & loaded.keys()}
    spoiled = [name for name in find_spoiled(state, loaded) if not misfits[name]]
    misfits |= {name: describe_non_finite(loaded[name]) for name in spoiled}
    fitting = {name for name, misfit in misfits.items() if not misfit}
    fitting |= _find_tied(fitting, state) - loaded.keys()
    differing = sorted((state.keys() | loaded.keys()) - fitting)
    _assert_patterns_needed(may_be_missing, differing)
    _assert_ties_agree(state, loaded)
    report = _make_report(state, loaded, fitting, filled)
    refused = [name for name in differing if not any(_matches_pattern(pattern, name) for pattern in may_be_missing)]
    if first := next((name for name in spoiled if name in refused), None):
        source = "" if where is None else f"{where}: "
        raise CheckpointError(
            f"{source}'{first}': {misfits[first]}, where a new model's are: no figure of these weights can be trusted; "
            "`sightline check RUN` names every such checkpoint: take an earlier one, or train again"
        )
    if refused:
        raise CheckpointError(_describe_faults(report, refused, state, loaded, misfits))
    values = {plain: loaded[plain] for plain in fitting if plain in loaded}
    full = {name: values.get(plain_name(name), value) for name, value in model.state_dict().items()}
    model.load_state_dict(full, strict=True)
    return report


def _match_names(
    state: Mapping[str, Tensor], weights: Mapping[str, Tensor], modules: str | None, into: str | None
) -> tuple[dict[str, Tensor], dict[str, Tensor], str | None]:
    """Return the model's and the loaded tensors, both under the model's names, and the sub-module to fill."""
    names = [plain_name(name) for name in state]
    if into is not None and not _has_module(names, into):
        raise CheckpointError(
            f"into: the model has no module '{into}' with weights{suggest(into, _list_modules(names))}"
        )
    target = modules if into is None and modules is not None and _has_module(names, modules) else into
    targets = _by_plain_name(state, "the model", target)
    sources = _by_plain_name(weights, "the weights", modules)
    if modules is not None and not sources:
        peers = suggest(modules, _list_modules([plain_name(name) for name in weights]))
        raise CheckpointError(
            f"modules: 0 of {len(targets)} tensors matched: the source has no module '{modules}' with weights{peers}"
        )
    start, prefix = 0 if modules is None else len(modules) + 1, "" if target is None else f"{target}."
    return targets, {prefix + name[start:]: tensor for name, tensor in sources.items()}, target


def _has_module(names: Iterable[str], module: str) -> bool:
    return any(name.startswith(f"{module}.") for name in names)


def _list_modules(names: Iterable[str]) -> list[str]:
    """List every module that contains one of these tensors."""
    parts = [name.split(".")[:-1] for name in names]
    return list(dict.fromkeys(".".join(path[:depth]) for path in parts for depth in range(1, len(path) + 1)))


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
            verb = "contains" if owner == "the model" else "contain"
            raise CheckpointError(f"{short}: {owner} {verb} it twice, with and without a wrapper's prefix; rename one")
        plain[short] = tensor
    return plain


def _describe_misfit(loaded: Tensor, expected: Tensor) -> str:
    """Describe why a tensor does not fit; empty if it does."""
    if loaded.shape != expected.shape:
        return f"{list(loaded.shape)} in the weights, {list(expected.shape)} in the model"
    if loaded.dtype != expected.dtype and not (loaded.is_floating_point() and expected.is_floating_point()):
        return f"{loaded.dtype} in the weights, {expected.dtype} in the model"
    return ""


def _memory_key(tensor: Tensor) -> Hashable:
    """Return a key that is equal for tensors of the same memory; None for a tensor without elements."""
    return (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else None


def _find_tied(fitting: set[str], state: Mapping[str, Tensor]) -> set[str]:
    """Return the names that share memory with a loaded one: a tied tensor may be given under one name."""
    filled = {_memory_key(state[name]) for name in fitting} - {None}
    return {name for name, tensor in state.items() if _memory_key(tensor) in filled}


def _assert_ties_agree(state: Mapping[str, Tensor], loaded: Mapping[str, Tensor]) -> None:
    holders: dict[Hashable, str] = {}
    for name in state.keys() & loaded.keys():
        memory_key = _memory_key(state[name])
        holder = holders.setdefault(memory_key, name)
        if memory_key is None or holder == name or loaded[holder].shape != loaded[name].shape:
            continue
        if not torch.allclose(loaded[holder], loaded[name].to(loaded[holder].dtype), rtol=0, atol=0, equal_nan=True):
            first, second = sorted((holder, name))
            raise CheckpointError(f"{second}: is one tensor with '{first}' in the model, but not in the weights")


def _matches_pattern(pattern: str, name: str) -> bool:
    return name == pattern or name.startswith(f"{pattern}.") or fnmatch.fnmatchcase(name, pattern)


def _assert_patterns_needed(patterns: Sequence[str], differing: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(_matches_pattern(pattern, name) for name in differing):
            missing = f"missing are {join_some(differing, most=_MAX_LISTED)}" if differing else "nothing is missing"
            raise CheckpointError(
                f"may_be_missing: '{pattern}' names nothing that is missing; {missing}; remove or mend it"
            )


def _make_report(
    state: Mapping[str, Tensor], loaded: Mapping[str, Tensor], fitting: set[str], filled: str | None
) -> WeightLoadReport:
    return WeightLoadReport(
        matched=len(fitting),
        total=len(state),
        matched_elements=sum(state[name].numel() for name in fitting),
        total_elements=sum(tensor.numel() for tensor in state.values()),
        missing=tuple(name for name in state if name not in fitting),
        unexpected=tuple(name for name in loaded if name not in state),
        filled=filled,
    )


def _describe_faults(
    report: WeightLoadReport,
    refused: Sequence[str],
    state: Mapping[str, Tensor],
    loaded: Mapping[str, Tensor],
    misfits: Mapping[str, str],
) -> str:
    """Describe a failed load in one line: counts, the first few of each kind of fault, and likely causes."""
    missing = {name: state[name] for name in refused if name not in loaded}
    unexpected = {name: loaded[name] for name in refused if name not in state}
    differing = [f"{name} ({misfits[name]})" for name in refused if misfits.get(name)]
    kinds = {"missing": list(missing), "different": differing, "unexpected": list(unexpected)}
    is_other = report.matched < report.total / 2
    counted = (
        f"{report.matched} of {report.total} tensors, {report.matched_elements} of {report.total_elements} elements"
    )
    return "; ".join(
        [
            f"{counted} matched",
            *(f"{kind}: {join_some(names, most=_MAX_LISTED)}" for kind, names in kinds.items() if names),
            *filter(None, [_guess_renaming(missing, unexpected)]),
            *(["most tensors differ, as those of another network do: build on its config (base=NAME)"] * is_other),
            "name in may_be_missing what may stay as it is",
        ]
    )


def _guess_renaming(missing: Mapping[str, Tensor], unexpected: Mapping[str, Tensor]) -> str:
    """Guess a renamed prefix, if several tensors of one shape agree on it; else the nearest name."""
    by_ending: dict[str, list[str]] = {}
    for name in unexpected:
        for ending in _list_endings(name):
            by_ending.setdefault(ending, []).append(name)
    prefixes: Counter[tuple[str, str]] = Counter()
    for name, tensor in missing.items():
        pairs = ((other, end) for end in _list_endings(name) for other in by_ending.get(end, [])[:100])
        for other, end in pairs:
            if unexpected[other].shape == tensor.shape:
                prefixes[other.removesuffix(end), name.removesuffix(end)] += 1
                break
    if prefixes:
        (theirs, ours), count = prefixes.most_common(1)[0]
        return f"perhaps '{theirs}*' of the weights is '{ours}*' of the model ({count} tensors agree in shape)"
    for name in list(missing)[:_MAX_LISTED]:
        for other in difflib.get_close_matches(name, unexpected, n=1):
            return f"perhaps '{other}' of the weights is '{name}' of the model"
    return ""


def _list_endings(name: str) -> Iterable[str]:
    """Iterate over the endings of a dotted name: `a.b.c`, `b.c`, `c`."""
    parts = name.split(".")
    return (".".join(parts[start:]) for start in range(len(parts)))


def _summarise_names(names: Sequence[str]) -> str:
    """List a few names, or count many by outermost module."""
    if len(names) <= _MAX_LISTED:
        return ", ".join(names)
    counts = Counter(name.split(".")[0] for name in names)
    return f"{len(names)} tensors (" + ", ".join(f"{module} {count}" for module, count in counts.items()) + ")"
