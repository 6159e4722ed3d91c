"""Pixels of points, gaps of range images that are filled, and scans that are mixed, against loops over points."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from sightline.areas.scans.frustums import AssignPixels, CopyClasses, InterpolateRanges, MixFrustums
from sightline.contract.draws import Draws
from sightline.contract.errors import ConfigError, DataError

HEIGHT, WIDTH = 4, 16
VIEW: dict[str, Any] = {"fov_deg": (20.0, -20.0), "azimuth_deg": (180.0, -180.0), "height": HEIGHT, "width": WIDTH}
DRAWS = Draws.from_seed(0)


def scan(num_points: int, seed: int = 0, num_classes: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    azimuth = (torch.rand(num_points, generator=generator, dtype=torch.float64) * 2 - 1) * math.pi
    elevation = (torch.rand(num_points, generator=generator, dtype=torch.float64) * 2 - 1) * math.radians(24)
    distance = 2 + 20 * torch.rand(num_points, generator=generator, dtype=torch.float64)
    flat = distance * elevation.cos()
    points = torch.stack([flat * azimuth.cos(), flat * azimuth.sin(), distance * elevation.sin()], dim=1)
    return {
        "points": points[None],
        "remission": torch.rand(1, num_points, 1, generator=generator, dtype=torch.float64),
        "label": torch.randint(0, num_classes, (1, num_points), generator=generator),
    }


def cells(points: Tensor) -> list[tuple[int, int]]:
    """Row and column of each point, by the formulas of the specification."""
    found = []
    for x, y, z in points.tolist():
        column = math.floor(0.5 * (1 - math.atan2(y, x) / math.pi) * WIDTH)
        pitch = math.degrees(math.asin(z / math.sqrt(x * x + y * y + z * z)))
        row = math.floor((1 - (pitch + 20) / 40) * HEIGHT)
        found.append((min(max(row, 0), HEIGHT - 1), min(max(column, 0), WIDTH - 1)))
    return found


# --- pixels -----------------------------------------------------------------------------------------------------------


def test_pixels_are_those_of_the_formulas_and_elect_the_commonest_class() -> None:
    given = scan(300)
    assign = AssignPixels(**VIEW, num_classes=4, ignore_index=0)
    fields = assign(DRAWS, points=given["points"], label=given["label"])
    places = cells(given["points"][0])
    assert fields["pixel"][0].tolist() == [row * WIDTH + column for row, column in places]
    assert assign.facts == {"image_size_px": (WIDTH, HEIGHT)}
    ties = 0
    for row in range(HEIGHT):
        for column in range(WIDTH):
            members = [int(given["label"][0, number]) for number, at in enumerate(places) if at == (row, column)]
            votes = Counter(members)
            best = [kind for kind, count in votes.items() if count == max(votes.values())]
            ties += len(best) > 1
            expected = min(best, key=lambda kind: (kind == 0, kind)) if best else 0
            assert fields["pixel_label"][0, row, column] == expected
    assert ties > 3


def test_the_ignored_class_competes_whatever_its_index() -> None:
    points = torch.tensor([[[5.0, 1, 0]] * 5])
    for ignored in (0, 3, 255):
        assign = AssignPixels(**VIEW, num_classes=3, ignore_index=ignored)
        label = torch.tensor([[ignored, ignored, ignored, 1, 1]])
        assert set(assign(DRAWS, points=points, label=label)["pixel_label"].flatten().tolist()) == {ignored}
        tie = torch.tensor([[ignored, ignored, 2, 1, 1]])
        assert set(assign(DRAWS, points=points, label=tie)["pixel_label"].flatten().tolist()) == {ignored, 1}


# --- gaps -------------------------------------------------------------------------------------------------------------


def fill_gaps(given: dict[str, Tensor]) -> list[tuple[list[float], float, int]]:
    """Point, remission and label of each gap, by a loop over pixels as the published code has it, but for point 0."""
    shown: dict[tuple[int, int], int] = {}
    points, places = given["points"][0], cells(given["points"][0])
    for number in sorted(range(len(points)), key=lambda number: -float(points[number].norm())):
        shown[places[number]] = number
    gaps = []
    for row in range(HEIGHT):
        for column in range(1, WIDTH - 1):
            left, right = shown.get((row, column - 1)), shown.get((row, column + 1))
            if (row, column) not in shown and left is not None and right is not None:
                label = given["label"][0, [left, right]]
                mean = ((points[left] + points[right]) / 2).tolist()
                remission = float(given["remission"][0, [left, right]].mean())
                gaps.append((mean, remission, int(label[0]) if label[0] == label[1] else 0))
    return gaps


def test_gaps_get_the_mean_of_both_sides() -> None:
    given = scan(45, num_classes=2)
    filled = InterpolateRanges(**VIEW, ignore_index=0)(DRAWS, **given)
    gaps, own = fill_gaps(given), given["points"].shape[1]
    assert len(gaps) > 5
    assert {label for *_, label in gaps} == {0, 1}
    added = {name: filled[name][0, own:] for name in ("points", "remission", "label")}
    expected = sorted((*mean, remission, label) for mean, remission, label in gaps)
    rows = torch.cat([added["points"], added["remission"], added["label"][:, None].double()], dim=1)
    assert torch.allclose(torch.tensor(sorted(map(tuple, rows.tolist()))), torch.tensor(expected), atol=1e-6)
    for name, values in given.items():
        assert torch.equal(filled[name][:, :own], values)


def test_added_points_are_cut_off_again() -> None:
    """The rows that are scored are those of the scan's own points, in their order, with their own labels."""
    given = scan(45, num_classes=2)
    filled = InterpolateRanges(**VIEW, ignore_index=0)(DRAWS, **given)
    assert filled["points"].shape[1] > 45
    assert torch.equal(filled["points"][0][filled["nearest"][0]], given["points"][0])
    assert torch.equal(filled["whole_label"], given["label"])


