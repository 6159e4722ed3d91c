"""Words that users of other tools type first, and what is written here in their place."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping
from pathlib import PurePath
from typing import NamedTuple

from sightline.config.image_size import WORD as SIZE_WORD


class _Form(NamedTuple):
    """Names of one setting in other tools, and what is written here: options, overrides or a command.

    `{value}` is the typed value if it matches `pattern`, and else `otherwise`. Of several forms of a name, the first
    that the command takes is meant, and where it is a key of a config the last.
    """

    names: str
    instead: str
    pattern: str = ".+"
    otherwise: str = "VALUE"


_FORMS = (
    _Form("gpus num_gpus ngpus devices nproc nproc_per_node num_processes launcher",
          "--device cuda --processes {value}", r"[1-9]\d*", "N"),
    _Form("device gpu gpu_id gpu_ids accelerator cuda use_cuda", "--device {value}", "cpu|auto|cuda", "cuda"),
    _Form("config cfg config_file config_path config_name opt c f", "sightline {command} {value}", otherwise="CONFIG"),
    _Form("output output_dir outdir save_dir save_path work_dir workdir log_dir logdir project exp_name run_dir o",
          "--out {value}", "[^-].*", "DIR"),
    _Form("resume resume_from resume_from_checkpoint ckpt_path auto_resume", "--resume {value}", r".*[/.].*", "auto"),
    _Form("weights ckpt model_path load_from", "--checkpoint {value}", r"last|best|.*[/.].*", "best"),
    _Form("pretrained weights ckpt model_path load_from init_checkpoint checkpoint_path pretrained_model",
          "init.from={value}", r".*[/.].*", "FILE"),
    _Form("max_epochs num_epochs num_train_epochs n_epochs nepochs epoch", "train.epochs={value}"),
    _Form("max_steps total_steps num_steps max_iters num_iters iterations", "train.steps={value}"),
    _Form("batch bs batchsize train_batch_size per_device_train_batch_size", "train.batch_size={value}"),
    _Form("eval_batch_size val_batch_size per_device_eval_batch_size", "evaluate.batch_size={value}"),
    _Form("lr0 learning_rate base_lr", "optimizer.lr={value}"),
    _Form("optim optimiser", "optimizer.name={value}"),
    _Form("scheduler lr_scheduler lr_scheduler_type", "schedule.name={value}"),
    _Form("patience early_stop early_stopping early_stopping_patience", "train.early_stopping.patience={value}",
          r"\d+", "N"),
    _Form("gradient_clip_val clip_grad grad_clip clip_grad_norm max_grad_norm", "train.clip_norm={value}"),
    _Form("accumulate accumulate_grad_batches gradient_accumulation_steps accumulation_steps",
          "train.micro_batches={value}", r"\d+", "N"),
    _Form("amp use_amp mixed_precision bf16", "train.precision={value}", "fp16|bf16", "bf16"),
    _Form("fp16 half", "train.precision={value}", "fp16", "fp16"),
    _Form("model_ema use_ema", "train.ema_decay={value}", r"0\.\d+", "0.999"),
    _Form("num_workers workers_per_gpu dataloader_num_workers n_workers", "loader.workers={value}", r"\d+", "N"),
    _Form("manual_seed random_seed", "seed={value}"),
    _Form("deterministic", "train.determinism={value}", "seeded|strict", "strict"),
    _Form("data_dir data_path data_root dataset_dir dataset_path", "data.root={value}", otherwise="DIR"),
    _Form("val_interval eval_interval eval_every check_val_every_n_epoch", "evaluate.every={value}", r"\d+", "N"),
    _Form("save_period save_interval save_every", "checkpoint.every={value}", r"\d+", "N"),
    _Form("sync_bn sync_batchnorm", "distributed.sync_batch_norm={value}", "true|false", "true"),
    _Form("use_wandb logger", "log.wandb={value}", "off|offline|online", "online"),
    _Form("conf conf_thres conf_threshold score_thr score_threshold", "sightline predict RUN PATH score={value}",
          r"0?\.\d+", "0.3"),
    _Form("source img images input", "sightline predict RUN {value}", "[^-].*", "PATH"),
    _Form("save save_img save_txt", "--out {value}", "[^-].*", "DIR"),
    _Form("tta augment test_time_augmentation", "evaluate.votes={value}", r"\d+", "10"),
    _Form("tile slice sahi slice_size slice_height slice_width", "evaluate.tile={value}", r"\d+", "640"),
    _Form("tile slice sahi slice_size slice_height slice_width",
          "sightline predict RUN PATH tile={value}", r"\d+", "640"),
    _Form("multirun sweep m", "sightline sweep CONFIG --space KEY=A,B --out DIR"),
    _Form("dry_run fast_dev_run dryrun sanity_check", "sightline check CONFIG"),
    _Form("cfg_options overrides opts", "sightline {command} CONFIG {value}", r"[\w.]+=.*", "KEY=VALUE"),
    _Form("format export_format", "sightline export RUN --out {value}", otherwise="FILE.onnx", pattern="(?!)"),
    _Form("imgsz img_size image_size", f"{SIZE_WORD}={{value}}", r"\d+(x\d+)?", "PX"),
)  # fmt: skip

COMMANDS = {
    "evaluate RUN": "eval test val validate",
    "train CONFIG": "learn run start detect segment classify pose yolo",
    "train CONFIG --out RUN --resume auto": "resume continue",
    "predict RUN PATH": "infer inference demo",
    "sweep CONFIG --space KEY=A,B --out DIR": "tune hpo optuna search",
    "profile CONFIG": "benchmark bench time",
    "view CONFIG --out DIR": "visualize visualise plot draw browse",
    "compress run RUN --ratio 0.1 --out DIR": "quantize quantise prune",
    "describe CONFIG": "summary model info",
    "data info NAME": "download dataset datasets",
    "list models": "models zoo",
    "list configs": "configs",
    "weights convert FILE --to DIR": "import load",
    "init NAME": "new create",
    "--help": "help",
    "--version": "version",
}
"""Commands of ours by the words that other tools have for them."""
GROUPED = {
    "runs": {
        "runs list": "ls show",
        "runs diff A B": "compare",
        "runs push RUN hf://OWNER/REPO": "upload publish",
        "runs pull hf://OWNER/REPO --out DIR": "download fetch get clone",
        "runs list, and delete the folder of a run yourself": "rm remove delete",
    },
    "weights": {
        "weights list": "ls show zoo",
        "weights fetch NAME": "download get pull",
        "weights convert FILE --to DIR": "import load",
    },
    "data": {"list data": "list ls", "data info NAME": "download get fetch show", "data prepare NAME": "make create"},
}
"""The same of the commands of a group, as those after `sightline runs`."""

BASES = ("_base_", "bases", "defaults")
"""Keys that name the configs which another tool's config builds on."""
NAMES = ("type", "_target_", "class_path")
"""Keys that name a component in another tool's config."""
_OF_NETWORK = ("backbone", "head")
_WEIGHTS = (".pt", ".pth", ".ckpt", ".safetensors", ".onnx", ".weights")


