"""`sightline train`: find the run's directory, build, check, train."""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sightline.config import RunConfig, read_config
from sightline.config.show import to_plain
from sightline.describe.mean_pose import yardsticks_of
from sightline.engine.build import Built, Data, build
from sightline.engine.distributed import World, start_world
from sightline.engine.failure import leave
from sightline.engine.launch import launch, processes_to_start
from sightline.engine.precision import name_nondeterminism, set_backends
from sightline.engine.session import Session, StopRequest, evaluation_document
from sightline.engine.train import NonFiniteGradientError
from sightline.errors import RunError, UserError
from sightline.plain_files import read_plain
from sightline.plugins import Plugin, check_recorded
from sightline.runs import checkpoint
from sightline.runs.inputs import INPUTS
from sightline.runs.lineage import LINEAGE
from sightline.runs.run_directory import claim, environment
from sightline.verbs.common import config_of, load_document, write_document
from sightline.verbs.final_probe import probed
from sightline.verbs.output import note, show_evaluation

__all__ = ["Options", "train"]

logger = logging.getLogger(__name__)

# What may differ when a run is resumed: none of it changes the numbers.
_MAY_DIFFER = ("loader.", "log.", "distributed.timeout_s", "checkpoint.", "expect")

# What a run may have left that was killed before it wrote its config, which makes a folder a run.
_BEFORE_CONFIG = frozenset(
    {".lock", "environment.json", "facts.json", INPUTS, LINEAGE}
    | {f".{name}.partial" for name in ("environment.json", "facts.json", INPUTS, LINEAGE, "config.yaml")}
)


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    config: Path
    overrides: tuple[str, ...] = ()
    out: Path | None = None
    processes: int | None = None
    resume: str | None = None
    plugins: tuple[Path, ...] = ()
    no_check: bool = False
    device: str = "auto"
    json: Path | None = None

    def arguments(self) -> list[str]:
        """The command line for each launched process."""
        words = ["train", str(self.config), *self.overrides, "--device", self.device]
        for name, value in (("--out", self.out), ("--resume", self.resume), ("--json", self.json)):
            words += [name, str(value)] if value is not None else []
        for plugin in self.plugins:
            words += ["--plugin", str(plugin)]
        return [*words, "--no-check"] if self.no_check else words


def train(options: Options) -> int:
    """Train what a config describes; the exit code."""
    config, plugins = config_of(options.config, options.overrides, options.plugins)
    num_processes = processes_to_start(options.processes)
    if num_processes > 1:
        if options.out is not None and options.resume is None:
            _assert_empty(options.out)
        return launch(options.arguments(), num_processes)
    stop = StopRequest()
    with start_world(device=options.device, timeout_s=config.distributed.timeout_s) as world:
        stop.listen(is_told=world.size == 1)  # not before: a signal ends a process that still waits for the others
        return _train_here(options, config, plugins, world, stop)


def _train_here(options: Options, config: RunConfig, plugins: Sequence[Plugin], world: World, stop: StopRequest) -> int:
    place = _find_place(options, config, plugins, world)
    if place["finished"]:
        if world.is_first:
            final = Path(place["path"]) / "final.json"
            note(f"{place['path']}: this run is finished; nothing to do. Figures: {final}")
            write_document(options.json, load_document(final))
        return 0
    set_backends(determinism=config.train.determinism, cudnn=config.train.cudnn)
    built = build(config, world, is_resumed=bool(place["checkpoint"]))
    findings = _preflight(options, built, world)
    if any(finding.severity == "error" for finding in findings):
        return 1
    path = _make_place(place, config, world)
    directory = world.run_directory(path)
    with directory.lock():
        if world.is_first:
            _assert_as_found(place, path)
        record = environment() | {
            "plugins": [plugin.record() for plugin in plugins],
            "checked": not options.no_check,
            "num_processes": world.size,
        }
        session = Session(
            built, world, directory, stop=stop, record=record, final_metrics=partial(probed, config, world, directory)
        )
        session.start_files()
        for plugin in plugins:
            directory.write_text(f"plugins/{plugin.path.name}", plugin.text)
        directory.append_line("sessions.jsonl", record | {"resumed": place["checkpoint"]})
        directory.write_json("findings.json", [finding.to_dict() for finding in findings])
        if place["checkpoint"]:
            session.resume(Path(place["checkpoint"]))
        else:
            session.begin()
        if world.is_first:
            note("\n".join([*session.told(), _told_data(built.data)]))
            note(f"run directory: {path}" + (f", resumed at step {built.job.step}" if place["checkpoint"] else ""))
        code = _run(session, built, options, world, path, stop)
    if session.is_cut and world.size > 1:
        leave(code)  # the others may wait in a collective of what was cut off, and end by the signal, too
    return code


