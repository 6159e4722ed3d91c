"""Runs below a folder: each summarised from a few of its files, sorted, filtered, deleted; torch is not imported."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.contract.call_arguments import to_path
from sightline.contract.errors import UserError
from sightline.contract.regular_files import check_regular_file, parse_json, read_regular_file
from sightline.runs.folder_lock import find_holder
from sightline.runs.run_documents import assert_own_files, load_document

SORT_KEYS = ("name", "task", "data", "steps", "figure", "when", "size", "state")
_MARKS = ("config.yaml", "environment.json", "facts.json")
"""Files that every training and conversion writes: a folder with all of them is a run; `config.yaml` alone is not."""
_FIELDS = ("path", "name", "task", "data", "model", "metric", "state")
"""Fields of a summary that filters compare."""
_MAX_CONFIG_BYTES = 200_000
_TAIL_BYTES = 1 << 16
_SECTION = re.compile(r"(\w+):")
_CHILD = re.compile(r"  (name|metric|mode): (.*)")
_RECORDS = (
    r"config\.yaml|(environment|facts|inputs|lineage|findings|checks|final|policy|search|published|compression"
    r"|conversion)\.json|(sessions|metrics|evaluations)\.jsonl|train\.log|model\.slq"
)
_RESULT_ENDINGS = {
    "--json": ".json",
    "--csv": ".csv",
    "--svg": ".svg",
    "--png": ".png",
    "--html": ".html",
    "--write": ".md",
    "--config": ".yaml",
}
_DRAWINGS = {".svg": "SVG", ".png": "PNG"}
NETWORK_ENDINGS = (".onnx",)


@dataclass(frozen=True)
class RunSummary:
    """Summary of a run's folder.

    `state` is finished, running, stopped, converted (published weights, not trained here) or damaged, with the reason
    in `note`. `figure` is the value of `metric` on `split`: of the last weights where the run is finished, else of its
    last evaluation. `mode` is the metric's better direction, max or min. `when` is the start of its first session.
    """

    path: Path
    name: str
    state: str
    task: str = ""
    data: str = ""
    model: str = ""
    steps: int | None = None
    metric: str = ""
    figure: float | None = None
    split: str = ""
    mode: str = ""
    when: str = ""
    num_bytes: int = 0
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, as in `--json`."""
        return {**dataclasses.asdict(self), "path": str(self.path)}


def list_runs(folder: str | Path = "runs") -> list[RunSummary]:
    """List the runs below a folder, or the run that it is, newest first; links below it are not followed.

    Weights are not read. Raises UserError for a folder that does not exist.
    """
    root = to_path(folder, name="list_runs", what="a folder with runs")
    if not root.is_dir():
        raise UserError(f"{root}: is not a folder; give the one that holds your runs")
    return sort_runs([_summarise(path) for path in _find_runs(root)], "when")


def is_own_run(path: Path) -> bool:
    """Return True if a folder has the files that every training and conversion of ours writes."""
    return all((path / name).is_file() for name in _MARKS)


def assert_replaceable(path: Path, *, option: str) -> None:
    """Raise UserError if the result of an option would replace a file of another kind, or a record.

    A drawing of another ending is refused, too, since programs take it for one of another kind.

    A record is a file that a run, a prepared set or an exported network needs.
    """
    if path == Path("-"):
        raise UserError(f"{option} -: results are written into a file; give its name")
    ending = _RESULT_ENDINGS.get(option)
    if ending in _DRAWINGS and path.suffix.lower() != ending:
        raise UserError(f"{option} {path}: is a drawing in {_DRAWINGS[ending]}; give a name that ends in {ending}")
    if ending is None or not path.is_file() or not path.stat().st_size:
        return
    network = path.with_suffix("")
    reason = ""
    if path.suffix.lower() != ending:
        reason = f"does not end in {ending}"
    elif is_own_run(path.parent) and re.fullmatch(_RECORDS, path.name):
        reason = f"is a file of the run {path.parent}"
    elif path.name == "manifest.json":
        reason = f"is the record of what {path.parent} holds"
    elif network.suffix in NETWORK_ENDINGS and network.exists():
        reason = f"is the description of {network.name}"
    if reason:
        raise UserError(f"{option} {path}: {reason}, and would be replaced; give the name of a new file")


def _find_runs(root: Path) -> Iterator[Path]:
    """Find run directories; what lies inside of one belongs to it."""
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as entries:
                is_folder_by_name = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
        except OSError:  # cannot be read, or was deleted meanwhile
            continue
        if is_folder_by_name.keys() >= {*_MARKS}:
            yield folder
        else:
            waiting += [folder / name for name, is_folder in is_folder_by_name.items() if is_folder]


