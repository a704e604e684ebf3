"""One suite over two kinds of folder: a disk's and a moto server's."""

import pytest

from storage.uri import Store, open_store


@pytest.fixture(params=["disk", "s3"])
def folder(request: pytest.FixtureRequest) -> str:
    """An empty folder's uri."""
    return str(request.getfixturevalue("s3_folder" if request.param == "s3" else "tmp_path"))


@pytest.fixture
def store(folder: str) -> Store:
    return open_store(folder)
