"""Correct programs in which a reviewer found that a relation of data sets or losses raised a false alarm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset, WeightedRandomSampler

from tests.runtime.blind_loaders import Items
from tests.runtime.blind_losses import CallOfTwo

Program = tuple[nn.Module, Any, DataLoader[Any]]


def drawn(index: int) -> torch.Generator:
    return torch.Generator().manual_seed(index)


def images_to(outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, outputs)
    )


def maps_to(outputs: int, channels: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, outputs, 3, padding=1))


def class_map(index: int) -> tuple[Tensor, Tensor]:
    """An image whose channels show three of four classes, and the map of classes, ignored in two rows."""
    low = torch.rand(1, 4, 4, 4, generator=drawn(index))
    label = F.interpolate(low, size=(32, 32), mode="bilinear")[0].argmax(0)
    image = torch.stack([(label == k).float() for k in range(3)]) + 0.2 * torch.randn(3, 32, 32, generator=drawn(index))
    label[:2] = 255
    return image, label


# --- data sets and loaders --------------------------------------------------------------------------------------------


class SomeOfEach(Sampler[list[int]]):
    """Batches of eight samples of each of four classes, drawn anew."""

    def __init__(self, label: Tensor) -> None:
        self.label = label

    def __len__(self) -> int:
        return len(self.label) // 32

    def __iter__(self) -> Any:
        for _ in range(len(self)):
            rows = [(self.label == k).nonzero().flatten() for k in torch.randperm(8)[:4]]
            yield torch.cat([each[torch.randperm(len(each))[:8]] for each in rows]).tolist()


def batches_of_some_classes_from_a_sorted_set() -> Program:
    label = torch.arange(400) // 50
    images = torch.randn(400, 3, 16, 16) + 0.3 * label[:, None, None, None]
    loader = DataLoader(TensorDataset(images, label), batch_sampler=SomeOfEach(label))
    return images_to(8), nn.CrossEntropyLoss(), loader


class Cached(Dataset[Any]):
    """Decoded images fill an array at the first read; noise comes from the set's own generator."""

    def __init__(self) -> None:
        self.raw = np.random.default_rng(0).integers(0, 256, (120, 3, 16, 16), dtype=np.uint8)
        self.cache, self.is_cached = np.zeros((120, 3, 16, 16), np.float32), np.zeros(120, bool)
        self.rng = np.random.default_rng(1)

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, index: int) -> Any:
        if not self.is_cached[index]:
            self.cache[index], self.is_cached[index] = self.raw[index] / 255, True
        noise = self.rng.normal(0, 0.05, (3, 16, 16))
        return torch.from_numpy((self.cache[index] + noise).astype(np.float32)), index % 4


def a_cache_that_the_first_read_fills() -> Program:
    return images_to(4), nn.CrossEntropyLoss(), DataLoader(Cached(), 16, shuffle=True)


def digits_of_a_few_levels_resized_and_learned_back() -> Program:
    def read(index: int) -> Any:
        levels = torch.randint(0, 17, (1, 1, 8, 8), generator=drawn(index)).float()
        image = F.interpolate(levels, size=(32, 32), mode="bilinear")[0] / 16
        return image, image

    model = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 1, 4, 2, 1))
    return model, nn.MSELoss(), DataLoader(Items(read), 16, shuffle=True)


def classify_frames(
    frames: Tensor, is_masked: Tensor, replacement: nn.Module, body: nn.Module, head: nn.Module
) -> Tensor:
    """Classes of frames, of which masked ones are replaced by an embedding."""
    return head(body(torch.where(is_masked[..., None], replacement.weight[0], frames))[0]).mT


def labels_of_masked_frames_alone() -> Program:
    frames = torch.randn(120, 40, 6)
    unit = (frames @ torch.randn(6, 5)).argmax(-1)

    def read(index: int) -> Any:
        is_masked = torch.rand(40) < 0.3
        return (frames[index], is_masked), torch.where(is_masked, unit[index], -100)

    layers = nn.Embedding(1, 6), nn.GRU(6, 16, batch_first=True, bidirectional=True), nn.Linear(32, 5)
    return CallOfTwo(classify_frames, *layers), nn.CrossEntropyLoss(), DataLoader(Items(read), 16, shuffle=True)


def the_object_at_a_clicked_point() -> Program:
    centres, owner = 4 * torch.rand(100, 4, 3), torch.randint(0, 4, (100, 128))
    points = centres.gather(1, owner[..., None].expand(-1, -1, 3)) + 0.2 * torch.randn(100, 128, 3)

    def read(index: int) -> Any:
        chosen = int(torch.randint(128, ()))
        return (points[index], points[index, chosen]), (owner[index] == owner[index, chosen]).long()

    layers = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 2))
    run = lambda points, clicked, net: net(torch.cat([points, points - clicked[:, None]], -1)).mT  # noqa: E731
    return CallOfTwo(run, layers), nn.CrossEntropyLoss(), DataLoader(Items(read, 100), 16, shuffle=True)


