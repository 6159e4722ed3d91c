"""`sightline export`: a trained run as a file for other programs, checked against the run."""

from __future__ import annotations

from sightline.commands.run import ExportOptions
from sightline.engine.run_loading import open_trained
from sightline.runs.run_directory import write_document
from sightline.verbs.output import print_note, show_table
from sightline.workbench.export.export import export_run


def export(options: ExportOptions) -> int:
    """Write the file and its description, and print inputs, size and check."""
    run = open_trained(options.run_path, checkpoint=options.checkpoint, plugins=options.plugins)
    result = export_run(run, out=options.out, files=options.inputs, int8=options.calibrate if options.int8 else None)
    inputs = {name: " x ".join(map(str, shape)) for name, shape in result.inputs.items()}
    rows = [("file", str(result.path)), ("bytes", result.num_bytes), ("description", str(result.description_path))]
    rows += [(f"input {name}", shape) for name, shape in inputs.items()]
    show_table(f"{options.run_path} as ONNX", ("what", "value"), rows)
    print_note(result.check.describe())
    if result.int8 is not None:
        show_table("int8 beside float", ("what", "float32", "int8"), result.int8.rows())
        print_note(result.int8.describe())
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
