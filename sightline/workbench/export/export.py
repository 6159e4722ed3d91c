"""Export of a trained run to a file, checked against the run, with a description beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sightline.contract import registry
from sightline.contract.errors import DataError, RunError, UserError, assert_installed
from sightline.contract.model import Model
from sightline.contract.task import Task
from sightline.contract.types import Batch
from sightline.engine.batches.sampler import evaluation_keys
from sightline.engine.distributed import World
from sightline.engine.run_loading import OpenRun, TrainedRun, open_run
from sightline.runs.environment import describe_int8_products, read_processor
from sightline.runs.output_files import assert_writable, write_file
from sightline.store.loading.batch_reader import BatchReader
from sightline.workbench.export.checking import NUM_CHECKED, ExportCheck, check_file, check_parts
from sightline.workbench.export.description import describe_export, write_description
from sightline.workbench.export.formats import ENDING, load_written, write_onnx
from sightline.workbench.export.graph import GraphNetwork, SplitTransforms, split_transforms
from sightline.workbench.export.int8 import FileMeasure, Int8Report, quantise, time_files, weights_in_float
from sightline.workbench.export.onnx_file import MAX_SECONDS, OnnxSession, make_session_model
from sightline.workbench.export.recorded_graph import record_graph
from sightline.workbench.predict.prediction import InferencePipeline, build_predictor, collect_files


@dataclass(frozen=True)
class ExportResult:
    """Exported file, the description beside it, its size, its inputs with their free axes, and its check."""

    path: Path
    description_path: Path
    num_bytes: int
    inputs: dict[str, list[int | str]]
    check: ExportCheck
    int8: Int8Report | None = None


class Examples(NamedTuple):
    """Batches as the network's file takes it, the task bound to such batches, and where it is from."""

    batches: list[Batch]
    task: Any
    source: str


def export_run(
    run: TrainedRun, *, out: Path | None = None, files: Sequence[Path] = (), int8: int | None = None
) -> ExportResult:
    """Write a run's network as ONNX, check it on 20 inputs, and describe it in a JSON file beside it.

    The inputs are those of `files`, by default of the run's test split. Nothing is written unless the check was made.
    With `int8`, the layers of the checked network are quantised by that many training samples, and both files measured
    on the test split.
    Raises UserError for an exported file, a network that says that no file can hold it, and a run whose data is not at
    hand, RunError for a network that ONNX cannot hold, or whose file computes something else.
    """
    if run.path.suffix == ENDING:
        raise UserError(f"{run.path}: is an exported file already; export the run that it was made of")
    if isinstance(run.model, Model) and run.model.obstacle_to_export:
        raise UserError(
            f"export: a network on {run.model.obstacle_to_export}; use it by `sightline predict`, `sightline serve` or "
            "sightline.load_run"
        )
    assert_installed("onnx", "onnxscript", "onnxruntime", needed_by="export")
    path = out or Path(f"{run.config.name}{ENDING}")
    if path.suffix != ENDING:
        raise UserError(f"--out {path}: a file of ONNX ends in {ENDING}")
    assert_writable(path, option="--out")
    split = split_transforms(run.transforms, run.model)
    examples = read_examples(run, split, files)
    network = GraphNetwork(run.model, examples.task, examples.batches[0], split.inside).eval()
    check_parts(network, examples.batches[0])
    arranged = [values for batch in examples.batches for values in network.arrange(batch)]
    if nothing := network.arrange_nothing(examples.batches[0]):
        arranged += nothing
        examples = examples._replace(source=f"{examples.source}, and one without points")
    inputs = [tuple(map(_to_float32, values)) for values in arranged]
    with torch.no_grad():
        outputs = tuple(network(*inputs[0]))
    recorded = record_graph(network, inputs[0])
    threshold = examples.task.greedy_threshold
    most = None if threshold is None else examples.task.selection.max_detections
    suppression = None if threshold is None else {"iou_threshold": threshold, "most": most}
    content = write_onnx(recorded, outputs, suppression=suppression)
    is_batch_free = any(0 in axes for axes in recorded.free_axes)
    call = load_written(content, outputs)
    check = check_file(call, network, inputs, is_batch_free=is_batch_free, source=examples.source)
    if not check.is_equal:
        raise RunError(f"export: the file computes something else than torch: {check.describe()}; nothing was written")
    report = None
    if int8 is not None:
        content, report = _quantise(run, split, network, content, inputs[0], num_calibrated=int8)
    document = describe_export(
        run, examples.task, split, network, content=content, free_axes=recorded.free_axes, values=inputs[0], check=check
    )
    if report is not None:
        document["int8"] = report.to_dict()
    write_file(path, content)
    description_path = write_description(path, document)
    shapes = {entry["name"]: entry["shape"] for entry in document["inputs"]}
    return ExportResult(path, description_path, len(content), shapes, check, report)


