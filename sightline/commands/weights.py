"""Records of `sightline weights`; their functions are in `sightline.verbs.weights`."""

from __future__ import annotations

from dataclasses import MISSING
from pathlib import Path

from sightline.commands.fields import DocumentCommand, PluginCommand, argument, option


class WeightsListOptions(DocumentCommand, name="weights list", run="weights.list_weights", examples=("weights list",)):
    """List weights that are fetched by name.

    Prints for each its network, megabytes, licence and source, the extra that it needs, and whether its file is on this
    machine. Names are those of 'sightline weights fetch' and of init.from in a config; 'sightline list layouts' prints
    what other files may hold.
    """


class WeightsFetchOptions(
    DocumentCommand,
    name="weights fetch",
    run="weights.fetch",
    examples=(
        "weights fetch torchvision://RetinaNet_ResNet50_FPN_Weights.COCO_V1",
        "weights fetch hf://timm/resnet18.a1_in1k",
    ),
):
    """Fetch weights to this machine's cache.

    NAME is of 'sightline weights list', of a hub, or an address with the SHA-256 of its file; a training that names it
    in init.from then needs no network. The size is printed first. A transfer that broke off goes on where it ended, and
    a file with another digest is deleted. Prints path, bytes and SHA-256.
    """

    weights: str = argument("NAME", "torchvision://NAME, hf://OWNER/REPO[/FILE][@REVISION], https://...#sha256=DIGEST")


class WeightsConvertOptions(
    PluginCommand,
    name="weights convert",
    run="weights.convert",
    examples=(
        "weights convert model.1024.t7 --to runs/antao97",
        "weights convert pct.pth --layout strawberry_pct_cls --to runs/pct",
        "weights convert yolov3.weights --layout darknet_yolov3 --to runs/yolov3",
    ),
):
    """Convert published weights to a run.

    FILE has weights that other code wrote, and DIR becomes a run directory: it is evaluated, predicts
    and is fine-tuned as any other. No code in the file is executed. The sizes of the model are read from the tensors.
    Arguments that tensors do not show (neighbours, dropout) are taken from the publication and printed; key=value
    overrides them: model.num_neighbours=40, data.root=PATH.
    """

    file: Path = argument("FILE", "published weights (.pth, .safetensors, .weights or similar, or a folder of parts)")
    target: Path = option("--to", "DIR", "folder to write, new or empty", default=MISSING)
    words: tuple[str, ...] = argument("[KEY=VALUE]...", "overrides of the run's config", default=())
    layout: str | None = option(
        "--layout", "NAME", "the code that wrote the weights, of 'sightline list layouts' [found by their names]"
    )
    config: Path | None = option("--config", "CONFIG", "data, transforms and training of this config")
    data: str | None = option("--data", "NAME", "data set of their training [that of the layout]")


WEIGHTS_COMMANDS = (WeightsListOptions, WeightsFetchOptions, WeightsConvertOptions)
