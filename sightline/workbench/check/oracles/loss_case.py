"""One loss of a run as a function of its arguments, on samples of the first step, with the outputs that it asks for."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sightline.contract.binding import BoundFunction
from sightline.contract.members import TaskMembers
from sightline.contract.pytree import is_float
from sightline.doctor.objects import iter_reachable
from sightline.engine.device import seed_torch
from sightline.engine.step import single_batch_step
from sightline.engine.train import TrainState
from sightline.ops.box_codes import encode_deltas, encode_distances
from sightline.ops.priors import BACKGROUND, IGNORED
from sightline.parts.tasks.distillation import unwrap_distillation
from sightline.workbench.check.core.dry_run import DryRun
from sightline.workbench.check.core.sample_statistics import class_axis
from sightline.workbench.check.oracles.results import FixedOutputs

_ROUNDING = {torch.float64: 1e-7, torch.float32: 1e-3}
_ROUNDING_16_BIT = 5e-2
_LABELS = ("target", "label")
TEACHER = "teacher_"
"""Prefix of what a teacher predicts."""


@dataclass(frozen=True)
class Goal:
    """Best value of an output, where `is_valid`: numbers to reach, or, for scores of classes, 1 for what must rise."""

    key: str
    wanted: Tensor
    is_valid: Tensor
    target_key: str
    axis: int | None = None
    is_of_classes: bool = False

    @property
    def class_axis(self) -> int:
        """Axis of the classes; the last one for scores without classes."""
        return -1 if self.axis is None else self.axis

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 without them."""
        return 0 if self.axis is None else self.wanted.shape[self.axis]

    @property
    def is_target(self) -> Tensor:
        """Mask of the labels that are classes."""
        return self.wanted.sum(dim=self.class_axis) > 0


