"""Predictions for the user's own files: collected, read, batched by size, transformed as for evaluation, predicted."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sightline.contract import registry
from sightline.contract.binding import AvailableKeys
from sightline.contract.errors import ConfigError, DataError, UserError, escape_to_one_line
from sightline.contract.model import Model, model_output_keys
from sightline.contract.schema import signature_parameters, suggest
from sightline.contract.types import Batch, DataInfo, Field, Sample, SampleKey
from sightline.engine.device.numerics import Precision
from sightline.engine.device.transfer import to_device
from sightline.engine.distributed import World
from sightline.engine.run_loading import TrainedRun
from sightline.engine.tiles import predict_by_tiles
from sightline.ops import waits
from sightline.runs.inputs import find_range
from sightline.store.files.cloud_files import list_skipped_files
from sightline.store.files.image_files import advise_unread
from sightline.store.files.input_files import list_files, natural_sort_key
from sightline.store.loading.collation import batch_keys
from sightline.store.loading.sample_stream import transform_samples
from sightline.store.loading.transform_pipeline import NamedTransform, TransformPipeline
from sightline.workbench.predict.predictor import Inference, Predictions, Predictor, ReadFile, Refusal, predictor_class

logger = logging.getLogger(__name__)


_SCAN_FOLDERS = ("velodyne", "samples/LIDAR_TOP")


def collect_files(paths: Iterable[Path], *, suffixes: Sequence[str]) -> tuple[list[Path], list[Refusal]]:
    """Collect the given files and, sorted, those with one of `suffixes` in and below the given folders.

    Folders without such files, or that cannot be read, are returned as refusals. Each file occurs once. Numbers in
    names are sorted as numbers: frame_10 follows frame_9. A given file is never skipped, regardless of its suffix;
    skipped files in a folder are named in a warning. Broken links and pipes are among the files. From a folder in
    the layouts of KITTI or nuScenes the files in `velodyne`, or the key frames in `samples/LIDAR_TOP`, are taken: poses
    and calibrations are text, and labels are `.bin` files, too.
    """
    files: dict[Path, None] = {}
    refused = []
    for path in paths:
        if not os.path.isdir(path):  # Path.is_dir raises for a name that is too long
            files.setdefault(path)
            continue
        try:
            os.scandir(path).close()  # os.walk silently skips folders without permission
        except OSError as error:
            refused.append(Refusal(path, f"{path}: cannot be read ({error.strerror}); check its permissions"))
            continue
        matches = list_files(path, suffixes)
        scans = [file for file in matches if any(map(file.parent.match, _SCAN_FOLDERS))]
        selected = sorted(scans or matches, key=lambda file: list(map(natural_sort_key, file.parts)))
        files |= dict.fromkeys(selected)
        advice = advise_unread(path) if ".jpg" in suffixes else ""
        if skipped := list_skipped_files(path, suffixes=suffixes):
            logger.warning("%s: %s%s", path, skipped, advice)
        if not selected:
            refused.append(Refusal(path, f"{path}: holds no file of the kinds {', '.join(suffixes)}{advice}"))
    return list(files), refused


class InferencePipeline:
    """Trained run on a device, bound to the `fields` of the samples; errors call their source `source`.

    The keys `hidden` are not passed to the model. `transforms` and `task` are by default the run's own.
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
        task: Any = None,
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
        keys = batch_keys({**fields, **added}, info.features) - hidden
        self.task = self._build_task(keys) if task is None else task

    def make_batch(self, names: Sequence[str], samples: Sequence[Sample]) -> Batch:
        """Make a transformed batch of the samples of files; random draws depend on a file's draw name only."""
        return self.transform(self.make_keys(names), samples)

    def make_keys(self, names: Sequence[str]) -> list[SampleKey]:
        """Make the keys by which samples of these names draw."""
        return [SampleKey(_compute_sample_index(name), 0, self.run.config.seed) for name in names]

    def transform(self, keys: Sequence[SampleKey], samples: Sequence[Sample]) -> Batch:
        """Make the transformed batch of samples that draw by these keys."""
        return transform_samples(samples, keys, self.transforms, self.info)

    def model_inputs(self, batch: Batch) -> Batch:
        """Return the batch keys that model and task receive, on their device."""
        visible = {name: value for name, value in batch.items() if name not in self.hidden}
        return to_device(visible, self._device, float_dtype=self._precision.parameter_dtype)

    def predict(self, inputs: Batch) -> Mapping[str, Any]:
        """Run model and task; return the predictions."""
        with torch.no_grad(), self._precision.autocast(self._device):
            predictions: Mapping[str, Any] = self.task.predict(self.model, inputs)
        waits.check()
        return predictions

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


