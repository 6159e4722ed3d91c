"""Scoreboard of trials: counts, the document of `--json`, and the page of results."""

from __future__ import annotations

import collections
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tests.planted.catalog import FaultCase, HealthyCase
from tests.planted.trial import Alarm, Trial


@dataclass(frozen=True)
class HealthyRun:
    """Healthy case with one seed, and its alarms, all of which are false."""

    case: HealthyCase
    seed: int
    alarms: tuple[Alarm, ...]


def make_document(trials: Sequence[tuple[FaultCase, Trial]], runs: Sequence[HealthyRun]) -> dict[str, Any]:
    """Build the document of `--json`: counts of cases and of false alarms, and a row for each case and seed.

    A fault counts as found, and its cause as named, if this holds for more than half of its seeds; a pit as found if
    all of its faults are.
    """
    rows = [_make_row(case, trial) for case, trial in trials]
    by_case = _group_rows(rows)
    missed = {name for name, group in by_case.items() if not _holds_mostly(row["found"] for row in group)}
    pits = {pit: {row["id"] for row in rows if pit in row["pits"]} for row in rows for pit in row["pits"]}
    alarms = [alarm for run in runs for alarm in run.alarms]
    return {
        "injected": len(by_case),
        "found": len(by_case.keys() - missed),
        "cause_first": sum(_holds_mostly(row["rank"] == 1 for row in group) for group in by_case.values()),
        "cause_in_three": sum(_holds_mostly((row["rank"] or 9) <= 3 for row in group) for group in by_case.values()),
        "pits_injected": len(pits),
        "pits_found": sum(not ids & missed for ids in pits.values()),
        "healthy_runs": len(runs),
        "false_errors": sum(alarm.severity == "error" for alarm in alarms),
        "false_warnings": sum(alarm.severity != "error" for alarm in alarms),
        "cases": rows,
        "healthy": [
            {"id": run.case.id, "seed": run.seed, "alarms": [asdict(alarm) for alarm in run.alarms]} for run in runs
        ],
    }


def _make_row(case: FaultCase, trial: Trial) -> dict[str, Any]:
    return {
        "id": case.id,
        "seed": trial.seed,
        "bench": case.bench,
        "title": case.title,
        "cause": case.cause,
        "pits": list(case.pits),
        "found": trial.is_found,
        "moment": trial.moment,
        "step": trial.step,
        "cpu_seconds": round(trial.seconds, 3),
        "rank": trial.rank,
        "alarms": [asdict(alarm) for alarm in trial.alarms],
        "crash": trial.crash or None,
    }


def _group_rows(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["id"], []).append(row)
    return groups


def _holds_mostly(votes: Any) -> bool:
    votes = list(votes)
    return 2 * sum(votes) > len(votes)


def summarise(document: Mapping[str, Any]) -> str:
    """Format the counts of a scoreboard as one line."""
    parts = []
    if document["injected"]:
        parts.append(
            f"{document['found']} of {document['injected']} faults found, the true cause first for "
            f"{document['cause_first']}, among the first three for {document['cause_in_three']}; "
            f"{document['pits_found']} of {document['pits_injected']} pits of real projects found"
        )
    if document["healthy_runs"]:
        parts.append(
            f"{document['healthy_runs']} healthy runs: {document['false_errors']} false errors, "
            f"{document['false_warnings']} false warnings"
        )
    return "; ".join(parts)


def describe_row(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Format a row as cells: found, moment, CPU seconds, place of the true cause among those printed."""
    if not row["found"]:
        return "crashed" if row["crash"] else "missed", "", f"{row['cpu_seconds']:.1f}", ""
    moment = row["moment"] + (f", step {row['step']}" if row["step"] is not None else "")
    return "found", moment, f"{row['cpu_seconds']:.1f}", "not named" if row["rank"] is None else str(row["rank"])


def write_page(document: Mapping[str, Any], *, command: str, commit: str) -> str:
    """Write the page of results in Markdown: counts, a row for each true cause, what was missed, and false alarms."""
    lines = [
        "# Results: the doctor",
        "",
        f"Written by `{command}` at commit {commit}.",
        f"{summarise(document)}.",
        "",
        "A fault counts as found if, for most of its seeds, the doctor raises an error or a warning that the same run",
        "without it does not raise, and its cause as named first if this is so for most of its seeds, too. The moments",
        "are those of the first alarm: `config` (it is refused), `start` (the checks with which a training starts),",
        "`check`, `training`, `end` (the checks of the finished run), and `deep` (`check --deep`). CPU seconds are the",
        "median of those up to it. [doctor.json](doctor.json) has a row for each fault and seed.",
        "",
        "| true cause | faults | found | named first | moments | CPU s |",
        "|---|---|---|---|---|---|",
        *_format_causes(document),
        "",
        *_format_missed(document),
        *_format_false_alarms(document),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _format_causes(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield a row for each true cause, with its faults."""
    by_cause: dict[str, list[list[dict[str, Any]]]] = {}
    for rows in _group_rows(document["cases"]).values():
        by_cause.setdefault(rows[0]["cause"], []).append(rows)
    for cause, faults in sorted(by_cause.items()):
        firsts = [next((row for row in rows if row["found"]), rows[0]) for rows in faults]
        moments = collections.Counter(row["moment"] or "missed" for row in firsts)
        cells = (
            cause,
            len(faults),
            sum(_holds_mostly(row["found"] for row in rows) for rows in faults),
            sum(_holds_mostly(row["rank"] == 1 for row in rows) for rows in faults),
            ", ".join(f"{moment} {count}" if len(moments) > 1 else moment for moment, count in moments.most_common()),
            f"{statistics.median(row['cpu_seconds'] for row in firsts):.1f}",
        )
        yield f"| {' | '.join(map(str, cells))} |"


def _format_missed(document: Mapping[str, Any]) -> list[str]:
    """Format a row for each fault that a seed missed, or whose cause a seed did not name first."""
    rows = [
        f"| {name} | {_escape(group[0]['title'])} | {sum(row['found'] for row in group)} of {len(group)} | "
        f"{sum(row['rank'] == 1 for row in group)} of {len(group)} |"
        for name, group in _group_rows(document["cases"]).items()
        if not all(row["rank"] == 1 for row in group)
    ]
    heading = ["## Not with every seed", "", "| fault | | found | named first |", "|---|---|---|---|"]
    return [*heading, *rows, ""] if rows else []


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")


def _format_false_alarms(document: Mapping[str, Any]) -> list[str]:
    counts = collections.Counter(
        (run["id"], alarm["moment"], alarm["code"], alarm["severity"])
        for run in document["healthy"]
        for alarm in run["alarms"]
    )
    rows = [f"| {i} | {moment} | {code} | {severity} | {n} |" for (i, moment, code, severity), n in counts.items()]
    heading = ["## False alarms", "", "| healthy run | moment | code | severity | runs |", "|---|---|---|---|---|"]
    return [*heading, *rows, ""] if rows else []
