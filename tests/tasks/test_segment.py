"""The task of labels for points: one form of answers for every form of batches; windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sightline.contract.binding import AvailableKeys
from sightline.contract.errors import ConfigError
from sightline.draw.pictures import PALETTE
from sightline.parts.losses.classification import CrossEntropy
from sightline.parts.losses.feature_transform import FeatureTransformPenalty
from sightline.parts.tasks.segment import Segment
from sightline.parts.tasks.windows import (
    BlockWindows,
    FragmentWindows,
    MeanRows,
    SphereWindows,
    column_windows,
    sphere_windows,
)
from tests.draw.rooms import make_room
from tests.golden_parity import load_golden

# --- the task of labels for points: one form of answers for every form of batches ------------------------------------


NUM_CLASSES = 3


class Output(TypedDict):
    logits: Tensor
    feature_transform: Tensor


class Height(nn.Module):
    """Logits of a point's height; and a matrix for each cloud."""

    def forward(self, *, points: Tensor) -> Output:
        logits = torch.stack([points[..., 2] * factor for factor in (1.0, -1.0, 0.5)], dim=-1)
        return {"logits": logits, "feature_transform": 2 * torch.eye(2, dtype=points.dtype).expand(1, 2, 2)}


def segment(losses: dict | None = None, **arguments) -> Segment:
    keys = {"points", "offsets", "label", "sample_index", "nearest", "whole_label", "whole_offsets"}
    return Segment(
        model=Height(),
        losses={"cross_entropy": CrossEntropy(num_classes=NUM_CLASSES)} if losses is None else losses,
        batch_keys=AvailableKeys("the set", keys),
        output_keys=AvailableKeys("the model", {"logits", "feature_transform"}),
        **arguments,
    )


def ragged(*sizes: int) -> dict[str, Tensor]:
    total = sum(sizes)
    points = torch.rand(total, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return {
        "points": points,
        "offsets": torch.tensor([0, *sizes]).cumsum(0),
        "label": torch.arange(total) % NUM_CLASSES,
        "sample_index": torch.arange(len(sizes)),
    }


def test_dense_and_ragged_batches_give_the_same_answers() -> None:
    batch = ragged(4, 4)
    dense = {**batch, "points": batch["points"].view(2, 4, 3), "label": batch["label"].view(2, 4)}
    del dense["offsets"]
    task, model = segment(), Height()
    (sums, found), (dense_sums, dense_found) = (
        task.losses_and_predictions(model, each, None) for each in (batch, dense)
    )
    assert sums["cross_entropy"] == dense_sums["cross_entropy"]
    assert found.keys() == {"probabilities", "cloud_offsets", "target", "seen"} == dense_found.keys()
    assert all(torch.equal(found[name], dense_found[name]) for name in found)
    assert found["cloud_offsets"].tolist() == [0, 4, 8]
    torch.testing.assert_close(found["probabilities"].sum(dim=1), torch.ones(8, dtype=torch.float64))


def test_points_of_the_whole_cloud_take_the_answer_of_the_kept_point_in_their_own_cloud() -> None:
    batch = ragged(2, 3)
    batch |= {
        "nearest": torch.tensor([1, 0, 0, 2, 2, 1, 0]),
        "whole_offsets": torch.tensor([0, 3, 7]),
        "whole_label": torch.tensor([0, 1, 2, 0, 1, 2, 0]),
    }
    found = segment().predict(Height(), batch)
    kept = Height()(points=batch["points"])["logits"].softmax(dim=1)
    assert torch.equal(found["probabilities"], kept[[1, 0, 0, 4, 4, 3, 2]])
    assert torch.equal(found["target"], batch["whole_label"])
    assert found["cloud_offsets"].tolist() == [0, 3, 7]


def test_without_labels_there_is_no_target() -> None:
    batch = ragged(3)
    del batch["label"]
    assert segment().predict(Height(), batch).keys() == {"probabilities", "cloud_offsets", "seen"}


def test_voting_is_the_mean_of_probabilities() -> None:
    passes = [{"probabilities": torch.tensor([[1.0, 0.0]])}, {"probabilities": torch.tensor([[0.0, 1.0]])}]
    assert segment().vote(passes)["probabilities"].tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_points": 3},
        {"blocks": {"size_m": 0.5, "stride_m": 0.25, "num_points": 4}},
        {"fragments_m": 0.5},
        {"tiles": {"size_m": 0.5, "halo_m": 0.1}},
    ],
)
def test_windows_give_what_one_pass_gives(arguments: dict) -> None:
    batch = ragged(20, 7)
    whole, in_windows = segment().predict(Height(), batch), segment(**arguments).predict(Height(), batch)
    torch.testing.assert_close(in_windows["probabilities"], whole["probabilities"], rtol=1e-12, atol=1e-12)
    assert torch.equal(in_windows["target"], whole["target"])


