"""Training steps of bare modules for tests: what a job says of one, without data, optimiser or config."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from sightline.contract.task import Task
from sightline.engine.learnt_losses import LearntLosses
from sightline.workbench.compare.layerwise import LayerComparison, compare_layerwise
from sightline.workbench.compare.variants import ModelVariant, make_variant, record_step

__all__ = ["CPU", "LossesAlone", "compared", "guilty", "step_of", "variant"]

CPU = torch.device("cpu")


class LossesAlone(Task):
    """Base of tasks whose steps are taken, and which predict nothing."""

    def predict(self, model: Any, batch: Any) -> Any:
        raise NotImplementedError

    def losses_and_predictions(self, model: Any, batch: Any, context: Any) -> Any:
        raise NotImplementedError


class _Weighted(LossesAlone):
    """A loss that weighs every output by numbers of its own, so that all of them count and none alike."""

    def prepare(self, model: Any, micro_batches: Any, world: Any) -> Any:
        return {"weighted": torch.tensor(1.0)}, [None]

    def losses(self, model: Any, batch: dict[str, Tensor], around: Any) -> dict[str, Tensor]:
        made = model(**batch)
        outputs = made if isinstance(made, dict) else {"": made}
        total: Any = 0.0
        for name in sorted(outputs):
            weights = torch.linspace(-1.0, 2.0, outputs[name].numel(), dtype=torch.float64).reshape(outputs[name].shape)
            total = total + (outputs[name] * weights.to(outputs[name].dtype)).sum()
        return {"weighted": total}


def step_of(task: Any = None) -> Any:
    """The job of a step without a config, of a task whose only loss is `weighted`."""
    task, losses, weights = task or _Weighted(), LearntLosses(), {"weighted": 1.0}
    return SimpleNamespace(
        task=task, losses=losses, device=CPU, frozen=(), epoch=0, step=0, loss_weights_at=lambda step: weights
    )


def variant(model: nn.Module, precision: str = "float32") -> ModelVariant:
    """A copy of a model in a precision."""
    return make_variant(model, precision, CPU)


def compared(
    model: nn.Module, reference: nn.Module, batch: dict[str, Tensor], *, precision: str = "float32", tasks: Any = ()
) -> list[LayerComparison]:
    """The rows of a model in a precision beside a reference that has the same modules; both may have a task."""
    own, second = variant(model, precision), variant(reference, "float64")
    first_job, second_job = map(step_of, tasks or (None, None))
    recording = record_step(first_job, own, own.batch(batch))
    return compare_layerwise(recording, second, second_job, second.batch(own.batch(batch)))


def guilty(rows: list[LayerComparison]) -> list[tuple[str, str]]:
    """Layer and pass of every row that is guilty, in order."""
    return [(row.layer, row.which) for row in rows if row.is_guilty]
