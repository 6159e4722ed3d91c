"""Programs whose data are read, drawn, paired or divided wrongly."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, WeightedRandomSampler

from tests.doctor.rows import Case


class Table(Dataset[Any]):
    """Samples that a function makes from what is stored."""

    def __init__(self, values: Any, targets: Any, read: Callable[[Any, Any], Any]) -> None:
        self.values, self.targets, self.read = values, targets, read

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> Any:
        return self.read(self.values[index], self.targets[index])


class Points(nn.Module):
    """Answers each row of a set of points."""

    def __init__(self, num_inputs: int, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Linear(num_inputs, num_classes)

    def forward(self, points: Tensor) -> Tensor:
        answers: Tensor = self.body(points)
        return answers.movedim(-1, 1)


def make_classes(size: int = 96, *, classes: int = 3, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    labels = torch.randint(0, classes, (size,))
    return (torch.randn(size, 6) + 2 * torch.eye(6)[labels]) * scale, labels


def check_classes(check: Any, loader: Any, *, classes: int = 3, **options: Any) -> None:
    check(nn.Linear(6, classes), nn.CrossEntropyLoss(), loader, **options)


def scaled_in_place(has_bug: bool, watch: Any, check: Any) -> None:
    def read(values: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        values = values if has_bug else values.clone()
        values *= 0.9
        return values, label

    check_classes(check, DataLoader(Table(*make_classes(), read), 16, shuffle=True))


def signal_centred_in_place(has_bug: bool, watch: Any, check: Any) -> None:
    signals = np.random.default_rng(0).normal(1, 1, (48, 2, 20)).astype(np.float32)

    def read(signal: Any, label: Tensor) -> tuple[Any, Tensor]:
        signal = signal if has_bug else signal.copy()
        signal += np.float32(random.gauss(0, 0.1))
        return torch.tensor(signal), label

    network = nn.Sequential(nn.Flatten(), nn.Linear(40, 4))
    data = Table(signals, torch.randint(0, 4, (48,)), read)
    check(network, nn.CrossEntropyLoss(), DataLoader(data, 8, shuffle=True))


def seeded_item(has_bug: bool, watch: Any, check: Any) -> None:
    def read(values: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        if has_bug:
            torch.manual_seed(7)
        return values + 0.1 * torch.randn(6), label

    check_classes(check, DataLoader(Table(*make_classes(), read), 16, shuffle=True))


def seeded_noise_of_signals(has_bug: bool, watch: Any, check: Any) -> None:
    def read(signal: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        if has_bug:
            np.random.seed(3)
        return signal + torch.tensor(np.random.normal(0, 0.1, 20), dtype=torch.float32), target

    data = Table(torch.randn(40, 20), torch.randn(40, 1), read)
    check(nn.Linear(20, 1), nn.MSELoss(), DataLoader(data, 8, shuffle=True))


def workers_seeded_alike(has_bug: bool, watch: Any, check: Any) -> None:
    def prepare(worker: int) -> None:
        seed = 5 + worker if has_bug else torch.initial_seed() % 2**32 + worker
        np.random.seed(seed)

    def read(values: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        return values * float(np.random.uniform(0.8, 1.2)), label

    data = Table(*make_classes(), read)
    check_classes(check, InProcess(data, 16, shuffle=True, num_workers=2, worker_init_fn=prepare))


def workers_seeded_torch(has_bug: bool, watch: Any, check: Any) -> None:
    def prepare(worker: int) -> None:
        if has_bug:
            torch.manual_seed(worker)
        else:
            random.seed(worker)  # of which no item reads a number

    data = Table(torch.randn(40, 3, 8), torch.randn(40, 2), lambda x, y: (x.roll(int(torch.randint(8, ())), 1), y))
    network = nn.Sequential(nn.Flatten(), nn.Linear(24, 2))
    check(network, nn.MSELoss(), InProcess(data, 8, shuffle=True, num_workers=1, worker_init_fn=prepare))


class InProcess(DataLoader[Any]):
    """Loader that is described with workers, and read without one in these tests."""

    def __iter__(self) -> Any:
        return iter(DataLoader(self.dataset, self.batch_size))


def weights_of_classes(has_bug: bool, watch: Any, check: Any) -> None:
    values, labels = make_classes()
    weights = 1 / torch.bincount(labels).double()
    sampler = WeightedRandomSampler((weights if has_bug else weights[labels]).tolist(), len(labels))
    check_classes(check, DataLoader(TensorDataset(values, labels), 16, sampler=sampler))


def weights_of_other_samples(has_bug: bool, watch: Any, check: Any) -> None:
    torch.manual_seed(0)
    labels = torch.multinomial(torch.tensor([0.7, 0.2, 0.1]), 400, replacement=True)
    weights = (1 / torch.bincount(labels).double())[labels]
    weights = weights[torch.randperm(400)] if has_bug else weights
    data = TensorDataset(torch.randn(400, 6) + 3 * F.one_hot(labels, 6), labels)
    check_classes(check, DataLoader(data, 16, sampler=WeightedRandomSampler(weights.tolist(), 400)))


def sorted_and_not_shuffled(has_bug: bool, watch: Any, check: Any) -> None:
    values, labels = make_classes()
    order = labels.argsort()
    check_classes(check, DataLoader(TensorDataset(values[order], labels[order]), 8, shuffle=not has_bug))


def sorted_documents(has_bug: bool, watch: Any, check: Any) -> None:
    labels = torch.arange(90) // 18
    data = Table(torch.randint(0, 20, (90, 6)).float(), labels, lambda x, y: (x, int(y)))
    check_classes(check, DataLoader(data, 6, shuffle=not has_bug), classes=5)


def sorted_by_length(has_bug: bool, watch: Any, check: Any) -> None:
    torch.manual_seed(0)
    signals = [torch.randn(int(n), 4) for n in torch.randint(3, 9, (40,))]
    targets = [signal.sum(dim=0)[:2] for signal in signals]

    def collate(samples: list[Any]) -> tuple[Tensor, Tensor]:
        order = sorted(range(len(samples)), key=lambda i: -len(samples[i][0]))
        inputs = nn.utils.rnn.pad_sequence([samples[i][0] for i in order], batch_first=True)
        inputs = torch.nn.functional.pad(inputs, (0, 0, 0, 9 - inputs.shape[1]))
        return inputs, torch.stack([samples[i][1] for i in (range(len(samples)) if has_bug else order)])

    data = Table(signals, targets, lambda x, y: (x, y))
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    check(network, nn.MSELoss(), DataLoader(data, 8, shuffle=True, collate_fn=collate))


def images_shuffled_in_collate(has_bug: bool, watch: Any, check: Any) -> None:
    def collate(samples: list[Any]) -> tuple[Tensor, Tensor]:
        images = torch.stack(sorted((image for image, _ in samples), key=lambda image: float(image.sum())))
        ordered = sorted(samples, key=lambda sample: float(sample[0].sum()))
        return images, torch.tensor([label for _, label in (samples if has_bug else ordered)])

    labels = [i % 4 for i in range(40)]
    network = nn.Sequential(nn.Flatten(), nn.Linear(27, 4))
    data = Table(torch.randn(40, 3, 3, 3), labels, lambda x, y: (x, y))
    check(network, nn.CrossEntropyLoss(), DataLoader(data, 8, shuffle=True, collate_fn=collate))


def points_without_labels(has_bug: bool, watch: Any, check: Any) -> None:
    def read(points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        order = torch.randperm(len(points))
        return points[order], labels[torch.randperm(len(points)) if has_bug else order]

    points = torch.randn(20, 30, 3)
    data = Table(points, (points[..., 0] > 0).long(), read)
    check(Points(3, 2), nn.CrossEntropyLoss(), DataLoader(data, 4, shuffle=True))


def maps_left_unturned(has_bug: bool, watch: Any, check: Any) -> None:
    def read(image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if random.random() < 0.5:
            return image.flip(-1), labels if has_bug else labels.flip(-1)
        return image, labels

    torch.manual_seed(0)
    images = torch.rand(24, 3, 8, 8)
    data = Table(images, (images.sum(dim=1) > 1.5).long(), read)
    check(nn.Conv2d(3, 2, 3, padding=1), nn.CrossEntropyLoss(), DataLoader(data, 4, shuffle=True))


def depth_turned_otherwise(has_bug: bool, watch: Any, check: Any) -> None:
    def read(image: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
        times = int(torch.randint(0, 4, ()))
        return image.rot90(times, (-2, -1)), depth.rot90(-times if has_bug else times, (-2, -1))

    torch.manual_seed(0)
    images = torch.rand(24, 2, 6, 6)
    check(nn.Conv2d(2, 1, 1), nn.L1Loss(), DataLoader(Table(images, images.mean(dim=1, keepdim=True), read), 4, True))


def overlapping_subsets(has_bug: bool, watch: Any, check: Any) -> None:
    data = TensorDataset(*make_classes())
    first = DataLoader(Subset(data, range(70)), 10, shuffle=True)
    check_classes(check, first, evaluation=DataLoader(Subset(data, range(0 if has_bug else 70, 96)), 13))


def copied_recordings(has_bug: bool, watch: Any, check: Any) -> None:
    torch.manual_seed(0)
    values, targets = torch.randn(80, 6), torch.randn(80, 1)
    other = torch.cat((values[:12], torch.randn(12, 6))) if has_bug else torch.randn(24, 6)
    first = DataLoader(TensorDataset(values, targets), 8, shuffle=True)
    check(nn.Linear(6, 1), nn.MSELoss(), first, evaluation=DataLoader(TensorDataset(other, torch.randn(24, 1)), 8))


def remainder_left_out(has_bug: bool, watch: Any, check: Any) -> None:
    values, labels = make_classes(116)
    first = DataLoader(TensorDataset(values[:80], labels[:80]), 8, shuffle=True, drop_last=True)
    rest = TensorDataset(values[80:], labels[80:])
    check_classes(check, first, evaluation=DataLoader(rest, 16, drop_last=has_bug))


def evaluation_left_raw(has_bug: bool, watch: Any, check: Any) -> None:
    values, labels = make_classes(192)
    first = DataLoader(TensorDataset(values[:96] / 16, labels[:96]), 16, shuffle=True)
    rest = TensorDataset(values[96:] / (1 if has_bug else 16), labels[96:])
    check_classes(check, first, evaluation=DataLoader(rest, 16))


def channels_exchanged(has_bug: bool, watch: Any, check: Any) -> None:
    torch.manual_seed(0)
    images = torch.randn(64, 3, 6, 6) * 0.2 + torch.tensor([0.2, 0.5, 0.8])[:, None, None]
    network = nn.Sequential(nn.Flatten(), nn.Linear(108, 1))
    rest = images[32:].flip(1) if has_bug else images[32:]
    first = DataLoader(TensorDataset(images[:32], torch.randn(32, 1)), 8, shuffle=True)
    check(network, nn.MSELoss(), first, evaluation=DataLoader(TensorDataset(rest, torch.randn(32, 1)), 8))


def labels_of_another_folder(has_bug: bool, watch: Any, check: Any) -> None:
    values, labels = make_classes(400, classes=4, scale=3)
    first = DataLoader(TensorDataset(values[:256], labels[:256]), 16, shuffle=True)
    rest = TensorDataset(values[256:], (labels[256:] + has_bug) % 4)
    check_classes(check, first, classes=4, evaluation=DataLoader(rest, 16))


def names_sorted_otherwise(has_bug: bool, watch: Any, check: Any) -> None:
    torch.manual_seed(0)
    labels = torch.randint(0, 5, (400,))
    images = 0.5 * torch.randn(400, 1, 5, 5) + torch.eye(5)[labels][:, None, :, None]
    other = torch.tensor([3, 1, 4, 0, 2])[labels] if has_bug else labels
    network = nn.Sequential(nn.Flatten(), nn.Linear(25, 16), nn.ReLU(), nn.Linear(16, 5))
    first = DataLoader(TensorDataset(images[:240], labels[:240]), 16, shuffle=True)
    rest = DataLoader(TensorDataset(images[240:], other[240:]), 16)
    check(network, nn.CrossEntropyLoss(), first, evaluation=rest)


def folder_of_fewer_classes(has_bug: bool, watch: Any, check: Any) -> None:
    values, labels = make_classes(500, classes=4, scale=3)
    first = DataLoader(TensorDataset(values[:256], labels[:256]), 16, shuffle=True)
    rest, numbers = values[256:], labels[256:]
    rest, numbers = rest[numbers != 1], numbers[numbers != 1]
    numbers = numbers - (numbers > 1).long() if has_bug else numbers
    check_classes(check, first, classes=4, evaluation=DataLoader(TensorDataset(rest, numbers), 16))


def maps_resized_smoothly(has_bug: bool, watch: Any, check: Any) -> None:
    torch.manual_seed(0)
    small = torch.randint(0, 3, (24, 1, 4, 4)).float() * 4
    mode = {"mode": "bilinear", "align_corners": False} if has_bug else {"mode": "nearest"}
    maps = nn.functional.interpolate(small, size=(16, 16), **mode)[:, 0].round().long()
    data = TensorDataset(torch.rand(24, 3, 16, 16), maps)
    check(nn.Conv2d(3, 9, 1), nn.CrossEntropyLoss(), DataLoader(data, 4, shuffle=True))


def class_never_trained(has_bug: bool, watch: Any, check: Any) -> None:
    values, labels = make_classes(400)
    kept = labels[:200] != 2 if has_bug else labels[:200] >= 0
    first = DataLoader(TensorDataset(values[:200][kept], labels[:200][kept]), 10, shuffle=True)
    check_classes(check, first, evaluation=DataLoader(TensorDataset(values[200:], labels[200:]), 20))


def answer_among_the_columns(has_bug: bool, watch: Any, check: Any) -> None:
    torch.manual_seed(0)
    values, noise = torch.randn(64, 6), torch.randn(64, 1)
    targets = values[:, 3:4] + (0 if has_bug else 0.1) * noise
    check(nn.Linear(6, 1), nn.MSELoss(), DataLoader(TensorDataset(values, targets), 16, shuffle=True))


def padding_is_a_class(has_bug: bool, watch: Any, check: Any) -> None:
    torch.manual_seed(0)
    signals = [torch.randn(int(n), 3) for n in torch.randint(3, 10, (40,))]
    labels = [(signal[:, 0] > 0).long() for signal in signals]

    def collate(samples: list[Any]) -> tuple[Tensor, Tensor]:
        inputs, targets = zip(*samples, strict=True)
        pad = nn.utils.rnn.pad_sequence
        return pad(inputs, batch_first=True), pad(targets, batch_first=True, padding_value=0 if has_bug else -100)

    data = Table(signals, labels, lambda x, y: (x, y))
    check(Points(3, 2), nn.CrossEntropyLoss(), DataLoader(data, 8, shuffle=True, collate_fn=collate))


CASES = [
    Case("a sample scaled in place", scaled_in_place, "data.item_mutation"),
    Case("a signal shifted in place", signal_centred_in_place, "data.item_mutation"),
    Case("a seed in __getitem__", seeded_item, "data.duplicate_randomness"),
    Case("a seed of NumPy in a transform", seeded_noise_of_signals, "data.duplicate_randomness"),
    Case("workers seeded alike in each epoch", workers_seeded_alike, "data.duplicate_randomness"),
    Case("workers seeded by their number", workers_seeded_torch, "data.duplicate_randomness"),
    Case("a weight for each class", weights_of_classes, "data.sampling"),
    Case("weights of other samples", weights_of_other_samples, "data.sampling data.pairing"),
    Case("sorted by class, not shuffled", sorted_and_not_shuffled, "data.ordering"),
    Case("documents sorted by class", sorted_documents, "data.ordering"),
    Case("inputs sorted by length in collate", sorted_by_length, "data.pairing"),
    Case("images sorted in collate", images_shuffled_in_collate, "data.pairing"),
    Case("points in another order than labels", points_without_labels, "data.pairing"),
    Case("label maps left unmirrored", maps_left_unturned, "data.augment_target_mismatch"),
    Case("depth turned the other way", depth_turned_otherwise, "data.augment_target_mismatch"),
    Case("subsets that overlap", overlapping_subsets, "data.split"),
    Case("recordings in both parts", copied_recordings, "data.split"),
    Case("a remainder left out of evaluation", remainder_left_out, "eval.protocol"),
    Case("evaluation inputs left raw", evaluation_left_raw, "data.normalisation"),
    Case("evaluation channels exchanged", channels_exchanged, "data.normalisation data.layout"),
    Case("labels of evaluation shifted", labels_of_another_folder, "data.label_mapping"),
    Case("class names sorted otherwise", names_sorted_otherwise, "data.label_mapping"),
    Case("a folder that lacks a class", folder_of_fewer_classes, "data.label_mapping"),
    Case("label maps resized smoothly", maps_resized_smoothly, "data.target_encoding"),
    Case("a class that training lacks", class_never_trained, "data.split"),
    Case("the answer among the inputs", answer_among_the_columns, "data.label_leak"),
    Case("padding counted as a class", padding_is_a_class, "data.padding"),
]
