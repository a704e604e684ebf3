"""What stops a run before any work: access that a classifier does not give, an older run's plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from configs.schema import RunConfig, load_run
from configs.strict import UserError
from pipelines.cli import main
from pipelines.generate.checks import check_needs
from pipelines.generate.job import generate
from pipelines.generate.plan import open_run
from storage.run import PLAN
from storage.seal import read_sealed


def config(*sets: str) -> RunConfig:
    return load_run("demo-plain", ["method=fgsm-demo", "engine.kind=local", *sets])


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["models.classifier.access=scores"], "gives scores alone (access: scores)"),
        (["models.classifier.access=labels"], "gives labels alone (access: labels)"),
        (["models.classifier.source=onnx"], "gives scores alone (access: scores)"),
    ],
)
def test_a_method_that_needs_more_than_there_is_stops_before_any_model_loads(
    sets: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.pinned.load.load_models", lambda *_: pytest.fail("loaded"))
    with pytest.raises(UserError) as error:
        check_needs(config(*sets))
    assert "FGSM needs the classifier's gradients" in str(error.value)
    assert words in str(error.value)
    assert "methods that work with it: " in str(error.value)


def test_the_error_names_the_methods_that_work(monkeypatch: pytest.MonkeyPatch) -> None:
    from counterfactory.methods.cadex import CADEX

    monkeypatch.setattr(CADEX, "access", "scores")
    with pytest.raises(
        UserError, match=r"methods that work with it: cadex-demo, cadex, latent-direction-demo, .*$"
    ):
        check_needs(config("models.classifier.access=scores"))
    check_needs(config("method=cadex-demo", "models.classifier.access=scores"))
    monkeypatch.setattr(CADEX, "access", "pixels")
    with pytest.raises(UserError, match="expected one of gradient, scores, labels, got 'pixels'"):
        check_needs(config("method=cadex-demo"))


def test_a_run_that_an_older_version_planned_is_refused_in_a_line(
    faces: Path, tmp_path: Path
) -> None:
    run = config(f"data.path={faces}", f"out={tmp_path}")
    store = open_run(run)
    generate(store, run)
    plan: dict[str, Any] = read_sealed(store, PLAN)
    del plan["fingerprint"]["format"]
    plan["fingerprint"]["code"] = plan["versions"]["counterfactory"] = "0.1.0"
    store.replace(PLAN, json.dumps(plan).encode())
    with pytest.raises(UserError) as error:
        generate(store, run)
    assert "got one planned by counterfactory 0.1.0" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_run_of_which_no_row_can_be_used_ends_with_1_and_the_reason(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [f"data.path={faces}", f"out={tmp_path}", "data.max_pixels=9", "engine.kind=local"]
    words = [word for given in sets for word in ("--set", given)]
    assert main(["run", "demo-plain", "--set", "method=fgsm-demo", *words]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "got all 24 quarantined, 24 of them with: " in said
    assert "64" in said
