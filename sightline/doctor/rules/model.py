"""Rules of a model's passes: what repeats, what depends on what, what is trained."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sightline.doctor.evidence.passes import Repeat
from sightline.doctor.finding import Fault
from sightline.doctor.rules import rule


@rule(
    "random-evaluation",
    "error",
    "eval.mode sys.nondeterminism",
    holds="outputs in evaluation mode do not depend on the seed of the random numbers",
    do="give F.dropout its training=self.training, and draw nothing in forward() in evaluation mode",
)
def random_evaluation(repeats: dict[str, Repeat]) -> Iterator[Fault]:
    """Compare two passes in evaluation mode with one seed each; noise that training needs is none of evaluation's."""
    repeat = repeats["eval"]
    for path, first in repeat.first.items():
        other = repeat.reseeded.get(path)
        if other is None or other.shape != first.shape or torch.equal(first, other):
            continue
        if not torch.equal(first, repeat.again[path]):
            continue  # not even equal seeds give equal outputs: another rule's matter
        size = float((first.double() - other.double()).abs().max())
        yield Fault(
            f"the output{f' {path}' if path else ''} in evaluation mode depends on the seed",
            measured=f"two seeds differ by up to {size:.3g}, equal seeds by 0",
        )
        return