@dataclass(frozen=True)
class LossCase:
    """Loss `name`, its arguments `values` and those of its count, for samples of the first step, in float64 if it can.

    `keys` are the outputs with a gradient, `idle` those without one, `shared` those that other losses read.
    `division` holds the batch's sample index and offsets, by which every value is divided into samples. A loss of pairs
    returns one value for each pair.
    """

    name: str
    path: str
    loss: nn.Module | None
    forward: BoundFunction
    counter: BoundFunction | None
    values: Mapping[str, Any]
    keys: tuple[str, ...]
    idle: tuple[str, ...]
    division: Mapping[str, Tensor]
    shared: frozenset[str] = frozenset()
    ignore_index: int | None = None
    num_classes: int | None = None
    memo: dict[Any, Any] = dataclasses.field(default_factory=dict)

    @property
    def outputs(self) -> dict[str, Tensor]:
        """Outputs that have a gradient."""
        return {key: self.values[key] for key in self.keys}

    @property
    def num_samples(self) -> int:
        return len(self.division["sample_index"])

    @property
    def rounding(self) -> float:
        """Relative error that rounding explains in the number format of the outputs."""
        return _ROUNDING.get(self.values[(*self.keys, *self.idle)[0]].dtype, _ROUNDING_16_BIT)

    @property
    def size(self) -> int:
        """Number of elements of all outputs that have a gradient."""
        return sum(value.numel() for value in self.outputs.values())

    def sum(self, values: Mapping[str, Any] | None = None) -> Tensor:
        """Compute the loss's sum, with some arguments replaced; random draws are repeated."""
        seed_torch(0)
        return self.forward({**self.values, **(values or {})}).double().sum()

    def value(self, values: Mapping[str, Any] | None = None) -> float:
        """Compute the loss's sum without a gradient."""
        with torch.no_grad():
            return float(self.sum(values))

    def count(self, values: Mapping[str, Any] | None = None) -> float:
        """Compute the loss's count; the number of pairs for a loss without its own."""
        if self.counter is None:
            return float(self.num_samples)
        with torch.no_grad():
            return float(self.counter({**self.values, **(values or {})}))

    def gradient(self, values: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
        """Compute the gradient of the sum by each output; zeros for none."""
        leaves = {key: {**self.values, **(values or {})}[key].detach().clone().requires_grad_() for key in self.keys}
        with torch.enable_grad():
            total = self.sum({**(values or {}), **{key: leaf.clone() for key, leaf in leaves.items()}})
        found = torch.autograd.grad(total, [*leaves.values()], allow_unused=True) if total.requires_grad else ()
        given = dict(zip(leaves, found, strict=False))
        return {key: torch.zeros_like(leaf) if given.get(key) is None else given[key] for key, leaf in leaves.items()}

    def samples(self, rows: Sequence[int], targets: Sequence[int] | None = None) -> LossCase:
        """Return the case of some samples; of others, `targets`, everything that is not an output."""
        by = {key: rows if key in (*self.keys, *self.idle) else targets or rows for key in self.values}
        values = {key: _take(value, self.division, by[key], key) for key, value in self.values.items()}
        division = {key: _take(value, self.division, targets or rows, key) for key, value in self.division.items()}
        return dataclasses.replace(self, values=values, division=division, memo={})

    def rows(self, key: str, sample: int) -> Any:
        """Return the places, in an argument, of a sample's rows."""
        return _take(torch.arange(len(self.values[key])), self.division, [sample], key)

    def cast(self, dtype: torch.dtype) -> LossCase:
        """Return the case with all floating-point arguments in a number format."""
        return dataclasses.replace(self, values={key: _cast(v, dtype) for key, v in self.values.items()}, memo={})

    @functools.cached_property
    def trainable_tensors(self) -> dict[str, Tensor]:
        """Tensors of the loss, by path, that ask for a gradient."""
        tensors = iter_reachable(self.loss, Tensor)
        return {path: tensor for path, tensor in tensors if tensor.requires_grad and tensor.is_leaf}

    @functools.cached_property
    def goals(self) -> list[Goal]:
        """Best values of the outputs that have known ones; none for a loss that is yet to learn what is best."""
        if self.trainable_tensors:
            return []
        return [goal for key in (*self.keys, *self.idle) if (goal := _find_goal(self, key)) is not None]

    def at(self, scores: float, *, others: float = 0.0, goals: Sequence[Goal] | None = None) -> dict[str, Tensor]:
        """Return outputs at their goals: `scores` for the classes that must rise, `others` for those that must fall."""
        placed = {}
        for goal in self.goals if goals is None else goals:
            best = goal.wanted * (scores - others) + others if goal.is_of_classes else goal.wanted
            placed[goal.key] = torch.where(goal.is_valid, best, self.values[goal.key])
        return placed


def take_samples(values: Mapping[str, Any], batch: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """Return the rows of some samples of a `batch` in its values, or in outputs for it; other values as they are."""
    division = {name: value for name, value in batch.items() if name == "sample_index" or name.endswith("offsets")}
    return {name: _take(value, division, rows, name) for name, value in values.items()}


def make_cases(
    job: TrainState, step: DryRun, facts: Mapping[str, Any], *, max_samples: int, max_outputs: float
) -> Iterator[LossCase]:
    """Yield the losses of a first step that read outputs and agree, called alone, with what the step computed.

    Those without a weight, and those of more outputs in these samples, are left out.
    """
    task: Any = unwrap_distillation(job.task)
    bound = getattr(task, "bound_losses", {})
    batch, outputs = step.batch, dict(step.seen_outputs)
    if not bound or not step.is_sound:
        return
    try:
        around = single_batch_step(job.task, FixedOutputs(outputs), batch, job.device, job.precision).contexts[0]
        is_complete = TaskMembers.compares_rows.get(task)
        outputs = outputs if is_complete else task.outputs(FixedOutputs(outputs), batch)
    except Exception:  # noqa: BLE001 - a user's task may need more than a stand-in for its model
        return
    context: dict[str, Any] = {}
    for part in around if isinstance(around, tuple) else (around,):
        context |= part if isinstance(part, Mapping) else {}
    division = {name: value for name, value in batch.items() if name == "sample_index" or name.endswith("offsets")}
    for index, (name, (forward, counter)) in enumerate(bound.items()):
        isolated = _isolate(forward)
        names = {*forward.names, *(counter.names if counter is not None else ())}
        offered = {**batch, **outputs, **context}
        values = {key: _detach(offered[key]) for key in offered if key in names}
        case = LossCase(
            name=name,
            path=f"losses.{index}",
            loss=_find_module(isolated.function),
            forward=isolated,
            counter=None if counter is None else _isolate(counter),
            values=values,
            keys=tuple(k for k in outputs if k in forward.names and is_float(values[k]) and values[k].numel()),
            idle=(),
            division=division,
            shared=frozenset(key for other, (term, _) in bound.items() if other != name for key in term.names),
            ignore_index=facts.get("ignore_index"),
            num_classes=facts.get("num_classes"),
        )
        is_weighted = max(job.loss_weights_at(at)[name] for at in (0, job.num_steps)) > 0
        is_small = case.size * max_samples <= max_outputs * case.num_samples
        if not case.keys or not is_weighted or not is_small or float(step.counts[name]) <= 0:
            continue
        computed = float(step.terms[name].detach())
        try:
            alone = case.value()
        except Exception:  # noqa: BLE001 - outside of autocast, a loss may refuse a mixture of formats
            continue
        if abs(alone - computed) > case.rounding * max(abs(computed), abs(alone), 1e-3):
            continue  # the task does more than to call it
        if (prepared := _prepare(case, max_samples)) is not None:
            yield prepared


def _prepare(case: LossCase, max_samples: int) -> LossCase | None:
    """Take few samples, float64 if the loss accepts it, and divide the outputs by whether they have a gradient."""
    if case.num_samples > max_samples:
        case = case.samples(_choose_samples(case, max_samples))
    for dtype in (torch.float64, torch.float32):
        candidate = case.cast(dtype)
        try:
            gradient = candidate.gradient({key: value + draw(value) for key, value in candidate.outputs.items()})
        except Exception:  # noqa: BLE001 - of a mixture of formats, which a user's loss need not take
            continue
        keys = tuple(key for key, value in gradient.items() if bool((value != 0).any()))
        return dataclasses.replace(candidate, keys=keys, idle=tuple(set(case.keys) - set(keys)), memo={})
    return None


def _choose_samples(case: LossCase, number: int) -> list[int]:
    """Choose the first samples; if nothing in them counts, as in images without boxes, the first in which it does."""
    first = [*range(number)]
    if case.samples(first).count() > 0:
        return first
    return [row for row in range(case.num_samples) if case.samples([row]).count() > 0][:number] or first


def draw(like: Tensor) -> Tensor:
    """Draw normal numbers of the shape of a tensor, the same at every call."""
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(like)


# --- goals ------------------------------------------------------------------------------------------------------------


def _find_goal(case: LossCase, key: str) -> Goal | None:
    """Return the goal of an output, if a label, boxes or a target of the same shape say what is best."""
    output, values = case.values[key], case.values
    named = {name: values[name] for name in case.forward.names if name in values}
    if key == "codes" and {"priors", "matched_boxes", "target"} <= named.keys():
        return _goal_of_boxes(key, output, named)
    # Beside a teacher, labels only say what counts, or half of what is best.
    is_taught = any(name.startswith(TEACHER) for name in named)
    labels = {} if is_taught else {name: named[name] for name in _LABELS if isinstance(named.get(name), Tensor)}
    goals = [_goal_of_labels(case, key, label, name) for name, label in labels.items()]
    inputs = {name: value for name, value in named.items() if name not in (*case.keys, *case.idle) and is_float(value)}
    targets = {name: value for name, value in inputs.items() if value.shape == output.shape}
    if all(_is_mask(value) for name, value in inputs.items() if name not in targets) and len(targets) == 1:
        [(name, target)] = targets.items()  # of other numbers beside it, what is best would be made of several
        is_valid = named["target"] >= 0 if "target" in named else torch.ones_like(output, dtype=torch.bool)
        goals.append(Goal(key, target.to(output), is_valid.expand_as(output), name))
    return next((goal for goal in goals if goal is not None), None)


def _goal_of_boxes(key: str, output: Tensor, named: Mapping[str, Tensor]) -> Goal | None:
    """Return the goal of the codes of priors that have a box."""
    if output.shape != named["matched_boxes"].shape:
        return None
    encode = encode_deltas if named["priors"].shape[1] == 4 else encode_distances
    has_box = (named["target"] >= 0)[..., None].expand_as(output)
    best = encode(named["priors"].expand(len(output), -1, -1), named["matched_boxes"]).to(output)
    return Goal(key, torch.where(has_box, best, 0), has_box, "matched_boxes")


def _goal_of_labels(case: LossCase, key: str, label: Tensor, name: str) -> Goal | None:
    """Return the goal of scores: 1 for the class of a label; priors without a box have no class that must rise."""
    output, is_of_priors = case.values[key], name == "target"
    if label.is_floating_point():
        return None
    if key == "objectness" and is_of_priors and output.shape == label.shape:
        return Goal(key, (label >= 0).to(output), label != IGNORED, name, is_of_classes=True)
    axis = class_axis(output, label)
    if axis is None or output.shape[axis] != (case.num_classes or output.shape[axis]):
        return None
    is_class = (label >= 0) & (label < output.shape[axis])
    is_valid = is_class | (label == BACKGROUND) if is_of_priors else is_class & (label != case.ignore_index)
    one_hot = torch.nn.functional.one_hot(torch.where(is_class, label, 0), output.shape[axis]) * is_class[..., None]
    wanted, is_valid = one_hot.movedim(-1, axis).to(output), is_valid.unsqueeze(axis).expand_as(output)
    return Goal(key, wanted, is_valid, name, axis, is_of_classes=True)


def is_ordinal(raised: Tensor, lowered: Tensor) -> bool:
    """Return True if a class raises levels up to its own, and lowers those beyond, as in ordinal regression.

    Both are masks (classes, levels). Source: Cao et al. 2020, CORAL. Scores of classes never do: one is raised, and
    those on both sides of it are lowered.
    """
    size = raised.shape[1]
    for up, down in ((raised, lowered), (lowered, raised)):
        least = [int(row.nonzero()[-1]) + 1 if row.any() else 0 for row in up]
        most = [int(row.nonzero()[0]) if row.any() else size for row in down]
        reached = torch.tensor(least).cummax(dim=0).values
        moves = any(most[first] < max(least[first + 1 :]) for first in range(len(least) - 1))
        if moves and bool((reached <= torch.tensor(most)).all()):
            return True
    return False


# --- values -----------------------------------------------------------------------------------------------------------


def _take(value: Any, division: Mapping[str, Tensor], rows: Sequence[int], name: str) -> Any:
    """Take the rows of some samples; a value whose rows are not those of samples is returned as it is."""
    num_samples = len(division["sample_index"])
    if isinstance(value, list) and len(value) == num_samples:
        return [value[row] for row in rows]
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    if name in division and name != "sample_index":
        return torch.cat([value[:1] * 0, value.diff()[list(rows)].cumsum(0)])
    if len(value) == num_samples:
        return value[list(rows)]
    for offsets in division.values():
        if len(offsets) == num_samples + 1 and int(offsets[-1]) == len(value):
            return torch.cat([value[int(offsets[row]) : int(offsets[row + 1])] for row in rows])
    return value


def _detach(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if is_float(value) else value


def _is_mask(value: Tensor) -> bool:
    return bool(((value == 0) | (value == 1)).all())


def _find_module(function: Any) -> nn.Module | None:
    """Return the loss whose method a function is, or wraps."""
    owner = getattr(getattr(function, "__wrapped__", function), "__self__", None)
    return owner if isinstance(owner, nn.Module) else None


def _isolate(function: BoundFunction) -> BoundFunction:
    """Return a function on a copy of its loss, whose buffers may change; the original where it cannot be copied."""
    try:
        return dataclasses.replace(function, function=copy.deepcopy(function.function))
    except (RuntimeError, TypeError):
        return function
