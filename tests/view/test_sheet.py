"""The sheet of a sample: which cards it has, what is left out, and that it is the same each time."""

from __future__ import annotations

import numpy as np

from sightline.draw.pictures import PALETTE
from sightline.view.panels import ImagePanel
from sightline.view.sheet import draw_sheet, make_tiles, subsample
from sightline.view.stages import ClassColoring, RgbColoring, Stage, ViewedSample, error_coloring, height_coloring

NAMES = ("floor", "wall")


def parted(num_points: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Two heaps of points, class 0 left of class 1."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, num_points)
    return random.normal(size=(num_points, 3)) + 6 * labels[:, None] * np.array([0, 1, 0]), labels


def subject_of(*, with_colours: bool = False, answers: np.ndarray | None = None) -> ViewedSample:
    points, labels = parted()
    truth = ClassColoring.from_labels("ground truth", labels, NAMES)
    own = (RgbColoring("colours", np.full((len(points), 3), 128, dtype=np.uint8)),) if with_colours else ()
    clouds = [Stage("raw", points, (*own, truth, height_coloring(points, "z")), unit="m")]
    clouds.append(Stage("train 1: scale", points * 2, (*own, truth)))
    if answers is not None:
        prediction = ClassColoring.from_labels("prediction", answers, NAMES)
        clouds.append(Stage("prediction", points, (truth, prediction, error_coloring(answers, labels, 2), *own)))
    return ViewedSample("room", tuple(clouds))


def captions(subject: ViewedSample) -> list[str]:
    return [tile.caption for tile in make_tiles(subject)]


def is_there(image: np.ndarray, color: np.ndarray) -> bool:
    """Whether the colour occurs, lit or in shade: its direction in RGB, away from grey."""
    spread = image.max(axis=-1).astype(int) - image.min(axis=-1)
    direction = image - image.mean(axis=-1, keepdims=True)
    wanted = color - color.mean()
    cosine = (direction @ wanted) / (np.linalg.norm(direction, axis=-1) * np.linalg.norm(wanted) + 1e-9)
    return bool(((cosine > 0.995) & (spread > 30)).sum() > 400)


def test_every_stage_has_a_card_and_an_answer_has_three() -> None:
    assert captions(subject_of()) == ["raw (400)", "train 1: scale"]
    assert captions(subject_of(with_colours=True)) == ["raw (400)", "raw: ground truth", "train 1: scale"]
    answered = subject_of(with_colours=True, answers=np.zeros(400, dtype=np.int64))
    assert captions(answered) == ["raw (400)", "train 1: scale", "ground truth", "prediction", "error"]


def test_a_card_says_how_many_points_there_are_where_that_changes() -> None:
    points, _ = parted()
    sizes = (400, 400, 100, 100)
    clouds = [Stage(f"stage {i}", points[:n], (height_coloring(points[:n], "z"),)) for i, n in enumerate(sizes)]
    assert captions(ViewedSample("a", tuple(clouds))) == ["stage 0 (400)", "stage 1", "stage 2 (100)", "stage 3"]


def test_hidden_classes_are_not_drawn() -> None:
    cards = slice(90, -60)  # without the title and the legend
    whole = draw_sheet(subject_of())[cards]
    assert is_there(whole, PALETTE[0].astype(float))
    assert is_there(whole, PALETTE[1].astype(float))
    parted_sheet = draw_sheet(subject_of(), hidden=["wall"])[cards]
    assert is_there(parted_sheet, PALETTE[0].astype(float))
    assert not is_there(parted_sheet, PALETTE[1].astype(float))


def test_a_class_that_is_hidden_stays_hidden_whatever_the_points_are_coloured_by() -> None:
    """The error card hides the points of the true class too, not those that are answered so."""
    wrong = draw_sheet(subject_of(answers=1 - parted()[1]), hidden=["wall"])
    none = draw_sheet(subject_of(answers=1 - parted()[1]), hidden=["floor"])
    assert not np.array_equal(wrong[90:-60], none[90:-60])


def test_the_sheet_is_the_same_each_time_and_changes_no_cloud() -> None:
    subject = subject_of(answers=parted()[1])
    before = [cloud.points.copy() for cloud in subject.stages]
    sheet = draw_sheet(subject)
    assert np.array_equal(sheet, draw_sheet(subject))
    assert all(np.array_equal(a, cloud.points) for a, cloud in zip(before, subject.stages, strict=True))
    assert sheet.dtype == np.uint8


def test_a_narrow_sheet_holds_one_card_and_an_empty_cloud() -> None:
    empty = Stage("raw", np.zeros((0, 3)), (height_coloring(np.zeros((0, 3)), "z"),))
    assert draw_sheet(ViewedSample("a long name " * 20, (empty,))).shape[1] == 600


def test_thinning_takes_so_many_in_their_order_and_the_same_of_as_many() -> None:
    rows = np.arange(100, 1100)
    some = subsample(rows, 50)
    assert len(np.unique(some)) == 50
    assert (np.diff(some) > 0).all()
    assert set(some) <= set(rows)
    assert np.array_equal(some, subsample(rows, 50))
    assert np.array_equal(subsample(rows + 1000, 50), some + 1000)
    assert subsample(rows, 1000) is rows


def test_a_wide_picture_takes_the_width_of_the_sheet() -> None:
    """A black range image of 8:1, with white columns in its middle."""
    points, labels = parted()
    picture = np.zeros((16, 128, 3), dtype=np.uint8)
    picture[:, 63:65] = 255
    colorings = (ClassColoring.from_labels("ground truth", labels, NAMES),)
    stage = Stage("train 1: project", points, colorings, panels=(ImagePanel("range", picture),))
    sheet = draw_sheet(ViewedSample("street", (stage,)), tile_px=120)
    black = (sheet == 0).all(axis=-1)
    rows = np.flatnonzero(black.sum(axis=1) > sheet.shape[1] / 2)
    assert len(rows) == rows[-1] - rows[0] + 1
    columns = np.flatnonzero(black[rows[0]])
    assert abs(columns[0] + columns[-1] - (sheet.shape[1] - 1)) <= 1, "in the middle of the sheet"
    assert columns[-1] - columns[0] + 1 >= 0.9 * sheet.shape[1]
    assert abs((columns[-1] - columns[0] + 1) / len(rows) - 8) < 0.3, "its shape is kept"
    gap = np.flatnonzero(~black[rows[0], columns[0] : columns[-1]])
    assert abs(gap.mean() + columns[0] - (sheet.shape[1] - 1) / 2) <= 1, "the white columns are in the middle"
