"""Inference with a trained run on samples from files: evaluation transforms, model and task."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from sightline import registry
from sightline.binding import AvailableKeys, model_output_keys
from sightline.data.loading.batch_reader import BatchReader, NamedTransform, TransformPipeline
from sightline.data.loading.collate import batch_keys
from sightline.engine.device import to_device
from sightline.engine.distributed import World
from sightline.engine.precision import Precision
from sightline.engine.run_loading import TrainedRun
from sightline.types import Batch, DataInfo, Field, Sample, SampleKey

__all__ = ["InferencePipeline"]


class InferencePipeline:
    """Trained run on a device, bound to the `fields` of the samples; errors call their source `source`.

    The keys `hidden` are not passed to the model. `transforms` are by default the run's own.
    """

    def __init__(
        self,
        run: TrainedRun,
        info: DataInfo,
        world: World,
        *,
        fields: Mapping[str, Field],
        source: str,
        hidden: frozenset[str] = frozenset(),
        transforms: Sequence[NamedTransform] | None = None,
    ) -> None:
        self.run = run
        self.info = dataclasses.replace(info, fields=dict(fields))
        self.hidden = hidden
        self.transforms = run.transforms if transforms is None else tuple(transforms)
        self._source = source
        self._device = world.device
        self._precision = Precision(run.config.train.precision)
        added = TransformPipeline(self.transforms, fields, source=source).added
        self.model = run.model.to(self._device)
        self.task = self._build_task(batch_keys({**fields, **added}, info.features) - hidden)

    def make_batch(self, paths: Sequence[Path], samples: Sequence[Sample]) -> Batch:
        """Make a transformed batch of the samples of these files; random draws depend on the file's name only."""
        keys = [SampleKey(_compute_sample_index(path), 0, self.run.config.seed) for path in paths]
        return BatchReader(_SampleStream(self.info, samples), self.transforms)(keys)

    def model_inputs(self, batch: Batch) -> Batch:
        """Return the batch keys that model and task receive, on their device."""
        visible = {name: value for name, value in batch.items() if name not in self.hidden}
        return to_device(visible, self._device, float_dtype=self._precision.parameter_dtype)

    def predict(self, inputs: Batch) -> Mapping[str, Any]:
        """Run model and task; return the predictions."""
        with torch.no_grad(), self._autocast():
            return self.task.predict(self.model, inputs)

    def predict_in_steps(self, inputs: Batch, end: Callable[[str], None]) -> Mapping[str, Any]:
        """Run the task in its two steps; `end` is called with the name of each finished step."""
        with torch.no_grad(), self._autocast():
            outputs = self.task.outputs(self.model, inputs)
            end("network")
            predictions: Mapping[str, Any] = self.task.postprocess(outputs, inputs)
        end("decode")
        return predictions

    def _autocast(self) -> AbstractContextManager[Any]:
        """Return the autocast context of the run's precision."""
        return self._precision.autocast(self._device)

    def _build_task(self, keys: frozenset[str]) -> Any:
        """Build the run's task without losses, bound to the keys of files."""
        owner = f"model '{self.run.config.model.name}'"
        wiring = {
            "model": self.model,
            "losses": {},
            "batch_keys": AvailableKeys(self._source, keys),
            "output_keys": AvailableKeys(owner, model_output_keys(self.model, owner=owner)),
        }
        return registry.tasks.build(self.run.config.task, facts={**self.run.facts, **wiring})


class _SampleStream:
    """Samples as a data set that is read once, in order."""

    def __init__(self, info: DataInfo, samples: Sequence[Sample]) -> None:
        self.info = info
        self._size = len(samples)
        self._samples = iter(samples)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, key: SampleKey) -> Sample:
        return next(self._samples)


def _compute_sample_index(path: Path) -> int:
    """Compute a sample index for random draws from the file's name alone, so that other files do not matter."""
    return int.from_bytes(hashlib.sha256(path.stem.encode(errors="surrogateescape")).digest()[:7], "little")
