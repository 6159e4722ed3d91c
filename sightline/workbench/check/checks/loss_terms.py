"""Checks of a loss's terms: class weights, normaliser, negatives of a contrastive loss.

Contrastive losses of chosen rows: the task runs with a stand-in that returns these rows instead of its model.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sightline.contract.members import TaskMembers
from sightline.doctor.finding import Finding
from sightline.doctor.objects import iter_reachable
from sightline.engine.distributed import World
from sightline.engine.step import compute_batch_losses, divide_by_count, prepare_step
from sightline.ops.priors import BACKGROUND, IGNORED
from sightline.parts.losses.embeddings import chance_level
from sightline.workbench.check.context import Context, assignments, check
from sightline.workbench.check.core.assigned_boxes import AssignedBoxes
from sightline.workbench.check.core.dry_run import DryRun
from sightline.workbench.check.core.finding import Fault, Hypothesis, diagnose, explain, is_near
from sightline.workbench.check.core.sample_statistics import class_axis
from sightline.workbench.check.oracles.results import FixedOutputs

_diagnose = functools.partial(diagnose, __file__)
_ALWAYS_PER_CLASS = ("class_weights", "class_weight")
_PER_CLASS_WITH_LOGITS = ("weights", "weight")


@check("class-weight-length", "preflight")
def class_weight_length(context: Context) -> Iterator[Fault]:
    """Class weights, logits, class names and metrics all have `num_classes` entries; weights are finite and >= 0.

    Finds: Class weights, head, metrics and names that do not count the same classes.
    """
    num_classes = context.built.data.facts.get("num_classes")
    if not isinstance(num_classes, int):
        return
    weights = list(_iter_class_weights(context))
    counts = _collect_counts(context, num_classes) | {
        path: (len(values), "loss.weights", path) for path, _, values in weights
    }
    for name, (count, cause, path) in counts.items():
        if count != num_classes:
            measured = "; ".join(f"{counted} {number}" for counted, (number, _, _) in counts.items())
            causes = (cause, "loss.weights", "cfg.class_count", "model.structure")
            words = {"name": name, "count": count, "num_classes": num_classes}
            yield _diagnose("other count", measured, causes=causes, at=path, **words)
    for path, name, values in weights:
        yield from _value_faults(context, path, name, values)


def _collect_counts(context: Context, num_classes: int) -> dict[str, tuple[int, str, str]]:
    """Map everything that counts classes to its number of classes, the cause of a wrong number, and its config path."""
    facts = context.built.data.facts
    counts = {
        f"fact {name}": (len(facts[name]), "cfg.class_count", "data")
        for name in ("class_names", "class_counts")
        if facts.get(name) is not None
    }
    width = _find_head_width(context.dry_run, num_classes)
    if width is not None:
        counts["outputs of the head"] = (width, "cfg.class_count", "model")
    for index, meter in enumerate(context.built.selection_evaluator.metrics):
        classes = getattr(meter.metric, "num_classes", None)
        if isinstance(classes, int):
            name = f"classes of metric {type(meter.metric).__name__}"
            counts[name] = (classes, "cfg.class_count", f"metrics.{index}")
    return counts


def _find_head_width(rehearsal: DryRun, num_classes: int) -> int | None:
    """Return the size of the class axis of `logits` in the dry run; None without logits or labels."""
    outputs = rehearsal.seen_outputs
    logits, label = outputs.get("logits"), rehearsal.batch.get("label")
    if not isinstance(logits, Tensor) or not isinstance(label, Tensor):
        return None
    axis = class_axis(logits, label)
    return None if axis is None else logits.shape[axis]


def _iter_class_weights(context: Context) -> Iterator[tuple[str, str, list[float]]]:
    """Yield the config path, attribute name and values of each class weight of the losses."""
    for path, loss in iter_reachable(context.built.job.task, nn.Module):
        takes_logits = "logits" in getattr(type(loss).forward, "__annotations__", {})
        names = (*_ALWAYS_PER_CLASS, *(_PER_CLASS_WITH_LOGITS if takes_logits else ()))
        for name in names:
            weights = _as_list(getattr(loss, name, None))
            if weights is not None:
                component = next((c.name for c in context.config.losses if f"[{c.name!r}]" in path), "")
                yield f"{context.loss_path(component)}.{name}", name, weights


def _as_list(value: Any) -> list[float] | None:
    if isinstance(value, nn.Parameter):
        return None
    if isinstance(value, Tensor):
        return value.tolist() if value.ndim == 1 else None
    if isinstance(value, list | tuple) and all(isinstance(item, int | float) for item in value):
        return [float(item) for item in value]
    return None


def _value_faults(context: Context, path: str, name: str, values: list[float]) -> Iterator[Fault]:
    """Yield a fault for each weight that is not finite, negative, or 0 for a class with training samples."""
    facts = context.built.data.facts
    names, class_counts = facts.get("class_names"), facts.get("class_counts")
    for index, value in enumerate(values):
        class_name = names[index] if names is not None and index < len(names) else str(index)
        is_wrong = not math.isfinite(value) or value < 0
        is_present = class_counts is not None and index < len(class_counts) and class_counts[index] > 0
        is_present &= index != facts.get("ignore_index")
        if is_wrong or (value == 0 and is_present):
            samples = f" for {class_counts[index]} training samples" if class_counts is not None and is_present else ""
            words = {"class_name": class_name, "name": name, "index": index, "weight": value, "samples": samples}
            yield _diagnose("no weight", severity="error" if is_wrong else "warning", at=path, **words)


_BACKGROUND_LOGIT = -50.0
"""Logit of a prior that predicts background with certainty: its loss is 0."""
_TOLERANCE = 2e-3
_MAX_OTHER_PRIORS = 1000
"""Number of priors without a box that are kept: enough for the sums, few enough for eighty classes."""


@check(
    "loss-normaliser",
    "preflight",
    each=assignments,
    causes=("loss.normaliser", "data.ignore_handling", "loss.form"),
    expected="the same",
    action="count priors with a box, (target >= 0).sum(), and leave those whose target is -2 out of the sum",
)
def loss_normaliser(context: Context, assigned: AssignedBoxes) -> Iterator[Fault | Finding]:
    """Doubling the priors with ones that are ignored, or certainly background, does not change any loss.

    Finds: A loss of priors that is divided by all priors, or that ignored priors change: background drowns the boxes.

    The sum is divided by the number of priors with a box. Source: Lin et al. 2017, Focal Loss for Dense Object
    Detection, section 4.1.
    """
    if not int(assigned.positives.sum()):
        return
    try:
        original, with_background, with_ignored = (
            _compute_losses(context, target) for target in (None, BACKGROUND, IGNORED)
        )
    except Exception as error:  # noqa: BLE001 - a plugin's loss may read inputs that cannot be enlarged
        yield loss_normaliser.not_run(context, error)
        return
    for name, (value, count) in original.items():
        for what, enlarged in (("background, predicted for certain", with_background), ("ignored", with_ignored)):
            other, other_count = enlarged[name]
            if not math.isclose(value, other, rel_tol=_TOLERANCE, abs_tol=1e-9):
                is_learned = enlarged is with_ignored and other_count == count
                yield Fault(
                    f"the loss '{name}' depends on how many priors are {what}",
                    causes=("data.ignore_handling", "loss.normaliser", "loss.form") if is_learned else (),
                    at=context.loss_path(name),
                    measured=f"{value:.6g}, and {other:.6g} with twice as many priors, the new ones {what}; divided by "
                    f"{count:g}, and by {other_count:g}",
                    evidence={"field": name},
                )


def _compute_losses(context: Context, added: int | None) -> dict[str, tuple[float, float]]:
    """Compute each mean loss and its count at some priors, plus as many with the target `added` unless None."""
    job, (batch, outputs) = context.built.job, context.first_outputs
    task: Any = copy.copy(job.task)
    run_context = task.context(job.model, batch)
    num_priors, is_selected = len(run_context["priors"]), (run_context["target"] >= 0).any(dim=0)
    is_selected[:: 1 + num_priors // _MAX_OTHER_PRIORS] = True

    def enlarge(value: Tensor, fill: float | None = None) -> Tensor:
        axis = next((axis for axis in (1, 0) if value.shape[axis : axis + 1] == (num_priors,)), None)
        if axis is None:
            return value
        selected = value.index_select(axis, is_selected.nonzero().flatten())
        extra = selected if fill is None else torch.full_like(selected, fill)
        return selected if added is None else torch.cat([selected, extra], dim=axis)

    run_context = {
        name: enlarge(value, added if name in ("target", "second_match") else None)
        for name, value in run_context.items()
    }
    logit = _BACKGROUND_LOGIT if added == BACKGROUND else -_BACKGROUND_LOGIT
    outputs = {
        name: enlarge(value, logit if name in ("logits", "objectness") else None) for name, value in outputs.items()
    }
    task.context = lambda model, batch: run_context
    with torch.no_grad():
        sums, counts = compute_batch_losses(task, FixedOutputs(outputs), batch, context.world.device, job.precision)
    return {name: (float(divide_by_count(total, counts[name])), float(counts[name])) for name, total in sums.items()}


OUTPUTS = ("first", "second", "pictured")
"""Output keys that the contrastive losses of the package read: rows of two clouds and a picture of every object."""
BUILT_IN = ("intra_modal", "cross_modal")
"""Losses with a known definition; the losses of plugins may be of another kind."""


def pairs_task(context: Context) -> Any | None:
    """Return the run's contrastive task; None for another task, or without a contrastive loss of the package."""
    task = context.built.job.task
    if not TaskMembers.compares_rows.get(task) or not any(loss.name in BUILT_IN for loss in context.config.losses):
        return None
    return task


