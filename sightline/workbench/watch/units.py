"""Dead units: those that no sample gives a gradient."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from torch import Tensor, nn

from sightline.workbench.check.checks.model.gradients import LAYERS, make_dead_fault
from sightline.workbench.check.runtime_rules import find_rule
from sightline.workbench.watch.loop import Found, Judge, Loop, Monitor, OptimizerTrack
from sightline.workbench.watch.loss_graph import list_counted

_MAX_DEAD, _MIN_UNITS, _NUM_DEAD = 0.75, 8, 5


class UnitMonitor(Monitor):
    """Units of linear layers and convolutions that no sample gives a gradient, over several sampled updates."""

    def __init__(self) -> None:
        self._is_alive: dict[str, Tensor] = {}
        self._num_seen = 0
        self._counted: set[int] | None = None

    def before_backward(self, loop: Loop, root: Tensor) -> Iterator[Found]:
        if loop.is_sampled and root.grad_fn is not None:
            self._counted = list_counted(root.grad_fn)
        yield from ()

    def before_update(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found]:
        if not track.is_sampled(loop.every):
            return
        for name, module in loop.modules():
            if (
                isinstance(module, LAYERS)
                and isinstance(module.weight.grad, Tensor)
                and f"{name}.weight" in track.parameters
                and (self._counted is None or id(module.weight) in self._counted)
            ):
                gradient = module.weight.grad
                by_unit = gradient.transpose(0, 1) if isinstance(module, nn.modules.conv._ConvTransposeNd) else gradient
                alive = by_unit.flatten(1).any(dim=1)
                self._is_alive[name] = alive | self._is_alive[name] if name in self._is_alive else alive
        self._num_seen += 1
        if self._num_seen % _NUM_DEAD == 0:
            judged, self._is_alive = self._is_alive, {}
            for name, alive in judged.items():
                if len(alive) >= _MIN_UNITS:
                    yield from loop.reader.read(1 - alive.float().mean(), _make_judge(name, len(alive)))


def _make_judge(name: str, num_units: int) -> Judge:
    def judge(share: float) -> Iterator[Found]:
        if share > _MAX_DEAD:
            expected = f"at most {_MAX_DEAD:.0%} at {_NUM_DEAD} sampled updates"
            yield (
                find_rule("dead-units"),
                dataclasses.replace(make_dead_fault(name, share, num_units), expected=expected),
            )

    return judge
