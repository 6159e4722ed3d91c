"""Packed runs: a copy of a run's folder with `model.slq` as its weights."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sightline.config import RunConfig, read_config, render_config
from sightline.config.run_config import Compress
from sightline.contract.errors import RunError
from sightline.engine.run_loading import OpenRun, open_run
from sightline.parts.quantisation.parametrised import dense_state_dict
from sightline.runs.lineage import INPUTS_FILE, LINEAGE_FILE
from sightline.runs.packed import (
    PackedTensorSpec,
    compression_ratios,
    float_bytes,
    packed_size,
    read_packed,
    tensor_specs,
    write_packed,
)
from sightline.runs.run_directory import RunDirectory, collect_environment, load_document
from sightline.runs.trained_weights import PACKED_FILE
from sightline.workbench.compress.policy import (
    Policy,
    WeightFormat,
    activation_policy,
    policy_from_dict,
    policy_to_dict,
)
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


def trained_policy(config: RunConfig) -> dict[str, WeightFormat]:
    """Return the policy that a run was trained with, empty for a float run."""
    policy: Any = {} if config.compress is None else config.compress.policy
    return policy_from_dict(policy, list(policy), origin=config.name)


def write_packed_run(
    run: OpenRun,
    model: nn.Module,
    policy: Policy,
    out: Path,
    *,
    about: Mapping[str, Any],
    halves: Collection[str] = (),
    at_most: int | None = None,
) -> dict[str, Any]:
    """Write a model that `policy` quantised as the run directory `out`; return the content of compression.json.

    `about` is added to that content; `halves` are tensors that were rounded to half precision. The file is read back
    and compared. Raises RunError if it would exceed `at_most` bytes, before anything is written, and if it does not
    contain the model's weights bit by bit.
    """
    assert run.files is not None, "what is packed was trained"
    entries, tied = tensor_specs(model, halves)
    meta = packed_metadata(run)
    expected_bytes = packed_size(entries, meta, tied=tied)
    if at_most is not None and expected_bytes > at_most:
        raise RunError(
            f"{out / PACKED_FILE}: would take {expected_bytes:,} bytes, the budget is {at_most:,}; search again"
        )
    directory = RunDirectory(out, is_writer=True)
    for name in ("facts.json", INPUTS_FILE, LINEAGE_FILE):
        if (run.path / name).exists():
            directory.write_bytes(name, (run.path / name).read_bytes())
    if (run.path / "plugins").is_dir():
        shutil.copytree(run.path / "plugins", out / "plugins", dirs_exist_ok=True)
    file_bytes = write_packed(out / PACKED_FILE, model, meta, halves)
    _assert_same(out / PACKED_FILE, model)
    about_run = {"plugins": run.files.environment.get("plugins", []), "checked": False, "num_processes": 1}
    directory.write_json("environment.json", collect_environment() | about_run)
    layers, state = packed_layer_sizes(entries, tied, policy), dense_state_dict(model)
    sizes = {
        "file_bytes": file_bytes,
        "promised_bytes": expected_bytes,
        "float_bytes": float_bytes(state),
        "ratios": compression_ratios(layers, file_bytes=file_bytes, state=state)._asdict(),
    }
    summary = {"source": str(run.checkpoint_path.resolve()), **sizes, **about, "policy": policy_to_dict(policy)}
    directory.write_json(SUMMARY, summary)
    directory.write_text("config.yaml", render_config(packed_config(run.config, policy), origins=False))
    return summary


def packed_layer_sizes(
    entries: Sequence[PackedTensorSpec], tied: Mapping[str, str], policy: Policy
) -> list[tuple[int, int, int]]:
    """List (number of weights, bits, codebook bytes) of each tensor of a policy, for `compression_ratios`.

    `tied` maps further names of a shared tensor to its name in the file.
    """
    choices = {tied.get(name, name): choice for name, choice in policy.items()}
    return [(entry.count, choices[entry.name].bits, entry.book_bytes) for entry in entries if entry.name in choices]


def _assert_same(path: Path, model: nn.Module) -> None:
    """Raise RunError if a packed file does not contain the model's numbers, bit by bit."""
    stored = read_packed(path).state
    for name, tensor in dense_state_dict(model).items():
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
