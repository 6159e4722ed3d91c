"""Provenance of tensors in a step: from which leaves of a batch and which calls of a model each is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from sightline.contract.pytree import is_dense, tree_leaves, tree_map
from sightline.doctor.batches import count_rows
from sightline.instrument import InterceptedFunctions, replace_function

_READERS = frozenset(
    "item tolist numpy __array__ __bool__ __int__ __float__ __index__ __contains__ equal allclose is_nonzero".split()
)
"""Functions by which numbers of a tensor leave torch."""


class Derived(NamedTuple):
    """Tensor that a step computes from one leaf of its batch, as `tokens[:, 1:]` is.

    `function` is the function of torch, or the class of the module, whose call number `number` with this leaf alone
    gives it, at `item` of its result.
    """

    leaf: str
    function: str
    number: int
    item: str

    def __str__(self) -> str:
        place = f", {self.item}" if self.item else ""
        return f"{self.function.strip('_')}({self.leaf or 'batch'}{place}) {self.number + 1}"


class Provenance:
    """Which leaves of a batch, and outputs of which calls, each tensor of a step is computed from.

    `replaced` are tensors for derived ones, which the step then goes on with; `derived` are those that it has computed.
    """

    def __init__(self, batch: Any, replaced: Mapping[Derived, Tensor] | None = None) -> None:
        self._of: dict[int, frozenset[Any]] = {}
        self._parents: dict[int, set[int]] = {}
        self._made: dict[int, Derived] = {}
        self._numbers: dict[tuple[str, str], int] = {}
        self._kept: list[Any] = []
        self._replaced = replaced or {}
        self._depth = 0
        self._leaves = dict(tree_leaves(batch))
        self.derived: dict[Derived, Tensor] = {}
        self.left_torch: set[Any] = set()
        self.is_inside = False
        for path, tensor in self._leaves.items():
            self.name(tensor, path)

    def name(self, tree: Any, source: Any) -> None:
        """Give the tensors of a tree a source."""
        for _, tensor in tree_leaves(tree):
            self._of[id(tensor)] = self._of.get(id(tensor), frozenset()) | {source}
            self._kept.append(tensor)

    def list_sources(self, tree: Any) -> frozenset[Any]:
        """List what the tensors of a tree come from."""
        return frozenset().union(*(self._of.get(id(tensor), frozenset()) for _, tensor in tree_leaves(tree)))

    @contextmanager
    def follow(self, model: nn.Module, after: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Context in which torch's functions, and modules that have not the model inside, note what they return.

        `after` is called when a tensor has been derived.
        """

        def call(original: Any, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if self.is_inside or any(part is model for part in module.modules()):
                return original(module, *args, **kwargs)
            self._depth += 1
            try:
                result = original(module, *args, **kwargs)
            finally:
                self._depth -= 1
            return note(type(module).__name__, args, kwargs, result)

        def run(function: Any, args: Any, kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            if self.is_inside:
                return result
            self._connect(getattr(function, "__name__", ""), args, kwargs, result)
            return note(getattr(function, "__name__", ""), args, kwargs, result)

        def note(name: str, args: Any, kwargs: Any, result: Any) -> Any:
            result = self._derive(name, (args, kwargs), result)
            after()
            return result

        with replace_function(nn.Module, "__call__", call), InterceptedFunctions(run):
            yield

    def _connect(self, name: str, args: Any, kwargs: Any, result: Any) -> None:
        """Note what the results of a function of torch come from."""
        sources = self.list_sources((args, kwargs))
        if name in _READERS:
            self.left_torch |= sources
        if not sources:
            return
        changed = args[0] if args and (name == "__setitem__" or (name.endswith("_") and name[:2] != "__")) else None
        read = {id(tensor) for _, tensor in tree_leaves((args, kwargs)) if id(tensor) in self._of}
        for _, tensor in (*tree_leaves(result), *tree_leaves(changed)):
            self._of[id(tensor)] = self._of.get(id(tensor), frozenset()) | sources
            self._parents.setdefault(id(tensor), set()).update(read - {id(tensor)})
            self._kept.append(tensor)

    def _derive(self, name: str, arguments: Any, result: Any) -> Any:
        """Note a result of one leaf of the batch by its number, or replace it; not inside of other modules."""
        sources = self.list_sources(arguments)
        leaf = next(iter(sources), None)
        if self._depth or len(sources) != 1 or not isinstance(leaf, str):
            return result
        number = self._numbers[leaf, name] = self._numbers.get((leaf, name), -1) + 1
        read = {id(tensor) for _, tensor in tree_leaves(arguments)}

        def exchange(item: str, tensor: Tensor) -> Tensor:
            if id(tensor) in read or not is_dense(tensor):
                return tensor
            key = Derived(leaf, name, number, item)
            self.derived[key] = tensor
            tensor = self._replaced.get(key, tensor)
            self._made[id(tensor)] = key
            self.name(tensor, leaf)
            return tensor

        return tree_map(result, exchange)

    def find_parts(self, path: str, inputs: Any, value: Any) -> list[Derived]:
        """Find what of a leaf the loss alone reads, the inputs being made of the leaf, too: the first such tensors.

        None where the loss reads the leaf itself, or what the inputs are made of; nor what has not its rows.
        """
        leaf = self._leaves[path]
        to_inputs, to_loss = self._list_ancestors(inputs), self._list_ancestors(value)
        if id(leaf) not in to_inputs or id(leaf) not in to_loss or path in self.left_torch:
            return []
        children: dict[int, list[int]] = {}
        for child, parents in self._parents.items():
            for parent in parents if child in to_loss else ():
                children.setdefault(parent, []).append(child)
        found, waiting, seen = list[Derived](), [id(leaf)], {id(leaf)}
        while waiting:
            for child in children.get(waiting.pop(), ()):
                if self._of[child] != {path}:
                    return []
                if child in seen:
                    continue
                seen.add(child)
                if child not in to_inputs and child in self._made:
                    found.append(self._made[child])
                else:
                    waiting.append(child)
        return found if all(count_rows(self.derived[part]) == count_rows(leaf) > 0 for part in found) else []

    def _list_ancestors(self, tree: Any) -> set[int]:
        """List the tensors of which those of a tree are made, and these, by identity."""
        found, waiting = set[int](), [id(tensor) for _, tensor in tree_leaves(tree)]
        while waiting:
            tensor = waiting.pop()
            if tensor not in found:
                found.add(tensor)
                waiting += self._parents.get(tensor, ())
        return found
