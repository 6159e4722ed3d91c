"""Needs of rules: the task, data or config without which a rule does not apply to a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from sightline.contract.members import TaskMembers
from sightline.parts.tasks.distillation import unwrap_distillation
from sightline.workbench.check.context import Context


class RuleNeed(NamedTuple):
    """Need of a rule in words, and whether a run has it; where it has not, the rule can have no finding."""

    text: str
    holds: Callable[[Context], object]


def _has_logits(context: Context) -> bool:
    seen = context.dry_run.seen_outputs.get("logits"), context.dry_run.batch.get("label")
    return all(isinstance(tensor, Tensor) for tensor in seen)


_BOXES = RuleNeed("boxes", lambda c: TaskMembers.get_priors.get(unwrap_distillation(c.built.job.task)))
_LOGITS = RuleNeed("class logits", _has_logits)

NEEDS: dict[str, RuleNeed] = {
    **dict.fromkeys(("box-evaluation", "box-protocol"), _BOXES),
    "batch-statistics": RuleNeed("several processes", lambda c: c.world.size > 1),
    **dict.fromkeys(("absent-class-score", "initial-loss"), _LOGITS),
    "pretraining-mismatch": RuleNeed("run to start from", lambda c: c.built.lineage is not None),
}
"""Needs by the codes of rules; the others apply to every run, or wherever they have a subject."""
