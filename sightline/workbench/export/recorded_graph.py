"""Recording of a network's graph by torch.export, with as many free sizes as the network allows."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from sightline.contract.errors import RunError, UserError, summarise_error
from sightline.workbench.export.graph import GraphNetwork

_FREE = ((0, 1), (0,), (1,), ())
"""Axes that are tried to be free, the most useful first."""


class RecordedGraph(NamedTuple):
    """Graph as torch.export records it, the names of its inputs, and for each the names of its free axes."""

    program: ExportedProgram
    names: tuple[str, ...]
    free_axes: tuple[Mapping[int, str], ...]


@contextmanager
def quiet() -> Iterator[None]:
    """Context without the warnings and messages of exporters, which are about torch and not about the network."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.__trace", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def record_graph(network: GraphNetwork, values: Sequence[Tensor]) -> RecordedGraph:
    """Record the graph with as many free sizes as possible. Raises RunError, in one line, if that is impossible."""
    row_axes = network.row_axes
    can_vary = values[0].shape[0] > 1  # torch.export takes a size of 1 for a constant
    reason: Exception | None = None
    for free in _FREE:
        if (1 in free and not row_axes) or (0 in free and not can_vary):
            continue
        axes = tuple(_name_axes(free, row_axes.get(name)) for name in network.names)
        shapes = tuple({axis: Dim.DYNAMIC for axis in of_input} for of_input in axes)
        torch.compiler.reset()  # else sizes that loops met before count as constants
        try:
            with quiet():
                program = torch.export.export(
                    network,
                    tuple(_take_rows(value, 0 in free) for value in values),
                    dynamic_shapes=(shapes,),
                    strict=False,
                )
            return RecordedGraph(program, network.names, axes)
        except UserError:  # of a network that knows why
            raise
        except Exception as error:  # noqa: BLE001 - torch.export has no class of its own for what it cannot record
            reason = error
    assert reason is not None, "the last try has no free sizes"
    raise RunError(f"export: torch.export cannot record this network: {explain(reason)}") from reason


def _take_rows(value: Tensor, is_batch_free: bool) -> Tensor:
    """Copy a value, which torch marks; without free batches the graph is of one sample."""
    return value.clone() if is_batch_free else value[:1].clone()


def _name_axes(free: Sequence[int], rows: str | None) -> dict[int, str]:
    """Return the free axes of an input by name, with what its `rows` are if their number may be free."""
    return {axis: name for axis, name in ((0, "batch"), (1, rows)) if axis in free and name is not None}


def explain(error: BaseException) -> str:
    """Summarise what an exporter says in one line: its first cause, without advice about torch's code."""
    while error.__cause__ is not None:
        error = error.__cause__
    return summarise_error(error, max_length=240)
