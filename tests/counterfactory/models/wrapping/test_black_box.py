"""One contract for every black box: on real local servers and in this process, an image has one
right answer or one clear line, whatever the server does.
"""

from __future__ import annotations

import json
import sys
import time
import types
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from torch import Tensor

from configs.schema import ModelConfig
from configs.strict import UserError, check
from counterfactory.models.wrapping.answers import Answers
from counterfactory.models.wrapping.black_box import LEAST, BlackBox
from counterfactory.models.wrapping.errors import BlackBoxError, Unreachable
from counterfactory.models.wrapping.load import build
from counterfactory.models.wrapping.probe import drift, fixed_images, probe
from counterfactory.testing import check_classifier
from tests.counterfactory.models.wrapping.model_servers import (
    CLOSE,
    DRIP,
    HANG,
    SHORT,
    WORDS,
    Faults,
    serve,
    status,
)

CLASSES = ["dark", "light"]
NAMES = {"LABEL_0": "dark", "LABEL_1": "light"}
ONE = {"template": {"image": "{png_b64}"}, "answer": "data.scores"}
MANY = {"template": {"all": "{each}"}, "each": {"image": "{png_b64}"}, "answer": "$.data[*].scores"}
SERVED: dict[str, dict[str, Any]] = {
    "kserve": {"source": "kserve", "ask": {"model": "m"}},
    "kserve-json": {"source": "kserve", "ask": {"model": "m", "encoding": "json", "output": "p"}},
    "tfserving": {"source": "tfserving", "ask": {"model": "m"}},
    "tfserving-png": {"source": "tfserving", "ask": {"model": "m", "encoding": "png"}},
    "torchserve": {"source": "torchserve", "ask": {"model": "m", "labels": NAMES}},
    "hf": {"source": "hf", "ask": {"labels": NAMES}},
    "hf-json": {"source": "hf", "ask": {"labels": NAMES, "encoding": "json"}},
    "http": {"source": "http", "ask": ONE},
    "http-many": {"source": "http", "ask": MANY},
}
LOCAL = ("python", "sklearn")


def truth(images: np.ndarray) -> np.ndarray:
    """The probabilities of images (N,H,W,C) uint8: how dark the red channel is."""
    light = np.asarray(images, dtype=np.float64)[..., 0].mean((1, 2)) / 255
    return np.stack([1 - light, light], 1)


class Light(ClassifierMixin, BaseEstimator):
    """A scikit-learn estimator with the same truth, whose classes are in another order."""

    classes_ = np.array(["light", "dark"])
    side = 8

    def __init__(self, fault: str = "") -> None:
        self.fault = fault

    def predict_proba(self, flat: np.ndarray) -> np.ndarray:
        p = truth(flat.reshape(-1, self.side, self.side, 3))
        return broken(p, self.fault)[:, ::-1]


def broken(p: np.ndarray, fault: str) -> np.ndarray:
    if fault == "nan":
        return np.where(np.arange(len(p))[:, None] == 0, np.nan, p)
    if fault == "sums":
        return p * 0 + [0.9, 0.9]
    if fault == "range":
        return p * 0 + [-3.0, 4.0]
    if fault == "classes":
        return np.concatenate([p, p * 0], 1)
    return p


def make(
    kind: str, url: str, tmp_path: Path, fault: str = "", /, source: Any = None, **ask: Any
) -> BlackBox:
    """A black box of a kind; `ask` holds settings, with short waits as the default."""
    spec: dict[str, Any] = {"role": "classifier", "classes": CLASSES, **(source or {})}
    quick = {"timeout": 0.4, "retries": 2, "patience": 4.0}
    weights = None
    if kind == "python":
        module = types.ModuleType("black_box_of_a_test")
        module.predict = lambda images: broken(truth(images), fault)  # type: ignore[attr-defined]
        sys.modules["black_box_of_a_test"] = module
        spec |= {"source": "python", "target": "black_box_of_a_test.predict"}
    elif kind == "sklearn":
        file = tmp_path / "light.joblib"
        joblib.dump(Light(fault), file)
        weights = file.read_bytes()
        spec |= {"source": "sklearn", "weights": str(file), "sha256": "0" * 64}
        ask = {"trust": True, **ask}
    else:
        spec["source"] = SERVED[kind]["source"]
        where = f"{url}/hf" if spec["source"] == "hf" else url
        ask = {"url": where, **quick, **SERVED[kind]["ask"], **ask}
    spec["ask"] = ask
    made = build(check(ModelConfig, spec, "test").model_dump(), weights, torch.device("cpu"))
    assert isinstance(made, BlackBox)
    return made


