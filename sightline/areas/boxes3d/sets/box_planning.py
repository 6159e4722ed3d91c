"""From what labels state to tables of boxes: the form of a whole folder, the count test, the survey and its remarks."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sightline.areas.boxes3d.sets.box_listing import ListedFrame
from sightline.areas.boxes3d.sets.labelled_boxes3d import (
    COLUMNS,
    IMAGE_COLUMN,
    CloudReader,
    LabelledBoxes3d,
    PlannedFrame,
    make_row,
    summarise_frames,
)
from sightline.contract.errors import DataError
from sightline.store.boxes3d.box_table import BoxTable
from sightline.store.boxes3d.count_test import Choice, CountedFrame, choose_reading
from sightline.store.boxes3d.label_rows import MAX_TILT_RAD, Form, LabelFile, list_classes, make_table, number_tracks
from sightline.store.boxes3d.survey import (
    BoxSurvey,
    FramePoints,
    SurveyedFrame,
    describe_classes,
    guess_scale,
    measure_frame,
    propose_range,
)
from sightline.store.boxes3d.traps import list_remarks
from sightline.store.boxes3d.txt_boxes import exceeds_turn
from sightline.store.files.cloud_files import UnnamedColumnsError
from sightline.store.files.input_files import file_size
from sightline.store.files.scan_files import read_bin
from sightline.store.prepared.columns import ColumnSpec
from sightline.store.prepared.prepared_writer import PreparationPlan, Shard, iterate_batches
from sightline.store.remarks import CountRemark, join_remarks, remark_kind

MAX_SURVEYED = 40
"""Frames whose points are read for the count test and the remarks, evenly over all."""
_PLACEHOLDERS = ((0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 50.0, 50.0))
_BETTER = 0.5
"""Ratio of jumps between consecutive points by which other columns fit better."""
_FRAMES_PER_SHARD = 200
_HALF_TURN = (
    "rows with zeros for the image are taken for labelCloud's, whose headings are half a turn from KITTI's, which "
    "points cannot tell; state form=kitti if another tool wrote them, else form=labelcloud_kitti"
)
_PLAIN_RANGE = (-51.2, -51.2, -3.0, 51.2, 51.2, 2.0)


@dataclass(frozen=True)
class PlannedBoxes:
    """Tables of boxes by frame, how they were read, what was measured, and notes."""

    tables: Mapping[str, BoxTable]
    class_names: tuple[str, ...]
    choice: Choice
    survey: BoxSurvey
    notes: Sequence[str]
    label_frame: str

    def entries(self) -> dict[str, Any]:
        """Return the entries of the manifest that `data info` prints."""
        frames = self.survey.frames
        remissions = [frame.remission for frame in frames if frame.remission]
        return {
            "frame": f"labels: {self.label_frame}; stored: x to the front, y to the left, z up, yaw from +x",
            "reading": self.choice.describe(),
            "class_names": list(self.class_names),
            "classes": describe_classes(self.survey),
            "range_m": list(self.survey.range_m),
            "pillar_m": self.survey.pillar_m,
            "pillars": f"{max((frame.num_pillars for frame in frames), default=0)} in a frame at most",
            "remission": _describe_remission(remissions, self.survey.remission_max),
            "remission_max": self.survey.remission_max if remissions else None,
            "measured_frames": f"{len(frames)} of {len(self.tables)}",
        }


def _describe_remission(remissions: Sequence[tuple[float, ...]], scale: float) -> str:
    if not remissions:
        return "none in the files"
    low, high = min(each[0] for each in remissions), max(each[3] for each in remissions)
    median, most = np.median([each[1] for each in remissions]), max(each[2] for each in remissions)
    return f"{low:.4g} to {high:.4g}, median {median:.4g}, 99 % up to {most:.4g}; divided by {scale:g}"


def plan_boxes(
    frames: Sequence[ListedFrame],
    reader: CloudReader,
    *,
    stated: Mapping[str, str],
    form: str | None = None,
    range_m: Sequence[float] | None = None,
    remission_max: float | None = None,
    crop: Callable[[ListedFrame, FramePoints], FramePoints] | None = None,
) -> PlannedBoxes:
    """Read the boxes of frames: `stated` are parts of the reading that the user gave, `form` a form of the format.

    `crop` takes points away that are not in samples. Raises DataError for files of several formats in one folder, and
    for a form that is none of theirs.
    """
    forms = _merge_forms([frame for frame in frames if frame.stated], form)
    sampled, unread = _read_sample(frames, reader, crop)
    counted = [
        CountedFrame(points.points, {name: _list_rows(frame, name) for name in forms})
        for frame, points in sampled
        if frame.stated
    ]
    angles = [box.numbers[6] for frame in frames for box in frame.stated]
    choice = choose_reading(counted, forms, stated, excludes_rad=exceeds_turn(angles))
    class_names = list_classes([frame.stated for frame in frames])
    tracks = number_tracks([frame.stated for frame in frames])
    tables = {
        frame.name: make_table(
            frame.stated,
            choice.taken.reading.to_boxes(_list_rows(frame, choice.taken.form)),
            class_names,
            frame=frame.name,
            tracks=tracks,
        )
        for frame in frames
    }
    survey = survey_boxes(
        frames, sampled, tables, class_names, choice, range_m=range_m, remission_max=remission_max, stated=stated
    )
    notes = [*unread, *_join_notes(frame.labels for frame in frames), *_note_tilts(frames, choice)]
    if choice.taken.form == "labelcloud_kitti" and form is None:
        notes.append(_HALF_TURN)
    return PlannedBoxes(tables, class_names, choice, survey, notes, _describe_frame(frames, choice.taken.form))


def _describe_frame(frames: Sequence[ListedFrame], form: str) -> str:
    """Describe the frame of the labels' coordinates."""
    if form not in ("kitti", "labelcloud_kitti"):
        return "the frame of the clouds"
    num_moved = sum(len(frame.files) > 2 for frame in frames)
    if num_moved == len(frames):
        return "a camera's, by the calibrations"
    return f"a camera's: by {num_moved} calibrations, and in {len(frames) - num_moved} frames in the scanner's place"


