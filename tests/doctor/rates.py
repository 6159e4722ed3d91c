"""Measure rates of false alarms: of each rule, over the correct programs in which it was asked.

`python -m tests.doctor --kind healthy --draws N --out LINES.jsonl` writes a line for each program;
`python -m tests.doctor.rates LINES.jsonl ...` writes the numbers of rules to sightline/doctor/rates.json, and their
table to docs/results/doctor.md; without a file the table alone is written anew. Statistical rules of WAITING keep their
alarms as long as they are silent.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sightline.doctor import rates
from sightline.doctor.rates import Rate
from sightline.verbs.output import print_note
from sightline.workbench.check.suite import all_rules
from tests.conftest import ROOT
from tests.doctor.running import Line, read_lines

RATE_COLUMNS = ("rule", "code", "kind", "programs in which it was asked", "alarms", "rate, at most")
PAGE = ROOT / "docs/results/doctor.md"
START, END = "<!-- rates: written by tests/doctor/rates.py -->\n", "\n<!-- end of rates -->"
PATH = Path(rates.__file__).with_suffix(".json")
WAITING = {
    "counted": "counts_visible masked_range",
    "data": "input_statistics interpolated_labels missing_classes permuted_labels sampler_weights",
    "events": "dead-units large-update same-label",
    "geometry": "boxes_within_content mirrored_numbers",
    "loss": "addend_direction endless_comparison loss_begins_high misplaced_labels misplaced_numbers "
    "shares_are_no_best target_units unbounded_loss weights_of_others weights_upside_down",
    "model": "rectified_outputs",
    "optimiser": "large_update",
    "run": "averaged_means clipped_away collapsed_outputs evaluation_inputs trivial_plateau unbounded_loss",
    "samples": "end_is_not_learnt",
    "targets": "other_places",
}
"""Statistical rules without whose alarm a planted bug would not be found."""


def count_asked(lines: Iterable[Line]) -> dict[str, Rate]:
    """Count, of each rule, the correct programs in which it was asked, and those in which it gave an alarm."""
    counts: dict[str, Rate] = {}
    for line in lines:
        for name, is_alarm in line.get("asked", {}).items():
            asked, alarms = counts.get(name, Rate(0, 0))
            counts[name] = Rate(asked + 1, alarms + is_alarm)
    return dict(sorted(counts.items()))


def count_checks(lines: Iterable[Line]) -> Rate:
    """Count drawn programs, and those with an error, a warning or a crash."""
    drawn = [line for line in lines if line["kind"] == "healthy"]
    return Rate(len(drawn), sum(bool(line["crash"]) or any(map(_is_alarm, line["alarms"])) for line in drawn))


def _is_alarm(alarm: Mapping[str, str]) -> bool:
    return alarm["severity"] in ("error", "warning")


def list_rates(counts: Mapping[str, Rate]) -> list[tuple[str, ...]]:
    """List a row for each rule that was asked, and for statistical ones that were not; the latter are unmeasured."""
    rows = []
    for rule in sorted(all_rules(), key=lambda rule: (not rule.is_statistical, rule.name)):
        rate = counts.get(rule.name, Rate(0, 0))
        if not rate.asked and not rule.is_statistical:
            continue
        kind = "statistic" if rule.is_statistical else "event"
        bound = f"{rate.bound:.1%}" if rate.asked else "not asked"
        bound += ", unmeasured" if rule.is_statistical and not rate.is_low else ""
        rows.append(
            (rule.name.removeprefix("doctor.rules."), rule.code, kind, str(rate.asked), str(rate.alarms), bound)
        )
    return rows


def write_section(document: Mapping[str, Any]) -> str:
    """Write the table of a page from the measured document."""
    counts = {name: Rate(*numbers) for name, numbers in document["rules"].items()}
    whole = Rate(*document["checks"])
    num_waiting = len(document["waiting"])
    head = (
        f"At {document['commit']}: of {whole.asked} drawn programs **{whole.alarms} had an alarm when they were first "
        f"run**. {num_waiting} statistical rules were silent too few times, and keep their alarms for the planted bugs "
        "that need them; other unmeasured ones give notes.\n\n"
    )
    rows: list[Sequence[str]] = [RATE_COLUMNS, ["---"] * len(RATE_COLUMNS)]
    rows += [(f"`{name}`", f"`{code}`", *others) for name, code, *others in list_rates(counts)]
    return head + "\n".join(f"| {' | '.join(row)} |" for row in rows)


def with_section(text: str, document: Mapping[str, Any]) -> str:
    """Return the text of the page with its section as the document has it."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    assert rest, f"{PAGE} lost the mark of its table"
    return before + START + write_section(document) + END + after


def list_waiting(counts: Mapping[str, Rate]) -> list[str]:
    """List the rules that were silent, but not asked often enough, and that planted bugs need."""
    names = [f"doctor.rules.{module}.{rule}" for module, rules in WAITING.items() for rule in rules.split()]
    known = {name: counts.get(name, Rate(0, 0)) for name in names}
    return [name for name, rate in known.items() if not rate.alarms and not rate.is_low]


def measure(lines: Sequence[Line], first: Sequence[Line]) -> dict[str, Any]:
    """Measure the numbers of rules by the last lines of correct rows, and those of whole programs by the first.

    A row is run again after what it showed was mended: that it is silent then is no measurement of the whole.
    """
    counts = count_asked(lines)
    commits = ", ".join(sorted({line["commit"] for line in lines if line.get("asked")}))
    return {"commit": commits, "checks": count_checks(first), "waiting": list_waiting(counts), "rules": counts}


def main(paths: Sequence[str]) -> None:
    """Write the numbers of some files of lines and their table; without a file, the table of known numbers."""
    files = [read_lines(Path(path)) for path in paths]
    last, first = ({key: line for file in order for key, line in file.items()} for order in (files, files[::-1]))
    if last:
        document = measure(*([line for line in each.values() if not line["has_bug"]] for each in (last, first)))
        rules = document.pop("rules")
        rows = [
            f'"{name}": {json.dumps(block, indent=None if name == "checks" else 2)}' for name, block in document.items()
        ]
        rows.append(f'"rules": {_list_counts(rules)}')
        PATH.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")
    document = json.loads(PATH.read_text(encoding="utf-8"))
    PAGE.write_text(with_section(PAGE.read_text(encoding="utf-8"), document), encoding="utf-8")
    print_note(
        f"{document['checks']} drawn programs and those with an alarm; {len(document['rules'])} rules were asked"
    )


def _list_counts(counts: Mapping[str, Rate]) -> str:
    return "{\n" + ",\n".join(f'  "{name}": {json.dumps(rate)}' for name, rate in counts.items()) + "\n}"


if __name__ == "__main__":
    main(sys.argv[1:])