def _compute_sample_index(name: str) -> int:
    """Compute a sample index for random draws from the file's name alone, so that other files do not matter."""
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:7], "little")


_MAX_SIZE = 2**18
"""Maximum size of a batch, regardless of the batch size, unless a single file is larger."""


READER_ERRORS = (ValueError, OSError, MemoryError, EOFError, ArithmeticError, zlib.error, zipfile.BadZipFile)
"""Exceptions of a reader that missed a fault in a file: they must not end the prediction of the others."""


def build_predictor(run: TrainedRun, *, world: World | None = None, **options: Any) -> Predictor[Any]:
    """Build the predictor for a run's task. Raises ConfigError if there is none, and for an unknown option."""
    predictor = predictor_class(run)
    parameters = signature_parameters(predictor)
    option_names = [name for name in parameters if name not in registry.FACTS]
    for option in options:
        if option not in option_names:
            takes = f"; it takes {', '.join(option_names) or 'none'}"
            raise ConfigError(
                f"{run.path}: predict of the task '{run.config.task.name}' has no option '{option}'"
                f"{suggest(option, option_names, otherwise=takes)}"
            )
    facts = {**run.facts, "run": run, "world": world or World()}
    instance: Predictor[Any] = predictor(**options, **{name: facts[name] for name in parameters if name in facts})
    return instance


