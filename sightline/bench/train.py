"""Benchmark of the engine's overhead per training step: reading, records, metrics and logs."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.bench.case import BenchmarkCase, Implementation, Run, allclose
from sightline.config import RunConfig, read_config
from sightline.engine.build import build
from sightline.engine.distributed import World
from sightline.engine.records import Observers, StepRecord
from sightline.engine.session import StopRequest, TrainingSession
from sightline.engine.train import train
from sightline.runs.run_directory import RunDirectory

__all__ = ["cases"]

NUM_STEPS = 6
CONFIG = """\
name: bench
task: {{name: classify}}
data: {{name: synthetic_shapes, num_points: {points}}}
model: {{name: pointnet, dropout: 0.0}}
losses: [{{name: cross_entropy}}, {{name: feature_transform_penalty, weight: 1e-3}}]
metrics: [{{name: accuracy}}]
optimizer: {{name: adam, lr: 1e-3}}
train: {{epochs: 1000, batch_size: {batch}}}
evaluate: {{every: 1000, metric: overall_accuracy}}
checkpoint: {{every: 1000}}
log: {{tensorboard: false}}
"""
"""Config of the shipped PointNet recipes without augmentation (measured by the suite `data`) and extras."""


def cases() -> list[BenchmarkCase]:
    return [_overhead_case(points) for points in (1024, 256)]


def _overhead_case(points: int) -> BenchmarkCase:
    """Make a case of six steps of the engine; a ratio of 0.98 means an overhead of two percent."""
    return BenchmarkCase(
        suite="train",
        label="engine_{batch}x{points}",
        size={"batch": 32, "points": points},
        quick={"batch": 4, "points": 64},
        make=_make_config,
        baseline=Implementation("bare_steps", _open_bare_loop, allclose(1e-4)),
        variants=(Implementation("sightline", _open_engine, allclose(1e-4)),),
    )


def _make_config(*, batch: int, points: int) -> RunConfig:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.yaml"
        path.write_text(CONFIG.format(batch=batch, points=points))
        return read_config(path, [])


@contextmanager
def _open_bare_loop(config: RunConfig) -> Iterator[Run]:
    """Run a user's own loop: batches in memory, losses as means, no schedule, no records.

    Returns the loss of each step, equal to the engine's up to rounding (1e-4).
    """
    job = build(config, World()).job
    keys_by_step = [job.stream.plan.step_keys(step)[0][0] for step in range(NUM_STEPS)]
    batches = [job.stream.reader(keys) for keys in keys_by_step]

    def run() -> Tensor:
        losses = []
        for batch in batches:
            job.optimizer.zero_grad(set_to_none=True)
            out = job.model(points=batch["points"])
            transform = out["feature_transform"]
            excess = transform @ transform.mT - torch.eye(transform.shape[-1])
            loss = F.cross_entropy(out["logits"], batch["label"]) + 1e-3 * excess.flatten(1).norm(dim=1).mean()
            loss.backward()
            job.optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses)

    yield run


@contextmanager
def _open_engine(config: RunConfig) -> Iterator[Run]:
    """Run the whole engine with its default observers, in a temporary folder."""
    world = World()
    with tempfile.TemporaryDirectory() as folder:
        built = build(config, world)
        stream = built.job.stream
        for step in range(stream.plan.steps_per_epoch):  # procedural clouds are made once, which is not measured here
            stream.reader(stream.plan.step_keys(step)[0][0])
        session = TrainingSession(
            built, world, RunDirectory(Path(folder), is_writer=True), stop=StopRequest(), record={}
        )
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar keeps the stream that it finds here
            observers = Observers(session._default_observers())

        def run() -> Tensor:
            losses: list[float] = []

            def after_step(record: StepRecord, stop_asked: bool) -> bool:
                observers.on_step(record)
                losses.append(record.losses["total"])
                return stop_asked

            built.job.num_steps = built.job.step + NUM_STEPS
            train(built.job, world, after_step)
            return torch.tensor(losses)

        try:
            yield run
        finally:
            observers.on_end("done")
