"""Scores of lines: what was found, named, flagged by mistake, by kind and family; two files compared."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence

from tests.doctor.row import FAMILIES, KINDS
from tests.doctor.running import Key, Line

COLUMNS = (
    *("kind", "family", "bugs", "any alarm", "found", "with causes", "cause first", "in three"),
    *("healthy", "false errors", "false warnings", "failed", "crashed", "median s", "max s"),
)


def summarise(lines: Sequence[Line]) -> list[tuple[str, ...]]:
    """Build the rows of the table: each kind and family that has lines, and the sum of each kind.

    A bug with an alarm is not found if its twin raises the same. `failed` counts measurements that ended in an error.
    """
    rows = []
    for kind in KINDS:
        own = [line for line in lines if line["kind"] == kind]
        for family in (*FAMILIES, ""):
            part = [line for line in own if family in (line["family"], "")]
            rows += [(kind, family or "all", *_count(part))] if part else []
    return rows


def _count(lines: Sequence[Line]) -> Iterator[str]:
    bugs, healthy = ([line for line in lines if line["has_bug"] == has_bug] for has_bug in (True, False))
    named = [line for line in bugs if line["found"] and line["has_causes"]]
    alarms = [alarm["severity"] for line in healthy for alarm in line["alarms"]]
    seconds = [line["cpu_s"] or line["wall_s"] for line in lines]
    yield from map(str, (len(bugs), sum(bool(line["alarms"]) for line in bugs)))
    yield from map(str, (sum(line["found"] for line in bugs), len(named)))
    yield from (str(sum((line["rank"] or 99) <= last for line in named)) for last in (1, 3))
    yield from map(str, (len(healthy), alarms.count("error"), len(alarms) - alarms.count("error")))
    yield str(sum(len(line.get("failed", ())) for line in lines))
    yield str(sum(bool(line["crash"]) for line in lines))
    yield from (f"{seconds_of(seconds):.1f}" for seconds_of in (statistics.median, max))


def is_good(lines: Iterable[Line]) -> bool:
    """Return True if every bug was found, and nothing was said of correct subjects."""
    return all(line["found"] if line["has_bug"] else not line["alarms"] and not line["crash"] for line in lines)


def describe_line(line: Line) -> str:
    """Format a line in one line."""
    codes = ", ".join(f"{alarm['code']} {alarm['severity']}" for alarm in line["alarms"])
    place = "" if line["rank"] is None else f", the cause is number {line['rank']}"
    result = (f"found{place}" if line["found"] else "MISSED") if line["has_bug"] else "FALSE" if codes else "silent"
    crash = f" {line['crash']}" if line["crash"] else ""
    failed = f" {len(line['failed'])} failed" if line.get("failed") else ""
    seconds = line["cpu_s"] or line["wall_s"]
    return f"{line['id']} seed {line['seed']}: {result}{crash} [{codes}]{failed} {seconds:.1f} s"


def compare(before: Mapping[Key, Line], lines: Iterable[Line]) -> Iterator[str]:
    """Yield what was found before and is not now, and the other way round; then false alarms gained and lost."""
    pairs = [(before[key], line) for line in lines if (key := (line["id"], line["seed"])) in before]
    yield f"{len(pairs)} rows are in both"
    for word, is_found in (("found no more", False), ("found now", True)):
        for old, new in pairs:
            if new["has_bug"] and new["found"] == is_found != old["found"]:
                yield f"{word}: {describe_line(new if is_found else old)}"
    for word, place in (("false alarm gained", 1), ("false alarm lost", 0)):
        for pair in pairs:
            own, other = (
                {(a["code"], a["severity"]) for a in line["alarms"]} for line in (pair[place], pair[1 - place])
            )
            for code, severity in sorted(own - other if not pair[1]["has_bug"] else ()):
                yield f"{word}: {pair[1]['id']} seed {pair[1]['seed']}: {code} {severity}"
