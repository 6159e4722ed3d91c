"""What a trained run of poses makes of wrong reference points, and of depth files without any.

.venv/bin/python tests/long/pose_centres.py runs/hands --frames 200 --svg docs/pictures/centre_offsets.svg

First the curve: the mean error on test frames whose reference points were moved by so many mm, each frame in a
direction of its own, the same for every distance; about the run's own points, or with `--about truth` about the true
middle joint. Then the frames as files of one's own camera, without labels or centres: what `predict` finds, beside what
`evaluate` says of the same frames about the run's own points and about the true middle joint.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from sightline.api import LoadedRun, load_run
from sightline.areas.pose.predictor import DepthFrameOptions
from sightline.config import RunConfig
from sightline.contract.draws import Draws
from sightline.contract.types import Batch, DataInfo, Dataset, Sample, SampleKey
from sightline.draw.charts import ChartPanel, Series, render_svg
from sightline.engine.build import Data, DataSubset, build_data, build_evaluator, build_task
from sightline.engine.distributed import World
from sightline.store.loading.batch_reader import BatchReader

__all__ = ["Moved", "main", "offset_curve", "own_camera"]

OFFSETS_MM = (0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 35.0, 40.0)


class Moved:
    """A depth set whose reference points are moved by `by_mm`, each sample's in a direction of its own."""

    def __init__(self, dataset: Dataset, by_mm: float) -> None:
        self._dataset = dataset
        self._by_mm = by_mm

    @property
    def info(self) -> DataInfo:
        return self._dataset.info

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, key: SampleKey) -> Sample:
        return {name: value[0] for name, value in self.get_batch([key]).items() if name != "sample_index"}

    def get_batch(self, keys: Sequence[SampleKey]) -> Batch:
        batch: Batch = self._dataset.get_batch(keys)  # type: ignore[attr-defined]
        streams = Draws.for_samples([SampleKey(key.index, 0, 0) for key in keys])
        directions = torch.nn.functional.normalize(streams.normal(3).double(), dim=1)
        moved = batch["reference"].double() + self._by_mm * directions
        return {**batch, "reference": moved.to(batch["reference"])}


def offset_curve(
    run: LoadedRun, data: Data, config: RunConfig, *, offsets_mm: Sequence[float], num: int
) -> list[float]:
    """The mean error in mm over `num` test frames, for each distance of their reference points from where they were."""
    task, meters = build_task(config, data, run.model)
    found = []
    for by_mm in offsets_mm:
        moved = Moved(data.test.dataset, by_mm)
        part = DataSubset(moved, data.test.indices[:num], BatchReader(moved, run.transforms), data.test.split)
        evaluation = build_evaluator(config, part, task, meters)(run.model, World())
        found.append(evaluation.metrics["mean_error_mm"])
    return found


def own_camera(run: LoadedRun, data: Data, *, num: int, own: DepthFrameOptions) -> dict[str, Any]:
    """What a run finds in depth files of test frames: the mean error."""
    keys = [SampleKey(int(index), 0, 0) for index in data.test.indices[:num]]
    with tempfile.TemporaryDirectory() as folder:
        files, joints = [], []
        for key in keys:
            sample = data.test.dataset[key]
            files.append(Path(folder) / f"{key.index:06d}.npy")
            np.save(files[-1], sample["depth"].numpy())
            joints.append(sample["joints"].double().numpy())
        found = run.predict(files, frames=own)
    assert not found.refused, found.refused[0].reason
    errors = [
        np.linalg.norm(answer.joints_mm - true, axis=1) for answer, true in zip(found.predicted, joints, strict=True)
    ]
    return {"mean_error_mm": float(np.mean(errors))}


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    run = load_run(given.run, checkpoint=given.checkpoint)
    refiner = None if given.refiner is None else load_run(given.refiner)
    results: dict[str, Any] = {"run": str(given.run), "checkpoint": str(run.checkpoint), "offset_mm": given.offsets}
    datas = {about: _data(run, about) for about in ("run", "truth")}
    for about in given.about:
        config, data = datas[about]
        curve = offset_curve(run, data, config, offsets_mm=given.offsets, num=given.frames)
        results[f"mean_error_mm about {about}"] = curve
        for by_mm, error in zip(given.offsets, curve, strict=True):
            _say(f"moved by {by_mm:4.0f} mm about {about}: {error:7.2f} mm")
    for about, (config, data) in datas.items():
        (error,) = offset_curve(run, data, config, offsets_mm=[0.0], num=given.frames)
        results[f"evaluated about {about}"] = error
        _say(f"evaluated about {about}: {error:.2f} mm")
    own = own_camera(run, datas["run"][1], num=given.frames, own=DepthFrameOptions(refiner=refiner))
    results["own camera"] = own
    shares = {about: own["mean_error_mm"] / results[f"evaluated about {about}"] for about in datas}
    _say(
        f"files alone: {own['mean_error_mm']:.2f} mm, {shares['run']:.3f} of that about the run's own points, "
        f"{shares['truth']:.3f} of that about the true joint"
    )
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    if given.svg:
        given.svg.write_text(_drawn(results, given.about), encoding="utf-8")
    return 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _data(run: LoadedRun, about: str) -> tuple[RunConfig, Data]:
    """The run's data with its own reference points, or with the true middle joint."""
    config = run.config
    if about == "truth":
        arguments = {**config.data.arguments, "reference": {"name": "truth"}}
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, arguments=arguments))
    return config, build_data(config)


def _drawn(results: dict[str, Any], abouts: Sequence[str]) -> str:
    names = {"run": "about the run's own points", "truth": "about the true middle joint"}
    series = tuple(
        Series(names[about], tuple(zip(results["offset_mm"], results[f"mean_error_mm about {about}"], strict=True)))
        for about in abouts
    )
    return render_svg([[ChartPanel("error of joints, mm", "reference point moved by, mm", series, "linear", "linear")]])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--checkpoint", default="last")
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--offsets", type=float, nargs="+", default=list(OFFSETS_MM))
    parser.add_argument("--about", choices=("run", "truth"), nargs="+", default=["run"])
    parser.add_argument("--refiner", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--svg", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
