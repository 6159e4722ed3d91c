"""Report of runs: the blocks of one page from what their folders hold, without data, weights or plugins."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sightline.contract.plugins import plugin_options
from sightline.draw.page import (
    PageBlock,
    PageChart,
    PageClouds,
    PageFigures,
    PageFolds,
    PageImage,
    PageTable,
    PageText,
    encode_picture,
)
from sightline.runs.curves import Line, encode_curves, make_curve_panels
from sightline.runs.run_records import (
    ReportedRun,
    compare_runs,
    format_fact,
    format_interval,
    list_errors,
    note_figures,
    read_part,
)
from sightline.runs.trained_weights import is_packed
from sightline.store.files.image_files import read_image
from sightline.view.report_samples import MAX_PICTURE_BYTES

_MAX_LINES = 400
"""Maximum number of points of the curves of all runs in one split."""
_MAX_MATRIX = 24
"""Maximum number of classes of a confusion matrix; of more classes the most frequent confusions are listed."""
_NUM_CONFUSIONS = 20


def make_report(runs: Sequence[ReportedRun], samples: PageClouds | None = None) -> tuple[list[PageBlock], list[str]]:
    """Make the blocks of the page, with a viewer of samples if it is given, and notes on what it lacks.

    Raises UserError for files of another form.
    """
    compared = compare_runs(runs)
    names = [run.name for run in runs]
    blocks: list[PageBlock] = [*make_headlines(runs)]
    blocks.append(PageTable(["", *names], compared.summary(), is_numeric=False))
    for run in runs:
        if lines := read_part(run, lambda run: note_figures(run.final or {}), "final.json"):
            blocks.append(PageText("notes", [f"{run.name}: {line}" for line in lines] if len(runs) > 1 else lines))
    if len(runs) > 1:
        differences = PageTable(["key", *names], compared.differences, is_numeric=False)
        blocks += [PageText("heading", ["Differences between the configs"]), differences]
    choose = functools.partial(choose_lines, most=max(50, _MAX_LINES // len(runs)))
    curves = {run.name if len(runs) > 1 else "": read_part(run, choose, "metrics.jsonl") for run in runs}
    if any(curves.values()):
        blocks += [PageText("heading", ["Curves"]), PageChart(make_curve_panels(curves))]
    classes = [read_part(run, list_class_figures, "final.json") for run in runs]
    if any(classes):
        title = "Joints" if all(run.has_joints for run in runs) else "Classes"
        blocks += [PageText("heading", [title]), make_class_table(names, classes)]
    blocks += [PageText("heading", ["Samples"]), samples] if samples else []
    pictures = functools.partial(_make_pictures, max_bytes=MAX_PICTURE_BYTES // len(runs))
    sections: list[tuple[str, Callable[[ReportedRun], Sequence[PageBlock]], str]] = [
        ("Figures by difficulty", _make_difficulty_table, "final.json"),
        ("Confusions", _make_confusion_table, "final.json"),
        ("Errors", _make_error_table, "final.json"),
        ("Findings of the checks", _make_findings, "findings.json, or checks.json beside it"),
        ("Predictions", pictures, "predictions"),
        ("How to repeat", _make_environment_table, "environment.json"),
    ]
    for title, make, file in sections:
        made = [(run, read_part(run, make, file)) for run in runs]
        blocks += [PageText("heading", [title])] if any(parts for _, parts in made) else []
        for run, parts in made:
            blocks += [PageText("strong", [run.name]), *parts] if parts and len(runs) > 1 else parts
    missing = "there is no final.json; the page has no figures of it but those of the last evaluation"
    notes = [f"{run.path}: {missing}" for run in runs if run.final is None]
    return blocks, notes


def make_headlines(runs: Sequence[ReportedRun]) -> list[PageFigures]:
    """Make the figures that chose the checkpoints, with the run's name if there are several."""
    figures = []
    for run in runs:
        if headline := read_part(run, ReportedRun.headline, "final.json"):
            value, name, about = headline
            name += f", {run.name}" if len(runs) > 1 else ""
            figures.append((value, name, about))
    return [PageFigures(figures)] if figures else []


