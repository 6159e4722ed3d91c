"""Records of runs for reports and comparisons: what their folders state, figures side by side, config differences."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sightline.config.faults import ConfigFaults
from sightline.config.plain_values import flatten
from sightline.config.yaml_tree import read_yaml
from sightline.config.yaml_writer import format_inline
from sightline.contract.errors import UserError, join_some
from sightline.contract.regular_files import parse_json, read_regular_file
from sightline.runs.checkpoint import list_checkpoints
from sightline.runs.folder_lock import find_holder
from sightline.runs.run_documents import load_document, read_lines
from sightline.runs.run_files import RunFiles

NO_FIGURE = "–"
"""Text in place of a figure or a value that a run does not have."""
NO_BOX_MATCHED = "no box was found: AP 0, as no detection overlaps a label of its class by an IoU of 0.5 or more"
_MAX_MISSING = 6
_UNITS = ("mm", "cm", "m", "px")
"""Units with which the names of metrics end: `mean_error_mm`."""
Line = Mapping[str, Any]
Made = TypeVar("Made")


CAPTIONS_FILE = "predictions/captions.json"
"""Name of a picture of the last evaluation → its caption."""


@dataclass(frozen=True)
class ReportedRun:
    """Run as its folder describes it; None stands for a file that it does not have."""

    path: Path
    name: str
    config: Mapping[str, str]
    final: Mapping[str, Any] | None
    lines: Sequence[Line]
    findings: Sequence[Mapping[str, Any]] | None
    environment: Mapping[str, Any]
    sessions: Sequence[Mapping[str, Any]] = ()
    has_joints: bool = False
    examined: Mapping[str, Any] = field(default_factory=dict)
    captions: Mapping[str, Any] = field(default_factory=dict)

    def training_facts(self) -> dict[str, Any]:
        """Return what the summary states of the training: config, task, data, model and its size, and its length.

        The number of parameters is in `environment.json`, steps, epochs and seconds are those of `metrics.jsonl`.
        """
        facts: dict[str, Any] = {"config": self.config.get("name", NO_FIGURE).strip('"')}
        facts |= {key: self.config.get(f"{key}.name", NO_FIGURE).strip('"') for key in ("task", "data", "model")}
        if "num_parameters" in self.environment:
            facts["parameters"] = self.environment["num_parameters"]
        if self.lines:
            last = self.lines[-1]
            facts |= {"steps": last["step"], "epochs": last["epoch"] + 1, "seconds": round(last["time_s"])}
        return facts

    @property
    def metrics(self) -> dict[str, Any]:
        """The figures of `final.json`, before it is written those of the last evaluation in `metrics.jsonl`."""
        if self.final is not None:
            return dict(self.final["metrics"])
        return {name: value for name, value in self._last_evaluation.items() if _is_metric(name)}

    @property
    def _last_evaluation(self) -> Line:
        return next((line for line in reversed(self.lines) if line["split"] != "train"), {})

    def figures(self) -> dict[str, Any]:
        """Return the metrics, and what was evaluated."""
        if self.final is None:
            what = "no final.json: the training is not finished"
            if last := self._last_evaluation:
                what += f"; figures of step {last['step']} on {last['split']}"
            return {"evaluated": what, **self.metrics}
        data = self.final["data"]
        what = f"{self.final['checkpoint']} checkpoint on {data['split']}, {data['num_samples']} samples"
        if early := self.final.get("ended_early"):
            what += f", stopped early at step {early['step']} of {early['of']}"
        return {"evaluated": f"{what}, {self.final['selection']}", **self.metrics}

    def headline(self) -> tuple[str, str, str] | None:
        """Return the figure that chose the checkpoint, with its unit; its name; and its 95 % interval, or nothing.

        Of a training that is not finished it is that of the last evaluation, with its step and split. None if the run
        has no such figure.
        """
        name = self.config.get("evaluate.metric", "").strip('"')
        if name not in self.metrics:
            return None
        about = f"step {self._last_evaluation['step']}, {self._last_evaluation['split']}" if self.final is None else ""
        interval = (self.final or {}).get("interval", {})
        if interval.get("figure") == name:
            ends = [format_with_unit(name, interval[end]) for end in ("low", "high")]
            about = f"95 % interval {' to '.join(ends)}"
        return format_with_unit(name, self.metrics[name]), name, about


def _is_metric(name: str) -> bool:
    """Return True for the name of a metric in a line of `metrics.jsonl`."""
    return name not in ("step", "epoch", "split", "num_samples") and not name.startswith(("loss/", "time_s"))


def describe_unfinished(path: Path) -> str | None:
    """Describe how far a run's training has come; None if it is finished, or was not trained here."""
    is_converted = (path / "lineage.json").exists() and not (path / "metrics.jsonl").exists()
    checkpoints = list_checkpoints(path)
    if (path / "final.json").exists() or is_converted or not checkpoints:
        return None
    saved = load_document(checkpoints[-1] / "state.json")
    steps = f"step {saved['step']:,} of {saved['state']['num_steps']:,}"
    if holder := find_holder(path):
        return f"{path}: this run is not finished: it is trained on {holder}, and was saved last at {steps}"
    command = f"sightline train {shlex.quote(str(path))} --resume auto"
    return f"{path}: this run is not finished: it stopped at {steps}; {command} goes on"


