"""Own parts of my_project: images with boxes, a backbone and a loss. Each works as it is; put yours in its place."""

import numpy as np
from torch import Tensor, nn

import sightline

CLASSES = ("red", "green")


@sightline.register.data("my_project_images")
class MyImages(sightline.Dataset):
    """Images of 64 x 64 pixels with one or two squares; `__getitem__` is where yours are read from files."""

    def __init__(self, *, split: str, train_size: sightline.Count = 48, test_size: sightline.Count = 12) -> None:
        sizes = {"train": train_size, "test": test_size}
        self._split = list(sizes).index(split)
        self._size = sizes[split]
        self.info = sightline.DataInfo(sightline.box_facts(CLASSES, "full"), sightline.BOX_FIELDS, sizes)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, key: sightline.SampleKey) -> sightline.Sample:
        """Return a sample; the same key must give the same bits, so random numbers depend on the index alone."""
        random = np.random.default_rng((self._split, key.index))
        image = random.integers(0, 80, (64, 64, 3), dtype=np.uint8)
        count = int(random.integers(1, 3))
        label = random.integers(0, len(CLASSES), count)
        boxes = np.empty((count, 4))  # left, top, right, bottom in pixels, half-open
        for index in range(count):
            side = int(random.integers(12, 20))
            left, top = random.integers(0, 64 - side), 32 * index + random.integers(0, 33 - side)
            image[top : top + side, left : left + side, label[index]] = 250
            boxes[index] = left, top, left + side, top + side
        area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        return sightline.make_sample(
            image, sightline.BoxRecord(boxes, boxes.copy(), label, np.zeros(count, dtype=bool), area)
        )


@sightline.register.backbone("my_project_net")
class MyNet(sightline.Backbone):
    """Three halving convolutions, of which the last two are returned: maps of strides 8 and 16."""

    strides = (8, 16)

    def __init__(self, *, in_channels: int = 3, width: sightline.Count = 16) -> None:
        super().__init__()
        self.channels = (2 * width, 4 * width)

        def halve(first: int, second: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(first, second, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(second), nn.ReLU()
            )

        self.stem = nn.Sequential(halve(in_channels, width), halve(width, width), halve(width, 2 * width))
        self.deep = halve(2 * width, 4 * width)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map images (B, 3, H, W), normalised, to maps of 1/8 and 1/16 of their sides, finest first."""
        fine = self.stem(image)
        return [fine, self.deep(fine)]


@sightline.register.loss("my_project_loss")
class MyLoss(sightline.Loss):
    """L1 distance of the box deltas of the priors that have a box."""

    def count(self, *, target: Tensor) -> Tensor:
        """Count the priors with a box; `target` (B, P) is 0 for background, below 0 for ignored priors."""
        return (target > 0).sum()

    def forward(self, *, codes: Tensor, priors: Tensor, target: Tensor, matched_boxes: Tensor) -> Tensor:
        """Return the sum over these priors, never a mean: `codes`, `matched_boxes` (B, P, 4) and anchors (P, 4)."""
        is_matched = target > 0
        expected = sightline.encode_deltas(priors.expand_as(matched_boxes), matched_boxes)
        return ((codes.float() - expected).abs().sum(dim=-1) * is_matched).sum()
