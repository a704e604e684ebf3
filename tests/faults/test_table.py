"""docs/faults.md promises nothing that is not tested, and leaves out no fault that is."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "faults.md").read_text())


def names_in(path: Path) -> set[str]:
    """The names of the test functions of a file."""
    return {
        node.name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_every_test_that_the_table_names_exists() -> None:
    assert len(NAMED) > 20
    for file, name in NAMED:
        assert (ROOT / file).is_file(), file
        assert name in names_in(ROOT / file), f"{file}::{name}"


def test_every_line_of_the_table_names_its_test() -> None:
    lines = [
        line
        for line in (ROOT / "docs" / "faults.md").read_text().splitlines()
        if line.startswith("| ")
    ][1:]
    assert len(lines) == len(NAMED)


def test_every_fault_that_is_tested_is_in_the_table() -> None:
    named = {(file, name) for file, name in NAMED}
    general = {
        "test_no_row_is_lost_or_doubled_when_workers_die",
        "test_the_driver_shows_no_traceback_of_a_death",
        "test_an_ignored_signal_stays_ignored",
        "test_the_caller_gets_its_handlers_back",
        "test_a_signal_comes_to_the_main_thread_only",
    }
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        if path.name != Path(__file__).name:
            for name in names_in(path) - general:
                assert (str(path.relative_to(ROOT)), name) in named, f"{path.name}::{name}"