def _list_rows(frame: ListedFrame, form: str) -> np.ndarray:
    """Return the rows (M, 7) of a frame by a form, whose conversion is the frame's own: each has its calibration."""
    return frame.labels.forms[form].rows(frame.stated) if frame.stated else np.zeros((0, 7))


def _merge_forms(frames: Sequence[ListedFrame], form: str | None) -> dict[str, Form]:
    """Return the forms that all files of labels may have. Raises DataError for files of several formats or forms."""
    merged: dict[str, Form] = {}
    first: LabelFile | None = None
    for labels in dict.fromkeys(_Same(frame.labels) for frame in frames):
        file = labels.file
        if first is None:
            first, merged = file, dict(file.forms)
            continue
        common = {name: each for name, each in merged.items() if name in file.forms}
        if not common:
            kinds = " and ".join("/".join(each.forms) for each in (replace(first, forms=merged), file))
            raise DataError(f"{file.path}: is of another form than {first.path}: {kinds}; keep one form in a folder")
        merged = {name: _join_units(each, file.forms[name]) for name, each in common.items()}
    if form is not None and first is not None:
        if form not in merged:
            raise DataError(
                f"{first.path}: its form may be {', '.join(merged)}, not {form}; leave form out, or correct it"
            )
        merged = {form: merged[form]}
    return merged or {"txt": Form(is_stated=frozenset())}


class _Same:
    """A file of labels that several frames share, once."""

    def __init__(self, file: LabelFile) -> None:
        self.file = file

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.file is self.file

    def __hash__(self) -> int:
        return id(self.file)


