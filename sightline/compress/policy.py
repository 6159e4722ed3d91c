"""Policies: what each quantisable tensor of a model is stored as; their documents, protected layers, and budgets."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, NotRequired, TypeAlias

import numpy as np
from typing_extensions import TypedDict

from sightline.arguments import Index, QuantisedKind
from sightline.config.faults import ConfigFaults
from sightline.config.yaml_tree import LocatedValue, read_yaml
from sightline.errors import ConfigError
from sightline.layers.quantisation.choices import choice_faults
from sightline.schema import suggest
from sightline.types import SourceLocation

__all__ = [
    "FP16",
    "FP32",
    "Activation",
    "Policy",
    "Protect",
    "WeightFormat",
    "actions_to_levels",
    "activation_policy",
    "lower_to_budget",
    "policy_from_dict",
    "policy_to_dict",
    "protected_choices",
    "read_policy",
]

_FLOAT_BITS: Mapping[str, int] = {"fp16": 16, "fp32": 32}


class Activation(NamedTuple):
    """The grid of a layer's input, as `QuantisedActivation` states it."""

    bits: int
    range: float
    signed: bool


class WeightFormat(NamedTuple):
    """What a tensor is stored as; `bits` are those of one weight, 16 or 32 where it stays in floating point.

    With `activation` the input of its layer is quantised.
    """

    kind: QuantisedKind
    bits: int
    per_channel: bool = False
    activation: Activation | None = None

    def __str__(self) -> str:
        inputs = "" if self.activation is None else f", inputs of {self.activation.bits} bits"
        if self.kind in _FLOAT_BITS:
            return f"{self.kind}{inputs}"
        coded = (
            f"{self.bits} bit{'s' if self.bits > 1 else ''}, {self.kind}{' per channel' if self.per_channel else ''}"
        )
        return f"{coded}{inputs}"


FP16, FP32 = WeightFormat("fp16", 16), WeightFormat("fp32", 32)
Policy: TypeAlias = Mapping[str, WeightFormat]
"""Tensor, as in `model.named_parameters()`, to what it is stored as; in the model's order."""


class Protect(TypedDict):
    """Layers that no search lowers: so many `first` and `last` ones, and `names`, patterns such as `head.*`."""

    first: NotRequired[Index]
    last: NotRequired[Index]
    names: NotRequired[tuple[str, ...]]
    bits: NotRequired[Literal[1, 2, 3, 4, 5, 6, 7, 8, 16, 32]]


def protected_choices(
    protect: Protect, names: Sequence[str], *, kind: QuantisedKind = "codebook"
) -> dict[str, WeightFormat]:
    """The choice of each protected layer of `names`, which stand in the model's order: 8 bits by default.

    Raises ConfigError for a pattern without a match, naming the nearest layer.
    """
    bits = protect.get("bits", 8)
    floats = {each.bits: each for each in (FP16, FP32)}
    choice = floats.get(bits, WeightFormat(kind, bits))
    patterns = protect.get("names", ())
    missing = [each for each in patterns if not fnmatch.filter(names, each)]
    if missing:
        raise ConfigError(
            *(f"protect.names: no layer is called '{each}'{suggest(each, names, otherwise='')}" for each in missing)
        )
    last = len(names) - protect.get("last", 0)
    return {
        name: choice
        for place, name in enumerate(names)
        if place < protect.get("first", 0) or place >= last or any(fnmatch.fnmatchcase(name, each) for each in patterns)
    }


def policy_to_dict(policy: Policy) -> dict[str, dict[str, Any]]:
    """The plain mapping that `read_policy` reads."""
    return {name: _plain(choice) for name, choice in policy.items()}


def _plain(choice: WeightFormat) -> dict[str, Any]:
    inputs = {} if choice.activation is None else {"activation": choice.activation._asdict()}
    if choice.kind in _FLOAT_BITS:
        return {"kind": choice.kind, **inputs}
    return {"kind": choice.kind, "bits": choice.bits, "per_channel": choice.per_channel, **inputs}


