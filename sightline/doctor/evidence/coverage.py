"""What is trained: parameter by gradient at several weights, leaves of the graph that are no parameters."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sightline.contract.pytree import dense_leaves, tree_leaves, tree_map
from sightline.doctor.attempts import LeftOutError, NotApplicableError
from sightline.doctor.autograd_graph import iter_nodes
from sightline.doctor.evidence import measure
from sightline.doctor.forms.form import FIRST_OUTPUT, Batch, CalledForm
from sightline.doctor.objects import find_alive, iter_reachable
from sightline.doctor.subject import Pass, Subject
from sightline.instrument.random_state import seed_all

_MAX_ASKED, _NUM_DRAWN = 8, 16
_FAR = 3.0
"""Noise in the spread of weights, beside which what they have learnt is nothing."""


@measure(passes=0.2)
def loose_leaves(subject: Subject, passed: Pass) -> dict[str, Tensor]:
    """Leaves of the outputs' graph that want a gradient, and are neither parameters nor of the inputs, by their paths.

    Where there are some, two further passes tell which of them are computed from the inputs.
    """
    if any(isinstance(module, torch.jit.ScriptModule) for module in subject.model.modules()):
        raise LeftOutError("torch.jit runs the model")
    if not _list_loose(passed):
        return {}
    copied, batch = subject.copy("train"), subject.batches[0]
    others = subject.batches[1] if len(subject.batches) > 1 else Batch(*(_turn_rows(part) for part in batch))
    found = []
    for each in (batch, others):
        seed_all(0)
        found.append(_list_loose(subject.run(copied, each)))
    leaves = _list_kept(*found)
    reached = iter_reachable(copied, Tensor) if leaves else ()
    named = {path: leaves.pop(id(tensor)) for path, tensor in reached if id(tensor) in leaves}
    outside = enumerate(leaves.values(), start=1)
    return named | {f"tensor {n} outside of the model, of shape {tuple(t.shape)}": t for n, t in outside}


def _list_loose(passed: Pass) -> list[Tensor]:
    """List the leaves of the outputs' graph that are neither parameters nor inputs."""
    roots = [tensor.grad_fn for _, tensor in tree_leaves(passed.outputs)]
    leaves = {id(node.variable): node.variable for node in iter_nodes(roots) if hasattr(node, "variable")}
    for known in (*passed.parameters.values(), *(tensor for _, tensor in tree_leaves(passed.inputs))):
        leaves.pop(id(known), None)
    return list(leaves.values())


def _turn_rows(tree: Any) -> Any:
    return tree_map(tree, lambda _, tensor: tensor.roll(1, 0) if tensor.ndim else tensor)


def _list_kept(first: list[Tensor], other: list[Tensor]) -> dict[int, Tensor]:
    """List, by identity, the leaves of two passes that other inputs leave as they are.

    They are the same objects, or have the same numbers, as those of a layer that is made in each pass. What follows
    the inputs is an activation of which a gradient is wanted: behind a frozen layer, or before a checkpoint.
    """
    held = {id(tensor): tensor for tensor in other}
    pairs = zip(first, other, strict=True) if len(first) == len(other) else ()
    alike = [one for one, two in pairs if one.shape == two.shape and torch.equal(one, two)]
    return {id(tensor): tensor for tensor in first if id(tensor) in held} | {id(tensor): tensor for tensor in alike}


@measure()
def read_by_loss(subject: Subject, passed: Pass) -> frozenset[str]:
    """Parameters of the user's model that the loss reads itself, and not from the outputs of the copy."""
    leaves = {id(node.variable) for node in iter_nodes([passed.value.grad_fn]) if hasattr(node, "variable")}
    return frozenset(name for name, parameter in subject.model.named_parameters() if id(parameter) in leaves)


@measure()
def left_out(subject: Subject, passed: Pass) -> frozenset[str]:
    """Parameters below outputs that the loss is not given, where that was guessed: of several, it takes the first."""
    form, outputs = subject.form, passed.outputs
    if not isinstance(form, CalledForm) or form.evaluates != FIRST_OUTPUT or not isinstance(outputs, list | tuple):
        return frozenset()
    roots = [tensor.grad_fn for _, tensor in tree_leaves(outputs[1:])]
    leaves = {id(node.variable) for node in iter_nodes(roots) if hasattr(node, "variable")}
    return frozenset(name for name, parameter in passed.parameters.items() if id(parameter) in leaves)


class Unreached(NamedTuple):
    """Parameters of an owner, such as an optimiser, that have no gradient after `num_passes` backward passes.

    `why`: they "are frozen"; their layers "run", or "are cut" where nothing freezes them, "never run", or "are chosen"
    in turns with others; the loss that holds them leaves them "unused"; "all" have none. `total` counts the owner's
    parameters.
    """

    owner: str
    names: list[str]
    total: int
    why: str
    num_passes: int = 1


class Gradients(NamedTuple):
    """Parameters that want gradients: whether one arrives, `none`, `zero` in each batch, `some`, or `bad` (no number).

    `own` is at the model's weights, `moved` at jittered ones.
    """

    own: dict[str, str]
    moved: dict[str, str]


