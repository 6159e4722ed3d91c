"""Models that ignore the category that they are given, or count other categories than the data.

The outputs for one cloud in evaluation mode are compared, bit for bit, for one category and another.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sightline.doctor.context import Context, check
from sightline.doctor.core.dry_run import isolated_copy, read_batch, step_keys
from sightline.doctor.core.finding import Finding
from sightline.doctor.core.sample_statistics import parts_by_category
from sightline.numba_kernels import compute_seconds

__all__ = ["category_input"]

_MOST_SECONDS = 0.1  # of this thread's own time, at the start of a training
_MOST_SECONDS_OF_CHECK = 5.0
_LOOKED_AT = {"looked_at": "one training cloud in evaluation mode, on the CPU"}
_CPU = torch.device("cpu")  # an index beyond a table ends every later use of an accelerator


@check("G3", "category-input", "preflight", config_path="model")
def category_input(context: Context) -> list[Finding]:
    """Each category gives outputs of its own, and a number that is not a category gives none that differ."""
    table, model = parts_by_category(context.built.data.facts), context.built.job.model
    rehearsal = context.dry_run
    if table is None or len(table) < 2 or not rehearsal.is_sound or "category" not in rehearsal.batch:
        return []
    if "category" not in inspect.signature(model.forward).parameters:
        return [_of_deaf_family(context)] if context.is_thorough else []
    tried = _Tried(context, len(table))
    return list(_of_outputs(context, tried, len(table)))


class _Tried:
    """Outputs of a copy of the model on the CPU for one training cloud, category by category, while there is time."""

    def __init__(self, context: Context, num_categories: int) -> None:
        job = context.built.job
        self.outputs: dict[int, Tensor | None] = {}
        self._model = isolated_copy(job.model).to(_CPU).eval()
        self._task = job.task
        self._batch = read_batch(job, step_keys(job, step=0)[:1], _CPU)
        most = _MOST_SECONDS_OF_CHECK if context.is_thorough else _MOST_SECONDS
        started = compute_seconds()
        for category in _in_order(num_categories):
            if len(self.outputs) > 1 and compute_seconds() - started > most:
                break
            self.outputs[category] = self._run(category)

    def _run(self, category: int) -> Tensor | None:
        """The probabilities that the task makes of the outputs; None where the model fails on this category."""
        batch = {**self._batch, "category": torch.full_like(self._batch["category"], category)}
        try:
            with torch.no_grad():
                predictions = self._task.predict(self._model, batch)
        except (IndexError, ValueError, RuntimeError):
            return None
        probabilities = predictions.get("probabilities")
        return probabilities if isinstance(probabilities, Tensor) else None

    def are_alike(self, one: int, other: int) -> bool:
        """Whether both have outputs, with the same bits."""
        mine, theirs = self.outputs.get(one), self.outputs.get(other)
        return mine is not None and theirs is not None and torch.equal(mine, theirs)


def _in_order(num_categories: int) -> list[int]:
    """The first two and the last two, two numbers beyond, then the rest."""
    ends = [0, 1, num_categories - 1, num_categories - 2, num_categories, num_categories + 1]
    return list(dict.fromkeys([*ends, *range(num_categories)]))


def _of_outputs(context: Context, tried: _Tried, num_categories: int) -> Iterator[Finding]:
    known = [category for category in range(num_categories) if category in tried.outputs]
    refused = [category for category in known if tried.outputs[category] is None]
    if len(refused) == len(known):
        return  # it is not the category that a cloud alone, or this device, fails of
    pairs = [(one, other) for one in known for other in known if one < other and tried.are_alike(one, other)]
    if refused:
        yield _of_refusal(context, refused, num_categories)
    elif len(pairs) == len(known) * (len(known) - 1) // 2:
        yield _of_deafness(context, known)
    elif pairs:
        yield _of_likeness(context, pairs, num_categories)
    else:
        beyond = tried.outputs.get(num_categories)
        is_same = tried.are_alike(num_categories, num_categories + 1)
        is_old = any(tried.are_alike(num_categories, category) for category in known)
        if beyond is not None and num_categories + 1 in tried.outputs and not is_same and not is_old:
            yield _of_length(context, num_categories)


def _of_deaf_family(context: Context) -> Finding:
    return category_input.finding(
        context,
        f"model '{context.config.model.name}' does not take the category of an object",
        severity="note",
        causes=("cfg.contract",),
        measured="its forward takes no 'category'",
        expected="nothing; of the published part models some take the one-hot category and some do not",
        action="compare its figures with those of models without it too, or choose a model that takes it",
        evidence=_LOOKED_AT,
    )


def _of_refusal(context: Context, refused: Sequence[int], num_categories: int) -> Finding:
    return category_input.finding(
        context,
        f"the model fails on category {refused[0]}, of which the data has samples",
        causes=("cfg.class_count", "cfg.contract"),
        measured=f"no output for category {', '.join(map(str, refused[:8]))} of 0 .. {num_categories - 1}",
        expected=f"outputs for all {num_categories} categories, the data set's fact num_categories",
        action="build the model for num_categories (a fact: name it in the constructor)",
        evidence=_LOOKED_AT,
    )


def _of_deafness(context: Context, known: Sequence[int]) -> Finding:
    return category_input.finding(
        context,
        "the model takes 'category', but its outputs do not depend on it",
        severity="warning",
        causes=("cfg.contract", "model.structure", "model.init"),
        measured=f"the same bits for one cloud as category {', '.join(map(str, known))}",
        expected="different outputs for different categories",
        action="join the one-hot category to the features of the head; a branch that starts at zero may stay as it is",
        evidence=_LOOKED_AT,
    )


def _of_likeness(context: Context, pairs: Sequence[tuple[int, int]], num_categories: int) -> Finding:
    listed = ", ".join(f"{one} and {other}" for one, other in pairs[:8])
    return category_input.finding(
        context,
        f"the model cannot distinguish category {pairs[0][0]} from {pairs[0][1]}",
        causes=("cfg.class_count", "model.structure"),
        measured=f"the same bits for one cloud as category {listed}",
        expected=f"a one-hot of length {num_categories}, the data set's fact num_categories",
        action="build the model for num_categories (a fact: name it in the constructor), and clamp nothing",
        evidence=_LOOKED_AT,
    )


def _of_length(context: Context, num_categories: int) -> Finding:
    return category_input.finding(
        context,
        f"the model was built for more categories than the {num_categories} of the data",
        severity="warning",
        causes=("cfg.class_count", "cfg.contract"),
        measured=f"category {num_categories} has outputs of its own",
        expected=f"a one-hot of length {num_categories}, the data set's fact num_categories",
        action="build the model for num_categories (a fact: name it in the constructor)",
        evidence=_LOOKED_AT,
    )
