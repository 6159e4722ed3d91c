"""Words that users of other tools type first, and what is written here in their place."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection
from pathlib import PurePath
from typing import NamedTuple


class _Form(NamedTuple):
    """Names of one setting in other tools, and what is written here: options, overrides or a command.

    `{value}` is the typed value if it matches `pattern`, and else `otherwise`.
    """

    names: str
    instead: str
    pattern: str = ".+"
    otherwise: str = "VALUE"


_FORMS = (
    _Form("gpus num_gpus ngpus devices nproc nproc_per_node num_processes", "--device cuda --processes {value}",
          r"[1-9]\d*", "N"),
    _Form("device gpu gpu_id gpu_ids accelerator cuda use_cuda", "--device {value}", "cpu|auto|cuda", "cuda"),
    _Form("config cfg config_file config_path config_name opt c f", "sightline {command} {value}", otherwise="CONFIG"),
    _Form("output output_dir outdir save_dir save_path work_dir workdir log_dir logdir project exp_name run_dir o",
          "--out {value}", "[^-].*", "DIR"),
    _Form("resume resume_from resume_from_checkpoint ckpt_path auto_resume", "--resume {value}", r".*[/.].*", "auto"),
    _Form("pretrained weights load_from init_checkpoint checkpoint_path pretrained_model", "init.from={value}",
          r".*[/.].*", "FILE"),
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
    _Form("imgsz img_size image_size",
          "transforms.evaluate.0.height={value} and so on, for each size that 'sightline show CONFIG' prints",
          r"\d+", "PX"),
)  # fmt: skip
_BY_NAME = {name: form for form in _FORMS for name in form.names.split()}

COMMANDS = {
    "evaluate RUN": "eval test val validate",
    "train CONFIG": "fit learn run start detect segment classify pose",
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
    "weights FILE --to DIR": "import load",
    "init NAME": "new create",
    "--help": "help",
    "--version": "version",
}
"""Commands of ours by the words that other tools have for them."""

_WEIGHTS = (".pt", ".pth", ".ckpt", ".safetensors", ".onnx", ".weights")


def list_names() -> list[str]:
    """List the names of settings of other tools."""
    return list(_BY_NAME)


def find_command(word: str) -> str | None:
    """Return the command line, after `sightline`, that another tool's command means here."""
    return next((ours for ours, theirs in COMMANDS.items() if word.lower() in theirs.split()), None)


def find_setting(name: str, value: str, *, command: str = "", flags: Collection[str] | None = None) -> str:
    """Return what to write for another tool's option or key of this name; empty for one that is not known.

    With `flags`, those of the command, others are left out.
    """
    form = _BY_NAME.get(name.lstrip("-").rpartition(".")[2].replace("-", "_").lower())
    if form is None or (form.instead.startswith("sightline") and not command):
        return ""
    is_valid = re.fullmatch(form.pattern, value, flags=re.IGNORECASE) is not None
    written = form.instead.format(value=shlex.quote(value) if is_valid else form.otherwise, command=command)
    if not written.startswith("--") or flags is None:
        return written
    words = written.split()
    return " ".join(f"{flag} {word}" for flag, word in zip(words[::2], words[1::2], strict=True) if flag in flags)


def find_file(section: str, value: object) -> str:
    """Return what to do with a file that another tool takes as its data set or its model; empty for other values."""
    path = PurePath(value if isinstance(value, str) else "")
    if section == "data" and path.suffix in (".yaml", ".yml"):
        folder = shlex.quote(str(path.parent)) if path.parent.name else "PHOTOS"
        prepare = f"sightline data prepare yolo_txt --from {folder} --to prepared --config own.yaml"
        return f"photos with YOLO's labels are prepared first: {prepare}, then: sightline train own.yaml"
    if section == "model" and path.suffix in _WEIGHTS:
        return f"a config names the network, and init.from={shlex.quote(str(value))} the weights to start from"
    return ""
