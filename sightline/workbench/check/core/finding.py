"""Diagnoses: what a fault is called, its causes and what to do, as rows of a file beside the checks that find it.

A rule yields faults, of which findings are built.

Merging of findings: one list for all processes, with symptoms listed under the error that explains them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from sightline.doctor.finding import Finding, FindingLocation, Severity, finding_from_dict
from sightline.engine.distributed import World


@dataclass(frozen=True)
class Fault:
    """One way in which a subject breaks a rule; the rule and its subject supply what is left out.

    `causes` are ordered by likelihood, repetitions are allowed; `at` is a dotted path of the config, `split` names a
    split of the run's data set. `where` is a location instead of these. Without texts, `measured` and `expected` are
    `value` and `bound`.
    """

    summary: str
    _: KW_ONLY
    measured: str = ""
    expected: str = ""
    action: str = ""
    causes: Sequence[str] = ()
    severity: Severity | None = None
    where: FindingLocation | None = None
    at: str = ""
    split: str = ""
    dataset: str | None = None
    sample: int | None = None
    layer: str | None = None
    param: str | None = None
    step: int | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    value: float | None = None
    bound: float | None = None
    sureness: float | None = None

    @property
    def place(self) -> dict[str, Any]:
        """Fields of a location that the fault states."""
        names = ("dataset", "sample", "layer", "param", "step")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @property
    def measured_text(self) -> str:
        """Text of the measured value."""
        return self.measured or ("" if self.value is None else f"{self.value:.4g}")

    @property
    def bound_text(self) -> str:
        """Text of the expected value, or of the bound and its side; "" for the rule's."""
        if self.expected or self.value is None or self.bound is None:
            return self.expected
        return f"at {'most' if self.value > self.bound else 'least'} {self.bound:.4g}"


_TEXTS = {"summary": "says", "measured": "measured", "expected": "expected", "action": "do"}
"""Texts of a fault, and their names in a row of a file."""
_FIELDS = tuple(field.name for field in dataclasses.fields(Fault) if field.name not in _TEXTS)


@functools.cache
def read_diagnoses(file: Path) -> dict[str, dict[str, Any]]:
    """Read the rows of a file by their names."""
    rows: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return rows


def diagnose(module: str, diagnosis: str, measured: str = "", /, **words: Any) -> Fault:
    """Make a fault by its row in the file of JSON that has the name of a module's file."""
    return make_fault(Path(module).with_suffix(".json"), diagnosis, measured, **words)


def make_fault(file: Path, diagnosis: str, measured: str = "", /, **words: Any) -> Fault:
    """Make a fault by its row in a file.

    A row has what it `says`, and what is `expected`, `measured` and to `do`, with the names of `words` in braces, and
    some fields of `Fault`. Words that are such fields are set as well, and go before those of the row.
    """
    row = read_diagnoses(file)[diagnosis]
    texts = {name: row.get(key, "").format(**words) for name, key in _TEXTS.items()}
    fields = {name: given[name] for given in (row, words) for name in _FIELDS if name in given}
    return Fault(texts.pop("summary"), **{**texts, "measured": measured or texts["measured"], **fields})


def gather_findings(findings: Sequence[Finding], world: World) -> list[Finding]:
    """Gather the findings of all processes without duplicates; a collective, with the same result on every process."""
    if world.size == 1:
        return list(findings)
    texts = world.gather_text(json.dumps([f.to_dict() for f in findings], default=str), operation="findings")
    gathered: dict[tuple[str, str, str], Finding] = {}
    for rank, text in enumerate(texts):
        for document in json.loads(text):
            finding = finding_from_dict(document)
            key = (finding.code, finding.cause, str(finding.where))
            gathered.setdefault(key, _set_rank(finding, rank))
    return list(gathered.values())


def _set_rank(finding: Finding, rank: int) -> Finding:
    return finding if rank == 0 else dataclasses.replace(finding, where=dataclasses.replace(finding.where, rank=rank))


def join_parts(findings: Iterable[Finding]) -> list[Finding]:
    """Join findings of the same fault and field in several splits into one."""
    groups: dict[object, list[Finding]] = {}
    for finding in findings:
        field = finding.evidence.get("field")
        key = id(finding) if field is None else (finding.code, finding.cause, finding.severity, field)
        groups.setdefault(key, []).append(finding)
    return [_add_evidence(first, "also", [str(other.where) for other in others]) for first, *others in groups.values()]


def _add_evidence(finding: Finding, key: str, lines: Sequence[str]) -> Finding:
    """Return the finding with the lines added to its evidence; unchanged if there are none."""
    return dataclasses.replace(finding, evidence={**finding.evidence, key: list(lines)}) if lines else finding
