"""Scoring of prediction files of one kind of data, as areas offer it (`PARTS["scorings"]`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from sightline.contract.catalogue import load_members
from sightline.contract.errors import UserError
from sightline.contract.types import ComponentConfig, DataInfo
from sightline.engine.evaluate import Evaluation
from sightline.engine.run_data import DataSubset
from sightline.workbench.evaluate.saved_predictions import ExternalPredictions, score_labels


class ScoredFiles(NamedTuple):
    """Metrics of prediction files, names of metrics that need more, notes to print, and names of samples by index."""

    evaluation: Evaluation
    not_computed: list[str]
    notes: list[str]
    sample_name: Callable[[int], str]


class Scoring:
    """Scoring of prediction files of data sets that have the fields `needs`: here of labels of points, of any set.

    `scored` names the predictions in messages.
    """

    needs: frozenset[str] = frozenset()
    scored = "labels of points"

    def score(
        self,
        part: DataSubset,
        metrics: Sequence[ComponentConfig],
        path: Path,
        *,
        category_offset: int = 0,
    ) -> ScoredFiles:
        """Compute the metrics of predictions in a file or folder.

        Category ids in the files are `category_offset` above those of the set; labels of points have none.
        """
        if category_offset:
            raise UserError("score: category_offset= is about category ids of boxes; these are labels of points")
        predictions, notes = ExternalPredictions(path, part), []
        if predictions.surplus:
            examples = ", ".join(map(str, predictions.surplus[:3]))
            surplus = len(predictions.surplus)
            notes.append(f"not scored: {surplus} files of samples outside the test part, such as {examples}")
        return ScoredFiles(*score_labels(part, metrics, predictions), notes, part.sample_name)


def find_scoring(info: DataInfo) -> Scoring:
    """Return the scoring of a data set: of those whose fields it has, the one that needs the most."""
    scorings: list[Scoring] = [Scoring(), *(make() for make in load_members("scorings"))]
    return max((s for s in scorings if s.needs <= info.fields.keys()), key=lambda scoring: len(scoring.needs))
