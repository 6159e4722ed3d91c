"""Measure rates of false alarms: of each rule, over the correct programs in which it was asked.

`python -m tests.doctor.rates LINES.jsonl --measure --jobs 2` runs drawn programs, plain and rare, and the correct runs
of the table, and appends a line for each to the file; it goes on where the last call ended. Then it writes the numbers
of rules to sightline/doctor/rates.json, and their tables to docs/inside/false_alarms.md. Without --measure these are
written by the lines that the files have; without a file, the tables alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.marked_pages import with_block
from sightline.doctor import rates
from sightline.doctor.rates import Rate
from sightline.verbs.output import print_note
from sightline.workbench.check.suite import all_rules
from tests.conftest import ROOT
from tests.doctor.healthy.program import list_draws
from tests.doctor.row import Row
from tests.doctor.running import Line, append_line, describe_doctor, read_lines, run_rows
from tests.doctor.scores import describe_line

RATE_COLUMNS = ("rule", "code", "kind", "programs in which it was asked", "alarms", "rate, at most")
RUN_COLUMNS = (*RATE_COLUMNS[:3], "runs in which it was asked", *RATE_COLUMNS[4:])
PAGE = ROOT / "docs/inside/false_alarms.md"
START, END = "<!-- rates: written by tests/doctor/rates.py -->\n", "\n<!-- end of rates -->"
PATH = Path(rates.__file__).with_suffix(".json")
DRAWN, WHOLE = ("healthy", "rare"), "run"
"""Kinds of rows that are drawn, and the kind of those that check a whole run."""
_SEEDS_OF_RUNS = 3
CHECKS = {"checks": "healthy", "rare_checks": "rare", "run_checks": WHOLE}
"""Kinds of rows of which it is counted in how many there was any alarm."""


def count_asked(lines: Iterable[Line]) -> dict[str, Rate]:
    """Count, of each rule, the correct programs in which it was asked, and those in which it gave an alarm."""
    counts: dict[str, Rate] = {}
    for line in lines:
        for name, is_alarm in line.get("asked", {}).items():
            asked, alarms = counts.get(name, Rate(0, 0))
            counts[name] = Rate(asked + 1, alarms + is_alarm)
    return dict(sorted(counts.items()))


def count_checks(lines: Iterable[Line], kind: str) -> Rate:
    """Count the programs of a kind, and those with an error, a warning or a crash."""
    drawn = [line for line in lines if line["kind"] == kind]
    return Rate(len(drawn), sum(bool(line["crash"]) or any(map(_is_alarm, line["alarms"])) for line in drawn))


def _is_alarm(alarm: Mapping[str, str]) -> bool:
    return alarm["severity"] in ("error", "warning")


def list_rates(counts: Mapping[str, Rate]) -> list[tuple[str, ...]]:
    """List a row for each rule that was asked of drawn programs, and for statistical ones that were not."""
    others = {rule.name for rule in all_rules() if rule.is_statistical and not rates.is_of_runs(rule.name)}
    return _list_rows(counts, counts.keys() | others)


def _list_rows(counts: Mapping[str, Rate], names: Collection[str]) -> list[tuple[str, ...]]:
    """List a row for each rule of these names; a statistic is unmeasured where its rate is not known to be low."""
    rows = []
    for rule in sorted(all_rules(), key=lambda rule: (not rule.is_statistical, rule.name)):
        rate = counts.get(rule.name, Rate(0, 0))
        kind = "statistic" if rule.is_statistical else "event"
        bound = f"{rate.bound:.1%}" if rate.asked else "not asked"
        bound += ", unmeasured" if rule.is_statistical and not rate.is_low else ""
        name = rule.name.removeprefix("doctor.rules.")
        rows += [(name, rule.code, kind, str(rate.asked), str(rate.alarms), bound)] if rule.name in names else []
    return rows


def write_section(document: Mapping[str, Any]) -> str:
    """Write the tables of a page from the measured document."""
    counts, runs = ({name: Rate(*each) for name, each in document[key].items()} for key in ("rules", "runs"))
    plain, rare, whole = (Rate(*document[key]) for key in ("checks", "rare_checks", "run_checks"))
    text = (
        f"At {document['commit']}: of {plain.asked} drawn programs **{plain.alarms} had an alarm when they were first "
    )
    text += f"run**, of {rare.asked} of rare kinds {rare.alarms}, of {whole.asked} runs {whole.alarms}."
    others = {rule.name for rule in all_rules() if rule.is_statistical and rates.is_of_runs(rule.name)}
    if anew := document.get("anew", ()):
        text += f" {', '.join(f'`{name}`' for name in anew)}: changed after the first draws, so later ones count alone."
    own = (runs.keys() | others) - counts.keys()
    text += f" The {len(own)} rules of the second table judge whole runs, of which none are drawn."
    tables = [_write_table(RATE_COLUMNS, list_rates(counts)), _write_table(RUN_COLUMNS, _list_rows(runs, own))]
    return "\n\n".join((text, *tables))


def _write_table(columns: Sequence[str], rows: Iterable[tuple[str, ...]]) -> str:
    named = [(f"`{name}`", f"`{code}`", *others) for name, code, *others in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *named))


def with_section(text: str, document: Mapping[str, Any]) -> str:
    """Return the text of the page with its section as the document has it."""
    return with_block(text, start=START, end=END, block=write_section(document))


def measure(
    lines: Sequence[Line], first: Sequence[Line], newest: Sequence[Line] = (), anew: Collection[str] = ()
) -> dict[str, Any]:
    """Measure the numbers of rules by the last lines of correct rows, and those of whole programs by the first.

    A row is run again after what it showed was mended: that it is silent then is no measurement of the whole. Of rules
    that were changed after the other lines, those `anew`, the newest lines count alone.
    """
    drawn, late = (count_asked(line for line in part if line["kind"] in DRAWN) for part in (lines, newest))
    return {
        "commit": ", ".join(sorted({line["commit"] for line in lines if line.get("asked")})),
        **{name: count_checks(first, kind) for name, kind in CHECKS.items()},
        "anew": sorted(anew),
        "rules": {name: late.get(name, Rate(0, 0)) if name in anew else rate for name, rate in drawn.items()},
        "runs": count_asked(line for line in lines if line["kind"] == WHOLE),
    }


def write(document: Mapping[str, Any]) -> None:
    """Write a measured document, a rule a line."""
    rows = [
        f'"{name}": ' + (_list_counts(block) if isinstance(block, Mapping) else json.dumps(block))
        for name, block in document.items()
    ]
    PATH.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")


def _list_counts(counts: Mapping[str, Rate]) -> str:
    return "{\n" + ",\n".join(f'  "{name}": {json.dumps(rate)}' for name, rate in counts.items()) + "\n}"


def list_rows(draws: int, first: int, kinds: Collection[str]) -> list[tuple[list[Row], int]]:
    """List the correct rows by which rates are measured, drawn ones and whole runs, each with the number of seeds.

    Only rows of some rare kinds are listed if these are named.
    """
    from tests.doctor.cases import ROWS  # takes seconds

    if kinds:
        return [([row for row in list_draws(0, first) if row.id.split("/")[1] in kinds], 1)]
    runs = [row for row in ROWS if row.kind == WHOLE and not row.has_bug]
    return [(list_draws(draws, first), 1), (runs, _SEEDS_OF_RUNS)]


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line; a wrong word exits with code 2."""
    parser = argparse.ArgumentParser("python -m tests.doctor.rates", description=__doc__)
    parser.add_argument("files", metavar="LINES.jsonl", nargs="*", type=Path, help="lines of rows, the oldest first")
    parser.add_argument(
        "--measure", action="store_true", help="first run the rows that the last file lacks at this state"
    )
    parser.add_argument("--draws", metavar="N", type=int, default=600, help="plain drawn programs")
    parser.add_argument(
        "--first", metavar="N", type=int, default=0, help="number of the first of them, and of each rare kind"
    )
    parser.add_argument("--kinds", metavar="KIND", nargs="*", default=(), help="rare kinds that alone are run")
    parser.add_argument(
        "--anew", metavar="RULE", nargs="*", default=(), help="rules of which the lines of the last file count alone"
    )
    parser.add_argument("--jobs", metavar="N", type=int, default=1, help="processes that run rows side by side")
    options = parser.parse_args(words)
    if options.measure and not options.files:
        parser.error("--measure needs a file for its lines")
    return options


