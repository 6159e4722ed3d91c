"""Blind exams of `sightline.check` and `sightline.watch`: scripts of authors who had not seen the package.

    python -m tests.blind_exams.exam                    all six exams, some sixteen minutes of CPU
    python -m tests.blind_exams.exam second a12 b20     scripts whose names begin so

The folders hold the scripts as their authors froze them (docs/results/checks.md, "A blind exam"), the sixth of correct ones alone, the second with calls
of `check` and `watch` written into them afterwards; nothing imports them but this. Scripts with names in b
are correct, though unusual; each of the others has a bug, and a form without it. A bug counts as found if its form has
an error or a warning: whether that is named well is a matter of reading what is printed.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

import sightline

FOLDER = Path(__file__).parent
EXAMS = ("first", "second", "third", "fourth", "fifth", "sixth")


class Form(NamedTuple):
    """Form of a script, and what was found in it: errors and warnings, or the exception of a refusal."""

    exam: str
    name: str
    has_bug: bool
    findings: list[str]


def main(arguments: Sequence[str]) -> None:
    """Run the scripts that are named, print what is found in each form, and the counts."""
    exams = [exam for exam in EXAMS if exam in arguments] or EXAMS
    prefixes = tuple(word for word in arguments if word not in EXAMS)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for exam in exams:
        paths = sorted(path for path in (FOLDER / exam).glob("*.py") if path.stem.startswith(prefixes or ""))
        if not paths:
            sys.exit(f"{exam}: no script begins with {', '.join(prefixes)}")
        forms = [
            run_form(exam, path, has_bug) for path in paths for has_bug in ((True, False), (False,))[is_correct(path)]
        ]
        for form in forms:
            print(f"{form.name}{' (bug)' if form.has_bug else ''}: {'; '.join(form.findings) or '-'}")  # noqa: T201
        bugs, healthy = ([form for form in forms if form.has_bug == has_bug] for has_bug in (True, False))
        found, alarms = (sum(bool(form.findings) for form in part) for part in (bugs, healthy))
        print(  # noqa: T201
            f"{exam} exam: {found} of {len(bugs)} bugs found, alarms on {alarms} of {len(healthy)} correct forms"
        )


def is_correct(path: Path) -> bool:
    """Return True for a script without a bug."""
    return path.stem.startswith("b")


def run_form(exam: str, path: Path, has_bug: bool) -> Form:
    """Run a form of a script with `check` and `watch`; what they find is recorded."""
    findings: list[str] = []
    watches: list[Any] = []

    def check(model: Any, loss: Any, data: Any, **options: Any) -> None:
        try:
            findings.extend(describe(sightline.check(model, loss, data, **options).findings))
        except Exception as error:  # noqa: BLE001 - a refusal is a result
            findings.append(f"check refuses: {error!r}")

    def watch(model: Any, **options: Any) -> Any:
        frame = inspect.currentframe()
        names = frame.f_back.f_locals if frame and frame.f_back else {}
        if exam == "first":  # the page tells a user to name these two, and the scripts leave it to the exam
            options |= {"ema": names["ema"].model} if "ema" in names else {}
            options |= {"scheduler": names["sched"]} if "sched" in names else {}
        watches.append(sightline.watch(model, **options))
        return watches[-1]

    spec = importlib.util.spec_from_file_location(f"blind_{exam}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    script = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    getattr(script, "run" if exam == "first" else "main")(has_bug, watch, check)
    for each in watches:
        findings += describe(each.findings)
    return Form(exam, path.stem, has_bug, findings)


def describe(findings: Any) -> list[str]:
    """List errors and warnings, notes aside, as code and summary."""
    return [f"[{each.code}] {each.summary}" for each in findings if each.severity != "note"]


if __name__ == "__main__":
    main(sys.argv[1:])
