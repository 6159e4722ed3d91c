"""Matching of tensors of two networks: by the user's map, by name, else by shape and order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from sightline.errors import UserError
from sightline.schema import suggest

__all__ = ["KeyMapping", "load_matched_weights", "match_keys"]

_MAX_SHOWN = 4
_COUNTER = "num_batches_tracked"


class KeyMapping(NamedTuple):
    """Mapping of our tensor names to theirs, and a description of each guess."""

    pairs: dict[str, str]
    guesses: tuple[str, ...]


def match_keys(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], given: Mapping[str, str | None] | None
) -> KeyMapping:
    """Match every tensor of `ours` with one of `theirs`.

    `given` maps our names of tensors, or of modules for all their tensors, to their names, or to None for tensors
    without a counterpart. Other tensors are matched by equal names. Without a map, modules with the same tensors are
    also paired in their order, and each of these guesses is listed. Shapes agree except for axes of length 1.
    Raises UserError if a tensor of either network stays unmatched.
    """
    pairs, left_out = _match_by_map(ours, theirs, given or {})
    used_names = set(pairs.values())
    shared_names = ours.keys() & theirs.keys() - pairs.keys() - left_out - used_names
    pairs |= {
        name: name
        for name in ours
        if name in shared_names and _squeezed_shape(ours[name]) == _squeezed_shape(theirs[name])
    }
    open_ours = {n: t for n, t in ours.items() if n not in pairs and n not in left_out and not n.endswith(_COUNTER)}
    used_names = set(pairs.values())
    open_theirs = {n: t for n, t in theirs.items() if n not in used_names and not n.endswith(_COUNTER)}
    guesses: list[str] = []
    if given is None:
        guessed = _match_by_shape(open_ours, open_theirs, guesses)
        pairs |= guessed
        open_ours = {n: t for n, t in open_ours.items() if n not in guessed}
        open_theirs = {n: t for n, t in open_theirs.items() if n not in guessed.values()}
    if open_ours or open_theirs:
        raise UserError(_format_unmatched(open_ours, open_theirs, is_guessed=given is None))
    modules = {name.rpartition(".")[0]: other.rpartition(".")[0] for name, other in pairs.items()}
    for name in ours:
        module, _, leaf = name.rpartition(".")
        if leaf == _COUNTER and name not in pairs and _join(modules.get(module, ""), leaf) in theirs:
            pairs[name] = _join(modules[module], leaf)
    return KeyMapping(pairs, tuple(guesses))


def load_matched_weights(theirs: nn.Module, ours: Mapping[str, Tensor], pairs: Mapping[str, str]) -> None:
    """Load our weights into their network, in place."""
    state = theirs.state_dict()
    for name, other in pairs.items():
        state[other] = ours[name].detach().reshape(state[other].shape).to(state[other])
    theirs.load_state_dict(state)


def _match_by_map(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], key_map: Mapping[str, str | None]
) -> tuple[dict[str, str], set[str]]:
    """Return the map's name for each of our tensors (the longest key wins), and the tensors that it omits."""
    unknown = [key for key in key_map if key not in ours and not any(name.startswith(f"{key}.") for name in ours)]
    if unknown:
        raise UserError(f"--keys: the model has no tensor or module '{unknown[0]}'{suggest(unknown[0], list(ours))}")
    pairs, left_out = {}, set()
    for name in ours:
        key = next((key for key in _prefixes(name) if key in key_map), None)
        if key is None:
            continue
        target = key_map[key]
        if target is None:
            left_out.add(name)
            continue
        other = target + name[len(key) :]
        if other not in theirs:
            if name.endswith(_COUNTER):
                continue
            raise UserError(
                f"--keys: '{name}' is to be '{other}', which the reference lacks{suggest(other, list(theirs))}"
            )
        if _squeezed_shape(ours[name]) != _squeezed_shape(theirs[other]):
            shapes = f"{tuple(ours[name].shape)} and {tuple(theirs[other].shape)}"
            raise UserError(f"--keys: '{name}' and '{other}' have the shapes {shapes}, which differ")
        pairs[name] = other
    return pairs, left_out


def _match_by_shape(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], guesses: list[str]) -> dict[str, str]:
    """Pair modules with the same tensor names and shapes, in the order of each network."""
    pairs: dict[str, str] = {}
    kinds, other_kinds = _group_by_kind(ours), _group_by_kind(theirs)
    for kind, modules in kinds.items():
        their_modules = other_kinds.get(kind, [])
        if len(their_modules) != len(modules):
            continue
        for index, (module, their_module) in enumerate(zip(modules, their_modules, strict=True)):
            reason = "the only one" if len(modules) == 1 else f"number {index + 1} of {len(modules)}"
            shapes = ", ".join(f"{name} {shape}" for name, shape in kind)
            guesses.append(f"{module or '(model)'} = {their_module or '(model)'}, {reason} with {shapes}")
            pairs |= {_join(module, name): _join(their_module, name) for name, _ in kind}
    return pairs


Kind = tuple[tuple[str, tuple[int, ...]], ...]


def _group_by_kind(tensors: Mapping[str, Tensor]) -> dict[Kind, list[str]]:
    tensors_by_module: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        tensors_by_module.setdefault(module, []).append((leaf, _squeezed_shape(tensor)))
    kinds: dict[Kind, list[str]] = {}
    for module, leaves in tensors_by_module.items():
        kinds.setdefault(tuple(sorted(leaves)), []).append(module)
    return kinds


def _squeezed_shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(size for size in tensor.shape if size != 1)


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]


def _join(module: str, name: str) -> str:
    return f"{module}.{name}" if module else name


def _format_unmatched(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], *, is_guessed: bool) -> str:
    sides = [("of the model", ours), ("of the reference", theirs)]
    unmatched = "; ".join(f"{_format_tensors(side)} {side_name}" for side_name, side in sides if side)
    reason = "no name or shape determines" if is_guessed else "the map does not determine"
    return (
        f"--keys: {reason} which tensors correspond: {unmatched}; "
        "give a JSON file of our names and theirs, null for none"
    )


def _format_tensors(tensors: Mapping[str, Tensor]) -> str:
    names: Sequence[str] = [f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items()]
    more = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
    return ", ".join(names[:_MAX_SHOWN]) + more
