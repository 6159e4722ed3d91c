"""Measure what refusals and constants are for: run programs once, and again without a refusal that they reach.

`python -m tests.doctor.refusals` writes tests/doctor/refusals.tsv: of each `NotApplicableError` that is raised in the
package, the number of correct programs that reach it, and what its removal does there: an alarm, an error, a rule that
then is said to hold, or nothing. A removal is judged by the rules that depend on the measurement, on the same subject;
what is refused outside of an examination, by the whole program again. `--constants` writes constants.tsv: each number
that the doctor reads is halved and doubled, on correct programs and on those with a bug. Rows of `--out` are not run.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import json
import math
import multiprocessing
import os
import random
import signal
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from sightline.doctor import evidence as evidence_module
from sightline.doctor import examine as examine_module
from sightline.doctor.attempts import UNASKED
from sightline.doctor.evidence import Evidence
from sightline.doctor.examine import Examination, Judgement
from sightline.verbs.output import print_note
from tests.doctor.row import Row
from tests.doctor.running import describe_doctor, read_lines
from tests.doctor.sites import SWITCH, install, list_sites, read_table

PATHS = {kind: Path(__file__).with_name(f"{kind}.tsv") for kind in ("refusals", "constants")}
COLUMNS = ("site", "reached", "tried", "changed", "in", "programs", "reason")
STRONG = ("error", "warning", "raises")
"""Effects for which a refusal stays."""
EFFECTS = (*STRONG, "lost", "late", "note", "held", "unasked", "refused", "nothing")
"""What a change does, the gravest first: a finding, an error, a finding that is lost, too long; then a rule that holds
and was refused before, one that is refused now, and one that is refused in other words.
"""
FACTORS = {"refusals": (1.0,), "constants": (0.5, 2.0)}
_LIMIT_S, _PART_LIMIT_S = 240.0, 30.0
_ENOUGH, _MOST_HELD, _MOST_WHOLE = 2, 12, 6
"""Programs that show a strong effect of a site, that a rule holds without it, and that are run whole without one."""
_FORK = multiprocessing.get_context("fork")
Line = dict[str, Any]
Effect = tuple[str, str]
"""One of EFFECTS, and the code, the error or the rules."""


def run_in_children(functions: Sequence[Callable[[], Any]], limit_s: float) -> Iterator[Any]:
    """Yield what each function returns, in a process of their own; None where it ends, and `late` over the limit.

    Those after such a one run in a new process.
    """
    place = 0
    while place < len(functions):
        for result in _run_in_child(functions[place:], limit_s):
            yield result
            place += 1


def _run_in_child(functions: Sequence[Callable[[], Any]], limit_s: float) -> Iterator[Any]:
    """Yield what each function returns, up to the first without a result."""

    def work() -> None:
        os.setsid()
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        with contextlib.suppress(BaseException):
            for function in functions:
                end.send(function())
        os._exit(0)

    gc.freeze()  # pages of objects that are there stay shared
    pipe, end = _FORK.Pipe(duplex=False)
    process = _FORK.Process(target=work)
    process.start()
    end.close()
    for _ in functions:
        result: Any = "late"
        if pipe.poll(limit_s):
            result = None
            with contextlib.suppress(EOFError):
                result = pipe.recv()
        yield result
        if result in (None, "late"):
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
    process.join()


# --- a program, and its parts again -----------------------------------------------------------------------------------


@dataclass
class Trial:
    """Run of a program: which sites it reaches, and what the removal of each does, but of those that are `known`."""

    known: Collection[str] = ()
    factors: Sequence[float] = (1.0,)
    hits: Counter[str] = field(default_factory=Counter)
    outside: set[str] = field(default_factory=set)
    examined: Counter[str] = field(default_factory=Counter)
    effects: dict[str, set[Effect]] = field(default_factory=lambda: defaultdict(set))
    judged: Counter[tuple[str, str]] = field(default_factory=Counter)
    _asked: list[tuple[str, str]] = field(default_factory=list)
    _within: dict[str, set[tuple[str, str]]] | None = None

    def note(self, site: str) -> None:
        """Note a site that is reached, with the measurement or the rule that is asked."""
        self.hits[site] += 1
        if self._within is None or not self._asked:
            self.outside.add(site)
        else:
            self._within.setdefault(site, set()).add(self._asked[0])

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Context in which this is done of all examinations."""
        real = examine_module.examine
        users = [each for name, each in [*sys.modules.items()] if name.startswith("sightline.")]
        with contextlib.ExitStack() as stack:
            for module in users:
                if vars(module).get("examine") is real:
                    stack.enter_context(mock.patch.object(module, "examine", self._wrap(real)))
            for kind, module in (("measurement", evidence_module), ("rule", examine_module)):
                stack.enter_context(mock.patch.object(module, "attempt", self._ask_as(kind, module.attempt)))
            stack.enter_context(mock.patch.object(SWITCH, "note", self.note))
            yield

    def _ask_as(self, kind: str, attempt: Callable[..., Any]) -> Callable[..., Any]:
        def ask(name: str, *arguments: Any) -> Any:
            self._asked.append((kind, name))
            try:
                return attempt(name, *arguments)
            finally:
                self._asked.pop()

        return ask

    def _wrap(self, real: Callable[..., Examination]) -> Callable[..., Examination]:
        def examine(evidence: Evidence, **options: Any) -> Examination:
            if self._within is not None:
                return real(evidence, **options)
            self._within, self._asked = {}, []
            try:
                examination = real(evidence, **options)
                reached = self._within
            finally:
                self._within = None
            self.judged.update((each.rule.name, each.outcome) for each in examination.judgements)
            if not SWITCH.changed:
                self._change_each(reached, evidence, examination.judgements, real)
            return examination

        return examine

    def _change_each(
        self,
        reached: Mapping[str, set[tuple[str, str]]],
        evidence: Evidence,
        judgements: Sequence[Judgement],
        examine: Callable[..., Examination],
    ) -> None:
        """Judge again with each site changed that was reached, for the first, the second, the fourth time and so on."""
        self.examined.update([*reached])
        sites = [s for s in reached if s not in self.known and self.examined[s] & (self.examined[s] - 1) == 0]
        changes = [*itertools.product(sites, self.factors)]
        tasks = [
            partial(judge_changed, change, reached[change[0]], evidence, judgements, examine) for change in changes
        ]
        for (site, _), found in zip(changes, run_in_children(tasks, _PART_LIMIT_S), strict=True):
            ended = {None: {("raises", "the process ended")}, "late": {("late", "")}}
            self.effects[site] |= ended[found] if found in (None, "late") else found or {("nothing", "")}