@measure(passes=6)
def gradients(subject: Subject, passed: Pass) -> Gradients:
    """Differentiate the loss of each batch at the model's weights, in passes of one copy, and of two at jittered ones.

    A layer that rests in every other pass runs in one of them. Where all is 0, the weights are moved far: a margin that
    training has satisfied stays so beside them. There are none where all is frozen that an optimiser holds.
    """
    if not any(parameter.requires_grad for parameter in passed.parameters.values()):
        held = [p for each in subject.optimizers for group in each.param_groups for p in group["params"]]
        is_held = not list_held(subject.optimizers).isdisjoint(map(id, subject.model.parameters()))
        if not is_held or any(p.requires_grad for p in held):  # what is trained may be a latent
            raise NotApplicableError("no parameter wants a gradient")
        return Gradients({}, {})
    if not any(t.numel() for _, t in dense_leaves(passed.batch.inputs)):
        raise NotApplicableError("a batch of no samples")
    copied = subject.copy("train")
    own = [_read(subject.run(copied, batch)) for batch in subject.batches]
    jittered = [subject.jitter(subject.copy("train"), seed=seed) for seed in (1, 2)]
    moved = [_read(subject.run(model, batch)) for model, batch in zip(jittered, [*subject.batches] * 2, strict=False)]
    if not any("some" in state.values() or "bad" in state.values() for state in (*own, *moved)):
        far = [subject.jitter(subject.copy("train"), seed=seed, share=_FAR) for seed in (3, 4)]
        moved += [_read(subject.run(model, batch)) for model, batch in zip(far, [*subject.batches] * 2, strict=False)]
    return Gradients(_merge(own), _merge(moved))


def _read(passed: Pass) -> dict[str, str]:
    wanted = {name: parameter for name, parameter in passed.parameters.items() if parameter.requires_grad}
    if not passed.value.requires_grad:
        return dict.fromkeys(wanted, "none")
    found = torch.autograd.grad(passed.value, list(wanted.values()), allow_unused=True)
    return {name: _name_state(gradient) for name, gradient in zip(wanted, found, strict=True)}


def _name_state(gradient: Tensor | None) -> str:
    if gradient is None:
        return "none"
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    if not bool(values.isfinite().all()):
        return "bad"
    return "some" if bool(values.any()) else "zero"


def _merge(states: list[dict[str, str]]) -> dict[str, str]:
    order = ("none", "zero", "some", "bad")
    return {name: max((state[name] for state in states), key=order.index) for name in states[0]}


class Uncovered(NamedTuple):
    """Parameters that get a gradient and are in no group of an optimiser, among `total` that want one.

    `held` counts those of the model that are in a group, `foreign` the tensors in groups that are not the model's; a
    loop, whose optimisers hold what is not watched, counts them where their shapes are those of what is left out.
    """

    names: list[str]
    total: int
    held: int
    foreign: int


@measure()
def uncovered(subject: Subject, gradients: Gradients) -> Uncovered:
    """Compare the parameters that get a gradient with those of the optimisers, named or not."""
    if not subject.optimizers:
        raise NotApplicableError("no optimizer was given", lacks="optimizer")
    held = list_held(subject.optimizers)
    own = {name: id(parameter) for name, parameter in subject.model.named_parameters()}
    names = [name for name, state in gradients.own.items() if state == "some" and own[name] not in held]
    elsewhere = list_held(find_alive(torch.optim.Optimizer)) if names else set()
    names = [name for name in names if own[name] not in elsewhere]
    return Uncovered(names, len(gradients.own), len(held & {*own.values()}), len(held - {*own.values()}))


def list_held(optimizers: Iterable[torch.optim.Optimizer]) -> set[int]:
    """List, by identity, the parameters in the groups of optimisers."""
    return {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}


@measure()
def empty_groups(subject: Subject) -> list[tuple[str, float]]:
    """List the groups of optimisers without a parameter whose learning rate no group with parameters has.

    Not applicable where parameters are frozen: a group of a frozen part is empty on purpose.
    """
    if not subject.optimizers:
        raise NotApplicableError("no optimizer was given", lacks="optimizer")
    if not all(parameter.requires_grad for parameter in subject.model.parameters()):
        raise NotApplicableError("a frozen part may have a group")
    groups = [(optimizer, n, g) for optimizer in subject.optimizers for n, g in enumerate(optimizer.param_groups)]
    rates = [float(group.get("initial_lr", group.get("lr", 0.0))) for *_, group in groups]
    filled = {rate for (*_, group), rate in zip(groups, rates, strict=True) if group["params"]}
    return [
        (f"param_groups[{number}] of {type(optimizer).__name__}", rate)
        for (optimizer, number, group), rate in zip(groups, rates, strict=True)
        if not group["params"] and rate not in filled
    ]


