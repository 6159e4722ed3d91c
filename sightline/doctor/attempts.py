"""Attempts at questions: an answer, or the reason why there is none; random states are as they were."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch

from sightline.contract.errors import summarise_error
from sightline.doctor.program_code import find_failed_line
from sightline.instrument.random_state import preserve_random_state, seed_all

UNASKED = ("apply", "left")
"""Kinds of missing evidence of which a question was not asked."""


class NotApplicableError(Exception):
    """A question that this subject does not have, with the reason in a few words: `no labels of classes`.

    `lacks` names the argument by which a caller would have it, such as `optimizer`; a verdict asks for it.
    """

    def __init__(self, reason: str, *, lacks: str = "") -> None:
        super().__init__(reason)
        self.lacks = lacks


class LeftOutError(NotApplicableError):
    """A question that this subject has, and that was left out: of too few samples, or of what does not repeat."""


class MissingError(Exception):
    """Evidence that is missing: it does not `apply`, was `left` out, `failed`, or would have `cost` more than allowed.

    `reason` says why in words of the user, `source` is what was asked; as text, both. `cost_s` is what was too much,
    `line` where the program itself raised what has failed: file and number.
    """

    def __init__(
        self,
        kind: Literal["apply", "left", "failed", "cost"],
        reason: str,
        *,
        source: str = "",
        lacks: str = "",
        cost_s: float = 0.0,
        line: tuple[str, int] | None = None,
    ) -> None:
        super().__init__(f"{source}: {reason}" if source else reason)
        self.kind = kind
        self.reason = reason
        self.source = source
        self.lacks = lacks
        self.cost_s = cost_s
        self.line = line

    @property
    def is_unasked(self) -> bool:
        """True for a question that was not asked, which is no fault."""
        return self.kind in UNASKED


class _OwnWork(threading.local):
    """True in a thread that runs the doctor's own work, which is none of the program that it watches."""

    is_on = False


OWN_WORK = _OwnWork()


class _Series(threading.local):
    """True in a thread between the attempts of a series, where nothing reads random numbers."""

    is_open = False


_SERIES = _Series()


@contextmanager
def own_work() -> Iterator[None]:
    """Context of the doctor's own work in this thread."""
    before, OWN_WORK.is_on = OWN_WORK.is_on, True
    try:
        yield
    finally:
        OWN_WORK.is_on = before


@contextmanager
def series_of_attempts() -> Iterator[None]:
    """Context of many attempts with nothing random between them: random states are put back once, at its end."""
    with preserve_random_state(), _series(is_open=True):
        yield


@contextmanager
def _series(*, is_open: bool) -> Iterator[None]:
    before, _SERIES.is_open = _SERIES.is_open, is_open
    try:
        yield
    finally:
        _SERIES.is_open = before


def attempt(name: str, run: Callable[..., Any], read: Mapping[str, Any]) -> Any:
    """Ask a question; return the answer, or a MissingError with the reason why there is none.

    It begins with the same random numbers each time.
    """
    return observe(name, _run_anew, run, read)


def observe(name: str, run: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function returns, or a MissingError with the reason why it does not; random states are its own.

    The one place where any error of a user's parts is taken: models, losses, sets, loops and the numbers in them may be
    of any kind. It is the cause of the MissingError; one that is raised again stays what it is.
    """
    try:
        return run(*arguments)
    except NotApplicableError as reason:
        kind: Any = "left" if isinstance(reason, LeftOutError) else "apply"
        return MissingError(kind, str(reason), lacks=reason.lacks)
    except MissingError as known:
        return known
    except Exception as error:  # noqa: BLE001 - kept as the reason, which reaches the verdict
        line = find_failed_line(error.__traceback__)
        missing = MissingError("failed", summarise_error(error, max_length=160), source=name, line=line)
        missing.__cause__ = error
        return missing


def _run_anew(run: Callable[..., Any], read: Mapping[str, Any]) -> Any:
    with nullcontext() if _SERIES.is_open else preserve_random_state(), _series(is_open=False), torch.enable_grad():
        seed_all(0)
        return run(**read)