def judge_changed(
    change: tuple[str, float],
    asked: Collection[tuple[str, str]],
    evidence: Evidence,
    judgements: Sequence[Judgement],
    examine: Callable[..., Examination],
) -> set[Effect]:
    """Judge the rules again that depend on what was asked when a site was reached, with that site changed.

    What they find without a change, if judged again, does not count.
    """
    measured = {name for kind, name in asked if kind == "measurement"}
    judges = {name for kind, name in asked if kind == "rule"}
    depends: dict[str, bool] = {}

    def does_depend(name: str) -> bool:
        if name not in depends:
            depends[name] = name in measured
            reads = () if name in evidence.given else evidence._find(name).reads
            depends[name] |= any([does_depend(each) for each in reads])
        return depends[name]

    before = {
        each.rule.judge: each
        for each in judgements
        if each.outcome not in ("cost", "declared")
        and (each.rule.judge.__name__ in judges or any([does_depend(name) for name in each.rule.reads]))
    }
    kept = {name: value for name, value in evidence._values.items() if name in evidence.given or not does_depend(name)}
    rules = [each.rule for each in before.values()]

    def judge(*change: Any) -> set[Effect]:
        SWITCH.changed, SWITCH.factor = change
        with mock.patch.object(evidence_module, "import_all"):  # they are, and are looked for in files
            anew = Evidence(evidence.given, math.inf)
        anew._values.update(kept)
        found = examine(anew, rules=rules).judgements
        return {effect for each in found for effect in compare(before[each.rule.judge], each)}

    found = judge(*change)
    if any(kind not in ("held", "refused") for kind, _ in found):
        found -= judge("", 1.0)
    return found


