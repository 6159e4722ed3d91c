"""Programs on images: classes, masks, boxes, joints, several tasks at once."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from tests.doctor.programs.program import PlainForm, Program, program, rate, recast

SIZE, CLASSES = 12, 5


def draw_glyphs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw images (count, 1, 12, 12) of five patterns of 6 pixels, somewhere near the middle, and their classes."""
    patterns = (torch.rand(CLASSES, 6, 6, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=g)
    images = 0.3 * torch.randn(count, 1, SIZE, SIZE, generator=g)
    corners = torch.randint(2, 5, (count, 2), generator=g).tolist()
    for image, label, (row, column) in zip(images, labels, corners, strict=True):
        image[0, row : row + 6, column : column + 6] += patterns[label]
    return images, labels


def make_classifier(channels: int = 1) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(channels, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(32 * 36, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, CLASSES)),
    )


class Photos(Dataset[Any]):
    """Photos of bytes, rows and columns before colours, as files have them; the index is for a table of errors."""

    def __init__(self, count: int, seed: int) -> None:
        grey, self.labels = draw_glyphs(count, seed)
        tint = 0.7 + 0.3 * torch.rand(count, 3, 1, 1, generator=torch.Generator().manual_seed(seed + 1))
        self.images = (100 + 90 * grey * tint).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return self.images[index], int(self.labels[index]), index


@program("batch: three values", "batch: bytes", "step: the inputs are changed", "step: a schedule")
def photos_of_bytes() -> Program:
    loader = DataLoader(Photos(640, 2), batch_size=32, shuffle=True)
    test_loader = DataLoader(Photos(200, 3), batch_size=100)
    model = make_classifier(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)

    def prepare(images: Tensor) -> Tensor:
        return (images.permute(0, 3, 1, 2).float() / 255 - 0.45) / 0.22

    def step(batch: Any) -> Tensor:
        images, labels, _ = batch
        return criterion(model(prepare(images)), labels)

    return Program(
        model=model,
        optimizer=optimizer,
        loader=loader,
        step=step,
        loss=criterion,
        end_epoch=scheduler.step,
        evaluation=test_loader,
        score=lambda: rate(model, test_loader, lambda batch: model(prepare(batch[0])).argmax(1) == batch[1]),
        bar=0.6,
        epochs=4,
        plain_form=lambda: PlainForm(model, criterion, recast(loader, lambda batch: (prepare(batch[0]), batch[1]))),
    )


@program("batch: a pair", "step: noise or partners are drawn")
def mixed_images() -> Program:
    loader = DataLoader(TensorDataset(*draw_glyphs(640, 2)), batch_size=32, shuffle=True, drop_last=True)
    test_loader = DataLoader(TensorDataset(*draw_glyphs(200, 3)), batch_size=100)
    model = make_classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    share = torch.distributions.Beta(0.2, 0.2)

    def step(batch: Any) -> Tensor:
        images, labels = batch
        lam = share.sample()
        partner = torch.randperm(len(images))
        outputs = model(lam * images + (1 - lam) * images[partner])
        return lam * F.cross_entropy(outputs, labels) + (1 - lam) * F.cross_entropy(outputs, labels[partner])

    return Program(
        model=model,
        optimizer=optimizer,
        loader=loader,
        step=step,
        loss=F.cross_entropy,
        evaluation=test_loader,
        score=lambda: rate(model, test_loader, lambda batch: model(batch[0]).argmax(1) == batch[1]),
        bar=0.6,
        epochs=4,
        plain_form=lambda: PlainForm(model, F.cross_entropy, loader),
    )


