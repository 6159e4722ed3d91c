"""`sightline view`: samples up to the network, predictions of a run, and the user's own files."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sightline.commands.look import ViewOptions
from sightline.config import RunConfig
from sightline.config.shipped import find_config
from sightline.config.yaml_tree import describe_prepared
from sightline.contract import registry
from sightline.contract.catalogue import load_members
from sightline.contract.errors import UserError, escape_to_one_line
from sightline.contract.metric import WorstSamples
from sightline.contract.task import Task
from sightline.engine.build import build_task
from sightline.engine.device.numerics import Precision, set_backends
from sightline.engine.distributed import start_world
from sightline.engine.run_data import Data, DataSubset, build_transforms
from sightline.engine.run_loading import OpenRun, open_run
from sightline.runs.output_files import assert_writable, write_document
from sightline.runs.run_directory import RunDirectory
from sightline.runs.run_files import assert_no_run, is_run
from sightline.store.files.cloud_files import check_columns
from sightline.store.files.image_files import IMAGE_SUFFIXES
from sightline.store.files.scan_reading import SCAN_SUFFIXES
from sightline.store.loading.batch_reader import BatchReader
from sightline.training.config_source import reread
from sightline.training.evaluation_settings import assert_about_evaluation
from sightline.verbs.output import list_unapplied_passes, load_config, print_note, show_table, split_options
from sightline.view.cloud_file import view_file
from sightline.view.image_stages import takes_score
from sightline.view.output import write_views
from sightline.view.sample_predictor import SamplePredictor
from sightline.view.samples import Branch, can_draw_predictions, view_sample
from sightline.view.stages import ViewedSample
from sightline.workbench.predict.prediction import collect_files

_NUM_SAMPLES = 4
WORST = "worst"
"""Word of `--samples` for the samples with the most errors."""


def view(options: ViewOptions) -> int:
    """Draw samples of a config, samples and predictions of a run, or the user's own files; return the exit code."""
    out = options.out or _choose_out(options.paths[0])
    assert_no_run(out)
    assert_writable(out / "view.html", option="--out")
    values, overrides = split_options(options.overrides, ("score",))
    score = _parse_score(values["score"]) if "score" in values else None
    options = dataclasses.replace(options, overrides=overrides, score=score)
    is_config = [_is_config(path) for path in options.paths]
    for path, is_one in zip(options.paths, is_config, strict=True):
        if not is_one and not path.exists():
            raise UserError(f"view: {path}: there is no such file, folder or run; check the path")
    if len(options.paths) > 1 and any(is_config):
        config_path = options.paths[is_config.index(True)]
        raise UserError(f"view: {config_path} is a config or a run; give only it; 'sightline report' compares runs")
    if is_config[:1] == [True]:
        subjects, title, provenance = view_run_or_config(options.paths[0], options)
    else:
        subjects, title, provenance = _view_files(options)
    hidden = _split_names(options.hide)
    _assert_hidden_exist(hidden, subjects)
    written = write_views(RunDirectory(out, is_writer=True), subjects, title=title, hidden=hidden)
    rows = [(s.name, cloud.stage, len(cloud.points), cloud.description) for s in subjects for cloud in s.stages]
    show_table(title, ("sample", "stage", "points", "description"), rows, droppable=("description",))
    provenance |= _show_summaries(subjects)
    if not options.all_stages and any(subject.has_more for subject in subjects):
        print_note("shown is what the network reads; --all adds the stages between, and what else can be compared")
    print_note(f"written: {len(written) - 1} pictures in {out}, and")
    print_note(f"{out / 'view.html'}: open it in a browser")
    document = {**provenance, "out": str(out), "files": written, "samples": [s.to_dict() for s in subjects]}
    write_document(options.json, document)
    return 0


def _parse_score(text: str) -> float:
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not 0 <= score <= 1:
        raise UserError(f"score={text}: give a number from 0 to 1, the lowest score of the detections that are drawn")
    return score


def _show_summaries(subjects: Sequence[ViewedSample]) -> dict[str, Any]:
    """Print the tables that areas make of the figures of all samples, and return them for the document."""
    figures = [stage.figures for subject in subjects for stage in subject.stages]
    document: dict[str, Any] = {}
    for summarise in load_members("view_summaries"):
        if (summary := summarise(figures)) is not None:
            document |= summary[0]
            show_table(*summary[1])
    return document


def _is_config(path: Path) -> bool:
    """Return True for a run directory, a YAML file or a shipped config; other folders are searched for clouds."""
    return is_run(path) or path.suffix.lower() in (".yaml", ".yml") or find_config(path) != path


# --- a config, a run -------------------------------------------------------------------------------------------------


def _choose_out(path: Path) -> Path:
    """Choose the folder of the pictures of a run, in it, or of a config or a file, by its name."""
    return path / "views" if is_run(path) else Path("views") / (path.stem or path.resolve().name or "view")


