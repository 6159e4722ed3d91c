"""Train perception models you can trust; `sightline.ops` and `sightline.metrics` hold what the package itself uses.

    import sightline

    model = sightline.build_model("pointnet", num_classes=40, in_channels=3)
    data = sightline.load_data("configs/classify/modelnet40_pointnet.yaml", "test")
    run = sightline.load_run("runs/modelnet40_pointnet/1")
    logits = run.model(points=run.transform({"points": points})["points"])["logits"]

One's own parts derive from `sightline.Model`, `sightline.Dataset`, `sightline.Loss` and so on, are annotated by
`sightline.Count` and the like, and are registered by `sightline.register.model("my_net")`.
Nothing is imported before its first use: `import sightline` alone does not even import torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sightline.contract.errors import assert_workbench_installed

if TYPE_CHECKING:
    from sightline import ops, register
    from sightline.api import LoadedRun, build_model, compare, evaluate, export, load_data, load_run, score, train_run
    from sightline.contract.arguments import (
        AssignerBlock,
        BackboneBlock,
        Count,
        DataBlock,
        FractionBelowOne,
        HeadBlock,
        ImageEncoder,
        Index,
        LengthUnit,
        NeckBlock,
        NonNegativeFloat,
        PointEncoder,
        PositiveFloat,
        PositiveFraction,
        Probability,
        ReferencePoint,
        Seed,
        SuppressionBlock,
        TransformBlock,
        UpAxis,
        Width,
    )
    from sightline.contract.dataset import Dataset
    from sightline.contract.draws import Draws
    from sightline.contract.errors import CheckpointError, ConfigError, DataError, PluginError, UserError
    from sightline.contract.loss import Loss
    from sightline.contract.metric import (
        MeanMetric,
        Meter,
        Metric,
        SampleShares,
        SampleSums,
        State,
        WorstSamples,
        append_rows,
    )
    from sightline.contract.model import Backbone, Encoder, Head, Model, Neck
    from sightline.contract.plugins import load_plugin
    from sightline.contract.task import Task
    from sightline.contract.transform import Transform
    from sightline.contract.types import Batch, Copies, DataInfo, Field, Sample, SampleKey
    from sightline.doctor.finding import Fault
    from sightline.doctor.rules import rule
    from sightline.doctor.watch.watch import watch
    from sightline.draw.pictures import Picture
    from sightline.engine.optimizers import OptimizerSpec
    from sightline.engine.run_loading import TrainedRun
    from sightline.engine.schedules import Schedule
    from sightline.layers.surrogates import surrogate_gradient
    from sightline.parts import metrics
    from sightline.parts.losses.contrast import PairLoss
    from sightline.parts.tasks.supervised import Supervised
    from sightline.runs.run_folders import list_runs
    from sightline.store.box_fields import BOX_FIELDS
    from sightline.store.files.array_files import npz_array
    from sightline.store.prepared.columns import ColumnSpec, SampleRow
    from sightline.store.prepared.prepared_data import PreparedData, SetSpec
    from sightline.store.prepared.prepared_set import PreparedSet
    from sightline.store.prepared.prepared_writer import PreparationPlan, Shard, normalize_to_unit_sphere
    from sightline.store.prepared.views import Views
    from sightline.workbench.check.check import check
    from sightline.workbench.compress.search.base import Search
    from sightline.workbench.predict.predictor import Inference, Predictor, ReadFile, Refusal, refuse_non_finite
    from sightline.workbench.probe.methods import Probe

__all__ = [
    "BOX_FIELDS",
    "AssignerBlock",
    "Backbone",
    "BackboneBlock",
    "Batch",
    "CheckpointError",
    "ColumnSpec",
    "ConfigError",
    "Copies",
    "Count",
    "DataBlock",
    "DataError",
    "DataInfo",
    "Dataset",
    "Draws",
    "Encoder",
    "Fault",
    "Field",
    "FractionBelowOne",
    "Head",
    "HeadBlock",
    "ImageEncoder",
    "Index",
    "Inference",
    "LengthUnit",
    "LoadedRun",
    "Loss",
    "MeanMetric",
    "Meter",
    "Metric",
    "Model",
    "Neck",
    "NeckBlock",
    "NonNegativeFloat",
    "OptimizerSpec",
    "PairLoss",
    "Picture",
    "PluginError",
    "PointEncoder",
    "PositiveFloat",
    "PositiveFraction",
    "Predictor",
    "PreparationPlan",
    "PreparedData",
    "PreparedSet",
    "Probability",
    "Probe",
    "ReadFile",
    "ReferencePoint",
    "Refusal",
    "Sample",
    "SampleKey",
    "SampleRow",
    "SampleShares",
    "SampleSums",
    "Schedule",
    "Search",
    "Seed",
    "SetSpec",
    "Shard",
    "State",
    "Supervised",
    "SuppressionBlock",
    "Task",
    "TrainedRun",
    "Transform",
    "TransformBlock",
    "UpAxis",
    "UserError",
    "Views",
    "Width",
    "WorstSamples",
    "__version__",
    "append_rows",
    "build_model",
    "check",
    "compare",
    "evaluate",
    "export",
    "list_runs",
    "load_data",
    "load_plugin",
    "load_run",
    "metrics",
    "normalize_to_unit_sphere",
    "npz_array",
    "ops",
    "refuse_non_finite",
    "register",
    "rule",
    "score",
    "surrogate_gradient",
    "train_run",
    "watch",
]

__version__ = "0.1.0"

_API = ("LoadedRun", "build_model", "compare", "evaluate", "export", "load_data", "load_run", "score", "train_run")
_MODULE_BY_NAME = {name: "sightline.api" for name in _API}
_MODULE_BY_NAME |= {"check": "sightline.workbench.check.check", "watch": "sightline.doctor.watch.watch"}
_MODULE_BY_NAME["list_runs"] = "sightline.runs.run_folders"
_MODULE_BY_NAME["surrogate_gradient"] = "sightline.layers.surrogates"
_MODULE_BY_NAME |= {"Fault": "sightline.doctor.finding", "rule": "sightline.doctor.rules"}
_MODULE_BY_NAME["Picture"] = "sightline.draw.pictures"
_FACES = {"ops": "sightline.ops", "metrics": "sightline.parts.metrics", "register": "sightline.register"}
_NEEDS_TORCH_ALONE = ("Fault", "check", "ops", "surrogate_gradient", "watch")
"""With modules of the user's own; `check` of a config needs the workbench."""


def __getattr__(name: str) -> Any:
    """Import a public name on first access; Python calls this for names that are not imported yet.

    Those for one's own parts are what rooms of the package state as `public` (`contract/catalogue.py`).
    """
    modules = _FACES | _MODULE_BY_NAME
    module = modules.get(name) if name in modules or name.startswith("__") else _find_part_modules().get(name)
    if module is None:
        raise AttributeError(f"module 'sightline' has no attribute '{name}'")
    if name not in _NEEDS_TORCH_ALONE:
        assert_workbench_installed(f"sightline.{name}")
    imported = importlib.import_module(module)
    return imported if name in _FACES else getattr(imported, name)


def _find_part_modules() -> Mapping[str, str]:
    from sightline.contract.catalogue import find_modules

    return find_modules("public")


def __dir__() -> list[str]:
    return sorted({*__all__, *_find_part_modules()})
