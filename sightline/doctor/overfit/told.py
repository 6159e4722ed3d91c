"""Findings of an over-fitting: what they all share, and where in the config they point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sightline.doctor.context import Context
from sightline.doctor.core.finding import Finding, Severity
from sightline.engine.build import Built
from sightline.engine.distributed import World

__all__ = ["CODE", "Teller"]

CODE = "fit-one"


@dataclass(frozen=True)
class Teller:
    """Makes findings of guard G23 about a run."""

    built: Built

    def finding(
        self,
        *,
        severity: Severity,
        summary: str,
        causes: tuple[str, ...],
        path: str,
        measured: str,
        expected: str,
        action: str,
        layer: str | None = None,
        sample: int | None = None,
        evidence: Mapping[str, Any] | None = None,
    ) -> Finding:
        """A finding; `causes` are the likeliest first, `path` is where the config says what is at fault."""
        return Finding(
            guard="G23",
            code=CODE,
            severity=severity,
            summary=summary,
            cause=causes[0],
            alternatives=causes[1:],
            where=self._context.place(path, layer=layer, sample=sample, dataset=f"{self.built.config.data.name}/train"),
            measured=measured,
            expected=expected,
            action=action,
            evidence=dict(evidence or {}),
        )

    def loss_path(self, name: str) -> str:
        """The dotted path of the losses block of this name."""
        return self._context.loss_path(name)

    @property
    def _context(self) -> Context:
        return Context(self.built, World(device=self.built.job.device))
