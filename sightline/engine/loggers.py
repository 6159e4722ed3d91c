"""Observers that write to TensorBoard, Weights & Biases and MLflow.

TensorBoard observer: curves and pictures in event files, written without TensorFlow or torch's writer.

Weights & Biases observer of the same numbers and pictures; offline it needs no network and no account.

MLflow observer of the same, into a folder, a database or a server, where a resumed run goes on in its own run.
"""

from __future__ import annotations

import math
import os
import re
import socket
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from sightline.config.yaml_writer import flatten, format_inline
from sightline.contract.errors import ConfigError, RunError, assert_installed
from sightline.contract.regular_files import read_regular_file
from sightline.draw.pictures import Picture, encode_png
from sightline.engine.records import (
    EvaluationRecord,
    StepAverager,
    StepRecord,
    average_records,
    evaluation_scalars,
    samples_per_s,
)
from sightline.instrument.random_state import preserve_random_state


class IntervalLogger(ABC):
    """Base of observers that write means over intervals of `every` steps, and evaluations.

    `unwritten` are the steps of the open interval of a checkpoint, as `MetricsLog.state` returns them.
    """

    def __init__(self, every: int, unwritten: Iterable[Mapping[str, Any]] = ()) -> None:
        self._intervals = StepAverager(every, self._write_interval)
        self._intervals.restore(unwritten)

    def on_step(self, record: StepRecord) -> None:
        self._intervals.add(record)

    def on_evaluation(self, record: EvaluationRecord) -> None:
        self._intervals.flush()
        self._write(record.step, record.split, evaluation_scalars(record), record.pictures)

    def _write_interval(self, records: Sequence[StepRecord]) -> None:
        numbers = {**average_records(records), "samples_per_s": samples_per_s(records), "epoch": records[-1].epoch + 1}
        self._write(records[-1].step, "train", numbers)

    @abstractmethod
    def _write(self, step: int, split: str, numbers: Mapping[str, float], pictures: Sequence[Picture] = ()) -> None:
        """Write numbers by their names, and pictures, of a split after a step."""


class TensorBoard(IntervalLogger):
    """Observer that writes an event file in `directory`: `train/loss/<term>`, `<split>/<metric>`, the pictures.

    Nothing is imported or opened before the first interval of `every` steps is over, so start-up is not slowed. After
    a resume, later steps of earlier files are marked as void. `assert_own` raises, before the file is made,
    if the directory is another run's by now. Raises MissingExtraError without tensorboard.
    """

    def __init__(self, directory: Path, *, every: int = 50, assert_own: Callable[[], None] = lambda: None) -> None:
        self.assert_installed()
        super().__init__(every)
        self._directory = directory
        self._assert_own = assert_own
        self._file: _EventFile | None = None
        self._first_step = 0

    @staticmethod
    def assert_installed() -> None:
        """Raise MissingExtraError without tensorboard."""
        assert_installed("tensorboard", needed_by="log.tensorboard")

    def on_step(self, record: StepRecord) -> None:
        self._first_step = self._first_step or record.step
        super().on_step(record)

    def on_evaluation(self, record: EvaluationRecord) -> None:
        self._first_step = self._first_step or record.step  # a resumed run may begin with an evaluation that was due
        super().on_evaluation(record)

    def on_end(self, reason: str) -> None:
        self._intervals.flush()
        if self._file is not None:
            self._file.close()

    def _write(self, step: int, split: str, numbers: Mapping[str, float], pictures: Sequence[Picture] = ()) -> None:
        if self._file is None:
            self._assert_own()
            self._file = _EventFile(self._directory, first_step=self._first_step)
        scalars = {f"{split}/{name}": value for name, value in numbers.items()}
        images = {f"{split}/{picture.name}": picture for picture in pictures}
        self._file.write(step, scalars, images)


