"""Server process of `MemoryMeter`: reads JSON lines (case, implementation, size), writes JSON lines (peak, fault)."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from sightline.bench import suites
from sightline.bench.memory import peak_of_run


def _measure(case_name: str, variant_name: str, is_quick: bool) -> int:
    case = suites.find_case(case_name)
    warm = case.smaller()
    form = next(form for form in case.forms if form.name == variant_name)
    with form.open(warm.inputs()) as run:
        run()
    with form.open((warm if is_quick else case).inputs()) as run:
        return peak_of_run(run)


def _serve() -> None:
    suites.all_cases()  # imports what cases need; nothing is computed, so no thread is lost in a fork
    for line in sys.stdin:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            _answer_and_leave(writing, json.loads(line))
        os.close(writing)
        with open(reading) as pipe:
            answer = pipe.read()
        _, status = os.waitpid(child, 0)
        if not answer:
            answer = json.dumps([None, f"killed by signal {os.WTERMSIG(status)}, most likely out of memory"])
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()


def _answer_and_leave(writing: int, question: list[Any]) -> None:
    os.dup2(2, 1)  # the output of a package must not mix with the answer
    try:
        answer: list[Any] = [_measure(*question), None]
    except Exception as error:  # noqa: BLE001 - the parent reports any error
        answer = [None, f"{type(error).__name__}: {error}"]
    os.write(writing, json.dumps(answer).encode())
    os._exit(0)


if __name__ == "__main__":
    _serve()