def activation_policy(policy: Policy) -> dict[str, WeightFormat]:
    """What is left of a policy where weights are plain: the layers whose inputs are quantised."""
    return {name: FP32._replace(activation=choice.activation) for name, choice in policy.items() if choice.activation}


def read_policy(path: Path, names: Sequence[str]) -> dict[str, WeightFormat]:
    """The policy of a JSON or YAML file, of some of the tensors `names`; as in a config, the others stay in float.

    Raises ConfigError with file and line, and as `policy_of`.
    """
    faults = ConfigFaults()
    tree = read_yaml(path, faults)
    faults.raise_any()
    document: Any = tree.plain()
    return policy_from_dict(document, names, origin=str(path), places=_places_of(tree), is_whole=False)


def policy_from_dict(
    document: Mapping[str, Any],
    names: Sequence[str],
    *,
    origin: str,
    places: Mapping[str, SourceLocation] | None = None,
    is_whole: bool = True,
) -> dict[str, WeightFormat]:
    """The policy that a plain mapping states, of exactly the tensors `names`, or of some of them, and in their order.

    Raises ConfigError with all faults by key: an unknown tensor, with the nearest name, a missing one, a kind or a
    number of bits that is not allowed.
    """
    faults, places, found = ConfigFaults(), places or {}, {}
    for name, entry in document.items():
        known = suggest(name, names, otherwise="; the model has none of a similar name")
        wrong = [("", f"no parameter is called so{known}")] if name not in names else choice_faults(entry)
        for key, text in wrong:
            path = f"{name}.{key}".rstrip(".")
            at = places.get(path) or places.get(name)
            faults.add(SourceLocation(origin, at.line if at else None, path), text)
        if not wrong:
            kind, inputs = entry["kind"], Activation(**entry["activation"]) if "activation" in entry else None
            found[name] = WeightFormat(
                kind, entry.get("bits") or _FLOAT_BITS[kind], entry.get("per_channel", False), inputs
            )
    for name in (each for each in names if is_whole and each not in document):
        faults.add(SourceLocation(origin, path=name), "is missing; give its kind, fp32 to leave it as it is")
    faults.raise_any()
    return {name: found[name] for name in names if name in found}


def _places_of(tree: LocatedValue) -> dict[str, SourceLocation]:
    """The place of every key, by its dotted path."""
    below = tree.value.values() if isinstance(tree.value, dict) else ()
    return {tree.where.path: tree.where} | {path: at for each in below for path, at in _places_of(each).items()}


def actions_to_levels(actions: np.ndarray, bits: Sequence[int]) -> np.ndarray:
    """The places in `bits`, which ascend, of actions in [0, 1]: equal intervals, 0 the first and 1 the last of them.

    Source: Wang et al. 2019 (HAQ), section 3, and the authors' code, whose rounding, half to even, is kept for ranges
    without gaps. Theirs is not clipped: an action of 0 is 0 bits there where the range begins at 1.
    """
    num, first = len(bits), bits[0]
    has_gaps = bits[-1] - first + 1 != num
    places = np.floor(num * actions) if has_gaps else np.round(num * actions + first - 0.5) - first
    return np.clip(places, 0, num - 1).astype(np.int64)


def lower_to_budget(
    levels: Sequence[int], holds: Callable[[tuple[int, ...]], bool], *, floors: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Lower levels by one from the last to the first, sweep after sweep, until `holds`; none falls below its floor.

    `holds` must stay true once it is: the place to stop is found by bisection. The lowest levels are returned where
    none hold. Source: Wang et al. 2019 (HAQ), section 3, and the authors' code.
    """
    start, ends = np.asarray(levels), np.zeros(len(levels), np.int64) if floors is None else np.asarray(floors)
    left = np.maximum(start - ends, 0)
    steps = [place for sweep in range(int(left.max(initial=0))) for place in np.flatnonzero(left > sweep)[::-1]]

    def after(count: int) -> tuple[int, ...]:
        return tuple((start - np.bincount(steps[:count], minlength=len(start))).tolist())

    low, high = 0, len(steps)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(after(middle)) else (middle + 1, high)
    return after(low)