def view_run_or_config(path: Path, options: ViewOptions) -> tuple[list[ViewedSample], str, dict[str, Any]]:
    """View samples of a config's data and, for a run directory, the predictions of its model."""
    _refuse_options(options, ("columns", "up"), "can be used only with files; a data set defines them itself")
    has_predictions, is_worst = is_run(path), options.samples == WORST
    if options.samples is not None and options.num is not None:
        raise UserError("--num: is the number of samples, and --samples lists them; give only one of them")
    if is_worst and not has_predictions:
        raise UserError("--samples worst: are the samples with the most errors of a run; a config has no weights")
    if not has_predictions:
        _refuse_options(options, ("checkpoint", "score"), "can be used only with a run; a config has no weights")
    if options.epoch is not None and (options.split or ("test" if has_predictions else "train")) != "train":
        raise UserError("--epoch: only training samples change with the epoch; give --split train, or leave it out")
    config = load_config(path, (), options.plugins)
    if has_predictions:
        metrics = ("metrics",) if is_worst else ()
        assert_about_evaluation(options.overrides, config.task, verb="view", also=metrics)
    config = reread(path, options.overrides)
    set_backends(config.train)
    with start_world(device=options.device, timeout_s=config.distributed.timeout_s) as world:
        run = open_run(path, config=config, checkpoint=options.checkpoint or "last", world=world)
        split = options.split or (run.data.test.split if has_predictions else "train")  # a run: what evaluate scores
        part = _choose_subset(run.data, config, split)
        worst = _find_worst(run, part) if is_worst else None
        errors = {} if worst is None else worst.list_counts()
        score = options.score if worst is None or options.score is not None else worst.min_score
        predictor = _make_predictor(run, part, score) if has_predictions else None
        task = _target_task(run)
        subjects = [
            view_sample(
                index,
                name=name,
                branches=_branches(config, part, options.epoch or 0),
                seed=config.seed,
                facts=part.dataset.info.facts,
                task=task,
                predictor=predictor,
                is_trained=has_predictions,
                all_stages=options.all_stages,
            )
            for index, name in _name_samples(part, [*errors] or _choose_indices(part, options), errors)
        ]
    if options.all_stages and not any(subject.has_more for subject in subjects):
        raise UserError("view: --all: these samples have no further stages; leave it out")
    provenance = {"run" if has_predictions else "config": str(path), "data": config.data.name, "split": split}
    return subjects, f"{config.name}: {config.data.name}, {split}", provenance | {"epoch": options.epoch or 0}


def _choose_subset(data: Data, config: RunConfig, split: str) -> DataSubset:
    parts = {"train": data.train, "validation": data.selection, "test": data.test}
    part = parts[split]
    if part.split != split:
        raise UserError(f"--split {split}: data set '{config.data.name}' has none in this run; it uses '{part.split}'")
    return part


def _branches(config: RunConfig, part: DataSubset, epoch: int) -> list[Branch]:
    """List the branches of a subset: training (for the training split only), then evaluation."""
    evaluation = part.reader
    if part.split != "train":
        return [Branch("evaluate", evaluation)]
    transforms = build_transforms(config.transforms.evaluate, part.dataset.info.facts)
    return [Branch("train", part.reader, epoch), Branch("evaluate", BatchReader(part.dataset, transforms))]


def _choose_indices(part: DataSubset, options: ViewOptions) -> list[int]:
    """Parse `--samples` (numbers or names) to indices, or choose evenly spaced ones."""
    if options.samples is None:
        return [int(index) for index in part.evenly_spaced_indices(options.num or _NUM_SAMPLES)]
    indices = part.indices.tolist()
    valid_indices = set(indices)
    chosen: list[int] = []
    words = _split_names(options.samples)
    if not words:
        raise UserError(f"--samples: names no sample of the {part.split} part; give numbers or names, as in 0,5")
    for word in words:
        index = int(word) if word.isdecimal() else next((i for i in indices if part.sample_name(i) == word), None)
        if index is None or index not in valid_indices:
            raise UserError(
                f"--samples: found '{word}', which is not a sample of the {part.split} part; it has {len(indices)}, "
                f"from {indices[0]} to {indices[-1]}{_other_split_note(part, index)}"
            )
        chosen.append(index)
    return list(dict.fromkeys(chosen))


def _find_worst(run: OpenRun, part: DataSubset) -> WorstSamples:
    """Evaluate the run on a subset for the samples with the most errors. Raises UserError if no metric lists any."""
    plain = dataclasses.replace(part, reader=_branches(run.config, part, 0)[-1].reader)
    worst = run.evaluator(plain)(run.model, run.world).worst_samples
    if worst is None:
        listing = [n for n in registry.metrics.names() if registry.metrics.get_class(n).worst_samples is not None]
        raise UserError(
            f"--samples worst: none of the run's metrics lists its worst samples, as {' and '.join(listing)} do; view "
            f"{run.path} --samples worst 'metrics=[{{name: {listing[0]}}}]'"
        )
    if not any(worst.of_kind.values()):
        raise UserError(f"--samples worst: found no error on the {part.split} part; name samples by number, as in 0,5")
    return worst


