"""`sightline view`: samples at every stage on their way to the model, predictions of a run, and files of one's own."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sightline import registry
from sightline.assigners.report import compare_assigners
from sightline.config import RunConfig
from sightline.data.files.cloud_files import check_columns
from sightline.data.loading.batch_reader import BatchReader
from sightline.data.scans.scan_reading import SCAN_SUFFIXES
from sightline.engine.build import Data, DataSubset, build_task, build_transforms
from sightline.engine.distributed import start_world
from sightline.engine.precision import Precision, set_backends
from sightline.engine.run_loading import OpenRun, open_run
from sightline.engine.train import Task
from sightline.errors import UserError, escape_to_one_line
from sightline.optional_members import TaskMembers
from sightline.pictures import Axis
from sightline.predict.files import collect_files
from sightline.runs.lineage import describe_lineage, read_lineage
from sightline.runs.run_directory import RunDirectory
from sightline.verbs.common import assert_writable, is_run, load_config, reread, write_document
from sightline.verbs.evaluate import assert_about_evaluation
from sightline.verbs.output import print_note, show_table
from sightline.view.files import view_file
from sightline.view.image_stages import takes_score
from sightline.view.output import write_views
from sightline.view.page import MAX_SHOWN
from sightline.view.predictor import SamplePredictor
from sightline.view.samples import Branch, can_draw_predictions, view_sample
from sightline.view.stages import Stage, ViewedSample

__all__ = ["ViewOptions", "view"]

_NUM_SAMPLES = 4
_NUM_EPOCHS = 8
_DESCRIPTION_WIDTH = 84


@dataclass(frozen=True)
class ViewOptions:
    """The options of the command line; None where one is not given."""

    paths: tuple[Path, ...]
    overrides: tuple[str, ...]
    out: Path
    split: str | None = None
    samples: str | None = None
    num: int | None = None
    epoch: int | None = None
    checkpoint: str | None = None
    columns: str | None = None
    up: str | None = None
    hide: str | None = None
    max_points: int | None = None
    score: float | None = None
    plugins: tuple[Path, ...] = ()
    device: str = "auto"
    json: Path | None = None


def view(options: ViewOptions) -> int:
    """Draw samples of a config, samples and predictions of a run, or the user's own files; the exit code."""
    assert_writable(options.out / "view.html", option="--out")
    is_config = [_is_config(path) for path in options.paths]
    for path, is_one in zip(options.paths, is_config, strict=True):
        if not is_one and not path.exists():
            raise UserError(f"view: {path}: there is no such file, folder or run; check the path")
    if len(options.paths) > 1 and any(is_config):
        which = options.paths[is_config.index(True)]
        raise UserError(f"view: {which} is a config or a run; give it alone, or cloud files alone")
    if is_config[:1] == [True]:
        subjects, title, about = _of_config(options.paths[0], options)
    else:
        subjects, title, about = _of_files(options)
    hidden = _names_of(options.hide)
    _assert_known(hidden, subjects)
    most = MAX_SHOWN if options.max_points is None else options.max_points
    written = write_views(RunDirectory(options.out, is_writer=True), subjects, title=title, hidden=hidden, most=most)
    rows = [row for subject in subjects for cloud in subject.stages for row in _rows_of(subject, cloud)]
    show_table(title, ("sample", "stage", "points", "description"), rows, droppable=("description",))
    about |= _show_assigners(subjects)
    num_of = {kind: sum(file.endswith(kind) for file in written) for kind in (".png", ".ply", ".vtk")}
    volumes = f" and {num_of['.vtk']} VTK" if num_of[".vtk"] else ""
    print_note(f"written: {num_of['.png']} pictures and {num_of['.ply']} PLY{volumes} files in {options.out}, and")
    print_note(f"{options.out / 'view.html'}: open it in a browser")
    document = {**about, "out": str(options.out), "files": written, "samples": [s.to_dict() for s in subjects]}
    write_document(options.json, document)
    return 0


def _rows_of(subject: ViewedSample, cloud: Stage) -> list[tuple[object, ...]]:
    """The rows of a stage in the table: its description takes as many as it needs."""
    first, *more = textwrap.wrap(cloud.description, _DESCRIPTION_WIDTH) or [""]
    return [(subject.name, cloud.stage, len(cloud.points), first), *(("", "", "", line) for line in more)]


