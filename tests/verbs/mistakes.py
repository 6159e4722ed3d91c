"""Mistakes with the later verbs: what is typed, and what the one line that answers must hold."""

from __future__ import annotations

__all__ = ["MISTAKES"]

LONG = "n" * 300
NO_RUN = r"is not a run directory \(no config\.yaml in it\); give the folder that a training wrote"
SPACE = ("--space", "optimizer.lr=0.1,0.2")
OUT = ("--out", "new")
NOT_OURS = r"is not a run directory \(config\.yaml, environment\.json, facts\.json in it\); 'sightline runs' lists"
NO_NAME = "names a Python file: use small letters, digits and _, a letter first"
HIDES = "is another Python file or package, which it would hide; give another name"

LABELS = ("--from", "empty", "--as", "yolo_txt", "--to", "new")
WEIGHTS = "run/checkpoints/step_00000008/model.safetensors"

_MISTAKES: dict[str, dict[tuple[str, ...], str]] = {
    "report": {
        (): r"Missing argument 'RUN\.\.\.': run directories.*; usage: .*report \[OPTIONS\] \{RUN\.\.\.\}",
        ("runs/nothing",): f"runs/nothing: {NO_RUN}",
        ("loop",): f"loop: {NO_RUN}",
        ("run", "--out", "loop/page.html"): "loop is not a folder; give another place",
        (LONG,): "File name too long; check the path",
        ("run", "run"): "a run is given twice; name every run once",
        ("cut",): r"cut/config\.yaml:2: not valid YAML",
        ("run", "--out", "empty"): "--out empty: is a folder; give a file in it",
        ("run", "--out", "file.txt/page.html"): "file.txt is not a folder; give another place",
        ("run", "--out", "/proc/page.html"): "cannot be written: .*; give another place",
        ("run", "--out", "page.pdf"): r"page\.pdf: a report is a page of HTML; give a name that ends in \.html",
        ("run", "--json", "empty"): "--json empty: is a folder; give a file in it",
        ("run", "--samples", "99999999999999999999"): "not a sample of the test part; it has 24, from 0 to 23",
        ("run", "--samples", "-1"): "found '-1', which is not a sample",
        ("run", "--samples", ""): "--samples: names no sample of the test part; give numbers or names, as in 0,5",
        ("bare", "--samples", "0"): "bare has no checkpoint yet .* go on with: sightline train bare",
        ("damaged", "--samples", "0"): r"model\.safetensors: damaged: .*give it by --checkpoint",
        ("run", "my run é", "--samples", "0"): "--samples: are those of one run; give one run",
        ("run", "--samples", "0", "--device", "gpu"): "--device: found 'gpu', allowed are auto, cpu, cuda",
        ("run", "--outt", "x"): "No such option: --outt .*--out",
    },
    "runs": {
        ("nowhere",): "nowhere: is not a folder; give the one that holds your runs",
        ("run", "cut"): r"unexpected extra argument\(s\) \(cut\)",
        (".", "--sort", "colour"): "--sort colour: give one of name, task",
        (".", "--diff", "run"): "'--diff' requires 2 arguments",
        (".", "--diff", "run", "run"): "a run is given twice; name every run once",
        (".", "--diff", "run", "nothing"): f"nothing: {NOT_OURS}",
        (".", "--diff", "run", "cut"): r"cut/config\.yaml:2: not valid YAML",
        (".", "--diff", "run", "link"): "link: is a link to run; give the run directory itself",
        (".", "--diff", "run", "run", "--sort", "size"): "--sort: is not read with --diff; leave it out",
        (".", "--dif"): "No such option: --dif .*--diff",
    },
    "export": {
        (): "Missing argument 'RUN'",
        ("runs/nothing",): f"runs/nothing: {NO_RUN}",
        ("net.onnx",): rf"net\.onnx: {NO_RUN}; exported files are read by predict and serve$",
        ("two",): f"two: {NO_RUN}, as two/a/1, two/a/2$",
        ("bare",): "bare has no checkpoint yet",
        ("run", "--out", "net.pt"): r"--out net\.pt: a file of ONNX ends in \.onnx",
        ("run", "--out", "dir.onnx"): r"--out dir\.onnx: is a folder; give a file in it",
        ("run", "--checkpoint", "bset"): "there is no bset; .*did you mean 'best'",
        ("run", "--checkpoint", "file.txt"): r"file\.txt: is a file, not a checkpoint folder; give a run directory",
        ("run", "--inputs", "nothing"): "nothing: there is no such file; check the path",
        ("run", "--inputs", "empty"): r"empty: holds no file of the kinds \.npy",
        ("run", "--inputs", "photo.png"): r"photo\.png: files of this kind are not read; there are \.npy",
        ("run", "--inputs", "few.npy"): r"few\.npy: holds 4 points, the run takes 64; give a denser cloud",
        ("run", "--inputs", "nan.npy"): r"nan\.npy: points\[0, 0\] is nan, .*take these points out",
        ("run", "--plugin", "none.py"): r"--plugin none\.py: no such file; check the path",
        ("run", "score=0.5"): r"unexpected extra argument\(s\) \(score=0\.5\)",
    },
    "serve": {
        (): r"Missing argument 'RUN\|FILE\.onnx'",
        ("runs/nothing",): f"runs/nothing: {NO_RUN}",
        ("bare",): "bare has no checkpoint yet",
        (
            "unfinished",
        ): r"unfinished/facts\.json: cannot be read: .*; get it again, or repeat the command that wrote it",
        ("net.onnx",): r"net\.onnx: is not a file of ONNX, or is damaged",
        ("huge.onnx",): r"huge\.onnx\.json: cannot be read \(it has [\d,]+ bytes, at most [\d,]+ are read\); export",
        ("none.onnx",): r"none\.onnx: there is no such file",
        ("lone.onnx",): r"lone\.onnx: has no description beside it .*; copy the one that",
        ("net.pt2",): r"net\.pt2: is not a run directory",
        ("net.onnx", "--checkpoint", "best"): r"--checkpoint best: net\.onnx holds .*; leave it out",
        ("run", "--port", "PORT"): "--port PORT: another program listens there; give another port",
        ("run", "--port", "0"): "'--port': Input should be greater than or equal to 1",
        ("run", "--host", "192.0.2.1"): r"--host 192\.0\.2\.1 --port 8000: cannot be listened on \(Cannot assign",
        ("run", "--host", ""): "--host: is empty; give an address of this machine",
        ("run", "--max-mb", "inf"): "'--max-mb': Input should be less than or equal to",
        ("run", "--max-seconds", "-1"): "'--max-seconds': Input should be greater than or equal to",
        ("run", "--wait-ms", "inf"): "'--wait-ms': Input should be less than or equal to",
        ("run", "--batch-size", "0"): "'--batch-size': Input should be greater than or equal to 1",
        ("run", "scor=0.5"): "scor: is not an option; 'classify' takes none",
        ("detect", "score=high"): "score: found the text 'high', allowed is a number from 0 to 1",
        ("run", "few.npy"): "few.npy: is not an option key=value",
        ("run", "--columns", "x,y"): r"columns: \[x, y\] lacks z; name every column once",
        ("run", "--device", "gpu"): "--device: found 'gpu', allowed are auto, cpu, cuda",
    },
    "sweep": {
        ("config.yaml", *OUT): "Missing option '--space': YAML file of the search space",
        ("config.yaml", *SPACE): "Missing option '--out': folder for trials",
        ("nothing.yaml", *SPACE, *OUT): r"nothing\.yaml: no such file; did you mean 'config\.yaml'",
        ("config.yaml", "--space", "list.yaml", *OUT): r"list\.yaml: found a list, allowed are lines of",
        ("config.yaml", "--space", "größe=1,2", *OUT): "größe: unknown key 'größe'; allowed: checkpoint",
        ("config.yaml", "--space", "optimizer.lr={low: 1, hihg: 2}", *OUT): "not a key of a range; did you mean 'high'",
        (
            "config.yaml",
            "--space",
            "optimizer.lr={low: 0.1, high: .inf}",
            *OUT,
        ): "high: found the text '.inf', a number",
        ("config.yaml", "--space", "seed=1,2", *OUT): "seed: cannot be searched: .*'sightline study'",
        ("config.yaml", "--space", "model.dropout=0.1,7", *OUT): "model.dropout: found 7, allowed is a number from 0",
        ("config.yaml", *SPACE, *SPACE, *OUT): "'optimizer.lr' is given twice, .*; keep one",
        ("config.yaml", *SPACE, "--out", "run"): "--out run: is the folder of a run; give one of the sweep's own",
        ("config.yaml", "--space", "=1,2", *OUT): "--space: found the text '=1,2', allowed is a YAML file or KEY=A,B",
        ("config.yaml", *SPACE, *OUT, "--storage", "torn.journal"): r"torn\.journal: its last line is cut, .*; delete",
        ("config.yaml", *SPACE, *OUT, "--storage", "bad.journal"): r"line 2 is damaged; give another file or URL$",
        (
            "config.yaml",
            *SPACE,
            *OUT,
            "--storage",
            "empty",
        ): "storage: 'empty' is not a file; give a file, as sweep.journal",
        ("config.yaml", *SPACE, *OUT, "--storage", "file.txt"): r"storage: file\.txt: .*; give another file or URL",
        ("config.yaml", *SPACE, *OUT, "--trials", "0"): "'--trials': Input should be greater than or equal to 1",
        ("config.yaml", *SPACE, *OUT, "--sampler", "tpee"): "'tpee' is not one of 'tpe', 'random'",
        ("config.yaml", *SPACE, *OUT, "--device", "gpu"): "--device: found 'gpu', allowed are auto, cpu, cuda",
    },
    "weights": {
        (): "Missing argument 'FILE': published weights",
        ("file.txt",): "Missing option '--to': folder to write, new or empty",
        ("nothing.pth", "--to", "new"): r"nothing\.pth: there is no such file",
        ("empty", "--to", "new"): "empty: is a folder, a file of weights is needed",
        ("file.txt", "--to", "new"): r"file\.txt: was not written by torch\.save, or is damaged",
        ("file.txt", "--to", "empty", "--layout", "pointnt"): "--layout pointnt: no such layout is known",
        ("file.txt", "--to", "new", "--config", "config.yaml", "--data", "modelnet40"): r"file\.txt: was not written",
    },
    "data convert": {
        (): "Missing argument 'NAME'",
        ("coco",): "data convert: --from PATH, --as NAME, --to DIR missing: say what is read, as what and where",
        ("coco", *LABELS[:4]): "data convert: --to DIR missing",
        ("kitti", *LABELS): "data convert: kitti: is no set that reads labels of boxes; did you mean 'kitti_boxes'",
        ("modelnet40", *LABELS): "modelnet40: is no set that reads labels of boxes; there are citypersons, coco",
        ("coco", *LABELS[:3], "yolo", "--to", "new"): "--as yolo: is no set that writes .*; did you mean 'yolo_txt'",
        ("coco", *LABELS): "empty: holds nothing, no JSON file with images, annotations, categories",
        ("coco", "--from", "nothing", *LABELS[2:]): "nothing: there is no such file or folder",
        ("coco", *LABELS[:5], "run"): "data convert: run is there and not empty; give another folder by --to",
        (
            "coco",
            *LABELS,
            "names=[a]",
        ): "data convert: names: is not an option; 'coco' takes annotations, images, orientation, faulty",
        ("coco", *LABELS, "faulty=yes"): "data convert: faulty: .*'refuse'",
        ("coco", *LABELS, "--box", "torso"): "'torso' is not one of 'full', 'visible', 'head'",
        (WEIGHTS, "--to", "new"): f"{WEIGHTS} holds weights; make a run of them: sightline weights {WEIGHTS} --to DIR",
        ("coco", "--from", WEIGHTS, *LABELS[2:]): f"{WEIGHTS} holds weights; make a run of them: sightline weights",
    },
    "init": {
        (): "Missing argument 'NAME'",
        **{(name,): f"'{name}' {NO_NAME}" for name in ("River", "class", "my lake", "größe", "", "1lake", "lake-2")},
        **{(name,): NO_NAME for name in ("../out", "lake.py", LONG)},
        **{(name,): f"'{name}' {HIDES}" for name in ("torch", "sightline", "json", "conftest", "test_lake")},
        ("empty",): "init: empty: is there already; give another name",
        ("lake", "sea"): r"unexpected extra argument\(s\) \(sea\)",
        ("lake", "--task", "segmnt"): "--task segmnt: there is no such project; did you mean 'segment'",
        ("lake", "--task", ""): "there is no such project; allowed: centre, classify",
        ("lake", "--tasks", "detect"): "No such option: --tasks .*--task",
        ("lake", "--to", "file.txt"): "file.txt/lake: cannot be written: Not a directory; give another place by --to",
        ("lake", "--to", "/proc"): "/proc/lake: cannot be written: .*; give another place by --to",
        ("lake", "--to", LONG): "File name too long; check the path",
        ("lake", "--json", "empty"): "--json empty: is a folder; give a file in it",
    },
}
"""After `sightline VERB`, in a folder as `tests/verbs/test_mistakes.py` makes it, and a pattern of the answer.

PORT is one on which something listens.
"""
MISTAKES = [((*verb.split(), *words), said) for verb, mistakes in _MISTAKES.items() for words, said in mistakes.items()]
