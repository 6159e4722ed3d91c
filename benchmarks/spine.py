"""Two bars of the spine as ratios in one run: batches from memory, and what the engine adds to a bare step.

    .venv/bin/python benchmarks/spine.py [--points 1024] [--json FILE]

One thread, CPU time, the two sides in turn; the median of the rounds and their spread are printed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from sightline.config import read_config
from sightline.data.reading import BatchReader, NamedTransform
from sightline.data.synthetic_shapes import SyntheticShapes
from sightline.engine.build import build
from sightline.engine.distributed import World, start_world
from sightline.engine.run_directory import RunDirectory
from sightline.engine.session import Session, StopRequest
from sightline.engine.train import train
from sightline.transforms.point_choice import ShufflePoints
from sightline.transforms.points import Scale, Translate
from sightline.types import SampleKey

CONFIG = Path(__file__).parents[1] / "configs" / "classify" / "synthetic_shapes_pointnet.yaml"


class PerItem(Dataset):
    """The usual form: one cloud at a time, augmented in NumPy, points shuffled in place; 32 of them are collated."""

    def __init__(self, clouds: np.ndarray, labels: np.ndarray) -> None:
        self.clouds, self.labels = clouds, labels

    def __len__(self) -> int:
        return len(self.clouds)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        cloud = self.clouds[index].copy()
        scale = np.random.uniform(2 / 3, 3 / 2, size=3)
        shift = np.random.uniform(-0.2, 0.2, size=3)
        cloud = (cloud * scale + shift).astype(np.float32)
        np.random.shuffle(cloud)
        return cloud, int(self.labels[index])


def in_turn(first: Callable[[], None], second: Callable[[], None], rounds: int) -> dict[str, float]:
    """CPU seconds of both, a round of each after the other, and the ratio second / first round by round."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        for times, function in zip(seconds, (first, second), strict=True):
            started = time.process_time()
            function()
            times.append(time.process_time() - started)
    ratios = sorted(b / a for a, b in zip(seconds[0][1:], seconds[1][1:], strict=True))
    return {
        "ratio": statistics.median(ratios),
        "ratio_low": ratios[0],
        "ratio_high": ratios[-1],
        "first_cpu_s": statistics.median(seconds[0][1:]),
        "second_cpu_s": statistics.median(seconds[1][1:]),
    }


def batches() -> dict[str, float]:
    """A per-item DataLoader of 2,048 clouds x 1,024 points, over our batches from memory; the same augmentation."""
    shapes = SyntheticShapes(split="train", train_size=2048, num_points=1024)
    everything = shapes.get_batch([SampleKey(i, 0, 0) for i in range(2048)])
    loader = DataLoader(PerItem(everything["points"].numpy(), everything["label"].numpy()), batch_size=32, shuffle=True)
    transforms = [
        NamedTransform("scale", Scale()),
        NamedTransform("translate", Translate()),
        NamedTransform("shuffle_points", ShufflePoints()),
    ]
    reader = BatchReader(shapes, transforms)

    def ours() -> None:
        order = torch.randperm(2048).tolist()
        for start in range(0, 2048, 32):
            reader([SampleKey(index, 0, 0) for index in order[start : start + 32]])

    def theirs() -> None:
        for _ in loader:
            pass

    return in_turn(ours, theirs, rounds=5)


def overhead(num_points: int, num_steps: int = 6, rounds: int = 5) -> dict[str, float]:
    """Steps of the whole engine (loop, metrics, logs) over bare steps of the same model on the same batches."""
    overrides = [f"data.num_points={num_points}", "transforms.train=[]", "train.epochs=1000", "evaluate.every=1000"]
    config = read_config(CONFIG, [*overrides, "checkpoint.every=1000"])
    with start_world(device="cpu") as world, tempfile.TemporaryDirectory() as folder:
        built, bare = build(config, world), build(config, world).job
        session = Session(built, world, RunDirectory(Path(folder), is_writer=True), stop=StopRequest(), record={})
        with contextlib.redirect_stderr(io.StringIO()):
            session.observers = type(session.observers)(session._default_observers())
        batch = bare.stream.reader(bare.stream.plan.parts(0)[0][0])

        def bare_steps() -> None:
            for _ in range(num_steps):
                bare.optimizer.zero_grad(set_to_none=True)
                out = bare.model(points=batch["points"])
                excess = out["feature_transform"] @ out["feature_transform"].mT - torch.eye(64)
                loss = F.cross_entropy(out["logits"], batch["label"]) + 1e-3 * excess.flatten(1).norm(dim=1).mean()
                loss.backward()
                bare.optimizer.step()

        def engine_steps() -> None:
            built.job.num_steps = built.job.step + num_steps
            train(built.job, World(), lambda record, stop: bool(session.observers.on_step(record)))

        return in_turn(bare_steps, engine_steps, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=1024)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {
        "per-item DataLoader / batches from memory (bar: at least 5)": batches(),
        f"engine / bare PointNet step, B=32, N={options.points} (bar: at most 1.02)": overhead(options.points),
    }
    for name, result in results.items():
        print(f"{name}: {result['ratio']:.3f} ({result['ratio_low']:.3f} to {result['ratio_high']:.3f})")  # noqa: T201
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
