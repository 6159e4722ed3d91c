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

from sightline.config import RunConfig
from sightline.config.plain_values import flatten, to_plain
from sightline.config.run_config import Log, PrecisionName
from sightline.config.yaml_writer import format_inline
from sightline.contract.errors import RunError, UserError, join_some
from sightline.contract.plugins import Plugin
from sightline.engine.distributed import World
from sightline.engine.loggers.mlflow import Mlflow
from sightline.engine.loggers.tensorboard import TensorBoard
from sightline.engine.loggers.wandb import Wandb
from sightline.runs import checkpoint
from sightline.runs.folder_lock import LOCK_FILES
from sightline.runs.inputs import INPUTS_FILE
from sightline.runs.lineage import LINEAGE_FILE
from sightline.runs.run_directory import create_numbered_folder
from sightline.runs.run_documents import load_document
from sightline.runs.run_files import RunFiles
from sightline.runs.trained_weights import assert_sha256, is_packed

# None of these changes a number of the run.
MAY_DIFFER = ("loader.", "log.", "distributed.timeout_s", "checkpoint.", "data.root", "teacher.from", "expect")

# A run may go on for longer; neither may become less.
_LENGTH = ("train.epochs", "train.steps")

# May differ where a run goes on for longer, or past the early end of its training.
_EARLY_END = "train.early_stopping"

# A run records the mode that its metric stated, the weights of its teacher, its number format and size of batches.
_RECORDED = (
    ("evaluate.mode", None),
    ("teacher.sha256", None),
    ("train.precision", "auto"),
    ("train.batch_size", "auto"),
)

# Files of a run that was killed before it wrote its config, which makes a folder a run.
_BEFORE_CONFIG = frozenset(
    {*LOCK_FILES, "environment.json", "facts.json", INPUTS_FILE, LINEAGE_FILE}
    | {f".{name}.partial" for name in ("environment.json", "facts.json", INPUTS_FILE, LINEAGE_FILE, "config.yaml")}
)


@dataclass(frozen=True)
class RunLocation:
    """Directory of a run, and the checkpoint that it continues from.

    `path` is None if the run gets a new folder below `runs/`. `is_longer` is True if the run goes on past the
    end that its own config names. `existing_files` names files and checkpoints that the folder contained when it was
    read, `notes` the damaged checkpoints that were skipped. `precision` and `batch_size` are those of a run that is
    resumed.
    """

    path: str | None
    checkpoint: str | None = None
    is_finished: bool = False
    is_longer: bool = False
    existing_files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    precision: PrecisionName | None = None
    batch_size: int | None = None

    def keep_recorded(self, config: RunConfig) -> RunConfig:
        """Give a config with `auto` as precision or batch size what its run has recorded, if it has."""
        recorded = {"precision": self.precision, "batch_size": self.batch_size}
        replaced: dict[str, Any] = {
            key: value for key, value in recorded.items() if getattr(config.train, key) == "auto" and value is not None
        }
        return dataclasses.replace(config, train=dataclasses.replace(config.train, **replaced))

    def assert_unchanged(self, path: Path) -> None:
        """Raise UserError if another run has written to the folder since it was read."""
        if _list_run_files(path) != self.existing_files:
            raise UserError(f"{path}: another run wrote to this folder while this one was built; start again")


def resolve_run_location(
    config: RunConfig, plugins: Sequence[Plugin], world: World, *, out: Path | None, resume: str | None
) -> RunLocation:
    """Find the location of a run, the same on every process: the first one reads the disk.

    `resume` is `auto`, a run directory, a checkpoint, or None for a new run, whose folder must be empty. Raises
    UserError for a folder that holds something else, and for a run of another config or of changed plugins; RunError
    for a run that has checkpoints, or is finished, and cannot go on from any of them; MissingExtraError where a run
    that is not finished writes logs for which a package is missing.
    """

    def locate() -> str:
        location = _locate_run(config, plugins, out=out, resume=resume)
        if "config.yaml" in location.existing_files:
            train = RunFiles(Path(location.path or "")).config.train
            location = dataclasses.replace(location, precision=train.precision, batch_size=train.num_samples)
        if not location.is_finished:
            _assert_loggers_installed(config.log)
        return json.dumps(dataclasses.asdict(location))

    fields = json.loads(world.broadcast_from_rank_zero(locate, operation="the run's place"))
    return RunLocation(**{**fields, "existing_files": tuple(fields["existing_files"]), "notes": tuple(fields["notes"])})