def pictures(count: int = 5, side: int = 8) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(count))


def right(images: Tensor) -> Tensor:
    pixels = images.mul(255).round().permute(0, 2, 3, 1).numpy()
    return torch.from_numpy(truth(pixels)).float()


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("counterfactory.models.wrapping.client.FIRST_PAUSE", 0.02)


@pytest.fixture
def served() -> Iterator[Any]:
    """Start servers of a test: faults and a broken model in, an address out."""
    with ExitStack() as stack:
        yield lambda *faults, fault="", wait=0.0: stack.enter_context(
            serve(
                lambda images: broken(truth(images), fault),
                faults[0] if faults and isinstance(faults[0], Faults) else Faults(*faults),
                wait,
            )
        )


@pytest.mark.parametrize("kind", [*SERVED, *LOCAL])
def test_the_scores_are_the_logarithms_of_the_models_probabilities(
    kind: str, served: Any, tmp_path: Path
) -> None:
    model, images = make(kind, served(), tmp_path), pictures()
    torch.testing.assert_close(model(images).softmax(1), right(images), atol=2e-6, rtol=0)
    assert model.classes == tuple(CLASSES)
    check_classifier(model, images)
    white = torch.ones(1, 3, 8, 8)
    assert model(white)[0, 0] == pytest.approx(np.log(LEAST))  # p = 0 is finite
    # the images that a model sees are those that are stored
    torch.testing.assert_close(model(images), model(images.mul(255).round().div(255)))


@pytest.mark.parametrize("kind", [*SERVED, *LOCAL])
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("nan", "expected finite numbers, got NaN or infinity for 1 of"),
        ("sums", "expected probabilities that sum to 1, got a sum of 1.8"),
        ("range", "expected probabilities within 0..1, got "),
    ],
)
def test_a_wrong_answer_of_the_model_is_one_line(
    kind: str, fault: str, words: str, served: Any, tmp_path: Path
) -> None:
    model = make(kind, served(fault=fault), tmp_path, fault)
    with pytest.raises(BlackBoxError) as error:
        model(pictures())
    assert str(error.value).startswith(words)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "kind", ["kserve", "kserve-json", "tfserving", "http", "http-many", "python"]
)
def test_another_number_of_outputs_is_one_line(kind: str, served: Any, tmp_path: Path) -> None:
    model = make(kind, served(fault="classes"), tmp_path, "classes")
    with pytest.raises(
        BlackBoxError, match="expected 2 outputs for the classes dark, light, got 4"
    ):
        model(pictures())


@pytest.mark.parametrize("kind", SERVED)
@pytest.mark.parametrize(
    ("faults", "least"),
    [
        ([status(429, Retry_After="0.2")], 0.2),
        ([status(503), CLOSE], 0.0),
        ([status(500)], 0.0),
        ([HANG], 0.4),
        ([SHORT], 0.0),
        ([DRIP], 0.4),
    ],
    ids=["429", "503-and-closed", "500", "hang", "short", "drip"],
)
def test_a_fault_that_passes_costs_time_and_changes_no_answer(
    kind: str, faults: list[Any], least: float, served: Any, tmp_path: Path
) -> None:
    told, images = Faults(*faults), pictures(1)
    model, started = make(kind, served(told), tmp_path), time.monotonic()
    torch.testing.assert_close(model(images).softmax(1), right(images), atol=2e-6, rtol=0)
    assert len(told.requests) == len(faults) + 1
    assert least <= time.monotonic() - started < 4


