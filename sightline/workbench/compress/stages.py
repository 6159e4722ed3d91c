"""Stages of a compression: search of a policy, fine-tuning and packing; each can be resumed."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sightline.commands.run import TrainOptions
from sightline.compression.half_precision import halvable, round_to_half
from sightline.compression.parametrised import apply_policy, bake_quantised_weights
from sightline.compression.policy import FP32, Policy, policy_to_dict
from sightline.compression.weights import quantisable_weights
from sightline.config import read_config, render_config
from sightline.contract.errors import UserError
from sightline.engine.run_loading import OpenRun, open_run
from sightline.runs.folder_lock import LOCK_FILES
from sightline.runs.output_files import assert_writable, write_document, write_file
from sightline.runs.run_directory import RunDirectory
from sightline.runs.run_documents import load_document
from sightline.runs.run_files import is_run
from sightline.runs.trained_weights import PACKED_FILE, is_packed
from sightline.training.config_source import read_with_plugins
from sightline.training.resume import assert_empty
from sightline.training.train_result import Reporter
from sightline.workbench.compress.batch_norm import reestimate_batch_norm
from sightline.workbench.compress.evaluations import EvaluationCache, open_record
from sightline.workbench.compress.finetuning import FINE_TUNE, FINE_TUNED, FineTuning, finetuning_config
from sightline.workbench.compress.packing import FILES, write_evaluation, write_packed_run
from sightline.workbench.compress.run_problem import RunProblem, weights_sha256
from sightline.workbench.compress.search.base import ProgressCallback, Search, SearchResult, run_search
from sightline.workbench.compress.target import CompressionTarget
from sightline.workbench.series.training import Training, assert_same_runs

POLICY = "policy.json"
"""File with the policy that a search found."""
REQUEST_FILE = "asked.json"
"""File in a study's folder with the options of the study."""
WORK = "work"
"""Folder in a packed run with its intermediate files: record of the search, policy, fine-tuning."""


def search_recorded(
    problem: RunProblem, name: str, method: Search, *, folder: Path, file: str = POLICY, report: ProgressCallback = None
) -> SearchResult:
    """Run a search, and write its policy, with quantised inputs if they are asked for, as a file of the folder.

    All searches of a folder share its record of evaluations, which are not repeated.
    """
    folder.mkdir(parents=True, exist_ok=True)
    recorded, append = open_record(folder / "evaluations.jsonl", subject=problem.subject, names=problem.names)
    evaluations = EvaluationCache(problem.loss, known=recorded, record=append)
    result = run_search(name, method, problem.search_problem, evaluations, base_bytes=problem.base_bytes, report=report)
    result = result._replace(policy=problem.with_quantised_inputs(result.policy))
    write_document(folder / file, policy_to_dict(result.policy))
    return result


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


class Compression:
    """Compression of a run into the folder `out`, which becomes a run directory with a packed model.

    Called with the same arguments, it resumes an interrupted call.
    """

    def __init__(self, run: OpenRun, out: Path, reporter: Reporter, *, may_be_done: bool = False) -> None:
        """Raise UserError for a folder that cannot be written or has other contents."""
        if (out / "final.json").exists() and is_packed(out) and not may_be_done:
            raise UserError(f"--out {out}: has a packed run already; give another folder")
        assert_empty(out, allowed=FILES | {WORK} | LOCK_FILES)
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
        target: CompressionTarget,
        name: str,
        method: Search,
        *,
        other_options: Mapping[str, Any],
        report: ProgressCallback = None,
    ) -> tuple[SearchResult, RunProblem]:
        """Search the policy, and write it to the work folder; `other_options` are the other options of the call.

        Raises UserError if an earlier call fine-tuned or packed in this folder with other options or other weights of
        the run.
        """
        self._work.mkdir(parents=True, exist_ok=True)
        is_begun = is_run(self._work / FINE_TUNED) or is_packed(self._out)
        request = {"weights": weights_sha256(self._run), **dataclasses.asdict(target), **other_options}
        assert_same_request(self._work / REQUEST_FILE, request, is_begun=is_begun)
        problem = RunProblem(self._run, target)
        return search_recorded(problem, name, method, folder=self._work, report=report), problem

    def finetune(self, policy: Policy | None, how: FineTuning) -> Path:
        """Fine-tune the run with quantised or, without `policy`, float weights; return its run directory.

        Raises StoppedError if training is stopped.
        """
        source = self._run.checkpoint_path.resolve()
        config = finetuning_config(self._run.config, source, policy, how)
        file, path = self._work / FINE_TUNE, self._work / FINE_TUNED
        write_file(file, render_config(config, origins=False))
        read = read_with_plugins(file, how.overrides, how.plugins)
        command = TrainOptions(
            config=file, overrides=how.overrides, out=path, resume="auto", plugins=how.plugins, device=how.device
        )
        training = Training(read, command)
        assert_same_runs([training], may_go_on=True)
        training.train(self._reporter)
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
            apply_policy(model, policy)
        plain = bake_quantised_weights(copy.deepcopy(model))
        policy = {**dict.fromkeys((weight.name for weight in quantisable_weights(plain)), FP32), **policy}
        about = {**about, "batch_norm_batches": reestimate_batch_norm(model, self._run, num_batches=num_batches)}
        halves = round_to_half(model.state_dict(), halvable(plain, but=policy))
        write_packed_run(self._run, model.eval(), policy, self._out, about=about, halves=halves, at_most=at_most)
        return write_evaluation(self._out, self._run)
