"""What `init` finds out about a classifier behind a server, from its address alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.schema import load_run
from configs.strict import UserError
from counterfactory.methods.pixel_pgd import PixelPGD
from pipelines.init.job import init
from storage.errors import NoAnswer
from tests.counterfactory.models.wrapping.model_servers import Faults, serve, status
from tests.pipelines.init.test_job import COLOURS, table

ORDER = ["red", "green", "blue"]  # of the outputs


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(PixelPGD, "access", "scores")  # as if it were a method for black boxes
    monkeypatch.setattr("counterfactory.models.wrapping.client.FIRST_PAUSE", 0.02)


def data() -> str:
    names = list(COLOURS) * 8
    return table(names, [COLOURS[name] for name in names])


def means(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(pixels, dtype=np.float64).mean((1, 2)) / 255


def brightest(pixels: np.ndarray) -> np.ndarray:
    found = 20 * means(pixels)
    powers = np.exp(found - found.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def made(url: str) -> tuple[Any, str]:
    init(data(), url)
    return load_run("audit.yaml").models["classifier"], Path("audit.yaml").read_text()


def test_the_order_of_the_classes_is_found_by_the_labels() -> None:
    with serve(brightest) as url:
        spec, text = made(f"{url}/v1/models/colours")
        assert (spec.source, spec.ask.url, spec.ask.model) == ("tfserving", url, "colours")
    assert spec.classes == ORDER
    assert (spec.ask.outputs, spec.given) == ("probabilities", "scores")
    assert "right on 100% of 24 rows by the column kind" in text


def test_logits_are_told_from_probabilities() -> None:
    with serve(lambda pixels: 20 * means(pixels)) as url:
        assert made(f"{url}/v1/models/colours")[0].ask.outputs == "logits"


def test_what_kserve_states_of_its_input_is_used() -> None:
    told, seen = Faults(), []
    told.inputs = [{"name": "x", "datatype": "FP32", "shape": [-1, 3, 16, 16]}]

    def predict(values: np.ndarray) -> np.ndarray:
        seen.append(values.shape)
        return brightest(255 * np.asarray(values).transpose(0, 2, 3, 1))

    with serve(predict, told) as url:
        spec, text = made(f"{url}/v2/models/colours/versions/4")
    assert {shape[1:] for shape in seen} == {(3, 16, 16)}
    assert (spec.source, spec.ask.version, spec.size) == ("kserve", "4", 16)
    assert (spec.ask.datatype, spec.ask.layout) == ("float32", "nchw")
    assert spec.classes == ORDER
    assert len(spec.mean) == len(spec.std) > 0
    assert "its input is FP32 of shape [-1, 3, 16, 16]" in text


def test_torchserves_labels_are_the_classes() -> None:
    with serve(lambda pixels: brightest(pixels)) as url:
        spec, _ = made(f"{url}/predictions/colours")
    assert spec.classes == ["LABEL_0", "LABEL_1", "LABEL_2"]


def test_a_side_that_the_server_takes_is_found() -> None:
    told = Faults()

    with serve(brightest, told) as url:
        told.next = [status(400, "expected 224 px")]
        spec, text = made(f"{url}/v1/models/colours")
    assert spec.size == 224
    assert "it takes no images of 24 px, but of 224" in text
    sides = {len(json.loads(body)["instances"][0]) for *_, body in told.requests}
    assert sides == {24, 224}


@pytest.mark.parametrize(
    ("path", "words"),
    [("/classify", "expected an address that ends in /v2/models/NAME"), ("", "an address that")],
)
def test_another_address_is_a_line(path: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        init(data(), f"http://127.0.0.1:9{path}")


def test_a_server_that_is_away_is_a_line() -> None:
    with pytest.raises(
        NoAnswer, match=r"--classifier: http://127.0.0.1:9/v2/models/m: expected an"
    ):
        init(data(), "http://127.0.0.1:9/v2/models/m")
    assert not Path("audit.yaml").exists()
