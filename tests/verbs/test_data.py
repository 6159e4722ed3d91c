"""`data prepare` and `data info`: counts by name, no hashes; tables as wide as the terminal."""

from __future__ import annotations

import io
import itertools
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from sightline.areas.clouds.sets.synthetic_shapes import SyntheticShapes
from sightline.config import read_config
from sightline.config.plain_values import to_plain
from sightline.engine.build import build_data
from sightline.verbs.data import list_options, list_preparable
from sightline.verbs.output import print_note, show_evaluation, show_table
from tests.command import refuse, run_here, succeed
from tests.data.boxes.box_writers import pattern, write_coco, write_image
from tests.data.depth.own_frames import write_disc_frames

# --- what `data prepare` and `data info` print ------------------------------------------------------------------------


def scans(folder: Path, *, num_columns: int = 3) -> Path:
    rng = np.random.default_rng(0)
    for name in ("box", "rod"):
        (folder / name).mkdir(parents=True)
        for index in range(5):
            np.save(folder / name / f"{index}.npy", rng.uniform(-1, 1, (40, num_columns)).astype(np.float32))
    return folder


def test_a_prepared_folder_is_told_in_few_lines(tmp_path: Path) -> None:
    to, document = tmp_path / "set", tmp_path / "prepared.json"
    words = ("up_axis=z", "num_points=32", "--json", document)
    made = succeed("data", "prepare", "cloud_folder", "--from", scans(tmp_path / "scans"), "--to", to, *words)
    known = succeed("data", "info", to)
    assert made.out.startswith("outcome: prepared\n")
    for text in (made.out, known.out):
        assert len(text.splitlines()) < 40
        assert not re.search(r"[0-9a-f]{64}", text)
        assert not re.search(r"(?m): *(None|\[\]|\{\})?$(?!\n +\S)", text), text
        counts = re.findall(r"(?m)^  \w+: box (\d+), rod (\d+)$", text)
        assert [sum(map(int, column)) for column in zip(*counts, strict=True)] == [5, 5]
    assert re.search(r"[0-9a-f]{64}", document.read_text())
    assert json.loads(document.read_text())["outcome"] == "prepared"


def test_a_prepared_folder_is_verified_file_by_file(tmp_path: Path) -> None:
    to = tmp_path / "set"
    succeed("data", "prepare", "cloud_folder", "--from", scans(tmp_path / "scans"), "--to", to, "up_axis=z")
    done = run_here("data", "verify", to, "--json", tmp_path / "verified.json")
    assert (done.code, done.err) == (0, "")
    num_files = len(list(to.iterdir())) - 1  # the manifest answers for the others
    assert done.out == f"{to}: all {num_files} files are as they were written\n"
    assert json.loads((tmp_path / "verified.json").read_text()) == {"root": str(to), "num_files": num_files}
    path = to / "train.points.npy"
    content = bytearray(path.read_bytes())
    content[-2] ^= 4
    path.write_bytes(content)
    done = run_here("data", "verify", to)
    assert done.code == 2
    assert "train.points.npy: differs from what was written (SHA-256); prepare the set again" in done.err
    assert run_here("data", "verify", tmp_path / "scans").code == 2


def _write_clouds(root: Path) -> list[str]:
    (scans(root, num_columns=4) / "readme.md").write_text("mine")
    return ["num_points=32", "columns=[x, y, z, glow]"]


def _write_unnamed_clouds(root: Path) -> list[str]:
    points = scans(root).rglob("*.npy")
    for path in points:
        cloud, generator = np.load(path), np.random.default_rng(0)
        normals = cloud / np.linalg.norm(cloud, axis=1, keepdims=True)
        colours = generator.integers(256, size=cloud.shape)
        np.save(path, np.column_stack([cloud, normals, colours, generator.normal(size=len(cloud))]))
    return ["num_points=32"]


def _write_unnamed_scenes(root: Path) -> list[str]:
    root.mkdir()
    for index in range(4):
        generator = np.random.default_rng(index)
        colours = generator.integers(256, size=(60, 3))
        np.savetxt(root / f"{index}.txt", np.column_stack([generator.random((60, 3)), colours, np.arange(60) % 2]))
    return ["unit=m"]


