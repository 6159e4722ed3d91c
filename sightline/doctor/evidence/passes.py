"""First pass of a batch, and what changes if nothing does: the same inputs twice, in both modes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sightline.contract.pytree import dense_leaves
from sightline.doctor.attempts import MissingError, attempt
from sightline.doctor.evidence import measure
from sightline.doctor.subject import Pass, RefusedError, Subject
from sightline.instrument import InterceptedOperators
from sightline.instrument.random_state import seed_all


@measure()
def passed(subject: Subject) -> Pass:
    """Run the first batch through a copy in training mode; its graph is kept."""
    try:
        return subject.run(subject.copy("train"), subject.batches[0])
    except RefusedError as refused:
        raise refused.__cause__ or refused from None  # the user's own error, of the user's own batch


@measure()
def first_failure(subject: Subject) -> str:
    """Run the first batch once more; return the error that ends the pass, or ""."""
    failed = attempt("the first batch", passed, {"subject": subject})
    if isinstance(failed, MissingError) and failed.is_unasked:
        raise failed
    return str(failed) if isinstance(failed, MissingError) else ""


class Slope(NamedTuple):
    """Output (detached) and the gradient of the loss at it, of one shape, by the output's path."""

    path: str
    output: Tensor
    gradient: Tensor


class Repeat(NamedTuple):
    """Outputs of the same inputs in one mode: twice with equal random numbers, and once with others.

    `changed` names the parameters and buffers that the passes have changed.
    """

    mode: str
    first: dict[str, Tensor]
    again: dict[str, Tensor]
    reseeded: dict[str, Tensor]
    changed: list[str]


@measure(passes=3)
def repeats(subject: Subject) -> dict[str, Repeat]:
    """Run the first batch twice with one seed and once with another, in training and in evaluation mode."""
    return {mode: _repeat(subject, mode) for mode in ("train", "eval")}


@measure(passes=1)
def drops_in_evaluation(subject: Subject) -> bool:
    """Run the first batch in evaluation mode; True if an operator drops values, which training alone is for."""
    names: list[str] = []

    def run(operator: Any, args: Any, kwargs: Any) -> Any:
        names.append(str(operator))
        return operator(*args, **kwargs)

    model = subject.copy("eval")
    with torch.no_grad(), InterceptedOperators(run):
        subject.call(model, subject.batches[0].inputs)
    return any("bernoulli" in name or "dropout" in name for name in names)


def _repeat(subject: Subject, mode: str) -> Repeat:
    outputs, inputs = [], subject.batches[0].inputs
    changed: set[str] = set()
    for seed in (0, 0, 1):
        model = subject.copy(mode)
        before = {name: tensor.clone() for name, tensor in dense_leaves(model.state_dict())}
        seed_all(seed)
        with torch.no_grad():
            outputs.append({path: t.clone() for path, t in dense_leaves(subject.call(model, inputs))})
        after = dict(dense_leaves(model.state_dict()))
        changed |= {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    return Repeat(mode, outputs[0], outputs[1], outputs[2], sorted(changed))
