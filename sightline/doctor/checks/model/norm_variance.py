"""Batch norms whose inputs vary less than their epsilon, so that they do not bring them to size 1."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sightline.doctor.context import Context, check
from sightline.doctor.core.dry_run import isolated_copy
from sightline.doctor.core.finding import Finding
from sightline.doctor.oracles.nests import float64, tree_map
from sightline.engine.step import compute_batch_losses

__all__ = ["input_variances", "norm_variance"]

_ENOUGH = 10.0
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
    """Variance v comes out as v / (v + eps): below ten times epsilon that is visibly less than 1."""
    if not context.dry_run.is_sound:
        return []
    modules: dict[str, Any] = dict(context.built.job.model.named_modules())
    found = {name: float(v.median()) for name, v in input_variances(context).items()}
    small = {name: v for name, v in found.items() if v < _ENOUGH * modules[name].eps}
    if not small:
        return []
    rows = [
        [n, f"{v:.2e}", f"{modules[n].eps:g}", f"{(v / (v + modules[n].eps)) ** 0.5:.2f}"] for n, v in small.items()
    ]
    least = min(small, key=lambda name: small[name])
    return [
        norm_variance.finding(
            context,
            f"{len(small)} of {len(found)} batch norms have inputs that vary less than ten times epsilon",
            layer=least,
            measured=f"variance {small[least]:.2e} in {least}, the median channel's",
            expected=f"over {_ENOUGH:g} epsilon = {_ENOUGH * modules[least].eps:g}",
            action="larger initial weights before it, or a smaller epsilon, unless the recipe wants it so",
            evidence={"table": {"title": "batch norms of small inputs", "columns": list(_COLUMNS), "rows": rows}},
        )
    ]


def input_variances(context: Context) -> dict[str, Tensor]:
    """The unbiased variance of each channel that each batch norm is given in the first step.

    Read off running averages after one pass in float64, so that norms are seen that faster kernels never call.
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
        norm.momentum = None  # the average of one batch is that batch's
    batch = tree_map(context.dry_run.batch, float64)
    compute_batch_losses(job.task, model, batch, context.world.device)
    return {name: norm.running_var.clone() for name, norm in norms.items() if int(norm.num_batches_tracked) > 0}  # type: ignore[union-attr, arg-type]
