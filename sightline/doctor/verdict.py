"""Verdict of an examination in three lines: what held, what was not judged, and what a caller can do about it.

Which relation was not judged, and why, is kept for whoever asks for all of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from sightline.contract.errors import UserError, join_some
from sightline.doctor.examine import Examination, Judgement

_MAX_GAPS, _MAX_REASONS = 3, 2
_BUDGET_STEP_S = 5


class Remedy(NamedTuple):
    """What is judged if an argument is given, in words of the caller, and how it is given."""

    topic: str
    argument: str


CHECK_REMEDIES = {
    "step": Remedy(
        "what needs your loop's call of the model",
        "step=step, your function of one batch that returns its loss",
    ),
    "optimizer": Remedy("the optimizer", "optimizer=optimizer"),
    "evaluation": Remedy("the evaluation data", "evaluation=test_loader"),
    "score": Remedy("the score of your evaluation", "score=score, your function score(model, loader)"),
    "loader": Remedy("how samples are read", "a DataLoader in place of its batches"),
}
"""Arguments of `sightline.check` that measurements lack, by their names; in the order in which a verdict lists them."""
WATCH_REMEDIES = {
    "check": Remedy("the model before its first step", "step=step, loader=train_loader"),
    "reads": Remedy("how samples are read", "loader=train_loader"),
}
"""The same of `sightline.watch`."""
LOOP = Remedy("the steps of your loop", "to judge the loop, put `with sightline.watch(model):` around it")
"""What no check before the first step sees, and the line that judges it."""


@dataclass(frozen=True)
class Verdict:
    """Three lines, none if nothing was judged or left out; relations that were judged, and others with the reason.

    A relation is the code of a rule with what holds: a code may have several.
    """

    lines: Sequence[str] = ()
    judged: Sequence[str] = ()
    not_judged: Mapping[str, str] = field(default_factory=dict)


def write_verdict(
    examination: Examination,
    *,
    remedies: Mapping[str, Remedy] = CHECK_REMEDIES,
    lacks: Iterable[str] = (),
    gaps: Sequence[str] = (),
    num_seen: int = 0,
    remark: str = "",
    loop: Remedy | None = None,
    budget_s: float | None = None,
    budget: str = "budget_s=",
) -> Verdict:
    """Write the verdict of an examination.

    `remedies` are what the caller can give, `lacks` the names of those missing beside what the examination lacked.
    `gaps` are sentences on what was left out, `remark` one on the whole. `num_seen` relations were seen to be broken
    while a loop ran; before one, `loop` says what judges its steps. `budget_s` is the processor time that the caller
    allowed, if he can allow more, by `budget`.
    """
    missing = [each for each in examination.judgements if each.outcome in ("apply", "left", "failed", "cost")]
    lacking = {each.missing.lacks for each in missing if each.missing is not None} | {*lacks}
    wanted = [remedy for name, remedy in remedies.items() if name in lacking]
    unlike = sum(each.outcome == "apply" and not _is_in(each, remedies) for each in missing)
    left = Counter(each.reason for each in missing if each.outcome == "left" and not _is_in(each, remedies))
    late = [each for each in missing if each.outcome == "cost"]
    failed = Counter(_write_failure(each) for each in missing if each.outcome == "failed")
    num_ours = sum(each.outcome == "failed" and _is_ours(each) for each in missing)
    is_unable = any(each.rule.code == "first-step" for each in examination.judgements if each.outcome == "broken")
    declared = dict.fromkeys(each.rule.code for each in examination.judgements if each.outcome == "declared")

    topics = [
        *((loop.topic,) if loop is not None else ()),
        *(remedy.topic for remedy in wanted),
        *((join_some([*gaps], most=_MAX_GAPS),) if gaps else ()),
        *_describe_left(left),
        *((f"{_count(len(late))} for want of time",) if late else ()),
        *(f"{_count(number)} that ended in {reason}" for reason, number in failed.most_common(1)),
        *((f"{_count(sum(failed.values()) - max(failed.values()))} that ended otherwise",) if len(failed) > 1 else ()),
        *((f"what is declared ({join_some([*declared], most=_MAX_GAPS)})",) if declared else ()),
        *((f"{_count(unlike)} of other kinds of programs",) if unlike else ()),
    ]
    actions = [remedy.argument for remedy in wanted]
    if late and budget_s is not None:
        actions.append(f"{budget}{_round_budget(late, budget_s)}")
    steps = [f"to judge more, give {', '.join(actions)}"] if actions else []
    if is_unable and failed:
        steps = ["mend the first step, and check again"]
    elif num_ours:
        steps.append("errors of relations are faults of sightline: please report them")
    if loop is not None and not is_unable:
        steps.append(loop.argument)
    held, broken = examination.count("held"), examination.count("broken") + num_seen
    counts = f"of {held + broken} relations that could be asked, {held} held and {broken} did not"
    lines = [
        f"verdict: {'; '.join(filter(None, [counts if examination.judgements else 'nothing was judged', remark]))}",
        f"  not judged: {', '.join(topics) or 'nothing'}",
        f"  {'; '.join(steps) or 'no argument would judge more'}",
    ]
    judged = {each.rule.relation for each in examination.judgements if each.outcome in ("held", "broken")}
    reasons = {each.rule.relation: each.reason for each in examination.judgements if each.rule.relation not in judged}
    return Verdict(lines if examination.judgements or gaps else (), sorted(judged), dict(sorted(reasons.items())))


def describe_relations(judged: Iterable[str], not_judged: Mapping[str, str]) -> list[str]:
    """List the relations that were judged, one a line, then each other one with the reason."""
    return [
        *(f"  judged: {relation}" for relation in judged),
        *(f"  not judged: {relation} ({reason})" for relation, reason in not_judged.items()),
    ]


def _describe_left(left: Counter[str]) -> Iterator[str]:
    """Say how many relations were left out, and why: the reasons of most of them."""
    reasons = [reason for reason, _ in left.most_common()]
    if reasons:
        more = [f"and {len(reasons) - _MAX_REASONS} other reasons"] if len(reasons) > _MAX_REASONS + 1 else []
        shown = reasons if not more else [*reasons[:_MAX_REASONS], *more]
        yield f"{_count(left.total())} left out ({'; '.join(shown)})"


def add_hint(lines: Sequence[str], call: str) -> list[str]:
    """Add to the last line of a verdict by which call it lists all relations."""
    return [*lines[:-1], *(f"{line} ({call} lists all relations)" for line in lines[-1:])]


def _write_failure(judgement: Judgement) -> str:
    """Write what a relation ended in, and at which line, if that is the program's own."""
    line = _get_line(judgement)
    return f"{judgement.reason.rstrip('.')}{'' if line is None else f' (your line {Path(line[0]).name}:{line[1]})'}"


def _is_ours(judgement: Judgement) -> bool:
    """Return True for an error of this package: neither of the program's own code, nor of what it returns."""
    cause = None if judgement.missing is None else judgement.missing.__cause__
    return _get_line(judgement) is None and not isinstance(cause, UserError)


def _get_line(judgement: Judgement) -> tuple[str, int] | None:
    return None if judgement.missing is None else judgement.missing.line


def _is_in(judgement: Judgement, remedies: Mapping[str, Remedy]) -> bool:
    return judgement.missing is not None and judgement.missing.lacks in remedies


def _count(number: int) -> str:
    return f"{number} relation{'s' * (number != 1)}"


def _round_budget(late: Sequence[Judgement], budget_s: float) -> int:
    """Return seconds that would have afforded what was too slow, each measurement once, rounded up."""
    costs = {id(each.missing): each.missing.cost_s for each in late if each.missing is not None}
    return _BUDGET_STEP_S * int((budget_s + sum(costs.values())) / _BUDGET_STEP_S + 1)