def _told_data(data: Data) -> str:
    """How many samples train, choose the best weights, and are reported on."""
    chosen, test = data.selection, data.test
    held_out = ", held out of the training part" if chosen.dataset is data.train.dataset else ""
    choosing = "" if chosen.split == "test" else f", {len(chosen.indices)} of validation{held_out}"
    return f"samples: {len(data.train.indices)} of training{choosing}" + (
        f", {len(test.indices)} of test" if test.split == "test" else ", no test part"
    )


def _run(session: Session, built: Built, options: Options, world: World, path: Path, stop: StopRequest) -> int:
    try:
        final = session.run()
    except NonFiniteGradientError as error:
        from sightline.doctor.checks.optimiser.non_finite import explain

        finding = explain(error, world)
        session.directory.write_json("findings.json", [finding.to_dict()])
        raise RunError(str(finding)) from error
    except torch.OutOfMemoryError as error:
        step = built.job.step
        raise RunError(f"step {step}: the GPU's memory is full; raise train.micro_batches, same numbers") from error
    except RuntimeError as error:
        named = name_nondeterminism(error)
        if named is None:
            raise
        raise named from error
    if final is None:
        if world.is_first:
            done = f"{built.job.step} of {built.job.num_steps}"
            note(f"stopped after step {done}, state saved; go on with --resume auto --out {path}")
        return 128 + (stop.signal or signal.SIGTERM)
    if world.is_first:
        document = evaluation_document(built.config, final, built.data.test.split, "last")
        document |= yardsticks_of(built.data.test, built.data)
        title = f"{built.config.name}: last checkpoint on {built.data.test.split}"
        show_evaluation(document, title=title, dataset=built.data.test.dataset)
        if not options.no_check:
            _look_back(session, built, path)
        session.directory.assert_own()
        write_document(options.json, document)
        note(f"run directory: {path}")
    return 0


def _look_back(session: Session, built: Built, path: Path) -> None:
    """Findings on what the training left, shown and added to findings.json; on the first process, alone."""
    from sightline.doctor.suite import run_after
    from sightline.verbs.output import show_findings

    findings = run_after(built, World(device=built.job.device), run=path)
    if findings:
        show_findings([finding for finding in findings if finding.severity != "note"])
        before = json.loads(read_plain(path / "findings.json"))
        session.directory.write_json("findings.json", [*before, *(finding.to_dict() for finding in findings)])


def _preflight(options: Options, built: Built, world: World) -> list[Any]:
    """Findings of the quick checks, shown on the first process; the same list everywhere."""
    from sightline.doctor.suite import run_quick
    from sightline.verbs.output import show_findings

    if options.no_check:
        if world.is_first:
            note("checks skipped (--no-check); the run records that")
        return []
    findings = run_quick(built, world)
    if world.is_first:
        show_findings([finding for finding in findings if finding.severity != "note"])
    return findings


# --- where the run lives ----------------------------------------------------------------------------------------------


def _find_place(options: Options, config: RunConfig, plugins: Sequence[Plugin], world: World) -> dict[str, Any]:
    """The first process looks at the disk and all hear the same: path, checkpoint to resume, whether finished."""
    answer = json.dumps(_look(options, config, plugins)) if world.is_first else ""
    return json.loads(world.broadcast_text(answer, what="the run's place"))


