"""Runs on a hub: packed, described by a card and uploaded; fetched as a run directory like any other."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sightline.compression.policy import trained_policy
from sightline.contract.errors import UserError
from sightline.engine.run_loading import OpenRun, open_run
from sightline.published.hub import PREFIX, fetch_run, parse_name, push_folder
from sightline.runs.checkpoint import PACKED_FILE, is_packed
from sightline.runs.lineage import describe_lineage, read_lineage
from sightline.runs.run_directory import RunDirectory, load_document
from sightline.runs.run_records import ReportedRun, compare_runs, note_figures, read_reported_run
from sightline.store.files.atomic_write import whole_folder
from sightline.workbench.compress.packing import FILES, write_packed_run
from sightline.workbench.weights.conversion import assert_empty_or_absent

_PRIVATE = ("command_line", "directory", "host")
"""Entries of environment.json that tell of their author's machine, not of the run."""
_PLUGIN = re.compile(r"plugins/(\w+/)*\w+\.py", re.ASCII)
_CARD = "README.md"


def push_run(path: Path, name: str, *, is_public: bool, plugins: tuple[Path, ...] = ()) -> str:
    """Upload a finished run as a packed one with a card, as one commit; return the commit's address.

    A run that is not packed is packed without loss. Raises UserError for a run that is not finished.
    """
    parse_name(name)
    run = open_run(path, plugins=plugins)
    reported = read_reported_run(path, path.name)
    if reported.final is None:
        raise UserError(f"{path}: has no final.json, so that its training is not finished; resume it, then push it")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        if is_packed(path):
            shutil.copytree(path, folder, ignore=_ignore_others)
        else:
            write_packed_run(run, run.model, trained_policy(run.config), folder, about={})
            shutil.copyfile(path / "final.json", folder / "final.json")
        directory = RunDirectory(folder, is_writer=True)
        directory.write_json("environment.json", _strip_environment(load_document(folder / "environment.json")))
        directory.write_text(_CARD, make_card(run, reported, name, folder / PACKED_FILE))
        return push_folder(folder, name, is_public=is_public, replaced=[*sorted(FILES), "plugins/*"])


def pull_run(name: str, target: Path) -> list[str]:
    """Fetch a pushed run into a new folder; return the repository's files that are none of a packed run, left there.

    Raises CheckpointError for a repository that is no run.
    """
    assert_empty_or_absent(target, option="--out")
    files, others = fetch_run(name, is_own=lambda file: file in FILES or _PLUGIN.fullmatch(file) is not None)
    with whole_folder(target) as folder:
        for file, source in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / file)
    return [file for file in others if file != _CARD and not file.startswith(".")]


def make_card(run: OpenRun, reported: ReportedRun, name: str, packed: Path) -> str:
    """Make the card of a run, Markdown under the metadata that hubs read: figures, use, training, findings, config."""
    assert reported.final is not None
    config, final = run.config, reported.final
    repository = name.removeprefix(PREFIX)
    figures = [
        {"type": key, "value": value} for key, value in final["metrics"].items() if isinstance(value, int | float)
    ]
    data = {"name": f"{config.data.name}, {final['data']['split']}", "type": config.data.name}
    about = {
        "library_name": "sightline",
        "tags": ["sightline", config.task.name, config.model.name],
        "model-index": [
            {
                "name": config.name,
                "results": [{"task": {"type": config.task.name}, "dataset": data, "metrics": figures}],
            }
        ],
    }
    summary = compare_runs([reported]).summary()
    lineage = read_lineage(run.path)
    notes = [*note_figures(final), *([] if lineage is None else [describe_lineage(lineage)])]
    git = reported.environment.get("git") or {}
    gpus = [str(gpu.get("name", "GPU")) for gpu in reported.environment.get("gpus") or []]
    machine = ", ".join(gpus) or reported.environment.get("cpu") or "a CPU"
    sections = [
        f"---\n{yaml.safe_dump(about, sort_keys=False)}---",
        f"# {config.name}",
        f"{config.model.name} for the task {config.task.name}, trained on {config.data.name} by sightline: "
        f"{sum(p.numel() for p in run.model.parameters()):,} parameters, {packed.stat().st_size / 1e6:.2f} MB.",
        "## Figures",
        "| | |\n|---|---|\n" + "\n".join(f"| {row[0]} | {_escape(row[1])} |" for row in summary),
        *(f"- {note}" for note in notes),
        "## Use",
        "With sightline and its extra `hub`:",
        f"```sh\nsightline runs --pull {PREFIX}{repository} --out {repository.rpartition('/')[2]}\n"
        f"sightline predict {repository.rpartition('/')[2]} FILE\n```",
        f"Another training starts from these weights by `init: {{from: {PREFIX}{repository}}}`.",
        "## Training",
        f"On {machine}, sightline at commit {git.get('commit') or 'unknown'}. {_describe_findings(reported)}",
        f"```yaml\n{(run.path / 'config.yaml').read_text(encoding='utf-8').strip()}\n```",
    ]
    return "\n\n".join(sections) + "\n"


def _describe_findings(reported: ReportedRun) -> str:
    if reported.findings is None or not reported.environment.get("checked"):
        return "It keeps no findings of checks."
    if not reported.findings:
        return "The checks before the first step found nothing."
    return "The checks before the first step found: " + "; ".join(
        str(each.get("summary")) for each in reported.findings
    )


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


def _ignore_others(folder: str, names: list[str]) -> list[str]:
    """List what is no file of a packed run, so that a user's own files stay at home."""
    is_root = (Path(folder) / PACKED_FILE).is_file()
    return [name for name in names if is_root and name not in FILES]


def _strip_environment(environment: Mapping[str, Any]) -> dict[str, Any]:
    plugins = [{**entry, "path": entry["name"]} for entry in environment.get("plugins", [])]
    return {**{key: value for key, value in environment.items() if key not in _PRIVATE}, "plugins": plugins}
