"""Programs whose data are read, drawn, paired or divided wrongly, or whose targets mean something else."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, WeightedRandomSampler

from tests.doctor.rows import Cases, load
from tests.doctor.rows.sound import slow_folder
from tests.runtime.blind_loaders import Items


def table(num: int = 96, number: int = 3, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    labels = torch.randint(0, number, (num,))
    return (torch.randn(num, 6) + 2 * torch.eye(6)[labels]) * scale, labels


def classify(data: Any, number: int = 3, **options: Any) -> tuple[Any, ...]:
    return nn.Linear(6, number), nn.CrossEntropyLoss(), data, options


def divide(values: Tensor, labels: Tensor, place: int, number: int = 3, **options: Any) -> tuple[Any, ...]:
    """Train on what comes before a place, and evaluate the rest."""
    rest = load(values[place:], labels[place:], shuffle=False, **options)
    return classify(load(values[:place], labels[:place]), number, evaluation=rest)


def regress(loader: Any, num_inputs: int, num_targets: int) -> tuple[Any, ...]:
    layers = nn.Flatten(), nn.Linear(num_inputs, 16), nn.ReLU(), nn.Linear(16, num_targets)
    return nn.Sequential(*layers), nn.SmoothL1Loss(), loader


def seeded_item(bug: bool) -> tuple[Any, ...]:
    values, labels = table()

    def read(index: int) -> Any:
        if bug:
            torch.manual_seed(7)
        return values[index] + 0.1 * torch.randn(6), labels[index]

    return classify(DataLoader(Items(read), 16, shuffle=True))


class InProcess(DataLoader[Any]):
    """Loader that is described with workers, and read without one in these tests."""

    def __iter__(self) -> Any:
        return iter(DataLoader(self.dataset, self.batch_size))


def workers_seeded_alike(bug: bool) -> tuple[Any, ...]:
    values, labels = table()
    prepare = lambda worker: np.random.seed((5 if bug else torch.initial_seed() % 2**32) + worker)  # noqa: E731
    data = Items(lambda index: (values[index] * float(np.random.uniform(0.8, 1.2)), labels[index]))
    return classify(InProcess(data, 16, shuffle=True, num_workers=2, worker_init_fn=prepare))


def weights_of_other_samples(bug: bool) -> tuple[Any, ...]:
    labels = torch.multinomial(torch.tensor([0.7, 0.2, 0.1]), 400, replacement=True)
    weights = (1 / labels.bincount().double())[labels]
    sampler = WeightedRandomSampler((weights[torch.randperm(400)] if bug else weights).tolist(), 400)
    return classify(load(torch.randn(400, 6) + 3 * F.one_hot(labels, 6), labels, sampler=sampler))


def depth_turned_otherwise(bug: bool) -> tuple[Any, ...]:
    images = torch.rand(24, 2, 6, 6)

    def read(index: int) -> Any:
        times = int(torch.randint(0, 4, ()))
        depth = images[index].mean(dim=0, keepdim=True)
        return images[index].rot90(times, (1, 2)), depth.rot90(-times if bug else times, (1, 2))

    return nn.Conv2d(2, 1, 1), nn.L1Loss(), DataLoader(Items(read, 24), 4, shuffle=True)


def overlapping_subsets(bug: bool) -> tuple[Any, ...]:
    values, labels = table()
    rest = slice(0 if bug else 70, None)
    return classify(load(values[:70], labels[:70]), evaluation=load(values[rest], labels[rest], shuffle=False))


def other_channels(bug: bool) -> tuple[Any, ...]:
    images = torch.randn(64, 3, 6, 6) * 0.2 + torch.tensor([0.2, 0.5, 0.8])[:, None, None]
    rest = load(images[32:].flip(1) if bug else images[32:], torch.randn(32, 1), size=8, shuffle=False)
    first = load(images[:32], torch.randn(32, 1), size=8)
    return nn.Sequential(nn.Flatten(), nn.Linear(108, 1)), nn.MSELoss(), first, {"evaluation": rest}


def raw_evaluation(bug: bool) -> tuple[Any, ...]:
    values, labels = table(192)
    return divide(torch.cat([values[:96] / 16, values[96:] / (1 if bug else 16)]), labels, 96)


def other_labels(bug: bool) -> tuple[Any, ...]:
    values, labels = table(400, 4, 3.0)
    labels[256:] = (labels[256:] + bug) % 4
    return divide(values, labels, 256, 4)


def fewer_classes(bug: bool) -> tuple[Any, ...]:
    values, labels = table(500, 4, 3.0)
    kept = (labels != 1) | (torch.arange(500) < 256)
    values, labels = values[kept], labels[kept]
    labels[256:] -= ((labels[256:] > 1) & torch.tensor(bug)).long()
    return divide(values, labels, 256, 4)


def class_never_trained(bug: bool) -> tuple[Any, ...]:
    values, labels = table(400)
    kept = (labels != 2) | (torch.arange(400) >= 200) if bug else labels >= 0
    return divide(values[kept], labels[kept], int(kept[:200].sum()))


def answer_among_the_columns(bug: bool) -> tuple[Any, ...]:
    values = torch.randn(64, 6)
    return nn.Linear(6, 1), nn.MSELoss(), load(values, values[:, 3:4] + (not bug) * 0.1 * torch.randn(64, 1))


def map_among_the_inputs(bug: bool) -> tuple[Any, ...]:
    images = torch.randn(6, 3, 8, 8)
    target = (images[:, :1] > 0.3).float()
    images = torch.cat((images, target), 1) if bug else images
    layers = nn.Conv2d(images.shape[1], 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 1, 1)
    return nn.Sequential(*layers), nn.BCEWithLogitsLoss(), (images, target)


def boxes_not_padded(bug: bool) -> tuple[Any, ...]:
    """Wide images get a band above and below: their boxes are to be moved by its height."""
    scenes, low = torch.rand(40, 3, 12, 32) * 0.3 + 0.5, torch.rand(40, 2) * torch.tensor([20.0, 5.0])
    boxes = torch.cat([low, low + 2 + 4 * torch.rand(40, 2)], dim=1)
    for scene, (left, top, right, bottom) in zip(scenes, boxes.long().tolist(), strict=True):
        scene[:, top:bottom, left:right] += 1
    moved = boxes if bug else boxes + torch.tensor([0.0, 10, 0, 10])
    return regress(load(F.pad(scenes, [0, 0, 10, 10]), moved, size=8), 3 * 32 * 32, 4)


def sizes_upside_down(bug: bool) -> tuple[Any, ...]:
    """Boxes (left, top, width, height) of images turned upside down: taken for corners, or for what they are."""
    images, boxes = torch.rand(60, 1, 20, 20) * 0.3, torch.randint(2, 10, (60, 4)).float()
    for image, (left, top, width, height) in zip(images, boxes.int().tolist(), strict=True):
        image[0, top : top + height, left : left + width] += 0.6

    def read(index: int) -> Any:
        image, box = images[index], boxes[index]
        if torch.rand(()) < 0.5:
            left, top, width, height = box
            rest = (width, 20 - top) if bug else (width, height)
            image, box = image.flip(-2), torch.stack([left, 20 - (height if bug else top + height), *rest])
        return image, box / 20

    return regress(DataLoader(Items(read, 60), 8, shuffle=True), 400, 4)


def one_noise_for_both_views(bug: bool) -> tuple[Any, ...]:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 8)

        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            return F.normalize(self.layer(first), dim=1) @ F.normalize(self.layer(second), dim=1).T / 0.2

    rows = torch.randn(64, 6)
    views = rows, rows.clone() if bug else rows + 0.1 * torch.randn(64, 6)
    return Views(), nn.CrossEntropyLoss(), (views, torch.arange(64))


def events_of_one_recording(bug: bool) -> tuple[Any, ...]:
    """Rows (recording, time, length) of a batch's events; those of all recordings get the number of the first."""
    rows = torch.rand(10, 3)
    rows[:, 0] = 0 if bug else torch.arange(10) % 4

    def loss(outputs: Tensor, events: Tensor) -> Tensor:
        picked = outputs[events[:, 0].long(), :, (events[:, 1] * 32).long()]
        return F.smooth_l1_loss(picked, events[:, 1:]) + 0.1 * outputs.square().mean()

    return nn.Conv1d(2, 2, 5, padding=2), loss, (torch.randn(4, 2, 32), rows)


