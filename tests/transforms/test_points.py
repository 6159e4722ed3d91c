"""Point transforms: symmetries, statistics with derived bounds, purity, and the draws of the reference codes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from torch import Tensor

from sightline.contract.draws import Draws
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.types import SampleKey
from sightline.ops.points.rotations import axis_rotation, euler_matrix, rotate_points
from sightline.parts.transforms.elastic import Elastic
from sightline.parts.transforms.point_selection import (
    DropPoints,
    FarthestPoints,
    SamplePoints,
    ShufflePoints,
    choose_points,
    index_after_drop,
)
from sightline.parts.transforms.points import (
    Flip,
    Jitter,
    NormalizeUnitSphere,
    Rotate,
    Scale,
    Translate,
    bounding_box_size,
    clipped_noise,
    to_unit_sphere,
)
from tests.cases import run_each
from tests.transforms.scenes import Given

NUM_CLOUDS, NUM_POINTS = 7, 61
EPS = torch.finfo(torch.float32).eps

ALL = {
    "normalize_unit_sphere": NormalizeUnitSphere(),
    "scale": Scale(),
    "scale_isotropic": Scale(low=0.5, high=2.0, isotropic=True),
    "rotate_up": Rotate(up_axis="y"),
    "rotate_x": Rotate(up_axis="y", axis="x", max_angle_rad=0.3),
    "rotate_any": Rotate(up_axis="z", axis="any"),
    "translate": Translate(),
    "translate_relative": Translate(max_shift=0.5, relative=True),
    "jitter": Jitter(),
    "flip": Flip(),
    "sample_points": SamplePoints(num_points=40),
    "sample_points_first": SamplePoints(num_points=40, order="first"),
    "sample_points_repeated": SamplePoints(num_points=80, if_fewer="repeat"),
    "sample_points_for_scores": SamplePoints(num_points=40, score_all=True),
    "shuffle_points": ShufflePoints(),
    "drop_points": DropPoints(),
    "farthest_points": FarthestPoints(num_points=40),
}
RIGID = ("rotate_up", "rotate_x", "rotate_any", "translate", "translate_relative", "flip")
CHOOSING = ("sample_points", "sample_points_first", "shuffle_points", "drop_points", "farthest_points")


def draws_of(num_clouds: int, *, first: int = 0, seed: int = 3) -> Draws:
    return Draws.for_samples([SampleKey(index=first + i, epoch=2, seed=seed) for i in range(num_clouds)])


def make_batch(num_clouds: int = NUM_CLOUDS, num_points: int = NUM_POINTS) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(num_clouds * 1000 + num_points)
    points = torch.randn(num_clouds, num_points, 3, generator=generator) * torch.tensor([1.0, 2.0, 0.5]) + 0.3
    normals = torch.nn.functional.normalize(torch.randn(num_clouds, num_points, 3, generator=generator), dim=-1)
    number = torch.arange(num_clouds * num_points).reshape(num_clouds, num_points)
    return {"points": points, "normals": normals, "features": number.unsqueeze(-1) * 0.5, "part": number}


def apply(name: str, batch: dict[str, Tensor], draws: Draws) -> dict[str, Tensor]:
    transform = ALL[name]
    takes = type(transform).__call__.__annotations__.keys() & batch.keys()
    return transform(draws, **{key: batch[key] for key in takes})


# --- every transform ------------------------------------------------------------------------------------------------


@run_each("name", ALL)
@run_each("num_points", [61, 1024])
def test_a_cloud_gets_the_same_bits_alone_and_in_any_batch(name: str, num_points: int) -> None:
    batch = make_batch(NUM_CLOUDS, num_points)
    together = apply(name, batch, draws_of(NUM_CLOUDS))
    for row in range(NUM_CLOUDS):
        alone = apply(name, {key: field[row : row + 1] for key, field in batch.items()}, draws_of(1, first=row))
        assert alone.keys() == together.keys()
        assert all(torch.equal(alone[key][0], together[key][row]) for key in together)


@run_each("name", ALL)
def test_inputs_and_the_global_generators_are_left_alone(name: str) -> None:
    batch = make_batch()
    before = {key: field.clone() for key, field in batch.items()}
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    changed = apply(name, batch, draws_of(NUM_CLOUDS))
    for field in changed.values():
        field.zero_()
    assert all(torch.equal(batch[key], before[key]) for key in batch), (
        "an input was changed, or is shared with an output"
    )
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


@run_each("name", ALL)
def test_types_stay_and_the_same_key_repeats(name: str) -> None:
    batch = make_batch()
    first, second = (apply(name, batch, draws_of(NUM_CLOUDS)) for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert all(first[key].dtype == batch[key].dtype for key in first.keys() - {"nearest"})  # a row, as int64 is
    if name not in ("normalize_unit_sphere", "sample_points_first", "farthest_points"):
        other = apply(name, batch, draws_of(NUM_CLOUDS, seed=4))
        assert not torch.equal(first["points"], other["points"])


# --- what each keeps --------------------------------------------------------------------------------------------------


@run_each("name", RIGID)
def test_rigid_transforms_keep_distances(name: str) -> None:
    batch = make_batch()
    points = apply(name, batch, draws_of(NUM_CLOUDS))["points"]
    for before, after in zip(batch["points"], points, strict=True):
        # each coordinate is a sum of three rounded products of numbers below 8 in size
        assert np.abs(pdist(after.double()) - pdist(before.double())).max() < 8 * 8 * EPS


@pytest.mark.parametrize("name", ["rotate_up", "rotate_x", "rotate_any", "flip"])
def test_normals_turn_with_the_points(name: str) -> None:
    batch = make_batch()
    moved = apply(name, batch | {"points": batch["normals"]}, draws_of(NUM_CLOUDS))
    assert torch.equal(moved["points"], moved["normals"])


@pytest.mark.parametrize("up_axis", ["x", "y", "z"])
def test_rotation_about_up_keeps_the_up_coordinate(up_axis: str) -> None:
    points = make_batch()["points"]
    rotated = Rotate(up_axis=up_axis)(draws_of(NUM_CLOUDS), points=points)["points"]
    up = "xyz".index(up_axis)
    assert torch.equal(rotated[..., up], points[..., up])
    assert not torch.isclose(rotated, points).all()


def test_rotation_angles_stay_within_the_limit_and_fill_it() -> None:
    points = torch.tensor([1.0, 0.0, 0.0]).expand(4000, 1, 3)
    rotated = Rotate(up_axis="z", max_angle_rad=0.4)(draws_of(4000), points=points)["points"][:, 0]
    angles = torch.atan2(rotated[:, 1], rotated[:, 0])
    assert angles.abs().max() <= 0.4 + EPS
    # P(no draw in the outermost 1 % at either end) = 2 * 0.995**4000 = 4e-9
    assert angles.min() < -0.396
    assert angles.max() > 0.396


def test_rotation_to_anywhere_is_proper_and_uniform() -> None:
    num = 20_000
    matrix = Rotate(up_axis="z", axis="any")(draws_of(num), points=torch.eye(3).expand(num, 3, 3))["points"].mT.double()
    assert (torch.linalg.det(matrix) - 1).abs().max() < 16 * EPS
    assert (matrix @ matrix.mT - torch.eye(3)).abs().max() < 16 * EPS
    # Haar measure: every entry has mean 0 and variance 1/3 (a unit column has 3 equal shares); 5 standard errors
    assert matrix.mean(0).abs().max() < 5 / math.sqrt(3 * num)
    # its rotation angle has density (1 - cos t) / pi; Kolmogorov's distance passes 1.95 / sqrt(n) once in 1,000
    cosine = (torch.einsum("bii->b", matrix) - 1) / 2
    angle = torch.acos(cosine.clamp(-1, 1)).sort().values
    expected = (angle - angle.sin()) / math.pi
    assert (expected - torch.arange(num) / num).abs().max() < 1.95 / math.sqrt(num) + 1 / num


def test_scale_multiplies_each_axis_within_its_limits() -> None:
    batch = make_batch()
    scaled = Scale(low=0.5, high=2.0)(draws_of(NUM_CLOUDS), points=batch["points"])["points"]
    ratio = (scaled.double() / batch["points"].double()).numpy()
    assert np.ptp(ratio, axis=1).max() < 4 * EPS, "one factor per cloud and axis"
    assert ((ratio > 0.5 - EPS) & (ratio < 2 + 2 * EPS)).all()
    assert np.ptp(ratio[:, 0], axis=1).min() > 1e-3, "the axes differ"
    isotropic = apply("scale_isotropic", batch, draws_of(NUM_CLOUDS))
    assert set(isotropic) == {"points"}, "one factor leaves normals as they are"
    assert np.ptp((isotropic["points"].double() / batch["points"].double()).numpy(), axis=(1, 2)).max() < 4 * EPS


def test_scaled_normals_stay_perpendicular_to_the_scaled_surface() -> None:
    # The plane spanned by two tangents a, b has the normal a x b before and (S a) x (S b) after.
    generator = torch.Generator().manual_seed(1)
    tangents = torch.randn(5, 2, 3, generator=generator)
    normals = torch.nn.functional.normalize(torch.linalg.cross(tangents[:, 0], tangents[:, 1]), dim=-1)[:, None]
    changed = Scale()(draws_of(5), points=tangents, normals=normals)
    assert (changed["points"] * changed["normals"]).sum(-1).abs().max() < 16 * EPS
    assert (changed["normals"].norm(dim=-1) - 1).abs().max() < 4 * EPS


def test_translation_moves_every_point_alike_and_not_too_far() -> None:
    batch = make_batch()
    shift = apply("translate", batch, draws_of(NUM_CLOUDS))["points"].double() - batch["points"].double()
    assert (shift - shift[:, :1]).abs().max() < 8 * EPS, "rounding of sums below 8"
    assert shift.abs().max() <= 0.2 + 8 * EPS
    relative = apply("translate_relative", batch, draws_of(NUM_CLOUDS))["points"] - batch["points"]
    assert (relative.abs() <= 0.5 * bounding_box_size(batch["points"]) * (1 + 8 * EPS) + 8 * EPS).all()


def test_factors_and_shifts_fill_their_ranges() -> None:
    """Of 4,000 draws one in the outermost half a percent is missing once in 0.995^-4000 = 5e8."""
    points = torch.tensor([[1.0, 1, 1], [-1, -1, -1]]).expand(4000, 2, 3)
    factor = ALL["scale_isotropic"](draws_of(4000), points=points)["points"][:, 0, 0]
    assert 0.5 <= factor.min() < 0.51
    assert 1.99 < factor.max() <= 2
    assert abs(factor.mean() - 1.25) < 5 * 1.5 / math.sqrt(12 * 4000), "5 standard errors"
    shift = (ALL["translate_relative"](draws_of(4000), points=points)["points"] - points)[:, 0]
    assert (shift.amin(dim=0) < -0.99).all()
    assert (shift.amax(dim=0) > 0.99).all()


def test_jitter_is_clipped_and_has_the_asked_spread() -> None:
    points = torch.zeros(200, 500, 3)
    noise = Jitter(std=0.01, clip=0.02)(draws_of(200), points=points)["points"]
    assert noise.abs().max() == torch.tensor(0.02)
    # two-sided tail of the normal beyond 2 standard deviations: 4.55 %; 300,000 draws, 5 standard errors
    share = (noise.abs() == torch.tensor(0.02)).double().mean()
    assert abs(share - 0.0455) < 5 * math.sqrt(0.0455 * 0.9545 / noise.numel())
    wide = Jitter(std=0.01, clip=1.0)(draws_of(200), points=points)["points"].double()
    assert abs(wide.std() / 0.01 - 1) < 5 / math.sqrt(2 * wide.numel()), "a sample's spread errs by 1 / sqrt(2 n)"


def test_flip_mirrors_only_the_named_axes_half_of_the_time() -> None:
    points = torch.ones(10_000, 1, 3)
    flipped = Flip(axes=("x", "z"))(draws_of(10_000), points=points)["points"][:, 0]
    assert set(flipped.unique().tolist()) == {-1.0, 1.0}
    assert (flipped[:, 1] == 1).all()
    assert (flipped[:, [0, 2]].mean(0).abs() < 5 / math.sqrt(10_000)).all(), "5 standard errors of a sign"
    assert abs((flipped[:, 0] * flipped[:, 2]).mean()) < 5 / math.sqrt(10_000), "the axes are independent"


def test_normalised_clouds_sit_in_the_unit_sphere() -> None:
    points = to_unit_sphere(make_batch()["points"])
    assert points.mean(1).abs().max() < 8 * EPS
    assert (points.norm(dim=-1).amax(1) - 1).abs().max() < 4 * EPS
    moved = to_unit_sphere(make_batch()["points"] * 7 + torch.tensor([1.0, -2.0, 3.0]))
    assert (moved - points).abs().max() < 64 * EPS, "neither place nor size matters (coordinates up to 50 are rounded)"


@pytest.mark.parametrize("num_points", [1, 3, 61, 1000])
def test_a_cloud_of_equal_points_is_normalised_to_zero(num_points: int) -> None:
    points = torch.tensor([0.1, -3.3, 1e4 / 3]).expand(2, num_points, 3)
    assert torch.equal(to_unit_sphere(points), torch.zeros(2, num_points, 3))


# --- choosing points --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHOOSING)
def test_what_belongs_to_a_point_goes_with_it(name: str) -> None:
    batch = make_batch()
    chosen = apply(name, batch, draws_of(NUM_CLOUDS))
    assert set(chosen) == set(batch)
    local = chosen["part"] - torch.arange(NUM_CLOUDS).unsqueeze(1) * NUM_POINTS
    for row in range(NUM_CLOUDS):
        assert all(torch.equal(chosen[key][row], batch[key][row, local[row]]) for key in batch)
    assert set(apply(name, {"points": batch["points"]}, draws_of(NUM_CLOUDS))) == {"points"}


def test_farthest_points_pass_over_the_origin_where_that_is_asked_for() -> None:
    """A line of points at 0, 0.02, 1 and 2: the second is within sqrt(1e-3) = 0.032 of the origin."""
    points = torch.tensor([1.0, 0.02, 2.0, 0.0])[None, :, None] * torch.tensor([1.0, 0.0, 0.0])
    every = FarthestPoints(num_points=4)(draws_of(1), points=points)["points"]
    passed = FarthestPoints(num_points=4, min_squared_norm=1e-3)(draws_of(1), points=points)["points"]
    torch.testing.assert_close(every[0, :, 0], torch.tensor([1.0, 2.0, 0.0, 0.02]))
    torch.testing.assert_close(passed[0, :, 0], torch.tensor([1.0, 2.0, 1.0, 1.0]))


def test_more_of_the_farthest_points_than_there_are_is_refused() -> None:
    with pytest.raises(DataError, match=r"farthest_points: the clouds have 61 points, num_points asks for 62; .* 61$"):
        FarthestPoints(num_points=62)(draws_of(NUM_CLOUDS), points=make_batch()["points"])


def test_shuffling_keeps_the_points_and_differs_between_clouds() -> None:
    batch = make_batch()
    points = apply("shuffle_points", batch, draws_of(NUM_CLOUDS))["points"]
    for before, after in zip(batch["points"], points, strict=True):
        assert Counter(map(tuple, before.tolist())) == Counter(map(tuple, after.tolist()))
    same = torch.arange(NUM_POINTS, dtype=torch.float32)[None, :, None].expand(NUM_CLOUDS, -1, 3)
    orders = ShufflePoints()(draws_of(NUM_CLOUDS), points=same)["points"][..., 0]
    assert len({tuple(order.tolist()) for order in orders}) == NUM_CLOUDS


def test_sampled_points_are_distinct_and_equally_likely() -> None:
    num_clouds = 8000
    points = torch.arange(10.0)[None, :, None].expand(num_clouds, -1, 3)
    chosen = SamplePoints(num_points=3)(draws_of(num_clouds), points=points)["points"][..., 0]
    assert all(len(set(row.tolist())) == 3 for row in chosen[:500])
    # every point is kept by Binomial(8000, 0.3) clouds, and comes first in Binomial(8000, 0.1); 5 standard deviations
    kept, first = (torch.bincount(part.flatten().long(), minlength=10) for part in (chosen, chosen[:, 0]))
    assert (kept - 2400).abs().max() < 5 * math.sqrt(num_clouds * 0.3 * 0.7)
    assert (first - 800).abs().max() < 5 * math.sqrt(num_clouds * 0.1 * 0.9)
    head = SamplePoints(num_points=4, order="first")(draws_of(2), points=points[:2])["points"]
    assert torch.equal(head, points[:2, :4])


def test_too_few_points_are_refused_with_both_numbers() -> None:
    with pytest.raises(DataError, match=r"have 61 points, num_points asks for 62; .* or if_fewer: repeat"):
        SamplePoints(num_points=62)(draws_of(2), points=make_batch(2)["points"])


@pytest.mark.parametrize("row", [-1, 5])
def test_rows_that_a_cloud_has_not_are_refused(row: int) -> None:
    """They would be rows of the cloud before or after it."""
    fields = {"points": torch.zeros(2, 5, 3), "normals": None}
    assert choose_points(torch.tensor([[0, 4], [4, 0]]), fields)["points"].shape == (2, 2, 3)
    with pytest.raises(IndexError, match=r"points: rows .* of clouds of 5"):
        choose_points(torch.tensor([[0, 4], [row, 0]]), fields)


def test_dropped_points_become_the_first_one() -> None:
    batch = make_batch()
    dropped = apply("drop_points", batch, draws_of(NUM_CLOUDS))
    kept = dropped["part"] == batch["part"]
    first = batch["points"][:, :1].expand_as(batch["points"])
    assert torch.equal(dropped["points"], torch.where(kept.unsqueeze(-1), batch["points"], first))
    assert kept[:, 0].all()


def test_dropped_share_has_the_mean_of_its_law() -> None:
    # Ratio uniform in [0, 0.875): mean 0.4375; its standard error over 10,000 clouds is 0.875 / sqrt(12 * 10,000) =
    # 0.0025, to which the 50 points of each cloud add 0.0007; the bound 0.01 is 3.8 of them.
    points = torch.arange(51.0)[None, :, None].expand(10_000, -1, 3)
    dropped = DropPoints()(draws_of(10_000), points=points)["points"][:, 1:, 0] == 0
    shares = dropped.double().mean(1)
    assert abs(shares.mean() - 0.4375) < 0.01
    # Var = 0.875^2 / 12 + E[r (1 - r)] / 50 = 0.0638 + 0.0036
    assert abs(shares.var() - 0.0674) < 0.004
    assert not DropPoints(max_ratio=0.0)(draws_of(50), points=points[:50, 1:])["points"].eq(0).any()


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Scale(low=2.0, high=1.0), "low 2 is above high 1"),
        (lambda: Rotate(up_axis="z", axis="any", max_angle_rad=0.5), "max_angle_rad 0.5"),
        (lambda: Flip(axes=("x", "x")), "twice"),
    ],
)
def test_contradictory_arguments_are_refused(build: Callable[[], object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build()


# --- the reference codes, on their own draws --------------------------------------------------------------------------


class Golden:
    """One case of fn_augment.npz: its input, its output and the numbers its code drew."""

    def __init__(self, shared: Path, case: str) -> None:
        with np.load(shared / "golden" / "points" / "fn_augment.npz", allow_pickle=False) as stored:
            fields = {key.removeprefix(f"{case}."): stored[key] for key in stored.files if key.startswith(f"{case}.")}
        self.fields = {key: torch.from_numpy(np.asarray(value, dtype=np.float64)) for key, value in fields.items()}
        # where the reference stores float32, two roundings of numbers below 4; else float64
        self.bound = 1e-6 if fields["output"].dtype == np.float32 else 1e-14

    def __getitem__(self, name: str) -> Tensor:
        return self.fields[name]

    @property
    def input(self) -> Tensor:
        return self["input"] if self["input"].ndim == 3 else self["input"].unsqueeze(0)

    def assert_equal(self, ours: Tensor) -> None:
        output = self["output"] if self["output"].ndim == 3 else self["output"].unsqueeze(0)
        assert ours.shape == output.shape
        assert (ours - output).abs().max() < self.bound


@pytest.mark.parametrize("case", ["pn_normalize", "cp_normalize"])
def test_normalisation_agrees_with_the_reference(shared: Path, case: str) -> None:
    golden = Golden(shared, case)
    golden.assert_equal(to_unit_sphere(golden.input))


def test_normalisation_agrees_with_that_of_the_pointnets(shared: Path) -> None:
    """In float64: a mean of 17 numbers near 1, a difference and a quotient."""
    with np.load(shared / "golden" / "points" / "fn_pointnet_ops.npz", allow_pickle=False) as stored:
        given, expected = (torch.from_numpy(stored[f"pc_normalize.{name}"]) for name in ("x", "out"))
    torch.testing.assert_close(to_unit_sphere(given[None])[0], expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("case", "angle"),
    [
        # PointNet's provider multiplies rows by the matrix: about y that turns the other way round
        ("pn_rotate_y", lambda golden: -2 * math.pi * torch.stack([golden["draw0"], golden["draw1"]])),
        ("pn_rotate_z", lambda golden: 2 * math.pi * torch.stack([golden["draw0"], golden["draw1"]])),
    ],
)
def test_axis_rotation_agrees_with_the_reference(shared: Path, case: str, angle: Callable[[Golden], Tensor]) -> None:
    golden = Golden(shared, case)
    golden.assert_equal(rotate_points(golden.input, axis_rotation(case[-1], angle(golden))))


def test_rotated_normals_agree_with_the_reference(shared: Path) -> None:
    golden = Golden(shared, "cp_rotate_normals")
    matrix = axis_rotation("y", 2 * math.pi * golden["draw1"][None])
    points, normals = golden.input.split(3, dim=-1)
    golden.assert_equal(torch.cat((rotate_points(points, matrix), rotate_points(normals, matrix)), -1))


def test_perturbations_agree_with_the_references(shared: Path) -> None:
    crosspoint, pointnet = Golden(shared, "cp_perturb"), Golden(shared, "pn_perturb")
    matrix = euler_matrix(clipped_noise(crosspoint["draw1"][None], std=0.06, clip=0.18))
    crosspoint.assert_equal(rotate_points(crosspoint.input, matrix))
    drawn = torch.stack([pointnet["draw0"], pointnet["draw1"]])
    # its code multiplies rows by R where R^T would turn by R: the inverse rotation
    pointnet.assert_equal(rotate_points(pointnet.input, euler_matrix(clipped_noise(drawn, std=0.06, clip=0.18)).mT))


def test_free_rotation_agrees_with_the_references(shared: Path) -> None:
    crosspoint, korea = Golden(shared, "cp_rotate_free"), Golden(shared, "korea_rotate")
    crosspoint.assert_equal(rotate_points(crosspoint.input, euler_matrix(2 * math.pi * crosspoint["draw1"][None])))
    points, colours = korea.input.split(3, dim=-1)
    turned = rotate_points(points, axis_rotation("z", math.pi * korea["draw2"][None]))
    korea.assert_equal(torch.cat((turned, colours), -1))


def test_scales_and_shifts_agree_with_the_references(shared: Path) -> None:
    golden = Golden(shared, "pn_scale")
    golden.assert_equal(golden.input * golden["draw0"][:, None, None])
    golden = Golden(shared, "pn_shift")
    golden.assert_equal(golden.input + golden["draw0"][:, None])
    golden = Golden(shared, "korea_scale")
    points, colours = golden.input.split(3, dim=-1)
    scaled = Scale(isotropic=True)(Given(golden["draw0"][None, None]), points=points)["points"]
    golden.assert_equal(torch.cat((scaled, colours), -1))
    golden = Golden(shared, "korea_shift")
    points, colours = golden.input.split(3, dim=-1)
    drawn = torch.stack([golden[f"draw{axis}"] for axis in range(3)])[None, None]
    golden.assert_equal(torch.cat((Translate()(Given(drawn), points=points)["points"], colours), -1))


@pytest.mark.parametrize("case", ["cp_scale_translate", "pct_translate"])
def test_scale_then_translate_agree_with_the_reference(shared: Path, case: str) -> None:
    golden = Golden(shared, case)
    pairs = [(golden[f"draw{2 * i}"], golden[f"draw{2 * i + 1}"]) for i in range(len(golden.input))]
    given = Given(*(torch.stack(numbers)[:, None] for numbers in zip(*pairs, strict=True)))
    scaled = Scale()(given, points=golden.input)["points"]
    golden.assert_equal(Translate()(given, points=scaled)["points"])


@pytest.mark.parametrize("case", ["pn_dropout", "cp_dropout", "pct_dropout"])
def test_dropout_agrees_with_the_reference(shared: Path, case: str) -> None:
    golden = Golden(shared, case)
    drawn = [golden[key] for key in sorted(golden.fields) if key.startswith("draw")]
    drawn = drawn[1:] if case.startswith("cp") else drawn  # its code draws a gate first
    index = index_after_drop(torch.stack(drawn[1::2]), 0.875 * torch.stack(drawn[0::2])[:, None])
    golden.assert_equal(choose_points(index, {"points": golden.input})["points"])


def test_jitter_agrees_with_the_references(shared: Path) -> None:
    pointnet, crosspoint = Golden(shared, "pn_jitter"), Golden(shared, "cp_jitter")
    pointnet.assert_equal(Jitter()(Given(pointnet["draw0"]), points=pointnet.input)["points"])
    crosspoint.assert_equal(Jitter()(Given(crosspoint["noise"][None] / 0.01), points=crosspoint.input)["points"])
    korea = Golden(shared, "korea_jitter")
    points, colours = korea.input.split(3, dim=-1)
    korea.assert_equal(torch.cat((Jitter()(Given(korea["draw0"][None]), points=points)["points"], colours), -1))


def test_flip_agrees_with_the_reference(shared: Path) -> None:
    golden = Golden(shared, "korea_flip")
    points, colours = golden.input.split(3, dim=-1)
    drawn = torch.stack([golden["draw0"], golden["draw1"], torch.ones(())])[None, None]
    flipped = Flip()(Given(drawn), points=points)["points"]
    golden.assert_equal(torch.cat((flipped, colours), -1))


@pytest.mark.parametrize("transform", [Translate(max_shift=2.0), Jitter(std=0.5, clip=1.0), Elastic(probability=1.0)])
def test_points_of_scans_without_a_return_stay_at_the_origin(transform: Translate | Jitter | Elastic) -> None:
    """Moved, each would be the nearest return of its pixel. Of a cloud the origin is a point like any other."""
    points = torch.randn(1, 9, 3)
    points[0, ::4] = 0
    draws = Draws.for_samples([SampleKey(0, 0, 0)])
    moved = transform(draws.stream("one"), points=points)["points"]
    of_scan = transform(draws.stream("one"), points=points, remission=torch.ones(1, 9, 1))["points"]
    is_return = torch.tensor([place % 4 != 0 for place in range(9)])
    assert torch.equal(of_scan[0, is_return], moved[0, is_return])
    assert not of_scan[0, ~is_return].any()
    assert (moved[0] != points[0]).any(dim=1).all()