class Fields(Dataset[Any]):
    """Aerial images of rectangular fields of two crops; a frame of each mask is not labelled (255)."""

    def __init__(self, count: int, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        self.images = 0.4 * torch.randn(count, 3, 16, 16, generator=g)
        self.masks = torch.zeros(count, 16, 16, dtype=torch.long)
        colours = torch.tensor([[1.0, 0.2, -0.6], [-0.6, 0.8, 0.8]])
        for image, mask in zip(self.images, self.masks, strict=True):
            for crop in (1, 2):
                r, c, h, w = (
                    int(torch.randint(*bounds, (1,), generator=g)) for bounds in ((0, 10), (0, 10), (4, 9), (4, 9))
                )
                mask[r : r + h, c : c + w] = crop
            for crop in (1, 2):
                image += colours[crop - 1][:, None, None] * (mask == crop)
        self.masks[:, :1], self.masks[:, -1:], self.masks[:, :, :1], self.masks[:, :, -1:] = 255, 255, 255, 255

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "mask": self.masks[index], "name": f"fields/{index:04}.tif"}


class Segmenter(nn.Module):
    """Encoder, decoder, and a skip between."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.up = nn.ConvTranspose2d(32, 16, 2, 2)
        self.head = nn.Conv2d(32, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        first = self.first(image)
        return self.head(torch.cat([first, self.up(self.deep(first))], 1))


@program("batch: a mapping", "batch: a mapping with text", "loss: labels that are ignored")
def fields_with_ignored_frames() -> Program:
    loader = DataLoader(Fields(240, 0), batch_size=12, shuffle=True)
    test_loader = DataLoader(Fields(60, 1), batch_size=20)
    model = Segmenter()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    criterion = nn.CrossEntropyLoss(ignore_index=255)

    def step(batch: Any) -> Tensor:
        return criterion(model(batch["image"]), batch["mask"])

    def compare(batch: Any) -> Tensor:
        labelled = batch["mask"] != 255
        return (model(batch["image"]).argmax(1) == batch["mask"])[labelled & (batch["mask"] > 0)]

    return Program(
        model=model,
        optimizer=optimizer,
        loader=loader,
        step=step,
        loss=criterion,
        evaluation=test_loader,
        score=lambda: rate(model, test_loader, compare),
        bar=0.7,
        epochs=4,
        plain_form=lambda: PlainForm(model, criterion, recast(loader, lambda batch: (batch["image"], batch["mask"]))),
    )


class Street(Dataset[Any]):
    """Images of one to three bright or dark boxes, sizes and counts of each image its own."""

    def __init__(self, count: int, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        self.samples = []
        for _ in range(count):
            height, width = (8 * int(n) for n in torch.randint(4, 6, (2,), generator=g))
            image, boxes, labels = 0.2 * torch.randn(1, height, width, generator=g), [], []
            for _ in range(int(torch.randint(1, 3, (1,), generator=g))):
                w, h = torch.randint(6, 12, (2,), generator=g).tolist()
                x, y = (int(torch.randint(limit, (1,), generator=g)) for limit in (width - w, height - h))
                labels.append(int(torch.randint(2, (1,), generator=g)))
                image[0, y : y + h, x : x + w] = 1.0 - 2 * labels[-1]
                boxes.append([x, y, x + w, y + h])
            target = {
                "boxes": torch.tensor(boxes).float(),
                "labels": torch.tensor(labels),
                "image_id": torch.tensor(len(self.samples)),
            }
            self.samples.append((image, target))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        return self.samples[index]


class Detector(nn.Module):
    """A class and a box at each cell of 4 pixels: losses by name while training, detections of each image otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()),
            *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()),
        )
        self.classes, self.sides = nn.Conv2d(32, 2, 1), nn.Conv2d(32, 4, 1)
        nn.init.constant_(self.classes.bias, -2.0)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        if self.training and targets is None:
            raise ValueError("targets are needed while training")
        height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
        batch = torch.stack([F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in images])
        features = self.body(batch)
        scores, sides = self.classes(features), F.softplus(self.sides(features)) * 4
        ys, xs = (4 * torch.arange(n) + 2.0 for n in features.shape[2:])
        centres = torch.stack([xs.repeat(len(ys)), ys.repeat_interleave(len(xs))], 1)
        scores, sides = scores.flatten(2).transpose(1, 2), sides.flatten(2).transpose(1, 2)
        boxes = torch.cat([centres - sides[..., :2], centres + sides[..., 2:]], -1)
        if targets is not None and self.training:
            return self._measure_losses(scores, boxes, centres, targets)
        best = scores.sigmoid().flatten(1).argmax(1)
        rows = range(len(images))
        return [{"boxes": boxes[i, best[i] // 2], "labels": best[i] % 2} for i in rows]

    @staticmethod
    def _measure_losses(scores: Tensor, boxes: Tensor, centres: Tensor, targets: Any) -> dict[str, Tensor]:
        true_scores, box_losses = torch.zeros_like(scores), []
        for row, target in enumerate(targets):
            corners = target["boxes"]
            offsets = torch.cat([centres[:, None] - corners[:, :2], corners[:, 2:] - centres[:, None]], -1)
            is_inside = offsets.amin(-1) > 1
            for cell, box in is_inside.nonzero().tolist():
                true_scores[row, cell, target["labels"][box]] = 1
                box_losses.append(F.smooth_l1_loss(boxes[row, cell], corners[box], beta=1.0))
        count = max(1, len(box_losses))
        loss_scores = F.binary_cross_entropy_with_logits(scores, true_scores, reduction="sum") / count
        return {"loss_classes": loss_scores, "loss_boxes": 0.2 * torch.stack(box_losses).sum() / count}


@program("batch: lists of tensors of any size", "batch: a list of mappings", "model: returns its loss")
def boxes_of_each_image() -> Program:
    collate = lambda samples: tuple(map(list, zip(*samples, strict=True)))  # noqa: E731
    loader = DataLoader(Street(160, 0), batch_size=8, shuffle=True, collate_fn=collate)
    test_loader = DataLoader(Street(60, 1), batch_size=20, collate_fn=collate)
    model = Detector()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def step(batch: Any) -> Tensor:
        images, targets = batch
        losses = model(images, targets)
        return sum(losses.values())

    def compare(batch: Any) -> Tensor:
        images, targets = batch
        hits = []
        for detected, target in zip(model(images), targets, strict=True):
            box, boxes = detected["boxes"], target["boxes"]
            corner = torch.minimum(box[2:], boxes[:, 2:]) - torch.maximum(box[:2], boxes[:, :2])
            both = corner.clamp(min=0).prod(1)
            area = lambda q: (q[..., 2:] - q[..., :2]).prod(-1)  # noqa: E731
            overlap = both / (area(box) + area(boxes) - both)
            hits.append(((overlap > 0.5) & (target["labels"] == detected["labels"])).any())
        return torch.stack(hits)

    return Program(
        model=model,
        optimizer=optimizer,
        loader=loader,
        step=step,
        evaluation=test_loader,
        score=lambda: rate(model, test_loader, compare),
        bar=0.4,
        epochs=6,
    )


class Faces(NamedTuple):
    """Batch of faces."""

    pixels: Tensor
    attributes: Tensor
    source: list[str]


@program("batch: a named tuple", "batch: three values")
def attributes_of_faces() -> Program:
    g = torch.Generator().manual_seed(0)
    attributes = (torch.rand(700, 6, generator=g) < 0.4).float()
    marks = torch.randn(6, 2, 10, 10, generator=g) * 0.7
    pixels = torch.einsum("ba,achw->bchw", attributes, marks) + torch.randn(700, 2, 10, 10, generator=g)
    samples = [(pixels[i], attributes[i], f"camera{i % 3}") for i in range(700)]

    def collate(rows: Any) -> Faces:
        return Faces(
            torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows]), [row[2] for row in rows]
        )

    loader = DataLoader(samples[:500], batch_size=25, shuffle=True, collate_fn=collate)
    test_loader = DataLoader(samples[500:], batch_size=50, collate_fn=collate)
    model = nn.Sequential(
        *(nn.Conv2d(2, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.SiLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.SiLU()),
        *(nn.Flatten(), nn.Linear(400, 6)),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    criterion = nn.BCEWithLogitsLoss(pos_weight=torch.full((6,), 1.5))

    def step(batch: Faces) -> Tensor:
        return criterion(model(batch.pixels), batch.attributes)

    return Program(
        model=model,
        optimizer=optimizer,
        loader=loader,
        step=step,
        loss=criterion,
        evaluation=test_loader,
        score=lambda: rate(model, test_loader, lambda faces: (model(faces.pixels) > 0) == (faces.attributes > 0)),
        bar=0.75,
        epochs=5,
        plain_form=lambda: PlainForm(model, criterion, recast(loader, lambda faces: (faces.pixels, faces.attributes))),
    )


class Scenes(Dataset[Any]):
    """One glyph in each image: its class, its middle, whether it is there at all."""

    def __init__(self, count: int, seed: int) -> None:
        patterns = (torch.rand(CLASSES, 6, 6, generator=torch.Generator().manual_seed(1)) > 0.5).float()
        g = torch.Generator().manual_seed(seed)
        self.images = 0.3 * torch.randn(count, 1, 16, 16, generator=g)
        self.kinds = torch.randint(CLASSES, (count,), generator=g)
        self.present = torch.rand(count, generator=g) < 0.8
        self.corners = torch.randint(3, 8, (count, 2), generator=g)
        for i, (row, column) in enumerate(self.corners.tolist()):
            if self.present[i]:
                self.images[i, 0, row : row + 6, column : column + 6] += patterns[self.kinds[i]]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        middle = (self.corners[index] + 3).float() / 16
        target = {"kind": self.kinds[index], "middle": middle, "present": self.present[index].float()}
        return {"image": self.images[index], "target": target, "meta": {"id": index, "site": "north"}}


class ManyHeads(nn.Module):
    """Three heads on one body."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(32 * 64, 64), nn.ReLU()),
        )
        self.kind, self.middle, self.present = nn.Linear(64, CLASSES), nn.Linear(64, 2), nn.Linear(64, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.body(image)
        return {"kind": self.kind(features), "middle": self.middle(features), "present": self.present(features)[:, 0]}


def measure_scene(outputs: dict[str, Tensor], target: dict[str, Tensor]) -> Tensor:
    """Loss of the class and the middle where there is a glyph, and of its presence."""
    present = target["present"]
    kind = F.cross_entropy(outputs["kind"], target["kind"], reduction="none")
    middle = F.smooth_l1_loss(outputs["middle"], target["middle"], reduction="none", beta=0.1).sum(1)
    presence = F.binary_cross_entropy_with_logits(outputs["present"], present)
    return ((kind + 2 * middle) * present).sum() / present.sum().clamp(min=1) + presence


@program("batch: a mapping", "batch: a mapping of mappings", "model: a mapping of outputs")
def scenes_of_several_tasks() -> Program:
    loader = DataLoader(Scenes(640, 0), batch_size=32, shuffle=True)
    test_loader = DataLoader(Scenes(160, 1), batch_size=40)
    model = ManyHeads()
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)

    def step(batch: Any) -> Tensor:
        return measure_scene(model(batch["image"]), batch["target"])

    def compare(batch: Any) -> Tensor:
        there = batch["target"]["present"] > 0
        return (model(batch["image"])["kind"].argmax(1) == batch["target"]["kind"])[there]

    return Program(
        model=model,
        optimizer=optimizer,
        loader=loader,
        step=step,
        loss=measure_scene,
        evaluation=test_loader,
        score=lambda: rate(model, test_loader, compare),
        bar=0.5,
        epochs=8,
        plain_form=lambda: PlainForm(
            model, measure_scene, recast(loader, lambda batch: (batch["image"], batch["target"]))
        ),
    )


@program("batch: a pair", "model: another one that is not trained", "step: two passes", "loss: several arguments")
def student_of_a_teacher() -> Program:
    loader = DataLoader(TensorDataset(*draw_glyphs(480, 2)), batch_size=32, shuffle=True)
    test_loader = DataLoader(TensorDataset(*draw_glyphs(200, 3)), batch_size=100)
    teacher = make_classifier()
    tutor = torch.optim.Adam(teacher.parameters(), lr=3e-3)
    for _ in range(2):
        for images, labels in loader:
            tutor.zero_grad()
            F.cross_entropy(teacher(images), labels).backward()
            tutor.step()
    teacher.eval().requires_grad_(False)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(288, 32),
        nn.ReLU(),
        nn.Linear(32, 5),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def measure(logits: Tensor, labels: Tensor, teacher_logits: Tensor, temperature: float = 3.0) -> Tensor:
        soft = F.kl_div(
            F.log_softmax(logits / temperature, 1), F.softmax(teacher_logits / temperature, 1), reduction="batchmean"
        )
        return 0.3 * F.cross_entropy(logits, labels) + 0.7 * temperature**2 * soft

    def step(batch: Any) -> Tensor:
        images, labels = batch
        with torch.no_grad():
            teacher_logits = teacher(images)
        return measure(model(images), labels, teacher_logits)

    return Program(
        model=model,
        optimizer=optimizer,
        loader=loader,
        step=step,
        evaluation=test_loader,
        score=lambda: rate(model, test_loader, lambda batch: model(batch[0]).argmax(1) == batch[1]),
        bar=0.6,
        epochs=5,
        plain_form=lambda: PlainForm(
            model,
            lambda logits, target: measure(logits, *target),
            recast(loader, lambda batch: (batch[0], (batch[1], teacher(batch[0])))),
        ),
    )


class Joints(Dataset[Any]):
    """Images of four joints, three kinds of spot each; heat maps of half the size, and which joints are visible."""

    def __init__(self, count: int, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        self.images = 0.1 * torch.randn(count, 3, 16, 16, generator=g)
        self.heat = torch.zeros(count, 3, 8, 8)
        self.visible = (torch.rand(count, 3, generator=g) < 0.85).float()
        rows = torch.arange(8)
        for i in range(count):
            for joint, (r, c) in enumerate(torch.randint(0, 8, (3, 2), generator=g).tolist()):
                self.heat[i, joint] = torch.exp(-((rows[:, None] - r) ** 2 + (rows[None] - c) ** 2) / 2.0)
                if self.visible[i, joint]:
                    self.images[i, joint, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2] += 1

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.images[index], self.heat[index], self.visible[index], {"image": f"{index}.png", "score": 1.0}


class JointsLoss(nn.Module):
    """Mean square of the visible joints' heat maps."""

    def forward(self, heat: Tensor, expected: Tensor, visible: Tensor) -> Tensor:
        squares = (heat - expected).square().mean((2, 3))
        return (squares * visible).sum() / visible.sum()


@program("batch: four values", "loss: several arguments", "loss: a weight for each sample")
def joints_that_are_visible() -> Program:
    loader = DataLoader(Joints(480, 0), batch_size=24, shuffle=True)
    test_loader = DataLoader(Joints(100, 1), batch_size=50)
    model = nn.Sequential(
        *(nn.Conv2d(3, 24, 3, 2, 1), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1)),
        *(nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 3, 1)),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    criterion = JointsLoss()

    def step(batch: Any) -> Tensor:
        images, expected, visible, _ = batch
        return criterion(model(images), expected, visible)

    def compare(batch: Any) -> Tensor:
        images, expected, visible, _ = batch
        return (model(images).flatten(2).argmax(2) == expected.flatten(2).argmax(2))[visible > 0]

    return Program(
        model=model,
        optimizer=optimizer,
        loader=loader,
        step=step,
        loss=criterion,
        evaluation=test_loader,
        score=lambda: rate(model, test_loader, compare),
        bar=0.5,
        epochs=5,
        plain_form=lambda: PlainForm(
            model, lambda heat, target: criterion(heat, *target), recast(loader, lambda batch: (batch[0], batch[1:3]))
        ),
    )
