"""A compressed run in a folder of its own: the files of the run that it comes from, with `model.slq` as its weights."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sightline.compress.policy import Policy, activation_policy, policy_to_dict
from sightline.compress.run_problem import packed_metadata
from sightline.config import RunConfig, read_config, render_config
from sightline.config.run_config import Compress
from sightline.engine.run_loading import OpenRun, open_run
from sightline.engine.session import evaluation_document
from sightline.errors import RunError
from sightline.layers.quantisation.parametrised import dense_state_dict
from sightline.runs.inputs import INPUTS_FILE
from sightline.runs.lineage import LINEAGE_FILE
from sightline.runs.packed import (
    PackedTensorSpec,
    compression_ratios,
    float_bytes,
    packed_size,
    read_packed,
    tensor_specs,
    write_packed,
)
from sightline.runs.run_directory import RunDirectory, collect_environment
from sightline.runs.run_documents import load_document
from sightline.runs.trained_weights import PACKED_FILE

__all__ = ["FILES", "SUMMARY", "packed_config", "packed_layer_sizes", "write_evaluation", "write_packed_run"]

SUMMARY = "compression.json"
"""The file of a packed run that states its policy and its sizes."""
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
"""What a packed run's folder holds; one without final.json was interrupted."""


def packed_config(config: RunConfig, policy: Policy) -> RunConfig:
    """The config of a packed run: plain weights, nothing of how they were trained, and inputs quantised as before."""
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
) -> dict[str, Any]:
    """Write a model that `policy` quantised as a run directory beside `run`; what compression.json holds.

    `about` is part of that; `halves` are tensors that were rounded to half precision beside the policy. The file is
    read back and compared. Raises RunError where it would exceed `at_most` bytes, before anything is written, and where
    it does not hold the model's weights bit by bit.
    """
    assert run.directory is not None, "what is packed was trained"
    entries, tied = tensor_specs(model, halves)
    meta = packed_metadata(run)
    promised = packed_size(entries, meta, tied=tied)
    if at_most is not None and promised > at_most:
        raise RunError(f"{out / PACKED_FILE}: would take {promised:,} bytes, the budget is {at_most:,}; search again")
    directory = RunDirectory(out, is_writer=True)
    for name in ("facts.json", INPUTS_FILE, LINEAGE_FILE):
        if (run.directory / name).exists():
            directory.write_bytes(name, (run.directory / name).read_bytes())
    if (run.directory / "plugins").is_dir():
        shutil.copytree(run.directory / "plugins", out / "plugins", dirs_exist_ok=True)
    written = write_packed(out / PACKED_FILE, model, meta, halves)
    _assert_same(out / PACKED_FILE, model)
    plugins = load_document(run.directory / "environment.json").get("plugins", [])
    directory.write_json(
        "environment.json", collect_environment() | {"plugins": plugins, "checked": False, "num_processes": 1}
    )
    layers, state = packed_layer_sizes(entries, tied, policy), dense_state_dict(model)
    sizes = {
        "file_bytes": written,
        "promised_bytes": promised,
        "float_bytes": float_bytes(state),
        "ratios": compression_ratios(layers, file_bytes=written, state=state)._asdict(),
    }
    summary = {"source": str(run.checkpoint_path.resolve()), **sizes, **about, "policy": policy_to_dict(policy)}
    directory.write_json(SUMMARY, summary)
    directory.write_text("config.yaml", render_config(packed_config(run.config, policy), origins=False))
    return summary


def packed_layer_sizes(
    entries: Sequence[PackedTensorSpec], tied: Mapping[str, str], policy: Policy
) -> list[tuple[int, int, int]]:
    """Of each tensor of a policy its weights, bits, and bytes of codebooks, as `runs.packed.ratios` takes them.

    `tied`: of further names of a shared tensor the name in the file.
    """
    chosen = {tied.get(name, name): choice for name, choice in policy.items()}
    return [(each.count, chosen[each.name].bits, each.book_bytes) for each in entries if each.name in chosen]


def _assert_same(path: Path, model: nn.Module) -> None:
    """Raises RunError where a packed file does not hold the numbers of the model, bit by bit."""
    stored = read_packed(path).state
    for name, tensor in dense_state_dict(model).items():
        if not torch.equal(stored[name], tensor.detach().cpu()):
            raise RunError(f"{path}: '{name}' is not the model's, bit by bit; please report this fault of sightline")


def write_evaluation(out: Path, run: OpenRun) -> dict[str, Any]:
    """Evaluate a packed run on its test part, from its file, on the data that `run` has open.

    What final.json holds, and compression.json then: that with the seconds that the evaluation took.
    """
    packed = open_run(out, config=read_config(out / "config.yaml"), world=run.world)
    evaluation = run.evaluator()(packed.model, run.world)
    document = evaluation_document(packed.config, evaluation, run.data.test, "last")
    directory = RunDirectory(out, is_writer=True)
    summary = load_document(out / SUMMARY) | {"test_seconds": evaluation.seconds}
    directory.write_json(SUMMARY, summary)
    directory.write_json("final.json", document)
    return summary | document