def choose_lines(run: ReportedRun, *, most: int) -> list[Line]:
    """Choose at most `most` lines of each split, evenly spaced, the first and the last among them."""
    chosen: list[Line] = []
    for split in dict.fromkeys(line["split"] for line in run.lines):
        lines = [line for line in run.lines if line["split"] == split]
        indices = np.linspace(0, len(lines) - 1, min(len(lines), most)).round().astype(int)
        chosen += [lines[index] for index in indices]
    encode_curves({"": chosen})  # refuses figures that are not numbers while the run is known
    return chosen


def list_class_figures(run: ReportedRun) -> dict[str, dict[str, Any]]:
    """Return the figures of each class or joint by their names, and their intervals."""
    final = run.final or {}
    rows = {label: dict(row) for label, row in (final.get("per_class") or {}).items()}
    for label, intervals in (final.get("class_intervals") or {}).items():
        rows[label] |= {f"{figure}, 95 %": format_interval(interval) for figure, interval in intervals.items()}
    return rows


def make_class_table(names: Sequence[str], classes: Sequence[Mapping[str, Mapping[str, Any]]]) -> PageTable:
    """Make one table of all runs: a row per class, and the runs side by side in each figure."""
    labels = dict.fromkeys(label for rows in classes for label in rows)
    figures = dict.fromkeys(figure for rows in classes for row in rows.values() for figure in row)
    head = [f"{figure}, {name}" if len(names) > 1 else figure for figure in figures for name in names]
    cells = [[label, *(format_fact(r.get(label, {}).get(f)) for f in figures for r in classes)] for label in labels]
    return PageTable(["", *head], cells)


def _make_difficulty_table(run: ReportedRun) -> list[PageBlock]:
    """Make the table of the labels of each class and difficulty: figures, how many count, and why others do not."""
    tables = [rows for name, rows in (run.final or {}).items() if name.startswith("by_difficulty")]
    blocks: list[PageBlock] = []
    for rows in tables:
        columns = [*dict.fromkeys(column for row in rows.values() for column in row)]
        cells = [[name, *(_format_counts(row.get(column)) for column in columns)] for name, row in rows.items()]
        blocks.append(PageTable(["labels", *columns], cells))
    return blocks


