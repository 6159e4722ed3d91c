"""Processor time of the checks before a training, of shipped recipes that need no data: of this checkout and of others.

    .venv/bin/python benchmarks/start_checks.py [--rounds 3] [--against CHECKOUT ...] [--json FILE] [CONFIG ...]

Every run is a process of its own, on one thread, with kernels that an earlier process has compiled; the checkouts take
turns, so that a machine that is busy with other things slows all alike. Figures are medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RUN = """
import sys, time
from pathlib import Path
import torch
from sightline.config import read_config
from sightline.engine.build import build
from sightline.engine.distributed import World
from sightline.workbench.check.suite import all_rules, run_quick

torch.set_num_threads(1)
world = World(device=torch.device("cpu"))
built = build(read_config(Path(sys.argv[1])), world)
all_rules()
started = time.process_time()
found = run_quick(built, world)
print(time.process_time() - started, *sorted({finding.code for finding in found}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", nargs="*")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", type=Path, nargs="*", default=[])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    shipped = sorted(str(path.relative_to(ROOT / "configs")) for path in (ROOT / "configs").glob("*/synthetic_*.yaml"))
    results = {}
    for config in options.configs or [name.removesuffix(".yaml") for name in shipped]:
        checkouts = [*options.against, ROOT]
        try:
            turns = [[_run(config, checkout) for checkout in checkouts] for _ in range(options.rounds + 1)][1:]
        except subprocess.CalledProcessError as error:
            print(f"{config}: {error.stderr.strip().splitlines()[-1]}", flush=True)  # noqa: T201
            continue
        seconds = [[run[0] for run in runs] for runs in zip(*turns, strict=True)]
        codes = [sorted({code for _, codes in runs for code in codes}) for runs in zip(*turns, strict=True)]
        results[config] = {"seconds": seconds, "findings": codes}
        text = ", ".join(f"{statistics.median(times):.2f}" for times in seconds)
        print(f"{config}: {text} s; {', '.join(codes[-1]) or 'no finding'}", flush=True)  # noqa: T201
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


def _run(config: str, checkout: Path) -> tuple[float, list[str]]:
    command = [sys.executable, "-W", "ignore", "-c", RUN, str(checkout / f"configs/{config}.yaml")]
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(checkout)}
    done = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True, check=True, cwd=checkout)
    seconds, *codes = done.stdout.split()
    return float(seconds), codes


if __name__ == "__main__":
    main()
