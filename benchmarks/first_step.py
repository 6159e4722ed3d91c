"""Processor time of `sightline train CONFIG` to the end of its first step: kernels compiled, and kernels kept.

    .venv/bin/python benchmarks/first_step.py [--rounds 3] [--json FILE] [CONFIG ...]

A cold run has an empty folder in NUMBA_CACHE_DIR, as a package from a wheel has on its first day; kept ones read what
the cold run left there, as after `make install`. Every run is a process of its own, with its imports, on one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

CONFIGS = (
    "classify/synthetic_shapes_pointnet",
    "classify/synthetic_shapes_dgcnn",
    "segment/synthetic_shapes_point_transformer",
    "pose/synthetic_hands_v2v_small",
    "detect/synthetic_crowds_retinanet",
)
ROOT = Path(__file__).parents[1]
RUN = """
import os, sys, time
from torch.optim.optimizer import register_optimizer_step_post_hook
from sightline.cli import main

def end(*_):
    spent = os.times()
    os.write(1, f"first step after {spent.user + spent.system}\\n".encode())
    os._exit(0)

register_optimizer_step_post_hook(end)
main()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", nargs="*", default=CONFIGS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = {}
    for config in options.configs:
        with tempfile.TemporaryDirectory() as folder:
            cold, *kept = (_first_step(config, Path(folder), turn) for turn in range(options.rounds + 1))
        results[config] = {"cold_s": cold, "kept_s": kept}
        print(f"{config}: compiled {cold:.1f} s, kept {statistics.median(kept):.1f} s of processor time")  # noqa: T201
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


def _first_step(config: str, folder: Path, turn: int) -> float:
    command = [sys.executable, "-c", RUN, "train", str(ROOT / f"configs/{config}.yaml"), "--device", "cpu"]
    own = {"NUMBA_CACHE_DIR": str(folder / "kernels"), "OMP_NUM_THREADS": "1"}
    command += ["--out", str(folder / f"run_{turn}"), "log.tensorboard=false"]
    done = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True, check=True)
    return float(done.stdout.rpartition("first step after ")[2])


if __name__ == "__main__":
    main()
