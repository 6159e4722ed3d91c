"""A plugin with a task of its own: the angle by which a drawn digit is turned, from an image.

It brings everything that a task needs: data set, network, loss, metric, task, a predictor for PNG files, and a check.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn

import sightline

SIZE_PX = 28
_MAX_ANGLES = 64
_PIXELS = np.stack(np.meshgrid(*[np.linspace(-1, 1, SIZE_PX)] * 2, indexing="xy"), axis=-1) * [1, -1]  # x right, y up
_STROKES = {  # no digit that looks like itself or like another when it is turned
    1: [(-0.2, 0.35), (0.0, 0.6), (0.0, -0.6)],
    3: [(-0.35, 0.6), (0.35, 0.6), (-0.05, 0.1), (0.35, -0.15), (0.3, -0.6), (-0.35, -0.6)],
    4: [(0.15, -0.6), (0.15, 0.6), (-0.4, -0.1), (0.4, -0.1)],
    7: [(-0.35, 0.6), (0.35, 0.6), (-0.1, -0.6)],
}


def draw_digit(digit: int, *, angle_rad: float, scale: float = 1.0) -> np.ndarray:
    """A digit (H, W) float32, light on dark, turned anticlockwise."""
    turn = np.array([[math.cos(angle_rad), math.sin(angle_rad)], [-math.sin(angle_rad), math.cos(angle_rad)]])
    points = np.array(_STROKES[digit]) @ turn * scale
    start, along = points[:-1], np.diff(points, axis=0)
    to_start = _PIXELS[:, :, None] - start
    share = ((to_start * along).sum(-1) / (along**2).sum(-1)).clip(0, 1)
    distance = np.linalg.norm(to_start - share[..., None] * along, axis=-1).min(axis=-1)
    return np.exp(-((distance / 0.1) ** 2)).astype(np.float32)


@sightline.register.data("turned_digits")
class TurnedDigits(sightline.Dataset):
    """Digits at all angles, a pure function of split and index."""

    def __init__(self, *, split: str, train_size: sightline.Count = 512, test_size: sightline.Count = 128) -> None:
        sizes = {"train": train_size, "test": test_size}
        self._split_index = list(sizes).index(split)
        self._size = sizes[split]
        fields = {
            "image": sightline.Field(f"1 {SIZE_PX} {SIZE_PX}", "float32", low=0.0, high=1.0),
            "angle": sightline.Field("", "float32", "rad", low=-math.pi, high=math.pi),
        }
        self.info = sightline.DataInfo({}, fields, sizes)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, key: sightline.SampleKey) -> sightline.Sample:
        random = np.random.default_rng((self._split_index, key.index))
        angle, digit = random.uniform(-math.pi, math.pi), int(random.choice(list(_STROKES)))
        image = draw_digit(digit, angle_rad=angle, scale=random.uniform(0.8, 1.2))
        return {"image": torch.from_numpy(image)[None], "angle": torch.tensor(angle, dtype=torch.float32)}


class Direction(TypedDict):
    direction: Tensor


@sightline.register.model("turn_net")
class TurnNet(sightline.Model):
    """Three convolutions with stride 2, and a linear layer to a direction (B, 2) in the plane."""

    def __init__(self, *, width: sightline.Count = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, width, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(64 * width, 2)),
        )

    def forward(self, *, image: Tensor) -> Direction:
        return {"direction": self.layers(image)}


@sightline.register.loss("direction")
class DirectionLoss(sightline.Loss):
    """The squared distance of the direction from the unit vector of the angle: no jump where the angle has one."""

    def count(self, *, angle: Tensor) -> Tensor:
        return torch.tensor(angle.numel(), device=angle.device)

    def forward(self, *, direction: Tensor, angle: Tensor) -> Tensor:
        return F.mse_loss(direction, torch.stack([angle.cos(), angle.sin()], dim=1), reduction="sum")


@sightline.register.metric("angle_error")
class AngleError(sightline.MeanMetric):
    """The mean and the largest difference of angles, the short way round, in degrees."""

    figures = ("angle_error_deg",)
    higher_is_better = False

    def values(self, *, found_angle: Tensor, angle: Tensor) -> Tensor:
        turn = (found_angle - angle).double()
        return torch.atan2(turn.sin(), turn.cos()).abs().rad2deg()

    def compute(self, state: sightline.State) -> dict[str, float]:
        errors = state["sums"][state["weights"] > 0]
        return super().compute(state) | {"max_error_deg": float(errors.max()) if len(errors) else math.nan}


@sightline.register.task("angle")
class Angle(sightline.Supervised):
    """Predicts `found_angle` (B,) in rad, from the direction."""

    predicts = frozenset({"found_angle"})

    def postprocess(self, outputs: dict[str, Any], batch: sightline.Batch) -> dict[str, Any]:
        """The outputs, and the angle of the direction."""
        x, y = outputs["direction"].float().unbind(dim=1)
        return {**outputs, "found_angle": torch.atan2(y, x)}

    def show(self, batch: sightline.Batch, predictions: Mapping[str, Any]) -> list[sightline.Picture]:
        """The first images of a batch, below each the same image turned back by the angle found."""
        images, angles = batch["image"][:8].float().cpu(), predictions["found_angle"][:8].float().cpu()
        rows = [torch.cat(list(group[:, 0]), dim=1) for group in (images, upright(images, angles))]
        pixels = (torch.cat(rows).clamp(0, 1) * 255).byte().numpy().repeat(4, axis=0).repeat(4, axis=1)
        caption = ", ".join(f"{degrees:.0f}" for degrees in angles.rad2deg().tolist())
        return [sightline.Picture("turned back", np.stack([pixels] * 3, axis=2), f"by {caption} degrees")]


def upright(images: Tensor, angles: Tensor) -> Tensor:
    """Images (B, 1, H, W) turned clockwise by their angles (B,)."""
    cos, sin, none = angles.cos(), angles.sin(), torch.zeros_like(angles)
    turn = torch.stack([torch.stack([cos, sin, none], 1), torch.stack([-sin, cos, none], 1)], 1)
    return F.grid_sample(images, F.affine_grid(turn, list(images.shape), align_corners=True), align_corners=True)


@dataclass(frozen=True)
class AnglePrediction:
    """The angle of one file, and its image (1, H, W)."""

    file: Path
    angle_rad: float
    image: Tensor


@sightline.register.predictor("angle")
class AnglePredictor(sightline.Predictor[AnglePrediction]):
    """Reads PNG images. `dark_on_light` is for pictures of ink on paper."""

    suffixes = (".png",)
    endings = (".upright.png",)
    noun = "image"
    columns = ("file", "angle_deg")

    def __init__(self, *, run: sightline.TrainedRun, dark_on_light: bool = False) -> None:
        super().__init__(run=run)
        self.fields = {"image": self.info.fields["image"]}
        self.dark_on_light = dark_on_light

    def read(self, path: Path) -> sightline.ReadFile:
        """An image of any size, brought to that of the data set."""
        try:
            with Image.open(path) as file:
                pixels = np.asarray(file.convert("L").resize((SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR))
        except UnidentifiedImageError as error:
            raise sightline.DataError(f"{path}: is not an image; give a PNG file") from error
        image = torch.from_numpy(pixels.astype(np.float32) / 255)[None]
        return sightline.ReadFile(path, {"image": 1 - image if self.dark_on_light else image})

    def predict(
        self, files: Sequence[sightline.ReadFile], inference: sightline.Inference
    ) -> list[AnglePrediction | sightline.Refusal]:
        angles = inference.predictions["found_angle"].double().cpu().tolist()
        return [
            AnglePrediction(file.path, angle, file.sample["image"])
            if math.isfinite(angle)
            else sightline.refuse_non_finite(file.path)
            for file, angle in zip(files, angles, strict=True)
        ]

    def document(self, prediction: AnglePrediction) -> dict[str, Any]:
        return {"file": str(prediction.file), "angle_deg": math.degrees(prediction.angle_rad)}

    def write(self, prediction: AnglePrediction, name: Path) -> dict[str, Path]:
        """The image turned back."""
        path = name.with_name(name.name + self.endings[0])
        path.parent.mkdir(parents=True, exist_ok=True)
        image = upright(prediction.image[None], torch.tensor([prediction.angle_rad], dtype=torch.float32))[0, 0]
        Image.fromarray((image.clamp(0, 1) * 255).byte().numpy()).save(path)
        return {"upright": path}


@sightline.rule(
    "one-sided-angles",
    "warning",
    "data.sampling data.split",
    holds="angles of a split on all sides: their mean direction is short",
    do="look at how the samples were chosen: one constant direction is a good prediction of such a set",
)
def one_sided_angles(run: Any, surveys: list[Any]) -> Iterator[sightline.Fault]:
    """Measure the mean direction of the angles of each split."""
    for survey in surveys:
        part = survey.part
        indices = part.evenly_spaced_indices(_MAX_ANGLES)
        angles = [float(part.dataset[sightline.SampleKey(int(i), 0, 0)]["angle"]) for i in indices]
        length = float(np.abs(np.exp(1j * np.array(angles)).mean()))
        bound = 4 / math.sqrt(len(angles))  # uniform angles exceed it once in a million sets
        if length > bound:
            yield sightline.Fault(
                f"angles lie on one side: their mean direction is {length:.2f} long",
                measured=f"{length:.2f}, of {len(angles)} angles",
                expected=f"at most {bound:.2f}",
                where=run.locate(part.split, config_path="data"),
            )
