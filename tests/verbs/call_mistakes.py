"""Mistakes with four functions of the Python API, with a pattern of the message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import sightline

__all__ = ["CALLS", "CallMistake"]

CONFIG = "config.yaml"
LONG = "n" * 300
NO_RUN = r"is not a run directory \(no config\.yaml in it\); give the folder that a training wrote"


class CallMistake(NamedTuple):
    """A call in a folder as `tests/verbs/test_mistakes.py` makes it, and a pattern of its error."""

    function: str
    call: Callable[[], Any]
    said: str


def _call(function: str, said: str, *arguments: Any, **more: Any) -> CallMistake:
    return CallMistake(function, lambda: getattr(sightline, function)(*arguments, **more), said)


def _load(function: str, said: str, **more: Any) -> CallMistake:
    """A mistake with a loader of sound data."""
    return CallMistake(function, lambda: sightline.load_data(CONFIG).loader(**more), said)


def _loaded(function: str, said: str, **more: Any) -> CallMistake:
    """A mistake with a loaded run where a path is meant."""
    return CallMistake(function, lambda: getattr(sightline, function)(sightline.load_run("run"), **more), said)


LOAD_DATA = [
    _call("load_data", said, config)
    for config, said in (
        ("nothing.yaml", r"nothing\.yaml: no such file; give a YAML file"),
        ("file.txt", r"file\.txt: found a single value, allowed are lines of"),
        (LONG, "config: n+: File name too long; check the path"),
        ("", "config: found the text '', allowed is the path of a YAML file or a run directory"),
        ("a\0.yaml", r"config: a\\x00\.yaml: has the character U\+0000, which no path has; check the path"),
        (None, "config: found a NoneType, allowed is a path, a dict or a RunConfig"),
        ({}, "dict: data: is required and missing; give a block of"),
        ({"base": "nowhere.yaml"}, r"dict: base: nowhere\.yaml: no such file; give a YAML file"),
        ({"base": CONFIG, "train": {"epochs": np.array(3)}}, r"dict: train\.epochs: found array\(3\) .* allowed"),
        ({1: 2}, "dict: the key 1 is not text"),
    )
] + [
    _call("load_data", "split: 'tset' is not a part of synthetic_shapes; did you mean 'test'", CONFIG, "tset"),
    _call("load_data", "split: found None, allowed is a name", CONFIG, None),
    _call("load_data", "transforms: found 'trian'; did you mean 'train'", CONFIG, transforms="trian"),
    _call("load_data", r"overrides: found the text 'a=b', allowed is a list: \['a=b'\]", CONFIG, overrides="a=b"),
    _call("load_data", "found the text 'seed', allowed is key=value", CONFIG, overrides=["seed"]),
    _call("load_data", "data.num_points: found -1, allowed is a whole", CONFIG, overrides=["data.num_points=-1"]),
    _call("load_data", r"plugins: found the text 'a\.py', allowed is a list", CONFIG, plugins="a.py"),
    _call("load_data", r"--plugin a\.py: no such file; check the path", CONFIG, plugins=["a.py"]),
    _load("load_data", "loader: batch_size: found 0, allowed is a whole number from 1 on", batch_size=0),
    _load("load_data", "loader: batch_size: found '8', allowed is a whole number", batch_size="8"),
    _load("load_data", "loader: workers: found -1, allowed is a whole number from 0 on", workers=-1),
]

EVALUATE = [
    _call("evaluate", said, run)
    for run, said in (
        ("runs/nothing", f"runs/nothing: {NO_RUN}"),
        ("bare", "bare has no checkpoint yet"),
        ("", "evaluate: found the text '', allowed is the path of a run directory"),
        (None, "evaluate: found null, allowed is the path of a run directory"),
    )
] + [
    _loaded("evaluate", "evaluate: found a LoadedRun, allowed is the path of a run directory"),
    _call("evaluate", "there is no bset; .*did you mean 'best'", "run", checkpoint="bset"),
    _call("evaluate", "checkpoint: found 8, allowed is the path of a checkpoint, or last or best", "run", checkpoint=8),
    _call("evaluate", "config: found a int, allowed is a path", "run", data=3),
    _call("evaluate", "run: was trained with num_classes = 12; this data set has 1", "run", data="detect"),
    _call("evaluate", "found 'model.dropout=0.1', allowed is key=value with", "run", overrides=["model.dropout=0.1"]),
    _call("evaluate", "evaluate.votes: found -3, allowed is a whole number", "run", overrides=["evaluate.votes=-3"]),
    _call("evaluate", "overrides: found the text 'a=b', allowed is a list", "run", overrides="a=b"),
    _call("evaluate", "overrides: found 3, allowed are texts, as 'train.epochs=10'", "run", overrides=[3]),
    _call("evaluate", r"plugins: found the text 'a\.py', allowed is a list", "run", plugins="a.py"),
    _call("evaluate", "--device: found 'gpu', allowed are auto, cpu, cuda", "run", device="gpu"),
]

SCORE = [
    _call("score", said, predictions, "detect")
    for predictions, said in (
        ("nothing", r"nothing: cannot be read \(No such file or directory\); check the file"),
        ("empty", "empty: holds nothing; give the file of results itself"),
        ("file.txt", r"file\.txt: does not read as JSON .*; write the results again"),
        ("list.json", r"list\.json: row 0 is 1; it needs image_id"),
        ("nan.json", r"nan\.json: row 0 is .*; it needs .* all finite numbers"),
        ("", "score: found the text '', allowed is the path of a file or folder of predictions"),
        (None, "score: found null, allowed is the path"),
    )
] + [
    _loaded("score", "score: found a LoadedRun, allowed is the path", config="detect"),
    _call("score", "config: found a NoneType, allowed is a path", "file.txt", None),
    _call("score", r"empty: has no manifest\.json", "empty", CONFIG),
    _call(
        "score", "metrics: found an empty list, allowed is at least one", "file.txt", "detect", overrides=["metrics=[]"]
    ),
    _call("score", "overrides: found the text 'a=b', allowed is a list", "file.txt", "detect", overrides="a=b"),
]

EXPORT = [
    _call("export", said, run)
    for run, said in (
        ("runs/nothing", f"runs/nothing: {NO_RUN}"),
        ("net.onnx", r"net\.onnx: is not a file of ONNX, or is damaged"),
        ({"base": CONFIG}, "export: found a mapping with base, .*a config has no trained weights: train it first"),
        (None, "export: found null, allowed is the path of a run directory"),
    )
] + [
    _call("export", r"--out run/config\.yaml: a file of ONNX ends in \.onnx", "run", out="run/config.yaml"),
    _call("export", "out: found 3, allowed is the path of the file to write", "run", out=3),
    _call("export", r"inputs: found the text 'few\.npy', allowed is a list: \['few\.npy'\]", "run", inputs="few.npy"),
    _call("export", "inputs: found 3, allowed is the path of a file to check with", "run", inputs=[3]),
    _call("export", r"none\.npy: there is no such file", "run", inputs=["none.npy"]),
]

CALLS = [*LOAD_DATA, *EVALUATE, *SCORE, *EXPORT]
