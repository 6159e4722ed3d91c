"""Warnings of a probe if its clouds differ from those of training."""

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
    """List warnings on differences between the data to probe on and the data of training.

    `learnt` and `info` are the config and the data set of training, `model` is the block that is probed. The number of
    points may differ on purpose; its effect on the neighbour graph is reported.
    """
    training, probing = (
        preprocessing_signature(learnt, info),
        preprocessing_signature(data.config, data.train.dataset.info),
    )
    probing["num_points"] = probing["encoder"] = None  # the model of the data's config is not the one that is probed
    lines = signature_differences(training, probing, names=("what was learnt on", "the data to probe on"))
    return [f"warning: {line}" for line in (*_reach_note(training, data.num_points, model), *lines)]


def _reach_note(training: Mapping[str, Any], num_points: int, model: ComponentConfig) -> list[str]:
    """Return a line if the probed neighbour graph has a smaller or larger reach than that of training."""
    num_neighbours, training_points, graph = (
        training["neighbours"],
        training["num_points"],
        find_neighbour_graph(model, num_points),
    )
    if num_neighbours is None or graph is None:
        return []
    equal_reach = scale_num_neighbours(num_neighbours, reference_num_points=training_points, num_points=num_points)
    if graph.neighbours == equal_reach:
        return []
    advised = (
        equal_reach
        if graph.expected_num_points is None
        else scale_num_neighbours(equal_reach, reference_num_points=num_points, num_points=graph.expected_num_points)
    )
    advice = f"{graph.path}.num_neighbours={advised}"
    if graph.can_grow and graph.expected_num_points is None and graph.neighbours == num_neighbours:
        advice = f"{graph.path}.neighbours_at={training_points}"  # PCT's second groups stay as they are
    return [
        f"the encoder learnt on clouds of {training_points} points with {num_neighbours} neighbours each; "
        f"of {num_points} points {graph.neighbours} "
        f"reach {'less far' if graph.neighbours < equal_reach else 'farther'}: {advice} keeps their reach"
    ]
