"""What docs/reference.md and docs/train.md say in words about `sightline` in Python: attributes, a reporter, errors."""

import numpy as np
import torch

import sightline
from sightline import geometry, metrics
from sightline.errors import CheckpointError, ConfigError, DataError, PluginError
from sightline.studies.train_run import Reporter

assert all(issubclass(each, ValueError) for each in (CheckpointError, ConfigError, DataError, PluginError))


class Told(Reporter):
    """Keeps what a training reports."""

    def __init__(self) -> None:
        self.notes, self.found, self.figures, self.last = [], [], [], None

    def note(self, text: str) -> None:
        self.notes.append(text)

    def findings(self, findings) -> None:
        self.found.extend((each.severity, each.code, each.summary) for each in findings)

    def evaluation(self, document, *, title: str, dataset: object) -> None:
        self.figures.append(document["metrics"])

    def finished(self, document) -> None:
        self.last = document


def train(config: str, out: str):
    """A run, and what was reported of it."""
    told = Told()
    result = sightline.train_run(
        config, overrides=["train.epochs=1"], out=out, resume=None, plugins=(), checks=False, device="cpu", reporter=told
    )
    assert result.is_finished
    assert result.stopped_by is None
    assert list(result.findings) == []
    assert result.document["metrics"] == told.figures[-1] == told.last["metrics"]
    return result.path


def use(path: str, plugins=()):
    """A run in every way that the page names."""
    run = sightline.load_run(path, checkpoint="last", plugins=plugins)
    assert isinstance(run, sightline.LoadedRun)
    assert (str(run.path), run.checkpoint is not None) == (str(path), True)
    assert run.facts["num_classes"] == len(run.class_names)
    assert run.config.model.name
    assert run.transforms is not None
    batch = run.transform({"points": torch.rand(2, 64, 3)})
    logits = run.model(points=batch["points"])["logits"]
    assert metrics.overall_accuracy(metrics.confusion_matrix(logits.argmax(1), logits.argmax(1), num_classes=12)) == 1.0
    return logits


def compute():
    """Functions of `sightline.geometry`."""
    points = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 32, 3))).float()
    chosen = geometry.farthest_point_sample(points, num_samples=4)
    queries = geometry.gather_points(points, chosen[:, :, None])[:, :, 0]
    near = geometry.nearest_neighbours(points, num_neighbours=3, queries=queries)
    assert bool((near[:, :, 0] == chosen).all())
    return chosen, near