@measure(passes=3)
def saddles(subject: Subject, gradients: Gradients) -> list[str]:
    """Name parameters that are all zero, and whose gradient is zero as long as they are: factors of one product.

    Their gradient is exactly 0 in each batch, also after a step of the others; with noise in these parameters alone
    there is one. One factor of zeros, as adapters and gates begin with, gets a gradient by the other.
    """
    zeros = [name for name, own in subject.model.named_parameters() if own.numel() and not bool(own.any())]
    names = [name for name in zeros if gradients.own.get(name) == "zero"]
    if len(names) < 2:
        return []
    stepped, noisy = subject.copy("train"), subject.copy("train")
    passed = subject.run(stepped, subject.batches[0])
    trained = [parameter for parameter in passed.parameters.values() if parameter.requires_grad]
    found = torch.autograd.grad(passed.value, trained, allow_unused=True)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter, gradient in zip(trained, found, strict=True):
            if gradient is not None and bool(gradient.any()):
                parameter.sub_(gradient / gradient.norm() * 1e-2 * (1 + parameter.norm()))
        by_name = dict(zip((name for name, _ in subject.model.named_parameters()), noisy.parameters(), strict=True))
        for name in names:
            by_name[name].add_(1e-2 * torch.randn(by_name[name].shape, generator=generator).to(by_name[name]))
    after, beside = (_merge([_read(subject.run(model, b)) for b in subject.batches[:2]]) for model in (stepped, noisy))
    return [name for name in names if after[name] == "zero" and beside[name] == "some"]


@measure(passes=8)
def silent(subject: Subject, gradients: Gradients) -> dict[str, bool]:
    """Parameters without a gradient at any weights: whether the loss of some batch moves as they do."""
    names = [name for name, state in gradients.own.items() if {state, gradients.moved[name]} <= {"none", "zero"}]
    if not names or not _moves(subject, names):
        return dict.fromkeys(names, False)
    modules = list(dict.fromkeys(name.rpartition(".")[0] for name in names))[:_MAX_ASKED]
    groups = [[name for name in names if name.rpartition(".")[0] == module] for module in modules]
    return {name: moved for group in groups for moved in [_moves(subject, group, is_flat=False)] for name in group}


def _moves(subject: Subject, names: list[str], *, is_flat: bool = True) -> bool:
    """Return True if the loss of a jittered copy moves with parameters that get no gradient from the same pass.

    A layer that rests now and then gets one in the passes in which it runs; a copy is at its first pass. Unless
    `is_flat`, none of them may have a gradient where the loss has moved to either: below its least value, as that of a
    divergence of which some is free, a term is flat.
    """
    for batch in subject.batches[:2]:
        model, other = (subject.jitter(subject.copy("train"), seed=3) for _ in range(2))
        seed_all(0)
        passed = subject.run(model, batch)
        states = _read(passed)
        without = [name for name in names if states.get(name, "none") in ("none", "zero")]
        if not without:
            continue
        seed_all(0)
        with torch.no_grad():
            _move(other, subject.model, without)
        there = subject.run(other, batch)
        value, moved = (each.value.detach().double() for each in (passed, there))
        if bool((value - moved).abs() > 1e-5 * value.abs() + 1e-9):
            states = {} if is_flat else _read(there)
            if not any(states.get(name) in ("some", "bad") for name in without):
                return True
    return False


def _move(model: nn.Module, original: nn.Module, names: list[str]) -> None:
    parameters = dict(zip(dict(original.named_parameters()), model.parameters(), strict=True))
    for name in names:
        noise = torch.randn(parameters[name].shape, generator=torch.Generator().manual_seed(4))
        parameters[name].add_(noise.to(parameters[name]) * (parameters[name].abs().mean() + 0.1))


@measure(passes=3)
def dropped(subject: Subject, gradients: Gradients) -> list[str]:
    """Name weights whose gradient is exactly 0 in training mode, and is none in evaluation mode: all is dropped.

    Only where there are some, they are asked in further passes, of other draws and weights.
    """
    names = [name for name, state in gradients.own.items() if {state, gradients.moved[name]} == {"zero"}]
    own = dict(subject.model.named_parameters())
    names = [name for name in names if own[name].ndim > 1]
    if not names:
        return []
    evaluated = _merge([_read(subject.run(subject.copy("eval"), batch)) for batch in subject.batches[:2]])
    names = [name for name in names if evaluated[name] == "some"]
    for seed, batch in zip(range(_NUM_DRAWN), itertools.cycle(subject.batches)):
        if names:
            model = subject.jitter(subject.copy("train"), seed=seed)
            seed_all(seed)
            states = _read(subject.run(model, batch))
            names = [name for name in names if states[name] == "zero"]
    return names


@measure(passes=1)
def written_inputs(subject: Subject) -> list[str]:
    """Call copies in both modes; list the inputs that they change."""
    changed: list[str] = []
    for mode in ("train", "eval"):
        inputs: Any = tree_map(subject.batches[0].inputs, lambda _, tensor: tensor.clone())
        with torch.no_grad():
            subject.call(subject.copy(mode), inputs)
        for (path, before), (_, after) in zip(
            dense_leaves(subject.batches[0].inputs), dense_leaves(inputs), strict=False
        ):
            if before.shape != after.shape or not torch.equal(before.nan_to_num(), after.nan_to_num()):
                changed.append(path)
    return list(dict.fromkeys(changed))