def test_the_pixel_of_point_zero_is_filled() -> None:
    """Beside it a gap is closed, and it is no gap itself: the published code has both the other way round."""
    azimuth = torch.tensor([-2.5, -1.5, -0.5]) * (2 * math.pi / WIDTH)
    points = torch.stack([5 * azimuth.cos(), 5 * azimuth.sin(), torch.zeros(3)], dim=1)
    fields = {"remission": torch.zeros(1, 2, 1), "label": torch.ones(1, 2, dtype=torch.int64)}
    transform = InterpolateRanges(**VIEW, ignore_index=0)
    for order in ([0, 2], [2, 0]):
        assert transform(DRAWS, points=points[order][None], **fields)["points"].shape[1] == 3
    fields = {"remission": torch.zeros(1, 3, 1), "label": torch.ones(1, 3, dtype=torch.int64)}
    assert transform(DRAWS, points=points[[1, 0, 2]][None], **fields)["points"].shape[1] == 3


def test_rings_of_added_points_are_those_of_their_row() -> None:
    given = scan(60)
    ring = torch.tensor([[row for row, _ in cells(given["points"][0])]])
    transform = InterpolateRanges(**VIEW, rows="ring", ignore_index=0)
    filled = transform(DRAWS, **given, ring=ring)
    own = given["points"][0]
    means = (own[:, None] + own[None]) / 2
    assert filled["points"].shape[1] > 65
    for point, row in zip(filled["points"][0, 60:], filled["ring"][0, 60:], strict=True):
        pair = (means - point).abs().sum(dim=2).argmin()
        assert ring[0, pair // 60] == ring[0, pair % 60] == row


def test_stacked_scans_are_refused() -> None:
    given = {name: torch.cat([values, values]) for name, values in scan(20).items()}
    with pytest.raises(DataError, match="2 scans stacked"):
        InterpolateRanges(**VIEW, ignore_index=0)(DRAWS, **given)


# --- mixtures ---------------------------------------------------------------------------------------------------------


def test_mixed_scans_are_complete_and_share_no_frustum() -> None:
    """Every frustum is that of one scan; over seeds, bands of all numbers and sectors occur, about as often."""
    own, other = scan(400, seed=1), scan(300, seed=2)
    mix = MixFrustums(**VIEW, bands=(2, 3))
    of_sides = [torch.tensor(cells(each["points"][0])) for each in (own, other)]
    kinds: Counter[str] = Counter()
    for seed in range(60):
        mixed = mix(Draws.from_seed(seed), lambda count: [other] * count, **own)
        rows = {tuple(row) for row in mixed["points"][0].tolist()}
        masks = [torch.tensor([tuple(point) in rows for point in each["points"][0].tolist()]) for each in (own, other)]
        assert int(masks[0].sum() + masks[1].sum()) == mixed["points"].shape[1] == mixed["label"].shape[1]
        kept, added = ({tuple(at) for at in of_sides[side][masks[side]].tolist()} for side in (0, 1))
        left = {tuple(at) for at in of_sides[0][~masks[0]].tolist()}
        assert not kept & added
        assert not kept & left
        assert added <= left | {(row, column) for row in range(HEIGHT) for column in range(WIDTH)} - kept
        rows_added, columns_added = {row for row, _ in added}, sorted({column for _, column in added})
        if len(columns_added) == WIDTH:
            kinds[f"bands {sorted(rows_added)}"] += 1
        else:
            kinds["sector"] += 1
            assert columns_added == list(range(columns_added[0], columns_added[0] + WIDTH // 2))
            assert columns_added[0] < WIDTH // 2
        labels = torch.cat([own["label"][0, masks[0]], other["label"][0, masks[1]]])
        assert torch.equal(labels, mixed["label"][0])
    assert set(kinds) == {"bands [2, 3]", "bands [1]", "sector"}
    assert 18 <= kinds["sector"] <= 42


def test_copied_classes_are_whole_and_nothing_else_comes() -> None:
    own, other = scan(50, seed=1), scan(80, seed=2)
    names = ("none", "road", "person", "pole")
    copied = CopyClasses(class_names=names, classes=("pole", "person"))(DRAWS, lambda count: [other] * count, **own)
    is_rare = (other["label"] == 2) | (other["label"] == 3)
    for name, values in own.items():
        assert torch.equal(copied[name], torch.cat([values, other[name][is_rare][None]], dim=1))


@pytest.mark.parametrize("transform", [MixFrustums(**VIEW, bands=(3,)), MixFrustums(**VIEW, bands=(3,), probability=0)])
def test_without_a_partner_nothing_changes(transform: MixFrustums) -> None:
    """After its last epoch a transform gets none; with probability 0 it asks for none."""
    partner = None if transform.probability else (lambda count: pytest.fail("asked for a scan"))
    assert transform(DRAWS, partner, **scan(30)) == {}


def test_arguments_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="no class cat; the classes are a, b"):
        CopyClasses(class_names=("a", "b"), classes=("cat",))
    with pytest.raises(ConfigError, match="5 bands of 4 rows"):
        MixFrustums(**VIEW, bands=(5,))
    with pytest.raises(DataError, match="assign_pixels: points"):
        AssignPixels(**VIEW, num_classes=3, ignore_index=0)(DRAWS, points=torch.full((1, 4, 3), math.nan))
