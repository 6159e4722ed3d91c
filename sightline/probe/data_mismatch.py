"""Where a network is shown other clouds than it learned on: the notes of a probe before its figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sightline.config import RunConfig
from sightline.geometry.neighbours import scale_num_neighbours
from sightline.probe.probed_data import ProbedData
from sightline.runs.blocks import find_neighbour_graph
from sightline.runs.preprocessing_signature import preprocessing_signature, signature_differences
from sightline.types import ComponentConfig, DataInfo

__all__ = ["warnings_on_data"]


def warnings_on_data(learnt: RunConfig, info: DataInfo, model: ComponentConfig, data: ProbedData) -> list[str]:
    """A line for each way in which the data to probe on is other than what was learnt on.

    `learnt` and `info` are the config and the data that the weights learned by, `model` is the block that is probed.
    The number of points may be another one on purpose; what it does to a graph is reported.
    """
    before, here = preprocessing_signature(learnt, info), preprocessing_signature(data.config, data.train.dataset.info)
    here["num_points"] = here["encoder"] = None  # the model of the data's config is not the one that is probed
    lines = signature_differences(before, here, names=("what was learnt on", "the data to probe on"))
    return [f"warning: {line}" for line in (*_reach(before, data.num_points, model), *lines)]


def _reach(before: Mapping[str, Any], here: int, model: ComponentConfig) -> list[str]:
    """A line where the probed graph reaches less far, or farther, than the one that was learnt on."""
    had, of, has = before["neighbours"], before["num_points"], find_neighbour_graph(model, here)
    if had is None or has is None:
        return []
    kept = scale_num_neighbours(had, reference_num_points=of, num_points=here)
    if has.neighbours == kept:
        return []
    given = (
        kept
        if has.expected_num_points is None
        else scale_num_neighbours(kept, reference_num_points=here, num_points=has.expected_num_points)
    )
    advice = f"{has.path}.num_neighbours={given}"
    if has.can_grow and has.expected_num_points is None and has.neighbours == had:
        advice = f"{has.path}.neighbours_at={of}"  # PCT's second groups stay as they are
    return [
        f"the encoder learnt on clouds of {of} points with {had} neighbours each; of {here} points {has.neighbours} "
        f"reach {'less far' if has.neighbours < kept else 'farther'}: {advice} keeps their reach"
    ]