def create_run_folder(location: RunLocation, config: RunConfig, world: World) -> Path:
    """Create the run's folder once every process has built its run; claim a new number if it has none."""
    world.barrier("everything is built")  # an error on any process comes before there is a folder
    if location.path is not None:
        return Path(location.path)
    return Path(
        world.broadcast_from_rank_zero(
            lambda: str(create_numbered_folder(Path("runs") / config.name)), operation="the run's directory"
        )
    )


def assert_empty(out: Path, *, allowed: frozenset[str] = frozenset()) -> None:
    """Raise UserError if `out` is a file, or a folder that contains other names than `allowed`."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; give a folder")
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if names - allowed:
        is_run = not allowed and ("config.yaml" in names or names <= _BEFORE_CONFIG)
        advice = "; go on with it by --resume auto, or" if is_run else " and holds no run to resume;"
        raise UserError(f"--out {out}: is not empty{advice} give another folder")


def assert_same_run(run: Path, config: RunConfig, plugins: Sequence[Plugin]) -> bool:
    """Return True if the config differs from the run's only by a later end (`train.epochs` or `train.steps`).

    Of a run that is to go on so, and of one that ended early, `train.early_stopping` may differ, too: also a later end.
    Raises UserError if the run was trained with another config, with other plugins, or for longer.
    """
    files = RunFiles(run)
    notes = files.check_plugins(plugins)
    if notes:
        raise UserError(f"--resume: {notes[0]}; a run is resumed with the same plugins")
    recorded = files.config
    stored, now = (flatten(to_plain(c)) for c in (recorded, config))
    is_longer = _get_length(config) != _get_length(recorded) and all(
        map(ge, _get_length(config), _get_length(recorded))
    )
    changed_keys = [
        key
        for key in sorted(stored.keys() | now.keys())
        if stored.get(key) != now.get(key) and not key.startswith(MAY_DIFFER) and (key, now.get(key)) not in _RECORDED
    ]
    has_other_end = is_longer or _has_ended_early(run)
    may_differ = (*(_LENGTH if is_longer else ()), *((_EARLY_END,) if has_other_end else ()))
    changed_keys = [key for key in changed_keys if not key.startswith(may_differ)]
    if changed_keys:
        differences = "; ".join(
            f"{key}: {_format_value(stored, key)} there, {_format_value(now, key)} here" for key in changed_keys[:8]
        )
        shorter = "" if set(changed_keys) - set(_LENGTH) else f"; {_describe_length(recorded)}"
        count = "1 key differs" if len(changed_keys) == 1 else f"{len(changed_keys)} keys differ"
        raise UserError(
            f"--resume: {run} was trained with another config ({count}): {differences}{shorter}; give these values, or "
            "another --out"
        )
    if config.teacher is not None and recorded.teacher is not None:
        assert_sha256(Path(config.teacher.source), recorded.teacher.sha256)
    return is_longer or config.train.early_stopping != recorded.train.early_stopping


def _has_ended_early(run: Path) -> bool:
    return (run / "final.json").exists() and "ended_early" in load_document(run / "final.json")


def _assert_loggers_installed(log: Log) -> None:
    if log.tensorboard:
        TensorBoard.assert_installed()
    if log.wandb != "off":
        Wandb.assert_installed()
    if log.mlflow is not None:
        Mlflow.assert_installed(log.mlflow)


def _format_value(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key, "absent")
    return value if isinstance(value, str) else format_inline(value)


def _describe_length(recorded: RunConfig) -> str:
    if recorded.train.steps is None:
        return f"a run may go on for longer, by a later train.epochs (now {recorded.train.epochs}), and not be cut"
    return "a run may go on for longer, and not be cut"


def _get_length(config: RunConfig) -> tuple[float, float]:
    return config.train.epochs, math.inf if config.train.steps is None else config.train.steps


def _locate_run(config: RunConfig, plugins: Sequence[Plugin], *, out: Path | None, resume: str | None) -> RunLocation:
    new = RunLocation(None if out is None else str(out), existing_files=() if out is None else _list_run_files(out))
    for candidate in [path for path in (out, None if resume in (None, "auto") else Path(resume)) if path is not None]:
        if is_packed(candidate):
            raise UserError(
                f"{candidate}: is a packed model, which cannot be resumed; start a run from it: init.from={candidate}"
            )
    if resume is None:
        if out is not None:
            assert_empty(out)
        return new
    if resume != "auto":
        return _locate_named_run(Path(resume), config, plugins, out=out)
    path = out or _find_newest_run(Path("runs") / config.name)
    if path is None or not (path / "config.yaml").exists():
        if path is not None:
            assert_empty(path, allowed=_BEFORE_CONFIG)
        return new
    is_longer = assert_same_run(path, config, plugins)
    run_files = _list_run_files(path)
    newest, rejected = _find_newest_checkpoint(path, is_longer=is_longer)
    is_finished = (path / "final.json").exists() and not is_longer
    notes = tuple(f"damaged checkpoint passed over: {line}; its folder is kept, as .damaged" for line in rejected)
    return RunLocation(str(path), str(newest) if newest else None, is_finished, is_longer, run_files, notes)


def _find_newest_checkpoint(run: Path, *, is_longer: bool) -> tuple[Path | None, list[str]]:
    """Find the checkpoint that a run goes on from, None before its first one; and a line on each damaged newer one.

    Raises RunError where the run would otherwise begin again over checkpoints, or over a finished run.
    """
    newest, rejected = checkpoint.newest_valid(run)
    is_over = (run / "final.json").exists()
    advice = "put them back from a copy, or start a new run in another --out"
    if rejected and newest is None:
        raise RunError(f"{run}: no checkpoint can be resumed: {join_some(rejected, most=3, separator='; ')}; {advice}")
    if rejected and is_over and not is_longer:
        raise RunError(
            f"{run}: is finished, but {join_some(rejected, most=3, separator='; ')}; {advice}; to train its end again "
            f"from the newest sound one: --resume {newest}"
        )
    if is_over and is_longer and newest is None:
        raise RunError(f"{run}: is finished and has no checkpoint to train longer from; {advice}")
    return newest, rejected


def _locate_named_run(path: Path, config: RunConfig, plugins: Sequence[Plugin], *, out: Path | None) -> RunLocation:
    """Return the location of a run that is named by its directory or by one of its checkpoints."""
    is_word = len(path.parts) == 1 and not path.exists()  # it lies in no run, also where there is a config.yaml
    run = None if is_word else checkpoint.enclosing_run(path)
    if run is None:
        inner = None if out is None else out / "checkpoints" / path
        one = f"--resume {inner}" if inner is not None and inner.exists() else "the --out of a training"
        raise UserError(
            f"--resume {path}: neither a run directory nor a checkpoint inside one; write --resume auto, or give {one}"
        )
    if out is not None and out.resolve() != run.resolve():
        raise UserError(f"--resume {path}: belongs to {run}, but --out is {out}; a run is resumed in its own folder")
    is_longer = assert_same_run(run, config, plugins)
    is_finished = not is_longer and path.resolve() == run.resolve() and (run / "final.json").exists()
    _, rejected = checkpoint.newest_valid(run)
    is_finished = is_finished and not rejected
    if not is_finished:
        checkpoint.resolve(path)
    return RunLocation(str(run), str(path), is_finished, is_longer, _list_run_files(run))


def _list_run_files(path: Path) -> tuple[str, ...]:
    """List files and checkpoints of a folder that a run would replace or remove."""
    files = [name for name in ("config.yaml", "final.json") if (path / name).exists()]
    return (*files, *(folder.name for folder in checkpoint.list_checkpoints(path)))


def _find_newest_run(base: Path) -> Path | None:
    numbers = sorted((int(p.name) for p in base.iterdir() if p.name.isdecimal()), reverse=True) if base.is_dir() else []
    return base / str(numbers[0]) if numbers else None
