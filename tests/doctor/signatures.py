"""Measure which finding names the cause of planted bugs: the table by which causes compete, and how well it does.

`python -m tests.doctor --raw --out LINES.jsonl ROWS` writes what is found before causes compete;
`python -m tests.doctor.signatures LINES.jsonl ...` writes the table of it, and prints how many bugs the first finding
names: without a table, with it, and each fifth of the bugs with the table of the other four.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from sightline.doctor import causes
from sightline.doctor.finding import Finding, FindingLocation
from sightline.verbs.output import print_note
from tests.doctor.cases import ROWS
from tests.doctor.running import Line, list_keys, read_lines

_NUM_PARTS = 5
Table = Mapping[str, Sequence[str]]


class Found(NamedTuple):
    """Causes that count as naming a bug, and its findings in the order in which they are printed."""

    causes: tuple[str, ...]
    findings: list[Finding]


def list_found(lines: Iterable[Line]) -> Iterator[Found]:
    """Yield what is found of each planted bug whose causes are known, without findings of its twin."""
    rows = {row.id: row for row in ROWS}
    by_key = {(line["id"], line["seed"]): line for line in lines}
    for (name, seed), line in by_key.items():
        row = rows.get(name)
        if row is not None and row.has_bug and row.causes:
            known = list_keys(by_key.get((row.twin, seed)))
            new = [a for a in line["alarms"] if a["causes"] and (a["code"], a["causes"][0]) not in known]
            if new:
                yield Found(row.causes, [_make_finding(alarm) for alarm in new])


def _make_finding(alarm: Mapping[str, str]) -> Finding:
    cause, *others = alarm["causes"]
    texts = dict.fromkeys(("summary", "measured", "expected", "action"), "")
    severity, place = alarm["severity"], FindingLocation()
    return Finding(alarm["code"], severity, cause=cause, alternatives=tuple(others), where=place, **texts)  # type: ignore[arg-type]


def measure(cases: Iterable[Found]) -> dict[str, list[str]]:
    """Count beside which other findings each alone named the bug."""
    wins = Counter[tuple[str, str]]()
    for true_causes, findings in cases:
        named = {causes.get_key(finding): finding.cause in true_causes for finding in findings}
        for code, other in itertools.permutations(named, 2):
            wins[code, other] += named[code] and not named[other]
    symptoms: dict[str, list[str]] = {}
    for (code, other), count in sorted(wins.items()):
        if count > wins[other, code]:
            symptoms.setdefault(code, []).append(other)
    return symptoms


def count_named(cases: Iterable[Found], table: Table) -> int:
    """Count the bugs that the first finding names, with a table."""
    with mock.patch.object(causes, "read_symptoms", return_value=table):
        return sum(causes.merge_findings(each.findings)[0].cause in each.causes for each in cases)


def main() -> None:
    """Write the table of some files of lines, and print how well it does."""
    lines = [line for path in sys.argv[1:] for line in read_lines(Path(path)).values()]
    cases = list(list_found(lines))
    table = measure(cases)
    random.Random(0).shuffle(cases)
    parts = [cases[number::_NUM_PARTS] for number in range(_NUM_PARTS)]
    held = [(part, [each for other in parts if other is not part for each in other]) for part in parts]
    num_of_others = sum(count_named(part, measure(others)) for part, others in held)
    print_note(
        f"{len(cases)} bugs with a finding; the first names the cause of {count_named(cases, {})} without a table, of "
        f"{count_named(cases, table)} with it, of {num_of_others} with that of the other four fifths"
    )
    path = Path(causes.__file__).with_suffix(".json")
    path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