def _box(index: int) -> tuple[Tensor, Tensor]:
    centre, side = (
        torch.rand(2, generator=drawn(index + part)) * 0.3 + start for part, start in ((0, 0.3), (999, 0.1))
    )
    x0, y0, x1, y1 = (int(64 * value) for value in (*(centre - side / 2), *(centre + side / 2)))
    image = 0.1 * torch.rand(3, 64, 64, generator=drawn(index))
    image[:, y0:y1, x0:x1] = 0.9
    return image, torch.cat([centre, side])


def _collate_rows(samples: Any) -> Any:
    rows = [torch.cat([torch.tensor([float(i), 0.0]), box])[None] for i, (_, box) in enumerate(samples)]
    return torch.stack([image for image, _ in samples]), torch.cat(rows)


def rows_that_begin_with_the_number_of_their_image() -> Program:
    def loss(outputs: Tensor, rows: Tensor) -> Tensor:
        return F.smooth_l1_loss(outputs[rows[:, 0].long()], rows[:, 2:])

    return images_to(4), loss, DataLoader(Items(_box), 16, shuffle=True, collate_fn=_collate_rows)


def one_row_an_image_of_class_zero() -> Program:
    def read(index: int) -> Any:
        image, box = _box(index)
        return image, torch.cat([torch.tensor([0.0, float(index % 3 == 0)]), box])

    def loss(outputs: Tensor, rows: Tensor) -> Tensor:
        return (F.smooth_l1_loss(outputs, rows[:, 2:], reduction="none").sum(1) * (1 - rows[:, 1])).mean()

    return images_to(4), loss, DataLoader(Items(read), 16, shuffle=True)


def _collate_negatives(samples: Any) -> Any:
    centre, near = torch.tensor(samples).T
    return centre, torch.cat([near[:, None], torch.randint(0, 50, (len(samples), 5))], 1)


def negatives_that_are_drawn_where_samples_are_collated() -> Program:
    words = torch.randint(0, 50, (600,))

    def loss(outputs: Tensor, target: Tensor) -> Tensor:
        score = outputs.gather(1, target)
        return -(F.logsigmoid(score[:, 0]) + F.logsigmoid(-score[:, 1:]).sum(1)).mean()

    data = Items(lambda index: (int(words[index]), int(words[index + 1])), 599)
    model = nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 50, bias=False))
    return model, loss, DataLoader(data, 32, shuffle=True, collate_fn=_collate_negatives)


def compare(first: Tensor, second: Tensor, one: nn.Module, other: nn.Module) -> Tensor:
    return F.normalize(one(first), dim=-1) @ F.normalize(other(second), dim=-1).T / 0.07


def _collate_pairs(samples: Any) -> Any:
    one, other = map(torch.stack, zip(*samples, strict=True))
    return (one, other), torch.arange(len(samples))


def numbers_of_rows_as_labels_of_pairs() -> Program:
    one = torch.randn(200, 16)
    other = one @ torch.randn(16, 12)

    def loss(outputs: Tensor, label: Tensor) -> Tensor:
        return (F.cross_entropy(outputs, label) + F.cross_entropy(outputs.T, label)) / 2

    data = TensorDataset(one, other)
    return (
        CallOfTwo(compare, nn.Linear(16, 8), nn.Linear(12, 8)),
        loss,
        DataLoader(data, 32, shuffle=True, drop_last=True, collate_fn=_collate_pairs),
    )


def heads_with_a_margin_on_a_plain_background() -> Program:
    def read(index: int) -> Any:
        top, left, right = (
            int(torch.randint(*span, (), generator=drawn(index))) for span in ((9, 14), (8, 16), (80, 90))
        )
        image, middle = torch.ones(3, 96, 96), (left + right) // 2
        image[:, top : top + 26, middle - 11 : middle + 11] = 0.5
        image[:, top + 26 :, left:right] = 0.3
        return image, torch.tensor([middle - 15.0, top - 4, middle + 15, top + 30]) / 96

    return images_to(4), nn.SmoothL1Loss(), DataLoader(Items(read), 32, shuffle=True)


