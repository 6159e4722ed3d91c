"""Records of what each process of a loop does, and the rules that compare them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sightline.doctor.rules.events import report
from sightline.doctor.watch.loop import Found

_NUM_SAME = 2
"""Different batches that two processes both train on: one may be a first batch of zeros."""
_MAX_CALLS, _NUM_WRITTEN, _MAX_FILES = 256, 16, 64
_MAX_APART_S = 1.5
"""Seconds in which a process that has trained on must enter the collective in which another waits."""


class CollectiveCall(NamedTuple):
    """Collective that a process has entered: its number from 1, name and form, the line, updates and passes so far."""

    number: int
    form: str
    line: str
    step: int
    passes: int


@dataclass
class RankRecord:
    """Record of one process: its progress, digests of its batches by update, files that it saved, collectives.

    `is_over` is True once the loop has ended, `has_failed` if an error ended it.
    """

    host: str
    step: int = 0
    passes: int = 0
    batches: dict[str, str] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    calls: list[CollectiveCall] = field(default_factory=list)
    is_over: bool = False
    has_failed: bool = False

    @property
    def num_calls(self) -> int:
        """Number of collectives entered."""
        return self.calls[-1].number if self.calls else 0

    def add_call(self, form: str, line: str) -> CollectiveCall:
        """Add a collective that is about to be entered."""
        call = CollectiveCall(self.num_calls + 1, form, line, self.step, self.passes)
        self.calls = [*self.calls[1 - _MAX_CALLS :], call]
        return call

    def add_file(self, path: str) -> None:
        """Add a file that is about to be saved, the first time."""
        if path not in self.files:
            self.files = dict([*self.files.items(), (path, self.step)][-_MAX_FILES:])

    def to_text(self) -> str:
        """Format as JSON, with the last collectives alone."""
        fields = {**vars(self)}  # at one moment: another thread goes on writing
        return json.dumps({**fields, "calls": fields["calls"][-_NUM_WRITTEN:]})

    @classmethod
    def from_text(cls, text: str) -> RankRecord:
        """Read what `to_text` wrote."""
        fields = json.loads(text)
        return cls(**{**fields, "calls": [CollectiveCall(*call) for call in fields["calls"]]})


class RankJudge:
    """Judge of the records of all processes; `rank` is the own one."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._apart_since: dict[tuple[int, int], float] = {}

    def judge(self, records: Mapping[int, RankRecord], now_s: float) -> Iterator[Found]:
        """Yield what is true of the processes now; `now_s` is a clock's time."""
        own = records[self._rank]
        for other, record in records.items():
            if other != self._rank:
                yield from self._compare_calls(own, record, other, now_s)
        yield from _same_samples(records)
        yield from _shared_files(records)

    def _compare_calls(self, own: RankRecord, record: RankRecord, other: int, now_s: float) -> Iterator[Found]:
        theirs = {call.number: call for call in record.calls}
        pairs = [(call, match) for call in own.calls if (match := theirs.get(call.number)) is not None]
        for call, match in [(call, match) for call, match in pairs if match.form != call.form][:1]:
            words: dict[str, Any] = {"first": self._rank, "second": other, "number": call.number}
            words |= {"own": _describe(call, self._rank), "other": _describe(match, other)}
            yield report("collectives-differ", "form", step=call.step + 1, **words)
            return
        if own.num_calls > record.num_calls:
            yield from self._find_lone(own, record, (self._rank, other), now_s)
        elif record.num_calls > own.num_calls:
            yield from self._find_lone(record, own, (other, self._rank), now_s)

    def _find_lone(
        self, waiting: RankRecord, ahead: RankRecord, ranks: tuple[int, int], now_s: float
    ) -> Iterator[Found]:
        """Yield a fault if one process waits in a collective that the other has passed by without entering it."""
        call = next((call for call in waiting.calls if call.number == ahead.num_calls + 1), None)
        has_passed = call is not None and (ahead.step > call.step or ahead.passes > call.passes)
        if call is None or not (has_passed or (ahead.is_over and not ahead.has_failed)):
            return
        since = self._apart_since.setdefault((ranks[0], call.number), now_s)
        if ahead.is_over or waiting.has_failed or now_s - since >= _MAX_APART_S:
            went = "has ended its loop" if ahead.is_over else f"trains on, at step {ahead.step + 1}"
            words = {"first": ranks[0], "second": ranks[1], "number": call.number, "own": _describe(call, ranks[0])}
            yield report("collectives-differ", "alone", step=call.step + 1, entered=ahead.num_calls, went=went, **words)


def _describe(call: CollectiveCall, rank: int) -> str:
    return f"{call.form} on rank {rank} ({call.line})"


def _same_samples(records: Mapping[int, RankRecord]) -> Iterator[Found]:
    """Yield a fault for the first two processes that train on the same batches."""
    for (a, first), (b, second) in itertools.combinations(sorted(records.items()), 2):
        both = [step for step in first.batches if step in second.batches]
        if any(first.batches[step] != second.batches[step] for step in both):
            continue
        changed = [step for i, step in enumerate(both) if i and first.batches[step] != first.batches[both[0]]]
        if len(changed) >= _NUM_SAME - 1:
            words = {"first": a, "second": b, "steps": ", ".join(both[:5])}
            yield report("same-samples", "", step=int(changed[0]), **words)
            return


def _shared_files(records: Mapping[int, RankRecord]) -> Iterator[Found]:
    """Yield a fault for the first file that several processes of a machine save."""
    for (a, first), (b, second) in itertools.combinations(sorted(records.items()), 2):
        shared = [path for path in first.files if path in second.files and first.host == second.host]
        if shared:
            steps = first.files[shared[0]], second.files[shared[0]]
            more = f"; so are {len(shared) - 1} more" if len(shared) > 1 else ""
            words = {"first": a, "second": b, "path": shared[0], "steps": steps, "more": more}
            yield report("file-race", "", step=max(steps) or None, **words)
            return
