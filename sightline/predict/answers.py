"""What every prediction has in common: a file that was read, the reason of one that was not, and all answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from sightline.predict.cloud_samples import FileSample
from sightline.types import Batch, Field

__all__ = ["Answers", "Predictions", "ReadFile", "Refusal", "exit_code_of"]

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Refusal:
    """A file that got no prediction, and why; `is_input` where the file is the cause, not the model."""

    file: Path
    reason: str
    is_input: bool = True


@dataclass(frozen=True)
class Predictions(Generic[Answer]):
    """Every file given, in one of the two lists, each in the order of the files."""

    predicted: tuple[Answer, ...]
    refused: tuple[Refusal, ...]

    @property
    def exit_code(self) -> int:
        """0 where every file got a prediction, 2 where an input was refused, else 1: the model answered no number."""
        return exit_code_of(self.refused)


def exit_code_of(refused: Sequence[Refusal]) -> int:
    """0 where nothing was refused, 2 where an input was, else 1."""
    if any(refusal.is_input for refusal in refused):
        return 2
    return 1 if refused else 0


class ReadFile(NamedTuple):
    """A file as a sample of the run's set, and what the sample gets besides what stands in the file."""

    path: Path
    sample: FileSample
    given: Mapping[str, Any]


class Answers(Protocol):
    """What differs between runs that class clouds and runs that class points."""

    @property
    def fields(self) -> Mapping[str, Field]:
        """What samples get besides what stands in their files."""
        ...

    @property
    def hidden(self) -> frozenset[str]:
        """The keys of a batch that are kept from the model."""
        ...

    @property
    def draws_meshes(self) -> bool:
        """Whether points are drawn from a mesh, or its vertices taken."""
        ...

    def read(self, path: Path, sample: FileSample) -> ReadFile:
        """The sample with the values of `fields`. Raises DataError for a file that lacks what they need."""
        ...

    def __call__(
        self, files: Sequence[ReadFile], batch: Batch, predictions: Mapping[str, Any]
    ) -> dict[Path, Any | Refusal]:
        """The answer to each file of a batch, `predictions` being those of the run's task."""
        ...
