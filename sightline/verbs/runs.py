"""`sightline runs`: the table of runs below a folder, the differences of two, slimmer and deleted ones."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sightline.commands.look import RunsOptions
from sightline.contract.errors import UserError, escape_to_one_line
from sightline.runs.run_directory import RunDirectory, write_document
from sightline.runs.run_folders import (
    RunSummary,
    assert_deletable,
    delete_run,
    filter_runs,
    find_run,
    list_runs,
    measure_bytes,
    sort_runs,
)
from sightline.verbs.output import print_note, show_table

_COLUMNS = ("run", "name", "task", "data", "steps", "figure", "when", "size", "state")


def runs(options: RunsOptions) -> int:
    """Print the table of runs, or do the one thing that is asked with some of them."""
    actions: dict[str, Callable[[RunsOptions], int]] = {"--diff": _show_diff, "--slim": _slim, "--delete": _delete}
    given = options.list_flags(RunsOptions)
    asked = [flag for flag in given if flag in actions]
    if len(asked) > 1:
        raise UserError(f"{asked[1]}: is given with {asked[0]}; give one of them")
    if options.yes and not {*asked} & {"--slim", "--delete"}:
        raise UserError("--yes: answers --delete and --slim; give the runs of one of them, or leave it out")
    if asked and (unread := [flag for flag in given if flag in ("--sort", "--filter")]):
        raise UserError(
            f"{unread[0]}: chooses rows of the table, and {asked[0]} takes the runs that it names; leave it out"
        )
    return actions[asked[0]](options) if asked else _list(options)


def _list(options: RunsOptions) -> int:
    chosen = sort_runs(filter_runs(list_runs(options.folder), options.filters), options.sort)
    if chosen:
        size = _format_size(sum(run.num_bytes for run in chosen))
        title = f"{len(chosen)} {'run' if len(chosen) == 1 else 'runs'} below {options.folder}, {size}"
        rows = [_make_row(run) for run in chosen]
        show_table(escape_to_one_line(title), _COLUMNS, rows, unbroken="run", droppable=("name", "size", "steps"))
    else:
        print_note(f"{options.folder}: has no {'run of this kind' if options.filters else 'run'}")
    for run in chosen:
        if run.state == "damaged":
            print_note(f"warning: {run.path}: {run.note}")
    write_document(options.json, [run.to_dict() for run in chosen])
    return 0


def _make_row(run: RunSummary) -> list[Any]:
    figure = "" if run.figure is None else f"{run.metric} {run.figure:.4f}"
    figure += f" ({run.split})" if figure and run.split != "test" else ""
    state = f"{run.state} {run.note}".strip() if run.state == "running" else run.state
    return [
        run.path,
        run.name,
        run.task,
        run.data,
        run.steps,
        figure,
        _format_when(run.when),
        _format_size(run.num_bytes),
        state,
    ]


def _format_when(when: str) -> str:
    try:
        return f"{datetime.datetime.fromisoformat(when).astimezone():%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError):
        return ""


def _format_size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.2f} MB"


def _show_diff(options: RunsOptions) -> int:
    from sightline.runs.curves import name_runs
    from sightline.runs.run_records import compare_runs, read_reported_run  # slow, and the table does without

    assert options.diff is not None
    paths = [find_run(name, options.folder) for name in options.diff]
    names = name_runs(paths, verb="runs --diff")
    compared = compare_runs([read_reported_run(path, name) for path, name in zip(paths, names, strict=True)])
    show_table("figures", ("", *names), compared.summary())
    if compared.differences:
        show_table("differences between the configs", ("key", *names), compared.differences)
    else:
        print_note("the configs are the same")
    write_document(options.json, {"runs": list(map(str, paths)), **compared.to_dict()})
    return 0


def _slim(options: RunsOptions) -> int:
    from sightline.runs import checkpoint

    def slim(path: Path) -> int:
        with RunDirectory(path, is_writer=True).lock_to_shrink():
            return checkpoint.slim(path)

    paths = _find_once(options.slim, options.folder)
    unfinished = [path for path in paths if not (path / "final.json").exists()]
    if unfinished:
        _confirm(f"slim {_join(unfinished)}, whose training is not finished and could not go on", options)
    return _apply(paths, slim, "no optimiser state any more; its training cannot go on", options)


def _delete(options: RunsOptions) -> int:
    paths = _find_once(options.delete, options.folder)
    for path in paths:
        assert_deletable(path)
    _confirm(f"delete {_join(paths)} ({_format_size(sum(map(measure_bytes, paths)))})", options)
    return _apply(paths, delete_run, "deleted", options)


def _find_once(names: Sequence[Path], folder: Path) -> list[Path]:
    """Find runs, each once even if it is named twice."""
    return list({path.resolve(): path for path in (find_run(name, folder) for name in names)}.values())


def _apply(paths: Sequence[Path], change: Callable[[Path], int], done: str, options: RunsOptions) -> int:
    """Change runs in turn, and print the bytes that each frees."""
    freed = {}
    for path in paths:
        freed[str(path)] = change(path)
        print_note(f"{path}: {done}; {freed[str(path)]:,} bytes saved")
    write_document(options.json, {"saved_bytes": freed})
    return 0


def _join(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths))


def _confirm(action: str, options: RunsOptions) -> None:
    """Ask on the terminal. Raises UserError for another answer than yes, and without a terminal or --yes."""
    if options.yes:
        return
    if not sys.stdin.isatty():
        raise UserError(f"runs: would {action}; add --yes to do it")
    sys.stderr.write(escape_to_one_line(f"{action}? [y/N] "))
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UserError("runs: nothing was changed")
