"""Models that ignore their category input, or that were built for another number of categories than the data.

The outputs for one cloud in evaluation mode are compared, bit for bit, between categories.
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

_MAX_SECONDS = 0.1  # CPU time of this thread, at the start of a training
_MAX_SECONDS_OF_CHECK = 5.0
_EVIDENCE = {"looked_at": "one training cloud in evaluation mode, on the CPU"}
_CPU = torch.device("cpu")  # an index out of range makes a GPU unusable for the rest of the process


@check("G3", "category-input", "preflight", config_path="model")
def category_input(context: Context) -> list[Finding]:
    """Each category has different outputs, and indices beyond the categories have no distinct outputs.

    Finds: Models that ignore their category input, or that were built for another number of categories than the data.
    """
    table, model = parts_by_category(context.built.data.facts), context.built.job.model
    rehearsal = context.dry_run
    if table is None or len(table) < 2 or not rehearsal.is_sound or "category" not in rehearsal.batch:
        return []
    if "category" not in inspect.signature(model.forward).parameters:
        return [_finding_no_category(context)] if context.is_thorough else []
    outputs = _CategoryOutputs(context, len(table))
    return list(_output_findings(context, outputs, len(table)))


class _CategoryOutputs:
    """Outputs of a copy of the model on the CPU for one training cloud, per category, within a time limit."""

    def __init__(self, context: Context, num_categories: int) -> None:
        job = context.built.job
        self.outputs: dict[int, Tensor | None] = {}
        self._model = isolated_copy(job.model).to(_CPU).eval()
        self._task = job.task
        self._batch = read_batch(job, step_keys(job, step=0)[:1], _CPU)
        max_seconds = _MAX_SECONDS_OF_CHECK if context.is_thorough else _MAX_SECONDS
        start_seconds = compute_seconds()
        for category in _order_categories(num_categories):
            if len(self.outputs) > 1 and compute_seconds() - start_seconds > max_seconds:
                break
            self.outputs[category] = self._run(category)

    def _run(self, category: int) -> Tensor | None:
        """Return the probabilities that the task predicts; None if the model fails on this category."""
        batch = {**self._batch, "category": torch.full_like(self._batch["category"], category)}
        try:
            with torch.no_grad():
                predictions = self._task.predict(self._model, batch)
        except (IndexError, ValueError, RuntimeError):
            return None
        probabilities = predictions.get("probabilities")
        return probabilities if isinstance(probabilities, Tensor) else None

    def are_alike(self, one: int, other: int) -> bool:
        """Return True if both categories have outputs, and these are bit-identical."""
        output, other_output = self.outputs.get(one), self.outputs.get(other)
        return output is not None and other_output is not None and torch.equal(output, other_output)


def _order_categories(num_categories: int) -> list[int]:
    """Return the categories in the order of testing: first and last two, two indices beyond, then all others."""
    ends = [0, 1, num_categories - 1, num_categories - 2, num_categories, num_categories + 1]
    return list(dict.fromkeys([*ends, *range(num_categories)]))


def _output_findings(context: Context, category_outputs: _CategoryOutputs, num_categories: int) -> Iterator[Finding]:
    """Yield a finding if outputs are missing, equal, or distinct beyond the data's categories."""
    tested = [category for category in range(num_categories) if category in category_outputs.outputs]
    refused = [category for category in tested if category_outputs.outputs[category] is None]
    if len(refused) == len(tested):
        return  # the failure is due to the single cloud or the device, not the category
    pairs = [
        (one, other) for one in tested for other in tested if one < other and category_outputs.are_alike(one, other)
    ]
    if refused:
        yield _finding_refused(context, refused, num_categories)
    elif len(pairs) == len(tested) * (len(tested) - 1) // 2:
        yield _finding_ignored(context, tested)
    elif pairs:
        yield _finding_equal(context, pairs, num_categories)
    else:
        beyond = category_outputs.outputs.get(num_categories)
        is_same = category_outputs.are_alike(num_categories, num_categories + 1)
        is_clamped = any(category_outputs.are_alike(num_categories, category) for category in tested)
        if beyond is not None and num_categories + 1 in category_outputs.outputs and not is_same and not is_clamped:
            yield _finding_length(context, num_categories)


def _finding_no_category(context: Context) -> Finding:
    return category_input.finding(
        context,
        f"model '{context.config.model.name}' does not take the category of an object",
        severity="note",
        causes=("cfg.contract",),
        measured="its forward takes no 'category'",
        expected="nothing; some published part models take the one-hot category and others do not",
        action="compare its results with those of models without the category too, or choose a model that takes it",
        evidence=_EVIDENCE,
    )


def _finding_refused(context: Context, refused: Sequence[int], num_categories: int) -> Finding:
    return category_input.finding(
        context,
        f"the model fails on category {refused[0]}, which occurs in the data",
        causes=("cfg.class_count", "cfg.contract"),
        measured=f"no output for category {', '.join(map(str, refused[:8]))} of 0 .. {num_categories - 1}",
        expected=f"outputs for all {num_categories} categories, the data set's fact num_categories",
        action="build the model for num_categories (a fact: name it in the constructor)",
        evidence=_EVIDENCE,
    )


def _finding_ignored(context: Context, categories: Sequence[int]) -> Finding:
    return category_input.finding(
        context,
        "the model takes 'category', but its outputs do not depend on it",
        severity="warning",
        causes=("cfg.contract", "model.structure", "model.init"),
        measured=f"the same bits for one cloud as category {', '.join(map(str, categories))}",
        expected="different outputs for different categories",
        action="join the one-hot category to the features of the head; a zero-initialised branch needs no change",
        evidence=_EVIDENCE,
    )


def _finding_equal(context: Context, pairs: Sequence[tuple[int, int]], num_categories: int) -> Finding:
    listed = ", ".join(f"{one} and {other}" for one, other in pairs[:8])
    return category_input.finding(
        context,
        f"the model cannot distinguish category {pairs[0][0]} from {pairs[0][1]}",
        causes=("cfg.class_count", "model.structure"),
        measured=f"the same bits for one cloud as category {listed}",
        expected=f"a one-hot of length {num_categories}, the data set's fact num_categories",
        action="build the model for num_categories (a fact: name it in the constructor), and do not clamp the category",
        evidence=_EVIDENCE,
    )


def _finding_length(context: Context, num_categories: int) -> Finding:
    return category_input.finding(
        context,
        f"the model was built for more categories than the {num_categories} of the data",
        severity="warning",
        causes=("cfg.class_count", "cfg.contract"),
        measured=f"category {num_categories} has distinct outputs",
        expected=f"a one-hot of length {num_categories}, the data set's fact num_categories",
        action="build the model for num_categories (a fact: name it in the constructor)",
        evidence=_EVIDENCE,
    )
