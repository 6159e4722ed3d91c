"""Own parts of my_project: LiDAR frames with 3D boxes and a loss. Each works as it is; put yours in its place."""

import numpy as np
import torch
from torch import Tensor

import sightline

CLASSES = ("car", "person")
SIZES = np.array([[4.0, 1.8, 1.6], [0.7, 0.7, 1.7]])


@sightline.register.data("my_project_frames")
class MyFrames(sightline.Dataset):
    """Frames of a floor and one to three boxes on it; `__getitem__` is where yours are read from files.

    x points forward, y left, z up, in metres; a box is x, y, z of its centre, its extent along its heading, to the
    left and up, and its yaw, counter-clockwise from +x. Own files: `sightline data prepare boxes3d_folder`.
    """

    def __init__(self, *, split: str, train_size: sightline.Count = 24, test_size: sightline.Count = 8) -> None:
        sizes = {"train": train_size, "test": test_size}
        self._split = list(sizes).index(split)
        self._size = sizes[split]
        facts = {"num_classes": 2, "class_names": CLASSES, "in_channels": 3, "up_axis": "z"}
        self.info = sightline.DataInfo(facts, sightline.BOX3D_FIELDS, sizes)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, key: sightline.SampleKey) -> sightline.Sample:
        """Return a sample; the same key must give the same bits, so random numbers depend on the index alone."""
        random = np.random.default_rng((self._split, key.index))
        label = random.integers(0, 2, random.integers(1, 4))
        size = SIZES[label] * random.uniform(0.95, 1.05, (len(label), 1))
        place = np.column_stack([3.0 + 4.5 * np.arange(len(label)), random.uniform(-5, 5, len(label)), size[:, 2] / 2])
        boxes = np.column_stack([place, size, random.uniform(-np.pi, np.pi, len(label))])
        clouds = [np.column_stack([random.uniform((0, -8), (16, 8), (600, 2)), random.normal(0, 0.01, 600)])]
        for x, y, z, length, width, height, yaw in boxes:
            along, left, up = random.uniform(-0.49, 0.49, (80, 3)).T * [[length], [width], [height]]
            cosine, sine = np.cos(yaw), np.sin(yaw)
            clouds.append(np.column_stack([x + cosine * along - sine * left, y + sine * along + cosine * left, z + up]))
        table = sightline.make_box_table(boxes, label, CLASSES)
        return sightline.make_sample3d(np.concatenate(clouds), {}, table)


@sightline.register.loss("my_project_loss")
class MyLoss(sightline.Loss):
    """L1 distance of the codes of the anchors that have a box."""

    def count(self, *, target: Tensor) -> Tensor:
        """Count the anchors with a box; `target` (B, A) is below 0 for background and for ignored anchors."""
        return (target >= 0).sum()

    def forward(self, *, codes: Tensor, anchors: Tensor, target: Tensor, matched_boxes: Tensor) -> Tensor:
        """Return the sum over these anchors, never a mean: `codes`, `matched_boxes` (B, A, 7) and `anchors` (A, 7)."""
        has_box = target >= 0
        boxes = torch.where(has_box[..., None], matched_boxes, anchors)
        size = anchors[:, 3:6].expand_as(boxes[..., 3:6])
        reach = anchors[:, 3:5].norm(dim=1, keepdim=True)
        units = torch.cat([reach, reach, anchors[:, 5:6]], dim=1)
        shift = (boxes[..., :3] - anchors[:, :3]) / units
        expected = torch.cat([shift, (boxes[..., 3:6] / size).log()], dim=-1)
        turn = torch.sin(codes[..., 6].float() - (boxes[..., 6] - anchors[:, 6])).abs()
        return (((codes[..., :6].float() - expected).abs().sum(dim=-1) + turn) * has_box).sum()
