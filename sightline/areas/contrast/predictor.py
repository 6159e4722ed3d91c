"""Predictor of the task `contrast`: the feature of each cloud, by the run's encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from sightline.contract import registry
from sightline.contract.binding import AvailableKeys, bind
from sightline.contract.errors import ConfigError
from sightline.contract.model import Encoder
from sightline.contract.types import Batch
from sightline.engine.run_loading import TrainedRun
from sightline.store.files.atomic_write import open_atomic
from sightline.store.loading.transform_pipeline import NamedTransform
from sightline.workbench.predict.classify import CloudPredictor
from sightline.workbench.predict.predictor import Inference, ReadFile, Refusal, refuse_non_finite, report_write_errors


@dataclass(frozen=True)
class Encoding:
    """Feature (D,) float32 of one file, and what was done to its points."""

    file: Path
    encoding: np.ndarray
    treatment: str


class EncodingTask:
    """Task that computes the features of clouds alone: `encoding` (B, D)."""

    def __init__(self, model: nn.Module, keys: frozenset[str]) -> None:
        if not isinstance(model, Encoder):
            raise ConfigError(
                f"{type(model).__name__}: is no sightline.Encoder; predict needs the feature of each cloud"
            )
        self._encode = bind(
            model.encode, AvailableKeys("a cloud from a file", keys), owner=f"{type(model).__name__}.encode"
        )

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Compute the features of a batch."""
        return {"encoding": self._encode.function(**self._encode.select(batch))}


@registry.predictors.add("contrast")
class EncodingPredictor(CloudPredictor[Encoding]):
    """Predictor of an `Encoding` per cloud: the feature of the encoder that probes and fine-tuning use.

    Clouds are read as the run's data were prepared; its augmentation is not applied, except a normalisation to the unit
    sphere. `write` stores the feature as .npy. Source: made here.
    """

    endings = (".encoding.npy",)
    columns = ("file", "width", "norm", "treatment")

    def __init__(self, *, run: TrainedRun, columns: Sequence[str] | None = None, to_sphere: bool = False) -> None:
        super().__init__(run, columns=columns, to_sphere=to_sphere)
        self._spheres = [block for block in _list_evaluation_transforms(run) if block.name == "normalize_unit_sphere"]
        self.any_scale = self.any_scale or bool(self._spheres)

    def transforms(self) -> Sequence[NamedTransform]:
        """Return the normalisation of the two views, if there is one."""
        return [NamedTransform(block.name, registry.transforms.build(block, facts={})) for block in self._spheres[:1]]

    def make_task(self) -> EncodingTask:
        """Make the task that encodes clouds."""
        more = ("features",) if self.info.features else ()
        return EncodingTask(self.run.model, frozenset((*self.fields, *more)))

    def predict(self, files: Sequence[ReadFile], inference: Inference) -> list[Encoding | Refusal]:
        """Make the encoding of each file."""
        rows = inference.predictions["encoding"].float().cpu().numpy()
        return [
            Encoding(file.path, row, file.source.treatment) if np.isfinite(row).all() else refuse_non_finite(file.path)
            for file, row in zip(files, rows, strict=True)
        ]

    def document(self, prediction: Encoding) -> dict[str, Any]:
        """Return the file, the feature, its width and its norm."""
        return {
            "file": str(prediction.file),
            "width": len(prediction.encoding),
            "norm": float(np.linalg.norm(prediction.encoding.astype(np.float64))),
            "encoding": prediction.encoding.tolist(),
            "treatment": prediction.treatment,
        }

    def write(self, prediction: Encoding, name: Path) -> dict[str, Path]:
        """Write the feature."""
        path = name.with_name(name.name + self.endings[0])
        with report_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with report_write_errors(path), open_atomic(path) as file:
            np.save(file, prediction.encoding)
        return {"encoding": path}


def _list_evaluation_transforms(run: TrainedRun) -> list[Any]:
    """List the transforms of evaluation, those of the two views among them."""
    blocks: list[Any] = []
    for block in run.config.transforms.evaluate:
        blocks += [block, *block.arguments.get("transforms", ())]
    return blocks