def _show_assigners(subjects: Sequence[ViewedSample]) -> dict[str, Any]:
    """Print a row for each assigner of a detector over all samples, and return the rows; nothing for other tasks."""
    found = [cloud.figures["assigners"] for s in subjects for cloud in s.stages if "assigners" in cloud.figures]
    if not found:
        return {}
    rows = compare_assigners({name: [each[name] for each in found] for name in found[0]})
    counts = ("assigner", "boxes", "unmatched", "positives", "ambiguous")
    sizes = [f"{size} px ({group['boxes']})" for size, group in rows[0]["of_size"].items()]
    cells = [
        [*map(row.get, counts), " ".join(map(str, row["per_level"])), f"{row['cpu_ms']:.1f}"]
        + [f"{group['positives']:.1f}" for group in row["of_size"].values()]
        for row in rows
    ]
    title = f"assignment, {len(found)} images; on the right: positives a box, by its size"
    show_table(title, (*counts, "per level", "CPU ms an image", *sizes), cells)
    return {"assigners": rows}


def _is_config(path: Path) -> bool:
    """A run directory or a YAML file; a folder without a run in it is searched for clouds."""
    return is_run(path) or path.suffix.lower() in (".yaml", ".yml")


# --- a config, a run -------------------------------------------------------------------------------------------------


def _of_config(path: Path, options: ViewOptions) -> tuple[list[ViewedSample], str, dict[str, Any]]:
    """The samples of a config's data, and in a run directory the predictions of its model."""
    _refuse(options, ("columns", "up"), "are about files; a data set defines them itself")
    has_predictions = is_run(path)
    if not has_predictions:
        _refuse(options, ("checkpoint", "score"), "is about a run; a config has no weights")
    if options.epoch is not None and (options.split or ("test" if has_predictions else "train")) != "train":
        raise UserError("--epoch: only training draws anew in every epoch; give --split train, or leave it out")
    config, _ = load_config(path, (), options.plugins)
    if has_predictions:
        assert_about_evaluation(options.overrides, config.task, verb="view")
    config = reread(path, options.overrides)
    set_backends(determinism=config.train.determinism, cudnn=config.train.cudnn)
    with start_world(device=options.device, timeout_s=config.distributed.timeout_s) as world:
        run = open_run(path, config=config, checkpoint=options.checkpoint or "last", world=world)
        split = options.split or (run.data.test.split if has_predictions else "train")  # a run: what evaluate scores
        part = _part(run.data, config, split)
        predictor = _predictor(run, part, options.score) if has_predictions else None
        task = _task_that_shows_targets(run)
        subjects = [
            view_sample(
                index,
                name=name,
                branches=_branches(config, part, options.epoch or 0),
                seed=config.seed,
                facts=part.dataset.info.facts,
                task=task,
                predictor=predictor,
                raw_epochs=_raw_epochs(options),
            )
            for index, name in _named(part, _chosen(part, options))
        ]
    about = {"run" if has_predictions else "config": str(path), "data": config.data.name, "split": split}
    return subjects, f"{config.name}: {config.data.name}, {split}", about | {"epoch": options.epoch or 0}


def _part(data: Data, config: RunConfig, split: str) -> DataSubset:
    parts = {"train": data.train, "validation": data.selection, "test": data.test}
    part = parts.get(split)
    if part is None:
        raise UserError(f"--split: found '{split}', allowed are {', '.join(parts)}")
    if part.split != split:
        raise UserError(f"--split {split}: data set '{config.data.name}' has none in this run; it uses '{part.split}'")
    return part


def _branches(config: RunConfig, part: DataSubset, epoch: int) -> list[Branch]:
    """What training does, for the training part, and what evaluation does; the latter comes last."""
    evaluation = part.reader
    if part.split != "train":
        return [Branch("evaluate", evaluation)]
    transforms = build_transforms(config.transforms.evaluate, part.dataset.info.facts)
    return [Branch("train", part.reader, epoch), Branch("evaluate", BatchReader(part.dataset, transforms))]


def _raw_epochs(options: ViewOptions) -> list[int]:
    """The epochs in which a raw item is read to see whether it changes, where one was asked for: up to 8 of them."""
    if options.epoch is None:
        return []
    return sorted({*np.linspace(0, options.epoch, _NUM_EPOCHS).round().astype(np.int64).tolist()})


def _chosen(part: DataSubset, options: ViewOptions) -> list[int]:
    """The indices that were asked for, by number or by name; else some, spread evenly over the part."""
    if options.samples is None:
        return [int(index) for index in part.evenly_spaced_indices(options.num or _NUM_SAMPLES)]
    indices = part.indices.tolist()
    if options.num is not None:
        raise UserError("--num: is the number of samples, --samples lists them; give one of the two")
    known = set(indices)
    chosen: list[int] = []
    for word in _names_of(options.samples):
        index = int(word) if word.isdecimal() else next((i for i in indices if part.sample_name(i) == word), None)
        if index is None or index not in known:
            raise UserError(
                f"--samples: found '{word}', which is not a sample of the {part.split} part; it has {len(indices)}, "
                f"from {indices[0]} to {indices[-1]}{_other_part(part, index)}"
            )
        chosen.append(index)
    return list(dict.fromkeys(chosen))


