"""Predictions for the user's own files: read by the predictor of the run's task, batched by size, transformed as for
evaluation.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sightline import registry
from sightline.engine.distributed import World
from sightline.engine.run_loading import TrainedRun
from sightline.errors import ConfigError, DataError, UserError, escape_to_one_line
from sightline.predict.files import collect_files
from sightline.predict.inference import InferencePipeline
from sightline.predict.predictor import Inference, Predictions, Predictor, ReadFile, Refusal, predictor_class
from sightline.predict.size_batching import SizeBatcher
from sightline.predict.stage_timer import StageTimer
from sightline.schema import signature_parameters, suggest

__all__ = ["Predictions", "Refusal", "build_predictor", "predict_each", "predict_files"]

_READER_ERRORS = (ValueError, OSError, MemoryError, EOFError, ArithmeticError, zlib.error, zipfile.BadZipFile)
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

    Arguments and errors are those of `predict_each` and `build_predictor`.
    """
    predictor = build_predictor(run, world=world, **options)
    files, refused = collect_files(paths, suffixes=predictor.suffixes)
    prediction_by_path: dict[Path, Any] = {}
    for path, prediction in predict_each(run, files, predictor=predictor, world=world, batch_size=batch_size):
        prediction_by_path[path] = prediction if isinstance(prediction, Refusal) else predictor.compact(prediction)
    ordered = [prediction_by_path[path] for path in files]
    refused += [prediction for prediction in ordered if isinstance(prediction, Refusal)]
    return Predictions(
        tuple(prediction for prediction in ordered if not isinstance(prediction, Refusal)), tuple(refused)
    )


def predict_each(
    run: TrainedRun,
    files: Sequence[Path],
    *,
    predictor: Predictor[Any] | None = None,
    world: World | None = None,
    batch_size: int | None = None,
) -> Iterator[tuple[Path, Any | Refusal]]:
    """Yield files and predictions one by one, with the run's evaluation transforms and weights; no votes.

    A file's prediction does not depend on the others, unless the predictor is sequential. A file that is damaged or
    outside what the run was trained on is refused with its reason, and the others go on. Memory is needed for one large
    file, or a few batches of small ones. `batch_size` is by default that of evaluation, `predictor` that of the run's
    task without options. Raises ConfigError for a run whose transforms, model or task do not take the fields of the
    files.
    """
    predictor = predictor or build_predictor(run, world=world)
    stages = _Stages(predictor, world or World())
    size = 1 if predictor.is_sequential else batch_size or run.config.evaluate.batch_size
    batcher = SizeBatcher(size, kind_of=predictor.batch_key, size_of=predictor.sample_size)
    try:
        predictor.start(files)
        for path in files:
            try:
                file = predictor.read(path)
            except DataError as error:
                yield path, Refusal(path, str(error))
                continue
            except UserError:
                raise  # an error of an option, not of the file
            except _READER_ERRORS as error:
                reason = (
                    f"{path}: cannot be read ({type(error).__name__}: {error}); the file is damaged or in another "
                    "format"
                )
                yield path, Refusal(path, escape_to_one_line(reason))
                continue
            for group in batcher.add(file):
                yield from stages.predict(group)
                group.clear()  # else its files would stay in memory with those of the next group
            del file
        for group in batcher.flush():
            yield from stages.predict(group)
            group.clear()
    finally:
        predictor.close()
        run.model.cpu()  # a loaded run keeps its model on the CPU


class _Stages:
    """Stages of inference for files that have been read."""

    def __init__(self, predictor: Predictor[Any], world: World) -> None:
        self._predictor = predictor
        self._world = world
        self._is_warm = not predictor.is_timed
        self._pipeline = InferencePipeline(
            predictor.run,
            predictor.info,
            world,
            fields=predictor.fields,
            source=f"a {predictor.noun} from a file",
            hidden=predictor.hidden,
            transforms=predictor.transforms(),
        )

    def predict(self, files: Sequence[ReadFile]) -> list[tuple[Path, Any | Refusal]]:
        """Predict each file; if the model refuses several at once, each is predicted alone."""
        try:
            if not self._is_warm:  # the first pass loads and compiles
                self._infer(files[:1])
                self._is_warm = True
            inference = self._infer(files)
        except (UserError, ValueError, MemoryError) as error:
            if len(files) > 1:
                return [prediction for file in files for prediction in self.predict([file])]
            path, reason = files[0].path, " ".join(str(error).split())
            return [(path, Refusal(path, f"{path}: the model cannot process this {self._predictor.noun}: {reason}"))]
        return list(zip([file.path for file in files], self._predictor.predict(files, inference), strict=True))

    def _infer(self, files: Sequence[ReadFile]) -> Inference:
        """Run one batch through transforms, model and task, with times if the predictor is timed."""
        timer = StageTimer(self._world)
        batch = self._pipeline.make_batch([file.path for file in files], [file.sample for file in files])
        inputs = self._pipeline.model_inputs(batch)
        if not self._predictor.is_timed:
            return Inference(batch, self._pipeline.predict(inputs), {})
        timer.end_stage("transforms")
        predictions = self._pipeline.predict_in_steps(inputs, timer.end_stage)
        return Inference(batch, predictions, timer.ms)
