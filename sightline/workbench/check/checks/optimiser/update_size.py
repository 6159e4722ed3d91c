"""Size of the first update against the weights: rates far too large or too small, clipping, and weight decay."""

from __future__ import annotations

import copy
import functools
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sightline.engine.step import weighted_sum
from sightline.workbench.check.checks.optimiser.zero_learning_rate import compute_rates
from sightline.workbench.check.context import Context, check, first_steps
from sightline.workbench.check.core.dry_run import DryRun
from sightline.workbench.check.core.finding import Fault, diagnose

_diagnose = functools.partial(diagnose, __file__)
_MAX_MATRICES, _MAX_NUMBERS = 8, 2**18
_MAX_RATIO = 10.0
"""Size of one update, as a share of that of the weights: some 0.01, or 1 for weights that start at 0.001."""
_MIN_MOVE, _NUM_STEPS = 1e-4, 1000
"""Size of all updates together, if they added up, at the least over a thousand steps; some 0.01 in fine-tuning."""
_MIN_DEPENDENCE, _MAX_PENALTY = 0.2, 10.0
"""Share of an update that changes its sign with the gradients, 1 without weight decay, and penalty by the loss."""

Change = Callable[[Tensor], Tensor]


@check("update-size", "preflight", each=first_steps, severity="warning", config_path="optimizer.lr")
def update_size(context: Context, step: DryRun) -> Iterator[Fault]:
    """An update moves the weights by less than their size, a thousand by a ten-thousandth; gradients decide where to.

    Finds: Learning rates, gradient clipping and weight decay that are some powers of ten too large or too small.

    A copy of the optimiser updates up to eight weight matrices, with the gradients of the first step.
    """
    steps, rates = compute_rates(context)
    if not len(rates) or not np.isfinite(rates).all() or not rates.max() > 0:
        return  # `zero-learning-rate` reports it
    update = _Update(context, step, int(steps[rates.argmax()]))
    if not update.weights:
        return
    ratio = update.compute_ratio(lambda g: g)
    rate = float(rates.max())
    if ratio > _MAX_RATIO:
        step_index, lower = int(steps[rates.argmax()]), _suggest(rate, 0.01 / ratio)
        yield _diagnose("too large", step=step_index, value=ratio, bound=_MAX_RATIO, rate=rate, lower=lower)
        return
    yield from _small_faults(update, ratio * update.count_steps(rates), rate)
    yield from _decay_faults(update, _compute_loss(context, step))


def _compute_loss(context: Context, step: DryRun) -> float:
    means = {name: term.detach() / step.counts[name].clamp(min=1) for name, term in step.terms.items()}
    return abs(float(weighted_sum(means, context.built.job.loss_weights_at(0))))


def _decay_faults(update: _Update, loss: float) -> Iterator[Fault]:
    """Yield a fault for a decay in the gradients that outweighs them: no weights are worth their penalty."""
    decay = max((float(group.get("weight_decay") or 0.0) for group in update.groups), default=0.0)
    penalty = decay / 2 * update.size**2
    if decay == 0 or penalty < _MAX_PENALTY * loss:
        return
    dependence = update.compute_dependence()
    if dependence < _MIN_DEPENDENCE:
        words = {"decay": decay, "penalty": penalty, "loss": loss, "limit": _MAX_PENALTY}
        yield _diagnose("decay", value=dependence, bound=_MIN_DEPENDENCE, **words)


def _small_faults(update: _Update, move: float, rate: float) -> Iterator[Fault]:
    """Yield a fault for updates that cannot train the weights; clipping is its cause if it is none without."""
    if move >= _MIN_MOVE:
        return
    clip = update.clip_norm
    free = update.compute_ratio(lambda g: g, clips=False) * move / max(update.compute_ratio(lambda g: g), 1e-300)
    diagnosis = "clipped" if clip is not None and free >= _MIN_MOVE else "too small"
    words = {"rate": rate, "norm": update.norm, "clip": clip, "num_steps": update.num_steps}
    yield _diagnose(diagnosis, value=move, bound=_MIN_MOVE, **words)


