"""What several processes gain or lose: PointNet in 2 processes of 1 thread over 1 process of 2 threads, in clouds/s.

    .venv/bin/python benchmarks/two_processes.py [--rounds 20] [--points 256] [--steps 5] [--json FILE]

Both runs stay alive and take turns of a few steps, so that a machine that is busy with other things slows both; the
median of the rounds' ratios and their spread are printed. The bar is 0.85. The time is that of whole training steps of
the shipped config (B=32): reading, losses, gradients, optimiser.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

CONFIG = Path(__file__).parents[1] / "configs" / "classify" / "synthetic_shapes_pointnet.yaml"


def serve(num_points: int, num_steps: int) -> None:
    """One process of a run: for each line that it is sent, it trains a step, and then as many more as are timed."""
    from sightline.config import read_config
    from sightline.engine.build import build
    from sightline.engine.distributed import start_world
    from sightline.engine.train import train

    config = read_config(CONFIG, [f"data.num_points={num_points}", "train.epochs=1000"])
    with start_world(device="cpu") as world:
        built = build(config, world)
        stream = built.job.stream
        for step in range(stream.plan.steps_per_epoch):  # procedural clouds are made once, which is not measured here
            stream.reader(stream.plan.parts(step)[0][world.rank])
        built.job.num_steps = 0
        for _ in sys.stdin:
            built.job.num_steps += num_steps + 1
            times: list[float] = []
            train(built.job, world, lambda record, stop, times=times: bool(times.append(time.perf_counter())))
            if world.is_first:
                print(config.train.batch_size * num_steps / (times[-1] - times[0]), flush=True)  # noqa: T201


class Run:
    """A run in so many processes that trains when it is told to."""

    def __init__(self, num_processes: int, num_threads: int, words: list[str]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        place = {"WORLD_SIZE": str(num_processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        self.processes = [
            subprocess.Popen(
                [sys.executable, __file__, "--serve", *words],
                env=os.environ
                | {"OMP_NUM_THREADS": str(num_threads)}
                | (place | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if num_processes > 1 else {}),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if rank == 0 else None,
                text=True,
            )
            for rank in range(num_processes)
        ]

    def clouds_per_s(self) -> float:
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        assert self.processes[0].stdout is not None
        return float(self.processes[0].stdout.readline())

    def close(self) -> None:
        for process in self.processes:  # all before the first is waited for: they end together
            assert process.stdin is not None
            process.stdin.close()
        assert [process.wait() for process in self.processes] == [0] * len(self.processes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--points", type=int, default=256)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.points, options.steps)
        return
    words = ["--points", str(options.points), "--steps", str(options.steps)]
    runs = [Run(1, 2, words), Run(2, 1, words)]
    rounds = []
    for number in range(options.rounds + 1):
        one, two = (run.clouds_per_s() for run in runs)
        if number > 0:  # the first is the warm-up
            rounds.append({"one": one, "two": two, "ratio": two / one})
    for run in runs:
        run.close()
    ratios = sorted(each["ratio"] for each in rounds)
    medians = [statistics.median(each[name] for each in rounds) for name in ("one", "two")]
    print("clouds/s: 1 process x 2 threads {:.1f}, 2 processes x 1 thread {:.1f}".format(*medians))  # noqa: T201
    print(f"2 x 1 / 1 x 2 (bar: at least 0.85): {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})")  # noqa: T201
    if options.json:
        options.json.write_text(json.dumps({"ratio": statistics.median(ratios), "rounds": rounds}, indent=2) + "\n")


if __name__ == "__main__":
    main()
