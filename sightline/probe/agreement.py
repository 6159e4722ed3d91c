"""Where a network is shown other clouds than it learned on: what a probe tells before anyone reads its figures."""

from __future__ import annotations

from sightline.config import RunConfig
from sightline.engine.blocks import graph_of
from sightline.engine.stages import differences, stage_of
from sightline.geometry.neighbours import neighbours_in_proportion
from sightline.probe.subject import ProbedData
from sightline.types import Component, DataInfo

__all__ = ["notes_on_data"]


def notes_on_data(learnt: RunConfig, info: DataInfo, model: Component, data: ProbedData) -> list[str]:
    """Lines that warn, and one of the transforms that are not applied.

    `learnt` and `info` are the config and the data that the weights learned by, `model` is the block that is probed.
    The number of points may be another one on purpose; what it does to a graph is told.
    """
    before, here = stage_of(learnt, info), stage_of(data.config, data.train.dataset.info)
    lines = _reach(before["num_points"], data.num_points, learnt.model, model)
    here["num_points"] = here["encoder"] = None  # the model of the data's config is not the one that is probed
    told = differences(before, here, names=("what was learnt on", "the data to probe on"))
    lines += [f"warning: {line}" for line in told]
    if data.left_out:
        lines.append(f"not applied, for they make pairs: transforms.evaluate {', '.join(data.left_out)}")
    return lines


def _reach(before: int | None, here: int, learnt: Component, model: Component) -> list[str]:
    """A warning where the probed graph reaches less far, or farther, than the one that was learnt on."""
    had = None if before is None else graph_of(learnt, before)
    has = graph_of(model, here)
    if before is None or had is None or has is None:
        return []
    kept = neighbours_in_proportion(had.neighbours, meant_for=before, num_points=here)
    if has.neighbours == kept:
        return []
    given = kept if has.meant_for is None else neighbours_in_proportion(kept, meant_for=here, num_points=has.meant_for)
    in_the_run = f", as neighbours_at: {before} in the run does" if had.can_grow else ""
    return [
        f"warning: the encoder learnt on clouds of {before} points with {had.neighbours} neighbours each; of {here} "
        f"points {has.neighbours} reach {'less far' if has.neighbours < kept else 'farther'}: "
        f"{has.path}.num_neighbours={given} keeps their reach{in_the_run}"
    ]
