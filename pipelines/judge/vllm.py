"""`counterfactory judge RUN --vllm`: a model on the cluster's own GPUs answers the prompts.

vLLM's engines run in Ray Data's processor, `ray.data.llm`. The prompts are those of the batch
files, and the answers are stored as a batch API's answers are, so both are read by the same code.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from actors.judge.prompts import SCHEMA
from configs.schema import RunConfig, fingerprint
from configs.strict import UserError
from pipelines.engine.progress import note
from pipelines.engine.runner import start_ray
from pipelines.judge.job import build_prompts, parse_answers
from storage.uri import Store, open_store

VERSION = 1  # of the requests: a change here asks about every row again
ROWS = 256  # answers in a file: so many are asked again after a kill, and those under way
FAILED = "__inference_error__"  # ray.data.llm's column for the error of a row
CHAINED = "The above exception was the direct cause"  # between two errors of a traceback
OF_ANSWERS = {"model", "wording", "max_tokens", "temperature", "detail", "reasoning", "effort"}
Row = dict[str, Any]


def judge_by_vllm(
    store: Store, config: RunConfig, build: Callable[[RunConfig], Any] | None = None
) -> dict[str, Any]:
    """Write the prompts, have judge.model answer those without an answer, and read all answers;
    returns the counts of `parse_answers`.

    Answers are written to judge/vllm-<fingerprint>/ as they come, so a second call goes on. build:
    returns the processor of a Ray Dataset of `request_of`'s rows; default ray.data.llm's. UserError
    where vLLM is not installed, or where the engine ends with an error.
    """
    if build is None:
        expect_vllm()
    files = build_prompts(store, config)["files"]
    settings = config.judge.model_dump(include=OF_ANSWERS)
    folder = f"judge/vllm-{fingerprint({'version': VERSION, 'settings': settings})}"
    done = answered(store, folder)
    start_ray(config.engine)
    rows = (build or processor)(config)(prompts(store, files, done))
    number, lines = len(store.list(folder)), list[bytes]()
    failed: Exception | None = None
    try:
        for row in rows.iter_rows():
            lines.append(answer_of(row, config.judge.model))
            if len(lines) == ROWS:
                number, lines = _write(store, folder, number, lines), []
    except Exception as error:  # of a worker, as Ray raises it
        failed = error
    finally:
        _write(store, folder, number, lines)
    if failed is not None:
        raise UserError(
            f"judge --vllm: expected answers of {config.judge.model}, got {_first_cause(failed)};"
            f" {len(answered(store, folder))} answers stay, and the same command goes on"
        )
    return parse_answers(store, config, store.url(folder))


def expect_vllm() -> None:
    """Raise UserError where vLLM cannot be imported here."""
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "judge --vllm: expected the package vllm, got none: pip install 'counterfactory[vllm]'"
            " on every node with a GPU and on this one"
        )


def answered(store: Store, folder: str) -> set[str]:
    """Return the ids of the prompts that have an answer without an error."""
    found = set()
    for path in store.list(folder):
        for line in store.read(path).splitlines():
            answer = json.loads(line)
            if answer["error"] is None:
                found.add(str(answer["custom_id"]))
    return found


def prompts(store: Store, files: list[str], done: set[str]) -> Any:
    """Return a Ray Dataset of the prompts of batch files that are not done, a row for each.

    Workers read the files, so no prompt passes through this process.
    """
    import ray.data

    uri, known = store.uri, frozenset(done)

    def lines(row: Row) -> Iterator[Row]:
        for line in open_store(uri).read(row["file"]).splitlines():
            request = json.loads(line)
            if request["custom_id"] not in known:
                yield request_of(request)

    return ray.data.from_items([{"file": file} for file in files]).flat_map(lines)


def request_of(line: Mapping[str, Any]) -> Row:
    """Return a batch file's line as a row: its id, and messages and sampling_params as JSON."""
    body = line["body"]
    given = {
        "max_tokens": body.get("max_tokens", body.get("max_completion_tokens")),
        "temperature": body.get("temperature"),
    }
    return {
        "custom_id": line["custom_id"],
        "request": json.dumps(
            {
                "messages": body["messages"],
                "sampling_params": {
                    **{name: value for name, value in given.items() if value is not None},
                    "structured_outputs": {"json": SCHEMA},
                },
            }
        ),
    }


def unpack(row: Row) -> Row:
    """Return the columns that the engine's stages take: messages and sampling_params."""
    return dict(json.loads(row["request"]))


def pack(row: Row) -> Row:
    """Return the columns of an answer that are kept."""
    kept = ("generated_text", "num_input_tokens", "num_generated_tokens")
    return {"custom_id": row["custom_id"], **{name: row.get(name) for name in kept}}


def processor(config: RunConfig) -> Any:
    """Return ray.data.llm's processor for judge.model."""
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    settings = config.judge.vllm
    engine = vLLMEngineProcessorConfig(
        model_source=config.judge.model,
        engine_kwargs={"limit_mm_per_prompt": {"image": 2}, **settings.engine},
        concurrency=settings.replicas,
        batch_size=settings.batch,
        prepare_multimodal_stage={"enabled": True, "chat_template_content_format": "openai"},
        should_continue_on_error=True,
    )
    return build_processor(engine, preprocess=unpack, postprocess=pack)


def answer_of(row: Row, model: str) -> bytes:
    """Return an answer as a line of a batch API's file."""
    failed = row.get(FAILED) or None
    body = {
        "model": model,
        "choices": [{"message": {"role": "assistant", "content": row.get("generated_text")}}],
        "usage": {
            "prompt_tokens": row.get("num_input_tokens"),
            "completion_tokens": row.get("num_generated_tokens"),
        },
    }
    line = {
        "custom_id": row["custom_id"],
        "error": {"code": "vllm", "message": failed} if failed else None,
        "response": None if failed else {"status_code": 200, "body": body},
    }
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"


def _first_cause(error: Exception) -> str:
    """Return the last line of a worker's own error, which Ray puts before its own."""
    told = str(error).partition(CHAINED)[0].strip().splitlines()
    return told[-1][:300] if told else type(error).__name__


def _write(store: Store, folder: str, number: int, lines: list[bytes]) -> int:
    """Write the lines as the first file whose number is free, from `number` on; returns the next
    number.
    """
    if not lines:
        return number
    while not store.put_new(f"{folder}/answers-{number:05d}.jsonl", b"".join(lines)):
        number += 1
    note(f"judge: {len(lines)} more answers")
    return number + 1