def _suggest(rate: float, factor: float) -> str:
    return f"{10.0 ** np.floor(np.log10(rate * factor)):.0e}"


class _Update:
    """Update of a few weight matrices by a copy of the optimiser, with real gradients or changed ones."""

    def __init__(self, context: Context, step: DryRun, at_step: int) -> None:
        job = context.built.job
        self.optimizer, self.clip_norm = job.optimizer, job.clip_norm
        self.num_steps = max(job.num_steps, _NUM_STEPS)
        self.factor = float(job.schedule(at_step))
        gradients = {name: p.grad for name, p in step.model.named_parameters() if p.grad is not None}
        named = {name: p for name, p in job.model.named_parameters() if p.ndim > 1 and p.numel() <= _MAX_NUMBERS}
        used = {id(p) for group in job.optimizer.param_groups for p in group["params"]}
        names = [
            n for n, p in named.items() if id(p) in used and n in gradients and _is_any(p) and _is_any(gradients[n])
        ]
        chosen = names[:: max(1, -(-len(names) // _MAX_MATRICES))]
        self.weights = {id(named[name]): (named[name].detach(), gradients[name]) for name in chosen}
        norms = torch._foreach_norm(list(gradients.values())) if self.weights else ()
        self.size = float(torch.stack([w.double().norm() for w, _ in self.weights.values()]).norm()) if chosen else 0.0
        self.norm = float(torch.stack([norm.double() for norm in norms]).norm()) if self.weights else 0.0

    @property
    def groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def count_steps(self, rates: np.ndarray) -> float:
        """Count the steps of the training, or a thousand, in updates at the highest rate with full momentum."""
        momentum = max((float(group.get("momentum") or 0.0) for group in self.groups), default=0.0)
        return self.num_steps * float(rates.mean() / rates.max()) / max(1e-3, 1 - momentum)

    def compute_ratio(self, change: Change, *, clips: bool = True) -> float:
        """Compute the size of the update as a share of that of the weights."""
        moves = self._run(change, clips=clips)
        return float(torch.stack([move.norm() for move in moves]).norm()) / self.size

    def compute_dependence(self) -> float:
        """Compute the median share of a matrix's update that changes its sign with the gradients: by the cosine."""
        pairs = zip(self._run(lambda g: g), self._run(torch.neg), strict=True)
        cosines = [(one * other).sum() / (one.norm() * other.norm()).clamp(min=1e-300) for one, other in pairs]
        return float((1 - torch.stack(cosines).median()) / 2)

    def _run(self, change: Change, *, clips: bool = True) -> list[Tensor]:
        """Update copies of the matrices, and return their changes."""
        scale = 1.0
        if clips and self.clip_norm is not None and self.norm > self.clip_norm:
            scale = self.clip_norm / self.norm
        optimizer, copies = copy.copy(self.optimizer), {}
        groups, state = [], defaultdict[Any, Any](dict)
        states = {id(p): made for p, made in self.optimizer.state.items() if not made.get("step", 1)}  # of Adagrad
        for group in self.groups:
            for key in (id(p) for p in group["params"] if id(p) in self.weights):
                weight, gradient = self.weights[key]
                copies[key] = nn.Parameter(weight.clone())
                copies[key].grad = change(gradient) * scale
                if made := states.get(key):
                    state[copies[key]] = copy.deepcopy(made)
            own = [copies[id(p)] for p in group["params"] if id(p) in self.weights]
            if own:
                groups.append({**group, "params": own, "lr": group.get("base_lr", group["lr"]) * self.factor})
        optimizer.param_groups, optimizer.state = groups, state
        type(optimizer).step(optimizer)
        return [(copies[key].detach() - weight).double() for key, (weight, _) in self.weights.items()]


def _is_any(value: Tensor) -> bool:
    return bool(value.any())
