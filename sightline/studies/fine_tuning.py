"""Where fine-tuning starts: from scratch or from a run, and whether from the same weights as before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sightline.config import RunConfig
from sightline.config.yaml_writer import format_inline
from sightline.errors import UserError
from sightline.runs.lineage import read_lineage
from sightline.runs.trained_weights import evaluated_sha256, resolve_weights

__all__ = ["assert_same_source", "init_override", "scratch_overrides"]

_PRETRAINED_ONLY = {"frozen": "[]", "layer_decay": "null"}
"""Arguments of the optimiser that serve weights worth keeping, and the values that switch them off."""


def init_override(source: str | Path) -> str:
    """The override that starts a run from these weights, whatever characters their path holds."""
    return f"init.from={format_inline(str(source))}"


def scratch_overrides(config: RunConfig, given: Sequence[str] = ()) -> list[str]:
    """The overrides `given`, made those of a run from random weights: without `init` and what serves given weights."""
    known = {key: off for key, off in _PRETRAINED_ONLY.items() if key in config.optimizer.arguments}
    switched = {"init": "null", **{f"optimizer.{key}": off for key, off in known.items()}}
    kept = [text for text in given if not any(_is_at(text, key) for key in switched)]
    return [*kept, *(f"{key}={off}" for key, off in switched.items())]


def assert_same_source(run: Path, source: str | Path) -> None:
    """Raises UserError where a run was begun from weights that its source no longer holds."""
    lineage = read_lineage(run)
    if lineage is None:
        return
    now = evaluated_sha256(resolve_weights(Path(source)))
    if lineage["sha256"] != now:
        raise UserError(
            f"{run}: started from other weights ({lineage['sha256'][:16]}...) than {source} holds now ({now[:16]}...); "
            "give another --out"
        )


def _is_at(override: str, key: str) -> bool:
    place = override.partition("=")[0].strip()
    return place == key or place.startswith(f"{key}.")
