"""`sightline export`: a trained run as a file for other programs, checked against the run."""

from __future__ import annotations

from sightline.commands.run import ExportOptions
from sightline.contract.errors import UserError
from sightline.engine.run_loading import open_trained
from sightline.runs.output_files import write_document
from sightline.verbs.output import list_unapplied_passes, print_note, show_table
from sightline.workbench.export.export import export_run
from sightline.workbench.export.int8 import NUM_CALIBRATED


def export(options: ExportOptions) -> int:
    """Write the file and its description, and print inputs, size and check."""
    if options.calibrate is not None and not options.int8:
        raise UserError("--calibrate: chooses the scales of int8; give --int8, too, or leave it out")
    run = open_trained(options.run_path, checkpoint=options.checkpoint, plugins=options.plugins)
    int8 = (options.calibrate or NUM_CALIBRATED) if options.int8 else None
    result = export_run(run, out=options.out, files=options.inputs, int8=int8)
    inputs = {name: " x ".join(map(str, shape)) for name, shape in result.inputs.items()}
    rows = [("file", str(result.path)), ("bytes", result.num_bytes), ("description", str(result.description_path))]
    rows += [(f"input {name}", shape) for name, shape in inputs.items()]
    show_table(f"{options.run_path} as ONNX", ("what", "value"), rows)
    print_note(result.check.describe())
    if result.int8 is not None:
        show_table("int8 beside float", ("what", "float32", "int8"), result.int8.rows())
        print_note(result.int8.describe())
        for line in result.int8.list_warnings():
            print_note(f"warning: {line}")
        for line in list_unapplied_passes(run.config, "sample"):
            print_note(line)
    write_document(
        options.json,
        {
            "run": str(options.run_path),
            "file": str(result.path),
            "bytes": result.num_bytes,
            "description": str(result.description_path),
            "inputs": result.inputs,
            "check": result.check.to_dict(),
            "int8": None if result.int8 is None else result.int8.to_dict(),
        },
    )
    return 0