def _write_scenes(root: Path) -> list[str]:
    root.mkdir()
    for index in range(4):
        table = np.random.default_rng(index).random((60, 3))
        np.savetxt(root / f"{index}.txt", np.column_stack([table, np.arange(60) % 2]), header="x y z label")
    return ["unit=mm"]


def _write_scans(root: Path) -> list[str]:
    root.mkdir()
    for index in range(3):
        np.random.default_rng(index).random((64, 4), dtype=np.float32).tofile(root / f"{index}.bin")
        np.zeros(64, dtype="<u4").tofile(root / f"{index}.label")
    return ["columns=[x, y, z, intensity]"]


def _write_photos(root: Path) -> list[str]:
    for number in range(10):
        write_image(root / f"{number}.png", pattern(6, 8))
    categories = [{"id": number, "name": f"kind{number}"} for number in range(200)]
    boxes = [{"image_id": number, "category_id": 3, "bbox": [1, 1, 3, 3]} for number in range(10)]
    images = [(number, f"{number}.png", 8, 6) for number in range(10)]
    write_coco(root / "mine" / "boxes.json", images, boxes, categories=categories)
    return ["annotations=[mine/boxes.json]", "images=."]


def _write_frames(root: Path) -> list[str]:
    write_disc_frames(root, far=9000)
    return ["no_return=9000"]


@pytest.mark.parametrize(
    ("name", "write", "told", "proposed"),
    [
        (
            "cloud_folder",
            _write_clouds,
            [
                "samples: train 6, validation 2, test 2",
                "files_beside_them: readme.md",
                "points: 32 x 3, from -0.",
                "up_axis=z; the",
            ],
            {"data.channels": ["glow"]},
        ),
        (
            "cloud_folder",
            _write_unnamed_clouds,
            ["columns=[x, y, z, nx, ny, nz, red, green, blue, _]", "is left out: to keep it,"],
            {"data.channels": ["red", "green", "blue"]},
        ),
        ("scene_folder", _write_unnamed_scenes, ["columns=[x, y, z, red, green, blue, label]; the files do not"], {}),
        ("scene_folder", _write_scenes, ["class_names: class_0, class_1", "assumed: up_axis=z; the files do not"], {}),
        (
            "scan_folder",
            _write_scans,
            ["scans: 3 of 3 looked at"],
            {
                "data.sensor.num_beams": 64,
                "data.sensor.azimuth_deg": [90.0, 0.0],
                "transforms.train.0.axes": ["y"],
                "transforms.train.1.height": 64,
                "transforms.evaluate.0.height": 64,
                "model.circular": False,
            },
        ),
        ("coco", _write_photos, ["kind3 10,", "(200 in all)"], {"data.classes.3": "kind3"}),
        ("depth_folder", _write_frames, ["samples: train 10, test 2", "joint_names: palm, tip, wrist"], {}),
    ],
)
def test_info_of_own_files_ends_with_the_command_that_prepares_them(
    name: str,
    write: Callable[[Path], list[str]],
    told: list[str],
    proposed: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = write(tmp_path / "own files")
    done = run_here("data", "info", name, "--from", tmp_path / "own files", *options, "--json", tmp_path / "told.json")
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "told.json").read_text())["for_data_prepare"].startswith("sightline data prepare ")
    assert all(line in done.out for line in told), done.out
    [command] = re.findall(r"(?m)^for_data_prepare:\s+(sightline data prepare .*)$", done.out)
    monkeypatch.chdir(tmp_path)
    prepared = run_here(*shlex.split(command)[1:])
    assert prepared.code == 0, prepared.err
    assert (tmp_path / "prepared" / "manifest.json").is_file()
    assert command.endswith(" --config own.yaml")
    config = read_config(Path("own.yaml"))
    assert (config.data.name, config.data.arguments["root"]) == (name, "prepared")
    build_data(read_config(Path("own.yaml"), ["evaluate.select=test"]))
    document = to_plain(config)
    for path, value in proposed.items():
        part: Any = document
        for key in path.split("."):
            part = part[int(key)] if isinstance(part, list) else part[key]
        assert part == value, path


