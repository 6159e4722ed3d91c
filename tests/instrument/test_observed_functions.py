"""Functions that torch has no hook for: observers of one function begin and end in any order, in any thread."""

from __future__ import annotations

import itertools
import threading
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import sightline
from sightline.instrument import observe_backward, observe_saves, replace_function


def _list_observable() -> tuple[Any, ...]:
    return torch.autograd.backward, torch.amp.GradScaler.unscale_, torch.save


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_function_itself_is_back_after_contexts_that_end_in_any_order(order: tuple[int, ...]) -> None:
    """One of the observers is there twice."""

    def double(value: int) -> int:
        return 2 * value

    owner, heard = SimpleNamespace(double=double), list[int]()

    def make_observer(place: int) -> Any:
        def run(original: Any, value: int) -> int:
            heard.append(place)
            return original(value) + 100

        return run

    once, twice = make_observer(0), make_observer(1)
    contexts = [replace_function(owner, "double", run) for run in (once, twice, twice)]
    for context in contexts:
        context.__enter__()
    for number, place in enumerate(order):
        heard.clear()
        assert owner.double(1) == 2 + 100 * (3 - number)
        assert sorted(heard) == sorted(min(left, 1) for left in order[number:])
        contexts[place].__exit__(None, None, None)
    assert owner.double is double


def test_a_library_that_replaces_the_function_meanwhile_keeps_its_own() -> None:
    """The one that it has kept goes on without the observers."""
    owner, heard = SimpleNamespace(double=lambda value: 2 * value), list[int]()

    def run(function: Any, value: int) -> Any:
        heard.append(value)
        return function(value)

    with replace_function(owner, "double", run):
        kept = owner.double
        owner.double = own = lambda value: kept(value) + 1
        with replace_function(owner, "double", run):
            assert owner.double(1) == 3
            assert heard == [1, 1]
    assert owner.double is own
    assert owner.double(1) == 3
    assert heard == [1, 1]


def test_contexts_of_several_threads_leave_the_functions_of_torch() -> None:
    """Both are in the function when the first of them ends."""
    originals, barrier, heard = _list_observable(), threading.Barrier(2), list[tuple[str, str]]()

    def note(name: str) -> None:
        heard.append((name, threading.current_thread().name))

    def train(name: str, *, is_first: bool) -> None:
        weight = torch.zeros(2, requires_grad=True)
        with ExitStack() as stack:
            stack.enter_context(observe_backward(lambda roots: note(name), lambda: note(name)))
            stack.enter_context(observe_saves(lambda file: None))
            barrier.wait()
            weight.sum().backward()
            barrier.wait()
            if not is_first:
                barrier.wait()
                weight.sum().backward()
        if is_first:
            barrier.wait()

    threads = [
        threading.Thread(target=train, args=(name,), kwargs={"is_first": name == "a"}, name=name) for name in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    both = [(name, thread) for name in "ab" for thread in "ab"]
    assert sorted(heard) == sorted([*both, *both, ("b", "b"), ("b", "b")])
    assert _list_observable() == originals


def test_many_threads_at_once_leave_the_function() -> None:
    """Contexts that begin and end at the same time: none is lost, and the last puts the function back."""
    owner, count = SimpleNamespace(double=lambda value: 2 * value), itertools.count()
    original = owner.double

    def run(function: Any, value: int) -> Any:
        next(count)
        return function(value)

    def work() -> None:
        for _ in range(200):
            with replace_function(owner, "double", run):
                owner.double(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert owner.double is original
    assert next(count) >= 800


def test_watches_that_end_in_their_order_leave_torch_as_it_was() -> None:
    originals, models = _list_observable(), [nn.Linear(4, 2) for _ in range(2)]
    watches = [sightline.watch(model) for model in models]
    for watch in watches:
        watch.__enter__()
    for model, watch in zip(models, watches, strict=True):
        model(torch.randn(3, 4)).sum().backward()
        watch.__exit__(None, None, None)
    assert _list_observable() == originals
