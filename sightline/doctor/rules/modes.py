"""Rules of training flags: of a model that trains or is evaluated, and of its batch norms."""

from __future__ import annotations

from collections.abc import Iterator

from sightline.doctor.evidence.live.modes import Evaluated, Norms, Trained
from sightline.doctor.finding import Fault, FindingLocation
from sightline.doctor.rules import rule

NUM_EVALUATED = 3
"""Passes in a row that are an evaluation; the same inputs as often are draws of dropout that are averaged."""
_NUM_MOVED = 8
_HOLDS = "train() while training and eval() while evaluating"
_DO = "call model.train() at the start of each epoch, and model.eval() before evaluating"


@rule("mode", "warning", "eval.mode model.norm_mode", holds="eval() while evaluating", do=_DO)
def evaluated_in_training_mode(evaluated: Evaluated) -> Fault | None:
    """Count the passes in training mode without gradients that nothing shows to be meant."""
    if evaluated.is_intended or evaluated.number < NUM_EVALUATED:
        return None
    return Fault(
        "the model is evaluated in training mode: dropouts draw, batch norms use the batch",
        measured=f"{evaluated.number} forward passes in a row without gradients, with training=True",
        where=FindingLocation(layer=evaluated.layer, step=evaluated.step),
        evidence={"mode": "training"},
    )


@rule("mode", "warning", "model.norm_mode eval.mode", holds="train() while training", do=_DO)
def trained_in_evaluation_mode(trained: Trained) -> Fault:
    """Report an update in evaluation mode: an error after others in training mode, as nobody has gone back to it."""
    since, before = (", since an evaluation", ", True in those before") if trained.has_trained else ("", "")
    return Fault(
        f"the model trains in evaluation mode{since}",
        measured=f"training=False in the forward pass of an update{before}",
        severity="error" if trained.has_trained else None,
        where=FindingLocation(layer=trained.layer),
        evidence={"mode": "evaluation"},
    )


@rule("mode", "warning", "model.norm_mode", holds=_HOLDS, do="freeze all of a batch norm, its mode too, or none of it")
def modes_of_norms(norms: Norms) -> Iterator[Fault]:
    """Look for batch norms that learn weights and no statistics, and for frozen ones that go on learning statistics."""
    if norms.held:
        yield Fault(
            f"{len(norms.held)} batch norm(s) in evaluation mode while the model trains, '{norms.held[0]}' first",
            measured="training=False, and requires_grad=True of their weights",
            action="call train() on them, or freeze their weights too if that is intended",
            where=FindingLocation(layer=norms.held[0]),
            evidence={"mode": "norm"},
        )
    if moved := [name for name, number in norms.moved.items() if number >= _NUM_MOVED]:
        yield Fault(
            f"{len(moved)} frozen batch norm(s) go on averaging statistics, '{moved[0]}' first",
            measured="weights that never changed, and running statistics that did",
            causes=("model.norm_mode", "model.frozen_unintended"),
            action="call eval() on frozen parts after each train(), or let their weights train",
            where=FindingLocation(layer=moved[0]),
            evidence={"mode": "statistics"},
        )
