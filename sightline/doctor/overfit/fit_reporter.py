"""Findings of an overfitting test: their shared fields and config paths."""

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
    """Builder of findings of guard G23 about a run."""

    built: TrainingSetup

    def finding(self, *, summary: str, path: str, **fields: Any) -> Finding:
        """Build a finding about the training split; `path` is the config path of the fault."""
        return _FIT_ONE.finding(self._context, summary, at=path, split="train", **fields)

    def loss_path(self, name: str) -> str:
        """Return the dotted config path of the loss of this name."""
        return self._context.loss_path(name)

    @property
    def _context(self) -> Context:
        return Context(self.built, World(device=self.built.job.device))
