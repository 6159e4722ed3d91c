"""Predictions for the user's own files: read by the predictor of the run's task, batched by size, transformed as for
evaluation."""

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

_UNREAD = (ValueError, OSError, MemoryError, EOFError, ArithmeticError, zlib.error, zipfile.BadZipFile)
"""What a reader raises that has overlooked something in a file: it must not end the prediction of the others."""


def build_predictor(run: TrainedRun, *, world: World | None = None, **options: Any) -> Predictor[Any]:
    """The predictor for a run's task. Raises ConfigError where there is none, and for an option that it lacks."""
    predictor = predictor_class(run)
    parameters = signature_parameters(predictor)
    taken = [each for each in parameters if each not in registry.FACTS]
    for option in options:
        if option not in taken:
            takes = f"; it takes {', '.join(taken) or 'none'}"
            raise ConfigError(
                f"{run.path}: predict of the task '{run.config.task.name}' has no option '{option}'"
                f"{suggest(option, taken, otherwise=takes)}"
            )
    facts = {**run.facts, "run": run, "world": world or World()}
    given: Predictor[Any] = predictor(**options, **{each: facts[each] for each in parameters if each in facts})
    return given


def predict_files(
    run: TrainedRun,
    paths: Iterable[Path],
    *,
    world: World | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> Predictions[Any]:
    """The prediction for each file, all of them in memory; `paths` may be folders.

    Arguments and errors are those of `predict_each` and `build_predictor`.
    """
    predictor = build_predictor(run, world=world, **options)
    files, refused = collect_files(paths, suffixes=predictor.suffixes)
    found: dict[Path, Any] = {}
    for path, prediction in predict_each(run, files, predictor=predictor, world=world, batch_size=batch_size):
        found[path] = prediction if isinstance(prediction, Refusal) else predictor.compact(prediction)
    ordered = [found[path] for path in files]
    refused += [each for each in ordered if isinstance(each, Refusal)]
    return Predictions(tuple(each for each in ordered if not isinstance(each, Refusal)), tuple(refused))


def predict_each(
    run: TrainedRun,
    files: Sequence[Path],
    *,
    predictor: Predictor[Any] | None = None,
    world: World | None = None,
    batch_size: int | None = None,
) -> Iterator[tuple[Path, Any | Refusal]]:
    """Files and their predictions as they come, by the run's own evaluation transforms and weights; no votes.

    A file's prediction does not depend on the others, unless the predictor is sequential. A file that is damaged or
    outside what the run was trained on is refused with its reason, and the others go on. Held in memory are one large
    file, or a few batches of small ones. `batch_size` is that of evaluation where it is None,
    `predictor` the one of the run's task without options.
    Raises ConfigError for a run whose transforms, model or task do not take what the files offer.
    """
    predictor = predictor or build_predictor(run, world=world)
    stages = _Stages(predictor, world or World())
    size = 1 if predictor.is_sequential else batch_size or run.config.evaluate.batch_size
    waiting = SizeBatcher(size, kind_of=predictor.batch_key, size_of=predictor.sample_size)
    try:
        predictor.start(files)
        for path in files:
            try:
                file = predictor.read(path)
            except DataError as error:
                yield path, Refusal(path, str(error))
                continue
            except UserError:
                raise  # of an option, not of the file
            except _UNREAD as error:
                reason = f"{path}: cannot be read ({type(error).__name__}: {error}); get the file again"
                yield path, Refusal(path, escape_to_one_line(reason))
                continue
            for group in waiting.add(file):
                yield from stages.predict(group)
                group.clear()  # or its files would be held beside the next one
            del file
        for group in waiting.flush():
            yield from stages.predict(group)
            group.clear()
    finally:
        predictor.close()
        run.model.cpu()  # where a loaded run promises it to be


class _Stages:
    """Files that were read, through the stages of inference."""

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
        """The prediction for each file; where the model refuses several at once, each goes through it alone."""
        try:
            if not self._is_warm:  # the first pass loads and compiles
                self._infer(files[:1])
                self._is_warm = True
            inference = self._infer(files)
        except (UserError, ValueError, MemoryError) as error:
            if len(files) > 1:
                return [found for file in files for found in self.predict([file])]
            path, reason = files[0].path, " ".join(str(error).split())
            return [(path, Refusal(path, f"{path}: the model takes no such {self._predictor.noun}: {reason}"))]
        return list(zip([file.path for file in files], self._predictor.predict(files, inference), strict=True))

    def _infer(self, files: Sequence[ReadFile]) -> Inference:
        laps = StageTimer(self._world)
        batch = self._pipeline.make_batch([file.path for file in files], [file.sample for file in files])
        seen = self._pipeline.model_inputs(batch)
        if not self._predictor.is_timed:
            return Inference(batch, self._pipeline.predict(seen), {})
        laps.end_stage("transforms")
        predictions = self._pipeline.predict_in_steps(seen, laps.end_stage)
        return Inference(batch, predictions, laps.ms)
