"""Gain of gradients that travel during the backward pass over those summed after it: two processes, one thread each.

    .venv/bin/python benchmarks/gradient_overlap.py [--rounds 8] [--json FILE] [CONFIG] [KEY=VALUE ...]

The forms take turns step by step; printed are the medians of a step's seconds and of those waited for gradients, and
of the rounds' ratios. On one machine gradients travel in no time; a slow network is a name space of one's own, as root:

    unshare -n sh -c 'ip link set lo up; tc qdisc add dev lo root tbf rate 1gbit burst 256kb latency 50ms; ...'
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from torch import nn

from benchmarks.turns import median_and_spread
from sightline.engine.distributed import World
from sightline.engine.records import StepRecord

CONFIG = Path(__file__).parents[1] / "configs" / "detect" / "synthetic_crowds_retinanet.yaml"
SIZES = ("data.train_size=64", "data.validation_size=8", "data.test_size=8", "train.epochs=1000", "train.batch_size=2")
NUM_PROCESSES = 2


@contextlib.contextmanager
def reduce_afterwards(world: World, model: nn.Module, *, is_last_micro_batch: bool) -> Iterator[None]:
    """The same reduction, with no bucket sent before the pass has ended."""
    is_late = mock.patch.object(World, "_can_send_early", return_value=False)
    with is_late, REDUCE(world, model, is_last_micro_batch=is_last_micro_batch):
        yield


REDUCE = World.reduce_gradients


def measure(config_path: Path, overrides: list[str], rounds: int) -> list[dict[str, list[float]]]:
    """Run the steps on this process: seconds of a step and of its wait in each round, by form."""
    from sightline.config import read_config
    from sightline.engine.build import build
    from sightline.engine.distributed import start_world
    from sightline.engine.loop import train

    config = read_config(config_path, [*SIZES, *overrides])
    rows: list[dict[str, list[float]]] = []
    with start_world(device="cpu") as world:
        job = build(config, world).job
        num_bytes = sum(p.numel() * p.element_size() for p in job.model.parameters())
        for number in range(rounds + 1):
            forms = [("early", REDUCE), ("afterwards", reduce_afterwards)]
            times = {}
            for name, form in forms if number % 2 else reversed(forms):
                with mock.patch.object(World, "reduce_gradients", form):
                    records: list[StepRecord] = []
                    world.barrier("step")
                    started = time.perf_counter()
                    train(job, world, lambda record, stop, records=records: bool(records.append(record)) or True)
                    times[name] = [time.perf_counter() - started, records[0].seconds["reduce"]]
            rows.append(times)
        if world.rank == 0:
            print(f"{num_bytes / 1e6:.0f} MB of weights", file=sys.stderr)  # noqa: T201
    return rows[1:] if world.rank == 0 else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--json", type=Path)
    parser.add_argument("words", nargs="*", metavar="CONFIG | KEY=VALUE")
    options = parser.parse_args()
    paths = [word for word in options.words if "=" not in word]
    config, overrides = Path(paths[0]) if paths else CONFIG, [word for word in options.words if "=" in word]
    if "RANK" in os.environ:
        sys.stdout.write(json.dumps(measure(config, overrides, options.rounds)))
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    rendezvous = {"WORLD_SIZE": str(NUM_PROCESSES), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    words = [sys.executable, "-m", "benchmarks.gradient_overlap", "--rounds", str(options.rounds), str(config)]
    ranks = [
        subprocess.Popen(
            [*words, *overrides],
            env=os.environ | {"OMP_NUM_THREADS": "1"} | rendezvous | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
        )
        for rank in range(NUM_PROCESSES)
    ]
    rounds = json.loads(ranks[0].communicate()[0])
    for form in ("early", "afterwards"):
        step, wait = (statistics.median(times[form][column] for times in rounds) for column in range(2))
        print(f"{form}: {step:.3f} s a step, {wait:.3f} s of it waited for gradients")  # noqa: T201
    ratios = [times["afterwards"][0] / times["early"][0] for times in rounds]
    print(f"afterwards / early: {median_and_spread(ratios)}")  # noqa: T201
    if options.json:
        options.json.write_text(json.dumps(rounds, indent=2) + "\n")


if __name__ == "__main__":
    main()
