"""`sightline runs`: list the runs below a folder, compare two, push and pull one."""

from __future__ import annotations

import datetime
from typing import Any

from sightline.commands.look import RunsDiffOptions, RunsListOptions, RunsPullOptions, RunsPushOptions
from sightline.contract.errors import escape_to_one_line
from sightline.runs.output_files import write_document
from sightline.runs.run_folders import RunSummary, filter_runs, find_run, list_runs, sort_runs
from sightline.verbs.output import print_note, show_table

_MAX_LISTED = 10
_COLUMNS = ("run", "name", "task", "data", "steps", "figure", "when", "size", "state")


def show_list(options: RunsListOptions) -> int:
    """Print the table of the runs below a folder."""
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


def show_difference(options: RunsDiffOptions) -> int:
    """Print the figures of two runs, and the keys in which their configs differ."""
    from sightline.runs.curves import name_runs
    from sightline.runs.run_records import compare_runs, read_reported_run  # slow, and the table does without

    paths = [find_run(name, options.folder) for name in (options.first, options.second)]
    names = name_runs(paths, verb="runs diff")
    compared = compare_runs([read_reported_run(path, name) for path, name in zip(paths, names, strict=True)])
    show_table("figures", ("", *names), compared.summary())
    if compared.differences:
        show_table("differences between the configs", ("key", *names), compared.differences)
    else:
        print_note("the configs are the same")
    write_document(options.json, {"runs": list(map(str, paths)), **compared.to_dict()})
    return 0


def push(options: RunsPushOptions) -> int:
    """Upload a run to a hub, and print its address."""
    from sightline.workbench.weights.sharing import push_run

    address = push_run(options.run_path, options.address, is_public=options.public, plugins=options.plugins)
    print_note(f"{options.run_path}: is at {address}")
    write_document(options.json, {"run": str(options.run_path), "address": address})
    return 0


def pull(options: RunsPullOptions) -> int:
    """Fetch a run from a hub, and print what stays there."""
    from sightline.workbench.weights.sharing import pull_run

    remaining = pull_run(options.address, options.out)
    for file in remaining[:_MAX_LISTED]:
        print_note(f"{options.address}: {escape_to_one_line(file)} is no file of a packed run, and stays there")
    if len(remaining) > _MAX_LISTED:
        print_note(f"{options.address}: {len(remaining) - _MAX_LISTED} more files stay there")
    print_note(f"{options.out}: evaluate it, predict with it, or start from it: init.from={options.out}")
    write_document(options.json, {"run": str(options.out), "from": options.address})
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
