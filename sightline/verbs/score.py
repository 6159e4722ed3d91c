"""`sightline score`: scoring of anyone's prediction files."""

from __future__ import annotations

import numpy as np

from sightline.commands.run import ScoreOptions
from sightline.config import read_sections
from sightline.contract import registry
from sightline.contract.errors import UserError
from sightline.contract.plugins import load_plugins
from sightline.engine.run_data import DataSubset
from sightline.runs.output_files import write_document
from sightline.runs.run_files import config_path_of_run
from sightline.store.loading.batch_reader import BatchReader
from sightline.training.published_results import explain_no_rows, list_published
from sightline.verbs.output import print_note, show_evaluation, split_options
from sightline.workbench.evaluate.documents import score_document
from sightline.workbench.evaluate.scoring import find_scoring


def score(options: ScoreOptions) -> int:
    """Score files on the test split of a config's data by its metrics; nothing else of the config is read."""
    assert_against(options.against)
    load_plugins(options.plugins)
    predictions = options.predictions
    values, overrides = split_options(options.overrides, ("category_offset",))
    offset = _parse_offset(values.get("category_offset", "0"))
    sections = read_sections(config_path_of_run(options.data), ("data", "metrics"), overrides)
    dataset = registry.data.build(sections["data"], facts={"split": "test"})
    part = DataSubset(dataset, np.arange(len(dataset)), BatchReader(dataset), "test")
    scoring = find_scoring(dataset.info)
    scored = scoring.score(part, sections["metrics"], predictions, category_offset=offset)
    evaluation = scored.evaluation
    for note in scored.notes:
        print_note(note)
    if scored.not_computed:
        print_note(f"not computed from {scoring.scored}: {', '.join(scored.not_computed)}")
    document = score_document(sections["data"], part, predictions, scored)
    if options.against:
        document["published"] = list_published(sections["data"], dataset.info, evaluation.metrics)
        if not document["published"]:
            print_note(f"--against published: {explain_no_rows(sections['data'], dataset.info, evaluation.metrics)}")
    show_evaluation(document, title=f"{predictions} on test", dataset=dataset)
    write_document(options.json, document)
    return 0


def _parse_offset(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UserError(
            f"category_offset={text}: give a whole number, by which the file's category ids exceed those of the set"
        ) from None


def assert_against(against: str | None) -> None:
    """Raise UserError for anything but published results to compare with."""
    if against not in (None, "published"):
        raise UserError(f"--against {against}: must be published")