def predict_files(
    run: TrainedRun,
    paths: Iterable[Path],
    *,
    world: World | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> Predictions[Any]:
    """Predict all files in memory; `paths` may be folders.

    Arguments and errors are those of `iterate_predictions` and `build_predictor`.
    """
    predictor = build_predictor(run, world=world, **options)
    files, refused = collect_files(paths, suffixes=predictor.suffixes)
    predictions = {
        path: outcome if isinstance(outcome, Refusal) else predictor.compact(outcome)
        for path, outcome in iterate_predictions(run, files, predictor=predictor, world=world, batch_size=batch_size)
    }
    ordered = [predictions[path] for path in files]
    refused += [outcome for outcome in ordered if isinstance(outcome, Refusal)]
    return Predictions(tuple(outcome for outcome in ordered if not isinstance(outcome, Refusal)), tuple(refused))


def iterate_predictions(
    run: TrainedRun,
    files: Sequence[Path],
    *,
    predictor: Predictor[Any] | None = None,
    world: World | None = None,
    batch_size: int | None = None,
) -> Iterator[tuple[Path, Any | Refusal]]:
    """Yield files and predictions one by one, with the run's evaluation transforms and weights; no votes.

    A file's prediction does not depend on the others. A file that is damaged or outside what the run was trained on is
    refused with its reason, and the others go on. Memory is needed for one large file, or a few batches of small ones.
    `batch_size` is by default that of evaluation, `predictor` that of the run's task without options; a model whose
    outputs would depend on other samples gets one file at a time. Raises ConfigError for a run whose transforms, model
    or task do not take the fields of the files.
    """
    predictor = predictor or build_predictor(run, world=world)
    size = batch_size or run.config.evaluate.batch_size
    try:
        predictor.start(files)
        predict = FilePredictor(predictor, world or World(), batch_size=size)
        for path, outcome in predict(files):
            if words := predict.far.pop(path, ""):
                logger.warning("%s: %s", escape_to_one_line(str(path)), words)
            yield path, outcome
    finally:
        predictor.close()
        run.model.cpu()  # a loaded run keeps its model on the CPU


class FilePredictor:
    """Path of files to predictions: read, batched by kind and size, transformed, passed through model and task.

    `far` says of files that were predicted how their numbers lie far outside of those that the run was trained on.
    """

    def __init__(self, predictor: Predictor[Any], world: World, *, batch_size: int) -> None:
        self.num_batches = 0
        self.far: dict[Path, str] = {}
        is_alone = isinstance(predictor.run.model, Model) and bool(predictor.run.model.batch_dependence)
        self._predictor, self._batch_size = predictor, 1 if is_alone else batch_size
        self._pipeline = InferencePipeline(
            predictor.run,
            predictor.info,
            world,
            fields=predictor.fields,
            source=f"a {predictor.noun} from a file",
            hidden=predictor.hidden,
            transforms=predictor.transforms(),
            task=predictor.make_task(),
        )
        self._tiling = predictor.make_tiling(self._pipeline.task)

    def __call__(self, paths: Iterable[Path]) -> Iterator[tuple[Path, Any | Refusal]]:
        """Yield each file with its prediction or its refusal, as they come."""
        group: list[ReadFile] = []
        for path in paths:
            file = self._read(path)
            if isinstance(file, Refusal):
                yield path, file
                continue
            if group and not self._fits(group, file):
                yield from self._end(group)
            group.append(file)
            del file
            if len(group) == self._batch_size or self._size(group) >= _MAX_SIZE:
                yield from self._end(group)
        yield from self._end(group)

    def _end(self, group: list[ReadFile]) -> Iterator[tuple[Path, Any | Refusal]]:
        """Predict a batch and empty it: else its files would stay in memory with those of the next one."""
        if group:
            yield from self._predict(group)
            group.clear()

    def _fits(self, group: Sequence[ReadFile], file: ReadFile) -> bool:
        """Return True if a file may join a batch: of its kind, with room for it."""
        is_alike = self._predictor.batch_key(group[0]) == self._predictor.batch_key(file)
        return is_alike and self._size((*group, file)) <= _MAX_SIZE

    def _size(self, files: Sequence[ReadFile]) -> int:
        return sum(map(self._predictor.sample_size, files))

    def _describe_far(self, file: ReadFile) -> str:
        """Describe the numbers of a file that lie far outside of those of the run's training; "" where none do."""
        for name, known in self._predictor.run.files.ranges.items():
            values = np.asarray(file.sample.get(name, ()))
            found = find_range(values) if values.dtype.kind == "f" else None
            if found is not None and (words := known.describe_far(name, found)):
                return f"the input is unlike all of training, and so its prediction may be anything: {words}"
        return ""

    def _read(self, path: Path) -> ReadFile | Refusal:
        try:
            return self._predictor.read(path)
        except DataError as error:
            return Refusal(path, str(error))
        except UserError:
            raise  # an error of an option, not of the file
        except READER_ERRORS as error:
            kind = type(error).__name__
            reason = f"{path}: cannot be read ({kind}: {error}); the file is damaged or in another format"
            return Refusal(path, escape_to_one_line(reason))

    def _predict(self, files: Sequence[ReadFile]) -> list[tuple[Path, Any | Refusal]]:
        """Predict each file; if the model refuses several at once, each is predicted alone."""
        try:
            inference = self._infer(files)
        except (UserError, ValueError, MemoryError) as error:
            if len(files) > 1:
                return [prediction for file in files for prediction in self._predict([file])]
            path, reason = files[0].path, " ".join(str(error).split())
            return [(path, Refusal(path, f"{path}: the model cannot process this {self._predictor.noun}: {reason}"))]
        self.num_batches += 1
        self.far |= {file.path: words for file in files if (words := self._describe_far(file))}
        return list(zip([file.path for file in files], self._predictor.predict(files, inference), strict=True))

    def _infer(self, files: Sequence[ReadFile]) -> Inference:
        """Run one batch through transforms, model and task."""
        keys = self._pipeline.make_keys([self._predictor.draw_name(file.path) for file in files])
        samples = [file.sample for file in files]
        batch, predictions = self._infer_samples(keys, samples)
        if self._tiling is not None:
            pairs, size = zip(keys, samples, strict=True), self._batch_size
            predictions = predict_by_tiles(
                self._tiling, pairs, predictions, lambda *tiles: self._infer_samples(*tiles)[1], batch_size=size
            )
        return Inference(batch, predictions)

    def _infer_samples(self, keys: Sequence[SampleKey], samples: Sequence[Sample]) -> tuple[Batch, Mapping[str, Any]]:
        """Return the batch of samples, and what model and task predict of it."""
        batch = self._pipeline.transform(keys, samples)
        return batch, self._pipeline.predict(self._pipeline.model_inputs(batch))
