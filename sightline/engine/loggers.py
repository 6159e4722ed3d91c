"""Observers that write to TensorBoard and to Weights & Biases.

TensorBoard observer: curves and pictures in event files, written without TensorFlow or torch's writer.

Weights & Biases observer of the same numbers and pictures; offline it needs no network and no account.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from sightline.contract.errors import assert_installed
from sightline.contract.regular_files import read_regular_file
from sightline.draw.pictures import Picture, encode_png
from sightline.engine.records import EvaluationRecord, StepRecord
from sightline.engine.step import StepAverager, average_records, evaluation_scalars, samples_per_s
from sightline.instrument.random_state import preserve_random_state


class TensorBoard:
    """Observer that writes an event file in `directory`: `train/loss/<term>`, `<split>/<metric>`, the pictures.

    Nothing is imported or opened before the first interval of `every` steps is over, so start-up is not slowed. After
    a resume, later steps of earlier files are marked as void. `assert_own` raises, before the file is made,
    if the directory is another run's by now. Raises MissingExtraError without tensorboard.
    """

    def __init__(self, directory: Path, *, every: int = 50, assert_own: Callable[[], None] = lambda: None) -> None:
        self.assert_installed()
        self._directory = directory
        self._assert_own = assert_own
        self._intervals = StepAverager(every, self._write_interval)
        self._file: _EventFile | None = None
        self._first_step = 0

    @staticmethod
    def assert_installed() -> None:
        """Raise MissingExtraError without tensorboard."""
        assert_installed("tensorboard", needed_by="log.tensorboard")

    def on_step(self, record: StepRecord) -> None:
        self._first_step = self._first_step or record.step
        self._intervals.add(record)

    def on_evaluation(self, record: EvaluationRecord) -> None:
        self._first_step = self._first_step or record.step  # a resumed run may begin with an evaluation that was due
        self._intervals.flush()
        self._write(record.step, record.split, evaluation_scalars(record), record.pictures)

    def on_end(self, reason: str) -> None:
        self._intervals.flush()
        if self._file is not None:
            self._file.close()

    def _write_interval(self, records: Sequence[StepRecord]) -> None:
        numbers = {**average_records(records), "samples_per_s": samples_per_s(records), "epoch": records[-1].epoch + 1}
        self._write(records[-1].step, "train", numbers)

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


class Wandb:
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
        self._directory = directory
        self._assert_own = assert_own
        self._about: dict[str, Any] = {"project": project, "name": name, "mode": mode, "config": dict(config or {})}
        self._intervals = StepAverager(every, self._write_interval)
        self._run: Any = None

    @staticmethod
    def assert_installed() -> None:
        """Raise MissingExtraError without wandb."""
        assert_installed("wandb", needed_by="log.wandb")

    def on_step(self, record: StepRecord) -> None:
        self._intervals.add(record)

    def on_evaluation(self, record: EvaluationRecord) -> None:
        self._intervals.flush()
        self._write(record.step, record.split, evaluation_scalars(record), record.pictures)

    def on_end(self, reason: str) -> None:
        self._intervals.flush()
        if self._run is not None:
            self._run.finish(exit_code=int(reason == "failed"))

    def _write_interval(self, records: Sequence[StepRecord]) -> None:
        numbers = {**average_records(records), "samples_per_s": samples_per_s(records), "epoch": records[-1].epoch + 1}
        self._write(records[-1].step, "train", numbers)

    def _write(self, step: int, split: str, numbers: Mapping[str, float], pictures: Sequence[Picture] = ()) -> None:
        self._assert_own()
        with preserve_random_state():
            if self._run is None:
                self._run = self._start()
            values: dict[str, Any] = {f"{split}/{name}": value for name, value in numbers.items()}
            self._run.log(values | {f"{split}/{p.name}": _make_image(p) for p in pictures}, step=step)

    def _start(self) -> Any:
        with _wandb_environment(self._directory / "wandb"):
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


@contextmanager
def _wandb_environment(folder: Path) -> Iterator[None]:
    """Context in which wandb writes to `folder` instead of the home folder, and posts no error reports.

    An offline run would post them, too. Its modules and its service read these variables once, as they start.
    """
    values = {name: str(folder / "cache") for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR")}
    values["WANDB_ERROR_REPORTING"] = "false"
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
