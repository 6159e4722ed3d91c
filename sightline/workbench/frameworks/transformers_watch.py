"""Callback of transformers that watches a training."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from sightline.workbench.frameworks.watching import Watching


class TransformersWatch(Watching, TrainerCallback):
    """Watch the training of a `transformers.Trainer`, as `sightline.watch` does around `trainer.train`.

        watching = sightline.TransformersWatch()
        transformers.Trainer(model, arguments, train_dataset=data, callbacks=[watching]).train()
        print(watching.report)

    `ema`, `every`, `declared` and `bisect` are those of `sightline.watch`; optimiser and scheduler are the trainer's.
    The report is logged when the training ends. `transformers` tells its callbacks of no exception: put
    `sightline.watch` around `train` for one.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        self.start(objects["model"], optimizer=objects.get("optimizer"), scheduler=objects.get("lr_scheduler"))

    def on_train_end(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        self.end()
