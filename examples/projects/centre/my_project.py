"""Own parts of my_project: depth frames with joints, a network and a loss. Each works as it is; put yours there."""

from typing import TypedDict

import numpy as np
from torch import Tensor, nn

import sightline

# fy < 0 where Y points up
CAMERA = sightline.DepthCamera(fx=60.0, fy=60.0, u0=32.0, v0=32.0, width_px=64, height_px=64)
SKELETON = sightline.Skeleton(("middle", "left", "right"), ((0, 1), (0, 2)), 0, 240.0)
RADII_MM = (40.0, 28.0, 20.0)


@sightline.register.data("my_project_frames")
class MyFrames(sightline.DepthFrames):
    """Three balls in a row before a camera; `_frame` is where yours are read from files."""

    set_name = "my_project_frames"
    farthest_mm = 1000.0

    def __init__(self, *, split: str, train_size: sightline.Count = 48, test_size: sightline.Count = 12) -> None:
        sizes = {"train": train_size, "test": test_size}
        self._split = list(sizes).index(split)
        count = sizes[split]
        super().__init__(
            part=sightline.FrameSplit(split, split, np.arange(count), count, sizes), camera=CAMERA, skeleton=SKELETON
        )

    def _frame(self, frame_index: int) -> sightline.DepthFrame:
        """Return a frame; the same index must give the same bits."""
        random = np.random.default_rng((self._split, frame_index))
        angle, middle = random.uniform(-1.0, 1.0), random.normal((0, 0, 400), 15.0)
        along = 70.0 * np.array([np.cos(angle), np.sin(angle), 0.0])
        joints = np.stack([middle, middle - along, middle + along]).astype(np.float32)
        return sightline.DepthFrame(draw_balls(joints), joints, np.ones(3, dtype=bool))


def draw_balls(joints: np.ndarray) -> np.ndarray:
    """Draw balls at joints (J, 3) in mm as depths (H, W) float32 in mm, 0 where nothing is."""
    rows, columns = np.mgrid[: CAMERA.height_px, : CAMERA.width_px]
    depth = np.full(rows.shape, np.inf)
    for (x, y, z), radius in zip(joints, RADII_MM, strict=False):
        right = (columns - CAMERA.u0) / CAMERA.fx * z - x
        down = (rows - CAMERA.v0) / CAMERA.fy * z - y
        height = radius**2 - right**2 - down**2
        depth = np.where(height > 0, np.minimum(depth, z - np.sqrt(np.maximum(height, 0))), depth)
    return np.where(np.isfinite(depth), depth, 0).astype(np.float32)


class Output(TypedDict):
    offset: Tensor


@sightline.register.model("my_project_net")
class MyNet(sightline.Model):
    """Three halving convolutions on the crop, and a layer for where the joint in the middle is."""

    reads_order = True  # the middle of the crop is refined: its place matters

    def __init__(self, *, width: sightline.Count = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, width, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64 * width, 3)),
        )

    def forward(self, *, crop: Tensor) -> Output:
        """Predict the offset (B, 3), in halves of the crop's side, from crops (B, 1, S, S), -1 in front to 1 behind."""
        return {"offset": self.layers(crop)}


@sightline.register.loss("my_project_loss")
class MyLoss(sightline.Loss):
    """L1 distance of the offset from that of the joint in the middle, in halves of the crop's side."""

    def __init__(self, *, centre_joint: int) -> None:
        super().__init__()
        self.centre_joint = centre_joint

    def count(self, *, visible: Tensor) -> Tensor:
        """Count the frames in which the joint is visible: the sum of `forward` is divided by this."""
        return visible[:, self.centre_joint].sum()

    def forward(self, *, offset: Tensor, joints: Tensor, visible: Tensor, crop_placement: Tensor) -> Tensor:
        """Return the sum over these frames, never a mean."""
        placement = sightline.CropPlacement.from_rows(crop_placement)
        middle = joints[:, [self.centre_joint]].double()
        expected = sightline.to_crop_coordinates(middle, placement)[:, 0].to(joints.dtype)
        return ((offset.to(joints.dtype) - expected).abs().sum(dim=1) * visible[:, self.centre_joint]).sum()