def compare(before: Judgement, after: Judgement) -> Iterator[Effect]:
    """Yield what a judgement has that the one before has not."""
    known = {(finding.severity, finding.code) for finding in before.findings}
    found = {(finding.severity, finding.code) for finding in after.findings}
    yield from found - known
    yield from (("lost", code) for severity, code in known - found if severity != "note")
    if after.outcome == "failed" and before.outcome != "failed":
        error = after.missing.__cause__ if after.missing is not None else None
        yield "raises", type(error).__name__
    elif before.outcome in UNASKED and after.outcome == "held":
        yield "held", before.rule.name.rpartition(".")[2]
    elif after.outcome in UNASKED and before.outcome not in UNASKED:
        yield "unasked", before.rule.name.rpartition(".")[2]
    elif before.outcome in UNASKED and after.outcome in UNASKED and before.reason != after.reason:
        yield "refused", after.reason[:80]


# --- rows -------------------------------------------------------------------------------------------------------------


def _run_row(row: Row, trial: Trial) -> tuple[set[Effect], Trial]:
    """Run a row; return its alarms, and what was recorded."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for seeded in (torch.manual_seed, random.seed, np.random.seed):
        seeded(0)
    found: set[Effect] = set()
    with trial.recorded():
        try:
            found |= {_name_alarm(alarm) for alarm in row.run(0, ())}
        except Exception as error:  # noqa: BLE001 - a crash of the subject is a result
            found.add(("raises", type(error).__name__))
    return found, trial


def _name_alarm(alarm: Any) -> Effect:
    if alarm.severity in EFFECTS:
        return alarm.severity, alarm.code
    return "raises", (alarm.text.rpartition(": ")[0] or alarm.code)[:40]


def try_row(row: Row, known: Collection[str], whole: Collection[str], factors: Sequence[float] = (1.0,)) -> Line:
    """Measure a row: sites that it reaches, and what the change of each does; those of `known` are only noted.

    Sites outside of an examination are changed for the whole row, unless they stand in `whole`, too.
    """
    started = time.monotonic()

    def run(*change: Any) -> Any:
        SWITCH.changed, SWITCH.factor = change
        found, trial = _run_row(row, Trial(known, factors))
        return found, trial.hits, trial.outside, dict(trial.effects), trial.judged

    line: Line = {"id": row.id, "seed": 0, "hits": {}, "effects": {}}
    (first,) = run_in_children([partial(run, "", 1.0)], _LIMIT_S)
    if first in (None, "late"):
        return {**line, "crash": str(first)}
    found, hits, outside, effects, judged = first
    limit_s = _PART_LIMIT_S + 2 * (time.monotonic() - started)
    for site, factor in itertools.product(sorted(outside - {*known} - {*whole}), factors):
        (again,) = run_in_children([partial(run, site, factor)], limit_s)
        effects[site] = effects.get(site, set()) | _compare_whole((found, judged), again)
    line["hits"] = dict(hits)
    line["effects"] = {site: sorted(each) for site, each in effects.items()}
    return {**line, "outside": sorted(outside), "wall_s": round(time.monotonic() - started, 1)}


def _compare_whole(before: tuple[set[Effect], Counter[tuple[str, str]]], again: Any) -> set[Effect]:
    if again is None or again == "late":
        return {("late", "")} if again else {("raises", "the process ended")}
    (alarms, judged), (found, *_, anew) = before, again
    new = found - alarms | {("lost", code) for kind, code in alarms - found if kind in ("error", "warning")}
    new |= {("held", name.rpartition(".")[2]) for name, what in anew if what == "held" and not judged[name, what]}
    return new or {("nothing", "")}


def list_rows(kinds: Collection[str], draws: int, *, with_bugs: bool = False) -> list[Row]:
    """List the correct rows, or all; scripts of the exams stand at the end, if they are asked for."""
    from tests.doctor.cases import ROWS, SCRIPTS  # takes seconds
    from tests.doctor.healthy.program import list_draws

    own = {path.name for path in SCRIPTS}
    listed = [row for row in ROWS if row.has_bug <= with_bugs]
    rows = [row for row in listed if row.kind != "script" or row.id.split("/")[1] in own]
    rows += [row for row in list_draws(draws) if int(row.id.rpartition("/")[2]) < draws]
    return [row for row in dict.fromkeys((*rows, *listed)) if row.kind in kinds]


def _find_known(lines: Iterable[Line], kind: str) -> tuple[set[str], set[str]]:
    """Find the sites of which enough programs show what they are for, and those that enough were run whole without."""
    strong, held, whole = Counter[str](), Counter[str](), Counter[str]()
    for line in lines:
        for site, found in line["effects"].items():
            kinds = {kind for kind, _ in found}
            strong[site] += not kinds.isdisjoint(STRONG if kind == "refusals" else EFFECTS[:-2])
            held[site] += "held" in kinds
            whole[site] += site in line["outside"]
    enough = _ENOUGH if kind == "refusals" else 1
    known = {site for site, n in strong.items() if n >= enough} | {s for s, n in held.items() if n >= _MOST_HELD}
    return known, {site for site, n in whole.items() if n >= _MOST_WHOLE}


# --- table ------------------------------------------------------------------------------------------------------------


def summarise(lines: Sequence[Line], sites: Iterable[str], reasons: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Build the rows of the table by all lines; reasons that were written by hand stay."""
    table: list[tuple[str, ...]] = []
    for site in sites:
        reached = sorted((line for line in lines if site in line["hits"]), key=lambda line: line["wall_s"])
        tried = [line for line in reached if site in line["effects"]]
        ranks = [EFFECTS.index(kind) for line in tried for kind, _ in line["effects"][site]]
        gravest = EFFECTS[min(ranks)] if ranks else "not reached" if not reached else "not tried"
        showing = [line for line in tried if gravest in dict(line["effects"][site])]
        words = dict.fromkeys(what for line in showing for kind, what in line["effects"][site] if kind == gravest)
        text = " ".join(filter(None, (gravest, ", ".join([*words][:3]))))
        names = ", ".join(line["id"] for line in (showing or reached)[:3])
        table.append((site, str(len(reached)), str(len(tried)), text, str(len(showing)), names, reasons.get(site, "")))
    return table