def rows_of_others(bug: bool) -> tuple[Any, ...]:
    batches = [(rows := torch.randn(32, 6), rows[:, :3].argmax(1)) for _ in range(4)]
    data = [(rows, target[torch.randperm(32)] if bug else target) for rows, target in batches]
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4)), nn.CrossEntropyLoss(), data


def numbers_of_others(bug: bool) -> tuple[Any, ...]:
    batches = [(rows := torch.randn(32, 6), 2 * rows[:, :2]) for _ in range(4)]
    data = [(rows, target[torch.randperm(32)] if bug else target) for rows, target in batches]
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2)), nn.MSELoss(), data


CASES: Cases = {
    "a seed in __getitem__": ("data.duplicate_randomness", seeded_item),
    "workers seeded alike in each epoch": ("data.duplicate_randomness", workers_seeded_alike),
    "one noise for both views": ("data.duplicate_randomness", one_noise_for_both_views),
    "weights of other samples": ("data.sampling data.pairing", weights_of_other_samples),
    "depth turned the other way": ("data.augment_target_mismatch", depth_turned_otherwise),
    "boxes that are not padded": ("data.augment_target_mismatch", boxes_not_padded),
    "boxes of a left, a top and sizes that are mirrored as corners": ("assign.box_format", sizes_upside_down),
    "parts that overlap": ("data.split", overlapping_subsets),
    "a class that training lacks": ("data.split", class_never_trained),
    "a remainder left out of evaluation": (
        "eval.protocol",
        lambda bug: divide(*table(116), 80, drop_last=bug),
    ),
    "evaluation inputs left raw": ("data.normalisation", raw_evaluation),
    "evaluation channels exchanged": ("data.normalisation data.layout", other_channels),
    "labels of evaluation shifted": ("data.label_mapping", other_labels),
    "a folder that lacks a class": ("data.label_mapping", fewer_classes),
    "one class too many": (
        "data.label_mapping",
        lambda bug: classify((torch.randn(64, 6), (torch.arange(64) % 3).index_fill(0, torch.tensor(63), 2 + bug))),
    ),
    "the answer among the inputs": ("data.label_leak", answer_among_the_columns),
    "a map among the inputs": ("data.label_leak", map_among_the_inputs),
    "events that all belong to one recording": ("data.pairing", events_of_one_recording),
    "labels of other samples": ("data.pairing", rows_of_others),
    "numbers of other samples": ("data.pairing", numbers_of_others),
    "a class that a slow folder lacks": ("data.split", slow_folder),
}
