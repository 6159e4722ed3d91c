"""Rules of samples in a loss: each meets its own target, all are divided alike, padding does not count."""

from __future__ import annotations

from collections.abc import Iterator

from sightline.doctor.attempts import LeftOutError
from sightline.doctor.evidence.samples import MIN_Z, NUM_TAUGHT, Doubled, Ends, Padding, Pairing, Taught
from sightline.doctor.finding import Fault
from sightline.doctor.rules import rule

_MEMORISED, _LEARNT = 0.9, 0.8
"""Fall of a copy's loss beyond which it may know its few batches by heart, and says nothing of others; its loss on the
way, as a share of that with exchanged targets, below which it learnt (0.15 to 0.55; 0.94 to 1.12 for other labels)."""
_SURE_Z = 6.0
"""Spreads at which unseen samples of its own batches leave no doubt that a copy learnt what a target follows from."""


@rule(
    "loss-form",
    "error",
    "loss.form data.target_encoding",
    holds="each output meets the target of its own sample",
    do="take the axis of size 1 off (squeeze), or give the other operand that axis (unsqueeze)",
)
def all_against_all(pairing: Pairing, is_separable: bool) -> Iterator[Fault]:
    """Find a column broadcast against a row in a loss of single samples that ignores whose target is whose."""
    for each in pairing.exchanges if is_separable else ():
        size = max(abs(each.value), abs(each.other))
        if each.is_additive and abs(each.exchanged - each.value) <= 1e-5 * size < 1e-2 * abs(each.other - each.value):
            yield Fault(
                f"the loss does not change when the target{f' {each.path}' if each.path else ''} is exchanged between "
                "samples: a column meets a row",
                measured=f"{each.value:.6g}, and {each.exchanged:.6g} with each sample's given to the next; (B, 1) "
                f"and (B,) give (B, B) at {pairing.broadcasts} place(s)",
            )


@rule(
    "loss-form",
    "warning",
    "loss.form loss.normaliser",
    holds="how hard a sample counts does not depend on how well others are classified",
    do="compute the factor of each sample (reduction='none'), and then the mean",
)
def factor_of_the_mean(common_factor: float) -> Fault | None:
    """Find a loss of labels that is a function of its mean, such as a focal factor of the mean cross entropy."""
    if abs(common_factor - 1) < 0.02:
        return None
    return Fault(
        "the loss is a function of the mean over the batch: hard and easy samples get the same weight",
        measured=f"with other outputs beside them, all gradients of a sample change by one factor, {common_factor:.3g}",
    )


@rule(
    "loss-normaliser",
    "warning",
    "loss.normaliser",
    holds="all parts of a loss are means over the samples, or all are sums",
    do="divide each part by what it counts",
)
def two_normalisers(doubled: list[Doubled]) -> Fault | None:
    """Find outputs, or parts of one, whose gradients halve when each sample is there twice, beside some that stay."""
    total = sum(each.num for each in doubled)
    means, sums = (sum(getattr(each, name) * each.num for each in doubled) for name in ("halved", "kept"))
    if not total or means + sums < 0.98 * total or min(means, sums) < 0.01 * total:
        return None
    parts = ", ".join(f"{each.path or 'output'}: {each.halved:.0%} and {each.kept:.0%}" for each in doubled)
    return Fault(
        "one part of the loss is a mean over the samples, another a sum: their ratio changes with the size of a batch",
        measured=f"of the gradients these halve, and these stay, when each sample is there twice: {parts}",
    )


@rule(
    "padded-points",
    "warning",
    "data.padding loss.normaliser",
    holds="places that were filled up do not count in the loss",
    do="mask the padding (ignore_index, or a sum over real places divided by their number)",
)
def padding_counts(padding: list[Padding]) -> Iterator[Fault]:
    """Find padded ends of the inputs at which the loss has a gradient, as at the places before them."""
    for each in padding:
        if each.padded > 0.95 and each.real > 0.5:
            yield Fault(
                f"the loss counts the padding of the input {each.input_path}".rstrip(),
                measured=f"rows of lengths {min(each.lengths)} to {max(each.lengths)}; a gradient at {each.padded:.0%} "
                f"of the places after them, and {each.real:.0%} before",
            )


@rule(
    "other-samples",
    "warning",
    "data.pairing data.label_mapping data.ordering",
    holds="what a copy learns from some batches predicts targets of another better than those of other samples",
    do="look for a shuffle, sort or filter of inputs or targets alone, and for labels of another file",
    is_statistical=True,
)
def labels_of_others(taught: Taught) -> Fault | None:
    """Find a copy that tells whose targets are whose among samples of its own batches, and not in one kept back.

    Where it does so in neither, targets may be those of other samples everywhere, or too weak a signal: a note.
    """
    kept = taught.kept
    if kept.z >= MIN_Z or taught.fell < 0.1 or not taught.by_heart >= MIN_Z:
        return None
    if taught.control >= _SURE_Z:
        return Fault(
            "what a copy learns from some batches does not tell a sample's target from those of others in another one",
            measured=f"{_describe(taught)}; samples of its own batches that it has not seen have a z of "
            f"{taught.control:.1f}",
        )
    if taught.fell > _MEMORISED or taught.ease < _LEARNT:
        raise LeftOutError("a copy that few samples teach nothing")
    return Fault(
        "what a copy learns does not tell a sample's target from those of others",
        severity="note",
        measured=f"{_describe(taught)}; learnt from exchanged targets, its loss was {1 / taught.ease:.2f} times as "
        "high on the way",
    )


def _describe(taught: Taught) -> str:
    kept = taught.kept
    return (
        f"loss {kept.own:.4g} on a batch kept back, {kept.mean:.4g} ± {kept.spread:.2g} with targets exchanged (z "
        f"{kept.z:.1f}, and {kept.z + taught.by_heart:.1f} on the batches it learnt from), after {NUM_TAUGHT} steps "
        f"that lowered it by {taught.fell:.0%}"
    )


@rule(
    "end-not-learnt",
    "warning",
    "data.padding data.ignore_handling",
    holds="rows of a language model end in a token that is counted once",
    do="pad with a token of its own, or mask the labels by the lengths of the rows instead of by the token",
    is_statistical=True,
)
def end_is_not_learnt(ends: Ends) -> Fault | None:
    """Find the token that follows all counted labels and is never one, where rows end in different ones before it.

    Rows of items, as a user chose them, have no end: their embedding declares what fills them up.
    """
    if ends.counted or ends.is_declared or len(set(ends.last)) < 3:
        return None
    return Fault(
        f"token {ends.token} follows the last label of each padded row, and is never a label: no end is learnt",
        measured=f"{len(ends.last)} padded rows, whose last labels are {len(set(ends.last))} different tokens; "
        f"token {ends.token} is a label 0 times",
    )
