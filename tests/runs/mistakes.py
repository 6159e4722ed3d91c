"""What a newcomer does wrong: each with the command, and what its message must hold, the place and the remedy."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from tests.command import succeed

__all__ = ["CONFIG", "MISTAKES", "PHOTOS", "PREPARE", "SMALL", "Mistake", "write_photos"]

VIEW = ("view", "configs/detect/photos_scratch.yaml", "--num", "1", "--out", "v")
PREPARE_PHOTOS = ("data", "prepare", "yolo_txt", "--from", "photos", "--to", "new")
CONFIG = "configs/classify/cloud_folder_pointnet.yaml"
SMALL = ("train.batch_size=21", "transforms.train.0.num_points=32", "transforms.evaluate.0.num_points=32")
PHOTOS = "configs/detect/photos_scratch.yaml"
PREPARE = ("data", "prepare", "cloud_folder", "--from", "scans", "--to", "new", "up_axis=z")


class Mistake(NamedTuple):
    """`spoil` damages a copy of the newcomer's folder; `said` are regular expressions, each found in the message.

    `follow` does what the message says, by the words that were typed and what was printed; it must succeed.
    """

    name: str
    words: Sequence[str]
    said: Sequence[str]
    spoil: Callable[[], object] = lambda: None
    follow: Callable[[Sequence[str], str], object] = lambda words, printed: None


def run_command(words: Sequence[str], printed: str) -> None:
    """Run the command at the end of the message."""
    succeed(*shlex.split(printed.rpartition("sightline ")[2]))


def prepare_and_try_again(words: Sequence[str], printed: str) -> None:
    run_command(words, printed)
    add_setting(words, printed)


def add_setting(words: Sequence[str], printed: str) -> None:
    """Type the same with the setting `key=value` that the message names, in place of one of the same key."""
    setting = re.findall(r"(?:data\.name|data\.root|faulty)=\w+", printed)[-1]
    succeed(*(word for word in words if word.partition("=")[0] != setting.partition("=")[0]), setting)


def take_source(words: Sequence[str], printed: str) -> None:
    """Type the same with the source that the message names."""
    source = shlex.split(printed.rpartition("--from ")[2])[0]
    at = words.index("--from") + 1
    succeed(*words[:at], source, *words[at + 1 :])


def take_suggestion(words: Sequence[str], printed: str) -> None:
    """Type the same with the word that the message suggests in place of a similar one."""
    meant = re.findall(r"did you mean '(\w+)'", printed)[-1]
    wrong = next(word for word in WRONG if any(word in each for each in words))
    succeed(*(word.replace(wrong, meant) for word in words))


def move_folder(words: Sequence[str], printed: str) -> None:
    """Move the folder as the message says, and type the same."""
    os.rename(*shlex.split(printed.rpartition(": mv ")[2]))
    succeed(*words)


WRONG = ("photo_sett", "dgo")


def write_photos(root: Path) -> None:
    """Write six photos in two splits with boxes of two classes, as trainers of YOLO have them."""
    root.mkdir()
    for number in range(6):
        split = "train" if number < 4 else "val"
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / split / f"{number}.jpg")
        (root / "labels" / split / f"{number}.txt").write_text(f"{number % 2} 0.5 0.5 0.3 0.4\n")
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat, dog]\n")


def scatter_labels() -> None:
    os.mkdir("photos/notes")
    os.rename("photos/labels/train", "photos/notes/t")
    os.rename("photos/labels", "a")


def move_run() -> None:
    os.makedirs("runs/cloud_folder_pointnet")
    os.rename("run", "runs/cloud_folder_pointnet/1")


A_SET = "it is a prepared set of 'cloud_folder': give a config and data.root=prepared"
GONE = r"data\.root: prepared: there is no such folder"
MISTAKES = (
    Mistake(
        "a page of the web",
        PREPARE,
        (r"a\.ply:1: starts with '<html>not ", "download it again"),
        lambda: Path("scans/ball/a.ply").write_text("<html>not found</html>"),
    ),
    Mistake(
        "two columns",
        PREPARE,
        (r"a\.npy: has 2 columns; a cloud needs x, y and z", "give another file"),
        lambda: np.save("scans/ball/a.npy", np.arange(40.0).reshape(20, 2)),
    ),
    Mistake(
        "one point",
        PREPARE,
        (r"a\.npy: all \d+ points coincide", "leave the file out"),
        lambda: np.save("scans/ball/a.npy", np.ones((9, 3))),
    ),
    Mistake("source", (*PREPARE[:4], "scnas", *PREPARE[5:]), ("scnas: there is no such", "with clouds: CLASS")),
    Mistake("set", ("data", "prepare", "cloudfolder", *PREPARE[3:]), ("did you mean 'cloud_folder'",)),
    Mistake("home of nobody", (*PREPARE[:4], "~nobody_here/x", *PREPARE[5:]), ("home of ~nobody_here is not known",)),
    Mistake("within", (*PREPARE[:6], "scans/new", "up_axis=z"), (r"scans/new: lies in \S+scans,", "outside of it")),
    Mistake(
        "resume",
        ("train", "run", "model.dropout=0.1", "--resume", "auto"),
        ("model.dropout: 0.4 there, 0.1 here", "another --out"),
    ),
    Mistake("facts", ("evaluate", "run"), (r"facts\.json: is missing",), lambda: os.remove("run/facts.json")),
    Mistake(
        "data",
        ("evaluate", "run"),
        (rf"{GONE}; looked in /\S+; if the set is elsewhere",),
        lambda: os.rename("prepared", "moved"),
    ),
    Mistake(
        "export",
        ("export", "run"),
        (rf"not at hand \(run/config\.yaml:\d+: {GONE}\); give files",),
        lambda: os.rename("prepared", "moved"),
    ),
    Mistake(
        "photos read as another set",
        (*VIEW, "data.name=coco", "data.root=photo_set"),
        ("prepared as 'yolo_txt', coco is needed; to read it as it is: data.name=yolo_txt; to make one",),
        follow=add_setting,
    ),
    Mistake(
        "clouds read as photos",
        (*VIEW, "data.root=prepared"),
        ("is prepared as 'cloud_folder', coco is needed; to make one: sightline data prepare coco",),
    ),
    Mistake(
        "a class that is misspelt",
        (*VIEW, "data.name=yolo_txt", "data.root=photo_set", "data.classes=[cat, dgo]"),
        (r"data\.classes: photo_set has no class 'dgo'; did you mean 'dog'",),
        follow=take_suggestion,
    ),
    Mistake(
        "a root that is misspelt",
        (*VIEW, "data.name=yolo_txt", "data.root=photo_sett"),
        (r"data\.root: photo_sett: there is no such folder; did you mean 'photo_set'\?",),
        follow=take_suggestion,
    ),
    Mistake(
        "photos that are not prepared",
        (*VIEW, "data.name=yolo_txt", "data.root=photos"),
        (r"photos: is not a prepared set, it holds data\.yaml, images", r"data\.root=photos_prepared: sightline"),
        follow=prepare_and_try_again,
    ),
    Mistake(
        "photos prepared as another set",
        ("data", "prepare", "coco", "--from", "photos", "--to", "new"),
        ("no JSON file with images", r"data\.yaml is a file of yolo_txt: 'sightline data prepare yolo_txt' reads it"),
    ),
    Mistake(
        "the folder of images",
        (*PREPARE_PHOTOS[:4], "photos/images", *PREPARE_PHOTOS[5:]),
        ("photos/images: nothing names the classes", r"the folder of \S+/photos/data\.yaml, which does: --from"),
        follow=take_source,
    ),
    Mistake(
        "labels called otherwise",
        PREPARE_PHOTOS,
        ("none of 6 images has a text file beside it", r"their folder is called label: mv \S+/label \S+/labels$"),
        lambda: os.rename("photos/labels", "photos/label"),
        follow=move_folder,
    ),
    Mistake(
        "labels elsewhere",
        PREPARE_PHOTOS,
        (r"none of 6 images has a text file .*photos/notes/t/0\.txt is elsewhere, or named otherwise",),
        scatter_labels,
    ),
    Mistake(
        "no folder of validation",
        PREPARE_PHOTOS,
        (r"data\.yaml states val: images/val, which is not below", "or leave them out by faulty=leave_out"),
        lambda: os.rename("photos/images/val", "elsewhere"),
        follow=add_setting,
    ),
    Mistake(
        "a class too many",
        PREPARE_PHOTOS,
        (r"3 impossible rows, first: \S+/1\.txt:1: .*\(class 1 of 1\)", "or leave them out by faulty=leave_out"),
        lambda: Path("photos/data.yaml").write_text("names: [cat]\n"),
        follow=add_setting,
    ),
    Mistake("a config as a run", ("evaluate", CONFIG), (f"a config makes one: sightline train {CONFIG}$",)),
    Mistake("a config with a run", ("evaluate", CONFIG), (r", as runs/cloud_folder_pointnet/1$",), move_run),
    Mistake("a run that is misspelt", ("evaluate", "runn"), ("no config.yaml in it", "did you mean 'run'")),
    Mistake("a set as a run", ("evaluate", "prepared"), ("no config.yaml in it", A_SET)),
    Mistake("a set as a config", ("train", "prepared"), ("neither a config nor a run", A_SET)),
    Mistake("a set as files", ("view", "prepared", "--out", "v"), ("neither a config, a run nor files", A_SET)),
)