def test_a_config_is_written_for_what_was_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not replaced once the user has changed it, and trains in any folder."""
    monkeypatch.chdir(tmp_path)
    words = ("data", "prepare", "cloud_folder", "--from", scans(tmp_path / "scans"), "--to", "set", "up_axis=z")
    assert "give a name that ends in .yaml" in refuse(*words, "--config", "own.txt")
    assert "own.yaml: trains on it: sightline train own.yaml" in succeed(*words, "--config", "own.yaml").err
    text = (tmp_path / "own.yaml").read_text()
    assert text.splitlines()[1:] == ["base: classify/own_clouds", "data:", '  name: "cloud_folder"', '  root: "set"']
    succeed(*words, "--config", "own.yaml")
    (tmp_path / "own.yaml").write_text("mine")
    assert "own.yaml: is there already, and differs" in refuse(*words, "--config", "own.yaml")
    assert "own.yaml: is there already" in refuse(*words[:6], "other", "up_axis=z", "--config", "own.yaml")
    assert (tmp_path / "own.yaml").read_text() == "mine"
    assert not (tmp_path / "other").exists()
    refused = refuse("data", "prepare", "widerperson", "--from", "scans", "--to", "other", "--config", "new.yaml")
    assert "WiderPerson" in refused or "scans" in refused, "photos of people have the preset of photos"


def test_a_first_sample_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    options = _write_clouds(tmp_path / "own")
    for path in (tmp_path / "own").rglob("*.npy"):
        path.write_bytes(b"damaged")
    assert "differences: " in run_here("data", "info", "cloud_folder", "--from", tmp_path / "own", *options).out


def test_info_of_a_set_without_files_names_those_that_have_some(tmp_path: Path) -> None:
    """An empty name is not the working folder."""
    assert "--from reads files of " in refuse("data", "info", "synthetic_shapes", "--from", tmp_path)
    assert "did you mean 'scan_folder'" in refuse("data", "info", "scan_foldr", "--from", tmp_path)
    assert "'' is neither a data set nor a prepared folder" in refuse("data", "info", "")


def test_the_help_of_prepare_lists_the_options_of_the_set() -> None:
    folder = run_here("data", "prepare", "cloud_folder", "--help").out.partition("Options of cloud_folder")[2]
    flat = " ".join(folder.split())
    assert re.search(r"up_axis=VALUE .* points up.* \(one of 'x', 'y', 'z'\) \[required\] ", flat)
    assert "num_points=VALUE points to store of each cloud (a whole number, at least 1) [default: 1024]" in flat
    assert "source" not in folder
    assert "target" not in folder
    assert "faulty=VALUE" in run_here("data", "prepare", "--help", "yolo_txt").out


def test_the_help_of_prepare_lists_no_options_without_a_known_set() -> None:
    for words in ((), ("no_such_set",)):
        done = run_here("data", "prepare", *words, "--help")
        assert (done.code, "Options of" in done.out) == (0, False)
        assert "--from PATH" in done.out


def test_a_config_that_is_written_leaves_no_sample_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """145 samples in batches of 8 leave one, which batch norm cannot normalise: `check` refused what was written."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for split, kind, count in (("train", "cup", 10), ("train", "rod", 9), ("test", "cup", 2), ("test", "rod", 2)):
        (tmp_path / "in" / split / kind).mkdir(parents=True)
        for number in range(count):
            np.save(tmp_path / "in" / split / kind / f"{number}.npy", generator.normal(size=(300, 3)))
    words = ("data", "prepare", "cloud_folder", "--from", "in", "--to", "set", "up_axis=z", "num_points=300")
    said = succeed(*words, "--config", "own.yaml").err
    lone = "17 training samples in batches of 8 make a batch of one sample, which batch norm cannot normalise"
    assert f"own.yaml: {lone}: it has train.tail=drop" in said
    assert 'train:\n  tail: "drop"\n' in (tmp_path / "own.yaml").read_text()
    succeed("train", "own.yaml", "train.epochs=1", "--no-check", "--out", "run")
    words = (*words[:6], "few", "up_axis=z", "num_points=80")
    assert lone in succeed(*words, "--config", "few.yaml").err  # so few points are as many as are sampled
    assert (tmp_path / "few.yaml").read_text().count('name: "sample_points"\n      num_points: 80\n') == 2


