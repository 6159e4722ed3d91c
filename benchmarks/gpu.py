"""`python -m benchmarks.gpu`: what is measured when a GPU is at hand for a few minutes, as one queue.

    python -m benchmarks.gpu --minutes 12 --out DIR                 runs the jobs that DIR/results.jsonl lacks
    python -m benchmarks.gpu --minutes 1 --out DIR --device cpu --tiny   tests the queue where there is no GPU
    python -m benchmarks.gpu --page                                 writes the tables of docs/inside/gpu_queue.md anew

Each job appends a line at once. A second run goes on where the first stopped: what is done at this commit on this card
is skipped (unless tracked files differ from it), and what failed comes last. A job whose seconds do not fit into the
minutes left is left for the next run.

On a lent machine that gets a copy of the checkout and nothing beside it, DIR is a folder that git ignores, `runs/gpu`:
name it among the folders that travel, so that results and checkpoints come along; pack it where files come back
(`tar cf $OUT/gpu.tar runs/gpu`), and unpack it here. `--commit` names the commit where git's history does not travel.
The results of a session are added to docs/results/gpu/results.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_jobs import Bench, Job, StoppedError, list_jobs
from benchmarks.gpu_page import RESULTS, write_page
from sightline.contract.errors import RunError, UserError, summarise_error
from sightline.runs.environment import collect_environment, read_version
from sightline.verbs.output import print_note

_CHANGED = "-changed"
"""Ends the name of a commit from which tracked files differ."""


def read_results(file: Path) -> list[dict[str, Any]]:
    """Read the lines of a results file; one that a killed run left torn is no result."""
    results = []
    for line in file.read_bytes().splitlines() if file.is_file() else ():
        try:
            result = json.loads(line)
        except ValueError:
            continue
        if isinstance(result, dict) and "job" in result:
            results.append(result)
    return results


def append_result(file: Path, result: Mapping[str, Any]) -> None:
    """Append a line, on a line of its own even if a killed run left part of one, and wait for the disk."""
    with file.open("ab+") as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - 1))
        start = b"" if stream.read() in (b"", b"\n") else b"\n"
        stream.write(start + json.dumps(result).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def run_queue(
    jobs: Sequence[Job], bench: Bench, where: Mapping[str, str], clock: Any = time.monotonic
) -> list[dict[str, Any]]:
    """Run the jobs that are not done at this commit on this card, until the minutes are over; return their results."""
    file = bench.out / "results.jsonl"
    here = [line for line in read_results(file) if all(line.get(key) == where[key] for key in ("commit", "card"))]
    is_changed = where["commit"].endswith(_CHANGED)
    done = {line["job"] for line in here if "error" not in line and not is_changed}
    failed = {line["job"] for line in here if "error" in line}
    added = []
    for job in sorted((job for job in jobs if job.name not in done), key=lambda job: job.name in failed):
        if clock() + (0 if bench.is_tiny else job.seconds) > bench.ends_at:
            print_note(f"{job.name}: {job.seconds:.0f} s do not fit into the minutes left")
            continue
        start = clock()
        try:
            outcome: dict[str, Any] = {"figures": dict(job.run(bench)), "unit": job.unit}
        except Exception as error:  # noqa: BLE001 - the line states it, and the queue goes on
            outcome = {"error": summarise_error(error)}
            if isinstance(error, StoppedError):
                outcome["figures"] = dict(error.figures)
        date = datetime.now(UTC).isoformat(timespec="seconds")
        result = {"job": job.name, **outcome, **where, "date": date, "seconds": round(clock() - start, 1)}
        append_result(file, result)
        added.append(result)
        print_note(f"{job.name}: {outcome.get('figures', outcome.get('error'))}")
    return added


def describe_place(device: torch.device, commit: str | None) -> dict[str, str]:
    """Return commit, card and versions of a measurement. Raises UserError without a commit."""
    if commit is None:
        state = collect_environment()["git"]
        if state is None:
            raise UserError("this checkout has no git history; name its commit: --commit $(git rev-parse HEAD)")
        commit = state["commit"][:8] + (_CHANGED if state["is_dirty"] else "")
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"commit": commit, "card": card, "torch": torch.__version__, "triton": read_version("triton") or "none"}


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; a wrong word exits with code 2."""
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--minutes", metavar="N", type=float, default=12.0, help="stop before so many are over [12]")
    parser.add_argument("--out", metavar="DIR", type=Path, help="folder of results.jsonl and of trainings")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to test that the jobs run")
    parser.add_argument("--commit", metavar="NAME", help="the commit that is measured [that of git]")
    parser.add_argument("--page", action="store_true", help=f"write the tables from {RESULTS.name}, and run nothing")
    options = parser.parse_args(words)
    if options.out is None and not options.page:
        parser.error("--out names the folder of the results")
    return options


def main(words: Sequence[str]) -> int:
    """Run the queue or write the page; return the exit code."""
    options = parse(words)
    if options.page:
        write_page(read_results(RESULTS))
        return 0
    try:
        if options.device == "cuda" and not torch.cuda.is_available():
            raise UserError("torch finds no GPU here; --device cpu --tiny tests the queue")
        device = torch.device(options.device)
        where = describe_place(device, options.commit)
        options.out.mkdir(parents=True, exist_ok=True)
        ends_at = time.monotonic() + 60 * options.minutes
        run_queue(list_jobs(options.tiny), Bench(device, options.tiny, options.out.resolve(), ends_at), where)
    except (UserError, RunError) as error:
        print_note(f"error: {error}")
        return 2 if isinstance(error, UserError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