def _look(options: Options, config: RunConfig, plugins: Sequence[Plugin]) -> dict[str, Any]:
    held = [] if options.out is None else _left_by_runs(options.out)
    fresh = {"path": str(options.out) if options.out else None, "checkpoint": None, "finished": False, "held": held}
    if options.resume is None:
        if options.out is not None:
            _assert_empty(options.out)
        return fresh
    if options.resume != "auto":
        return _resume_from(Path(options.resume), options, config, plugins)
    path = options.out or _newest_run(Path("runs") / config.name)
    if path is None or not (path / "config.yaml").exists():
        if path is not None:
            _assert_empty(path, may_hold=_BEFORE_CONFIG)
        return fresh
    _assert_same_run(path, config, plugins)
    held = _left_by_runs(path)
    found, rejected = checkpoint.newest_sound(path)
    for line in rejected:
        note(f"damaged checkpoint passed over: {line}")
    finished = (path / "final.json").exists() and found is not None and not rejected
    return {"path": str(path), "checkpoint": str(found) if found else None, "finished": finished, "held": held}


def _resume_from(path: Path, options: Options, config: RunConfig, plugins: Sequence[Plugin]) -> dict[str, Any]:
    """A named run directory or checkpoint."""
    run = checkpoint.run_around(path)
    if run is None:
        raise UserError(f"--resume {path}: neither a run directory nor a checkpoint inside one")
    if options.out is not None and options.out.resolve() != run.resolve():
        raise UserError(
            f"--resume {path}: belongs to {run}, but --out says {options.out}; a run is resumed where it lies"
        )
    _assert_same_run(run, config, plugins)
    held = _left_by_runs(run)
    finished = path.resolve() == run.resolve() and (run / "final.json").exists()
    finished = finished and not checkpoint.newest_sound(run)[1]
    return {"path": str(run), "checkpoint": str(path), "finished": finished, "held": held}


def _make_place(place: dict[str, Any], config: RunConfig, world: World) -> Path:
    """The run's directory, made now that nothing stands in the way of training."""
    world.barrier("everything is built")  # an error on any process comes before there is a folder
    if place["path"] is not None:
        return Path(place["path"])
    made = str(claim(Path("runs") / config.name)) if world.is_first else ""
    return Path(world.broadcast_text(made, what="the run's directory"))


def _left_by_runs(path: Path) -> list[str]:
    """Files and checkpoints of a folder that a run would replace or remove."""
    files = [name for name in ("config.yaml", "final.json") if (path / name).exists()]
    return files + [folder.name for folder in checkpoint.kept(path)]


def _assert_as_found(place: dict[str, Any], path: Path) -> None:
    """Raises UserError where another run wrote to the folder between our look at it and our lock."""
    if _left_by_runs(path) != place["held"]:
        raise UserError(f"{path}: another run wrote to this folder while this one was built; start again")


def _newest_run(base: Path) -> Path | None:
    numbers = sorted((int(p.name) for p in base.iterdir() if p.name.isdecimal()), reverse=True) if base.is_dir() else []
    return base / str(numbers[0]) if numbers else None


def _assert_empty(out: Path, *, may_hold: frozenset[str] = frozenset()) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; give a folder")
    held = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if held - may_hold:
        advice = " and holds no run to resume;" if may_hold else "; go on with it by --resume auto, or"
        raise UserError(f"--out {out}: is not empty{advice} give another folder")


def _assert_same_run(run: Path, config: RunConfig, plugins: Sequence[Plugin]) -> None:
    """Refuse to go on with a run of another config or with changed plugins."""
    notes = check_recorded(load_document(run / "environment.json").get("plugins", []), plugins, run=run)
    if notes:
        raise UserError(f"--resume: {notes[0]}; a resumed run must be what it was")
    before, now = (_leaves(to_plain(c)) for c in (read_config(run / "config.yaml"), config))
    differing = [
        key
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
        and not key.startswith(_MAY_DIFFER)
        and (key, now.get(key)) != ("evaluate.mode", None)  # a run records the mode that its metric stated
    ]
    if differing:
        told = "; ".join(
            f"{key}: {before.get(key, 'absent')} there, {now.get(key, 'absent')} here" for key in differing[:8]
        )
        raise UserError(f"--resume: {run} was trained with another config ({len(differing)} keys differ): {told}")


def _leaves(tree: Any, path: str = "") -> dict[str, Any]:
    if isinstance(tree, dict | list) and tree:
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {k: v for key, value in items for k, v in _leaves(value, f"{path}.{key}".lstrip(".")).items()}
    return {path: tree}
