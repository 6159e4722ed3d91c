"""Needs of rules: the task, data or config without which a rule does not apply to a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from sightline.contract.members import TaskMembers
from sightline.parts.quantisation.parametrised import quantised_weights
from sightline.parts.tasks.distillation import DistillationTask, unwrap_distillation
from sightline.workbench.check.context import Context
from sightline.workbench.check.core.model_probe import find_cloud
from sightline.workbench.check.core.sample_statistics import distinct_parts, parts_by_category
from sightline.workbench.check.core.transform_steps import find_plugin_transforms


class RuleNeed(NamedTuple):
    """Need of a rule in words, and whether a run has it; where it has not, the rule can have no finding."""

    text: str
    holds: Callable[[Context], object]


def _need_keys(text: str, *keys: str) -> RuleNeed:
    """Make the need of a split whose batches have these keys."""
    return RuleNeed(text, lambda c: any(set(keys) <= set(part.reader.keys) for part in distinct_parts(c.built.data)))


def _has_logits(context: Context) -> bool:
    seen = context.dry_run.seen_outputs.get("logits"), context.dry_run.batch.get("label")
    return all(isinstance(tensor, Tensor) for tensor in seen)


def _has_transforms(context: Context) -> bool:
    parts = distinct_parts(context.built.data)
    return any(find_plugin_transforms(part, is_thorough=context.is_thorough) for part in parts)


_BOXES = RuleNeed("boxes", lambda c: TaskMembers.get_priors.get(unwrap_distillation(c.built.job.task)))
_CONTRAST = RuleNeed("contrastive task", lambda c: TaskMembers.compares_rows.get(c.built.job.task))
_CLASSES = RuleNeed("classes", lambda c: isinstance(c.built.data.facts.get("num_classes"), int))
_CATEGORIES = RuleNeed("parts", lambda c: parts_by_category(c.built.data.facts) is not None)
_LOGITS = RuleNeed("class logits", _has_logits)
_COMPRESS = RuleNeed("compress", lambda c: c.config.compress is not None)
_FRESH = RuleNeed("untrained weights", lambda c: c.is_fresh)

NEEDS: dict[str, RuleNeed] = {
    **dict.fromkeys(("box-evaluation", "box-protocol"), _BOXES),
    "broken-boxes": RuleNeed("boxes", lambda c: any(survey.boxed for survey in c.statistics)),
    "collapsed-features": _CONTRAST,
    "batch-statistics": RuleNeed("several processes", lambda c: c.world.size > 1),
    "class-balance": _CLASSES,
    "missing-category": _CATEGORIES,
    "label-outside-parts": RuleNeed(
        "parts",
        lambda c: any(parts_by_category(part.dataset.info.facts) for part in distinct_parts(c.built.data)),
    ),
    **dict.fromkeys(("absent-class-score", "initial-loss"), _LOGITS),
    **dict.fromkeys(("broken-codebook", "quantised-outputs", "unquantised-weights"), _COMPRESS),
    "rounding-gradient": RuleNeed("quantised weights", lambda c: quantised_weights(c.built.job.model)),
    "unfit-teacher": RuleNeed("teacher", lambda c: isinstance(c.built.job.task, DistillationTask)),
    "pretraining-mismatch": RuleNeed("run to start from", lambda c: c.built.lineage is not None),
    "augmentation-mismatch": RuleNeed("transforms", _has_transforms),
    "dataset-mismatch": _need_keys("points", "points"),
    "point-order": RuleNeed("points", lambda c: find_cloud(c.built.job.model, c.dry_run.inputs)),
    "mismatched-image": _need_keys("pictures of clouds", "image", "points"),
    "mismatched-views": _need_keys("pairs of views", "points", "other_points"),
    "misplaced-heatmap": _need_keys("heat maps", "heatmaps", "joints"),
    "misplaced-joints": _need_keys("depth", "depth", "joints"),
    "misplaced-volume": _need_keys("depth", "depth", "volume"),
    "prior-bias": _FRESH,
}
"""Needs by the codes of rules; the others apply to every run, or wherever they have a subject."""
