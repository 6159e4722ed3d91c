"""Outputs that quantisation does not change, or makes equal for every input; evaluations that change the model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sightline.data.loading.sample_arrays import array_leaves
from sightline.doctor.checks.compression.codebooks import weights_with_gradient
from sightline.doctor.context import Context, check
from sightline.doctor.core.dry_run import isolated_copy
from sightline.doctor.core.finding import Finding
from sightline.layers.quantisation.parametrised import dense_state_dict

__all__ = ["changed_tensors", "model_outputs", "quantised_outputs"]


_EXPECTED = "outputs that differ from the float model's and distinguish the same inputs, and an unchanged state"


@check("G18", "quantised-outputs", "preflight", config_path="compress.policy", expected=_EXPECTED)
def quantised_outputs(context: Context) -> list[Finding]:
    """In evaluation, the quantised model differs from the float model, distinguishes inputs, and keeps its state.

    Finds: Outputs that quantisation does not change, or makes equal for every input; evaluations that change the model.

    The outputs must differ if a weight that quantisation changed has a gradient.
    """
    float_model, num_samples = context.float_model, context.dry_run.num_samples
    if float_model is None or not context.dry_run.is_sound:
        return []
    model = isolated_copy(context.built.job.model).eval()
    state, initial_state = dense_state_dict(model), {name: value.clone() for name, value in model.state_dict().items()}
    floats, outputs = model_outputs(context, float_model.eval()), model_outputs(context, model)
    weights = float_model.state_dict()
    changed = [name for name in sorted(weights_with_gradient(context)) if not torch.equal(weights[name], state[name])]
    varying = [name for name, rows in floats.items() if rows.ndim and len(rows) == num_samples and not _is_flat(rows)]
    leaked = changed_tensors(initial_state, model.state_dict())
    rows: list[tuple[object, str, tuple[str, ...], str, str]] = [
        (
            leaked,
            "evaluating the quantised model changes it",
            ("quant.state_leak", "eval.mode"),
            f"{len(leaked)} tensors after one batch: {'; '.join(leaked[:3])}",
            "look for a norm that stays in training mode, or a quantiser that clusters again in forward",
        ),
        (
            changed and floats and not changed_tensors(floats, outputs),
            f"{len(changed)} weights are quantised, and the outputs are those of the float model",
            ("quant.no_effect", "ckpt.alias"),
            f"{', '.join(floats)}: equal bit by bit for {num_samples} samples",
            "look for a copy of the float weights, or of the model, that evaluation uses instead",
        ),
        (
            varying and all(name in outputs and _is_flat(outputs[name]) for name in varying),
            "the quantised model returns the same for every input",
            ("model.constant_output", "quant.empty_cluster", "quant.policy"),
            f"{', '.join(varying)}: one value for {num_samples} samples that the float model distinguishes",
            "look for codebooks of one centre or of NaN; give the layers before the outputs more bits",
        ),
    ]
    return [
        quantised_outputs.finding(context, summary, causes=causes, measured=measured, action=action)
        for is_found, summary, causes, measured, action in rows
        if is_found
    ]


def model_outputs(context: Context, model: nn.Module) -> dict[str, Tensor]:
    """Return the floating-point tensors that a model predicts for the batch of the dry run, by path."""
    job, device = context.built.job, context.world.device
    with torch.no_grad(), job.precision.autocast(device):
        predictions = dict(job.task.predict(model, context.dry_run.batch))
    return {name: tensor for name, tensor in array_leaves(predictions) if tensor.is_floating_point()}


def changed_tensors(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """Describe each tensor that is not bit-identical in two states; every line begins with its name."""
    changes = [f"{name} is {'missing' if name in before else 'new'}" for name in before.keys() ^ after.keys()]
    for name in before.keys() & after.keys():
        old, new = (tensor[name].detach().cpu().contiguous() for tensor in (before, after))
        if old.shape != new.shape or old.dtype != new.dtype:
            changes.append(f"{name} was {old.dtype} {list(old.shape)} and is {new.dtype} {list(new.shape)}")
        elif not torch.equal(old.view(-1).view(torch.uint8), new.view(-1).view(torch.uint8)):
            changes.append(f"{name} differs in {int((old != new).sum())} of {old.numel()} elements")
    return sorted(changes)


def _is_flat(rows: Tensor) -> bool:
    """Return True if all rows are equal, with NaN taken as 0."""
    rows = rows.nan_to_num()
    return bool((rows == rows[:1]).all())
