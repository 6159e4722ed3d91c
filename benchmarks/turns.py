"""Runs that stay alive and take turns of a few steps, so that a machine that is busy with other things slows all alike.

.venv/bin/python benchmarks/turns.py CONFIG STEPS [key=value ...]    # one process of a run; the benches start it
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

__all__ = ["Run", "in_turn", "median_and_spread"]


def serve(config_path: Path, num_steps: int, overrides: Sequence[str]) -> None:
    """One process of a run: for each line that it is sent, it trains a step, and then as many more as are timed."""
    from sightline.config import read_config
    from sightline.engine.build import build
    from sightline.engine.distributed import start_world
    from sightline.engine.loop import train

    config = read_config(config_path, [*overrides, "train.epochs=1000"])
    with start_world(device="cpu") as world:
        built = build(config, world)
        stream = built.job.stream
        for step in range(stream.plan.steps_per_epoch):  # procedural clouds are made once, which is not measured here
            stream.reader(stream.plan.step_keys(step)[0][world.rank])
        built.job.num_steps = 0
        for _ in sys.stdin:
            built.job.num_steps += num_steps + 1
            times: list[float] = []
            train(built.job, world, lambda record, stop, times=times: bool(times.append(time.perf_counter())))
            if world.rank == 0:
                print(config.train.num_samples * num_steps / (times[-1] - times[0]), flush=True)  # noqa: T201


class Run:
    """A run in so many processes that trains on request."""

    def __init__(self, config: Path, *, steps: int, processes: int, threads: int, overrides: Sequence[str]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        rendezvous = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        self.processes = [
            subprocess.Popen(
                [sys.executable, __file__, str(config), str(steps), *overrides],
                env=os.environ
                | {"OMP_NUM_THREADS": str(threads)}
                | (rendezvous | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if rank == 0 else None,
                text=True,
            )
            for rank in range(processes)
        ]

    def samples_per_s(self) -> float:
        """Samples of all processes per second of wall time, over the steps of one turn."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        assert self.processes[0].stdout is not None
        return float(self.processes[0].stdout.readline())

    def close(self) -> None:
        """End all processes. Raises AssertionError where one did not end well."""
        for process in self.processes:  # all before the first is waited for: they end together
            assert process.stdin is not None
            process.stdin.close()
        assert [process.wait() for process in self.processes] == [0] * len(self.processes)


def in_turn(runs: Sequence[Run], rounds: int) -> list[list[float]]:
    """Samples per second of every run in every round, after a first one as warm-up; the runs are closed."""
    speeds = [[run.samples_per_s() for run in runs] for _ in range(rounds + 1)][1:]
    for run in runs:
        run.close()
    return speeds


def median_and_spread(values: Sequence[float]) -> str:
    """The median, and the lowest and highest value."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