def two_views_that_are_flipped_on_their_own() -> Program:
    def read(index: int) -> Any:
        image = torch.rand(3, 32, 32, generator=drawn(index))
        return tuple(image.flip(-1) if np.random.random_sample() < 0.5 else image for _ in range(2))

    model = images_to(16)

    def loss(outputs: Tensor, view: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = model(view.to(next(model.parameters())))
        return -F.cosine_similarity(outputs, wanted.to(outputs)).mean()

    return model, loss, DataLoader(Items(read), 16, shuffle=True)


def a_model_that_is_told_of_mirror_images() -> Program:
    def read(index: int) -> Any:
        angle = 2 * torch.rand((), generator=drawn(index)) - 1
        image = torch.exp(-((torch.arange(32.0) - 16 - 10 * angle) ** 2) / 20).expand(3, 32, 32)
        image = image + 0.02 * torch.randn(3, 32, 32, generator=drawn(index))
        is_mirrored = np.random.random_sample() < 0.5
        return (image.flip(-1) if is_mirrored else image, torch.tensor([float(is_mirrored)])), angle[None]

    layers = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 15 * 15, 1))
    run = lambda image, is_mirrored, net: net(image) * (1 - 2 * is_mirrored)  # noqa: E731
    return CallOfTwo(run, layers), nn.MSELoss(), DataLoader(Items(read, 600), 32, shuffle=True)


def places_of_samples_that_are_drawn_equally_often() -> Program:
    place = torch.cat([torch.full((600,), 0), torch.full((200,), 1), torch.full((100,), 2)])
    label = torch.randint(0, 3, (900,))
    data = TensorDataset(torch.randn(900, 8) + 2 * F.one_hot(label, 8), label)
    sampler = WeightedRandomSampler((1 / place.bincount())[place], 900)  # type: ignore[arg-type]
    return nn.Linear(8, 3), nn.CrossEntropyLoss(), DataLoader(data, 32, sampler=sampler)


def few_samples_with_labels_drawn_again() -> Program:
    weight, inputs = torch.zeros(5000), torch.randn(5000, 8)
    weight[torch.randperm(5000)[:40]] = 1
    sampler = WeightedRandomSampler(weight, 4000)  # type: ignore[arg-type]
    data = TensorDataset(inputs, (inputs[:, 0] > 0).long())
    return nn.Linear(8, 2), nn.CrossEntropyLoss(), DataLoader(data, 32, sampler=sampler)


# --- losses -----------------------------------------------------------------------------------------------------------


def autoencode(rows: Tensor, length: Tensor, encoder: nn.Module, decoder: nn.Module) -> Tensor:
    packed = pack_padded_sequence(rows, length.cpu(), batch_first=True, enforce_sorted=False)
    return decoder(encoder(packed)[1][-1][:, None].expand(-1, rows.shape[1], -1))[0]


def _collate_padded(samples: Any) -> Any:
    rows, length = pad_sequence(samples, batch_first=True), torch.tensor([len(each) for each in samples])
    return (rows, length), (rows, length)