class _EventFile:
    """Event file, written in the caller's thread: it cannot hang, and errors appear at the call."""

    def __init__(self, directory: Path, *, first_step: int) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event: Any = event_pb2
        self._summary: Any = summary_pb2
        has_earlier = first_step > 1 or any(directory.glob("events.out.tfevents.*"))
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter((directory / name).open("ab"))
        self._write_event(0, file_version="brain.Event:2")
        if has_earlier:
            start = self._event.SessionLog(status=self._event.SessionLog.START)
            self._write_event(first_step, session_log=start)

    def write(self, step: int, scalars: Mapping[str, float], images: Mapping[str, Picture]) -> None:
        values = [self._summary.Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        values += [self._make_image(tag, picture) for tag, picture in images.items()]
        self._write_event(step, summary=self._summary.Summary(value=values))
        self._records.flush()

    def close(self) -> None:
        self._records.close()

    def _write_event(self, step: int, **content: Any) -> None:
        event = self._event.Event(wall_time=time.time(), step=step, **content)
        self._records.write(event.SerializeToString())

    def _make_image(self, tag: str, picture: Picture) -> Any:
        height, width, _ = picture.pixels.shape
        image = self._summary.Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=encode_png(picture.pixels)
        )
        about = self._summary.SummaryMetadata(display_name=tag, summary_description=picture.caption)
        return self._summary.Summary.Value(tag=tag, image=image, metadata=about)


_FINISH_S = 120.0


class Wandb(IntervalLogger):
    """Observer that writes a wandb run in `directory`/wandb: `train/<number>`, `<split>/<metric>`, the pictures.

    It receives numbers alone: no hooks on the model, no capture of the console, no copy of the code. All its files,
    including caches, are in that folder. A resumed run keeps the identity stored there: one curve online, and offline
    parts that `wandb sync` joins. The global random states are left alone. `assert_own` raises, before anything is
    written, if the directory is another run's by now. Raises MissingExtraError without wandb.
    """

    def __init__(
        self,
        directory: Path,
        *,
        project: str,
        name: str,
        mode: Literal["offline", "online"] = "offline",
        config: Mapping[str, Any] | None = None,
        every: int = 50,
        assert_own: Callable[[], None] = lambda: None,
    ) -> None:
        self.assert_installed()
        super().__init__(every)
        self._directory = directory
        self._assert_own = assert_own
        self._about: dict[str, Any] = {"project": project, "name": name, "mode": mode, "config": dict(config or {})}
        self._run: Any = None

    @staticmethod
    def assert_installed() -> None:
        """Raise MissingExtraError without wandb."""
        assert_installed("wandb", needed_by="log.wandb")

    def on_end(self, reason: str) -> None:
        self._intervals.flush()
        if self._run is not None:
            self._run.finish(exit_code=int(reason == "failed"))

    def _write(self, step: int, split: str, numbers: Mapping[str, float], pictures: Sequence[Picture] = ()) -> None:
        self._assert_own()
        with preserve_random_state():
            if self._run is None:
                self._run = self._start()
            values: dict[str, Any] = {f"{split}/{name}": value for name, value in numbers.items()}
            self._run.log(values | {f"{split}/{p.name}": _make_image(p) for p in pictures}, step=step)

    def _start(self) -> Any:
        folder = str(self._directory / "wandb" / "cache")
        caches = dict.fromkeys(("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"), folder)
        with _environment(caches | {"WANDB_ERROR_REPORTING": "false"}):  # an offline run would post errors, too
            import wandb

            settings = wandb.Settings(
                console="off", silent=True, disable_code=True, disable_git=True, finish_timeout=_FINISH_S
            )
            # Offline there is nothing to resume from; wandb would only warn that it ignores the wish.
            resume: Literal["allow", False] = "allow" if self._about["mode"] == "online" else False
            identity = _read_or_create_id(self._directory / "wandb" / "run_id")
            return wandb.init(dir=self._directory, settings=settings, id=identity, resume=resume, **self._about)


