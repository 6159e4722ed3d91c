"""TensorBoard observer: curves and pictures in event files, written without TensorFlow or torch's writer."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sightline.contract.errors import assert_installed
from sightline.draw.pictures import Picture, encode_png
from sightline.engine.loggers.interval_logger import IntervalLogger
from sightline.engine.records import EvaluationRecord, StepRecord


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