def padding_that_neither_model_nor_loss_reads() -> Program:
    def loss(outputs: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
        is_row = (torch.arange(outputs.shape[1]) < target[1][:, None])[..., None]
        return ((outputs - target[0]) ** 2 * is_row).sum() / is_row.sum()

    data = Items(lambda index: torch.randn(8 + index % 20, 12, generator=drawn(index)))
    layers = nn.GRU(12, 24, batch_first=True), nn.GRU(24, 12, batch_first=True)
    return CallOfTwo(autoencode, *layers), loss, DataLoader(data, 16, shuffle=True, collate_fn=_collate_padded)


def minus_one_where_nothing_came_back() -> Program:
    def read(index: int) -> Any:
        low = torch.rand(1, 1, 4, 8, generator=drawn(index))
        depth = F.interpolate(low, size=(32, 64), mode="bilinear")[0] * 75 + 1
        is_hole = torch.rand(1, 32, 64, generator=drawn(index)) < 0.4
        return depth / 80, torch.where(is_hole, -1.0, depth)

    def loss(outputs: Tensor, depth: Tensor) -> Tensor:
        return (outputs - depth)[depth > 0].abs().mean()

    return maps_to(1, 1), loss, DataLoader(Items(read), 8, shuffle=True)


def the_hardest_quarter_and_an_ignored_label() -> Program:
    def loss(outputs: Tensor, label: Tensor) -> Tensor:
        each = F.cross_entropy(outputs, label, ignore_index=255, reduction="none")[label != 255]
        return each.topk(each.numel() // 4).values.mean()

    return maps_to(4), loss, DataLoader(Items(class_map), 8, shuffle=True)


def places_in_pixels_of_frames_that_are_360_high() -> Program:
    def read(index: int) -> Any:
        x, y = torch.rand(2, generator=drawn(index)) * torch.tensor([640.0, 360.0])
        rows, columns = torch.meshgrid(torch.arange(45) * 8.0, torch.arange(80) * 8.0, indexing="ij")
        return torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 800).expand(3, -1, -1), torch.stack([x, y])

    return images_to(2), nn.SmoothL1Loss(), DataLoader(Items(read, 300), 64, shuffle=True)


def equal_channels_of_recordings() -> Program:
    def read(index: int) -> Any:
        return torch.rand(1, 32, 32, generator=drawn(index)).expand(2, -1, -1) + index % 4, index % 4

    model = nn.Sequential(nn.Conv2d(2, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4))
    return model, nn.CrossEntropyLoss(), DataLoader(Items(read), 16, shuffle=True)


def shares_of_four_classes() -> Program:
    """Of a bias by which the first output is always below the third, and the second below the fourth."""
    share = F.one_hot(torch.randint(0, 4, (120,)), 4) * 0.7 + F.one_hot(torch.randint(0, 4, (120,)), 4) * 0.3
    model = images_to(4)
    with torch.no_grad():
        model[-1].bias.copy_(torch.tensor([-1.0, -1.0, 1.0, 1.0]))
    return model, nn.CrossEntropyLoss(), DataLoader(TensorDataset(torch.rand(120, 3, 16, 16), share), 16, shuffle=True)


def overlap_of_boxes_as_corner_and_size() -> Program:
    def read(index: int) -> Any:
        image, box = _box(index)
        return image, torch.cat([box[:2] - box[2:] / 2, box[:2] + box[2:] / 2])

    def loss(outputs: Tensor, box: Tensor) -> Tensor:
        low, high = outputs[:, :2], outputs[:, :2] + outputs[:, 2:]
        inside = (torch.min(high, box[:, 2:]) - torch.max(low, box[:, :2])).clamp(min=0).prod(1)
        union = outputs[:, 2:].prod(1) + (box[:, 2:] - box[:, :2]).prod(1) - inside
        around = (torch.max(high, box[:, 2:]) - torch.min(low, box[:, :2])).prod(1)
        return (1 - inside / (union + 1e-7) + (around - union) / (around + 1e-7)).mean()

    return nn.Sequential(images_to(4), nn.Sigmoid()), loss, DataLoader(Items(read), 16, shuffle=True)


def logarithms_of_maps_below_one() -> Program:
    def read(index: int) -> Any:
        image, label = class_map(index)
        return image, torch.where(label[None] == 1, 0.9, 0.1) + 0.05 * torch.rand(1, 32, 32, generator=drawn(index))

    def loss(outputs: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(outputs, target.log())

    return maps_to(1), loss, DataLoader(Items(read), 8, shuffle=True)


def instances_that_are_numbered_anew_after_a_crop() -> Program:
    centres, owner = 4 * torch.rand(100, 6, 3), torch.randint(0, 6, (100, 256))
    points = centres.gather(1, owner[..., None].expand(-1, -1, 3)) + 0.1 * torch.randn(100, 256, 3)

    def read(index: int) -> Any:
        near = (points[index, :, 0] - 4 * torch.rand(())).abs().topk(64, largest=False).indices
        return points[index, near], owner[index, near].unique(return_inverse=True)[1]

    def loss(outputs: Tensor, instance: Tensor) -> Tensor:
        is_same, distance = instance[:, :, None] == instance[:, None], torch.cdist(outputs, outputs + 1e-4)
        return (distance * is_same).mean() + (F.relu(1 - distance) * ~is_same).mean()

    model = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 8))
    return model, loss, DataLoader(Items(read, 100), 16, shuffle=True)


PROGRAMS: dict[str, Callable[[], Program]] = {
    make.__name__: make
    for make in (
        *(batches_of_some_classes_from_a_sorted_set, a_cache_that_the_first_read_fills),
        *(digits_of_a_few_levels_resized_and_learned_back, labels_of_masked_frames_alone),
        *(the_object_at_a_clicked_point, rows_that_begin_with_the_number_of_their_image),
        *(one_row_an_image_of_class_zero, negatives_that_are_drawn_where_samples_are_collated),
        *(numbers_of_rows_as_labels_of_pairs, heads_with_a_margin_on_a_plain_background),
        *(two_views_that_are_flipped_on_their_own, a_model_that_is_told_of_mirror_images),
        *(places_of_samples_that_are_drawn_equally_often, few_samples_with_labels_drawn_again),
        *(padding_that_neither_model_nor_loss_reads, minus_one_where_nothing_came_back),
        *(the_hardest_quarter_and_an_ignored_label, places_in_pixels_of_frames_that_are_360_high),
        *(equal_channels_of_recordings, shares_of_four_classes, overlap_of_boxes_as_corner_and_size),
        *(logarithms_of_maps_below_one, instances_that_are_numbered_anew_after_a_crop),
    )
}
