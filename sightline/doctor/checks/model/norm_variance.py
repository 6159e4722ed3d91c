"""Batch norms whose inputs vary so little that epsilon keeps the outputs below a variance of 1."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sightline.doctor.context import Context, check
from sightline.doctor.core.dry_run import isolated_copy
from sightline.doctor.core.finding import Finding
from sightline.doctor.oracles.nests import float64, tree_map
from sightline.engine.step import compute_batch_losses

__all__ = ["input_variances", "norm_variance"]

_MIN_RATIO = 10.0
_COLUMNS = ("batch norm", "input variance", "epsilon", "comes out with std")


@check(
    "G20",
    "norm-variance",
    "deep",
    severity="note",
    causes=("model.init", "data.normalisation", "model.norm_mode"),
    config_path="model",
)
def norm_variance(context: Context) -> list[Finding]:
    """The input variance v of each batch norm is at least ten times epsilon; the output variance is v / (v + eps).

    Finds: Batch norms whose inputs vary so little that epsilon keeps the outputs below a variance of 1.
    """
    if not context.dry_run.is_sound:
        return []
    modules: dict[str, Any] = dict(context.built.job.model.named_modules())
    variances = {name: float(v.median()) for name, v in input_variances(context).items()}
    small = {name: v for name, v in variances.items() if v < _MIN_RATIO * modules[name].eps}
    if not small:
        return []
    rows = [
        [n, f"{v:.2e}", f"{modules[n].eps:g}", f"{(v / (v + modules[n].eps)) ** 0.5:.2f}"] for n, v in small.items()
    ]
    smallest = min(small, key=lambda name: small[name])
    return [
        norm_variance.finding(
            context,
            f"{len(small)} of {len(variances)} batch norms have inputs that vary less than ten times epsilon",
            layer=smallest,
            measured=f"variance {small[smallest]:.2e} in {smallest}, the median channel's",
            expected=f"over {_MIN_RATIO:g} epsilon = {_MIN_RATIO * modules[smallest].eps:g}",
            action="larger initial weights before it, or a smaller epsilon, unless the recipe intends it",
            evidence={"table": {"title": "batch norms of small inputs", "columns": list(_COLUMNS), "rows": rows}},
        )
    ]


def input_variances(context: Context) -> dict[str, Tensor]:
    """Measure the unbiased input variance (C,) of each batch norm in the first step, by module name.

    It is read from the running averages after one float64 pass, so that norms inside fused kernels are included.
    """
    job = context.built.job
    model = isolated_copy(job.model).double().train()
    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None
    }
    for norm in norms.values():
        norm.reset_running_stats()
        norm.momentum = None  # the average over one batch equals its statistics
    batch = tree_map(context.dry_run.batch, float64)
    compute_batch_losses(job.task, model, batch, context.world.device)
    return {name: norm.running_var.clone() for name, norm in norms.items() if int(norm.num_batches_tracked) > 0}  # type: ignore[union-attr, arg-type]
