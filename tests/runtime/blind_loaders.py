"""Bugs of a blind exam, and kin of them, in data sets and loaders; each with a form in which it is mended.

The forty scripts were written before anything of the package was read (docs/results/doctor.md, "A blind exam").
These are the relations that they asked for, smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset, WeightedRandomSampler


class Items(Dataset[Any]):
    """Data set of a function of the index."""

    def __init__(self, read: Callable[[int], Any], size: int = 48) -> None:
        self.read, self.size = read, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        return self.read(index)


_POINTS = torch.randn(48, 30, 3, generator=torch.Generator().manual_seed(0))
_IMAGES = torch.randn(48, 2, 9, 9, generator=torch.Generator().manual_seed(0))


def seeded_by_numpy(bug: bool) -> DataLoader[Any]:
    def read(index: int) -> Any:
        if bug:
            np.random.seed(0)
        return _POINTS[index] + float(np.random.normal()), index % 3

    return DataLoader(Items(read), 8, shuffle=True)


class Stored(Dataset[Any]):
    def __init__(self, values: Any, bug: bool) -> None:
        self.values, self.bug = values, bug

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> Any:
        points = self.values[index] if self.bug else self.values[index] + 0
        points -= 0.3
        points *= 1.1
        return torch.as_tensor(points), index % 3


def edited_tensor(bug: bool) -> DataLoader[Any]:
    return DataLoader(Stored(_POINTS.clone(), bug), 8, shuffle=True)


def edited_array(bug: bool) -> DataLoader[Any]:
    return DataLoader(Stored(_POINTS.numpy().copy(), bug), 8, shuffle=True)


def image_flipped_alone(bug: bool) -> DataLoader[Any]:
    def read(index: int) -> Any:
        image, mask = _IMAGES[index], (_IMAGES[index, 0] > 0).long()
        if torch.rand(()) < 0.5:
            image, mask = image.flip(-1), mask if bug else mask.flip(-1)
        return image, mask

    return DataLoader(Items(read), 8, shuffle=True)


def scan_upside_down_alone(bug: bool) -> DataLoader[Any]:
    def read(index: int) -> Any:
        image, depth = _IMAGES[index], _IMAGES[index, :1].exp()
        if torch.rand(()) < 0.5:
            image, depth = image.flip(-2), depth if bug else depth.flip(-2)
        return image + 0.01 * torch.randn(2, 9, 9), depth

    return DataLoader(Items(read), 8, shuffle=True)


def two_subsets(bug: bool) -> DataLoader[Any]:
    def read(index: int) -> Any:
        chosen = torch.randperm(30)[:16]
        return _POINTS[index][chosen], (_POINTS[index, :, 0] > 0).long()[torch.randperm(30)[:16] if bug else chosen]

    return DataLoader(Items(read), 8, shuffle=True)


def labels_between_classes(bug: bool) -> DataLoader[Any]:
    def read(index: int) -> Any:
        mask = (_IMAGES[index, :1] * 3).round().clamp(0, 4)[None]
        options = {"mode": "bilinear", "align_corners": False} if bug else {"mode": "nearest"}
        return F.interpolate(_IMAGES[index][None], size=(6, 6))[0], F.interpolate(mask, size=(6, 6), **options)[
            0, 0
        ].long()

    return DataLoader(Items(read), 8, shuffle=True)


def weights_of_classes(bug: bool) -> DataLoader[Any]:
    label = torch.arange(48) % 3
    weights = 1 / label.bincount().float()
    sampler = WeightedRandomSampler(weights if bug else weights[label], 48)  # type: ignore[arg-type]
    return DataLoader(TensorDataset(_POINTS, label), 8, sampler=sampler)


def few_samples_again_and_again(bug: bool) -> DataLoader[Any]:
    values = torch.randn(400, 5)
    order = [index % 4 if bug else index for index in range(400)]
    return DataLoader(TensorDataset(values, torch.arange(400) % 3), 8, sampler=order)


def inputs_sorted_alone(bug: bool) -> DataLoader[Any]:
    def collate(samples: list[Any]) -> Any:
        points, labels = zip(*samples, strict=True)
        order = sorted(range(len(points)), key=lambda row: float(points[row].sum()))
        return torch.stack([points[row] for row in order]), torch.tensor(
            labels if bug else [labels[row] for row in order]
        )

    return DataLoader(TensorDataset(_POINTS, torch.arange(48)), 8, shuffle=True, collate_fn=collate)


def sorted_by_class(bug: bool) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.randn(160, 5), torch.arange(160) // 40), 8, shuffle=not bug)


LOADERS: dict[str, Sequence[Callable[[bool], DataLoader[Any]]]] = {
    "data.duplicate_randomness": [seeded_by_numpy],
    "data.item_mutation": [edited_tensor, edited_array],
    "data.augment_target_mismatch": [image_flipped_alone, scan_upside_down_alone],
    "data.pairing": [two_subsets, inputs_sorted_alone],
    "data.target_encoding": [labels_between_classes],
    "data.sampling": [weights_of_classes, few_samples_again_and_again],
    "data.ordering": [sorted_by_class],
}
"""By the first cause of each."""


def own_generator() -> DataLoader[Any]:
    generator = np.random.default_rng(0)
    return DataLoader(Items(lambda index: (_POINTS[index] + float(generator.normal()), index % 3)), 8, shuffle=True)


def cached_items() -> DataLoader[Any]:
    cache, is_full = torch.zeros(48, 30, 3), torch.zeros(48, dtype=torch.bool)

    def read(index: int) -> Any:
        if not is_full[index]:
            cache[index], is_full[index] = _POINTS[index] * 2, True
        return cache[index], index % 3

    return DataLoader(Items(read), 8, shuffle=True)


def mixed_up() -> DataLoader[Any]:
    def collate(samples: list[Any]) -> Any:
        points, label = (
            torch.stack([p for p, _ in samples]),
            F.one_hot(torch.tensor([y for _, y in samples]), 3).float(),
        )
        share = torch.distributions.Beta(0.4, 0.4).sample()
        other = torch.randperm(len(points))
        return share * points + (1 - share) * points[other], share * label + (1 - share) * label[other]

    return DataLoader(Items(lambda index: (_POINTS[index], index % 3)), 8, shuffle=True, collate_fn=collate)


def cropped_and_flipped_with_a_class() -> DataLoader[Any]:
    def read(index: int) -> Any:
        image = _IMAGES[index][:, :, int(torch.randint(3, ())) :][:, :, :6]
        return image.flip(-1) if torch.rand(()) < 0.5 else image, index % 3

    return DataLoader(Items(read), 8, shuffle=True)


def binary_mask_by_a_threshold() -> DataLoader[Any]:
    def read(index: int) -> Any:
        mask = F.interpolate((_IMAGES[index, :1] > 0).float()[None], (6, 6), mode="bilinear")
        return _IMAGES[index], (mask[0, 0] > 0.5).long()

    return DataLoader(Items(read), 8, shuffle=True)


HEALTHY_LOADERS = [own_generator, cached_items, mixed_up, cropped_and_flipped_with_a_class, binary_mask_by_a_threshold]
