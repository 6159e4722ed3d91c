"""Measure rates of false alarms: of each rule, over the correct programs in which it was asked.

`python -m tests.doctor --kind healthy --draws N --out LINES.jsonl` writes a line for each program;
`python -m tests.doctor.rates LINES.jsonl ...` writes the numbers of rules to sightline/doctor/rates.json, and their
table to docs/results/doctor.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

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
        bound = f"{rate.bound:.1%}" if rate.asked else ""
        bound = f"unmeasured: {bound or 'not asked'}" if rule.is_statistical and not rate.is_low else bound
        rows.append(
            (rule.name.removeprefix("doctor.rules."), rule.code, kind, str(rate.asked), str(rate.alarms), bound)
        )
    return rows


def write_section(document: Mapping[str, object]) -> str:
    """Write the table of a page from the measured document."""
    counts = {name: Rate(*numbers) for name, numbers in document["rules"].items()}  # type: ignore[attr-defined]
    whole = Rate(*document["checks"])  # type: ignore[misc]
    share = whole.alarms / max(1, whole.asked)
    head = (
        f"At {document['commit']}: of {whole.asked} drawn programs {whole.alarms} had an alarm ({share:.1%}, at most "
        f"{whole.bound:.1%}).\n\n"
    )
    rows = [RATE_COLUMNS, ["---"] * len(RATE_COLUMNS)]
    rows += [(f"`{name}`", f"`{code}`", *others) for name, code, *others in list_rates(counts)]
    return head + "\n".join(f"| {' | '.join(row)} |" for row in rows)


def with_section(text: str, document: Mapping[str, object]) -> str:
    """Return the text of the page with its section as the document has it."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    assert rest, f"{PAGE} lost the mark of its table"
    return before + START + write_section(document) + END + after


def main(paths: Sequence[str]) -> None:
    """Write the measured numbers of some files of lines, and their table."""
    lines = [line for path in paths for line in read_lines(Path(path)).values() if not line["has_bug"]]
    counts, whole = count_asked(lines), count_checks(lines)
    commits = ", ".join(sorted({line["commit"] for line in lines if line.get("asked")}))
    document = {"commit": commits, "checks": whole, "rules": counts}
    rows = [f'  "{name}": [{rate.asked}, {rate.alarms}]' for name, rate in counts.items()]
    text = f'{{\n "commit": {json.dumps(commits)},\n "checks": [{whole.asked}, {whole.alarms}],\n "rules": {{\n'
    PATH.write_text(text + ",\n".join(rows) + "\n }\n}\n", encoding="utf-8")
    PAGE.write_text(with_section(PAGE.read_text(encoding="utf-8"), document), encoding="utf-8")
    print_note(f"{whole.asked} drawn programs, {whole.alarms} with an alarm; {len(counts)} rules were asked")


if __name__ == "__main__":
    main(sys.argv[1:])
