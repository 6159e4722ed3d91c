"""Rules of a user's own evaluation: its figures are those of the samples and the model, and of nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from sightline.contract.errors import join_some
from sightline.doctor.attempts import NotApplicableError
from sightline.doctor.evidence.scores import Cuts, Difference, Modes, Scoring
from sightline.doctor.finding import Fault
from sightline.doctor.rules import rule


def _describe(differences: Sequence[Difference], first: str, other: str) -> str:
    """Describe differences: `f1 0.5 in two batches, 0.4 in four`."""
    texts = [f"{each.name or 'the score'} {each.first:.4g} {first}, {each.other:.4g} {other}" for each in differences]
    return join_some(texts, most=3, separator="; ")


def _name(differences: Sequence[Difference]) -> str:
    name = differences[0].name
    return f"the score '{name}'" if name else "the score"


@rule(
    "dropped-remainder",
    "warning",
    "eval.aggregation eval.protocol",
    holds="a score of every batch that its loader gives",
    do="let the loop of the evaluation reach its last batch",
)
def last_batch_is_scored(scoring: Scoring, score_cuts: Cuts) -> Fault | None:
    """Count the samples that the model is called with, in two batches and in four."""
    if not score_cuts.lacks_last:
        return None
    num, sizes = scoring.portion.num, score_cuts.sizes
    return Fault(
        "the score leaves out the last batch",
        measured=f"of {num} samples the model is called with {num - sizes[0]} in batches of {sizes[0]}, "
        f"{num - sizes[1]} in batches of {sizes[1]}",
        where=scoring.score.where,
    )


@rule(
    "per-batch-metric",
    "error",
    "eval.aggregation eval.protocol",
    holds="the same score for the same samples in batches of any size",
    do="collect the predictions and targets of all batches, or their counts, and compute the score once at the end",
)
def score_of_batches(scoring: Scoring, score_cuts: Cuts) -> Iterator[Fault]:
    """Compare scores of the same samples in two and four equal batches, and in batches of which the last is short."""
    (half, quarter), where = score_cuts.sizes, scoring.score.where
    if score_cuts.lacks_last:
        return
    if score_cuts.excuse:
        raise NotApplicableError(score_cuts.excuse)
    sums = [each for each in score_cuts.equal if _is_sum(each)]
    others = [each for each in score_cuts.equal if each not in sums]
    found = others or sums
    if found:
        summary = "is computed in each batch" if others else "is a sum over batches, not a mean over samples"
        yield Fault(
            f"{_name(found)} {summary}: it depends on the size of the batches",
            severity="error" if others else "warning",
            measured=_describe(found, f"in batches of {half}", f"in batches of {quarter}")
            + f", of the same {scoring.portion.num} samples",
            action="" if others else "divide by the number of batches, or sum over samples and divide by their number",
            where=where,
        )
    elif score_cuts.short:
        yield Fault(
            f"{_name(score_cuts.short)} is a mean of the means of batches, and the last batch is smaller than others",
            severity="warning",
            measured=_describe(score_cuts.short, "in equal batches", "with a short last batch")
            + f", of the same {scoring.portion.num} samples",
            action="weigh each batch by its number of samples, or compute the score once of all",
            where=where,
        )


def _is_sum(difference: Difference) -> bool:
    return math.isclose(2 * difference.first, difference.other, rel_tol=1e-3)


@rule(
    "score-order",
    "warning",
    "eval.aggregation eval.protocol",
    holds="the same score for the same samples in any order",
    do="take predictions and targets from the same batch, not targets in the order in which the data set stores them",
)
def score_in_order(scoring: Scoring, score_orders: list[Difference]) -> Fault | None:
    """Compare scores of the same samples in opposite orders."""
    if not score_orders:
        return None
    return Fault(
        f"{_name(score_orders)} depends on the order of the samples",
        measured=_describe(score_orders, "in the order of the data set", "in the opposite order"),
        where=scoring.score.where,
    )


@rule(
    "score-mode",
    "warning",
    "eval.mode model.norm_mode",
    holds="a score of the model in evaluation mode, whichever mode it was in",
    do="call model.eval() where the score begins, and model.train() before training goes on",
)
def score_of_training_mode(scoring: Scoring, score_modes: Modes) -> Fault | None:
    """Compare scores of a model that was in training mode, as after an epoch, with those of one in evaluation mode."""
    if score_modes.trains:
        return Fault(
            "the score puts the model into training mode",
            measured="passes with training=True, by a model that was in evaluation mode",
            severity="error",
            where=scoring.score.where,
        )
    found, changed = score_modes.differences, score_modes.changed
    if not found and not changed:
        return None
    measured = [_describe(found, "after model.eval()", "after model.train()")] if found else []
    measured += [f"its passes change {join_some(changed, most=3)}"] if changed else []
    return Fault(
        "the score is that of a model in training mode, unless its caller has called model.eval()",
        measured="; ".join(measured),
        where=scoring.score.where,
    )


@rule(
    "score-state",
    "error",
    "eval.aggregation",
    holds="a score that does not depend on what was scored before",
    do="make the counts or lists anew at each call, or reset() the metric at its start",
)
def score_of_earlier_calls(scoring: Scoring, score_again: list[Difference]) -> Fault | None:
    """Compare the first score of a model with the one after another model was scored."""
    if not score_again:
        return None
    return Fault(
        f"{_name(score_again)} holds samples of earlier calls",
        measured=_describe(score_again, "at first", "after another model was scored"),
        where=scoring.score.where,
    )


@rule(
    "evaluation-state",
    "error",
    "eval.mode model.norm_mode",
    holds="an evaluation leaves weights, buffers and gradients of the model as they are",
    do="call model.eval() first, and neither backward() nor step() in an evaluation",
)
def score_leaves_model(scoring: Scoring, score_modes: Modes) -> Fault | None:
    """Name what a score changes of a model that is in evaluation mode."""
    changed = scoring.first.changed
    if not changed or score_modes.trains:
        return None
    return Fault(
        f"the score changes {join_some(changed, most=3)}",
        measured=f"{len(changed)} tensors are others after it, of a model in evaluation mode",
        where=scoring.score.where,
    )