def _name_samples(
    part: DataSubset, indices: Sequence[int], errors: Mapping[int, Mapping[str, int]]
) -> list[tuple[int, str]]:
    """Pair each index with its sample's name, followed by the index if several have it, and what it is worst in."""
    names = [f"{part.split}/{part.sample_name(index)}" for index in indices]
    times = Counter(names)
    names = [f"{name} ({i})" if times[name] > 1 else name for i, name in zip(indices, names, strict=True)]
    texts = [", ".join(f"{kind} ({count})" for kind, count in errors.get(i, {}).items()) for i in indices]
    return [(i, f"{n}: worst in {text}" if text else n) for i, n, text in zip(indices, names, texts, strict=True)]


def _other_split_note(part: DataSubset, index: int | None) -> str:
    is_in_dataset = index is not None and 0 <= index < len(part.dataset)
    other_split = "validation" if part.split == "train" else "training"
    return f"; {index} belongs to the {other_split} part" if is_in_dataset else ""


def _target_task(run: OpenRun) -> Task | None:
    """Return the task if it draws its targets, else None; for a config, its model is untrained."""
    if registry.tasks.get_class(run.config.task.name).show_targets is None:
        return None
    return run.task if run.files else build_task(run.config, run.data, run.untrained_model(), run.world)[0]


def _make_predictor(run: OpenRun, part: DataSubset, score: float | None) -> SamplePredictor | None:
    """Make the predictor of a run's checkpoint, with the evaluation transforms.

    None if it predicts nothing that can be drawn.
    """
    config, task = run.config, run.task
    if score is not None and not takes_score(task):
        raise UserError(
            f"view: score= applies to detections, and the task '{config.task.name}' draws none; leave it out"
        )
    if not can_draw_predictions(task, part.dataset.info):
        print_note(
            f"predictions of the task '{config.task.name}' are not drawn here, only the model's input is; `sightline "
            "predict RUN FILES --out DIR` draws those of tasks that have pictures"
        )
        return None
    for line in run.files.list_lineage_notes() if run.files else ():
        print_note(line)
    for line in list_unapplied_passes(config, "sample"):
        print_note(line)
    reader = _branches(config, part, 0)[-1].reader
    return SamplePredictor(run.model, task, reader, Precision(config.train.precision), run.world.device, score)


# --- files -----------------------------------------------------------------------------------------------------------


def _view_files(options: ViewOptions) -> tuple[list[ViewedSample], str, dict[str, Any]]:
    """View clouds, depth images and photos, also all in folders: of a folder with clouds, its clouds alone.

    Raises DataError for a file that is none of these.
    """
    if options.overrides:
        raise UserError(f"view: found {options.overrides[0]!r}; key=value changes a config, and files have none")
    _refuse_options(
        options,
        ("split", "samples", "num", "all_stages", "epoch", "checkpoint", "score"),
        "can be used only with a data set; files have none",
    )
    columns = None if options.columns is None else check_columns(options.columns.split(","))
    for path in options.paths:
        if prepared := describe_prepared(path):
            raise UserError(f"{path}: is neither a config, a run nor files{prepared}")
    files, refused = collect_files(options.paths, suffixes=SCAN_SUFFIXES)
    if refused:
        files, refused = collect_files(options.paths, suffixes=(*SCAN_SUFFIXES, *sorted(IMAGE_SUFFIXES)))
    if refused:
        raise UserError(refused[0].reason)
    times = Counter(file.name for file in files)
    names = [escape_to_one_line(str(file) if times[file.name] > 1 else file.name) for file in files]
    viewers = [*load_members("file_views"), partial(view_file, columns=columns, up_axis=options.up or "z")]
    subjects = [
        next(viewed for viewer in viewers if (viewed := viewer(file, name=name)) is not None)
        for file, name in zip(files, names, strict=True)
    ]
    title = names[0] if len(names) == 1 else f"{len(names)} files"
    return subjects, title, {"source": [str(path) for path in options.paths]}


# --- both ------------------------------------------------------------------------------------------------------------


def _refuse_options(options: ViewOptions, names: Sequence[str], reason: str) -> None:
    """Raise UserError for options that have no effect here."""
    words = {"score": "score=", "all_stages": "--all"}
    options_given = [words.get(name, f"--{name}") for name in names if getattr(options, name) not in (None, False)]
    if options_given:
        raise UserError(f"view: {', '.join(options_given)} {reason}")


def _split_names(text: str | None) -> list[str]:
    return [word for word in (part.strip() for part in (text or "").split(",")) if word]


def _assert_hidden_exist(hidden: Sequence[str], subjects: Sequence[ViewedSample]) -> None:
    """Raise UserError for a class to hide that no sample has."""
    valid_names = {
        name for s in subjects for c in s.stages for item in c.colorings for name in getattr(item, "class_names", ())
    } | {item.name for s in subjects for c in s.stages for item in c.skeletons}
    unknown = [name for name in hidden if name not in valid_names]
    if unknown:
        raise UserError(
            f"--hide: there is no class '{unknown[0]}'; there are {', '.join(sorted(valid_names)) or 'none'}"
        )
