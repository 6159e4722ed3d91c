"""Start of fine-tuning: overrides for scratch or a run's weights, and a check that the weights are unchanged."""

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
"""Arguments of the optimiser for pre-trained weights, and the values that switch them off."""


def init_override(source: str | Path) -> str:
    """Return the override that starts a run from these weights; any characters are allowed in the path."""
    return f"init.from={format_inline(str(source))}"


def scratch_overrides(config: RunConfig, given: Sequence[str] = ()) -> list[str]:
    """Convert the overrides `given` to a run from random weights: without `init`, freezing and layer decay."""
    optimizer_switches = {key: off for key, off in _PRETRAINED_ONLY.items() if key in config.optimizer.arguments}
    switches = {"init": "null", **{f"optimizer.{key}": off for key, off in optimizer_switches.items()}}
    selected = [text for text in given if not any(_is_at(text, key) for key in switches)]
    return [*selected, *(f"{key}={off}" for key, off in switches.items())]


def assert_same_source(run: Path, source: str | Path) -> None:
    """Raise UserError if a run was started from weights that its source no longer has."""
    lineage = read_lineage(run)
    if lineage is None:
        return
    current_sha256 = evaluated_sha256(resolve_weights(Path(source)))
    if lineage["sha256"] != current_sha256:
        raise UserError(
            f"{run}: started from other weights ({lineage['sha256'][:16]}...) than {source} has now "
            f"({current_sha256[:16]}...); give another --out"
        )


def _is_at(override: str, key: str) -> bool:
    path = override.partition("=")[0].strip()
    return path == key or path.startswith(f"{key}.")
