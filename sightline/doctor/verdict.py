"""Verdict of an examination in three lines: what held, what was not judged, and what a caller can do about it.

Which relation was not judged, and why, is kept by the code of its rule, for whoever asks for all of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sightline.contract.errors import join_some
from sightline.doctor.examine import Examination, Judgement

_MAX_GAPS = 3
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
    """Three lines, none if nothing was judged or left out; codes that were judged, and others with the reason."""

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
    missing = [each for each in examination.judgements if each.outcome in ("apply", "failed", "cost")]
    lacking = {each.missing.lacks for each in missing if each.missing is not None} | {*lacks}
    wanted = [remedy for name, remedy in remedies.items() if name in lacking]
    unlike = sum(each.outcome == "apply" and not _is_in(each, remedies) for each in missing)
    late = [each for each in missing if each.outcome == "cost"]
    failed = Counter(each.reason for each in missing if each.outcome == "failed")
    is_unable = any(each.rule.code == "first-step" for each in examination.judgements if each.outcome == "broken")
    declared = dict.fromkeys(each.rule.code for each in examination.judgements if each.outcome == "declared")

    topics = [
        *((loop.topic,) if loop is not None else ()),
        *(remedy.topic for remedy in wanted),
        *((join_some([*gaps], most=_MAX_GAPS),) if gaps else ()),
        *((f"{_count(len(late))} for want of time",) if late else ()),
        *(f"{_count(number)} that ended in {reason.rstrip('.')}" for reason, number in failed.most_common(1)),
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
    elif failed:
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
    judged = dict.fromkeys(each.rule.code for each in examination.judgements if each.outcome in ("held", "broken"))
    reasons = {each.rule.code: each.reason for each in examination.judgements if each.rule.code not in judged}
    return Verdict(lines if examination.judgements or gaps else (), sorted(judged), dict(sorted(reasons.items())))


def describe_relations(judged: Iterable[str], not_judged: Mapping[str, str]) -> list[str]:
    """List the codes that were judged, in one line, then each other one with the reason."""
    return [
        f"  judged: {', '.join(judged) or 'nothing'}",
        *(f"  {code} was not judged: {reason}" for code, reason in not_judged.items()),
    ]


def add_hint(lines: Sequence[str], call: str) -> list[str]:
    """Add to the last line of a verdict by which call it lists all relations."""
    return [*lines[:-1], *(f"{line} ({call} lists all relations)" for line in lines[-1:])]


def _is_in(judgement: Judgement, remedies: Mapping[str, Remedy]) -> bool:
    return judgement.missing is not None and judgement.missing.lacks in remedies


def _count(number: int) -> str:
    return f"{number} relation{'s' * (number != 1)}"


def _round_budget(late: Sequence[Judgement], budget_s: float) -> int:
    """Return seconds that would have afforded what was too slow, each measurement once, rounded up."""
    costs = {id(each.missing): each.missing.cost_s for each in late if each.missing is not None}
    return _BUDGET_STEP_S * int((budget_s + sum(costs.values())) / _BUDGET_STEP_S + 1)
