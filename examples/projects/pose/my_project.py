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
    likelihood: Tensor


@sightline.register.model("my_project_net")
class MyNet(sightline.Model):
    """Two convolutions on the volume, of which the first halves its sides, and a map for each joint."""

    def __init__(self, *, num_joints: int, width: sightline.Count = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv3d(1, width, 5, stride=2, padding=2), nn.ReLU()),
            *(nn.Conv3d(width, width, 5, padding=2), nn.ReLU(), nn.Conv3d(width, num_joints, 1)),
        )

    def forward(self, *, volume: Tensor) -> Output:
        """Predict a map (B, J, S/2, S/2, S/2) of each joint from volumes (B, 1, S, S, S) of 0 and 1."""
        return {"likelihood": self.layers(volume)}


@sightline.register.loss("my_project_loss")
class MyLoss(sightline.Loss):
    """Cross entropy of the softmax over each map with its target, which is divided by its sum."""

    def count(self, *, visible: Tensor) -> Tensor:
        """Count the visible joints (B, J): the sum of `forward` is divided by this, over all processes at once."""
        return visible.sum()

    def forward(self, *, likelihood: Tensor, heatmaps: Tensor, visible: Tensor) -> Tensor:
        """Return the sum over the visible joints, never a mean."""
        target = heatmaps.flatten(2)
        target = target / target.sum(dim=-1, keepdim=True).clamp_min(1e-12)
        log_p = likelihood.to(target.dtype).flatten(2).log_softmax(dim=-1)
        return -((target * log_p).sum(dim=-1) * visible).sum()
