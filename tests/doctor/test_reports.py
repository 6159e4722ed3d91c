"""The scripts of public reports and of ordinary loops: they are numbered and compile; a report names its source."""

import ast
import itertools
import re

from tests.doctor.cases import SCRIPTS


def test_every_script_is_numbered_and_compiles_and_a_report_names_its_source():
    for number, path in itertools.chain(*(enumerate(sorted(folder.glob("*.py")), start=1) for folder in SCRIPTS)):
        assert re.fullmatch(rf"{number:02}_[a-z_]+\.py", path.name), path.name
        tree = ast.parse(path.read_text(), path.name)
        compile(tree, path.name, "exec")
        first_line = (ast.get_docstring(tree) or "").splitlines()[0]
        is_named = re.fullmatch(r"https://\S+", first_line) is not None
        assert is_named or path.parent.name == "ordinary", f"{path.name}: {first_line}"
        functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert [argument.arg for argument in functions["main"].args.args] == ["has_bug", "watch", "check"], path.name