def _join_units(form: Form, other: Form) -> Form:
    """Return a form whose angles are degrees where one file shows that they are."""
    return other if other.reading.unit == "deg" else form


def _read_sample(
    frames: Sequence[ListedFrame], reader: CloudReader, crop: Callable[[ListedFrame, FramePoints], FramePoints] | None
) -> tuple[list[tuple[ListedFrame, FramePoints]], list[str]]:
    """Read some clouds, evenly over the frames with boxes, and return a note on those that cannot be read."""
    chosen = [frame for frame in frames if frame.stated] or [*frames]
    step = max(1, math.ceil(len(chosen) / MAX_SURVEYED))
    read, faults = [], []
    for frame in chosen[::step]:
        try:
            points = reader.read(frame.files[0])[0]
        except UnnamedColumnsError:
            raise
        except DataError as error:
            faults.append(str(error))
            continue
        if len(points.points):
            read.append((frame, points if crop is None else crop(frame, points)))
    looked_at = len(chosen[::step])
    return read, [f"{len(faults)} of {looked_at} clouds that were read cannot be used: {faults[0]}"] if faults else []


def survey_boxes(
    frames: Sequence[ListedFrame],
    sampled: Sequence[tuple[ListedFrame, FramePoints]],
    tables: Mapping[str, BoxTable],
    class_names: tuple[str, ...],
    choice: Choice,
    *,
    range_m: Sequence[float] | None,
    remission_max: float | None,
    stated: Mapping[str, str],
) -> BoxSurvey:
    """Measure the boxes of all frames, and the points of those that were read."""
    angles = [abs(box.numbers[6]) for frame in frames for box in frame.stated]
    highs = [float(np.max(points.remission, initial=0.0)) for _, points in sampled if points.remission is not None]
    high = max(highs, default=1.0)
    survey = BoxSurvey(
        tables=tables,
        splits={frame.name: frame.split for frame in frames},
        class_names=class_names,
        choice=choice,
        frames=(),
        range_m=_PLAIN_RANGE,
        pillar_m=0.2,
        is_range_stated=range_m is not None,
        stated=frozenset(stated),
        largest_angle=max(angles, default=0.0),
        image_rows=_count_placeholders(frames),
        bin_columns=_compare_columns(sampled),
        remission_max=guess_scale(high) if remission_max is None else remission_max,
    )
    if len(survey.boxes):
        proposed, pillar = propose_range(survey.boxes, survey.label)
        survey = replace(survey, range_m=proposed, pillar_m=pillar)
    if range_m is not None:
        survey = replace(survey, range_m=tuple(map(float, range_m)))
    measured = [_measure(frame, points, survey) for frame, points in sampled]
    return replace(survey, frames=measured)


def _measure(frame: ListedFrame, points: FramePoints, survey: BoxSurvey) -> SurveyedFrame:
    table = survey.tables[frame.name]
    return measure_frame(frame.name, table, points, range_m=survey.range_m, pillar_m=survey.pillar_m)


def _count_placeholders(frames: Sequence[ListedFrame]) -> tuple[int, int]:
    """Count the rows that state boxes in an image, and those whose box is one that tools write for none."""
    stated = [box.image[:4] for frame in frames for box in frame.stated if box.image]
    return len(stated), sum(corners in _PLACEHOLDERS for corners in stated)


def _compare_columns(sampled: Sequence[tuple[ListedFrame, FramePoints]]) -> tuple[int, int]:
    """Return the columns of the first raw file, and another number that fits far better, 0 without one."""
    path = next((frame.files[0] for frame, _ in sampled if frame.files[0].suffix.lower() == ".bin"), None)
    points = next((points.points for frame, points in sampled if frame.files[0] == path), None)
    if path is None or points is None or len(points) < 100:
        return 0, 0
    num_values = file_size(path) // 4
    stated = round(num_values / len(points))
    jumps = {stated: _measure_jumps(points)}
    for count in {3, 4, 5, 6} - {stated}:
        if num_values % count == 0:
            with contextlib.suppress(DataError):
                jumps[count] = _measure_jumps(read_bin(path, num_columns=count)[:, :3].astype(np.float64))
    best = min(jumps, key=jumps.__getitem__)
    return stated, best if jumps[best] < _BETTER * jumps[stated] else 0


