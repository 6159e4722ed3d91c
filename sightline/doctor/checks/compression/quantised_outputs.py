"""Outputs that quantisation leaves as they were, or makes the same for every input; evaluations that change a state."""

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


_EXPECTED = "other outputs than the float model has, which distinguish what it does, and a state that rests"


@check("G18", "quantised-outputs", "preflight", config_path="compress.policy", expected=_EXPECTED)
def quantised_outputs(context: Context) -> list[Finding]:
    """In evaluation the quantised model differs from the float one, distinguishes inputs as well, and stays the same.

    It must differ where the loss's gradients reach a weight that quantisation changed.
    """
    plain, num_samples = context.float_model, context.dry_run.num_samples
    if plain is None or not context.dry_run.is_sound:
        return []
    model = isolated_copy(context.built.job.model).eval()
    state, before = dense_state_dict(model), {name: value.clone() for name, value in model.state_dict().items()}
    floats, found = model_outputs(context, plain.eval()), model_outputs(context, model)
    weights = plain.state_dict()
    changed = [name for name in sorted(weights_with_gradient(context)) if not torch.equal(weights[name], state[name])]
    varying = [name for name, rows in floats.items() if rows.ndim and len(rows) == num_samples and not _is_flat(rows)]
    leaked = changed_tensors(before, model.state_dict())
    rows: list[tuple[object, str, tuple[str, ...], str, str]] = [
        (
            leaked,
            "evaluating the quantised model changes it",
            ("quant.state_leak", "eval.mode"),
            f"{len(leaked)} tensors after one batch: {'; '.join(leaked[:3])}",
            "look for a norm that stays in training mode, or a quantiser that clusters anew in forward",
        ),
        (
            changed and floats and not changed_tensors(floats, found),
            f"{len(changed)} weights are quantised, and the outputs are those of the float model",
            ("quant.no_effect", "ckpt.alias"),
            f"{', '.join(floats)}: equal bit by bit for {num_samples} samples",
            "look for a copy of the float weights, or of the model, that evaluation uses instead",
        ),
        (
            varying and all(name in found and _is_flat(found[name]) for name in varying),
            "the quantised model gives the same for every input",
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
    """The tensors of floats that a model predicts for the rehearsed batch."""
    job, device = context.built.job, context.world.device
    with torch.no_grad(), job.precision.autocast(device):
        given = dict(job.task.predict(model, context.dry_run.batch))
    return {name: tensor for name, tensor in array_leaves(given) if tensor.is_floating_point()}


def changed_tensors(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """What differs in bits between two states, tensor by tensor: begins with its name."""
    found = [f"{name} is {'missing' if name in before else 'new'}" for name in before.keys() ^ after.keys()]
    for name in before.keys() & after.keys():
        one, other = (tensor[name].detach().cpu().contiguous() for tensor in (before, after))
        if one.shape != other.shape or one.dtype != other.dtype:
            found.append(f"{name} was {one.dtype} {list(one.shape)} and is {other.dtype} {list(other.shape)}")
        elif not torch.equal(one.view(-1).view(torch.uint8), other.view(-1).view(torch.uint8)):
            found.append(f"{name} differs in {int((one != other).sum())} of {one.numel()} elements")
    return sorted(found)


def _is_flat(rows: Tensor) -> bool:
    """Whether all rows are the same; of NaN they are."""
    rows = rows.nan_to_num()
    return bool((rows == rows[:1]).all())
