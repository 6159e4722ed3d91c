"""Finding of the doctor: cause, location, measured and expected values, and what to do; a rule yields faults."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from torch import Tensor

from sightline.contract.errors import escape_to_one_line, join_some

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[str, ...] = get_args(Severity)
_MAX_SYMPTOMS = 3

# Controlled vocabulary of causes, by stage in the order in which faults arise; scripts compare the first cause.
CAUSES = frozenset(
    "cfg.type cfg.unknown_key cfg.override cfg.axis_swap cfg.class_count cfg.contract "
    "data.empty_loader data.path data.missing_modality data.pairing data.layout data.normalisation data.label_mapping "
    "data.label_leak data.ignore_handling data.item_mutation data.augment_target_mismatch data.duplicate_randomness "
    "data.split data.ordering data.imbalance data.padding data.sampling data.projection data.centre "
    "data.target_encoding data.corrupt_sample data.stale_cache data.throughput "
    "model.unregistered model.frozen_unintended model.activation model.constant_output model.structure model.init "
    "model.norm_mode model.cross_sample_leak model.geometry model.numerics "
    "loss.sign loss.form loss.normaliser loss.weights loss.double_softmax loss.negatives loss.detached loss.inplace "
    "loss.collapse optim.grad_accumulation optim.step_order optim.param_coverage optim.lr optim.scheduler optim.hyper "
    "optim.state optim.nonfinite optim.amp optim.clip assign.anchor_coverage assign.unmatched_gt assign.ignore "
    "assign.box_format assign.codec eval.aggregation eval.absent_class eval.mode eval.decode eval.protocol "
    "eval.coordinate clf.feature_scale ckpt.key_mismatch ckpt.corrupt ckpt.race ckpt.incomplete_state ckpt.stale "
    "ckpt.alias ckpt.selection ckpt.unsafe dist.unused_params dist.collective_mismatch dist.sampler dist.sync "
    "dist.device dist.seed dist.pickle dist.logging dist.hook dist.leftover dist.port quant.empty_cluster "
    "quant.no_effect quant.policy quant.calibration quant.distill quant.accounting quant.state_leak sys.backend "
    "sys.nondeterminism sys.resource sys.environment report.table report.budget report.provenance".split()
)


def make_plain(value: Any) -> Any:
    """Convert what a finding states to what JSON can represent: tensors and arrays to numbers, other objects to text.

    Numbers of NumPy and torch come from checks of plugins.
    """
    if isinstance(value, Mapping):
        return {key if isinstance(key, str | int) else str(key): make_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(map(make_plain, value)) if type(value) is tuple else [*map(make_plain, value)]
    if value is None or isinstance(value, str | int | float):
        return value
    return value.tolist() if isinstance(value, Tensor | np.ndarray | np.generic) else str(value)


@dataclass(frozen=True)
class FindingLocation:
    """Location of a finding; only the fields that apply are set."""

    file: str | None = None
    line: int | None = None
    layer: str | None = None
    param: str | None = None
    dataset: str | None = None
    sample: int | None = None
    rank: int | None = None
    step: int | None = None
    config_path: str | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            object.__setattr__(self, name, make_plain(value))

    def __str__(self) -> str:
        parts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        file = parts.pop("file")
        line = parts.pop("line")
        head = [] if file is None else [f"{file}:{line}" if line is not None else file]
        return ", ".join(
            [*head, *(f"{name.replace('_', ' ')} {value}" for name, value in parts.items() if value is not None)]
        )


@dataclass(frozen=True)
class Finding:
    """Silent bug, or a fact worth reporting.

    `error` means a broken invariant, with its counter-example; `warning` a statistic outside its range; `note` a fact.
    `cause` and `alternatives` are of `CAUSES`, the most likely first.
    """

    code: str
    severity: Severity
    summary: str
    cause: str
    where: FindingLocation
    measured: str
    expected: str
    action: str
    alternatives: tuple[str, ...] = ()
    evidence: Mapping[str, Any] = field(default_factory=dict)
    phase: str = "preflight"

    def __post_init__(self) -> None:
        unknown = {self.cause, *self.alternatives} - CAUSES
        assert not unknown, f"check '{self.code}' names causes outside the vocabulary: {sorted(unknown)}"
        assert self.severity in SEVERITIES, (
            f"check '{self.code}' gives a finding the severity {self.severity!r}; allowed: {', '.join(SEVERITIES)}"
        )
        object.__setattr__(self, "evidence", make_plain(self.evidence))

    @property
    def causes(self) -> tuple[str, ...]:
        """Causes, the most likely first."""
        return self.cause, *self.alternatives

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON; `where` contains only the fields that are set."""
        document = dataclasses.asdict(self)
        document["where"] = {k: v for k, v in document["where"].items() if v is not None}
        document["alternatives"] = list(self.alternatives)
        document["evidence"] = dict(self.evidence)
        return document

    def _list_symptoms(self) -> str:
        return join_some([*self.evidence.get("explains", ())], most=_MAX_SYMPTOMS, separator="; ")

    def __str__(self) -> str:
        return (
            f"[{self.code} {self.severity} {self.cause}] {escape_to_one_line(self.summary)}\n"
            + (f"  where: {escape_to_one_line(place)}\n" if (place := str(self.where)) else "")
            + f"  measured: {escape_to_one_line(self.measured)}\n"
            f"  expected: {self.expected}\n"
            + (f"  or: {', '.join(self.alternatives)}\n" if self.alternatives else "")
            + (f"  with it: {escape_to_one_line(symptoms)}\n" if (symptoms := self._list_symptoms()) else "")
            + f"  do: {self.action}"
        )


@dataclass(frozen=True)
class Fault:
    """One way in which a subject breaks a rule; the rule supplies what is left out.

    `causes` are ordered by likelihood, repetitions are allowed.
    """

    summary: str
    _: KW_ONLY
    measured: str
    expected: str = ""
    action: str = ""
    causes: Sequence[str] = ()
    severity: Severity | None = None
    where: FindingLocation = FindingLocation()
    evidence: Mapping[str, Any] = field(default_factory=dict)


def finding_from_dict(document: dict[str, Any]) -> Finding:
    """Build a finding from the output of `Finding.to_dict`."""
    return Finding(
        **{**document, "where": FindingLocation(**document["where"]), "alternatives": tuple(document["alternatives"])}
    )
