"""`sightline report`: one page about a run, or about the differences between runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sightline.commands.look import ReportOptions, ViewOptions
from sightline.contract.errors import UserError
from sightline.draw.page import render_page
from sightline.draw.pictures import encode_png
from sightline.runs.curves import name_runs
from sightline.runs.output_files import assert_writable, write_document, write_file
from sightline.runs.run_records import ReportedRun, compare_runs, read_reported_run
from sightline.verbs.output import print_note
from sightline.verbs.view import view_run_or_config
from sightline.view.report_samples import make_samples
from sightline.view.run_report import make_report
from sightline.view.run_sheet import draw_run
from sightline.view.stages import ViewedSample

_MAX_BYTES = 5_000_000


def report(options: ReportOptions) -> int:
    """Write the page of one or several runs from what their folders hold; return the exit code."""
    names = name_runs(options.runs, verb="report")
    runs = [read_reported_run(path, name) for path, name in zip(options.runs, names, strict=True)]
    out = options.out or (options.runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    if out.suffix.lower() not in (".html", ".htm"):  # else it may replace a file of the run
        raise UserError(f"--out {out}: a report is a page of HTML; give a name that ends in .html")
    assert_writable(out, option="--out")
    _assert_one(runs, options)
    subjects = _view_samples(runs[0].path, options) if options.samples is not None else []
    samples, left_out = make_samples(subjects) if subjects else (None, [])
    blocks, notes = make_report(runs, samples)
    notes += left_out
    page = render_page(names[0] if len(runs) == 1 else f"Comparison of {', '.join(names)}", blocks)
    notes += [f"{out}: has {len(page) / 1e6:.1f} MB; name fewer samples or runs"] if len(page) > _MAX_BYTES else []
    write_file(out, page)
    for note in notes:
        print_note(f"warning: {note}")
    print_note(f"{out}: open it in a browser")
    if options.png is not None:
        write_file(options.png, encode_png(draw_run(runs[0], subjects)))
        print_note(f"{options.png}: the run in short")
    document = {"page": str(out), "runs": [str(run.path) for run in runs], **compare_runs(runs).to_dict()}
    write_document(options.json, {**document, "notes": notes})
    return 0


def _assert_one(runs: Sequence[ReportedRun], options: ReportOptions) -> None:
    """Raise UserError for an option about one run, and several runs."""
    for flag, value, what in (("--samples", options.samples, "are those"), ("--png", options.png, "is the sheet")):
        if len(runs) > 1 and value is not None:
            raise UserError(f"{flag}: {what} of one run; give one run, or leave it out")


def _view_samples(path: Path, options: ReportOptions) -> list[ViewedSample]:
    view_options = ViewOptions(
        paths=(path,), out=path, samples=options.samples, device=options.device, plugins=options.plugins
    )
    return view_run_or_config(path, view_options)[0]