def main(options: argparse.Namespace) -> None:
    """Write the numbers of some files of lines and their tables; without a file, the tables of known numbers."""
    if options.measure:
        torch.set_num_threads(1)
        path, commit = options.files[-1], describe_doctor()
        done = read_lines(path, commit)
        for rows, seeds in list_rows(options.draws, options.first, options.kinds):
            for line in run_rows(rows, range(seeds), done, commit=commit, jobs=options.jobs):
                append_line(path, line)
                print_note(describe_line(line))
    files = [read_lines(path) for path in options.files]
    last, first = ({key: line for file in order for key, line in file.items()} for order in (files, files[::-1]))
    if last:
        parts = ([line for line in part.values() if not line["has_bug"]] for part in (last, first, files[-1]))
        write(measure(*parts, options.anew))
    rates._read.cache_clear()
    document = json.loads(PATH.read_text(encoding="utf-8"))
    PAGE.write_text(with_section(PAGE.read_text(encoding="utf-8"), document), encoding="utf-8")
    for rule, *_, asked, alarms, bound in list_rates({name: Rate(*each) for name, each in document["rules"].items()}):
        if "unmeasured" in bound:
            print_note(f"{rule}: asked in {asked} programs, {alarms} alarms: {bound}")
    print_note(f"{PATH} and {PAGE} are written")


if __name__ == "__main__":
    main(parse())
