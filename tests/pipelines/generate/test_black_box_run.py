"""Runs whose classifier can only be asked: a server of the biased classifier of faces."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from actors.pinned.load import load_models
from configs.schema import ModelConfig, RunConfig, resolve_run
from configs.strict import UserError, check, expand
from configs.sweep import load_sweep
from pipelines.cli import main
from pipelines.generate.checks import check_needs
from pipelines.run import run
from pipelines.sweep.job import sweep
from storage.commit import committed, iterate_commits, read_committed
from storage.errors import NoAnswer
from storage.seal import read_sealed
from storage.uri import Store, open_store
from storage.verify import verify
from tests.counterfactory.models.wrapping.model_servers import Faults, serve, status

PAGE = (Path(__file__).parents[3] / "docs" / "black-box.md").read_text()
(METHOD,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.S | re.M)  # one that needs scores only
ROWS, SHARDS = 12, 4
EACH = 4 * 4 + 1  # evaluations of a row that flips


@pytest.fixture(scope="module")
def biased() -> Callable[[np.ndarray], np.ndarray]:
    spec = check(ModelConfig, expand("faces-biased", "model"), "test").model_dump()
    model: Any = load_models({"models": {"c": spec}}, ["c"], torch.device("cpu"))["c"]

    def predict(pixels: np.ndarray) -> np.ndarray:
        images = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            # one by one, so that an image has one answer in every batch
            found: np.ndarray = torch.cat([model(i[None]) for i in images]).softmax(1).numpy()
        return found

    return predict


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "painting.py").write_text(METHOD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("COUNTERFACTORY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("counterfactory.models.wrapping.client.FIRST_PAUSE", 0.02)
    sys.modules.pop("painting", None)
    yield tmp_path
    sys.modules.pop("painting", None)


@pytest.fixture
def served(biased: Any) -> Iterator[Callable[..., str]]:
    with ExitStack() as stack:
        yield lambda faults=None, predict=biased, wait=0.0: stack.enter_context(
            serve(predict, faults, wait)
        )


def settings(url: str, faces: Path, name: str = "asked", **ask: Any) -> dict[str, Any]:
    quick = {"timeout": 5.0, "retries": 2, "patience": 3.0}
    classifier = {
        "role": "classifier",
        "source": "kserve",
        "classes": ["not smiling", "smiling"],
        "size": 64,
        "ask": {"url": url, "model": "faces", "batch": 8, **quick, **ask},
    }
    return {
        "name": name,
        "data": {"preset": "faces", "path": str(faces), "rows": f":{ROWS}"},
        "models": {"classifier": classifier, "second": "faces-second"},
        "method": {"target": "painting.Paint"},
        "engine": {"kind": "local", "shard_rows": ROWS // SHARDS, "batch": 4},
        "score": {"cout_steps": 4, "bootstrap": 20},
        "interventions": {"mixtures": 4, "grid": 2, "control": 0},
    }


def config(url: str, faces: Path, name: str = "asked", **ask: Any) -> RunConfig:
    return resolve_run(settings(url, faces, name, **ask), [], "test")


def rows(store: Store) -> list[dict[str, Any]]:
    parts = [
        read_committed(store, commit).to_pylist() for commit in iterate_commits(store, "generate")
    ]
    left = {"seconds"}
    return [{k: v for k, v in row.items() if k not in left} for part in parts for row in part]


def test_the_settings_of_the_page_are_valid(here: Path) -> None:
    first, templates = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.S | re.M)
    found = resolve_run(yaml.safe_load(first), [], "page")
    check_needs(found)
    assert found.models["classifier"].given == "scores"
    for ask in yaml.safe_load_all(templates):
        spec = {"role": "classifier", "source": "http", "classes": ["a", "b"]}
        check(ModelConfig, {**spec, "ask": {"url": "http://h", **ask}}, "page")


def test_a_run_asks_scores_only_and_every_stage_works(
    here: Path, faces: Path, served: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    told = Faults()
    store = run(
        config(served(told), faces), stages=("generate", "interventions", "score", "report")
    )
    made = rows(store)
    assert len(made) == ROWS
    flipped = [row for row in made if row["flipped"]]
    assert len(flipped) >= 5
    # what was known before is counted as the method counts: `forward` does not depend on it
    assert {row["forward"] for row in flipped} == {EACH}
    assert {row["backward"] for row in made} == {0}
    assert verify(store) == []
    assert (here / "runs/asked/report.html").exists()
    assert "\nmodels.classifier: asked " in capsys.readouterr().err
    # a finished run asks nothing
    asked = len(told.requests)
    run(config("http://127.0.0.1:9", faces), stages=("generate", "interventions", "score"))
    assert len(told.requests) == asked


def test_the_answers_are_those_of_the_same_classifier_at_hand(
    here: Path, faces: Path, served: Any
) -> None:
    asked = run(config(served(), faces), stages=("generate",))
    raw = settings("http://h", faces, "at-hand")
    raw["models"]["classifier"] = "faces-biased"
    at_hand = run(resolve_run(raw, [], "test"), stages=("generate",))
    pairs = list(zip(rows(asked), rows(at_hand), strict=True))
    for one, other in pairs:
        assert one["p_target_after"] == pytest.approx(other["p_target_after"], abs=1e-4)
        assert (one["id"], one["flipped"]) == (other["id"], other["flipped"])
        assert one["counterfactual"]["bytes"] == other["counterfactual"]["bytes"]


def test_a_run_that_was_killed_goes_on_and_makes_the_same_rows(
    here: Path, faces: Path, served: Any
) -> None:
    whole = rows(run(config(served(), faces, "whole"), stages=("generate",)))
    told = Faults()
    raw = settings(served(told, wait=0.02), faces, "killed")
    Path("killed.yaml").write_text(yaml.safe_dump(raw))
    command = [sys.executable, "-m", "counterfactory", "generate", "killed.yaml"]
    path = f"{Path(__file__).parents[3]}{os.pathsep}{here}"
    process = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.DEVNULL
    )
    store, ends = open_store("runs/killed"), time.monotonic() + 120
    while not committed(store, "generate") and time.monotonic() < ends:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(committed(store, "generate"))
    assert 1 <= done < SHARDS
    before = [image for *_, body in told.requests for image in images(body)]
    told.requests.clear()
    generated = run(resolve_run(raw, [], "test"), stages=("generate",))
    assert rows(generated) == whole
    # of the shard that was cut off, nothing is asked twice but the request that was under way
    after = {image for *_, body in told.requests for image in images(body)}
    assert len(set(before[16:]) & after) <= 5  # the first 16 are the probe's, one is a try
    assert len(before) > 16 + 4


def test_a_budget_stops_cleanly_and_the_same_command_goes_on(
    here: Path, faces: Path, served: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = rows(run(config(served(), faces, "whole"), stages=("generate",)))
    told = Faults()
    Path("asked.yaml").write_text(yaml.safe_dump(settings(served(told), faces, max_queries=150)))
    codes, sizes = [], []
    for _ in range(12):
        before = len(told.requests)
        codes.append(main(["generate", "asked.yaml"]))
        sizes.append(sum(len(images(body)) for *_, body in told.requests[before:]))
        if codes[-1] == 0:
            break
        said = capsys.readouterr().err.splitlines()[-1]
        assert "models.classifier: ask.max_queries: 150 images is the most" in said
        assert "the same command goes on from here" in said
    assert codes == [75] * (len(codes) - 1) + [0]
    assert len(codes) > 1
    assert max(sizes) <= 150
    assert rows(open_store("runs/asked")) == whole


def images(body: bytes) -> list[bytes]:
    """The images of a binary request."""
    head, _ = json.JSONDecoder().raw_decode(body.decode("latin-1"))
    count, *sides = head["inputs"][0]["shape"]
    size = int(np.prod(sides))
    return [body[len(body) - at * size :][:size] for at in range(count, 0, -1)]


def test_another_model_behind_the_address_stops_the_run(
    here: Path, faces: Path, served: Any, biased: Any
) -> None:
    store = run(config(served(), faces), stages=("generate",))
    other = served(predict=lambda pixels: biased(np.asarray(pixels)[..., ::-1]))
    with pytest.raises(
        UserError, match="expected the model that the run was started with, got"
    ) as error:
        run(config(other, faces), stages=("score",))
    assert "of 16 fixed images" in str(error.value)
    assert verify(store) == []


def test_a_model_that_changes_during_a_run_is_noticed_at_its_end(
    here: Path, faces: Path, served: Any, biased: Any
) -> None:
    told = Faults()

    def drifting(pixels: np.ndarray) -> np.ndarray:
        p = biased(pixels)
        return p if len(told.requests) < 12 else p[:, ::-1]

    with pytest.raises(UserError, match="expected the model that the run was started with"):
        run(config(served(told, predict=drifting), faces), stages=("generate",))
    # some of its rows are of the other model, so the first one does not make it right
    with pytest.raises(UserError, match="expected rows of one model, got other answers"):
        run(config(served(), faces), stages=("score",))


def always_dark(pixels: np.ndarray) -> np.ndarray:
    return np.tile([0.9, 0.1], (len(pixels), 1))


def test_a_second_classifier_may_be_asked_too(here: Path, faces: Path, served: Any) -> None:
    told = Faults()
    raw = settings(served(), faces)
    form = {"template": {"all": "{each}"}, "each": {"image": "{png_b64}"}}
    ask = {"url": served(told), **form, "answer": "data[*].scores"}
    first = raw["models"]["classifier"]
    raw["models"]["second"] = {**first, "source": "http", "ask": ask}
    store = run(resolve_run(raw, [], "test"), stages=("generate", "interventions", "score"))
    lines = read_sealed(store, "score/table.json")["metrics"]
    (agrees,) = [m["value"] for m in lines if m["metric"] == "second_agrees" and not m.get("by")]
    assert agrees == 1.0  # it is the same model
    assert len(told.requests) > 8
    assert set(read_sealed(store, "probe.json")["models"]) == {"classifier", "second"}
    # another second classifier may judge the same rows
    dark = {"url": f"{served(predict=always_dark)}/other", **form, "answer": "data[*].scores"}
    raw["models"]["second"]["ask"] = dark
    run(resolve_run(raw, [], "test"), stages=("score",))
    lines = read_sealed(store, "score/table.json")["metrics"]
    (agrees,) = [m["value"] for m in lines if m["metric"] == "second_agrees" and not m.get("by")]
    assert agrees < 1


def test_a_sweep_asks_every_cell(here: Path, faces: Path, served: Any) -> None:
    raw = settings(served(), faces) | {"name": "base"}
    grid = {
        "name": "strengths",
        "base": {**raw, "interventions": {"enabled": False}},
        "grid": {"method.settings.strengths": [2, 4]},
        "out": "sweeps",
    }
    Path("sweep.yaml").write_text(yaml.safe_dump(grid))
    store = sweep(load_sweep("sweep.yaml"))
    assert len(store.list("")) > 2
    probes = list(Path("sweeps").rglob("probe.json"))
    assert len(probes) == 2


def test_a_server_that_goes_away_leaves_what_is_committed(
    here: Path, faces: Path, served: Any
) -> None:
    whole = rows(run(config(served(), faces, "whole"), stages=("generate",)))
    url = served(told := Faults())
    told.next = [None] * 30 + [status(503)] * 3
    with pytest.raises(NoAnswer, match=r"models.classifier: http://.* got status 503"):
        run(config(url, faces), stages=("generate",))
    store = open_store("runs/asked")
    assert 0 < len(committed(store, "generate")) < SHARDS
    # an outage is no row's fault: nothing is set aside
    run(config(url, faces), stages=("generate",))
    assert rows(store) == whole
    assert all(not commit.quarantined for commit in iterate_commits(store, "generate"))


def test_a_method_that_needs_gradients_stops_before_a_server_is_touched(
    here: Path, faces: Path
) -> None:
    raw = settings("http://127.0.0.1:9", faces) | {"method": "dime-demo"}
    raw["models"]["denoiser"] = "faces-denoiser"
    asked = resolve_run(raw, [], "test")
    started = time.monotonic()
    with pytest.raises(UserError) as error:
        run(asked)
    assert time.monotonic() - started < 5  # a busy machine; the aim is 1 s
    assert "DiME needs the classifier's gradients" in str(error.value)
    assert "models.classifier is a black box (kserve), which gives scores alone" in str(error.value)
    assert not Path("runs/asked").exists()
    check_needs(config("http://127.0.0.1:9", faces))


LOOP = """
import sys, yaml
from configs.schema import resolve_run
from pipelines.run import run
from pipelines.sweep.job import sweep
from storage.errors import NoAnswer

config = resolve_run(yaml.safe_load(open("asked.yaml")), [], "test")
while True:
    print("run", flush=True)
    try:
        run(config, stages=("generate",))
        break
    except NoAnswer as error:
        assert "ask.max_queries" in str(error)
"""


@pytest.mark.slow
def test_workers_on_ray_share_the_limits(here: Path, faces: Path, served: Any) -> None:
    whole = rows(run(config(served(), faces, "whole"), stages=("generate",)))
    told = Faults()
    raw = settings(served(told, wait=0.01), faces, max_concurrency=2, max_queries=150, batch=1)
    raw["engine"] |= {"kind": "ray", "workers": 3}
    Path("asked.yaml").write_text(yaml.safe_dump(raw))
    path = f"{Path(__file__).parents[3]}{os.pathsep}{here}"
    done = subprocess.run(
        [sys.executable, "-c", LOOP],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=300,
    )
    runs = done.stdout.count("run\n")
    assert 1 < runs < 9
    assert len(told.requests) <= 150 * runs
    assert told.most == 2
    assert rows(open_store("runs/asked")) == whole
