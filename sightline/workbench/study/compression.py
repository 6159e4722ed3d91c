"""Compression of a trained run: search of a policy, fine-tuning and packing; every step can be resumed."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import json
import math
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sightline.config import RunConfig, read_config, render_config
from sightline.config.run_config import Compress, Init, Teacher
from sightline.contract import registry
from sightline.contract.errors import RunError, UserError
from sightline.contract.loss import teacher_keys
from sightline.contract.types import ComponentConfig, LinearRamp
from sightline.doctor.finding import Finding
from sightline.doctor.rules import find_by
from sightline.engine.run_loading import OpenRun, open_run
from sightline.parts.quantisation.linear import halvable, quantisable_weights, round_to_half
from sightline.parts.quantisation.parametrised import apply_policy, bake_quantised_weights, dense_state_dict
from sightline.runs.packed import tensor_specs
from sightline.runs.run_directory import LOCK, RunDirectory, assert_writable, load_document, write_document, write_file
from sightline.runs.run_files import is_run
from sightline.runs.trained_weights import PACKED_FILE, evaluated_sha256, is_packed, resolve_weights
from sightline.training.config_source import reread
from sightline.training.resume import assert_empty
from sightline.training.train_run import Reporter
from sightline.workbench.check.quantised_rules import size_promise
from sightline.workbench.compress.packing import FILES, packed_layer_sizes, write_evaluation, write_packed_run
from sightline.workbench.compress.policy import FP32, Policy, policy_to_dict
from sightline.workbench.compress.policy_simulator import reestimate_batch_norm
from sightline.workbench.compress.run_problem import CompressionOptions, RunProblem
from sightline.workbench.compress.search.base import (
    EvaluationCache,
    ProgressCallback,
    Search,
    SearchResult,
    open_record,
    run_search,
)
from sightline.workbench.study.study_runs import assert_same_inputs, digest_inputs, plan_run, train_or_read_metrics

REQUEST_FILE = "asked.json"
"""File in a study's folder with the options of the study."""
WORK = "work"
"""Folder in a packed run with its intermediate files: record of the search, policy, fine-tuning."""
RATE = 0.1
"""Default learning rate of fine-tuning, as a factor of that of training."""
TEACHER_SHARE = 0.7
"""Weight of the distillation loss; the other losses are scaled by 1 - this."""
SHARE = 4
"""Default length of fine-tuning: the epochs of training divided by this."""
FINE_TUNE, FINE_TUNED = "finetune.yaml", "finetuned"


@dataclass(frozen=True)
class FineTuning:
    """Options of fine-tuning a quantised run; without `epochs`, a quarter of the epochs of its training.

    `rate` is a factor of the run's own learning rate, with a cosine schedule. `is_distilled`: also learn from the float
    model's logits; None means if the run has a loss of logits and labels. `overrides` change values of the config.
    """

    epochs: int | None = None
    rate: float = RATE
    is_distilled: bool | None = False
    seed: int | None = None
    overrides: tuple[str, ...] = ()
    plugins: tuple[Path, ...] = ()
    device: str = "auto"


def finetuning_config(config: RunConfig, source: Path, policy: Policy | None, how: FineTuning) -> RunConfig:
    """Build the config of a fine-tuning from the weights of `source`, quantised by `policy` or in float (None)."""
    train = config.train
    steps = None if train.steps is None else math.ceil(train.steps / SHARE)
    num_epochs = how.epochs if how.epochs is not None else math.ceil(train.epochs / SHARE)
    is_distilled = how.is_distilled
    if is_distilled is None:
        is_distilled = can_distil(config)
    arguments = dict(config.optimizer.arguments)
    arguments["lr"] = how.rate * _learning_rate(config.optimizer)
    # in so short a run, an average of weights would consist mostly of the untrained quantised ones
    tuned = dataclasses.replace(train, epochs=num_epochs, steps=steps if how.epochs is None else None, ema_decay=None)
    losses = tuple(component for component in config.losses if not teacher_keys(component))
    compress = None if policy is None else Compress(policy=policy_to_dict(policy))  # type: ignore[arg-type]
    return dataclasses.replace(
        config,
        seed=config.seed if how.seed is None else how.seed,
        init=Init(source=str(source)),
        compress=compress,
        teacher=Teacher(source=str(source)) if is_distilled else None,
        losses=_add_distillation(losses) if is_distilled else losses,
        train=tuned,
        optimizer=dataclasses.replace(config.optimizer, arguments=arguments),
        schedule=ComponentConfig("cosine"),
        evaluate=dataclasses.replace(config.evaluate, every=num_epochs),
    )


