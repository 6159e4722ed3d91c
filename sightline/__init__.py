"""Train perception models you can trust; `sightline.ops` and `sightline.metrics` hold what the package itself uses.

    import sightline

    model = sightline.build_model("pointnet", num_classes=40, in_channels=3)
    data = sightline.load_data("configs/classify/modelnet40_pointnet.yaml", "test")
    run = sightline.load_run("runs/modelnet40_pointnet/1")
    logits = run.model(points=run.transform({"points": points})["points"])["logits"]

Nothing is imported before its first use: `import sightline` alone does not even import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sightline.contract.errors import assert_workbench_installed

if TYPE_CHECKING:
    from sightline import ops
    from sightline.api import LoadedRun, build_model, compare, evaluate, export, load_data, load_run, score, train_run
    from sightline.doctor.watch.watch import watch
    from sightline.layers.surrogates import surrogate_gradient
    from sightline.parts import metrics
    from sightline.runs.run_folders import list_runs
    from sightline.workbench.check.check import check

__all__ = [
    "LoadedRun",
    "__version__",
    "build_model",
    "check",
    "compare",
    "evaluate",
    "export",
    "list_runs",
    "load_data",
    "load_run",
    "metrics",
    "ops",
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
_FACES = {"ops": "sightline.ops", "metrics": "sightline.parts.metrics"}
_NEEDS_TORCH_ALONE = ("ops", "surrogate_gradient")


def __getattr__(name: str) -> Any:
    """Import a public name on first access; Python calls this for names that are not imported yet."""
    if name not in _MODULE_BY_NAME and name not in _FACES:
        raise AttributeError(f"module 'sightline' has no attribute '{name}'")
    if name not in _NEEDS_TORCH_ALONE:
        assert_workbench_installed(f"sightline.{name}")
    return (
        importlib.import_module(_FACES[name])
        if name in _FACES
        else getattr(importlib.import_module(_MODULE_BY_NAME[name]), name)
    )


def __dir__() -> list[str]:
    return sorted(__all__)
