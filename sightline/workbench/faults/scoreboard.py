"""Scoreboard of trials: counts, the document of `--json`, and the page of results with the best stories."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sightline.faults.case import FaultCase, HealthyCase
from sightline.faults.trial import Alarm, Trial

NUM_STORIES = 10


@dataclass(frozen=True)
class HealthyRun:
    """Healthy case with one seed, and its alarms, all of which are false."""

    case: HealthyCase
    seed: int
    alarms: tuple[Alarm, ...]


@dataclass(frozen=True)
class Score:
    """Trials of a fault over its seeds: it counts as found, and its cause as named, if most seeds agree."""

    case: FaultCase
    trials: tuple[Trial, ...]

    @property
    def is_found(self) -> bool:
        return self._holds([trial.is_found for trial in self.trials])

    @property
    def is_cause_first(self) -> bool:
        return self._holds([trial.rank == 1 for trial in self.trials])

    @property
    def is_cause_in_three(self) -> bool:
        return self._holds([trial.rank is not None and trial.rank <= 3 for trial in self.trials])

    @property
    def found_trial(self) -> Trial | None:
        """First trial in which the fault was found."""
        return next((trial for trial in self.trials if trial.is_found), None)

    def _holds(self, votes: Sequence[bool]) -> bool:
        return 2 * sum(votes) > len(votes)


def score_document(scores: Sequence[Score], runs: Sequence[HealthyRun]) -> dict[str, Any]:
    """Build the document of `--json`: counts of cases and of false alarms, and a row for each case and seed."""
    alarms = [alarm for run in runs for alarm in run.alarms]
    return {
        "injected": len(scores),
        "found": sum(score.is_found for score in scores),
        "cause_first": sum(score.is_cause_first for score in scores),
        "cause_in_three": sum(score.is_cause_in_three for score in scores),
        "healthy_runs": len(runs),
        "false_errors": sum(alarm.severity == "error" for alarm in alarms),
        "false_warnings": sum(alarm.severity != "error" for alarm in alarms),
        "cases": [_make_row(score.case, trial) for score in scores for trial in score.trials],
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
        "found": trial.is_found,
        "moment": trial.moment,
        "step": trial.step,
        "cpu_seconds": round(trial.seconds, 3),
        "rank": trial.rank,
        "alarms": [{"code": a.code, "severity": a.severity, "causes": list(a.causes)} for a in trial.alarms],
        "crash": trial.crash or None,
    }


def choose_stories(scores: Sequence[Score]) -> list[Score]:
    """Choose the faults to show: found and named first with every seed, of as many codes and benches as there are."""
    sure = [score for score in scores if all(trial.rank == 1 for trial in score.trials) and score.trials]
    chosen: list[Score] = []
    codes: collections.Counter[str] = collections.Counter()
    benches: collections.Counter[str] = collections.Counter()
    while sure and len(chosen) < NUM_STORIES:
        best = min(sure, key=lambda score: (codes[score.trials[0].alarms[0].code], benches[score.case.bench]))
        sure.remove(best)
        chosen.append(best)
        codes[best.trials[0].alarms[0].code] += 1
        benches[best.case.bench] += 1
    return chosen


def summarise(document: Mapping[str, Any]) -> str:
    """Format the counts of a scoreboard as one line."""
    parts = []
    if document["injected"]:
        parts.append(
            f"{document['found']} of {document['injected']} faults found, the true cause first for "
            f"{document['cause_first']}, among the first three for {document['cause_in_three']}"
        )
    if document["healthy_runs"]:
        parts.append(
            f"{document['healthy_runs']} healthy runs: {document['false_errors']} false errors, "
            f"{document['false_warnings']} false warnings"
        )
    return "; ".join(parts)


def describe_trial(trial: Trial) -> tuple[str, ...]:
    """Format a trial as cells: found, moment, CPU seconds, place of the true cause, first code."""
    if not trial.is_found:
        return ("crashed" if trial.crash else "missed", "", f"{trial.seconds:.1f}", "", trial.crash)
    moment = trial.moment or ""
    moment += f", step {trial.step}" if trial.step is not None else ""
    rank = "not named" if trial.rank is None else str(trial.rank)
    return "found", moment, f"{trial.seconds:.1f}", rank, trial.alarms[0].code


def write_page(document: Mapping[str, Any], scores: Sequence[Score], *, command: str, commit: str) -> str:
    """Write the page of results in Markdown: the counts, a row for each fault, false alarms, and the best stories."""
    lines = [
        "# Results: the doctor",
        "",
        f"Written by `{command}` at commit {commit}; CPU seconds on the machine that ran it. {summarise(document)}.",
        "",
        "A fault counts as found if most of its seeds raise an error or a warning that the same run without it does",
        "not raise. The moments: `config` (it is refused), `start` (the checks with which a training starts), `check`,",
        "`training`, `end` (the checks of the finished run), and `deep` (`check --deep`).",
        "",
        "| fault | | bench | true cause | found | moment | place of the cause | CPU s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for score in scores:
        trial = score.found_trial or score.trials[0]
        _, moment, seconds, rank, _ = describe_trial(trial)
        found = f"{sum(t.is_found for t in score.trials)} of {len(score.trials)}"
        case = score.case
        title = case.title.replace("|", "\\|")
        lines.append(f"| {case.id} | {title} | {case.bench} | {case.cause} | {found} | {moment} | {rank} | {seconds} |")
    lines += ["", *_format_false_alarms(document), "## Ten faults and what the doctor prints", ""]
    for score in choose_stories(scores):
        text = "\n\n".join(alarm.text for alarm in score.trials[0].alarms)
        lines += [
            f"**{score.case.id}: {score.case.title}.** `sightline faults {score.case.id}` (moment: "
            f"{score.trials[0].moment}):",
            "",
            "```text",
            text,
            "```",
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"


def _format_false_alarms(document: Mapping[str, Any]) -> list[str]:
    counts = collections.Counter(
        (run["id"], alarm["moment"], alarm["code"], alarm["severity"])
        for run in document["healthy"]
        for alarm in run["alarms"]
    )
    if not counts:
        return []
    rows = [f"| {i} | {moment} | {code} | {severity} | {n} |" for (i, moment, code, severity), n in counts.items()]
    return [
        "## False alarms",
        "",
        "| healthy run | moment | code | severity | runs |",
        "|---|---|---|---|---|",
        *rows,
        "",
    ]
