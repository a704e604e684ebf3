"""Prompts for vLLM on the cluster's GPUs: the requests, and answers that are kept and read."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from actors.judge.prompts import SCHEMA
from configs.strict import UserError
from pipelines.judge import vllm
from pipelines.judge.job import build_prompts
from pipelines.judge.vllm import answer_of, judge_by_vllm, pack, request_of, unpack

GOOD = {"validity": 9, "sparsity": 8, "proximity": 7, "realism": 10}


def engine(refused: set[str], broken: set[str] | None = None) -> Callable[[Any], Any]:
    """A stand-in for ray.data.llm's processor, with its columns: it answers on no GPU.

    refused: ids that fail as a row. broken: ids over which the engine itself ends.
    """

    def answer(row: dict[str, Any]) -> dict[str, Any]:
        data = {**row, **unpack(row)}
        if row["custom_id"] in (broken or ()):
            raise RuntimeError("engine died\nCUDA error: out of memory")
        if row["custom_id"] in refused:
            return {"custom_id": row["custom_id"], vllm.FAILED: "ValueError: prompt too long"}
        parts = data["messages"][0]["content"]
        assert [part["type"] for part in parts].count("image_url") == 2
        data |= {
            "generated_text": json.dumps(GOOD),
            "num_input_tokens": 321,
            "num_generated_tokens": 30,
        }
        return {**pack(data), vllm.FAILED: ""}

    return lambda config: lambda rows: rows.map(answer)


def test_a_request_has_messages_sampling_and_the_schema(make_run: Callable[..., Any]) -> None:
    run = make_run()
    files = build_prompts(run.store, run.config)["files"]
    line = json.loads(run.store.read(files[0]).splitlines()[0])
    row = request_of(line)
    assert row["custom_id"] == line["custom_id"]
    found = unpack(row)
    assert found["messages"] == line["body"]["messages"]
    assert found["sampling_params"] == {
        "max_tokens": 300,
        "temperature": 0,
        "structured_outputs": {"json": SCHEMA},
    }


def test_answers_are_kept_and_only_the_others_are_asked_again(
    make_run: Callable[..., Any], ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm, "ROWS", 4)
    run = make_run()
    files = build_prompts(run.store, run.config)["files"]
    ids = [json.loads(line)["custom_id"] for line in run.store.read(files[0]).splitlines()]
    assert len(ids) > 5
    with pytest.raises(
        UserError, match=r"got CUDA error: out of memory; 0 answers stay, and the same"
    ):
        judge_by_vllm(run.store, run.config, engine(set(), broken={ids[-1]}))
    counts = judge_by_vllm(run.store, run.config, engine({ids[1]}))
    assert (counts["parsed"], counts["unparsable"]) == (len(ids) - 1, 1)
    assert counts["reasons"] == {"the server answered with an error (vllm)": 1}
    assert counts["retry"] == 1
    again = judge_by_vllm(run.store, run.config, engine(set(), broken=set(ids) - {ids[1]}))
    assert (again["parsed"], again["missing"]) == (len(ids), 0)  # the others were not asked
    with run.store.parquet("judge/scores.parquet") as file:
        scores = file.read().to_pylist()
    assert {row["judge"] for row in scores} == {8.5}


def test_an_answer_is_a_line_of_a_batch_file() -> None:
    row = {"custom_id": "a", "generated_text": "x", "num_input_tokens": 3, vllm.FAILED: ""}
    line = json.loads(answer_of(row, "m"))
    assert line["response"]["body"]["choices"][0]["message"]["content"] == "x"
    assert line["response"]["body"]["usage"]["prompt_tokens"] == 3
    assert line["error"] is None


def test_without_vllm_one_line_says_so(
    make_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    run = make_run()
    with pytest.raises(UserError, match=r"expected the package vllm, got none: pip install"):
        judge_by_vllm(run.store, run.config)


def test_the_processor_is_ray_data_llms(
    make_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray.data.llm as llm

    seen: dict[str, Any] = {}

    def build(engine: Any, **functions: Any) -> str:
        seen.update(engine=engine, **functions)
        return "made"

    monkeypatch.setattr(llm, "build_processor", build)
    run = make_run()
    judge = run.config.judge.model_copy(
        update={
            "model": "Qwen/Qwen2.5-VL-3B-Instruct",
            "vllm": run.config.judge.vllm.model_copy(
                update={"replicas": 2, "engine": {"max_model_len": 4096}}
            ),
        }
    )
    assert vllm.processor(run.config.model_copy(update={"judge": judge})) == "made"
    assert seen["engine"].model_source == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert seen["engine"].engine_kwargs["max_model_len"] == 4096
    assert seen["engine"].engine_kwargs["limit_mm_per_prompt"] == {"image": 2}
    assert seen["engine"].concurrency == 2
    assert seen["engine"].should_continue_on_error
    assert (seen["preprocess"], seen["postprocess"]) == (unpack, pack)
