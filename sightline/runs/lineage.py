"""Lineage of the weights that a run starts from, stored in its folder and printed with its figures."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from sightline.compression.parametrised import weight_sizes
from sightline.config import RunConfig, read_config
from sightline.contract.errors import UserError
from sightline.contract.types import DataInfo
from sightline.published.hub import is_hub_name
from sightline.runs.inputs import read_inputs
from sightline.runs.preprocessing_signature import preprocessing_signature, signature_differences
from sightline.runs.run_documents import load_document, read_facts
from sightline.runs.trained_weights import assert_sha256
from sightline.runs.weight_sources import WeightSource
from sightline.runs.weights import WeightLoadReport

LINEAGE_FILE = "lineage.json"


def read_lineage(run: Path) -> dict[str, Any] | None:
    """Read the lineage of a run's initial weights; None for a run with random ones.

    Raises UserError if the document lacks a required key, or contains a value of another type.
    """
    path = run / LINEAGE_FILE
    if not path.exists():
        return None
    lineage = load_document(path)
    try:
        _check_lineage(lineage)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: is not a lineage as runs write it ({error}); make the run again") from None
    return lineage


def _check_lineage(lineage: Mapping[str, Any]) -> None:
    """Raise KeyError or TypeError for a document that `trace_lineage` or a conversion did not write."""
    converted = "layout" in lineage
    kinds = {"file": str, "layout": str} if converted else {"from": str, "checkpoint": str, "match": dict}
    _check_kinds(lineage, {"sha256": str, **kinds})
    if converted:
        return
    _check_kinds(lineage["match"], {"matched": int, "total": int, "filled": object})
    _check_kinds(lineage, {"modules": object, "source": dict | None, "lineage": dict | None})
    if lineage["source"] is not None:
        _check_kinds(lineage["source"], {"model": str, "task": str, "data": dict})
        _check_kinds(lineage["source"]["data"], {"name": str})
    if lineage["lineage"] is not None:
        _check_lineage(lineage["lineage"])


def _check_kinds(document: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    for key, kind in kinds.items():
        if not isinstance(document[key], kind):
            raise TypeError(f"'{key}' is a {type(document[key]).__name__}")


def trace_lineage(config: RunConfig, info: DataInfo, report: WeightLoadReport, weights: WeightSource) -> dict[str, Any]:
    """Build the document of `lineage.json`: source, loaded modules, both stages and their differences.

    The source of published weights is their file, its digest and its layout, as of a conversion.
    `differences` compare the evaluation inputs of both. `info` belongs to the run's data. `source` is null, and
    `unknown` states the reason, if the checkpoint is not in a run, or in one whose data is unknown. `lineage` is the
    lineage of the source.
    """
    assert config.init is not None, "only a run that starts from weights has a lineage"
    run, is_own, sha256 = weights.run, weights.layout is None, weights.compute_sha256()
    source, unknown = _read_signature(run)
    converted = {"file": weights.name, "sha256": sha256, "layout": weights.layout}
    signature = preprocessing_signature(config, info)
    return {
        "from": weights.name if is_hub_name(weights.name) else str(run or weights.path),
        "checkpoint": weights.path.name,
        "sha256": sha256,
        "modules": config.init.modules,
        "into": config.init.into,
        "may_be_missing": list(config.init.may_be_missing),
        "match": report.to_dict(),
        "source": source,
        "unknown": unknown,
        "here": signature,
        "differences": [] if source is None else signature_differences(source, signature),
        "lineage": (None if run is None else read_lineage(run)) if is_own else converted,
    }


def record_teacher(config: RunConfig) -> RunConfig:
    """Add the SHA-256 digest of the teacher's weights to the config, so that a later use can be checked."""
    if config.teacher is None:
        return config
    digest = assert_sha256(Path(config.teacher.source), config.teacher.sha256)
    return dataclasses.replace(config, teacher=dataclasses.replace(config.teacher, sha256=digest))


def describe_lineage(lineage: Mapping[str, Any]) -> str:
    """Describe a lineage in one line: file, hash and layout of converted weights, else the chain of runs.

    The nearest run comes first.
    """
    if "layout" in lineage:
        fresh = ", ".join(lineage.get("fresh", ()))
        return (
            f"weights converted from {lineage['file']} (SHA-256 {str(lineage['sha256'])[:16]}..., layout "
            f"{lineage['layout']}){f'; {fresh}: untrained, the file has none' if fresh else ''}"
        )
    match, stage = lineage["match"], lineage["source"]
    taken = f"{lineage['modules'] or 'all'} into {match['filled'] or 'the whole model'}"
    stage_text = "" if stage is None else f", {stage['model']} of {stage['task']} on {stage['data']['name']}"
    line = (
        f"started from {lineage['from']} ({lineage['checkpoint']}, SHA-256 {lineage['sha256'][:16]}...{stage_text}): "
        f"{taken}, {match['matched']} of {match['total']} tensors"
    )
    return line if lineage["lineage"] is None else f"{line}; before that: {describe_lineage(lineage['lineage'])}"


def describe_stage(config: RunConfig, model: nn.Module) -> str:
    """Describe task, data and model of a run in one line, with the modules that other runs may start from.

    A weight that reads a codebook counts as parameter, an entry of the codebook does not.
    """
    parts = ", ".join(name for name, child in model.named_children() if any(True for _ in child.parameters()))
    count = sum(weight_sizes(model).values())
    model_line = f"{config.model.name} ({count:,} parameters: {parts})"
    return f"task: {config.task.name} on {config.data.name} · model: {model_line}"


def _read_signature(run: Path | None) -> tuple[dict[str, Any] | None, str | None]:
    if run is None:
        return None, "no run is around the checkpoint"
    try:
        text = (run / "config.yaml").read_bytes()
        config = read_config(run / "config.yaml")
        stage = preprocessing_signature(config, read_inputs(run, read_facts(run)))
    except (OSError, UserError) as error:
        return None, str(error)
    return stage | {"config_sha256": hashlib.sha256(text).hexdigest()}, None
