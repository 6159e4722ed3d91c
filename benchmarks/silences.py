"""Longest silences of `sightline train CONFIG` before its first step: time to the first line, and between two lines.

    .venv/bin/python benchmarks/silences.py [--folder DIR] [--limit SECONDS] [--json FILE] [CONFIG ...]

Without configs it takes every shipped one; CONFIG may be a file, too. They run in a folder whose `data` has prepared
sets, where shipped configs look for them; a config whose data is missing is listed with the line that says so. Every
run is a process of its own, on one thread, and ends after its first step. Beside each time stands the processor time
that the process had in it: a silence with little of it is that of a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SILENCE_S = 10.0
"""Longest silence that is no fault."""
STEP = re.compile(rb"step \d+/\d+  loss")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*")
    parser.add_argument("--folder", type=Path, default=ROOT)
    parser.add_argument("--limit", type=float, default=600.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    shipped = sorted(path for path in (ROOT / "configs").glob("*/*.yaml") if not path.name.startswith("_"))
    results = {}
    for config in options.configs or [str(path.relative_to(ROOT / "configs").with_suffix("")) for path in shipped]:
        results[config] = measured = measure_silences(config, options.folder, options.limit)
        print(f"{config}: {describe(measured)}", flush=True)  # noqa: T201
        if options.json:
            options.json.write_text(json.dumps(results, indent=1))


def measure_silences(config: str, folder: Path, limit_s: float) -> dict[str, Any]:
    """Run a config to the end of its first step, or to `limit_s`, and time its lines on standard error.

    Times are pairs of seconds on the clock and of processor time of the run's process.
    """
    with tempfile.TemporaryDirectory() as out:
        file = config if config.endswith(".yaml") else str(ROOT / f"configs/{config}.yaml")
        command = [sys.executable, "-m", "sightline", "train", file, "--device", "cpu"]
        command += ["--out", f"{out}/run", "log.tensorboard=false"]
        own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        started_s = time.monotonic()
        process = subprocess.Popen(
            command, env={**os.environ, **own}, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        assert process.stderr is not None
        times, last, has_stepped = [(0.0, 0.0)], b"", False
        said: list[str] = [""]
        try:
            for last in process.stderr:
                times.append((time.monotonic() - started_s, _read_processor_s(process.pid, times[-1][1])))
                said.append(last.decode(errors="replace").strip())
                has_stepped = STEP.search(last) is not None
                if has_stepped or times[-1][0] > limit_s:
                    break
        finally:
            process.kill()
            process.wait()
    gaps = [
        (now[0] - then[0], now[1] - then[1], line) for (then, now), line in zip(pairwise(times), said, strict=False)
    ]
    return {
        "has_stepped": has_stepped,
        "first_line_s": gaps[0][:2] if gaps else None,
        "silence_s": max(gaps[1:], default=None),
        "whole_s": times[-1],
        "last_line": last.decode(errors="replace").strip(),
    }


def _read_processor_s(pid: int, before_s: float) -> float:
    """Return the processor time of a process in seconds; that known before if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return before_s
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def describe(measured: dict[str, Any]) -> str:
    """Describe the times of a run in one line."""
    if not measured["has_stepped"]:
        return f"not measured: {measured['last_line']}"
    (first_s, first_cpu_s), (silence_s, cpu_s, line) = measured["first_line_s"], measured["silence_s"]
    faults = "" if silence_s <= SILENCE_S else f", after '{line}'"
    return (
        f"first line {first_s:.2f} s ({first_cpu_s:.2f} s of processor time), longest silence {silence_s:.1f} s "
        f"({cpu_s:.1f} s), first step after {measured['whole_s'][0]:.0f} s ({measured['whole_s'][1]:.0f} s){faults}"
    )


if __name__ == "__main__":
    main()