def _named(part: DataSubset, indices: Sequence[int]) -> list[tuple[int, str]]:
    """Each index with what its sample is called; where several are called the same, its number goes with it."""
    names = [f"{part.split}/{part.sample_name(index)}" for index in indices]
    times = Counter(names)
    return [(i, f"{name} ({i})" if times[name] > 1 else name) for i, name in zip(indices, names, strict=True)]


def _other_part(part: DataSubset, index: int | None) -> str:
    is_held = index is not None and 0 <= index < len(part.dataset)
    other = "validation" if part.split == "train" else "training"
    return f"; {index} belongs to the {other} part" if is_held else ""


def _task_that_shows_targets(run: OpenRun) -> Task | None:
    """The task where it draws what it works out of a batch; a config's has a model without trained weights."""
    if TaskMembers.show_targets.get(registry.tasks.get_entry(run.config.task.name).builder) is None:
        return None
    return run.task if run.directory else build_task(run.config, run.data, run.untrained_model(), run.world)[0]


def _predictor(run: OpenRun, part: DataSubset, score: float | None) -> SamplePredictor | None:
    """The run's model with the weights of a checkpoint, reading as evaluation does.

    None where it predicts nothing that can be drawn.
    """
    config, task = run.config, run.task
    if score is not None and not takes_score(task):
        raise UserError(f"view: --score is about detections; the task '{config.task.name}' draws none; leave it out")
    if not can_draw_predictions(task, part.dataset.info):
        print_note(f"the task '{config.task.name}' predicts nothing that can be drawn: only the model's input is shown")
        return None
    lineage = read_lineage(run.path)
    if lineage is not None:
        print_note(describe_lineage(lineage))
    if config.evaluate.votes > 1:
        print_note(f"one pass a sample: evaluate.votes ({config.evaluate.votes}) is not applied")
    reader = _branches(config, part, 0)[-1].reader
    return SamplePredictor(
        run.model, task, run.metrics, reader, Precision(config.train.precision), run.world.device, score
    )


# --- files -----------------------------------------------------------------------------------------------------------


def _of_files(options: ViewOptions) -> tuple[list[ViewedSample], str, dict[str, Any]]:
    """The clouds of files, and of all cloud files in and below folders. Raises DataError for the first that is none."""
    if options.overrides:
        raise UserError(f"view: found {options.overrides[0]!r}; key=value is laid over a config, files have none")
    _refuse(
        options, ("split", "samples", "num", "epoch", "checkpoint", "score"), "are about a data set; files have none"
    )
    columns = None if options.columns is None else check_columns(options.columns.split(","))
    axes: dict[str, Axis] = {"x": "x", "y": "y", "z": "z"}
    up_axis = axes.get(options.up or "z")
    if up_axis is None:
        raise UserError(f"--up: found '{options.up}', allowed are {', '.join(axes)}")
    files, refused = collect_files(options.paths, suffixes=SCAN_SUFFIXES)
    if refused:
        raise UserError(refused[0].reason)
    times = Counter(file.name for file in files)
    names = [escape_to_one_line(str(file) if times[file.name] > 1 else file.name) for file in files]
    subjects = [view_file(f, name=n, columns=columns, up_axis=up_axis) for f, n in zip(files, names, strict=True)]
    title = names[0] if len(names) == 1 else f"{len(names)} files"
    return subjects, title, {"source": [str(path) for path in options.paths]}


# --- both ------------------------------------------------------------------------------------------------------------


def _refuse(options: ViewOptions, names: Sequence[str], why: str) -> None:
    """Raises UserError for an option that would do nothing here."""
    given = [f"--{name}" for name in names if getattr(options, name) is not None]
    if given:
        raise UserError(f"view: {', '.join(given)} {why}")


def _names_of(text: str | None) -> list[str]:
    return [word for word in (part.strip() for part in (text or "").split(",")) if word]


def _assert_known(hidden: Sequence[str], subjects: Sequence[ViewedSample]) -> None:
    """Raises UserError for a class to hide that no cloud can have."""
    known = {
        name for s in subjects for c in s.stages for each in c.colorings for name in getattr(each, "class_names", ())
    } | {each.name for s in subjects for c in s.stages for each in c.skeletons}
    unknown = [name for name in hidden if name not in known]
    if unknown:
        raise UserError(f"--hide: there is no class '{unknown[0]}'; there are {', '.join(sorted(known)) or 'none'}")