def read_reported_run(path: Path, name: str) -> ReportedRun:
    """Read the files of a run's folder. Raises UserError as `RunFiles`, and for damaged files."""
    RunFiles(path)
    faults = ConfigFaults()
    tree: Any = read_yaml(path / "config.yaml", faults).plain()
    faults.raise_any()
    lines = read_lines(path / "metrics.jsonl") if (path / "metrics.jsonl").exists() else []
    findings = _read_findings(path / "findings.json")
    final = load_document(path / "final.json") if (path / "final.json").exists() else None
    environment = load_document(path / "environment.json")
    sessions = read_lines(path / "sessions.jsonl") if (path / "sessions.jsonl").exists() else []
    has_joints = (path / "facts.json").exists() and "joint_names" in load_document(path / "facts.json")
    examined = load_document(path / "checks.json") if (path / "checks.json").exists() else {}
    captions = load_document(path / CAPTIONS_FILE) if (path / CAPTIONS_FILE).exists() else {}
    values = flatten_config(tree)
    return ReportedRun(
        path, name, values, final, lines, findings, environment, sessions, has_joints, examined, captions
    )


def _read_findings(path: Path) -> list[Any] | None:
    if not path.exists():
        return None
    try:
        findings = parse_json(read_regular_file(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}; delete it, or get the run again") from None
    if not isinstance(findings, list):
        raise UserError(f"{path}: does not hold a list of findings; delete it, or get the run again")
    return findings


def flatten_config(tree: Any) -> dict[str, str]:
    """Flatten a config to its leaves by their dotted keys, as text."""
    return {key: format_inline(value) for key, value in flatten(tree).items()}


def list_differences(runs: Sequence[ReportedRun]) -> list[list[str]]:
    """List the keys of the configs whose values differ, each with the value of every run; no key is as null."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    rows = [[key, *(run.config.get(key, NO_FIGURE) for run in runs)] for key in keys]
    return [row for row in rows if len({NO_FIGURE if value == "null" else value for value in row[1:]}) > 1]


@dataclass(frozen=True)
class RunComparison:
    """Comparison of runs: facts and figures of each, and the config keys that differ, with every run's value."""

    facts: Sequence[Mapping[str, Any]]
    differences: Sequence[Sequence[str]]

    def summary(self) -> list[list[str]]:
        """Return a row per fact or figure: its name, and the value of every run as text."""
        names = dict.fromkeys(name for facts in self.facts for name in facts)
        return [[name, *(format_fact(facts.get(name)) for facts in self.facts)] for name in names]

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        return {"figures": self.facts, "config_differences": {key: values for key, *values in self.differences}}


def compare_runs(runs: Sequence[ReportedRun]) -> RunComparison:
    """Compare the figures and configs of runs. Raises UserError for files of another form."""
    facts = [
        read_part(run, ReportedRun.training_facts, "metrics.jsonl") | read_part(run, ReportedRun.figures, "final.json")
        for run in runs
    ]
    return RunComparison(facts, list_differences(runs))


def read_part(run: ReportedRun, make: Callable[[ReportedRun], Made], file: str) -> Made:
    """Make a part of a report from a file of a run's folder. Raises UserError if that has another form."""
    try:
        return make(run)
    except UserError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(
            f"{run.path / file}: is not of the form that training and evaluation write ({reason}); get the run again"
        ) from error


def note_figures(document: Mapping[str, Any]) -> list[str]:
    """List what figures do not say by themselves: why one is missing, what an AP of 0 means, and what limits it."""
    headers = [document[name] for name in document if name.startswith("scored_boxes")]
    reasons = {name: reason for scored in headers for name, reason in scored["undefined"].items()}
    remarks = dict.fromkeys(line for scored in headers for line in scored.get("remarks", ()))
    figures = {} if "all" in reasons else dict(document.get("metrics", {}))
    figures |= {f"loss/{name}": value for name, value in document.get("losses", {}).items()}
    explained = {name for names in reasons for name in names.split(", ")}
    is_missing = {name: value is None or math.isnan(value) for name, value in figures.items() if name not in explained}
    if missing := [name for name in is_missing if is_missing[name]]:
        reasons[join_some(missing, most=_MAX_MISSING)] = (
            "no label counts there, as all are ignored, hidden or missing, or predictions are not finite"
        )
    notes = [f"no figure ({name}): {reason}" for name, reason in reasons.items()]
    notes += remarks
    is_nothing_found = headers and 0 in (document["metrics"].get(name) for name in ("ap", "crowd_ap", "error_ap50"))
    return [*notes, NO_BOX_MATCHED] if is_nothing_found else notes


_ERROR_COLUMNS: Mapping[str, str] = {
    "count": "count, all detections",
    "counted": "count",
    "ignored": "in ignored regions",
    "gain": "AP50 gained",
    "at_best_score": "count at the best score",
}
"""Titles of what a metric states of a kind of error, by its name."""
WORST_COLUMN = "worst samples at it"


def list_errors(document: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """List the kinds of errors of a document's metrics, with titles: what is stated of them, and the worst samples.

    What is stated are counts and the gain if a kind is mended; samples and the second count are from the score of the
    best F1 on, the others of all detections. Without kinds there are no rows.
    """
    counts, worst = document.get("box_errors", {}), document.get("worst_samples", {}).get("kinds", {})
    kinds = {}
    for kind in {**counts, **worst}:
        gain = document["metrics"].get(f"gain_{kind}")
        kinds[kind] = {**counts.get(kind, {}), **({} if gain is None else {"gain": gain})}
    stated = [name for name in _ERROR_COLUMNS if any(name in row for row in kinds.values())]
    rows = []
    for kind, row in kinds.items():
        samples = ", ".join(f"{sample['name']} ({sample['count']})" for sample in worst.get(kind, ()))
        rows.append((kind, *(row.get(name) for name in stated), samples))
    return ("kind of error", *(_ERROR_COLUMNS[name] for name in stated), WORST_COLUMN), rows


def format_interval(interval: Mapping[str, Any]) -> str:
    """Format the interval of a class, to the four decimals that its figure has, or say that one sample gives none."""
    if interval["low"] is None:
        return "one sample: no interval"
    return f"{round(interval['low'], 4):.3g} to {round(interval['high'], 4):.3g}"


def format_with_unit(name: str, value: float | None) -> str:
    """Format a figure in the unit with which its name ends, else in percent if it is from 0 to 1."""
    if value is None or not math.isfinite(value):
        return NO_FIGURE
    unit = name.rpartition("_")[2]
    if unit in _UNITS:
        return f"{value:.2f} {unit}"
    return f"{100 * value:.2f} %" if 0 <= value <= 1 else f"{value:.4f}"


def format_fact(value: Any) -> str:
    """Format a fact or a figure of a run: a count with commas, other numbers with four decimals."""
    if isinstance(value, float):
        return f"{value:.4f}"
    return NO_FIGURE if value is None else f"{value:,}" if type(value) is int else str(value)
