"""A user's own evaluation: a function that returns figures, asked with copies of its model and parts of its samples."""

from __future__ import annotations

import contextlib
import inspect
import io
import itertools
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sightline.contract.errors import UserError
from sightline.contract.pytree import dense_leaves, tree_children, tree_leaves, tree_map
from sightline.doctor.attempts import NotApplicableError
from sightline.doctor.batches import count_rows
from sightline.doctor.finding import FindingLocation
from sightline.doctor.forms.form import Batch, standing_in
from sightline.doctor.objects import get_python_function
from sightline.doctor.snapshots import Snapshot
from sightline.doctor.subject import count_samples, take_rows
from sightline.instrument import InterceptedOperators, replace_function
from sightline.instrument.random_state import seed_all

_MAX_FIGURES = 256
_OF_LOADER = re.compile(r"load|data|batch|set", re.IGNORECASE)


class Scored(NamedTuple):
    """Figures that a score has returned, by name; "" for a number alone.

    `modes` are the flags `training` of the model's calls, `num_rows` the samples that it was called with, `outputs` the
    first output of each call with a row for each of them, `changed` the names of parameters, buffers and gradients of
    the model that are others afterwards.
    """

    figures: dict[str, float]
    modes: list[bool]
    num_rows: int
    outputs: list[Tensor]
    changed: list[str]


@dataclass(frozen=True)
class Score:
    """Function of a model and a loader that returns figures, with the model and the evaluation that it is given.

    `roles` says of each of its arguments whether it is the `model` or the `loader`; what it reads by a global name or a
    closure is stood in for alike.
    """

    function: Callable[..., Any]
    model: nn.Module
    evaluation: Any
    roles: tuple[str, ...]

    @property
    def where(self) -> FindingLocation:
        """File and line of the function."""
        function = get_python_function(self.function)
        code = None if function is None else function.__code__
        return FindingLocation() if code is None else FindingLocation(file=code.co_filename, line=code.co_firstlineno)

    @contextmanager
    def preserved(self) -> Iterator[Snapshot]:
        """Context at whose end all that the function holds between its calls is as it was."""
        snapshot = Snapshot.of_function(self.function, untouched=[self.model, *self.model.modules()])
        try:
            yield snapshot
        finally:
            snapshot.restore()

    def ask(self, copied: nn.Module, loader: Any, *, training: bool = False, seed: int = 0) -> Scored:
        """Call the function with a copy of the model, first put into a mode, and a loader, in place of the user's.

        What the function prints is not shown. Raises UserError for what is no figure.
        """
        modes, rows, outputs = list[bool](), list[int](), list[Tensor]()

        def observe(module: nn.Module, args: Any, kwargs: Any) -> None:
            modes.append(module.training)
            rows.append(next((count_rows(tensor) for _, tensor in dense_leaves((args, kwargs))), 0))

        def keep(module: nn.Module, args: Any, value: Any) -> None:
            found = (each for _, each in dense_leaves(value) if rows and count_rows(each) == rows[-1])
            outputs.extend(each.detach().clone() for each in itertools.islice(found, 1))

        seed_all(seed)
        copied.train(training)
        before = _read_state(copied)
        handles = copied.register_forward_pre_hook(observe, with_kwargs=True), copied.register_forward_hook(keep)
        silent = io.StringIO()
        try:
            with (
                standing_in(self.model, copied),
                _lend(self.evaluation, loader) as lent,
                contextlib.redirect_stdout(silent),
                contextlib.redirect_stderr(silent),
            ):
                value = self.function(*({"model": self.model, "loader": lent}[role] for role in self.roles))
        finally:
            for handle in handles:
                handle.remove()
        figures = read_figures(value)
        if not figures or len(figures) > _MAX_FIGURES:
            raise UserError(f"score: returns a number, or a few by name; found {type(value).__name__}")
        after = _read_state(copied)
        changed = [name for name in after if name not in before or not torch.equal(after[name], before[name])]
        return Scored(figures, modes, sum(rows), outputs, changed)


@contextmanager
def other_draws(shift: int) -> Iterator[None]:
    """Context in which random numbers are others, also those of generators that the code in it seeds itself.

    `shift` numbers are drawn before each draw of torch; seeds of `random` and NumPy are larger by it.
    """

    def draw(operator: Any, args: Any, kwargs: Any) -> Any:
        if torch.Tag.nondeterministic_seeded in operator.tags:
            generator = kwargs.get("generator")
            device = torch.device("cpu") if generator is None else generator.device
            torch.rand(shift, generator=generator, device=device)
        return operator(*args, **kwargs)

    def seed(original: Any, seed: Any = None, *args: Any, **kwargs: Any) -> Any:
        return original(seed + shift if isinstance(seed, int) else seed, *args, **kwargs)

    owners = (np.random, "default_rng"), (np.random, "seed"), (random, "seed")
    with contextlib.ExitStack() as stack:
        for owner, name in owners:
            stack.enter_context(replace_function(owner, name, seed))
        stack.enter_context(InterceptedOperators(draw))
        yield


