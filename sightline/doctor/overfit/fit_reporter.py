"""Findings of an over-fitting: what they all share, and where in the config they point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sightline.doctor.context import Context, FindingBuilder
from sightline.doctor.core.finding import Finding
from sightline.engine.build import TrainingSetup
from sightline.engine.distributed import World

__all__ = ["FitReporter"]

_FIT_ONE = FindingBuilder(guard="G23", code="fit-one")


@dataclass(frozen=True)
class FitReporter:
    """Makes findings of guard G23 about a run."""

    built: TrainingSetup

    def finding(self, *, summary: str, path: str, **fields: Any) -> Finding:
        """A finding about the training part; `path` is the place of the fault in the config."""
        return _FIT_ONE.finding(self._context, summary, at=path, split="train", **fields)

    def loss_path(self, name: str) -> str:
        """The dotted path of the losses block of this name."""
        return self._context.loss_path(name)

    @property
    def _context(self) -> Context:
        return Context(self.built, World(device=self.built.job.device))