def test_examples_of_the_help_are_of_that_set_and_complete() -> None:
    """They were of modelnet40 and cloud_folder for every set; the second lacks nothing that the set requires."""
    for verb, name in itertools.product(("prepare", "convert"), ("cloud_folder", "coco", "yolo_txt", "scan_folder")):
        shown = run_here("data", verb, name, "--help").out.partition("Examples:\n")[2].splitlines()
        assert shown
        assert all(line.startswith(f"  sightline data {verb} {name} --from FOLDER ") for line in shown if line)
    for line in run_here("data", "prepare", "cloud_folder", "--help").out.partition("Examples:\n")[2].splitlines():
        assert "up_axis=z" in line
        assert re.fullmatch(r".* --to data/cloud_folder up_axis=z( --config own\.yaml)?", line)


def test_every_set_that_is_prepared_has_printable_options() -> None:
    for name in sorted(list_preparable()):
        more = list_options((name,))
        assert name in more.title
        rows = [text for option, text in more.rows if option != "none"]
        assert all(re.search(r"\S \(.*\)  \[", text) for text in rows), "an option without its meaning"


# --- tables as a terminal of some width shows them -------------------------------------------------------------------


COLUMNS = ("module", "class", "outputs", "parameters")
ROWS = [["encode", "LinearNormMax", "3x1024", "131,584"], ["  a_long_name.of.a.layer.deep.inside", "Linear", "", ""]]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(width: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    show_table("net", COLUMNS, ROWS, unbroken="module", droppable=("class", "outputs"))
    return re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue()).splitlines()


def test_a_wide_terminal_shows_every_column(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(120, monkeypatch)
    assert lines[0] == "net"
    assert all(name in lines[2] for name in COLUMNS)


@pytest.mark.parametrize(("width", "dropped"), [(64, ("class",)), (53, ("class", "outputs"))])
def test_a_narrow_terminal_drops_the_first_columns_and_breaks_no_name(
    width: int, dropped: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The longest name has 36 characters, so module and parameters need 39 + 13 + 1 = 53, outputs 10 more."""
    text = "\n".join(lines := shown(width, monkeypatch))
    assert f"(the terminal is too narrow for: {', '.join(dropped)})" in " ".join(text.split())
    assert [name for name in COLUMNS if not any(name in line for line in lines if line.startswith("┃"))] == [*dropped]
    assert "a_long_name.of.a.layer.deep.inside" in text
    assert "131,584" in text


def test_baselines_of_a_data_set_stand_below_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    class Room(SyntheticShapes):
        baselines: ClassVar = {"miou": {"the majority class": 0.02, "a forest": 0.417}}

    document = {
        "selection": "validation-selected",
        "per_class": {},
        "data": {"num_samples": 1},
        "metrics": {"miou": 0.5},
    }
    show_evaluation(document, title="a run", dataset=Room(split="test", train_size=4, test_size=4))
    assert "to compare miou with: 0.020 for the majority class, 0.417 for a forest" in capsys.readouterr().err


def test_names_of_files_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither as markup and emoji, nor in more than one line, nor as commands to the terminal."""
    show_table("files", ("file",), [["[bold]a.npy"], [":smile:.npy"], ["[/red].npy"], ["a\nb\x1b[31m\udcff.npy"]])
    told = capsys.readouterr().out
    told.encode()
    for name in ("[bold]a.npy", ":smile:.npy", "[/red].npy", r"a\nb\x1b[31m\udcff.npy"):
        assert f" {name} " in told


def test_cells_of_tables_are_no_commands_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    classes = {"a\nb\x1b[31m": 0.25, "\u202eevil": 0.5}
    document = {
        "selection": "last",
        "per_class": {},
        "hard_classes": {"figure": "accuracy", "classes": classes},
        "data": {"num_samples": 1},
        "metrics": {"accuracy": 0.5},
    }
    show_evaluation(document, title="a run")
    print_note("line 1\nline 2 \x1b[31m")
    printed = capsys.readouterr().err.splitlines()
    assert r"hardest classes by accuracy: a\nb\x1b[31m (0.25), \u202eevil (0.5)" in printed
    assert printed[-2:] == ["line 1", r"line 2 \x1b[31m"]
