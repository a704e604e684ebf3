"""A folder with data, two tiny classifiers and audits."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # where the tests find `audit_place`

from audit_place import Place, make_place  # type: ignore[import-not-found]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A folder with 60 rows in two files."""
    return make_place(tmp_path)