def _add_distillation(losses: Sequence[ComponentConfig]) -> tuple[ComponentConfig, ...]:
    """Scale the weights of the losses and add the distillation loss."""
    distillation, scale = ComponentConfig("distillation", weight=TEACHER_SHARE), 1 - TEACHER_SHARE
    weights = [
        LinearRamp(w.start * scale, w.end * scale, w.epochs) if isinstance(w, LinearRamp) else w * scale
        for w in (loss.weight for loss in losses)
    ]
    scaled = [dataclasses.replace(loss, weight=weight) for loss, weight in zip(losses, weights, strict=True)]
    return (*scaled, distillation)


def _loss_keys(loss: ComponentConfig) -> set[str]:
    """Return the batch and output keys that a loss reads."""
    forward = getattr(registry.losses.entry(loss).builder, "forward", None)
    return set() if forward is None else {*inspect.signature(forward).parameters}


def _learning_rate(optimizer: ComponentConfig) -> float:
    parameters = registry.optimizers.entry(optimizer).arguments
    if "lr" not in parameters:
        raise UserError(f"optimizer '{optimizer.name}': has no argument lr, which fine-tuning lowers; use --epochs 0")
    return float(optimizer.arguments.get("lr", parameters["lr"].default))


def run_searches(
    problem: RunProblem, methods: Mapping[str, Search], record: Path, *, report: ProgressCallback = None
) -> tuple[list[SearchResult], EvaluationCache]:
    """Run the searches, which share the evaluations in the file `record`; recorded ones are not repeated."""
    recorded, append = open_record(record, subject=problem.subject, names=problem.names)
    evaluations = EvaluationCache(problem.loss, known=recorded, record=append)
    results = [
        run_search(name, method, problem.problem, evaluations, base_bytes=problem.base_bytes, report=report)
        for name, method in methods.items()
    ]
    return results, evaluations


def _raise_findings(findings: Sequence[Finding]) -> None:
    """Raise RunError if a check has findings."""
    if findings:
        raise RunError("\n".join(map(str, findings)))


def assert_same_request(
    path: Path, document: Mapping[str, Any], *, is_begun: bool, may_differ: Collection[str] = ()
) -> None:
    """Write the options of a study to a file. Raises UserError if it was started with other options.

    Options of a study that was refused before it started are overwritten.
    """
    document = json.loads(json.dumps(document))
    earlier = load_document(path) if path.exists() and is_begun else document
    differing = [k for k in {**earlier, **document} if earlier.get(k) != document.get(k) and k not in may_differ]
    if differing:
        listed = "; ".join(f"{key}: {earlier.get(key)} there, {document.get(key)} here" for key in differing)
        raise UserError(f"--out: {path} was written with other options ({listed}); give another folder")
    write_document(path, document)


def assert_no_run(out: Path) -> None:
    """Raise UserError if a folder is a run directory, whose files would be mixed with others."""
    if is_run(out):
        raise UserError(f"--out {out}: is a run directory; give another folder")


@contextlib.contextmanager
def lock_folder(out: Path) -> Iterator[None]:
    """Lock a folder during the context; a new folder that is still empty afterwards is removed.

    Raises UserError, naming process and host, if another process has locked it.
    """
    is_new = not out.exists()
    try:
        with RunDirectory(out, is_writer=True).lock():
            yield
    finally:
        if is_new:
            with contextlib.suppress(OSError):
                out.rmdir()


def can_distil(config: RunConfig) -> bool:
    """Return True if a run has a loss of logits and labels, so that its float model's logits can be distilled."""
    return any({"logits", "label"} <= _loss_keys(component) for component in config.losses)


def assert_tunable(run: OpenRun, how: FineTuning) -> None:
    """Raise UserError for a fine-tuning that its config does not allow, before any search."""
    config = finetuning_config(run.config, run.checkpoint_path.resolve(), {}, how)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / FINE_TUNE
        file.write_text(render_config(config, origins=False))
        reread(file, how.overrides)


