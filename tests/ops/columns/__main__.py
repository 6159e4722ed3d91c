"""Runs the exam of public functions: see exam.py."""

import sys

from tests.ops.columns.exam import main

sys.exit(main(sys.argv[1:]))
