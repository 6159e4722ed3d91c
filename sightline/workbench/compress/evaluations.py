"""Losses of policies: each policy is evaluated once, and recorded in a file."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from typing_extensions import TypeIs

from sightline.compression.policy import Policy, policy_from_dict, policy_to_dict
from sightline.contract.errors import DataError, RunError
from sightline.runs.run_directory import RunDirectory
from sightline.runs.run_documents import read_lines


class PolicyEvaluation(NamedTuple):
    """Loss of a policy, and the duration of its evaluation."""

    policy: Policy
    loss: float
    seconds: float


Record: TypeAlias = Callable[[PolicyEvaluation], None]


class EvaluationCache:
    """Cache of `loss_of` that all searches of a problem share; `known` are the evaluations of a record.

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
        self._known = {_key(evaluation.policy): evaluation for evaluation in known}
        self.num_new = 0
        self.new_seconds = 0.0

    def get(self, policy: Policy) -> PolicyEvaluation:
        """Return the evaluation of a policy. Raises RunError, with the policy, for a loss that is not finite."""
        key = _key(policy)
        if key not in self._known:
            began = time.perf_counter()
            loss = float(self._loss_of(policy))
            if not math.isfinite(loss):
                choices = ", ".join(f"{name}: {choice}" for name, choice in list(policy.items())[:4])
                raise RunError(
                    f"the loss of a policy is {loss} ({choices}, ...); look for non-finite weights or outputs"
                )
            evaluated = PolicyEvaluation(dict(policy), loss, time.perf_counter() - began)
            if self._record is not None:
                self._record(evaluated)
            self._known[key] = evaluated
            self.num_new += 1
            self.new_seconds += evaluated.seconds
        return self._known[key]

    @property
    def all(self) -> tuple[PolicyEvaluation, ...]:
        """All evaluations, those of the record first."""
        return tuple(self._known.values())

    @property
    def mean_seconds(self) -> float:
        """Mean seconds of an evaluation so far; 0 before the first."""
        return sum(evaluation.seconds for evaluation in self._known.values()) / max(1, len(self._known))


def _key(policy: Policy) -> frozenset[Any]:
    return frozenset(policy.items())


def open_record(path: Path, *, subject: str, names: Sequence[str]) -> tuple[list[PolicyEvaluation], Record]:
    """Read a JSON-lines file of evaluations; return them, and a function that appends to the file.

    A truncated last line is dropped. `subject` identifies weights and data. Raises DataError, with the line, for
    another subject.
    """
    folder = RunDirectory(path.parent, is_writer=True)
    lines = read_lines(path) if path.exists() else []
    evaluations = []
    for number, line in enumerate(lines, start=1):
        if line.get("subject") != subject:
            raise DataError(
                f"{path}:{number}: contains losses of '{line.get('subject')}', this search evaluates '{subject}'; "
                "give another --out"
            )
        evaluations.append(_parse_evaluation(line, names, f"{path}:{number}"))
    if path.exists():
        folder.write_text(path.name, "".join(json.dumps(line) + "\n" for line in lines))

    def append(evaluation: PolicyEvaluation) -> None:
        line = {"subject": subject, **evaluation._asdict(), "policy": policy_to_dict(evaluation.policy)}
        folder.append_line(path.name, line)

    return evaluations, append


def _is_finite(value: object) -> TypeIs[float]:
    return type(value) in (int, float) and -sys.float_info.max <= value <= sys.float_info.max  # type: ignore[operator]


def _parse_evaluation(line: Mapping[str, Any], names: Sequence[str], location: str) -> PolicyEvaluation:
    loss, seconds, policy = line.get("loss"), line.get("seconds"), line.get("policy")
    if not (_is_finite(loss) and _is_finite(seconds) and seconds >= 0 and isinstance(policy, dict)):
        raise DataError(
            f"{location}: has the loss {str(loss)[:40]} and the seconds {str(seconds)[:40]}, where an evaluation "
            "records finite numbers and its policy; remove the line"
        )
    return PolicyEvaluation(policy_from_dict(policy, names, origin=location), float(loss), float(seconds))
