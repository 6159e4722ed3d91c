"""Measure the doctor from outside: run rows of the table of cases, print what is found, missed and flagged by mistake.

A row is named by its id, or by how ids begin (O6, script/first, loop/M). Without rows and kinds they are listed. Each
row runs in a process of its own, of which one over 120 s counts as missed. Rows that the file of --out has for this
state of the package are not run again. `--kind healthy --draws N` runs N drawn programs without a bug, `--kind rare`
those of rare kinds (`healthy/masked` names one); of all correct rows it is said how often each rule was asked, and gave
an alarm. Exit code 0 if every bug was found and no alarm was false.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from sightline.contract.schema import suggest
from sightline.doctor import causes
from sightline.verbs.output import print_note, show_table
from tests.doctor.healthy.program import list_draws
from tests.doctor.rates import RATE_COLUMNS, count_asked, list_rates
from tests.doctor.row import KINDS, Row
from tests.doctor.running import Line, append_line, describe_doctor, read_lines, run_rows
from tests.doctor.scores import COLUMNS, compare, describe_line, is_good, summarise


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; a wrong word exits with code 2."""
    parser = argparse.ArgumentParser("python -m tests.doctor", description=__doc__)
    parser.add_argument("rows", metavar="ROW", nargs="*", help="ids of rows, or how they begin")
    parser.add_argument(
        "--kind", choices=KINDS, action="append", default=[], help="all rows of a kind; may be repeated"
    )
    parser.add_argument("--seeds", metavar="N", type=int, default=1, help="seeds of each row")
    parser.add_argument("--draws", metavar="N", type=int, default=20, help="drawn programs of the kind healthy")
    parser.add_argument("--jobs", metavar="N", type=int, default=1, help="processes that run rows side by side")
    parser.add_argument("--out", metavar="FILE.jsonl", type=Path, help="append a line for each row and seed as it ends")
    parser.add_argument(
        "--compare", metavar="FILE.jsonl", type=Path, help="what was found there and not here, and back"
    )
    parser.add_argument("--raw", action="store_true", help="list each finding, before causes compete")
    options = parser.parse_args(words)
    if min(options.seeds, options.jobs) < 1:
        parser.error("--seeds and --jobs must be at least 1")
    return options


def choose(rows: Sequence[Row], words: Sequence[str], kinds: Sequence[str]) -> list[Row]:
    """Choose rows by words and kinds, each after its twin; a word that fits none exits with code 2."""
    by_id = {row.id: row for row in rows}
    chosen = [row for row in rows if row.kind in kinds]
    for word in words:
        fitting = [by_id[word]] if word in by_id else [row for row in rows if row.id.startswith(word)]
        if not fitting:
            print_note(f"there is no row '{word}'{suggest(word, by_id, otherwise='')}; without a row they are listed")
            sys.exit(2)
        chosen += fitting
    with_twins = [each for row in chosen for each in (by_id.get(row.twin), row) if each is not None]
    return list(dict.fromkeys(with_twins))


def main() -> None:
    """Run rows and print the table; exit code 1 for a missed bug or a false alarm."""
    options = parse(sys.argv[1:])
    from tests.doctor.cases import ROWS  # takes seconds

    torch.set_num_threads(1)
    rows = choose((*ROWS, *list_draws(options.draws)), options.rows, options.kind)
    if not rows:
        cells = [(row.id, row.family, "bug" if row.has_bug else "", row.title or " ".join(row.causes)) for row in ROWS]
        show_table("rows", ("row", "family", "", "what it is, or causes that name it"), cells)
        sys.exit(0)
    commit = describe_doctor()
    if options.raw:
        causes.read_symptoms = dict
    done = {} if options.out is None else read_lines(options.out, commit)
    for line in run_rows(rows, range(options.seeds), done, commit=commit, jobs=options.jobs):
        _record(line, options.out, is_verbose=line["id"] in options.rows)
    lines = [done[row.id, seed] for row in rows for seed in range(options.seeds)]
    show_table(f"the doctor at {commit}", COLUMNS, summarise(lines))
    if {"healthy", "rare"} & {line["kind"] for line in lines}:
        show_table("rules asked of correct programs", RATE_COLUMNS, list_rates(count_asked(lines)))
    if options.compare is not None:
        print_note("\n".join(compare(read_lines(options.compare), lines)))
    sys.exit(0 if is_good(lines) else 1)


def _record(line: Line, path: Path | None, *, is_verbose: bool) -> None:
    """Append a line to the file, and print it; with `is_verbose` also all that the doctor says."""
    if path is not None:
        append_line(path, line)
    print_note(describe_line(line))
    if is_verbose:
        for alarm in [*line["alarms"], *line["notes"]]:
            print_note("\n".join(f"  {text}" for text in alarm["text"].split("\n")))
        for failure in line["failed"]:
            print_note(f"  failed: {failure}")


if __name__ == "__main__":
    main()
