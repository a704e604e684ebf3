"""The local server that answers by the oracle, and the command line of a live judge."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from configs.strict import UserError
from pipelines.cli import main
from pipelines.judge import oracle
from pipelines.judge.live import describe_live
from pipelines.judge.oracle import MODEL, OracleJudge, judge_by_oracle, oracle_server
from pipelines.report.parts import judge_models
from storage.seal import read_sealed
from tests.pipelines.conftest import PIXELS, Oracle


@pytest.fixture
def judged(make_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(oracle, "load_models", lambda config, names, device: {"oracle": Oracle()})
    run = make_run(rows=40, shards=2)
    config = run.with_settings(judge={"wording": "faces-smile", "controls": 0.3})
    plain = json.loads(config.model_dump_json())
    (Path(run.store.uri.removeprefix("file://")) / "config.yaml").write_text(yaml.safe_dump(plain))
    return run


def test_it_answers_by_the_oracle_and_names_itself(judged: Any) -> None:
    config = judged.with_settings(judge={"wording": "faces-smile", "controls": 0.3})
    table = judge_by_oracle(judged.store, config)
    assert (table["parsed"], list(table["models"])) == (40, [MODEL])
    same, pair = table["controls"]["same"], table["controls"]["pair"]
    assert (same["validity"], same["proximity"], same["sparsity"]) == (1, 10, 10)
    assert same["n"] >= 4
    assert table["controls"]["other"]["proximity"] < pair["proximity"]
    assert "does not see" not in describe_live(table)
    with judged.store.parquet("judge/scores.parquet") as file:
        rows = {row["cf_id"]: row for row in file.read().to_pylist()}
    r, c = PIXELS["Smiling"]
    for row, (x, y) in zip(judged.rows, judged.pictures, strict=True):
        smile = (int(y[r, c, 1]) - int(x[r, c, 1])) / 255 * (1 if row["target"] else -1)
        assert rows[row["cf_id"]]["validity"] == 1 + round(9 * float(np.clip(smile, 0, 1)))
    assert judge_models(judged.store) == [MODEL]
    # the address differs in every call, and the stage does not
    assert judge_by_oracle(judged.store, config) == table


def test_other_requests_are_refused() -> None:
    judge = OracleJudge({}, lambda image: 0.5, lambda data: np.zeros((2, 2, 3), np.uint8))
    with oracle_server(judge) as url:
        assert url.startswith("http://127.0.0.1:")
        for body in ({"messages": [{"content": [{"text": "hello"}]}]}, {}, []):
            asked = urllib.request.Request(
                f"{url}/chat/completions", json.dumps(body).encode(), method="POST"
            )
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(asked)
            assert caught.value.code == 400


def test_the_command_line(judged: Any, capsys: pytest.CaptureFixture[str]) -> None:
    uri = judged.store.uri
    given = ["judge", uri, "--live"]
    assert main([*given, "--dry-run"]) == 2  # no judge.url
    assert "judge.url: expected a server's address" in capsys.readouterr().err
    assert main([*given, "--dry-run", "--oracle"]) == 0
    assert f"requests to {MODEL}" in capsys.readouterr().out
    assert main([*given, "--oracle"]) == 0
    said = capsys.readouterr().out
    assert f"judge: 40 of 40 rows have scores, 2 of 2 shards; by {MODEL}" in said
    assert "control, identical pairs: validity 1" in said
    assert read_sealed(judged.store, "judge/live.json")["parsed"] == 40
    assert main(["judge", uri, "--oracle"]) == 2
    assert main([*given, "--answers", "x.jsonl"]) == 2


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"score": {"causal": []}}, "expected score.query or score.causal"),
        ({"score": {"causal": ["Nose"]}}, "expected an attribute of the oracle, got 'Nose'"),
    ],
)
def test_what_it_needs(judged: Any, over: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        judge_by_oracle(judged.store, judged.with_settings(**over))
    models = {"classifier": judged.config.models["classifier"]}
    config = judged.config.model_copy(update={"models": models})
    with pytest.raises(UserError, match="expected a model `oracle`"):
        judge_by_oracle(judged.store, config)


def test_the_oracle_is_asked_in_its_own_range(judged: Any) -> None:
    ask = oracle.load_oracle(judged.config, "Smiling")
    image = np.full((8, 8, 3), 51, np.uint8)
    assert ask(image) == pytest.approx(0.2)
    assert torch.is_grad_enabled()