def _measure_jumps(points: np.ndarray) -> float:
    """Return the median jump between consecutive points as a share of their spread: scans are written in order."""
    if not np.isfinite(points).all() or np.abs(points).max() > 1e4:
        return math.inf
    spread = np.abs(points - np.median(points, axis=0)).mean(axis=0)
    jumps = np.median(np.abs(np.diff(points, axis=0)), axis=0)
    return float((jumps / np.maximum(spread, 1e-6)).mean())


def _join_notes(files: Iterable[LabelFile]) -> list[str]:
    """Return the notes of files of labels, those of one kind once with their number."""
    notes = [note for file in dict.fromkeys(map(_Same, files)) for note in file.file.notes]
    kinds: dict[str, list[str]] = {}
    for note in notes:
        kinds.setdefault(remark_kind(note), []).append(note)
    counts = Counter(remark_kind(note) for note in notes)
    return [
        join_remarks(alike) + (f" ({counts[kind]} files)" if len(alike) > 1 else "") for kind, alike in kinds.items()
    ]


def _note_tilts(frames: Sequence[ListedFrame], choice: Choice) -> list[str]:
    """Return a note on boxes with pitch or roll, which are made upright."""
    to_rad = math.pi / 180 if choice.taken.reading.unit == "deg" else 1.0
    tilts = [box.tilt * to_rad for frame in frames for box in frame.stated]
    count = sum(tilt > MAX_TILT_RAD for tilt in tilts)
    if not count:
        return []
    what = f"have pitch or roll (up to {max(tilts):.3g} rad), which upright boxes leave out"
    return [CountRemark.make(count, len(tilts), what, noun="boxes")]


def plan_frames(
    cls: type[LabelledBoxes3d],
    *,
    root: Path,
    layout: str,
    frames: Sequence[ListedFrame],
    planned: PlannedBoxes,
    reader: CloudReader,
    about: Mapping[str, Any],
    options: Mapping[str, Any],
    notes: Sequence[str],
    values: Mapping[str, Mapping[str, Any]] | None = None,
    columns: Mapping[str, ColumnSpec] | None = None,
) -> PreparationPlan:
    """Make the plan of a set: `values` of further `columns` are by the name of the frame."""
    has_images = any(table.image is not None for table in planned.tables.values())
    has_images &= all(table.image is not None for table in planned.tables.values() if len(table))
    specs = {**COLUMNS, **(dict([IMAGE_COLUMN]) if has_images else {}), **(columns or {})}
    rows = [
        PlannedFrame(
            frame.split, frame.name, frame.files, planned.tables[frame.name], (values or {}).get(frame.name, {})
        )
        for frame in frames
    ]
    shards = []
    for split, members in itertools.groupby(rows, key=lambda frame: frame.split):
        for batch in iterate_batches(members, _FRAMES_PER_SHARD):
            files = tuple(dict.fromkeys(file for frame in batch for file in frame.files))
            make = partial(make_row, reader=reader, has_images=has_images)
            title, num_boxes = f"{batch[0].name} to {batch[-1].name}", sum(len(frame.table) for frame in batch)
            shards.append(Shard(split, title, len(batch), files, partial(map, make, batch), num_boxes))
    remarks = list_remarks(planned.survey)
    every_note = [*notes, *planned.notes]
    return PreparationPlan(
        cls.set_name,
        layout,
        root,
        specs,
        tuple(shards),
        {**planned.entries(), **about},
        partial(summarise_frames, notes=every_note, doubts=remarks),
        options,
        lists_files=True,
        notes=[*every_note, *remarks],
    )