def test_in_windows_a_loss_of_other_outputs_is_no_number_and_the_others_are() -> None:
    losses = {"cross_entropy": CrossEntropy(num_classes=NUM_CLASSES), "penalty": FeatureTransformPenalty()}
    batch = ragged(20)
    plain, _ = segment(losses).losses_and_predictions(Height(), batch, None)
    in_windows, _ = segment(losses, max_points=6).losses_and_predictions(Height(), batch, None)
    assert bool(in_windows["penalty"].isnan())
    torch.testing.assert_close(in_windows["cross_entropy"], plain["cross_entropy"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"origin": "minimum"}, "origin is that of windows"),
        ({"blocks": {"size_m": 1.0, "stride_m": 0.5, "num_points": 8}, "max_points": 8}, "blocks cannot be combined"),
        ({"blocks": {"size_m": 1.0, "stride_m": 0.5, "num_points": 8}, "up_axis": "y"}, "the data set's y is up"),
        ({"tiles": {"size_m": 1.0, "halo_m": 0.5}, "max_points": 8}, "tiles cannot be combined with blocks"),
    ],
)
def test_windows_that_do_not_fit_together_are_refused(arguments: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        segment(**arguments)


def reddish(pixels: np.ndarray) -> int:
    """Pixels of the lower half, the row of errors, that are more red than anything grey is."""
    lower = pixels[len(pixels) // 2 :].astype(int)
    return int((lower[..., 0] > lower[..., 1] + 60).sum())


def test_a_picture_shows_errors_in_red() -> None:
    batch = ragged(40, 60)
    task = segment()
    predictions = task.predict(Height(), batch)
    (picture,) = task.show(batch, predictions)
    right = (predictions["seen"] == batch["label"]).double().mean().item()
    assert 0 < right < 1
    assert picture.caption == f"{right:.1%} of the points right"
    (perfect,) = task.show(batch | {"label": predictions["seen"]}, predictions)
    assert perfect.caption == "100.0% of the points right"
    assert reddish(picture.pixels) > 100 > reddish(perfect.pixels) == 0


def test_a_room_is_shown_without_the_walls_before_it() -> None:
    """Two rooms, of which each surface is a class: those that hide the others occur in no row, as in `view`."""
    points, part = make_room()
    names, label = np.unique(part, return_inverse=True)
    task = segment(class_names=tuple(names))
    batch = {
        "points": torch.from_numpy(np.concatenate([points, points])),
        "offsets": torch.tensor([0, len(points), 2 * len(points)]),
        "label": torch.from_numpy(np.concatenate([label, label])),
    }
    predictions = {"seen": batch["label"]}
    shown = {kind: task.show(batch, predictions, surroundings=kind)[0] for kind in ("none", "room")}
    counts = {kind: count_classes(picture.pixels[:440, :460], len(names)) for kind, picture in shown.items()}
    in_front = ["ceiling", "front x", "front y"]
    for name, whole, cut in zip(names, counts["none"], counts["room"], strict=True):
        assert cut < 0.2 * whole if name in in_front else cut > 0.5 * whole, name
    assert 2 * counts["none"][list(names).index("table")] < counts["room"][list(names).index("table")]
    assert shown["none"].caption == "100.0% of the points right"
    expected = "100.0% of the points right; walls and ceiling between viewer and room are not drawn"
    assert shown["room"].caption == expected


def count_classes(pixels: np.ndarray, num_classes: int) -> list[int]:
    """Count the coloured pixels next to the colour of each class, whatever their light."""
    spread = pixels.max(axis=-1).astype(int) - pixels.min(axis=-1)
    tints = [each - each.mean(axis=-1, keepdims=True) for each in (pixels.astype(float), PALETTE[:num_classes] * 1.0)]
    tints = [each / (np.linalg.norm(each, axis=-1, keepdims=True) + 1e-9) for each in tints]
    nearest = (tints[0] @ tints[1].T).argmax(axis=-1)
    return np.bincount(nearest[spread > 40], minlength=num_classes).tolist()


@pytest.mark.parametrize(("sizes", "is_wide"), [((40,), True), ((40, 60), False)])
def test_the_pictures_of_a_single_cloud_stand_side_by_side(sizes: tuple[int, ...], is_wide: bool) -> None:
    batch, task = ragged(*sizes), segment()
    (picture,) = task.show(batch, task.predict(Height(), batch))
    assert (picture.pixels.shape[1] > 1.5 * picture.pixels.shape[0]) == is_wide


def test_the_hardness_of_a_cloud_is_its_share_of_wrong_points() -> None:
    """Three clouds: one of two counted points wrong, all right, nothing counted."""
    label, seen = torch.tensor([1, 2, 0, 1, 0]), torch.tensor([1, 1, 2, 1, 1])
    batch = {"label": label, "offsets": torch.tensor([0, 3, 4, 5])}
    task = segment(ignore_index=0, class_names=("nothing", "low", "high"))
    assert task.hardness(batch, {"seen": seen}).tolist() == [0.5, 0.0, 0.0]


def test_ignored_points_are_grey_and_count_neither_way() -> None:
    batch = ragged(40, 60)
    task = segment(ignore_index=0, class_names=("nothing", "low", "high"))
    predictions = task.predict(Height(), batch)
    (picture,) = task.show(batch, predictions)
    is_counted = batch["label"] != 0
    assert 0 < is_counted.sum() < len(is_counted)
    right = (predictions["seen"] == batch["label"])[is_counted].double().mean().item()
    assert picture.caption == f"{right:.1%} of the points right"


def test_without_labels_there_is_no_picture() -> None:
    batch = ragged(5)
    del batch["label"]
    assert segment().show(batch, segment().predict(Height(), batch)) == []


# --- pixels of range images ------------------------------------------------------------------------------------------


class Pixels(nn.Module):
    """Logits (S, H, W, C) of an image's values."""

    def forward(self, *, image: Tensor) -> Output:
        return {"logits": torch.stack([image * factor for factor in (1.0, -1.0, 0.5)], dim=-1)}


def scans() -> dict[str, Tensor]:
    """Two scans of 5 and 3 points as images of 2 x 3 pixels; class 0 is ignored, two points share a pixel."""
    image = torch.linspace(-2, 2, 12, dtype=torch.float64).view(2, 2, 3)
    return {
        "points": torch.rand(8, 3, dtype=torch.float64),
        "offsets": torch.tensor([0, 5, 8]),
        "image": image,
        "range_image": image.abs(),
        "label": torch.tensor([[[1, 2, 0], [0, 1, 1]], [[2, 0, 0], [0, 0, 1]]]),
        "nearest": torch.tensor([0, 1, 4, 5, 1, 0, 5, 0]),
        "whole_label": torch.tensor([1, 2, 1, 1, 0, 2, 1, 2]),
        "whole_offsets": torch.tensor([0, 5, 8]),
        "sample_index": torch.arange(2),
    }


def of_pixels(**arguments) -> Segment:
    return Segment(
        model=Pixels(),
        losses={"cross_entropy": CrossEntropy(num_classes=NUM_CLASSES, ignore_index=0)},
        batch_keys=AvailableKeys("the set", scans().keys()),
        output_keys=AvailableKeys("the model", {"logits"}),
        ignore_index=0,
        **arguments,
    )


def test_every_point_takes_the_prediction_of_its_pixel_in_its_own_image() -> None:
    batch = scans()
    sums, found = of_pixels().losses_and_predictions(Pixels(), batch, None)
    logits = Pixels()(image=batch["image"])["logits"]
    flat = logits.flatten(1, 2).softmax(dim=-1)
    expected = torch.cat([flat[0, [0, 1, 4, 5, 1]], flat[1, [0, 5, 0]]])
    assert torch.equal(found["probabilities"], expected)
    assert found["cloud_offsets"].tolist() == [0, 5, 8]
    assert torch.equal(found["target"], batch["whole_label"])
    assert torch.equal(found["seen"], flat.flatten(0, 1).argmax(dim=1))
    labelled = batch["label"] != 0
    reference = nn.functional.cross_entropy(logits[labelled], batch["label"][labelled], reduction="sum")
    assert sums["cross_entropy"].item() == pytest.approx(reference.item(), abs=1e-12)


def test_pixels_are_shown_as_images_and_ignored_ones_are_never_wrong() -> None:
    batch = scans()
    task = of_pixels()
    (picture,) = task.show(batch, task.predict(Pixels(), batch))
    legend = picture.pixels[2 * 3 * 2 :]  # below two scans: predictions, labels, errors, of two rows each
    assert len(legend)
    wrong = picture.pixels[4:6]
    assert (wrong[batch["label"][0].numpy() == 0] == wrong[0, 2]).all()
    guess = Pixels()(image=batch["image"])["logits"].argmax(dim=-1)
    labelled = batch["label"] != 0
    share = (guess == batch["label"])[labelled].double().mean()
    assert picture.caption.startswith(f"{share:.1%} of the labelled pixels right; from above: predicted, labelled, ")


def test_windows_are_for_clouds() -> None:
    with pytest.raises(ConfigError, match="max_points, blocks, fragments_m and tiles divide clouds, not images of"):
        of_pixels(max_points=100)


def lifted(label: list[int], ranges: list[float], points: dict[int, float], **arguments: Any) -> list[int]:
    """The classes of points, each in a column and at a range, of an image of one row whose pixels have these labels."""
    batch = {
        "range_image": torch.tensor([[ranges]]),
        "nearest": torch.tensor([*points]),
        "point_range": torch.tensor([*points.values()]),
        "whole_offsets": torch.tensor([0, len(points)]),
        "image": torch.tensor([[label]]),
    }

    class Given(nn.Module):
        def forward(self, *, image: Tensor) -> Output:
            return {"logits": nn.functional.one_hot(image, NUM_CLASSES).double()}

    task = Segment(
        model=Given(),
        losses={},
        batch_keys=AvailableKeys("the set", batch.keys()),
        output_keys=AvailableKeys("the model", {"logits"}),
        ignore_index=0,
        **arguments,
    )
    found: list[int] = task.predict(Given(), batch)["probabilities"].argmax(dim=1).tolist()
    return found


def test_knn_asks_the_neighbours_that_are_near_in_range() -> None:
    """A point at 9 m in the pixel of a wall at 2 m takes the class of the far pixels beside it."""
    label, ranges = [1, 1, 1, 2, 2, 2], [2.0, 2.0, 2.0, 9.0, 9.0, 9.0]
    assert lifted(label, ranges, {2: 9.0, 4: 9.0}, lift="nearest") == [1, 2]
    assert lifted(label, ranges, {2: 9.0, 4: 9.0}, lift="knn") == [2, 2]
    assert lifted(label, ranges, {2: 2.0}, lift="knn") == [1]


@pytest.mark.parametrize(("azimuth_deg", "expected"), [((180.0, -180.0), 2), ((50.0, -50.0), 1), (None, 2)])
def test_the_last_column_votes_for_the_first_in_a_full_turn_alone(azimuth_deg: Any, expected: int) -> None:
    """Beside the first column lie two empty ones and, in a full turn, the last two."""
    ranges = [9.0, -1.0, -1.0, 9.0, 9.0, 9.0]
    assert lifted([1, 0, 0, 2, 2, 2], ranges, {0: 9.0}, lift="knn", azimuth_deg=azimuth_deg) == [expected]


def test_knn_needs_range_images() -> None:
    with pytest.raises(ConfigError, match=r"segment\.lift: knn votes among the pixels of range images"):
        segment(lift="knn")


# --- windows of a scene, and what they say together -------------------------------------------------------------------


def room(num_points: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num_points, 3, generator=generator, dtype=torch.float64) * torch.tensor([4.3, 2.9, 2.5])


def cloud(points: Tensor, features: Tensor | None = None) -> dict:
    whole = {"points": points, "offsets": torch.tensor([0, len(points)])}
    return whole if features is None else {**whole, "features": features}


def test_spheres_cover_everything_and_hold_the_nearest() -> None:
    points = room(500)
    seen: set[int] = set()
    for index in sphere_windows(points, max_points=120):
        assert len(index) == 120
        assert index.tolist() == sorted(set(index.tolist()))
        middle = points[next(row for row in range(500) if row not in seen)]
        distance = (points - middle).norm(dim=1)
        outside = torch.ones(500, dtype=torch.bool)
        outside[index] = False
        assert distance[index].max() <= distance[outside].min()
        seen |= set(index.tolist())
    assert seen == set(range(500))


@pytest.mark.parametrize(("size_m", "stride_m"), [(1.0, 0.5), (1.0, 1.0), (10.0, 5.0), (0.7, 0.3)])
def test_blocks_cover_everything_and_hold_what_lies_over_their_square(size_m: float, stride_m: float) -> None:
    points = room(400)
    covered = torch.zeros(400, dtype=torch.bool)
    for middle, index in column_windows(points, size_m=size_m, stride_m=stride_m):
        assert middle[2] == 0
        assert float((points[index] - middle)[:, :2].abs().max()) <= size_m / 2 + 1e-9
        covered[index] = True
    assert bool(covered.all())


def test_a_point_on_the_far_edge_is_not_lost_to_rounding() -> None:
    points = torch.linspace(0, 0.7, 50, dtype=torch.float32)[:, None] * torch.ones(3)
    held = torch.cat([index for _, index in column_windows(points, size_m=0.1, stride_m=0.1)])
    assert set(held.tolist()) == set(range(50))


def of_single_points(batch: dict) -> Tensor:
    """Logits that depend on a point's features alone."""
    return torch.stack([batch["features"].sum(dim=-1), batch["features"][..., 0] * 3], dim=-1)


@pytest.mark.parametrize(
    "windows",
    [
        SphereWindows(max_points=60, origin="minimum"),
        SphereWindows(max_points=1000, origin="kept"),
        BlockWindows(size_m=1.0, stride_m=0.5, num_points=32),
        BlockWindows(size_m=0.5, stride_m=0.5, num_points=7),
    ],
)
def test_a_model_of_single_points_says_the_same_in_windows(windows) -> None:
    points = room(300)
    features = torch.rand(300, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    whole = cloud(points, features)
    torch.testing.assert_close(windows(of_single_points, whole), of_single_points(whole), rtol=1e-12, atol=1e-12)


def test_overlapping_windows_are_averaged_by_how_often_a_point_was_answered() -> None:
    numbers = iter(range(1, 100))
    asked: list[Tensor] = []

    def answer(batch: dict) -> Tensor:
        asked.append(batch["points"])
        return torch.full((len(batch["points"]), 1), float(next(numbers)))

    points = torch.arange(5.0)[:, None] * torch.tensor([1.0, 0, 0])
    found = SphereWindows(max_points=3, origin="kept")(answer, cloud(points))
    # Around 0: 0 1 2. The first unseen is 3, whose nearest three are 2 3 4.
    assert found.flatten().tolist() == [1.0, 1.0, 1.5, 2.0, 2.0]
    assert asked[1][:, 0].tolist() == [2.0, 3.0, 4.0]


def test_fragments_have_a_point_of_each_cube_and_average_probabilities() -> None:
    """Three points in one cube and one in another: three fragments, in which the other's point comes again."""
    points = torch.tensor([[0.0, 0, 0], [0.1, 0, 0], [0.2, 0, 0], [5.0, 0, 0]], dtype=torch.float64)
    asked: list[list[float]] = []

    def answer(batch: dict) -> Tensor:
        asked.append(batch["points"][:, 0].tolist())
        return torch.stack([torch.full((2,), float(len(asked))), torch.zeros(2)], dim=1).double()

    found = FragmentWindows(size_m=1.0)(answer, cloud(points)).softmax(dim=1)
    assert asked == [[0.0, 5.0], [0.1, 5.0], [0.2, 5.0]]
    each = torch.tensor([1.0, 2, 3], dtype=torch.float64).sigmoid()
    expected = torch.stack([*each, each.mean()])
    torch.testing.assert_close(found[:, 0], expected, rtol=1e-12, atol=0)


@pytest.mark.shared
def test_votes_of_fragments_are_those_of_pointcept(shared: Path) -> None:
    """The probabilities of all passes and fragments, added at each point; classes, and those of the raw points."""
    golden = load_golden(shared, "fn_fragment_vote", area="voxels")
    expected, mean = golden.tensor("prob"), MeanRows(240)
    for view in range(3):
        for part in range(int(golden.tensor(f"parts.{view}"))):
            logits = golden.tensor(f"logits.{view}.{part}")
            mean.add(golden.tensor(f"index.{view}.{part}").long(), logits.softmax(dim=1))
    assert mean.total is not None
    assert mean.times is not None
    assert (mean.total - expected).abs().max().item() <= 1e-12
    assert torch.equal(mean.times, expected.sum(dim=1).round())
    classes = mean().log().softmax(dim=1).argmax(dim=1)  # which dividing does not change
    assert torch.equal(classes, golden.tensor("pred"))
    assert torch.equal(classes[golden.tensor("inverse")], golden.tensor("pred_raw"))


def ask(windows: SphereWindows | BlockWindows, points: Tensor) -> list[Tensor]:
    """The points of each window; those of blocks are batches of equal numbers."""
    asked: list[Tensor] = []

    def answer(batch: dict) -> Tensor:
        assert ("offsets" in batch) == isinstance(windows, SphereWindows)
        asked.append(batch["points"])
        return torch.zeros(*batch["points"].shape[:-1], 1)

    windows(answer, cloud(points))
    return asked


def test_windows_may_start_at_their_own_minimum() -> None:
    asked = ask(SphereWindows(max_points=40, origin="minimum"), room(100))
    assert len(asked) > 2
    assert all(points.amin(dim=0).tolist() == [0.0, 0.0, 0.0] for points in asked)


def test_blocks_come_in_equal_numbers_of_points_about_their_middle() -> None:
    asked = ask(BlockWindows(size_m=1.0, stride_m=1.0, num_points=16), room(333))
    assert {points.shape[1] for points in asked} == {16}
    assert float(torch.cat(asked)[..., :2].abs().max()) <= 0.5 + 1e-9


def test_windows_of_a_column_each_see_all_of_it() -> None:
    column = torch.rand(64, 3, generator=torch.Generator().manual_seed(3))
    by_height = column[column[:, 2].argsort()]  # as files order points by object: the floor first, the ceiling last
    heights = torch.cat(ask(BlockWindows(size_m=2.0, stride_m=1.0, num_points=16), by_height))[..., 2]
    assert heights.shape == (4, 16)
    assert float((heights.mean(dim=1) - by_height[:, 2].mean()).abs().max()) < 0.1
