"""Labels from probabilities, worked by hand: one a sample, one a point, and among the parts of the own category."""

from __future__ import annotations

import torch

from sightline.metrics.labels import predict_labels

TABLE = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.4, 0.1, 0.3, 0.2], [0.25, 0.25, 0.25, 0.25]])


def test_a_sample_has_one_label() -> None:
    assert [int(answer) for answer in predict_labels({}, {"probabilities": TABLE}, {})] == [3, 0, 0]


def test_the_points_of_each_cloud_have_theirs() -> None:
    predictions = {"probabilities": TABLE, "cloud_offsets": torch.tensor([0, 1, 1, 3])}
    assert [answer.tolist() for answer in predict_labels({}, predictions, {})] == [[3], [], [0, 0]]


def test_parts_are_sought_among_those_of_the_cloud() -> None:
    predictions = {"probabilities": TABLE, "cloud_offsets": torch.tensor([0, 1, 3])}
    facts = {"parts_of_category": ((0, 1), (2, 3))}
    batch = {"category": torch.tensor([0, 1])}
    assert [answer.tolist() for answer in predict_labels(batch, predictions, facts)] == [[1], [2, 2]]
    # A set that knows parts, but whose batches are of no category, is answered among all.
    assert [answer.tolist() for answer in predict_labels({}, predictions, facts)] == [[3], [0, 0]]
