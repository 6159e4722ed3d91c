"""Losses of policies: each is evaluated once, recorded, and counted for the search that asks for it."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from typing_extensions import TypeIs

from sightline.compress.policy import Policy, policy_from_dict, policy_to_dict
from sightline.errors import DataError, RunError
from sightline.runs.run_directory import RunDirectory
from sightline.runs.run_documents import read_lines

__all__ = ["EvaluationCache", "PolicyEvaluation", "open_record"]


class PolicyEvaluation(NamedTuple):
    """A policy's loss, and how long its evaluation took."""

    policy: Policy
    loss: float
    seconds: float


Record: TypeAlias = Callable[[PolicyEvaluation], None]


class EvaluationCache:
    """`loss_of` with a memory that all searches of a problem share; `known` is what a record holds already.

    `record` is called with each new evaluation before its loss is used, so that an interrupted search repeats none.
    """

    def __init__(
        self,
        loss_of: Callable[[Policy], float],
        *,
        known: Iterable[PolicyEvaluation] = (),
        record: Record | None = None,
    ) -> None:
        self._loss_of = loss_of
        self._record = record
        self._known = {_key(each.policy): each for each in known}
        self.num_new = 0
        self.new_seconds = 0.0

    def get(self, policy: Policy) -> PolicyEvaluation:
        """Raises RunError, naming the policy, for a loss that is not finite."""
        key = _key(policy)
        if key not in self._known:
            began = time.perf_counter()
            loss = float(self._loss_of(policy))
            if not math.isfinite(loss):
                shown = ", ".join(f"{name}: {choice}" for name, choice in list(policy.items())[:4])
                raise RunError(f"the loss of a policy is {loss} ({shown}, ...); look for non-finite weights or outputs")
            evaluated = PolicyEvaluation(dict(policy), loss, time.perf_counter() - began)
            if self._record is not None:
                self._record(evaluated)
            self._known[key] = evaluated
            self.num_new += 1
            self.new_seconds += evaluated.seconds
        return self._known[key]

    @property
    def all(self) -> tuple[PolicyEvaluation, ...]:
        """Every evaluation, known ones first."""
        return tuple(self._known.values())

    @property
    def mean_seconds(self) -> float:
        """Of one evaluation, over all so far; 0 before the first."""
        return sum(each.seconds for each in self._known.values()) / max(1, len(self._known))


def _key(policy: Policy) -> frozenset[Any]:
    return frozenset(policy.items())


def open_record(path: Path, *, subject: str, names: Sequence[str]) -> tuple[list[PolicyEvaluation], Record]:
    """What a JSON-lines file of evaluations holds, and what appends to it; a last line cut off by a kill is dropped.

    `subject` states what was evaluated: weights, data, their amount. Raises DataError, naming the line, for another.
    """
    folder = RunDirectory(path.parent, is_writer=True)
    lines = read_lines(path) if path.exists() else []
    known = []
    for number, line in enumerate(lines, start=1):
        if line.get("subject") != subject:
            raise DataError(
                f"{path}:{number}: is of '{line.get('subject')}', this search evaluates '{subject}'; give another --out"
            )
        known.append(_evaluated(line, names, f"{path}:{number}"))
    if path.exists():
        folder.write_text(path.name, "".join(json.dumps(line) + "\n" for line in lines))

    def append(each: PolicyEvaluation) -> None:
        line = {"subject": subject, **each._asdict(), "policy": policy_to_dict(each.policy)}
        folder.append_line(path.name, line)

    return known, append


def _is_finite(value: object) -> TypeIs[float]:
    return type(value) in (int, float) and -sys.float_info.max <= value <= sys.float_info.max  # type: ignore[operator]


def _evaluated(line: Mapping[str, Any], names: Sequence[str], place: str) -> PolicyEvaluation:
    loss, seconds, policy = line.get("loss"), line.get("seconds"), line.get("policy")
    if not (_is_finite(loss) and _is_finite(seconds) and seconds >= 0 and isinstance(policy, dict)):
        raise DataError(
            f"{place}: has the loss {str(loss)[:40]} and the seconds {str(seconds)[:40]}, where an evaluation records "
            "finite numbers and its policy; remove the line"
        )
    return PolicyEvaluation(policy_from_dict(policy, names, origin=place), float(loss), float(seconds))