def _quantise(
    run: TrainedRun,
    split: SplitTransforms,
    network: GraphNetwork,
    content: bytes,
    example: tuple[Tensor, ...],
    *,
    num_calibrated: int,
) -> tuple[bytes, Int8Report]:
    """Quantise a file by training samples, and measure both on the test split and one thread."""
    opened = open_run(run.files, config=run.config)
    train = opened.data.train
    reader = BatchReader(train.dataset, split.outside)
    indices = train.evenly_spaced_indices(num_calibrated)
    batches = [reader(keys) for keys in evaluation_keys(indices, 1, epoch=0, seed=run.config.seed)]
    samples = [tuple(map(_to_float32, values)) for batch in batches for values in network.arrange(batch)]
    float_weights = weights_in_float(run)
    quantised, num_layers = quantise(content, samples, keep_float=float_weights)
    one = tuple(value[:1] for value in example)
    timing = time_files(content, quantised, one)
    float32, int8 = (
        FileMeasure(len(file), milliseconds if timing.is_steady else None, _score(opened, split, file))
        for file, milliseconds in zip((content, quantised), timing.milliseconds, strict=True)
    )
    lower, speedup, upper = timing.speedup
    return quantised, Int8Report(
        float32,
        int8,
        num_layers,
        tuple(float_weights),
        len(samples),
        batch=1,
        processor=f"{read_processor()} {describe_int8_products()}".strip(),
        speedup=speedup if timing.is_steady else None,
        speedup_quartiles=(lower, upper),
    )


def _score(opened: OpenRun, split: SplitTransforms, content: bytes) -> Mapping[str, float]:
    """Evaluate a file on the run's test split, in one pass a sample; its last transforms are inside.

    A vote varies what comes after all transforms, and those inside would undo it.
    """
    part = opened.data.test
    reader = BatchReader(part.dataset, split.outside)
    model = make_session_model(opened, OnnxSession(opened.path, content, max_seconds=MAX_SECONDS))
    return replace(opened.evaluator(), reader=reader, votes=1, tiles=None)(model, World()).metrics


def _to_float32(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def read_examples(run: TrainedRun, split: SplitTransforms, files: Sequence[Path]) -> Examples:
    """Read the inputs on which a file is checked. Raises UserError if the run's data is not at hand."""
    if files:
        return _read_files(run, split, files)
    try:
        data = open_run(run.files, config=run.config).data
        transforms = () if _task_class(run).compares_rows else split.outside
        batches: list[Batch] = []
        for part in (data.test, data.train):
            if (missing := NUM_CHECKED - sum(len(batch["sample_index"]) for batch in batches)) > 0:
                reader = BatchReader(part.dataset, transforms)
                indices = part.evenly_spaced_indices(missing)
                batches.append(reader(evaluation_keys(indices, missing, epoch=0, seed=run.config.seed)[0]))
    except (UserError, RunError) as error:
        reason = " ".join(str(error).split()).partition("; ")[0]  # its remedies are options of other commands
        raise UserError(
            f"{run.path}: the data to check the file with is not at hand ({reason}); give files with --inputs"
        ) from error
    info = replace(data.test.dataset.info, fields=dict(reader.fields))
    source = f"the {data.test.split} split" + (", then the train split" if len(batches) > 1 else "")
    return Examples(batches, _build_task(run, batches[0], info), source)


def _task_class(run: TrainedRun) -> type[Task]:
    return registry.tasks.get_class(run.config.task)


def _build_task(run: TrainedRun, batch: Batch, info: Any) -> Any:
    """Build the task bound to the keys of a batch; for an encoder, its class."""
    if _task_class(run).compares_rows:
        return _task_class(run)
    transformless = replace(run, transforms=())
    fields = {name: info.fields[name] for name in info.fields if name in batch}
    return InferencePipeline(transformless, info, World(), fields=fields, source="the data set").task


def _read_files(run: TrainedRun, split: SplitTransforms, paths: Sequence[Path]) -> Examples:
    """Read the first files, or files of folders, as `sightline predict` does."""
    predictor = build_predictor(replace(run, transforms=split.outside))
    readable, refused = collect_files(paths, suffixes=predictor.suffixes)
    if refused:
        raise UserError(refused[0].reason)
    files = readable[:NUM_CHECKED]
    predictor.start(files)
    try:
        samples = [predictor.read(path).sample for path in files]
    except DataError as error:
        raise UserError(f"--inputs: {error}") from error
    finally:
        predictor.close()
    pipeline = InferencePipeline(
        predictor.run,
        predictor.info,
        World(),
        fields=predictor.fields,
        source=f"a {predictor.noun} from a file",
        hidden=predictor.hidden,
        transforms=predictor.transforms(),
        task=predictor.make_task(),
    )
    return Examples([pipeline.make_batch([file.stem for file in files], samples)], pipeline.task, f"{len(files)} files")
