"""Measure which finding names the cause of planted bugs: the table by which causes compete.

`python -m tests.doctor --raw --out LINES.jsonl ROWS` writes what is found before causes compete;
`python -m tests.doctor.signatures LINES.jsonl ...` writes the table of it.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from sightline.doctor import causes
from tests.doctor.cases import ROWS
from tests.doctor.running import Line, list_keys, read_lines

Named = tuple[str, bool]
"""Code and first cause of a finding, and whether this is that of the bug."""


def list_named(lines: Iterable[Line]) -> Iterator[list[Named]]:
    """Yield the findings of each planted bug whose causes are known, without those of its twin."""
    rows = {row.id: row for row in ROWS}
    by_key = {(line["id"], line["seed"]): line for line in lines}
    for (name, seed), line in by_key.items():
        row = rows.get(name)
        if row is not None and row.has_bug and row.causes:
            known = list_keys(by_key.get((row.twin, seed)))
            new = [each for each in line["alarms"] if (each["code"], next(iter(each["causes"]), "")) not in known]
            firsts = {(each["code"], each["causes"][0]) for each in new if each["causes"]}
            yield [(" ".join(first), first[1] in row.causes) for first in sorted(firsts)]


def measure(cases: Iterable[list[Named]]) -> dict[str, list[str]]:
    """Count beside which other findings each alone named the bug."""
    wins = Counter[tuple[str, str]]()
    for named in cases:
        for (code, is_true), (other, other_is_true) in itertools.permutations(named, 2):
            wins[code, other] += is_true and not other_is_true
    symptoms: dict[str, list[str]] = {}
    for (code, other), count in sorted(wins.items()):
        if count > wins[other, code]:
            symptoms.setdefault(code, []).append(other)
    return symptoms


def main() -> None:
    """Write the table of some files of lines."""
    lines = [line for path in sys.argv[1:] for line in read_lines(Path(path)).values()]
    path = Path(causes.__file__).with_suffix(".json")
    path.write_text(json.dumps(measure(list_named(lines)), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
