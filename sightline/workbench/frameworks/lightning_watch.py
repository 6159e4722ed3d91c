"""Callback of Lightning that watches a training."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback

from sightline.workbench.frameworks.watching import Watching


class LightningWatch(Watching, Callback):
    """Watch the training of a `lightning.Trainer`, as `sightline.watch` does around `trainer.fit`.

        watching = sightline.LightningWatch()
        lightning.Trainer(callbacks=[watching]).fit(module, loader)
        print(watching.report)

    `ema`, `every`, `declared` and `bisect` are those of `sightline.watch`; optimisers and schedulers are the trainer's.
    The report is logged when the training ends, also by an exception.
    """

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        self.start(pl_module, optimizer=trainer.optimizers, scheduler=schedulers)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        self.end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.end(exception)
