"""Buffers of a model: which evaluation reads, and which training writes or reads."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sightline.contract.pytree import dense_leaves
from sightline.doctor.attempts import NotApplicableError
from sightline.doctor.evidence import measure
from sightline.doctor.evidence.passes import Repeat
from sightline.doctor.subject import Subject
from sightline.instrument.random_state import seed_all


@measure(passes=4)
def idle_buffers(subject: Subject, repeats: dict[str, Repeat]) -> list[str]:
    """List buffers of one number, as at the start, that evaluation reads, and training neither reads nor writes."""
    names = [
        name
        for name, buffer in subject.model.named_buffers()
        if buffer.is_floating_point() and buffer.numel() > 1 and len(buffer.unique()) == 1
    ]
    names = [name for name in names if name not in repeats["train"].changed]
    if not names:
        raise NotApplicableError("no buffers that training leaves as they are")
    plain = {mode: _call(subject, subject.copy(mode)) for mode in ("eval", "train")}
    read: list[str] = []
    for name in names:
        if _is_read(subject, [name], "eval", plain):
            if not read and _is_read(subject, [name], "train", plain):
                return []  # as all of frozen statistics are
            read.append(name)
    return [] if not read or _is_read(subject, read, "train", plain) else read


def _is_read(subject: Subject, names: list[str], mode: str, plain: Mapping[str, list[Tensor]]) -> bool:
    """Return True if the outputs of a mode move with buffers from what they are with the model as it is."""
    other = subject.copy(mode)
    for name in names:
        parent, _, last = name.rpartition(".")
        other.get_submodule(parent)._buffers[last] = 1.5 * other.get_buffer(name) + 0.5
    return any(not torch.equal(a, b) for a, b in zip(plain[mode], _call(subject, other), strict=True))


def _call(subject: Subject, model: nn.Module) -> list[Tensor]:
    seed_all(0)
    with torch.no_grad():
        return [tensor for _, tensor in dense_leaves(subject.call(model, subject.batches[0].inputs))]