@pytest.mark.parametrize("kind", SERVED)
@pytest.mark.parametrize(
    ("faults", "words", "kind_of_error", "requests"),
    [
        ([HANG] * 9, "none in ask.timeout (0.4 s) (3 tries)", Unreachable, 3),
        ([SHORT] * 9, "a cut answer (", Unreachable, 3),
        ([status(500, "out of memory")] * 9, "got status 500: out of memory", Unreachable, 3),
        ([status(429, Retry_After="600")], "asks for 600 s", Unreachable, 1),
        ([status(400, "bad\nimage")], "expected status 200, got status 400: bad image", None, 1),
        ([status(401)], "set ask.key to the environment variable", None, 1),
        (
            [status(302, Location="http://other.test/x?key=1")],
            "a redirect (status 302)",
            None,
            1,
        ),
        ([status(307, Location="http://127.0.0.1:9/x")], "nothing was sent there", None, 1),
        ([WORDS], "expected JSON, got 17 bytes of something else", None, 1),
    ],
    ids=["hang", "short", "500", "429", "400", "401", "redirect", "other-port", "no-json"],
)
def test_a_fault_that_stays_is_one_line(
    kind: str,
    faults: list[Any],
    words: str,
    kind_of_error: Any,
    requests: int,
    served: Any,
    tmp_path: Path,
) -> None:
    told = Faults(*faults)
    model = make(kind, served(told), tmp_path, timeout=0.4)
    with pytest.raises(BlackBoxError) as error:
        model(pictures(1))
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, Unreachable) == (kind_of_error is Unreachable)
    assert len(told.requests) == requests
    assert "key=1" not in str(error.value)


def test_a_busy_server_is_asked_for_as_long_as_patience_lasts(served: Any, tmp_path: Path) -> None:
    told, images = Faults(*[status(429)] * 4, status(500)), pictures(1)
    model = make("http", served(told), tmp_path, retries=1)
    torch.testing.assert_close(model(images).softmax(1), right(images), atol=2e-6, rtol=0)
    assert len(told.requests) == 6
    told.next = [status(429)] * 99
    with pytest.raises(Unreachable, match="got status 429: no"):
        make("http", served(told), tmp_path, patience=0.2)(images)
    assert len(told.requests) < 20


def test_a_server_that_is_away_is_one_line(tmp_path: Path) -> None:
    model = make("kserve", "http://127.0.0.1:9", tmp_path, input="pixels", retries=1)
    with pytest.raises(Unreachable, match=r"no connection \(.*refused.*\) \(2 tries\)"):
        model(pictures(1))


def test_a_redirect_on_the_same_host_is_followed(served: Any, tmp_path: Path) -> None:
    told, images = Faults(status(307, Location="/again")), pictures(2)
    model = make("http-many", served(told), tmp_path)
    torch.testing.assert_close(model(images).softmax(1), right(images), atol=2e-6, rtol=0)
    assert [path for path, *_ in told.requests] == ["/", "/again"]


def test_an_answer_beyond_the_limit_is_not_read(served: Any, tmp_path: Path) -> None:
    model = make("tfserving", served(status(200, "x" * 70_000)), tmp_path, max_bytes=60_000)
    with pytest.raises(BlackBoxError, match=r"at most 60,000 bytes \(ask.max_bytes\), got more"):
        model(pictures(1))


def test_requests_hold_batches_and_no_more_than_so_many_at_a_time(
    served: Any, tmp_path: Path
) -> None:
    told, images = Faults(), pictures(23)
    model = make("tfserving", served(told, wait=0.1), tmp_path, batch=4, max_concurrency=3)
    torch.testing.assert_close(model(images).softmax(1), right(images), atol=2e-6, rtol=0)
    sizes = sorted(len(json.loads(body)["instances"]) for *_, body in told.requests)
    assert sizes == [3, 4, 4, 4, 4, 4]
    assert told.most == 3
    assert model.asked == 23