def _read_or_create_id(path: Path) -> str:
    """Return the run's id in wandb, created by its first start."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
    return read_regular_file(path).decode("utf-8")


def _make_image(picture: Picture) -> Any:
    import wandb

    return wandb.Image(picture.pixels, caption=picture.caption or None)


_PROJECT = "sightline"
_NO_METRIC_NAME = re.compile(r"[^\w ./:-]", re.ASCII)
_BATCH, _MAX_VALUE = 100, 6000
"""Names that MLflow takes at once, and letters of a parameter."""


class Mlflow(IntervalLogger):
    """Observer that writes a run of MLflow at the tracking URI `uri`: `train/<number>`, `<split>/<metric>`, pictures.

    The config is its parameters, one for each value, and the artifact `config.yaml`, whose text is `text`. A resumed
    run goes on in the run whose identity lies in `directory`/mlflow_run_id, without the steps that this one has
    already; what is not finite is left out. The folder, database or server is opened after the first interval. No
    global state of MLflow changes, and it posts no usage data. `assert_own` raises, before anything is written, if the
    directory is another run's by now. Raises MissingExtraError without mlflow, ConfigError for a password in the URI.
    """

    def __init__(
        self,
        directory: Path,
        *,
        uri: str,
        name: str,
        config: Mapping[str, Any],
        text: str,
        every: int = 50,
        unwritten: Iterable[Mapping[str, Any]] = (),
        assert_own: Callable[[], None] = lambda: None,
    ) -> None:
        self.assert_installed(uri)
        super().__init__(every, unwritten)
        self._id_file = directory / "mlflow_run_id"
        self._assert_own = assert_own
        self._uri, self._name, self._config, self._text = uri, name, config, text
        self._client: Any = None
        self._run_id = ""
        self._last: dict[str, int] = {}

    @staticmethod
    def assert_installed(uri: str) -> None:
        """Raise MissingExtraError without mlflow, ConfigError for a URI that would put a password into the config."""
        assert_installed("mlflow", needed_by="log.mlflow")
        if urlsplit(uri).password is not None:
            raise ConfigError(
                "log.mlflow: the URI has a password, which the run's config would keep; leave it out and set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment"
            )

    def on_end(self, reason: str) -> None:
        if reason in ("done", "failed"):  # else a resumed run writes the open interval, which it gets as `unwritten`
            self._intervals.flush()
        if self._client is not None:
            status = {"done": "FINISHED", "failed": "FAILED"}.get(reason, "KILLED")
            with _environment(self._variables):
                self._client.set_terminated(self._run_id, status)

    @property
    def _variables(self) -> dict[str, str]:
        """Variables of MLflow: no usage data, folders are allowed, four retries where a server does not answer."""
        retries = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
        values = {"MLFLOW_DISABLE_TELEMETRY": "true", retries: os.environ.get(retries, "4")}
        return values | ({"MLFLOW_ALLOW_FILE_STORE": "true"} if urlsplit(self._uri).scheme in ("", "file") else {})

    def _write(self, step: int, split: str, numbers: Mapping[str, float], pictures: Sequence[Picture] = ()) -> None:
        self._assert_own()
        with preserve_random_state(), _environment(self._variables):
            if self._client is None:
                self._start()
            from mlflow.entities import Metric

            named = {_NO_METRIC_NAME.sub("_", f"{split}/{name}"): value for name, value in numbers.items()}
            new = {key: value for key, value in named.items() if step > self._last.get(key, -1)}
            now_ms = round(1000 * time.time())
            metrics = [Metric(key, value, now_ms, step) for key, value in new.items() if math.isfinite(value)]
            for start in range(0, len(metrics), _BATCH):
                self._client.log_batch(self._run_id, metrics=metrics[start : start + _BATCH])
            for picture in pictures if new else ():
                file = f"pictures/{split}/{_NO_METRIC_NAME.sub('_', picture.name).replace('/', '_')}_{step}.png"
                self._client.log_image(self._run_id, picture.pixels, artifact_file=file)

    def _start(self) -> None:
        """Open the run of this directory, or make it; its parameters are written once."""
        import mlflow
        from mlflow.entities import Param

        client = mlflow.MlflowClient(tracking_uri=self._uri)
        if self._id_file.exists():
            self._run_id = read_regular_file(self._id_file).decode("utf-8")
            client.update_run(self._run_id, status="RUNNING")
            for key in client.get_run(self._run_id).data.metrics:
                self._last[key] = max(metric.step for metric in client.get_metric_history(self._run_id, key))
        else:
            experiment = client.get_experiment_by_name(_PROJECT)
            if experiment is None:
                with suppress(mlflow.MlflowException):  # another run may have made it by now
                    client.create_experiment(_PROJECT)
                experiment = client.get_experiment_by_name(_PROJECT)
            if experiment is None:
                raise RunError(f"log.mlflow: {self._uri} has no experiment '{_PROJECT}' and lets none be made")
            self._run_id = client.create_run(experiment.experiment_id, run_name=self._name).info.run_id
            self._id_file.write_text(self._run_id, encoding="utf-8")
            values = {_NO_METRIC_NAME.sub("_", key): value for key, value in flatten(self._config).items()}
            texts = {key: value if isinstance(value, str) else format_inline(value) for key, value in values.items()}
            params = [Param(key, value[:_MAX_VALUE]) for key, value in texts.items()]
            for start in range(0, len(params), _BATCH):
                client.log_batch(self._run_id, params=params[start : start + _BATCH])
        client.log_text(self._run_id, self._text, "config.yaml")
        self._client = client


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Context with these environment variables, which libraries read as they start."""
    previous = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in previous.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
