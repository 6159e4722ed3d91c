"""What `sightline predict` tells of depth images: joints, where they were looked for, and the time of each stage."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sightline.arguments import Count, Size
from sightline.data.depth.references import CentreOfMass
from sightline.engine.distributed import World
from sightline.engine.loading import TrainedRun, open_trained
from sightline.errors import DataError, UserError
from sightline.pictures import encode_png
from sightline.predict.answers import Refusal
from sightline.predict.frame_prediction import predict_frames
from sightline.predict.joint_answers import STAGES, JointPrediction
from sightline.predict.own_frames import DEPTH_SUFFIXES, OwnFrames
from sightline.predict.prediction import files_of
from sightline.verbs.key_values import read_key_values
from sightline.verbs.output import note
from sightline.verbs.point_files import output_names, writing
from sightline.verbs.predictions import Options, Told, exact
from sightline.view.pose_picture import draw_pose

__all__ = ["assert_no_frames", "own_frames", "tell_joints"]

_PICTURE = ".pose.png"
_COORDINATES = ("x_mm", "y_mm", "z_mm", "u_px", "v_px", "peak")


def tell_joints(run: TrainedRun, options: Options, world: World) -> Told:
    """Of a run of the task `pose`: the joints of each depth image; pictures are written as answers come.

    Raises UserError for an output that cannot be, before anything is predicted; RunError where the disk refuses one.
    """
    own = own_frames(run, options)
    files, refused = files_of(options.paths, suffixes=DEPTH_SUFFIXES)
    names = {} if options.out is None else output_names(files, options.out, endings=(_PICTURE,))
    answers: dict[Path, JointPrediction] = {}
    documents: dict[Path, dict[str, Any]] = {}
    refusals: dict[Path, Refusal] = {}
    for path, answer in predict_frames(run, files, own=own, world=world, batch_size=options.batch_size):
        if isinstance(answer, Refusal):
            refusals[path] = answer
            continue
        try:
            written = _write_picture(answer, names[path]) if names else None
        except DataError as error:
            refusals[path] = Refusal(path, f"{path}: {error}")
            continue
        answers[path] = answer.without_depth()
        documents[path] = _document(answer) | {"written": {} if written is None else {"picture": str(written)}}
    found = [answers[path] for path in files if path in answers]
    _note_times(found)
    return Told(
        columns=("file", "looked for about", "mean peak", *(f"{stage} ms" for stage in STAGES), "all ms"),
        rows=[
            (str(a.file), a.reference, float(a.peaks.mean()), *(f"{ms:.1f}" for ms in (*a.ms.values(), a.total_ms)))
            for a in found
        ],
        documents=[documents[path] for path in files if path in documents],
        csv_columns=_csv_columns(run.facts["joint_names"]),
        csv_rows=[_csv_row(answer) for answer in found],
        refused=[*refused, *(refusals[path] for path in files if path in refusals)],
        about={"joint_names": list(run.facts["joint_names"]), "bones": [list(bone) for bone in run.facts["bones"]]},
    )


def own_frames(run: TrainedRun, options: Options) -> OwnFrames:
    """How the command line wants depth images read. Raises UserError for what does not go together."""
    for value, option in (
        (options.columns, "--columns"),
        (options.to_sphere or None, "--unit-sphere"),
        (options.category, "--category"),
        (options.probabilities, "--probabilities"),
    ):
        if value is not None:
            raise UserError(f"{option}: is for runs on clouds, {run.path} reads depth images; leave it out")
    parts: dict[str, list[str]] = {"camera": [], "reference": []}
    for word in options.overrides:
        part = word.partition(".")[0].strip()
        if part not in parts:
            raise UserError(f"predict: found {word!r}, allowed is key=value with camera.* and reference.*")
        parts[part].append(word)
    camera = read_key_values("camera", _camera, parts["camera"], command="predict", prefix="camera.")
    how = read_key_values("centre_of_mass", CentreOfMass, parts["reference"], command="predict", prefix="reference.")
    refiner = None if options.refiner is None else open_trained(options.refiner, plugins=options.plugins)
    _note_reference(run, options)
    return OwnFrames(
        **_camera(**camera),
        centre_of_mass=CentreOfMass(**how) if how else None,
        follows=options.reference == "previous",
        centres=options.centres,
        refiner=refiner,
    )


def assert_no_frames(run: TrainedRun, options: Options) -> None:
    """Raises UserError for options of depth images, for a run that reads none."""
    given = [
        *options.overrides,
        *(f"--{name}" for name in ("reference", "centres", "refiner") if getattr(options, name)),
    ]
    if given:
        raise UserError(f"predict: {given[0]}: is for runs of the task pose, {run.path} is one of '{_task(run)}'")


def _camera(
    *,
    fx: Size | None = None,
    fy: float | None = None,
    u0: float | None = None,
    v0: float | None = None,
    width_px: Count | None = None,
    height_px: Count | None = None,
    mm_per_unit: Size = 1.0,
) -> dict[str, Any]:
    """What `camera.*` says of a camera, as arguments of `OwnFrames`."""
    whole: dict[str, float | None] = {"fx": fx, "fy": fy, "u0": u0, "v0": v0}
    size = {"width_px": width_px, "height_px": height_px}
    for group in (whole, size):
        missing = [f"camera.{name}=" for name, value in group.items() if value is None]
        if missing and len(missing) < len(group):
            raise UserError(
                f"predict: {', '.join(missing)}: is missing beside what is given of the camera; give it too"
            )
    return {
        "intrinsics": None if fx is None else tuple(whole.values()),
        "size_px": None if width_px is None else tuple(size.values()),
        "mm_per_unit": mm_per_unit,
    }


def _note_reference(run: TrainedRun, options: Options) -> None:
    """Say so where figures are looked for about other points than the run was trained about."""
    trained = str(run.facts.get("reference_source", ""))
    if options.centres is not None or not trained:
        return
    given = "centre_of_mass" if options.refiner is None else "refiner"
    if (trained == "centre_of_mass") != (given == "centre_of_mass"):
        where = "where a refiner puts the middle joint" if given == "refiner" else "the centre of mass"
        note(f"the run was trained about reference points of '{trained}', not {where}: its answers may be worse")


def _task(run: TrainedRun) -> str:
    return run.config.task.name


def _write_picture(answer: JointPrediction, name: Path) -> Path:
    assert answer.depth is not None, "the depth is there while answers come one by one"
    pixels = draw_pose(
        answer.depth,
        answer.joints_px,
        answer.bones,
        reference_mm=answer.reference_mm,
        camera=np.array(answer.camera),
        cube_mm=answer.cube_mm,
    )
    path = name.with_name(name.name + _PICTURE)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(pixels))
    return path


def _document(answer: JointPrediction) -> dict[str, Any]:
    return {
        "file": str(answer.file),
        "joints_mm": answer.joints_mm.tolist(),
        "joints_px": answer.joints_px.tolist(),
        "peaks": answer.peaks.tolist(),
        "reference_mm": answer.reference_mm.tolist(),
        "reference": answer.reference,
        "camera": list(answer.camera),
        "treatment": answer.treatment,
        "ms": {**answer.ms, "all": answer.total_ms},
    }


def _note_times(found: Sequence[JointPrediction]) -> None:
    if found:
        medians = {stage: statistics.median(answer.ms[stage] for answer in found) for stage in STAGES}
        told = ", ".join(f"{stage} {ms:.1f}" for stage, ms in medians.items())
        note(f"ms a frame, the median of {len(found)}: {told}; frames that went together share their time")


def _csv_columns(joint_names: Sequence[str]) -> tuple[str, ...]:
    joints = (f"{name} {each}" for name in joint_names for each in _COORDINATES)
    reference = ("reference x_mm", "reference y_mm", "reference z_mm")
    return ("file", "reference", *reference, *joints, *(f"{stage} ms" for stage in STAGES), "all ms", "treatment")


def _csv_row(answer: JointPrediction) -> list[Any]:
    joints = np.concatenate([answer.joints_mm, answer.joints_px, answer.peaks[:, None]], axis=1)
    numbers = [*answer.reference_mm.tolist(), *joints.ravel().tolist(), *answer.ms.values(), answer.total_ms]
    return [str(answer.file), answer.reference, *map(exact, numbers), answer.treatment]
