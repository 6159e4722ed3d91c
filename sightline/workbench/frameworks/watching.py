"""Start and end of a watch that a framework's callback asks for."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import nn

from sightline.doctor.report import Report
from sightline.doctor.watch.watch import EVERY, Watch, watch

logger = logging.getLogger(__name__)


class Watching:
    """Half of a callback: it keeps arguments of `sightline.watch`, and logs the `report` of the last training."""

    report: Report | None = None

    def __init__(
        self,
        *,
        ema: nn.Module | Sequence[nn.Module] | None = None,
        every: int = EVERY,
        declared: Sequence[str] = (),
        bisect: bool = False,
    ) -> None:
        self._arguments: dict[str, Any] = {"ema": ema, "every": every, "declared": declared, "bisect": bisect}
        self._watch: Watch | None = None

    def start(self, model: nn.Module, **of_the_trainer: Any) -> None:
        """Watch a model from here on."""
        self.end()
        self._watch = watch(model, **of_the_trainer, **self._arguments)
        self._watch.__enter__()

    def end(self, error: BaseException | None = None) -> None:
        """End the watch and keep its report; without one nothing happens."""
        if self._watch is not None:
            self._watch.__exit__(None if error is None else type(error), error, error and error.__traceback__)
            self.report, self._watch = self._watch.report, None
            logger.info("%s", self.report)
