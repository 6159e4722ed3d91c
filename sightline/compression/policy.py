"""Storage formats of weights, and policies: a format for each weight of a model, and its document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from sightline.config import RunConfig
from sightline.config.faults import ConfigFaults
from sightline.config.yaml_tree import LocatedValue, read_yaml
from sightline.contract.arguments import QuantisedKind, WeightQuantisation
from sightline.contract.schema import SchemaError, check_value, suggest
from sightline.contract.types import SourceLocation

_FLOAT_BITS: Mapping[str, int] = {"fp16": 16, "fp32": 32}


class Activation(NamedTuple):
    """Quantisation grid of a layer's input, with the fields of `QuantisedActivation`."""

    bits: int
    range: float
    signed: bool


class WeightFormat(NamedTuple):
    """Storage format of a tensor; `bits` per weight, 16 or 32 if it stays in floating point.

    With `activation` the layer's input is quantised as well.
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
"""Mapping of tensor names, as in `model.named_parameters()`, to storage formats, in the model's order."""


def policy_to_dict(policy: Policy) -> dict[str, dict[str, Any]]:
    """Convert a policy to the plain mapping that `read_policy` reads."""
    return {name: _format_to_dict(choice) for name, choice in policy.items()}


def _format_to_dict(choice: WeightFormat) -> dict[str, Any]:
    inputs = {} if choice.activation is None else {"activation": choice.activation._asdict()}
    if choice.kind in _FLOAT_BITS:
        return {"kind": choice.kind, **inputs}
    return {"kind": choice.kind, "bits": choice.bits, "per_channel": choice.per_channel, **inputs}


def activation_policy(policy: Policy) -> dict[str, WeightFormat]:
    """Return the policy restricted to activations: layers with quantised inputs and float weights."""
    return {name: FP32._replace(activation=choice.activation) for name, choice in policy.items() if choice.activation}


def read_policy(path: Path, names: Sequence[str]) -> dict[str, WeightFormat]:
    """Read a policy of some of the tensors `names` from a JSON or YAML file; the others stay in float.

    Raises ConfigError with file and line, as `policy_from_dict`.
    """
    faults = ConfigFaults()
    tree = read_yaml(path, faults)
    faults.raise_any()
    document: Any = tree.plain()
    return policy_from_dict(document, names, origin=str(path), locations=_locate_keys(tree), is_whole=False)


def policy_from_dict(
    document: Mapping[str, Any],
    names: Sequence[str],
    *,
    origin: str,
    locations: Mapping[str, SourceLocation] | None = None,
    is_whole: bool = True,
) -> dict[str, WeightFormat]:
    """Parse a plain mapping to a policy of all tensors `names` (or of some, unless `is_whole`), in their order.

    Raises ConfigError with all faults by key: an unknown tensor, with the nearest name, a missing tensor, or a kind or
    number of bits that is not allowed.
    """
    faults, locations, formats = ConfigFaults(), locations or {}, {}
    for name, entry in document.items():
        hint = suggest(name, names, otherwise="; the model has none of a similar name")
        entry_faults = [("", f"no parameter is called so{hint}")] if name not in names else choice_faults(entry)
        for key, text in entry_faults:
            path = f"{name}.{key}".rstrip(".")
            location = locations.get(path) or locations.get(name)
            faults.add(SourceLocation(origin, location.line if location else None, path), text)
        if not entry_faults:
            kind, inputs = entry["kind"], Activation(**entry["activation"]) if "activation" in entry else None
            formats[name] = WeightFormat(
                kind, entry.get("bits") or _FLOAT_BITS[kind], entry.get("per_channel", False), inputs
            )
    for name in (tensor_name for tensor_name in names if is_whole and tensor_name not in document):
        faults.add(SourceLocation(origin, path=name), "is missing; give its kind, fp32 to leave it unchanged")
    faults.raise_any()
    return {name: formats[name] for name in names if name in formats}


def trained_policy(config: RunConfig) -> dict[str, WeightFormat]:
    """Return the policy that a run is trained with, empty for a float run.

    Raises ConfigError for formats that are not allowed.
    """
    document: Any = {} if config.compress is None else config.compress.policy
    return policy_from_dict(document, list(document), origin=str(config.origins.get("compress.policy", config.name)))


def _locate_keys(tree: LocatedValue) -> dict[str, SourceLocation]:
    """Map every dotted key path to its location in the file."""
    children = tree.value.values() if isinstance(tree.value, dict) else ()
    return {tree.where.path: tree.where} | {
        path: location for child in children for path, location in _locate_keys(child).items()
    }


_MIN_BITS = {"codebook": 1, "linear": 2}


def choice_faults(choice: Any) -> list[SchemaError]:
    """List everything wrong with a choice regardless of its weight, by key.

    Types, ranges, bits of floats, a 1-bit grid.
    """
    _, misfits = check_value(WeightQuantisation, choice)
    if misfits:
        return misfits
    kind, bits = choice["kind"], choice.get("bits")
    if kind not in _MIN_BITS:
        extra_keys = (key for key in ("bits", "per_channel") if choice.get(key))
        return [SchemaError(key, "is not for floating point; remove it") for key in extra_keys]
    allowed = f"give {_MIN_BITS[kind]} to 8"
    if bits is None:
        return [SchemaError("bits", f"is required and missing; {allowed}")]
    return (
        [] if bits >= _MIN_BITS[kind] else [SchemaError("bits", f"found {bits}, too few for a {kind} grid; {allowed}")]
    )
