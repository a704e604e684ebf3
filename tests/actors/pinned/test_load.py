"""Pinned models: found, checked against their digests, and refused in one line where they are not
what was meant.
"""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from actors.pinned.load import (
    load_method,
    load_models,
    method_models,
    model_digest,
    pick_device,
    pin,
)
from configs.schema import resolve_run
from configs.strict import UserError

CPU = torch.device("cpu")


def spec(**more: Any) -> dict[str, Any]:
    base = {
        "role": "classifier",
        "source": "torch",
        "target": "counterfactory.models.classifiers.ConvNet",
        "settings": {"width": 8, "outputs": 2},
        "classes": ["a", "b"],
        "head": "softmax",
    }
    return {**base, **more}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    from counterfactory.models.classifiers import ConvNet

    torch.manual_seed(0)
    path = tmp_path / "net.safetensors"
    save_file(ConvNet(width=8, outputs=2).state_dict(), path)
    return path


def test_a_pinned_file_loads_frozen_and_in_eval_mode(weights: Path) -> None:
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    config = {"models": {"classifier": spec(weights=str(weights), sha256=digest)}}
    assert pin(config["models"]) == {"classifier": digest}
    model = load_models(config, ["classifier"], CPU)["classifier"]
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model(torch.rand(3, 3, 32, 32)).shape == (3, 2)


def test_another_file_stops_with_both_digests(weights: Path) -> None:
    config = {"models": {"classifier": spec(weights=str(weights), sha256="f" * 64)}}
    got = hashlib.sha256(weights.read_bytes()).hexdigest()
    for action in (lambda: pin(config["models"]), lambda: load_models(config, ["classifier"], CPU)):
        with pytest.raises(UserError) as error:
            action()
        assert "f" * 64 in str(error.value)
        assert got in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"classes": ["a", "b", "c"]}, "expected 3 outputs"),
        ({"target": "counterfactory.models.classifiers.ConvNest"}, "ConvNest"),
        ({"target": "models.nowhere.Net"}, "models.nowhere"),
        ({"settings": {"widht": 8}}, "widht"),
        ({"settings": {"width": 16, "outputs": 2}}, "expected"),
        ({"weights": "nowhere/net.safetensors"}, "expected a file at nowhere/net.safetensors"),
    ],
)
def test_what_does_not_fit_is_one_line(weights: Path, change: dict[str, Any], words: str) -> None:
    config = {"models": {"classifier": spec(**{"weights": str(weights), **change})}}
    with pytest.raises((UserError, ValueError)) as error:
        load_models(config, ["classifier"], CPU)["classifier"](torch.rand(1, 3, 32, 32))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_that_do_not_fit_name_the_card_that_does(weights: Path) -> None:
    card = weights.with_suffix(".yaml")
    card.write_text(yaml.safe_dump({"model": spec(weights=weights.name)}))
    wide = spec(weights=str(weights), settings={"width": 16, "outputs": 2})
    with pytest.raises(UserError) as error:
        load_models({"models": {"classifier": wide}}, ["classifier"], CPU)
    assert f"{card} has what it was trained with" in str(error.value)
    other = weights.rename(weights.with_name("other.safetensors"))
    with pytest.raises(UserError) as error:
        load_models(
            {"models": {"classifier": {**wide, "weights": str(other)}}}, ["classifier"], CPU
        )
    assert "trained with" not in str(error.value)


def test_a_card_is_a_model_whose_weights_lie_beside_it(weights: Path) -> None:
    card = weights.with_suffix(".yaml")
    card.write_text(yaml.safe_dump({"model": spec(weights=weights.name), "training": {"seed": 1}}))
    run = {
        "name": "a",
        "data": {"path": "x"},
        "models": {"classifier": str(card)},
        "method": "pixel-pgd",
    }
    config = resolve_run(run, [], "run").model_dump()
    assert config["models"]["classifier"]["weights"] == str(weights)
    load_models(config, ["classifier"], CPU)


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    """A file that would run code when unpickled is refused, and the code does not run."""
    flag = tmp_path / "ran"
    evil = tmp_path / "evil.pt"
    evil.write_bytes(b"cposix\nsystem\n(S'touch " + str(flag).encode() + b"'\ntR.")
    old = tmp_path / "old.pt"
    old.write_bytes(b"\x80\x02" + evil.read_bytes())
    for path in (evil, old):
        with pytest.raises(UserError):
            load_models({"models": {"classifier": spec(weights=str(path))}}, ["classifier"], CPU)
    assert not flag.exists()


def test_a_missing_model_names_what_there_is(weights: Path) -> None:
    config = {"models": {"classifier": spec(weights=str(weights))}}
    with pytest.raises(UserError, match="expected 'autoencoder', got classifier"):
        load_models(config, ["autoencoder"], CPU)


def test_a_hugging_face_folder_is_pinned_by_all_its_files(tmp_path: Path) -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    folder = tmp_path / "resnet"
    torch.manual_seed(0)
    shape = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", num_labels=3
    )
    network = ResNetForImageClassification(shape).eval()
    network.save_pretrained(folder)
    one = spec(
        source="huggingface", target=None, settings={}, weights=str(folder), classes=["x", "y", "z"]
    )
    model = load_models({"models": {"classifier": one}}, ["classifier"], CPU)["classifier"]
    images = torch.rand(2, 3, 32, 32)
    assert torch.allclose(model(images), network(images).logits, atol=1e-5)
    before = model_digest(one, "classifier")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"depths"', ' "depths"'))
    assert model_digest(one, "classifier") != before


def test_a_hub_id_needs_a_revision() -> None:
    one = spec(source="huggingface", target=None, weights="someone/some-model")
    with pytest.raises(UserError, match="expected the revision"):
        pin({"classifier": one})
    assert pin({"classifier": {**one, "revision": "abc"}}) == {
        "classifier": "hub:someone/some-model@abc"
    }


def test_a_method_comes_by_dotted_path_and_says_what_it_needs() -> None:
    method = load_method(
        {"method": {"target": "counterfactory.methods.ace.ACE", "settings": {"levels": 3}}}
    )
    assert method.levels == 3
    assert method_models(method) == ("classifier", "denoiser")


@pytest.mark.parametrize(
    ("target", "settings", "words"),
    [
        ("counterfactory.methods.ace.ACES", {}, "expected 'ACES' in the module"),
        ("counterfactory.methods.acre.ACE", {}, "to be importable"),
        ("methods.ace.ACE", {}, "counterfactory's own is counterfactory.methods.ace now"),
        ("storage.mine.Mine", {}, "counterfactory's own package and hides yours"),
        ("subprocess.Popen", {"args": "true"}, "expected a method's class"),
        ("os.system", {"command": "true"}, "expected a method's class"),
        (
            "counterfactory.methods.ace.ACE",
            {"levles": 3},
            "unknown key 'levles': did you mean 'levels'?",
        ),
        ("counterfactory.methods.ace.ACE", {"levels": 0}, "levels"),
    ],
)
def test_a_method_that_cannot_be_made_is_one_line(
    target: str, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError) as error:
        load_method({"method": {"target": target, "settings": settings}})
    assert words in str(error.value)


def test_devices() -> None:
    assert pick_device("cpu") == CPU
    assert pick_device("auto").type in ("cpu", "cuda")
    with pytest.raises(UserError, match=r"engine\.device"):
        pick_device("gpu")


def test_a_worker_that_was_promised_a_gpu_does_not_go_on_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"engine\.gpus: expected a GPU .* 0\.5, got none"):
        pick_device("auto", 0.5)
    assert pick_device("cpu", 0.5) == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto", 0.5).type == "cuda"
