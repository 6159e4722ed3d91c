"""Figures of a user's own evaluation: of other batch sizes, orders and modes, and of a second call.

Every call but the second begins with what the function held before the check. Figures that two equal calls do not
repeat, such as times, are left out. A figure counts as another one if it is for most of three sets of weights: rounding
turns the answer for single samples, and that of others with other weights.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from sightline.contract.pytree import dense_leaves, tree_leaves
from sightline.doctor.attempts import LeftOutError, NotApplicableError
from sightline.doctor.evidence import measure
from sightline.doctor.evidence.data.source import Reading, open_source
from sightline.doctor.forms.form import Batch
from sightline.doctor.objects import preserve_generators
from sightline.doctor.score import Portion, Score, Scored, cut_batches, cut_loader, other_draws
from sightline.doctor.subject import Subject, count_samples
from sightline.instrument.random_state import seed_all

_NUM_SAMPLES, _MIN_SAMPLES = 48, 8
_SHARES = (0.0, 0.3, 1.0)
"""Shares of their spread by which weights are moved."""
_MIN_ALIKE, _NUM_OTHERS = 2, 4
_REL_TOL, _ABS_TOL = 1e-4, 1e-6
_MAX_MOVED, _MIN_GROUPS = 1e-3, 3
"""Share of the spread of outputs beyond which they have moved, and batches that show that each is a group."""


class Difference(NamedTuple):
    """Figure that two calls return differently, by its name; "" for the only one."""

    name: str
    first: float
    other: float

    @property
    def share(self) -> float:
        """Difference as a share of the larger of both."""
        return abs(self.first - self.other) / max(abs(self.first), abs(self.other), _ABS_TOL)


@dataclass(frozen=True)
class Scoring:
    """Score with the part of its samples that it is asked with, its first call, and the figures that repeat.

    `fixed` are those that do so with other random numbers, too.
    """

    score: Score
    subject: Subject
    portion: Portion
    first: Scored
    names: Sequence[str]
    fixed: Sequence[str]

    def copy(self, share: float = 0.0) -> nn.Module:
        """Copy the model, with its weights moved by a share of their spread."""
        copied = self.subject.copy("eval")
        return self.subject.jitter(copied, seed=int(10 * share), share=share) if share else copied

    def ask(self, loader: Any, share: float = 0.0, *, training: bool = False) -> Scored:
        """Call the score as if for the first time."""
        with self.score.preserved():
            return self.score.ask(self.copy(share), loader, training=training)

    def load(self) -> Any:
        """Make the loader of the first call: two batches, in order."""
        return self.portion.load(self.portion.num // 2)

    def compare(self, calls: Iterable[tuple[Scored, Scored]]) -> list[Difference]:
        """List the fixed figures that differ in most of these pairs of calls, as in the pair that is most unlike."""
        found = [each for one, other in calls for each in list_differences(one, other, self.fixed)]
        counts = Counter(each.name for each in found)
        largest = {each.name: each for each in sorted(found, key=lambda each: each.share)}
        return [largest[name] for name in self.fixed if counts[name] >= _MIN_ALIKE]


def list_differences(one: Scored, other: Scored, names: Iterable[str]) -> list[Difference]:
    """List the figures of two calls that differ by more than rounding."""
    both = [Difference(name, one.figures[name], other.figures.get(name, math.nan)) for name in names]
    return [each for each in both if not _is_equal(each.first, each.other)]


def _is_equal(one: float, other: float) -> bool:
    if math.isnan(one) or math.isnan(other):
        return math.isnan(one) == math.isnan(other)
    return math.isclose(one, other, rel_tol=_REL_TOL, abs_tol=_ABS_TOL)


@measure(passes=6)
def scoring(subject: Subject, score: Score | None, program_reading: Reading) -> Scoring:
    """Call the score with some samples of the evaluation, twice with equal random numbers and four times with others.

    Rounded figures of few samples may be equal by chance. Numbers of generators that the score seeds itself are others,
    too: they are drawn for samples in their order.
    """
    if score is None:
        raise NotApplicableError("no score was given", lacks="score")
    portion, calls = _cut(subject, score, program_reading), []
    if portion.num < _MIN_SAMPLES:
        raise LeftOutError("too few samples in evaluation")
    for seed in (0, 0, *range(1, _NUM_OTHERS + 1)):
        with score.preserved(), other_draws(seed) if seed else contextlib.nullcontext():
            calls.append(score.ask(subject.copy("eval"), portion.load(portion.num // 2), seed=seed))
    first, *others = calls
    names = [name for name in first.figures if not list_differences(first, others[0], [name])]
    if not names:
        raise LeftOutError("a score that is another in each of two equal calls")
    fixed = [name for name in names if not any(list_differences(first, other, [name]) for other in others[1:])]
    return Scoring(score, subject, portion, first, names, fixed)


def _cut(subject: Subject, score: Score, reading: Reading) -> Portion:
    """Read some samples of the evaluation, of all parts of it."""
    if isinstance(score.evaluation, list):
        return cut_batches(score.evaluation, most=_NUM_SAMPLES)
    source, samples = open_source(score.evaluation, subject.form, reading, lacks="evaluation"), []
    with preserve_generators(source.generators()):
        for index in source.take(source.spread(_NUM_SAMPLES), least=_MIN_SAMPLES):
            seed_all(index)
            samples.append(score.evaluation.dataset[index])
    return cut_loader(score.evaluation, source.spread(_NUM_SAMPLES)[: len(samples)], samples)


class Cuts(NamedTuple):
    """Figures that differ between two and four equal batches, and between these and batches of which the last is short.

    `sizes` are those of the two and of the four batches. With `lacks_last` the model is not called with the last one.
    `excuse` says why figures of other batches say nothing of the user's own, "" where they do.
    """

    sizes: tuple[int, int]
    equal: list[Difference]
    short: list[Difference]
    lacks_last: bool
    excuse: str = ""


def _reads_a_part(one: Scored, other: Scored) -> bool:
    """Return True if the model is called with fewer samples, although not for want of the last batch alone."""
    counts = [(each.num_rows, len(each.modes)) for each in (one, other) if each.modes]
    if len(counts) < 2 or counts[0][0] == counts[1][0]:
        return False
    batches = 2 - counts[0][1], 4 - counts[1][1]
    return batches != (1, 1) and counts[0][0] * counts[1][1] != counts[1][0] * counts[0][1]


@measure(passes=8)
def score_cuts(scoring: Scoring) -> Cuts:
    """Call the score with the same samples in other batches."""
    portion, sizes = scoring.portion, (scoring.portion.num // 2, scoring.portion.num // 4)
    if not scoring.fixed:
        raise LeftOutError("a score that depends on random numbers")
    if not portion.is_cut:
        raise NotApplicableError("an evaluation of one batch")
    halves, quarters, uneven = (
        [scoring.ask(portion.load(size), share) for share in _SHARES] if size else []
        for size in (*sizes, (portion.num // 2 - 1) * portion.ends_short)
    )
    if any(_reads_a_part(*calls) for calls in zip(halves, quarters, strict=True)):
        raise LeftOutError("a score of the first batches alone")
    lacks_last = all(
        each.num_rows == portion.num - size
        for size, calls in zip(sizes, (halves, quarters), strict=True)
        for each in calls
    )
    equal, short = (scoring.compare(zip(halves, calls, strict=False)) for calls in (quarters, uneven))
    cuts = Cuts(sizes, equal, short, lacks_last)
    return cuts._replace(excuse=_find_excuse(scoring, halves, quarters)) if equal or short else cuts


def _find_excuse(scoring: Scoring, halves: Sequence[Scored], quarters: Sequence[Scored]) -> str:
    """Say why figures differ between batches that the user does not make, although the score is right for his own."""
    if scoring.portion.size == 1:
        return "an evaluation of single samples, each of which is scored"
    if any(map(_are_outputs_of_neighbours, halves, quarters)):
        return "a model whose outputs depend on the other samples of a batch"
    if _are_groups(scoring.subject.evaluation):
        return "batches that are groups, of one query or one right candidate each"
    if not any(True for batch in scoring.subject.batches[:1] for _ in tree_leaves(batch.target)):
        alone = [scoring.ask(scoring.portion.load(1), share) for share in _SHARES]
        if not any(list_differences(alone[0], each, scoring.fixed) for each in alone[1:]):
            return "a score that compares the samples of a batch with one another"
    return ""


def _are_outputs_of_neighbours(one: Scored, other: Scored) -> bool:
    """Return True if a model returns other numbers for the same samples in other batches.

    Of outputs of several lengths, as padding gives them, the common part is compared; each column is sorted, since a
    score may call the model twice with a batch.
    """
    calls = [*one.outputs, *other.outputs]
    if not calls or len({each.ndim for each in calls}) != 1 or not all(each.is_floating_point() for each in calls):
        return False
    common = slice(None), *(slice(min(sizes)) for sizes in zip(*(each.shape[1:] for each in calls), strict=True))
    rows = [torch.cat([each[common] for each in scored.outputs]).sort(0).values for scored in (one, other)]
    if rows[0].shape != rows[1].shape or not rows[0].numel():
        return False
    first, second = (each.double() for each in rows)
    return float((first - second).abs().max()) > _MAX_MOVED * float(first.std() + 1e-9)


def _are_groups(batches: Sequence[Batch]) -> bool:
    """Return True for batches of one subject each: an input is the same in all rows, or one row alone is right.

    Classes in the order of a folder are targets, and no such inputs.
    """
    if len(batches) < _MIN_GROUPS or min(map(count_samples, batches)) < 2:
        return False
    inputs = [dict(dense_leaves(batch.inputs)) for batch in batches]
    for name in inputs[0]:
        leaves = [each[name] for each in inputs if name in each]
        is_one = all(torch.equal(leaf, leaf[:1].expand_as(leaf)) for leaf in leaves)
        is_varied = any(
            leaf[:1].shape != leaves[0][:1].shape or not torch.equal(leaf[:1], leaves[0][:1]) for leaf in leaves
        )
        if len(leaves) == len(batches) and is_one and is_varied:
            return True
    labels = [[t for _, t in dense_leaves(batch.target)] for batch in batches]
    return all(
        len(each) == 1
        and len(each[0]) > 2
        and each[0].ndim == 1
        and bool((each[0] == 1).sum() == 1)
        and bool(((each[0] == 0) | (each[0] == 1)).all())
        for each in labels
    )


@measure(passes=3)
def score_orders(scoring: Scoring, score_cuts: Cuts) -> list[Difference]:
    """Call the score with the same samples in the opposite order."""
    if score_cuts.equal and scoring.portion.size != 1:
        raise LeftOutError("a score that depends on its batches")
    loaders = scoring.load(), scoring.portion.load(scoring.portion.num // 2, is_reversed=True)
    return scoring.compare(tuple(scoring.ask(loader, share) for loader in loaders) for share in _SHARES)  # type: ignore[misc]


class Modes(NamedTuple):
    """Figures that differ between a model that was in evaluation mode and one in training mode, and what is changed.

    `trains` is true for a score that calls its model in training mode although it was in the other one.
    """

    differences: list[Difference]
    changed: list[str]
    trains: bool


@measure(passes=2)
def score_modes(scoring: Scoring) -> Modes:
    """Call the score with a model that is in training mode, as a loop leaves it."""
    calls = [scoring.ask(scoring.load(), share, training=True) for share in _SHARES[:2]]
    pairs = zip((scoring.first, scoring.ask(scoring.load(), _SHARES[1])), calls, strict=True)
    found = {each.name: each for one, other in pairs for each in list_differences(one, other, scoring.names)}
    changed = [name for name in calls[0].changed if name not in scoring.first.changed]
    return Modes([*found.values()], changed, any(scoring.first.modes))


@measure(passes=2)
def score_again(scoring: Scoring) -> list[Difference]:
    """Call the score with the model, with another one, and with the first again."""
    with scoring.score.preserved():
        calls = [scoring.score.ask(scoring.copy(share), scoring.load()) for share in (0.0, _SHARES[-1], 0.0)]
    return list_differences(calls[0], calls[2], scoring.names)
