"""State of models and optimisers: saved and loaded again, and buffers that evaluation alone reads."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sightline.contract.pytree import dense_leaves
from sightline.doctor.attempts import LeftOutError, MissingError, NotApplicableError, attempt
from sightline.doctor.evidence import measure
from sightline.doctor.evidence.numerics import copy_with_optimizer
from sightline.doctor.evidence.passes import Repeat
from sightline.doctor.subject import Subject, step_optimizer
from sightline.instrument.random_state import seed_all


class Restored(NamedTuple):
    """Largest difference of an output from that of a copy that has loaded the state, and the largest output.

    `refusal` says why the copy did not load it.
    """

    path: str
    change: float
    largest: float
    refusal: str


@measure(passes=4)
def restored(subject: Subject, repeats: dict[str, Repeat]) -> Restored:
    """Run a copy in training mode, load its state dict into an unused copy, and compare both in evaluation mode."""
    if not _is_equal(repeats["eval"].first, repeats["eval"].again):
        raise LeftOutError("evaluation does not repeat")
    used, other = subject.copy("train"), subject.copy("train")
    seed_all(0)
    with torch.no_grad():
        for batch in subject.batches[:2]:
            subject.call(used, batch.inputs)
    refusal = attempt("load_state_dict", other.load_state_dict, {"state_dict": copy.deepcopy(used.state_dict())})
    if isinstance(refusal, MissingError):
        return Restored("", 0.0, 0.0, str(refusal))
    first, second = _evaluate(subject, used), _evaluate(subject, other)
    changes = {p: float((t.double() - second[p].double()).abs().max()) for p, t in first.items() if t.numel()}
    path = max(changes, key=lambda each: changes[each], default="")
    if not changes:
        raise NotApplicableError("no outputs")
    return Restored(path, changes[path], float(first[path].double().abs().max()), "")


def _evaluate(subject: Subject, model: nn.Module) -> dict[str, Tensor]:
    seed_all(0)
    with torch.no_grad():
        return {p: t.clone() for p, t in dense_leaves(subject.call(model.eval(), subject.batches[0].inputs))}


def _is_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(tensor, second[p]) for p, tensor in first.items())


class Resumed(NamedTuple):
    """Largest difference of a parameter after a step that follows two others, from one that went on without a stop.

    `repeated` is that of the same three steps made twice, `moved` how far the last step went.
    """

    name: str
    change: float
    repeated: float
    moved: float


@measure(passes=11)
def resumed(subject: Subject) -> Resumed:
    """Load the states of model and optimiser after two steps into copies, and compare the third step."""
    runs = [copy_with_optimizer(subject) for _ in range(3)]
    for model, optimizer in runs[:2]:
        for _ in range(2):
            _step(subject, model, optimizer)
    (first, going), (again, repeating), (other, resuming) = runs
    other.load_state_dict(copy.deepcopy(first.state_dict()))
    resuming.load_state_dict(copy.deepcopy(going.state_dict()))
    before = [parameter.detach().clone() for parameter in first.parameters()]
    for model, optimizer in ((first, going), (again, repeating), (other, resuming)):
        _step(subject, model, optimizer)
    found = Resumed("", 0.0, 0.0, 0.0)
    rows = zip(first.named_parameters(), again.parameters(), other.parameters(), before, strict=True)
    for (name, end), twin, restored, start in rows:
        change, repeated, moved = (float((end.detach() - each.detach()).norm()) for each in (restored, twin, start))
        if change > found.change:
            found = found._replace(name=name, change=change, moved=moved)
        found = found._replace(repeated=max(found.repeated, repeated))
    return found


def _step(subject: Subject, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    seed_all(0)
    optimizer.zero_grad()
    subject.run(model, subject.batches[0]).value.backward()
    step_optimizer(optimizer)


@measure(passes=4)
def idle_buffers(subject: Subject, repeats: dict[str, Repeat]) -> list[str]:
    """List buffers of one number, as at the start, that evaluation reads, and training neither reads nor writes."""
    names = [
        name
        for name, buffer in dense_leaves(dict(subject.model.named_buffers()))
        if buffer.is_floating_point() and buffer.numel() > 1 and len(buffer.unique()) == 1
    ]
    names = [name for name in names if name not in repeats["train"].changed]
    if names:
        names = _leave_skipped(subject, names)
    if not names:
        raise NotApplicableError("no buffers that training leaves as they are")
    plain = {mode: _call_with(subject, subject.copy(mode)) for mode in ("eval", "train")}
    read: list[str] = []
    for name in names:
        if _is_read(subject, [name], "eval", plain):
            if not read and _is_read(subject, [name], "train", plain):
                return []  # as all of frozen statistics are
            read.append(name)
    return [] if not read or _is_read(subject, read, "train", plain) else read


def _leave_skipped(subject: Subject, names: list[str]) -> list[str]:
    """Leave out the buffers of layers that evaluation calls, and the pass in training has skipped, as drawn depth."""
    called = {mode: _list_called(subject, mode) for mode in ("eval", "train")}
    skipped = called["eval"] - called["train"]
    return [name for name in names if name.rpartition(".")[0] not in skipped]


def _list_called(subject: Subject, mode: str) -> set[str]:
    called, model = set[str](), subject.copy(mode)
    for path, module in model.named_modules():
        module.register_forward_pre_hook(lambda *_, path=path: called.add(path))
    _call_with(subject, model)
    return called


def _is_read(subject: Subject, names: list[str], mode: str, plain: Mapping[str, list[Tensor]]) -> bool:
    """Return True if the outputs of a mode move with buffers from what they are with the model as it is."""
    other = subject.copy(mode)
    for name in names:
        parent, _, last = name.rpartition(".")
        other.get_submodule(parent)._buffers[last] = 1.5 * other.get_buffer(name) + 0.5
    return any(not torch.equal(a, b) for a, b in zip(plain[mode], _call_with(subject, other), strict=True))


def _call_with(subject: Subject, model: nn.Module) -> list[Tensor]:
    seed_all(0)
    with torch.no_grad():
        return [tensor for _, tensor in dense_leaves(subject.call(model, subject.batches[0].inputs))]
