"""Report of the checks of a config or a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sightline.doctor.report import Report
from sightline.workbench.check.core.examination import describe_findings


@dataclass(frozen=True, repr=False)
class CheckReport(Report):
    """Report with what the checks examined: `examination` is what `--json` of `sightline check` has."""

    examination: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "\n".join([*describe_findings(self.findings), *self.verdict, self.summary])

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        return super().to_dict() | {"examination": dict(self.examination)}
