"""`sightline report`: one page about a run, or about the differences between runs."""

from __future__ import annotations

from pathlib import Path

from sightline.commands.look import ReportOptions
from sightline.draw.page import render_page
from sightline.runs.run_directory import assert_writable, write_document, write_file
from sightline.verbs.output import print_note
from sightline.view.run_pages import name_runs
from sightline.view.run_report import list_differences, make_report, read_reported_run


def report(options: ReportOptions) -> int:
    """Write the page of one or several runs from what their folders hold; return the exit code."""
    names = name_runs(options.runs, verb="report")
    runs = [read_reported_run(path, name) for path, name in zip(options.runs, names, strict=True)]
    out = options.out or (options.runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    assert_writable(out, option="--out")
    blocks, notes = make_report(runs)
    write_file(out, render_page(f"{'Report of' if len(runs) == 1 else 'Comparison of'} {', '.join(names)}", blocks))
    for note in notes:
        print_note(f"warning: {note}")
    print_note(f"{out}: open it in a browser")
    differences = {key: values for key, *values in list_differences(runs)}
    document = {"page": str(out), "runs": [str(run.path) for run in runs], "figures": [run.facts() for run in runs]}
    write_document(options.json, {**document, "config_differences": differences, "notes": notes})
    return 0
