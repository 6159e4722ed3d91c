"""`sightline runs`: the table of runs below a folder, and the differences of two."""

from __future__ import annotations

import datetime
from typing import Any

from sightline.commands.look import RunsOptions
from sightline.contract.errors import UserError, escape_to_one_line
from sightline.runs.output_files import write_document
from sightline.runs.run_folders import RunSummary, filter_runs, find_run, list_runs, sort_runs
from sightline.verbs.output import print_note, show_table

_TABLE = ("--sort", "--filter", "--json")
_ACTIONS = {
    "--diff": ("--diff", "--json"),
    "--push": ("--push", "--public", "--plugin", "--json"),
    "--pull": ("--pull", "--out", "--json"),
}
"""Options that each action reads; the table reads its own."""
_MAX_LISTED = 10
_COLUMNS = ("run", "name", "task", "data", "steps", "figure", "when", "size", "state")


def runs(options: RunsOptions) -> int:
    """Print the table of runs or the differences of two, or exchange one with a hub."""
    flags = options.list_flags(RunsOptions)
    action = next((flag for flag in _ACTIONS if flag in flags), "the table of runs")
    if unread := [flag for flag in flags if flag not in _ACTIONS.get(action, _TABLE)]:
        raise UserError(f"{unread[0]}: is not read with {action}; leave it out")
    if action == "--diff":
        return _show_diff(options)
    return _exchange(options) if action in _ACTIONS else _list(options)


def _exchange(options: RunsOptions) -> int:
    """Push or pull a run."""
    from sightline.workbench.weights.sharing import pull_run, push_run

    if options.push is not None:
        address = push_run(options.folder, options.push, is_public=options.public, plugins=options.plugins)
        print_note(f"{options.folder}: is at {address}")
        write_document(options.json, {"run": str(options.folder), "address": address})
        return 0
    assert options.pull is not None
    if options.out is None:
        raise UserError("runs --pull: needs the folder of the run: --out DIR")
    remaining = pull_run(options.pull, options.out)
    for file in remaining[:_MAX_LISTED]:
        print_note(f"{options.pull}: {escape_to_one_line(file)} is no file of a packed run, and stays there")
    if len(remaining) > _MAX_LISTED:
        print_note(f"{options.pull}: {len(remaining) - _MAX_LISTED} more files stay there")
    print_note(f"{options.out}: evaluate it, predict with it, or start from it: init.from={options.out}")
    write_document(options.json, {"run": str(options.out), "from": options.pull})
    return 0


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
