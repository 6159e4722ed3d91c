"""Files of a run's folder: the folder verified once, each file read once."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, final

from sightline.config import RunConfig, read_config
from sightline.config.shipped import find_config
from sightline.config.yaml_tree import describe_prepared
from sightline.contract.errors import UserError, join_some
from sightline.contract.plugins import Plugin, check_recorded
from sightline.contract.schema import suggest_beside
from sightline.contract.types import DataInfo
from sightline.runs.checkpoint import enclosing_run
from sightline.runs.inputs import Range, read_inputs, read_ranges
from sightline.runs.lineage import describe_lineage, read_lineage
from sightline.runs.run_documents import assert_own_files, load_document, read_facts
from sightline.runs.run_folders import NETWORK_ENDINGS, is_own_run

_MAX_LISTED = 3


def is_run(path: Path) -> bool:
    """Return True if a path is a run directory, not a config file."""
    return (path / "config.yaml").exists()


def assert_no_run(out: Path) -> None:
    """Raise UserError if a folder is a run directory, whose files would be mixed with others."""
    if is_run(out):
        raise UserError(f"--out {out}: is a run directory; give another folder")


def config_path_of_run(path: Path) -> Path:
    """Return the config file of a run directory; any other path unchanged."""
    return path / "config.yaml" if is_run(path) else path


def _describe_otherwise(path: Path) -> str:
    """Describe what is there in place of a run: an exported file, a config, a prepared set, or runs in a folder.

    Of a path that does not exist, a run beside it whose name is similar; else nothing.
    """
    if path.suffix.lower() in NETWORK_ENDINGS and path.is_file():
        return "; exported files are read by predict and serve"
    run = enclosing_run(path) if path.exists() else None
    if run is not None and is_own_run(run):
        inner = f" --checkpoint {shlex.quote(str(path))}" if path.parent.name == "checkpoints" else ""
        return f": {shlex.quote(str(run))}{inner}"
    if find_config(path) != path:
        return f"; a config makes one: sightline train {shlex.quote(str(path))}"
    if path.suffix.lower() in (".yaml", ".yml") and path.is_file():
        place = Path("runs") / path.stem
        made = _describe_otherwise(place) if place.is_dir() else ""
        return made or f"; a config makes one: sightline train {shlex.quote(str(path))}"
    if prepared := describe_prepared(path):
        return prepared
    if not path.exists():
        return suggest_beside(path, (config.parent for config in path.parent.glob("*/config.yaml")))
    try:
        folders = [path] if path.is_dir() else []
        for _ in range(2):
            folders += [inner for folder in folders for inner in sorted(folder.iterdir()) if inner.is_dir()]
    except OSError:
        return ""
    runs = list(dict.fromkeys(str(folder) for folder in folders if is_own_run(folder)))
    return f", as {join_some(runs, most=_MAX_LISTED)}" if runs else ""


@final
class RunFiles:
    """Files of a run directory, verified when they are opened; each is read on first use, then cached.

    `path` is as it was given, `folder` the same where a program changes its working directory.
    """

    def __init__(self, path: Path) -> None:
        """Raise UserError for a folder that is not a run, and for one with a link that leads out of it."""
        if not is_run(path):
            raise UserError(
                f"{path}: is not a run directory (no config.yaml in it); give the folder that a training wrote"
                f"{_describe_otherwise(path)}"
            )
        assert_own_files(path)
        self.path = path
        self.folder = path.absolute()

    @cached_property
    def config(self) -> RunConfig:
        """The config of the run's training."""
        return read_config(self.path / "config.yaml")

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        """The facts of the data that the run was trained on."""
        return read_facts(self.folder)

    @cached_property
    def inputs(self) -> DataInfo:
        """The info of the data that the run was trained on."""
        return read_inputs(self.folder, self.facts)

    @cached_property
    def ranges(self) -> Mapping[str, Range]:
        """Ranges of numbers that the run was trained on, by field of a sample; none where it began without checks."""
        return read_ranges(self.folder)

    @cached_property
    def lineage(self) -> dict[str, Any] | None:
        """The lineage of the run's initial weights; None for random ones."""
        return read_lineage(self.folder)

    def list_lineage_notes(self) -> list[str]:
        """Return the line on the source of the run's initial weights; no line for random ones."""
        return [] if self.lineage is None else [describe_lineage(self.lineage)]

    @cached_property
    def environment(self) -> dict[str, Any]:
        """The record of the run's first session: command, versions, machine, plugins."""
        return load_document(self.folder / "environment.json")

    def check_plugins(self, loaded: Sequence[Plugin]) -> list[str]:
        """List notes on plugins that changed since the run was made. Raises PluginError for one that is missing."""
        return check_recorded(self.environment.get("plugins", []), loaded, run=self.path)

    def check_photos(self, reading: str) -> str | None:
        """Describe how the run's photos were read if not by `reading`; None if they were, or if it states nothing."""
        began = self.environment.get("photos")
        if began is None or began == reading:
            return None
        return f"photos-read-otherwise: {self.path}: was trained on photos as {began}; here they are {reading}"

    def check_data(self, fingerprint: str | None) -> str | None:
        """Describe how the digest of a data set differs from that of the run's first session; None if it does not."""
        began = self.environment.get("data")
        if began is None or began == fingerprint:
            return None
        return (
            "data-changed: data.root holds another set, or one prepared again, than this run began with "
            f"({str(began)[:12]}, now {str(fingerprint)[:12]})"
        )
