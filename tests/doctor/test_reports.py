"""The scripts of public reports and of ordinary loops: they are numbered and compile; a report names its source."""

import ast
import re
from pathlib import Path

REPORTS = sorted((Path(__file__).parent / "reports").glob("*.py"))


ORDINARY = sorted((Path(__file__).parent / "ordinary").glob("*.py"))


def test_every_script_is_numbered_and_compiles_and_a_report_names_its_source():
    for number, path in [*enumerate(REPORTS, start=1), *enumerate(ORDINARY, start=1)]:
        assert re.fullmatch(rf"{number:02}_[a-z_]+\.py", path.name), path.name
        tree = ast.parse(path.read_text(), path.name)
        compile(tree, path.name, "exec")
        first_line = (ast.get_docstring(tree) or "").splitlines()[0]
        assert path in ORDINARY or re.fullmatch(r"https://\S+", first_line), f"{path.name}: {first_line}"
        functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert [argument.arg for argument in functions["main"].args.args] == ["has_bug", "watch", "check"], path.name