def _format_counts(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{count} {reason}" for reason, count in value.items())
    return format_fact(value)


def _make_confusion_table(run: ReportedRun) -> list[PageBlock]:
    """Make the matrix of labels (rows) and predictions, blank for none; for many classes list the most frequent."""
    confusion = (run.final or {}).get("confusion")
    if not confusion:
        return []
    about = [PageText("plain", [confusion["about"]])] if "about" in confusion else []
    names, counts = confusion["classes"], np.array(confusion["counts"], dtype=np.int64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    if len(names) <= _MAX_MATRIX:
        rows = [[name, *(str(count or "") for count in row)] for name, row in zip(names, counts.tolist(), strict=True)]
        return [*about, PageTable(["label \\ prediction", *names], rows, shares=shares.tolist())]
    wrong = np.where(np.eye(len(names), dtype=bool), 0, counts)
    order = [index for index in np.argsort(-wrong, axis=None, kind="stable")[:_NUM_CONFUSIONS] if wrong.flat[index] > 0]
    pairs = [divmod(int(index), len(names)) for index in order]
    cells = [[names[a], names[b], str(counts[a, b]), f"{shares[a, b]:.1%}"] for a, b in pairs]
    return [*about, PageTable(["label", "prediction", "count", "of the label"], cells)]


def _make_error_table(run: ReportedRun) -> list[PageBlock]:
    """Make the table of the kinds of errors, and of the samples with the most of each."""
    columns, rows = list_errors(run.final or {})
    if not rows:
        return []
    score = (run.final or {}).get("worst_samples", {}).get("min_score")
    about = "AP50 gained is what mending this kind alone gives; count is of all scores." if len(columns) > 3 else ""
    about += "" if score is None else f" Behind worst samples is their number of errors from the score {score:.3g} on."
    blocks: list[PageBlock] = [PageText("plain", [about.strip()])]
    blocks.append(PageTable(columns, [[*map(format_fact, row)] for row in rows]))
    if missed := (run.final or {}).get("missed_by"):
        cells = [[name, format_fact(row["labels"]), format_fact(row["missed"])] for name, row in missed.items()]
        blocks.append(PageTable(["missed labels", "count", "missed"], cells))
    return blocks


def _make_findings(run: ReportedRun) -> list[PageBlock]:
    """Make a line of each finding, which opens to its details, below a sentence on what was checked."""
    if run.findings is None:
        return [PageText("plain", ["The run has no findings.json: no training of this version made it."])]
    num_unchecked = sum(session.get("checked") is not True for session in run.sessions)
    if not run.sessions:
        text = "Whether the training was checked is not recorded (no sessions.jsonl)."
    elif num_unchecked:
        text = f"{num_unchecked} of {len(run.sessions)} sessions of the training were not checked (--no-check)."
    else:
        text = "The quick checks ran before the training."
    text += " No finding." if not run.findings else ""
    more = f"All checks: {_format_command(run, 'check')}"
    marked = [index for index, finding in enumerate(run.findings) if finding.get("severity") != "note"]
    folds = [
        (
            f"{finding.get('severity', '')} {finding.get('code', '')}: {finding.get('summary', '')}",
            {name: str(finding[name]) for name in ("measured", "expected", "action") if finding.get(name)},
        )
        for finding in run.findings
    ]
    if gaps := run.examined.get("not_covered", ()):
        numbered = {str(number): gap for number, gap in enumerate(gaps, start=1)}
        folds.append((f"not covered by a check: {len(gaps)} points", numbered))
    notes = PageText("notes", [*run.examined.get("verdict", ()), more])
    return [PageText("plain", [text]), *([PageFolds(folds, marked)] if folds else []), notes]


def list_pictures(run: ReportedRun) -> list[tuple[Path, str]]:
    """List the pictures that the last evaluation drew, in order of their names, each with its caption."""
    pictures = []
    for path in sorted((run.path / "predictions").glob("*.png")):
        title, caption = path.stem.replace("_", " "), run.captions.get(path.name, "")
        pictures.append((path, f"{title}: {caption}" if caption else title))
    return pictures


def _make_pictures(run: ReportedRun, *, max_bytes: int) -> list[PageBlock]:
    """Make the pictures of `list_pictures`, as many as fit into the bytes."""
    blocks: list[PageBlock] = []
    pictures = list_pictures(run)
    for number, (path, caption) in enumerate(pictures):
        pixels = read_image(path)
        max_bytes -= len(encode_picture(pixels))
        if max_bytes < 0:
            left_out = f"{len(pictures) - number} more pictures are in {path.parent}; the page would be too large."
            return [*blocks, PageText("plain", [left_out])]
        blocks.append(PageImage(pixels, caption))
    return blocks


def _make_environment_table(run: ReportedRun) -> list[PageBlock]:
    environment = run.environment
    git, versions = environment.get("git") or {}, environment.get("versions") or {}
    words = environment.get("command_line")
    gpus = [gpu.get("name", "GPU") for gpu in environment.get("gpus") or []]
    dirty = ", with changes that were not committed" if git.get("is_dirty") else ""
    facts = {
        "command": shlex.join(["sightline", *words[1:]]) if words else None,
        "folder": environment.get("directory"),
        "time": environment.get("time"),
        "commit": f"{git['commit']}{dirty}" if git.get("commit") else None,
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "machine": ", ".join(map(str, filter(None, [environment.get("cpu"), environment.get("platform"), *gpus]))),
        "train again": _format_command(run, "train", "--out", f"{run.path}_again"),
        "evaluate again": _format_command(run, "evaluate"),
    }
    if is_packed(run.path):  # its config is of the training in float
        del facts["train again"]
    return [PageTable(["", run.name], [[name, format_fact(value)] for name, value in facts.items()], is_numeric=False)]


def _format_command(run: ReportedRun, verb: str, *more: str) -> str:
    """Format a command on a run, with the plugins that it was made with."""
    options = plugin_options(run.environment.get("plugins", ()), run.path)
    return shlex.join(["sightline", verb, str(run.path), *options, *more])
