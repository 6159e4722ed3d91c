"""Documents of evaluations: `final.json`, and what `evaluate --json` and `score --json` write."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sightline.config import RunConfig
from sightline.contract.types import ComponentConfig
from sightline.engine.evaluate import Evaluation
from sightline.engine.run_data import DataSubset
from sightline.runs.class_causes import describe_class_causes
from sightline.workbench.evaluate.scoring import ScoredFiles


def evaluation_document(
    config: RunConfig, evaluation: Evaluation, part: DataSubset, which: str, *, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Build the document of `final.json` and `evaluate --json`; `facts` are those of the training data."""
    described = evaluation.describe(config.evaluate.metric, part.sample_name)
    label = part.dataset.info.fields.get("label")
    _, ranked = evaluation.ranked_classes
    return {
        **described,
        **describe_class_causes(described, ranked, facts, are_points=bool(label and label.shape)),
        "losses": dict(evaluation.losses),
        "data": _describe_part(config.data.name, part, evaluation),
        "checkpoint": which,
        "votes": config.evaluate.votes,
        **_describe_tiles(config),
        "selection": _describe_selection(config),
    }


def _describe_tiles(config: RunConfig) -> dict[str, Any]:
    """Describe the tiles of images, as `predict` does; empty without them."""
    settings = config.evaluate
    return {} if settings.tile is None else {"tile": {"size_px": settings.tile, "overlap": settings.tile_overlap}}


def score_document(data: ComponentConfig, part: DataSubset, path: Path, scored: ScoredFiles) -> dict[str, Any]:
    """Build the document of `score --json`."""
    evaluation = scored.evaluation
    return {
        **evaluation.describe(next(iter(evaluation.metrics), ""), scored.sample_name),
        "data": _describe_part(data.name, part, evaluation),
        "predictions": str(path),
        "selection": "given",
    }


def _describe_part(name: str, part: DataSubset, evaluation: Evaluation) -> dict[str, Any]:
    """Describe the evaluated split of a data set, and which of its boxes were scored."""
    described = {"name": name, "split": part.split, "num_samples": evaluation.num_samples}
    box_type = part.dataset.info.facts.get("box_type")
    return described if box_type is None else {**described, "box_type": box_type}


def _describe_selection(config: RunConfig) -> str:
    """Describe how `best` was selected; figures of a test-selected checkpoint are not comparable with others."""
    return "test-selected" if config.evaluate.select == "test" else "validation-selected"
