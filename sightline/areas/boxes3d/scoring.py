"""Files of 3D detections: scored, as those of any detector, and written by an evaluation."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sightline.areas.boxes3d.score_remarks import FrameIds, StatedNames, list_remarks
from sightline.areas.boxes3d.scored_frames import NEIGHBOURS, REGION, ScoredFrame, list_frames, make_batch
from sightline.areas.boxes3d.sets.labels3d import Labels3d
from sightline.contract.binding import AvailableKeys, UnknownKeyError, bind
from sightline.contract.errors import ConfigError, DataError, UserError, join_some
from sightline.contract.metric import make_state
from sightline.contract.types import ComponentConfig
from sightline.engine.build import build_metrics
from sightline.engine.evaluate import BoundMetric, MetricResult, make_evaluation
from sightline.engine.run_data import DataSubset
from sightline.store.boxes3d.box_table import BoxTable
from sightline.store.boxes3d.results import read_results
from sightline.workbench.evaluate.scoring import ScoredFiles, Scoring


class Box3dScoring(Scoring):
    """Scoring of files of 3D detections, KITTI's or our own, by the metrics of 3D boxes."""

    needs = frozenset({"boxes", "num_points"})
    scored = "3D boxes"

    def score(
        self,
        part: DataSubset,
        metrics: Sequence[ComponentConfig],
        path: Path,
        *,
        category_offset: int = 0,
    ) -> ScoredFiles:
        """Compute the metrics of detections in a file or folder, matched with frames by their ids.

        Raises DataError for frames without results, and for files that do not fit.
        """
        if category_offset:
            raise UserError("score: category_offset= is about category ids of images; 3D boxes have names of classes")
        started = time.perf_counter()
        frames = list_frames(part)
        cameras = {f.id: f.calibration.camera_of_velodyne for f in frames if f.calibration is not None}
        results = read_results(path, cameras)
        if faults := list_remarks(FrameIds([*results], [frame.id for frame in frames])):
            raise DataError(f"{path}: {faults[0]}")
        class_names = tuple(part.dataset.info.facts["class_names"])
        batch = make_batch(frames, results, class_names)
        bound, skipped = [], []
        for component, metric in zip(metrics, build_metrics(metrics, part.dataset.info.facts), strict=True):
            try:
                owner = f"metrics.{component.name}"
                update = bind(metric.update, AvailableKeys("files", batch), owner=owner, exclude=("state",))
            except UnknownKeyError:
                skipped.append(component.name)
                continue
            bound.append(BoundMetric(metric, update))
        if not bound:
            raise ConfigError(
                f"metrics: none of {', '.join(skipped)} is computed from 3D boxes; kitti_ap and boxes3d_ap are"
            )
        measured = []
        for meter in bound:
            state = make_state(meter.metric, num_samples=len(part.dataset))
            meter.update.function(state, **meter.update.select(batch))
            measured.append(MetricResult(meter, "", state))
        seconds = time.perf_counter() - started
        evaluation = make_evaluation(measured, num_samples=len(frames), seconds=seconds)
        notes = [*_list_notes(path, frames, results, class_names)]
        if isinstance(part.dataset, Labels3d) and part.dataset.reading:
            notes.append(f"labels are read by {part.dataset.reading}; if your tool writes otherwise, state it in data")
        return ScoredFiles(evaluation, skipped, notes, part.sample_name)


def _list_notes(
    path: Path, frames: Sequence[ScoredFrame], results: Mapping[str, BoxTable], class_names: Sequence[str]
) -> Iterator[str]:
    wanted = {frame.id for frame in frames}
    surplus = [name for name in results if name not in wanted]
    if surplus:
        yield f"not scored: {len(surplus)} frames outside the test part, such as {join_some(surplus, most=3)}"
    names = Counter(
        table.class_names[label] if label >= 0 else REGION
        for name, table in results.items()
        if name in wanted
        for label in table.label.tolist()
    )
    near = [name for name, other in NEIGHBOURS.items() if other in class_names]
    for fault in list_remarks(StatedNames(names, class_names, [*near, REGION])):
        yield f"warning: {path}: {fault}"
    if not names:
        yield f"warning: {path}: no frame has a detection; check that the files were written to their end"
