"""Rules of resuming: the folder of a run, the checkpoint that it continues from, and what may differ meanwhile."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import ge
from pathlib import Path
from typing import Any

from sightline.config import RunConfig, read_config
from sightline.config.run_config import Log
from sightline.config.yaml_writer import to_plain
from sightline.engine.distributed import World
from sightline.engine.tensorboard import TensorBoard
from sightline.engine.wandb import Wandb
from sightline.errors import UserError
from sightline.plugins import Plugin, check_recorded
from sightline.runs import checkpoint
from sightline.runs.inputs import INPUTS_FILE
from sightline.runs.lineage import LINEAGE_FILE
from sightline.runs.run_directory import create_numbered_folder
from sightline.runs.run_documents import assert_own_files, load_document
from sightline.runs.trained_weights import assert_sha256, is_packed

__all__ = ["RunLocation", "assert_empty", "assert_same_run", "create_run_folder", "resolve_run_location"]

# None of these changes a number of the run.
_MAY_DIFFER = ("loader.", "log.", "distributed.timeout_s", "checkpoint.", "data.root", "expect", "teacher.from")

# A run may go on for longer; neither may become less.
_LENGTH = ("train.epochs", "train.steps")

# A run records the mode that its metric stated, and the weights of its teacher.
_RECORDED = (("evaluate.mode", None), ("teacher.sha256", None))

# Files of a run that was killed before it wrote its config, which makes a folder a run.
_BEFORE_CONFIG = frozenset(
    {".lock", "environment.json", "facts.json", INPUTS_FILE, LINEAGE_FILE}
    | {f".{name}.partial" for name in ("environment.json", "facts.json", INPUTS_FILE, LINEAGE_FILE, "config.yaml")}
)


@dataclass(frozen=True)
class RunLocation:
    """Where a run is written, and what it continues from.

    `path` is None where the run gets a new folder below `runs/`. `is_longer` is whether the run goes on past the
    end that its own config names. `held` names the files and checkpoints that the folder held when it was looked at,
    `notes` the damaged checkpoints that were skipped.
    """

    path: str | None
    checkpoint: str | None = None
    is_finished: bool = False
    is_longer: bool = False
    existing_files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def assert_unchanged(self, path: Path) -> None:
        """Raises UserError where another run wrote to the folder between our look at it and our lock."""
        if _left_by_runs(path) != self.existing_files:
            raise UserError(f"{path}: another run wrote to this folder while this one was built; start again")


def resolve_run_location(
    config: RunConfig, plugins: Sequence[Plugin], world: World, *, out: Path | None, resume: str | None
) -> RunLocation:
    """The place of a run, the same on every process: the first one reads the disk.

    `resume` is `auto`, a run directory, a checkpoint, or None for a new run, whose folder must be empty. Raises
    UserError for a folder that holds something else, and for a run of another config or of changed plugins;
    MissingExtraError where a run that is not finished writes logs for which a package is missing.
    """

    def look() -> str:
        place = _place_of(config, plugins, out=out, resume=resume)
        if not place.is_finished:
            _assert_loggers_installed(config.log)
        return json.dumps(dataclasses.asdict(place))

    found = json.loads(world.broadcast_from_rank_zero(look, operation="the run's place"))
    return RunLocation(**{**found, "existing_files": tuple(found["existing_files"]), "notes": tuple(found["notes"])})


def create_run_folder(place: RunLocation, config: RunConfig, world: World) -> Path:
    """The path of the run's folder, once every process has built its run; a new number is claimed where it has none."""
    world.barrier("everything is built")  # an error on any process comes before there is a folder
    if place.path is not None:
        return Path(place.path)
    return Path(
        world.broadcast_from_rank_zero(
            lambda: str(create_numbered_folder(Path("runs") / config.name)), operation="the run's directory"
        )
    )