class Compression:
    """Compression of a run into the folder `out`, which becomes a run directory with a packed model.

    Called with the same arguments, it resumes an interrupted call.
    """

    def __init__(self, run: OpenRun, out: Path, reporter: Reporter, *, may_be_done: bool = False) -> None:
        """Raise UserError for a folder that cannot be written or has other contents."""
        if (out / "final.json").exists() and is_packed(out) and not may_be_done:
            raise UserError(f"--out {out}: has a packed run already; give another folder")
        assert_empty(out, allowed=FILES | {WORK, LOCK})
        assert_writable(out / PACKED_FILE, option="--out")
        self._run = run
        self._out = out
        self._work = out / WORK
        self._reporter = reporter

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder. Raises UserError if another call has locked it, or has packed a run there meanwhile."""
        with lock_folder(self._out):
            if (self._out / "final.json").exists() and is_packed(self._out):
                raise UserError(f"--out {self._out}: has a packed run already; give another folder")
            yield

    def search(
        self,
        asked: CompressionOptions,
        name: str,
        method: Search,
        *,
        given: Mapping[str, Any],
        report: ProgressCallback = None,
    ) -> tuple[SearchResult, RunProblem]:
        """Search the policy, and write it to the work folder; `given` are the other options of the call.

        Raises UserError if an earlier call fine-tuned or packed in this folder with other options or other weights of
        the run.
        """
        weights = evaluated_sha256(resolve_weights(self._run.checkpoint_path))
        self._work.mkdir(parents=True, exist_ok=True)
        is_begun = is_run(self._work / FINE_TUNED) or is_packed(self._out)
        request = {"weights": weights, **dataclasses.asdict(asked), **given}
        assert_same_request(self._work / REQUEST_FILE, request, is_begun=is_begun)
        problem = RunProblem(self._run, asked)
        (result,), _ = run_searches(problem, {name: method}, self._work / "evaluations.jsonl", report=report)
        write_document(self._work / "policy.json", policy_to_dict(problem.with_quantised_inputs(result.policy)))
        return result, problem

    def finetune(self, policy: Policy | None, how: FineTuning) -> Path:
        """Fine-tune the run with quantised or, without `policy`, float weights; return its run directory.

        Raises UnfinishedError if training is stopped.
        """
        source = self._run.checkpoint_path.resolve()
        config = finetuning_config(self._run.config, source, policy, how)
        file, path = self._work / FINE_TUNE, self._work / FINE_TUNED
        write_file(file, render_config(config, origins=False))
        if is_run(path):
            config = reread(file, how.overrides)
            assert_same_inputs(path, config, digest_inputs(config))
        planned = plan_run(file, path, how.overrides, plugins=how.plugins, device=how.device, processes=1)
        train_or_read_metrics(planned, self._reporter)
        return path

    def pack(
        self,
        policy: Policy,
        *,
        finetuned: Path | None,
        about: Mapping[str, Any] = MappingProxyType({}),
        num_batches: int,
        at_most: int | None = None,
    ) -> dict[str, Any]:
        """Write the packed run, evaluate its file on the test split, and return both documents merged.

        Packed are the weights of the run `finetuned`, or of the run itself, quantised by `policy` unless they were
        trained so. Batch norm statistics are re-estimated on `num_batches` training batches, 0 for none.
        """
        source = self._run
        if finetuned is not None:
            source = open_run(finetuned, config=read_config(finetuned / "config.yaml"), world=self._run.world)
        model = source.model_at(source.checkpoint_path)
        if source.config.compress is None:
            apply_policy(model, policy_to_dict(policy))
        plain = bake_quantised_weights(copy.deepcopy(model))
        policy = {**dict.fromkeys((weight.name for weight in quantisable_weights(plain)), FP32), **policy}
        about = {**about, "batch_norm_batches": reestimate_batch_norm(model, self._run, num_batches=num_batches)}
        halves = round_to_half(model.state_dict(), halvable(plain, but=policy))
        summary = write_packed_run(
            self._run, model.eval(), policy, self._out, about=about, halves=halves, at_most=at_most
        )
        _raise_findings(
            find_by(
                size_promise,
                file=self._out / PACKED_FILE,
                promised=summary["promised_bytes"],
                budget=at_most,
                reported=summary["ratios"],
                layers=packed_layer_sizes(*tensor_specs(model, halves), policy),
                state=dense_state_dict(model),
            )
        )
        return write_evaluation(self._out, self._run)