def test_the_key_comes_from_the_environment_and_never_gets_into_a_line(
    served: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BlackBoxError, match="expected the environment variable BOX_KEY with"):
        make("kserve", "http://127.0.0.1:9", tmp_path, key="BOX_KEY")
    monkeypatch.setenv("BOX_KEY", "s3cret-of-the-box")
    told = Faults(status(403, "no: s3cret-of-the-box"), None)
    model = make("http", served(told), tmp_path, key="BOX_KEY")
    with pytest.raises(BlackBoxError) as error:
        model(pictures(1))
    assert "s3cret" not in str(error.value)
    assert told.requests[0][1]["Authorization"] == "Bearer s3cret-of-the-box"
    own = make("http", served(told), tmp_path, key="BOX_KEY", key_header="X-Api-Key")
    own(pictures(1))
    assert told.requests[1][1]["X-Api-Key"] == "s3cret-of-the-box"


@pytest.mark.parametrize(
    ("outputs", "classes", "found", "expected"),
    [
        ("logits", CLASSES, [[0.0, 2.0]], [0.1192, 0.8808]),
        ("logits", CLASSES, [[2.0]], [0.1192, 0.8808]),
        ("logits", CLASSES, [2.0], [0.1192, 0.8808]),
        ("sigmoid", CLASSES, [0.8], [0.2, 0.8]),
        ("labels", CLASSES, [1], [0.0, 1.0]),
        ("probabilities", CLASSES, [[[[0.25]], [[0.75]]]], [0.25, 0.75]),
    ],
)
def test_outputs_of_every_kind_become_probabilities(
    outputs: str,
    classes: list[str],
    found: Any,
    expected: list[float],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    model = make("python", "", tmp_path, outputs=outputs)
    monkeypatch.setattr(model.adapter, "call", lambda images: found)
    assert model(pictures(1)).softmax(1)[0].tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("outputs", "found", "words"),
    [
        ("probabilities", [[0.3], [0.4]], "got 1: set outputs: sigmoid for one probability"),
        ("probabilities", [[0.5, 0.5]], r"expected answers to 2 images, got 1 of shape \(1, 2\)"),
        ("probabilities", [["a", "b"]] * 2, "expected numbers, got"),
        ("probabilities", 0.5, "expected answers to 2 images, got one number"),
        ("sigmoid", [3.0, -1.0], "within 0..1, got -1: set outputs: logits"),
        ("sigmoid", [[0.5, 0.5]] * 2, r"expected 1 output \(or `output`, which one to read\)"),
        ("labels", [0, 5], r"expected indices of classes, 0..1, got"),
        ("labels", [0.5, 0], r"expected indices of classes"),
        ("labels", [0], "expected a label for each of 2 images, got 1"),
    ],
)
def test_outputs_that_are_none_are_one_line(
    outputs: str, found: Any, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = make("python", "", tmp_path, outputs=outputs)
    monkeypatch.setattr(model.adapter, "call", lambda images: found)
    with pytest.raises(BlackBoxError, match=words):
        model(pictures(2))


def test_an_output_of_several_is_read_as_the_decision(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = make("python", "", tmp_path, source={"output": 2}, outputs="sigmoid")
    monkeypatch.setattr(model.adapter, "call", lambda images: [[0.1, 0.2, 0.7]])
    assert model(pictures(1)).softmax(1)[0].tolist() == pytest.approx([0.3, 0.7])


def test_a_label_that_the_server_leaves_out_is_an_error(served: Any, tmp_path: Path) -> None:
    model = make("torchserve", served(), tmp_path, labels={"LABEL_0": "dark"})
    with pytest.raises(BlackBoxError, match="got none of 'light' among LABEL_0, LABEL_1"):
        model(pictures(1))


def test_floats_are_normalised_and_laid_out_as_the_settings_say(
    served: Any, tmp_path: Path
) -> None:
    told, images = Faults(), pictures(2)
    asked = []

    def predict(values: np.ndarray) -> np.ndarray:
        asked.append(values)
        return np.full((len(values), 2), 0.5)

    with serve(predict, told) as url:
        form = {"datatype": "float32", "layout": "nchw"}
        make("kserve", url, tmp_path, source={"mean": [0.5], "std": [0.25]}, **form)(images)
    expected = (images.mul(255).round() / 255 - 0.5) / 0.25
    torch.testing.assert_close(torch.from_numpy(asked[0].copy()), expected, atol=1e-6, rtol=0)


def test_images_get_the_models_side_and_channels(tmp_path: Path) -> None:
    model, shapes = make("python", "", tmp_path, source={"size": 4, "channels": 1}), []
    model.adapter.call = lambda images: shapes.append(images.shape) or truth(images)  # type: ignore[attr-defined]
    model(pictures(3))
    assert shapes == [(3, 4, 4, 1)]


def test_an_image_that_is_not_finite_is_not_asked(served: Any, tmp_path: Path) -> None:
    model, images = make("tfserving", served(), tmp_path), pictures(3)
    images[1, 0, 0, 0] = torch.nan
    scores = model(images)
    assert scores[1].isnan().all()
    assert scores[[0, 2]].isfinite().all()
    assert model.asked == 2


def test_known_answers_are_not_asked_again_by_this_process_or_the_next(
    served: Any, tmp_path: Path
) -> None:
    told, images, folder = Faults(), pictures(6), tmp_path / "answers"
    model = make("tfserving", served(told), tmp_path, batch=2)
    model.answers = Answers(2, 100, folder)
    twice = torch.cat([images, images[:2]])
    first = model(twice)
    assert model.asked == 6  # an image that is there twice is asked once
    assert torch.equal(model(twice), first)
    assert model.asked == 6
    later = make("tfserving", "http://127.0.0.1:9", tmp_path, retries=0)
    later.answers = Answers(2, 100, folder)
    assert torch.equal(later(twice), first)
    assert later.asked == 0
    # a damaged record is asked again, and the others are not
    (file,) = folder.iterdir()
    data = bytearray(file.read_bytes())
    data[20] ^= 1
    file.write_bytes(bytes(data[:-3]))
    assert len(Answers(2, 100, folder).rows) == 4


def test_no_more_answers_are_kept_than_allowed(tmp_path: Path) -> None:
    kept = Answers(2, 10, tmp_path)
    for number in range(40):
        kept.keep([number.to_bytes(16, "little")], np.array([[0.5, 0.5]], dtype=np.float32))
    assert len(kept.rows) == 10
    records = sum(len(file.read_bytes()) for file in tmp_path.iterdir()) // (16 + 8 + 4)
    assert 5 <= records <= 10
    assert (39).to_bytes(16, "little") in Answers(2, 10, tmp_path).rows


def test_what_was_answered_before_a_failure_is_kept(served: Any, tmp_path: Path) -> None:
    told = Faults(None, None, status(400))
    model = make("tfserving", served(told), tmp_path, batch=1, max_concurrency=1)
    model.answers = Answers(2, 100, tmp_path / "answers")
    with pytest.raises(BlackBoxError):
        model(pictures(4))
    assert len(model.answers.rows) == 2


def test_the_probe_is_fixed_and_sees_another_model(served: Any, tmp_path: Path) -> None:
    images = fixed_images(48, 40)
    assert images.shape == (16, 48, 40, 3)
    assert images.std() > 50
    assert int(images.astype(np.int64).sum()) == int(fixed_images(48, 40).astype(np.int64).sum())
    model = make("tfserving", served(), tmp_path)
    model.answers = Answers(2, 100)
    before = probe(model, 8, 8)
    assert before["version"] == "7"
    assert np.array(before["outputs"]).shape == (16, 2)
    assert drift(before, probe(model, 8, 8)) == ""
    assert not model.answers.rows  # it asks the model itself
    moved = [[p + 0.0004, q - 0.0004] for p, q in before["outputs"]]
    assert drift(before, {**before, "outputs": moved}) == ""
    moved[3] = [moved[3][0] + 0.01, moved[3][1] - 0.01]
    assert "other answers to 1 of 16 fixed images" in drift(before, {**before, "outputs": moved})
    assert drift(before, {**before, "version": "8"}) == "version 8, and it was 7"
    assert drift(before, {**before, "version": None}) == ""


def test_a_verdict_at_the_boundary_is_no_drift() -> None:
    def told(p: float) -> dict[str, Any]:
        return {"version": None, "outputs": [[p, 1 - p]]}

    assert drift(told(0.50004), told(0.49998)) == ""
    assert drift(told(0.5004), told(0.4998)) == "another verdict on 1 of 1 fixed images"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"source": "kserve"}, "expected ask.url, the server's address"),
        ({"source": "kserve", "ask": {"url": "http://h"}}, "expected ask.model"),
        ({"source": "hf", "ask": {"url": "ftp://h"}}, "expected http://HOST/"),
        ({"source": "hf", "ask": {"url": "http://me:pw@h"}}, "no name and password"),
        ({"source": "hf", "ask": {"url": "http://h/x?api_key=abc"}}, "got api_key=: name"),
        ({"source": "hf", "ask": {"url": "http://h", "headers": {"Authorization": "x"}}}, "`key`"),
        ({"source": "http", "ask": {"url": "http://h", "template": {"a": 1}}}, "{png_b64}"),
        (
            {"source": "http", "ask": {"url": "http://h", "template": 1, "each": "{pixels}"}},
            "{each}",
        ),
        ({"source": "python"}, "expected `target`"),
        ({"source": "python", "target": "a.b", "access": "gradient"}, "scores or labels"),
        ({"source": "python", "target": "a.b", "role": "attributes"}, "the role classifier"),
        ({"source": "sklearn", "weights": "m.joblib"}, "sha256 and ask.trust: true for m.joblib"),
        (
            {"source": "sklearn", "weights": "m.joblib", "ask": {"trust": True}},
            "got no sha256: joblib runs the code",
        ),
        ({"source": "sklearn"}, "expected `weights` for source sklearn"),
        ({"source": "torch", "target": "a.b", "ask": {}}, "expected `ask` for a source out of"),
        ({"source": "hf", "ask": {"url": "http://h", "trust": True}}, "for source sklearn alone"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(spec: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        check(ModelConfig, {"role": "classifier", "classes": CLASSES, **spec}, "test")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_joblib_file_runs_nothing_without_trust(tmp_path: Path) -> None:
    from counterfactory.models.wrapping.local_models import load_estimator

    ran = tmp_path / "ran"

    class Payload:
        def __reduce__(self) -> Any:
            return Path.touch, (ran,)

    joblib.dump(Payload(), tmp_path / "m.joblib")
    with pytest.raises(BlackBoxError, match="expected trust: true and sha256"):
        load_estimator((tmp_path / "m.joblib").read_bytes(), "m.joblib", trust=False)
    assert not ran.exists()
    load_estimator((tmp_path / "m.joblib").read_bytes(), "m.joblib", trust=True)
    assert ran.exists()  # so the refusal above is needed


def test_a_skops_file_needs_no_trust(tmp_path: Path) -> None:
    skops = pytest.importorskip("skops.io")
    from sklearn.linear_model import LogisticRegression

    flat = np.random.default_rng(0).integers(0, 256, (60, 8 * 8 * 3)).astype(np.uint8)
    fitted = LogisticRegression().fit(flat, np.where(flat[:, 0] > 128, "light", "dark"))
    file = tmp_path / "m.skops"
    skops.dump(fitted, file)
    spec = {"role": "classifier", "classes": ["light", "dark"], "source": "sklearn"}
    whole = check(ModelConfig, {**spec, "weights": str(file)}, "test").model_dump()
    model = build(whole, file.read_bytes(), torch.device("cpu"))
    images = torch.from_numpy(flat.reshape(-1, 8, 8, 3)).permute(0, 3, 1, 2) / 255
    expected = fitted.predict_proba(flat)[:, ::-1].copy()
    torch.testing.assert_close(
        model(images).softmax(1), torch.from_numpy(expected).float(), atol=1e-5, rtol=0
    )


def test_binary_tensors_hold_a_fraction_of_the_time_of_json(served: Any, tmp_path: Path) -> None:
    told, images = Faults(), pictures(4, 64)
    url = served(told)
    for kind in ("kserve", "kserve-json"):
        make(kind, url, tmp_path)(images)
    sizes = [len(body) for *_, body in told.requests]
    assert sizes[0] < 4 * 64 * 64 * 3 + 500 < sizes[1]