def pair_losses(
    context: Context, rows: Mapping[str, Tensor], *, parts: int = 1, world: World | None = None
) -> dict[str, float]:
    """Compute the mean of each contrastive loss of the package for the output rows (M, D) of a step's M pairs.

    The step is split into `parts` micro-batches; `world` is a single process by default.
    """
    task: Any = pairs_task(context)
    assert task is not None, "only for a run that compares rows"
    process_group: Any = World() if world is None else world
    size = len(next(iter(rows.values())))
    keys = sorted({*context.built.data.train.reader.keys, "sample_index"})
    micro_batches = [dict.fromkeys(keys, index) for index in torch.arange(size).chunk(parts)]
    model = _FixedRows(rows)
    sums: dict[str, Tensor] = {}
    with torch.no_grad():
        step = prepare_step(task, model, micro_batches, process_group)
        for index in range(len(micro_batches)):
            for name, term in step.loss_sums(model, index).items():
                sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64)) + term.double()
    sums = process_group.all_reduce_sum(sums, operation="losses of rows that are known")
    return {name: float(mean) for name, mean in step.loss_means(sums).items() if name in BUILT_IN}


class _FixedRows(nn.Module):
    """Stand-in for the model: each input of a micro-batch contains row indices, and the rows with them are returned."""

    def __init__(self, rows: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._rows = dict(rows)

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        index = next(iter(inputs.values()))
        return {name: rows[index] for name, rows in self._rows.items()}


_NUM_PAIRS = 6
_WIDTH = 16
_NEGATIVES_TOLERANCE = 1e-9  # for float64 sums of a dozen exponentials


@check("negatives", "static")
def negatives(context: Context) -> Iterator[Fault]:
    """Equal rows have the loss ln(K + 1) of K = 2M - 2 negatives for the M pairs of a step.

    Finds: Contrastive losses with fewer, more or other negatives than the batch implies, or with wrong partners.

    This holds for one micro-batch, for two, and over all processes; a nearer partner has a smaller loss.
    Source: Chen et al. 2020, eq. 1.
    """
    task, size = pairs_task(context), context.world.size
    if task is None:
        return
    faults = list(_count_faults(context)) or _partner_faults(context)
    yield from faults
    if size > 1:
        yield from _world_faults(context, task)
    if size > 1 and task.negatives == "process":
        num_pairs = context.config.train.batch_size
        own = num_pairs // size
        words = {"own": own, "own_negatives": 2 * own - 2, "own_chance": chance_level(own), "pairs": num_pairs}
        yield _diagnose("per process", negatives=2 * num_pairs - 2, chance=chance_level(num_pairs), **words)


def _make_equal_rows(num_pairs: int) -> dict[str, torch.Tensor]:
    return {name: torch.ones(num_pairs, _WIDTH, dtype=torch.float64) for name in OUTPUTS}


def _count_faults(context: Context) -> Iterator[Fault]:
    """Yield a fault of the first loss whose number of negatives is wrong in one or two micro-batches."""
    for parts in (1, 2):
        for name, value in pair_losses(context, _make_equal_rows(_NUM_PAIRS), parts=parts).items():
            if abs(value - chance_level(_NUM_PAIRS)) > _NEGATIVES_TOLERANCE:
                setting = "" if parts == 1 else f" in {parts} micro-batches"
                yield _make_count_fault(context, name, value, _NUM_PAIRS, setting, _explain_count(value, parts))
                return


def _world_faults(context: Context, task: Any) -> Iterator[Fault]:
    """Check the number of negatives over all processes, each with a different number of rows."""
    sizes = [_NUM_PAIRS + rank for rank in range(context.world.size)]
    values = pair_losses(context, _make_equal_rows(sizes[context.world.rank]), world=context.world)
    for name, value in values.items() if task.negatives != "process" else ():
        if abs(value - chance_level(sum(sizes))) > _NEGATIVES_TOLERANCE:
            setting, detail = f" on {context.world.size} processes", "some rows of other processes are left out"
            yield _make_count_fault(context, name, value, sum(sizes), setting, detail)


def _partner_faults(context: Context) -> Iterator[Fault]:
    """Check that orthogonal rows have a smaller loss with their own partners than with those of the next object."""
    rows = torch.eye(_NUM_PAIRS, _WIDTH, dtype=torch.float64)
    paired_losses = pair_losses(context, dict.fromkeys(OUTPUTS, rows))
    # `second` stays equal to `first`, so that their mean, which pictures are compared with, is one of the rows.
    shifted = {"intra_modal": {"second": rows.roll(1, 0)}, "cross_modal": {"pictured": rows.roll(1, 0)}}
    for name, value in paired_losses.items():
        shifted_loss = pair_losses(context, {**dict.fromkeys(OUTPUTS, rows), **shifted[name]})[name]
        if not value < shifted_loss:
            words = {"name": name, "paired": value, "shifted": shifted_loss}
            yield _diagnose("other partner", at=context.loss_path(name), **words)


def _make_count_fault(context: Context, name: str, value: float, num_pairs: int, setting: str, detail: str) -> Fault:
    count = math.expm1(value) if value < 700 else math.inf
    words = {"loss": value, "pairs": num_pairs, "setting": setting, "count": count, "negatives": 2 * num_pairs - 2}
    words |= {"name": name, "chance": chance_level(num_pairs), "detail": detail and f": {detail}"}
    return _diagnose("other negatives", at=context.loss_path(name), **words)


def _explain_count(value: float, parts: int) -> str:
    """Explain a wrong number of negatives; "" if no explanation fits."""
    candidates = [
        Hypothesis(
            "loss.negatives", "only the rows of the same micro-batch are compared", 2 * (_NUM_PAIRS // parts) - 2
        ),
        Hypothesis("loss.negatives", "a row's similarity to itself counts as well", 2 * _NUM_PAIRS - 1),
        Hypothesis("loss.negatives", "only the rows of one side are compared", _NUM_PAIRS - 1),
    ]
    count = math.expm1(min(value, 700.0))
    fitting = explain(count, 2 * _NUM_PAIRS - 2, candidates[parts == 1 :], likeness=is_near(1e-6))
    return fitting[0].text if fitting else ""