def write_table(path: Path, table: Iterable[Sequence[str]]) -> None:
    """Write the table, a site a line."""
    path.write_text("\n".join("\t".join(row) for row in (COLUMNS, *table)) + "\n", encoding="utf-8")


def main(options: argparse.Namespace) -> None:
    """Measure rows that the file lacks, then write the table."""
    kind = "constants" if options.constants else "refusals"
    install(kind)
    sites, done = list_sites(kind), read_lines(options.out)
    lines = [line for line in done.values() if "crash" not in line]
    commit = describe_doctor()
    rows = list_rows(options.kind, options.draws, with_bugs=options.constants) if options.measure else []
    for row in rows[:: options.every]:
        if (row.id, 0) in done or not row.id.startswith(tuple(options.rows) or ""):
            continue
        known, whole = _find_known(lines, kind)
        if options.site:
            known = {site for site in sites if not site.startswith(tuple(options.site))}
        line = {**try_row(row, known, whole, FACTORS[kind]), "commit": commit}
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        lines += [line] if "crash" not in line else []
        print_note(f"{row.id}: {len(line['hits'])} sites, {len(line['effects'])} changed {line.get('crash', '')}")
    reasons = {site: row["reason"] for site, row in read_table(PATHS[kind]).items()}
    write_table(PATHS[kind], summarise(lines, sites, reasons))


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line; a wrong word exits with code 2."""
    parser = argparse.ArgumentParser("python -m tests.doctor.refusals", description=__doc__)
    parser.add_argument("rows", metavar="ROW", nargs="*", help="how ids of rows begin; all, if none is given")
    parser.add_argument("--out", metavar="FILE.jsonl", type=Path, required=True, help="a line for each row as it ends")
    kinds = ("run", "module", "loop", "oracle", "healthy", "rare", "program", "script")
    parser.add_argument("--kind", nargs="*", choices=kinds, default=kinds, help="kinds of rows")
    parser.add_argument("--draws", metavar="N", type=int, default=20, help="drawn programs of each kind")
    parser.add_argument("--every", metavar="N", type=int, default=1, help="one row of so many")
    parser.add_argument("--site", nargs="*", default=(), help="how sites begin that alone are changed")
    parser.add_argument("--constants", action="store_true", help="constants in place of refusals")
    parser.add_argument("--table", dest="measure", action="store_false", help="write the table alone")
    return parser.parse_args(words)


if __name__ == "__main__":
    main(parse())
