"""Table of codes by subject: which rules judge a code of a checked module, of a loop and of a run, and from what.

`python -m tests.doctor.cells` writes it to docs/inside/codes_by_subject.md. All of it is read from the code: a rule is
asked of a subject that offers what its measurements begin from; what a subject offers, the rules that are asked by
`find_by`, and who asks them are found in the sources.
"""

from __future__ import annotations

import ast
import inspect
import math
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.marked_pages import with_block
from sightline.doctor.check import examine_subject
from sightline.doctor.evidence import Evidence
from sightline.doctor.rules import Rule
from sightline.doctor.watch.record_monitor import RecordMonitor
from sightline.doctor.watch.trace_monitor import TraceMonitor
from sightline.verbs.output import print_note
from sightline.workbench.check.run_subject import examine_run
from sightline.workbench.check.suite import all_rules
from tests.conftest import ROOT

PAGE = ROOT / "docs/inside/codes_by_subject.md"
START, END = "<!-- cells: written by tests/doctor/cells.py -->\n", "\n<!-- end of cells -->"
PACKAGE, WATCH = ROOT / "sightline", ROOT / "sightline/doctor/watch"
GIVERS: Mapping[str, tuple[Callable[..., Any], ...]] = {
    "module": (examine_subject,),
    "loop": (TraceMonitor._examine, RecordMonitor.examine),
    "run": (examine_run,),
}
"""Functions that put the evidence of each subject together."""


class Judge(NamedTuple):
    """What judges a code: a rule with what it reads, and who asks it, if known."""

    name: str
    reads: tuple[str, ...]
    askers: tuple[str, ...] = ()

    def __str__(self) -> str:
        askers = ", ".join(self.askers)
        return f"`{self.name}`: {', '.join(self.reads)}{f', by {askers}' if askers else ''}"


Cells = dict[tuple[str, str], list[Judge]]


@cache
def list_cells() -> Cells:
    """List what judges each code of each subject, in the order of the rules; cells with nothing are left out."""
    cells, asked = Cells(), defaultdict[tuple[str, str], set[str]](set)
    for path in sorted(PACKAGE.rglob("*.py")):
        subject = "loop" if path.is_relative_to(WATCH) else "run"
        for name, asker in _list_askers(path):
            asked[name, subject].add(asker)
    given = {subject: {key for each in givers for key in list_given(each)} for subject, givers in GIVERS.items()}
    for rule in all_rules():
        for subject, names in given.items():
            askers = tuple(sorted(asked.get((rule.judge.__name__, subject), ())))
            if askers or Evidence(dict.fromkeys(names), math.inf).offers(rule.reads):
                cells.setdefault((rule.code, subject), []).append(Judge(_name(rule), rule.reads, askers))
    return cells


def _name(rule: Rule) -> str:
    return rule.name.removeprefix("doctor.rules.").removeprefix("workbench.")


def list_given(function: Callable[..., Any]) -> set[str]:
    """List the evidence that a function gives: keys of mappings in it, and keywords of callers that it passes on."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    keys = [key for node in ast.walk(tree) if isinstance(node, ast.Dict) for key in node.keys]
    keys += [n.slice for n in ast.walk(tree) if isinstance(n, ast.Subscript) and isinstance(n.ctx, ast.Store)]
    given = {str(key.value) for key in keys if isinstance(key, ast.Constant)}
    parameters = inspect.signature(function).parameters
    if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        calls = [call for path in PACKAGE.rglob("*.py") for _, call in _list_calls(path, function.__name__)]
        given |= {word.arg for call in calls for word in call.keywords if word.arg and word.arg not in parameters}
    return given


@cache
def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(_read(path))


def _list_calls(path: Path, name: str) -> Iterator[tuple[ast.stmt, ast.Call]]:
    """Yield the calls of a function by its name, each with the function or class of the file that it stands in."""
    for part in _parse(path).body if f"{name}(" in _read(path) else ():
        for node in ast.walk(part):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
                yield part, node


def _list_askers(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the rules that a file asks itself by `find_by`, each with who."""
    for part, call in _list_calls(path, "find_by"):
        if isinstance(call.args[0], ast.Name):
            yield from ((call.args[0].id, asker) for asker in _find_monitors(path, part))


def _find_monitors(path: Path, part: ast.stmt) -> set[str]:
    """Find the monitors of a file that reach a function of it; the function itself where none of them does."""
    parts = {name: each for each in _parse(path).body for name in _list_names(each)}
    used = {
        name: {getattr(node, "id", getattr(node, "attr", "")) for node in ast.walk(each)} & parts.keys()
        for name, each in parts.items()
    }
    (name,) = _list_names(part)
    found = set()
    for monitor in (each for each in parts if each.endswith("Monitor") and isinstance(parts[each], ast.ClassDef)):
        reached = {monitor}
        while new := {other for each in reached for other in used[each]} - reached:
            reached |= new
        found |= {monitor} if name in reached else set()
    return found or {f"{path.stem}.{name}"}


def _list_names(part: ast.stmt) -> list[str]:
    """List the names that a statement of a file declares."""
    if isinstance(part, ast.FunctionDef | ast.ClassDef):
        return [part.name]
    targets = part.targets if isinstance(part, ast.Assign) else [part.target] if isinstance(part, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def count() -> dict[str, int]:
    """Count codes and cells, and cells with several judges."""
    cells = list_cells()
    return {
        "codes": len({code for code, _ in cells}),
        "cells": len(cells),
        "several": sum(len(judges) > 1 for judges in cells.values()),
    }


def write_table() -> str:
    """Write the table, below the numbers of its cells."""
    cells, numbers = list_cells(), count()
    text = f"{numbers['codes']} codes, {numbers['cells']} cells, {numbers['several']} of them with several rules."
    lines = [f"| code | {' | '.join(f'a {subject}' for subject in GIVERS)} |", f"|---{'|---' * len(GIVERS)}|"]
    for code in sorted({code for code, _ in cells}):
        judged = ("<br>".join(map(str, cells.get((code, subject), ()))) for subject in GIVERS)
        lines.append(f"| `{code}` | {' | '.join(judged)} |")
    return "\n".join((text, "", *lines))


def with_table(text: str) -> str:
    """Return the text of the page with its table as it should be."""
    return with_block(text, start=START, end=END, block=write_table())


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print_note(f"{PAGE} is written")