def _summarise(path: Path) -> RunSummary:
    """Summarise a run; one whose files have another form is damaged."""
    summary = RunSummary(path, path.name, "damaged", num_bytes=measure_bytes(path))
    try:
        return _read_summary(summary)
    except (OSError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return dataclasses.replace(summary, note=" ".join(reason.split()))


def _read_summary(summary: RunSummary) -> RunSummary:
    path = summary.path
    assert_own_files(path)
    stated = _scan_config(path / "config.yaml")
    metric = stated.get("evaluate.metric", "")
    lines, evaluation = _read_tail(path / "metrics.jsonl", metric)
    figure, split = (None, "") if evaluation is None else (evaluation[metric], evaluation["split"])
    holder = find_holder(path)
    state = "running" if holder else "stopped"
    if (path / "final.json").exists():
        final = load_document(path / "final.json")
        figure, split = final["metrics"].get(metric), final["data"]["split"]
        split = "test-selected" if final["selection"] == "test-selected" else split
        state = state if holder else "finished"
    elif not lines and not holder and (path / "lineage.json").exists():
        state = "converted"
    return dataclasses.replace(
        summary,
        name=stated.get("name", path.name),
        state=state,
        task=stated.get("task.name", ""),
        data=stated.get("data.name", ""),
        model=stated.get("model.name", ""),
        steps=lines[-1]["step"] if lines else None,
        metric=metric,
        figure=None if figure is None else float(figure),
        split=str(split),
        mode=stated.get("evaluate.mode", ""),
        when=str(load_document(path / "environment.json").get("time") or ""),
        note=f"on {holder}" if holder else "",
    )


def _scan_config(path: Path) -> dict[str, str]:
    """Scan a recorded config for the names of its parts.

    As we wrote it, a line holds one value, and a YAML parser takes longer than all other work on a run together.
    """
    values: dict[str, str] = {}
    section = ""
    for line in read_regular_file(path, max_bytes=_MAX_CONFIG_BYTES).decode().splitlines():
        if head := _SECTION.match(line):
            section = head[1]
            if section == "name":
                values["name"] = _parse_scalar(line.partition(":")[2])
        elif child := _CHILD.fullmatch(line):
            values[f"{section}.{child[1]}"] = _parse_scalar(child[2])
    return values


def _parse_scalar(text: str) -> str:
    text = text.strip()
    try:
        return str(json.loads(text)) if text.startswith('"') else text.replace("null", "")
    except ValueError:
        return text.strip('"')


def _read_tail(path: Path, metric: str) -> tuple[list[Mapping[str, Any]], Mapping[str, Any] | None]:
    """Read the whole lines at the end of a file of metrics, and the last with a figure `metric` of an evaluation.

    As many are read as lead to an evaluation, all if there is none: training may log thousands in between. If the file
    is missing, there are none.
    """
    size = check_regular_file(path) if path.exists() else 0
    num_bytes = _TAIL_BYTES
    while size:
        start = max(0, size - num_bytes)
        with open(path, "rb") as file:
            file.seek(start)
            texts = file.read(size - start).split(b"\n")
        lines = [parse_json(text) for text in (texts[1:-1] if start else texts[:-1])]
        last = next((line for line in reversed(lines) if line["split"] != "train" and metric in line), None)
        if last is not None or not start:
            return lines, last
        num_bytes *= 8
    return [], None


def measure_bytes(folder: Path) -> int:
    """Measure the bytes of all files below a folder, without those that links lead to."""
    num_bytes, waiting = 0, [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        num_bytes += entry.stat(follow_symlinks=False).st_size
        except OSError:
            continue
    return num_bytes


# --- selection -------------------------------------------------------------------------------------------------------


def sort_runs(runs: Sequence[RunSummary], key: str) -> list[RunSummary]:
    """Sort runs: newest, largest and longest first, figures best first within each metric, names by the alphabet."""
    if key not in SORT_KEYS:
        raise UserError(f"--sort {key}: give one of {', '.join(SORT_KEYS)}")
    ordered = sorted(runs, key=lambda run: str(run.path))
    if key == "figure":
        return sorted(ordered, key=lambda run: (run.figure is None, run.metric, _rank(run)))
    if key in ("when", "size", "steps"):
        numbers = {"size": lambda run: run.num_bytes, "steps": lambda run: run.steps or 0, "when": lambda run: run.when}
        return sorted(ordered, key=numbers[key], reverse=True)
    return sorted(ordered, key=lambda run: getattr(run, key))


def _rank(run: RunSummary) -> float:
    figure = run.figure or 0.0
    return figure if run.mode == "min" else -figure


def filter_runs(runs: Sequence[RunSummary], words: Sequence[str]) -> list[RunSummary]:
    """Filter runs by all words: `task=NAME`, or text that path, name, task, data, model, metric or state contains."""
    return [run for run in runs if all(_matches(run, word) for word in words)]


def _matches(run: RunSummary, word: str) -> bool:
    fields = {name: str(getattr(run, name)) for name in _FIELDS}
    key, equals, value = word.partition("=")
    if equals and key in fields:
        return fields[key] == value
    return any(word.lower() in text.lower() for text in fields.values())


def find_run(name: Path, folder: Path) -> Path:
    """Find a run by its path, or by its path below `folder`. Raises UserError if neither is a run of ours."""
    path = next((path for path in (name, folder / name) if path.is_dir()), name)
    if path.is_symlink():
        raise UserError(f"{path}: is a link to {os.readlink(path)}; give the run directory itself")
    if not is_own_run(path):
        raise UserError(f"{path}: is not a run directory ({', '.join(_MARKS)} in it); 'sightline runs' lists them")
    return path
