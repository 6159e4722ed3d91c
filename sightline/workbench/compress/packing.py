"""Packed runs: a copy of a run's folder with `model.slq` as its weights."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sightline.compression.packed_file import packed_size, read_packed, tensor_specs, write_packed
from sightline.compression.packed_tensors import PackedTensorSpec
from sightline.compression.parametrised import dense_state_dict
from sightline.compression.policy import Policy, activation_policy, policy_to_dict
from sightline.compression.ratios import compression_ratios, float_bytes
from sightline.config import RunConfig, read_config, render_config
from sightline.config.run_config import Compress
from sightline.contract.errors import RunError
from sightline.doctor.rules import find_by
from sightline.engine.run_loading import OpenRun, open_run
from sightline.runs.environment import collect_environment
from sightline.runs.inputs import INPUTS_FILE
from sightline.runs.lineage import LINEAGE_FILE
from sightline.runs.run_directory import RunDirectory
from sightline.runs.run_documents import load_document
from sightline.runs.trained_weights import PACKED_FILE
from sightline.workbench.compress.rules import size_promise
from sightline.workbench.compress.run_problem import packed_metadata
from sightline.workbench.evaluate.documents import evaluation_document

SUMMARY = "compression.json"
"""File of a packed run with its policy and its sizes."""
FILES = frozenset(
    {
        "config.yaml",
        "environment.json",
        "facts.json",
        "plugins",
        INPUTS_FILE,
        LINEAGE_FILE,
        PACKED_FILE,
        SUMMARY,
        "final.json",
    }
)
"""Files of a packed run's folder; without final.json the run was interrupted."""


def packed_config(config: RunConfig, policy: Policy) -> RunConfig:
    """Build the config of a packed run: float weights, no initial weights or teacher, inputs quantised as before."""
    inputs = policy_to_dict(activation_policy(policy))
    compress = Compress(policy=inputs) if inputs else None  # type: ignore[arg-type]
    return dataclasses.replace(config, init=None, compress=compress, teacher=None)


def write_packed_run(
    run: OpenRun,
    model: nn.Module,
    policy: Policy,
    out: Path,
    *,
    about: Mapping[str, Any],
    halves: Collection[str] = (),
    at_most: int | None = None,
) -> None:
    """Write a model that `policy` quantised as the run directory `out`, with its sizes and `about` in compression.json.

    `halves` are tensors that were rounded to half precision. The file is read back and compared. Raises RunError if it
    would exceed `at_most` bytes, before anything is written, and if it does not contain the model's weights bit by bit
    or has another size than the one that is reported.
    """
    assert run.files is not None, "what is packed was trained"
    file, meta, state = out / PACKED_FILE, packed_metadata(run), dense_state_dict(model)
    entries, tied = tensor_specs(model, halves)
    promised = packed_size(entries, meta, tied=tied)
    if at_most is not None and promised > at_most:
        raise RunError(f"{file}: would take {promised:,} bytes, the budget is {at_most:,}; search again")
    directory = RunDirectory(out, is_writer=True)
    for name in ("facts.json", INPUTS_FILE, LINEAGE_FILE):
        if (run.path / name).exists():
            directory.write_bytes(name, (run.path / name).read_bytes())
    if (run.path / "plugins").is_dir():
        shutil.copytree(run.path / "plugins", out / "plugins", dirs_exist_ok=True)
    file_bytes, layers = write_packed(file, model, meta, halves), packed_layer_sizes(entries, tied, policy)
    ratios = compression_ratios(layers, file_bytes=file_bytes, state=state)._asdict()
    _assert_same(file, state)
    promise = {"promised": promised, "budget": at_most, "reported": ratios}
    if findings := find_by(size_promise, file=file, layers=layers, state=state, **promise):
        raise RunError("\n".join(map(str, findings)))
    about_run = {"plugins": run.files.environment.get("plugins", []), "checked": False, "num_processes": 1}
    directory.write_json("environment.json", collect_environment() | about_run)
    sizes = {"file_bytes": file_bytes, "promised_bytes": promised, "float_bytes": float_bytes(state), "ratios": ratios}
    summary = {"source": str(run.checkpoint_path.resolve()), **sizes, **about, "policy": policy_to_dict(policy)}
    directory.write_json(SUMMARY, summary)
    directory.write_text("config.yaml", render_config(packed_config(run.config, policy), origins=False))


def packed_layer_sizes(
    entries: Sequence[PackedTensorSpec], tied: Mapping[str, str], policy: Policy
) -> list[tuple[int, int, int]]:
    """List (number of weights, bits, codebook bytes) of each tensor of a policy, for `compression_ratios`.

    `tied` maps further names of a shared tensor to its name in the file.
    """
    choices = {tied.get(name, name): choice for name, choice in policy.items()}
    return [(entry.count, choices[entry.name].bits, entry.book_bytes) for entry in entries if entry.name in choices]


def _assert_same(path: Path, state: Mapping[str, Tensor]) -> None:
    """Raise RunError if a packed file does not contain the numbers of a state, bit by bit."""
    stored = read_packed(path).state
    for name, tensor in state.items():
        if not torch.equal(stored[name], tensor.detach().cpu()):
            raise RunError(f"{path}: '{name}' is not the model's, bit by bit; please report this fault of sightline")


def write_evaluation(out: Path, run: OpenRun) -> dict[str, Any]:
    """Evaluate a packed run on its test split, from its file, on the data that `run` has open.

    Writes final.json, adds the seconds of the evaluation to compression.json, and returns both contents.
    """
    packed = open_run(out, config=read_config(out / "config.yaml"), world=run.world)
    evaluation = run.evaluator()(packed.model, run.world)
    document = evaluation_document(packed.config, evaluation, run.data.test, "last", facts=run.facts)
    directory = RunDirectory(out, is_writer=True)
    summary = load_document(out / SUMMARY) | {"test_seconds": evaluation.seconds}
    directory.write_json(SUMMARY, summary)
    directory.write_json("final.json", document)
    return summary | document