def assert_empty(out: Path, *, allowed: frozenset[str] = frozenset()) -> None:
    """Raises UserError where `out` is a file, or a folder that holds more than these names."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; give a folder")
    held = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if held - allowed:
        advice = " and holds no run to resume;" if allowed else "; go on with it by --resume auto, or"
        raise UserError(f"--out {out}: is not empty{advice} give another folder")


def assert_same_run(run: Path, config: RunConfig, plugins: Sequence[Plugin]) -> bool:
    """Whether the config is that of the run but for a later end: more `train.epochs`, or `train.steps`.

    Raises UserError where a run was trained with another config, with other plugins, or for longer.
    """
    assert_own_files(run)
    notes = check_recorded(load_document(run / "environment.json").get("plugins", []), plugins, run=run)
    if notes:
        raise UserError(f"--resume: {notes[0]}; a resumed run must be what it was")
    recorded = read_config(run / "config.yaml")
    before, now = (_leaves(to_plain(c)) for c in (recorded, config))
    is_longer = _length(config) != _length(recorded) and all(map(ge, _length(config), _length(recorded)))
    differing = [
        key
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not key.startswith(_MAY_DIFFER) and (key, now.get(key)) not in _RECORDED
    ]
    differing = [key for key in differing if not is_longer or key not in _LENGTH]
    if differing:
        listed = "; ".join(f"{key}: {_shown(before, key)} there, {_shown(now, key)} here" for key in differing[:8])
        shorter = "" if set(differing) - set(_LENGTH) else f"; {_how_long(recorded)}"
        count = "1 key differs" if len(differing) == 1 else f"{len(differing)} keys differ"
        raise UserError(
            f"--resume: {run} was trained with another config ({count}): {listed}{shorter}; give these values, or "
            "another --out"
        )
    if config.teacher is not None and recorded.teacher is not None:
        assert_sha256(Path(config.teacher.source), recorded.teacher.sha256)
    return is_longer


def _assert_loggers_installed(log: Log) -> None:
    if log.tensorboard:
        TensorBoard.assert_installed()
    if log.wandb != "off":
        Wandb.assert_installed()


def _shown(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key, "absent")
    return "null" if value is None else str(value)


def _how_long(recorded: RunConfig) -> str:
    if recorded.train.steps is None:
        return f"a run may go on for longer, by a later train.epochs (now {recorded.train.epochs}), and not be cut"
    return "a run may go on for longer, and not be cut"


def _length(config: RunConfig) -> tuple[float, float]:
    return config.train.epochs, math.inf if config.train.steps is None else config.train.steps


def _place_of(config: RunConfig, plugins: Sequence[Plugin], *, out: Path | None, resume: str | None) -> RunLocation:
    new = RunLocation(None if out is None else str(out), existing_files=() if out is None else _left_by_runs(out))
    for place in [path for path in (out, None if resume in (None, "auto") else Path(resume)) if path is not None]:
        if is_packed(place):
            raise UserError(
                f"{place}: is a packed model, which cannot be resumed; start a run from it: init.from={place}"
            )
    if resume is None:
        if out is not None:
            assert_empty(out)
        return new
    if resume != "auto":
        return _named(Path(resume), config, plugins, out=out)
    path = out or _newest_run(Path("runs") / config.name)
    if path is None or not (path / "config.yaml").exists():
        if path is not None:
            assert_empty(path, allowed=_BEFORE_CONFIG)
        return new
    is_longer = assert_same_run(path, config, plugins)
    held = _left_by_runs(path)
    found, rejected = checkpoint.newest_valid(path)
    is_finished = (path / "final.json").exists() and found is not None and not rejected and not is_longer
    notes = tuple(f"damaged checkpoint passed over: {line}" for line in rejected)
    return RunLocation(str(path), str(found) if found else None, is_finished, is_longer, held, notes)


def _named(path: Path, config: RunConfig, plugins: Sequence[Plugin], *, out: Path | None) -> RunLocation:
    """The place of a run that is named by its directory or by one of its checkpoints."""
    run = checkpoint.enclosing_run(path)
    if run is None:
        raise UserError(
            f"--resume {path}: neither a run directory nor a checkpoint inside one; give the --out of a training"
        )
    if out is not None and out.resolve() != run.resolve():
        raise UserError(f"--resume {path}: belongs to {run}, but --out is {out}; a run is resumed where it lies")
    is_longer = assert_same_run(run, config, plugins)
    is_finished = not is_longer and path.resolve() == run.resolve() and (run / "final.json").exists()
    is_finished = is_finished and not checkpoint.newest_valid(run)[1]
    return RunLocation(str(run), str(path), is_finished, is_longer, _left_by_runs(run))


def _left_by_runs(path: Path) -> tuple[str, ...]:
    """Files and checkpoints of a folder that a run would replace or remove."""
    files = [name for name in ("config.yaml", "final.json") if (path / name).exists()]
    return (*files, *(folder.name for folder in checkpoint.list_checkpoints(path)))


def _newest_run(base: Path) -> Path | None:
    numbers = sorted((int(p.name) for p in base.iterdir() if p.name.isdecimal()), reverse=True) if base.is_dir() else []
    return base / str(numbers[0]) if numbers else None


def _leaves(tree: Any, path: str = "") -> dict[str, Any]:
    if isinstance(tree, dict | list) and tree:
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {k: v for key, value in items for k, v in _leaves(value, f"{path}.{key}".lstrip(".")).items()}
    return {path: tree}