def make_score(function: Any, model: nn.Module, evaluation: Any) -> Score:
    """Make the score of a function of a model and a loader, in any order; either may be left out.

    Raises UserError for what is no function, or needs other arguments.
    """
    wanted = "allowed is a function score(model, loader) that returns its figure, or several by name"
    if not callable(function) or isinstance(function, nn.Module):
        raise UserError(f"check: score: found {type(function).__name__}; {wanted}")
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    needed = [each for each in parameters if each.default is inspect.Parameter.empty and "VAR" not in each.kind.name]
    if len(needed) > 2 or any(each.kind not in kinds for each in needed):
        names = ", ".join(each.name for each in needed)
        raise UserError(
            f"check: score: the function needs ({names}); {wanted}. Bind others: score=lambda model, loader: ..."
        )
    if len(needed) == 2:
        is_turned = [_OF_LOADER.search(each.name) is not None for each in needed] == [True, False]
        return Score(function, model, evaluation, ("loader", "model") if is_turned else ("model", "loader"))
    return Score(function, model, evaluation, tuple("loader" if _OF_LOADER.search(e.name) else "model" for e in needed))


def read_figures(value: Any, path: str = "") -> dict[str, float]:
    """Read the numbers of what a score returns, by path; text, flags and large tensors are left out."""
    if isinstance(value, bool | np.bool_ | str):
        return {}
    if isinstance(value, int | float | np.number):
        return {path: float(value)}
    if isinstance(value, Tensor | np.ndarray):
        numbers = np.asarray(value.detach().cpu().double() if isinstance(value, Tensor) else value).reshape(-1)
        if numbers.dtype.kind not in "iuf" or len(numbers) > _MAX_FIGURES:
            return {}
        if len(numbers) == 1:
            return {path: float(numbers[0])}
        return {f"{path}[{index}]": float(number) for index, number in enumerate(numbers)}
    inner = [read_figures(item, f"{path}.{name}".lstrip(".")) for name, item in tree_children(value)]
    return {name: figure for figures in inner for name, figure in figures.items()}


def _read_state(model: nn.Module) -> dict[str, Tensor]:
    """Copy the parameters, buffers and gradients of a model."""
    gradients = {f"gradient of {name}": p.grad for name, p in model.named_parameters()}
    return {name: tensor.detach().clone() for name, tensor in dense_leaves({**model.state_dict(), **gradients})}


@contextmanager
def _lend(original: Any, loader: Any) -> Iterator[Any]:
    """Context in which a user's loader, wherever the program has it, is another one; yields what to call it by."""
    if isinstance(original, DataLoader) and isinstance(loader, DataLoader):
        attributes = vars(original)
        object.__setattr__(original, "__dict__", {**attributes, **vars(loader)})
        try:
            yield original
        finally:
            object.__setattr__(original, "__dict__", attributes)
    elif isinstance(original, list):
        batches = [*original]
        original[:] = loader
        try:
            yield original
        finally:
            original[:] = batches
    else:
        yield loader


class Part(Dataset[Any]):
    """Samples of a data set that have been read, in its place: attributes with an item a sample are cut alike."""

    def __init__(self, data: Any, indices: Sequence[int], samples: Sequence[Any]) -> None:
        self._data, self._indices, self._samples = data, [*indices], samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Any:
        return self._samples[index]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        value = getattr(self._data, name)
        if isinstance(value, Tensor | np.ndarray) and value.ndim and len(value) == len(self._data):
            return value[self._indices]
        is_list = isinstance(value, list | tuple) and len(value) == len(self._data)
        return type(value)(value[index] for index in self._indices) if is_list else value


@dataclass(frozen=True)
class Portion:
    """Part of the samples of an evaluation, of which loaders can be made; it is small, and divisible by four.

    `is_cut` is true for an evaluation of several batches, `ends_short` for one whose last batch is smaller. `size` is
    that of the user's own batches, 0 where it is not known.
    """

    num: int
    make: Callable[[Sequence[int], int], Any]
    is_cut: bool
    ends_short: bool
    size: int

    def load(self, size: int, *, is_reversed: bool = False) -> Any:
        """Make a loader of batches of a size, in the order of the samples or in the other."""
        return self.make([*range(self.num)][:: -1 if is_reversed else 1], size)


def cut_loader(loader: Any, indices: Sequence[int], samples: Sequence[Any]) -> Portion:
    """Make a portion of a DataLoader from samples of its set that have been read."""
    if getattr(loader, "batch_sampler", None) is None:
        raise NotApplicableError("a loader that makes no batches")
    num = len(samples) // 4 * 4
    data = Part(loader.dataset, indices[:num], samples[:num])
    size, drawn = loader.batch_size, len(loader.sampler)

    def make(order: Sequence[int], size: int) -> Any:
        return DataLoader(data, size, sampler=order, collate_fn=loader.collate_fn)

    ends_short = size is not None and drawn > size and drawn % size != 0 and not loader.drop_last
    return Portion(num, make, size is None or drawn > size, ends_short, size or 0)


def cut_batches(batches: Sequence[Any], *, most: int) -> Portion:
    """Make a portion of a list of batches whose tensors have a row for each sample."""
    sizes = [count_samples(Batch(batch, ())) for batch in batches]
    if min(sizes, default=0) < 1:
        raise NotApplicableError("batches without a row for each sample")
    whole = _join_batches(batches)
    num = min(sum(sizes), most) // 4 * 4

    def make(order: Sequence[int], size: int) -> list[Any]:
        chunks = [[*order][start : start + size] for start in range(0, num, size)]
        return [take_rows(whole, chunk) for chunk in chunks]

    return Portion(num, make, len(batches) > 1, len(batches) > 1 and sizes[-1] != sizes[0], sizes[0])


def _join_batches(batches: Sequence[Any]) -> Any:
    leaves: list[Mapping[str, Tensor]] = [dict(tree_leaves(batch)) for batch in batches]
    return tree_map(batches[0], lambda path, _: torch.cat([each[path] for each in leaves]))
