"""Runs on a hub: packed, described by a card and uploaded; fetched as a run directory like any other."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from sightline.compression.packed_file import read_packed
from sightline.compression.policy import trained_policy
from sightline.contract.errors import CheckpointError, RunError, UserError, summarise_error
from sightline.engine.run_loading import OpenRun, open_run, open_trained
from sightline.instrument.memory_bound import MemoryBound, measure_machine
from sightline.published.hub import PREFIX, fetch_run, parse_name, push_folder
from sightline.runs.lineage import describe_lineage, read_lineage
from sightline.runs.process_folder import process_folder
from sightline.runs.run_directory import RunDirectory
from sightline.runs.run_documents import load_document
from sightline.runs.run_files import RunFiles
from sightline.runs.run_folders import list_runs
from sightline.runs.run_records import ReportedRun, compare_runs, note_figures, read_reported_run
from sightline.runs.trained_weights import PACKED_FILE, is_packed
from sightline.store.files.atomic_write import disk_failure, whole_folder
from sightline.workbench.compress.packing import FILES, SUMMARY, write_packed_run
from sightline.workbench.weights.conversion import assert_empty_or_absent

_PRIVATE = ("command_line", "directory", "host")
"""Entries of environment.json that tell of their author's machine, not of the run."""
_PLUGIN = re.compile(r"plugins/(\w{1,100}/){0,9}\w{1,100}\.py", re.ASCII)
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
    with process_folder("push") as temporary:
        folder = temporary / "run"
        with _full_disk_explained(temporary):
            if is_packed(path):
                for source in path.rglob("*"):
                    if source.is_file() and _is_own(file := source.relative_to(path).as_posix()):
                        _copy(source, folder / file)
            else:
                write_packed_run(run, run.model, trained_policy(run.config), folder, about={})
                shutil.copyfile(path / "final.json", folder / "final.json")
            directory = RunDirectory(folder, is_writer=True)
            directory.write_json("environment.json", _strip_environment(load_document(folder / "environment.json")))
            directory.write_text(_CARD, make_card(run, reported, name, folder / PACKED_FILE))
        return push_folder(folder, name, is_public=is_public, replaced=[*sorted(FILES), "plugins/*"])


def pull_run(name: str, target: Path) -> list[str]:
    """Fetch a pushed run into a new folder; return the repository's files that are none of a packed run, left there.

    The run is read before it takes its place. Raises CheckpointError for a repository that is no run, and for a run
    that cannot be read, of which nothing is left.
    """
    assert_empty_or_absent(target, option="--out")
    files, remaining = fetch_run(name, is_own=_is_own)
    with whole_folder(target, option="--out") as folder:
        for file, source in files:
            _copy(source, folder / file)
        try:
            _assert_readable(folder)
        except Exception as error:
            reason = summarise_error(error) if not isinstance(error, UserError) else str(error).splitlines()[0]
            raise CheckpointError(
                f"{name}: is not a run that can be read: {reason.replace(f'{folder}/', '')}; nothing of it was kept: "
                "ask its authors to push it again"
            ) from error
    return [file for file in remaining if file != _CARD and not file.startswith(".")]


def _is_own(file: str) -> bool:
    """Return True for a name of a packed run's file; others stay where they are."""
    return file in FILES or _PLUGIN.fullmatch(file) is not None


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


@contextlib.contextmanager
def _full_disk_explained(folder: Path) -> Iterator[None]:
    """Explain errors of writing below a temporary folder, in place of what a training would be told."""
    try:
        yield
    except (OSError, RunError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError) or not Path(cause.filename2 or cause.filename or folder).is_relative_to(
            folder
        ):
            raise
        raise disk_failure(cause, folder.parent, again="push again", option="TMPDIR") from error


def _assert_readable(folder: Path) -> None:
    """Read all files of a run, and load its network unless that needs plugins. Raises what the readers raise."""
    files = RunFiles(folder)
    if files.environment.get("plugins"):
        read_packed(folder / PACKED_FILE)
    else:
        with MemoryBound(measure_machine()):  # a stranger's config may state any width
            open_trained(folder)
    for document in (SUMMARY, "final.json"):
        if (folder / document).exists():
            load_document(folder / document)
    (summary,) = list_runs(folder)
    if summary.state == "damaged":
        raise UserError(summary.note)
    _ = files.inputs, files.lineage


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
        f"```sh\nsightline runs pull {PREFIX}{repository} --out {repository.rpartition('/')[2]}\n"
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
        str(finding.get("summary")) for finding in reported.findings
    )


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


def _strip_environment(environment: Mapping[str, Any]) -> dict[str, Any]:
    plugins = [{**entry, "path": entry["name"]} for entry in environment.get("plugins", [])]
    return {**{key: value for key, value in environment.items() if key not in _PRIVATE}, "plugins": plugins}