def list_names() -> list[str]:
    """List the names of settings of other tools."""
    return list(dict.fromkeys(name for form in _FORMS for name in form.names.split()))


def find_command(word: str, *, group: str = "") -> str | None:
    """Return the command line, after `sightline` or a group of commands, that another tool's command means here."""
    commands = GROUPED.get(group, {}) if group else COMMANDS
    return next((ours for ours, theirs in commands.items() if word.lower() in theirs.split()), None)


def find_setting(
    name: str, value: str, *, command: str = "", flags: Collection[str] | None = None, takes_keys: bool = True
) -> str:
    """Return what to write for another tool's option or key of this name; empty for one that is not known.

    With `flags`, those of the command, others are left out, and without `takes_keys` so are keys of a config.
    """
    word = name.lstrip("-").rpartition(".")[2].replace("-", "_").lower()
    answers = []
    for form in _FORMS:
        if word not in form.names.split() or (form.instead.startswith("sightline") and not command):
            continue
        is_valid = re.fullmatch(form.pattern, value, flags=re.IGNORECASE) is not None
        written = form.instead.format(value=shlex.quote(value) if is_valid else form.otherwise, command=command)
        if written.startswith("--") and flags is not None:
            words = written.split()
            pairs = zip(words[::2], words[1::2], strict=True)
            written = " ".join(f"{flag} {value}" for flag, value in pairs if flag in flags)
        if written and (takes_keys or written.startswith(("--", "sightline "))):
            answers.append(written)
    return answers[-1 if flags is None else 0] if answers else ""


def find_file(section: str, value: object) -> str:
    """Return what to do with a file that another tool takes as its data set or its model; empty for other values."""
    path = PurePath(value if isinstance(value, str) else "")
    if section == "data" and path.suffix in (".yaml", ".yml"):
        folder = shlex.quote(str(path.parent)) if path.parent.name else "PHOTOS"
        prepare = f"sightline data prepare yolo_txt --from {folder} --to prepared --config own.yaml"
        return f"photos with YOLO's labels are prepared first: {prepare}, then: sightline train own.yaml"
    if section == "config" and path.suffix == ".py":
        return f"the config comes first, and --plugin {shlex.quote(str(value))} adds parts of your own"
    if section in ("model", "config") and path.suffix in _WEIGHTS:
        return f"a config names the network, and init.from={shlex.quote(str(value))} the weights to start from"
    return ""


def find_document(path: str, document: Mapping[str, object]) -> str:
    """Return what to do with a YAML file of another tool in the place of a config; empty for other files."""
    is_of_data = {"names", "nc"} & document.keys() and isinstance(
        document.get("train", document.get("val")), str | list
    )
    if is_of_data:
        return f"names photos and their classes, no training; {find_file('data', path)}"
    if all(isinstance(document.get(key), list) for key in _OF_NETWORK):
        return "describes a network, no training; 'sightline list configs' prints what trains one"
    return ""
