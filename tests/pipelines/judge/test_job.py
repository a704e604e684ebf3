"""Prompts out, answers back: by id, whatever a model or a server makes of it."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pyarrow.parquet as pq
import pytest

from actors.judge.answer import BadAnswer, read_answer, read_scores
from actors.judge.prompts import SCHEMA, read_wording, request
from configs.schema import JudgeConfig
from configs.strict import UserError, presets
from pipelines.judge import job as judge
from pipelines.judge.answers import read_values, to_text
from pipelines.judge.job import build_prompts, describe, parse_answers
from pipelines.score.job import score

GOOD = {"validity": 9, "sparsity": 8, "proximity": 7, "realism": 10}


def prompts(run: Any, files: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for file in files for line in run.store.read(file).splitlines()]


def openai(custom_id: str, content: Any, **choice: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content, "refusal": None}
    body = {
        "id": "chatcmpl-1",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", **choice}],
    }
    return {
        "id": "batch_req_1",
        "custom_id": custom_id,
        "response": {"status_code": 200, "request_id": "r", "body": body},
        "error": None,
    }


def vllm(custom_id: str, content: str) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": content,
        "reasoning_content": None,
        "tool_calls": [],
    }
    return {
        "id": "vllm-1",
        "custom_id": custom_id,
        "response": {"choices": [{"message": message}]},
        "error": None,
    }


def write(path: Path, lines: list[Any]) -> str:
    path.write_text(
        "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    )
    return str(path)


def test_prompts_follow_the_batch_format(make_run: Callable[..., Any]) -> None:
    run = make_run()
    told = build_prompts(
        run.store, run.with_settings(judge={"wording": "faces-smile", "model": "some/vlm"})
    )
    assert (told["prompts"], told["files"]) == (40, ["judge/prompts-00000.jsonl"])
    lines = prompts(run, told["files"])
    assert [line["custom_id"] for line in lines] == [r["cf_id"] for r in run.rows]
    for line, row in zip(lines, run.rows, strict=True):
        assert set(line) == {"custom_id", "method", "url", "body"}
        assert (line["method"], line["url"]) == ("POST", "/v1/chat/completions")
        assert len(line["custom_id"]) <= 64
        body = line["body"]
        assert body["model"] == "some/vlm"
        (message,) = body["messages"]
        pictures = [
            part["image_url"]["url"] for part in message["content"] if part["type"] == "image_url"
        ]
        prefix = "data:image/png;base64,"
        assert all(url.startswith(prefix) for url in pictures)
        stored = [row["original"]["bytes"], row["counterfactual"]["bytes"]]
        assert [base64.b64decode(url.removeprefix(prefix)) for url in pictures] == stored
        text = message["content"][0]["text"]
        source, target = ("not smiling", "smiling") if row["target"] else ("smiling", "not smiling")
        assert f'classified as "{source}", and the target is "{target}"' in text
        assert body["response_format"]["type"] == "json_schema"
        assert body["response_format"]["json_schema"]["strict"] is True
    schema = lines[0]["body"]["response_format"]["json_schema"]["schema"]
    jsonschema.validate(GOOD, schema)
    for bad in (
        {**GOOD, "realism": 11},
        {**GOOD, "realism": 1.5},
        {**GOOD, "more": 1},
        {"validity": 3},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, schema)
    assert schema["additionalProperties"] is False  # what strict schemas must say
    assert set(schema["required"]) == set(schema["properties"])


def test_classes_that_only_the_model_knows(make_run: Callable[..., Any]) -> None:
    run = make_run()
    models = {**run.config.model_dump()["models"]}
    models["classifier"] = {
        "role": "classifier",
        "source": "huggingface",
        "weights": "some/model",
        "revision": "1",
    }
    config = run.with_settings(models=models)
    with pytest.raises(
        UserError, match="expected the names of the classes, got none: give them, or score first"
    ):
        build_prompts(run.store, config)
    score(run.store, run.config)  # as the whole job does before
    told = build_prompts(run.store, config)
    assert (
        '"not smiling"'
        in prompts(run, told["files"])[0]["body"]["messages"][0]["content"][0]["text"]
    )


def test_the_same_run_gives_the_same_bytes_and_the_order_of_rows(
    make_run: Callable[..., Any],
) -> None:
    one, seven = make_run(shards=1), make_run(shards=7)
    files = [build_prompts(run.store, run.config)["files"] for run in (one, seven)]
    first = one.store.read(files[0][0])
    assert first == seven.store.read(files[1][0])
    build_prompts(one.store, one.config)
    assert one.store.read(files[0][0]) == first


def test_files_are_cut_by_bytes_and_by_lines(
    make_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    size = len(run.store.read(build_prompts(run.store, run.config)["files"][0]))
    monkeypatch.setattr(judge, "FILE_BYTES", size // 3)
    by_bytes = build_prompts(run.store, run.config)
    assert len(by_bytes["files"]) == 4
    assert all(0 < len(run.store.read(file)) <= size // 3 for file in by_bytes["files"])
    assert [p["custom_id"] for p in prompts(run, by_bytes["files"])] == [
        r["cf_id"] for r in run.rows
    ]
    monkeypatch.setattr(judge, "FILE_BYTES", size)
    monkeypatch.setattr(judge, "FILE_LINES", 15)
    by_lines = build_prompts(run.store, run.config)
    assert [len(prompts(run, [file])) for file in by_lines["files"]] == [15, 15, 10]
    # of the longer set before: nobody sends it by mistake
    assert run.store.read("judge/prompts-00003.jsonl") == b""
    monkeypatch.setattr(judge, "LINE_BYTES", 10)
    assert build_prompts(run.store, run.config)["too_large"] == 40


def test_max_rows_is_a_stable_sample(make_run: Callable[..., Any]) -> None:
    run = make_run()
    picked = []
    for n in (0, 5, 12, 40, 1000):
        told = build_prompts(run.store, run.with_settings(judge={"max_rows": n}))
        assert told["prompts"] == min(n, 40)
        picked.append({p["custom_id"] for p in prompts(run, told["files"])})
    assert picked[0] < picked[1] < picked[2] < picked[3] == picked[4]
    assert picked[2] == set(sorted(r["cf_id"] for r in run.rows)[:12])


def test_answers_come_back_by_id(make_run: Callable[..., Any], tmp_path: Path) -> None:
    run = make_run()
    build_prompts(run.store, run.config)
    ids = [r["cf_id"] for r in run.rows]
    # not in order
    lines: list[Any] = [
        openai(ids[i], json.dumps({**GOOD, "validity": i})) for i in range(10, 0, -1)
    ]
    lines += [
        vllm(ids[11], f"\n ```json\n{json.dumps(GOOD)}\n```  "),
        openai(ids[12], [{"type": "text", "text": json.dumps(GOOD)}]),
        openai(ids[13], "I would say 7 out of 10."),
        openai(ids[14], json.dumps({**GOOD, "realism": 7.5})),
        openai(ids[15], json.dumps({**GOOD, "realism": 0})),
        openai(ids[16], json.dumps({k: v for k, v in GOOD.items() if k != "sparsity"})),
        openai(ids[17], '{"validity": 9, "spar', finish_reason="length"),
        {
            "custom_id": ids[18],
            "response": None,
            "error": {"code": "batch_expired", "message": "secret"},
        },
        {
            "custom_id": ids[19],
            "response": {"status_code": 429, "body": {"error": {"message": "secret"}}},
            "error": None,
        },
        openai("nobody", json.dumps(GOOD)),
        openai(ids[20], "not yet"),
        openai(ids[20], json.dumps(GOOD)),  # a retry that went well
        openai(ids[20], "worse"),  # and one that did not
        "{broken",
        '{"response": {}}',
        "",
        openai(ids[0], json.dumps(dict.fromkeys(GOOD, 10))),
    ]
    counts = parse_answers(run.store, run.config, write(tmp_path / "answers.jsonl", lines))
    said = describe(counts).splitlines()
    reasons, bad, examples = (counts.pop(name) for name in ("reasons", "lines", "examples"))
    assert counts.pop("lost") == 0
    assert counts == {
        "parsed": 14,
        "unparsable": 7,
        "missing": 19,
        "unknown": 1,
        "duplicate": 2,
        "nameless": 2,
        "retry": 26,
    }
    assert reasons == {
        "the content is no JSON": 1,
        "realism is no whole number": 1,
        "realism is not within 1 to 10": 1,
        "sparsity is missing": 1,
        "the answer was cut off (max_tokens)": 1,
        "the server answered with an error (batch_expired)": 1,
        "the server answered with status 429": 1,
    }
    assert bad == {"the line is no JSON object": 1, "the line has no custom_id": 1}
    assert said[0].startswith("judge: 14 parsed, 7 unparsable, 19 missing")
    assert f"  1 x realism is no whole number, such as {ids[14]}: " in "\n".join(said)
    assert examples["the line is no JSON object"] == "answer 24"
    assert len(said) == 1 + len(reasons) + len(bad) + 1
    assert said[-1] == "  the 26 rows without scores are in judge/retry-*.jsonl"
    retry = prompts(run, ["judge/retry-00000.jsonl"])
    found = pq.read_table(run.store.uri + "/judge/scores.parquet").to_pylist()
    failed = [row["cf_id"] for row in found if row["error"]]
    assert [line["custom_id"] for line in retry] == failed
    assert "secret" not in str((reasons, examples))
    with run.store.parquet("judge/scores.parquet") as file:
        table = file.read()
    rows = {row["cf_id"]: row for row in table.to_pylist()}
    assert len(rows) == table.num_rows == 40
    assert [rows[ids[i]]["validity"] for i in range(1, 11)] == list(range(1, 11))
    assert rows[ids[3]]["judge"] == pytest.approx((3 + 8 + 7 + 10) / 4)
    assert (rows[ids[14]]["judge"], rows[ids[14]]["error"]) == (None, "realism is no whole number")
    assert rows[ids[39]]["error"] == "no answer"
    assert {name: rows[ids[20]][name] for name in GOOD} == GOOD


def test_the_next_score_tells_the_judge(make_run: Callable[..., Any], tmp_path: Path) -> None:
    run = make_run()
    build_prompts(run.store, run.config)
    good = {r["cf_id"]: {**GOOD, "validity": 1 + i % 10} for i, r in enumerate(run.rows) if i < 30}
    lines = [openai(name, json.dumps(answer)) for name, answer in good.items()]
    parse_answers(
        run.store,
        run.config,
        write(tmp_path / "a.jsonl", [*lines, openai(run.rows[31]["cf_id"], "?")]),
    )
    table = score(run.store, run.config)
    found = {
        (m["metric"], m["subset"]): m for m in table["subsets"] if m["metric"].startswith("judge")
    }
    assert len(found) == 5 * 4
    for subset, rows in (
        ("all", run.rows[:30]),
        ("flipped", [r for r in run.rows[:30] if r["flipped"]]),
    ):
        answers = [good[r["cf_id"]] for r in rows]
        assert found["judge", subset]["n"] == len(rows)
        assert found["judge", subset]["value"] == pytest.approx(
            sum(sum(a.values()) / 4 for a in answers) / len(rows)
        )
        expected = sum(a["validity"] for a in answers) / len(rows)
        assert found["judge_validity", subset]["value"] == pytest.approx(expected)
    main = [m for m in table["metrics"] if m["metric"].startswith("judge")]
    assert len(main) == 5
    assert main[0]["note"] == "1 unparsable, 9 without an answer"


def test_answers_in_a_folder_and_of_a_sample(make_run: Callable[..., Any], tmp_path: Path) -> None:
    run = make_run()
    config = run.with_settings(judge={"max_rows": 6})
    told = build_prompts(run.store, config)
    asked = [p["custom_id"] for p in prompts(run, told["files"])]
    folder = tmp_path / "answers"
    folder.mkdir()
    write(folder / "one.jsonl", [openai(name, json.dumps(GOOD)) for name in asked[:2]])
    write(folder / "two.jsonl", [openai(name, json.dumps(GOOD)) for name in asked[2:5]])
    # what was asked for counts, not today's setting
    counts = parse_answers(run.store, run.config, str(folder))
    assert (counts["parsed"], counts["missing"]) == (5, 1)
    assert pq.read_table(f"{run.store.uri}/judge/scores.parquet").num_rows == 6
    with pytest.raises(
        UserError, match=r"answers: expected a JSONL file or a folder of them, got .*nothing"
    ):
        parse_answers(run.store, config, str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "the content is no JSON"),
        ("[9, 8, 7, 10]", "the content is no JSON object but a list"),
        ("NaN", "the content is no JSON object but a float"),
        (json.dumps({**GOOD, "validity": True}), "validity is no whole number"),
        (json.dumps({**GOOD, "validity": "nine"}), "validity is no whole number"),
        (json.dumps({**GOOD, "validity": 9.5}), "validity is no whole number"),
        (json.dumps({**GOOD, "validity": "NaN"}), "validity is no whole number"),
        (json.dumps({**GOOD, "validity": "11"}), "validity is not within 1 to 10"),
        (json.dumps({**GOOD, "validity": 10**60}), "validity is not within 1 to 10"),
        (json.dumps({**GOOD, "validity": [9]}), "validity is no whole number"),
        (
            '{"validity": Infinity, "sparsity": 1, "proximity": 1, "realism": 1}',
            "validity is no whole number",
        ),
        (json.dumps({**GOOD, "proximity": -3}), "proximity is not within 1 to 10"),
        ("[" * 100_000, "the content is no JSON"),
        ('{"validity": ' * 100_000, "the content is no JSON"),
        (f"<think>{json.dumps(GOOD)}", "the thoughts have no end"),
        (f"<think>{json.dumps(GOOD)}</think> Fine.", "the content is no JSON"),
        ('{"validity": 3, "sparsity": 4}', "proximity is missing"),
        ("```json\n```", "the content is no JSON"),
    ],
)
def test_garbage_is_refused_with_a_reason(content: str, reason: str) -> None:
    with pytest.raises(BadAnswer) as caught:
        read_scores(content)
    assert str(caught.value) == reason


@pytest.mark.parametrize(
    "text", ["{}", "```\n{}\n```", "  \n```JSON {} ```\n", "```json\r\n{}\r\n```"]
)
def test_fences_and_white_space_are_forgiven(text: str) -> None:
    assert (
        read_scores(text.replace("{}", json.dumps({**GOOD, "comment": "nice"}, indent=1))) == GOOD
    )


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\xff\xfe",
        b"7",
        b"null",
        b'{"custom_id": 3}',
        b'{"custom_id": "a"}',
        b'{"custom_id": "a", "response": 3}',
    ]
    + [
        b'{"custom_id": "a", "response": {"body": %s}}' % b
        for b in (b"3", b'{"choices": 3}', b'{"choices": [3]}')
    ],
)
def test_no_line_breaks_the_parse(line: bytes) -> None:
    found = [read_answer(value) for value in read_values(to_text(line, "answers.jsonl"))]
    assert len(found) == (1 if line.strip(b"\xff\xfe") else 0)
    assert all(isinstance(scores, BadAnswer) for _, scores in found)


@pytest.mark.parametrize(
    "text",
    [
        "Here is my rating:\n\n{}\n\nThe mouth is convincing.",
        "<think>maybe {'a': 1} or {}? no</think>\n{}".replace(
            "{}?", json.dumps({**GOOD, "realism": 1})
        ),
        "thoughts that the template began\n</think>\n\n```json\n{}\n```",
        "First try: " + json.dumps(dict.fromkeys(GOOD, 1)) + " On second thoughts: {}",
        '{"scores": {}}',
        "[{}]",
        "\ufeff{}",
    ],
)
def test_what_models_put_around_their_answer_is_left_out(text: str) -> None:
    assert read_scores(text.replace("{}", json.dumps(GOOD))) == GOOD


def test_numbers_and_keys_are_read_by_meaning() -> None:
    said = {"Validity": "9", " sparsity ": 8.0, "proximity": " 7.0", "REALISM": 1e1}
    found = read_scores(json.dumps(said))
    assert found == GOOD
    assert all(type(value) is int for value in found.values())


def arranged(answers: list[dict[str, Any]]) -> dict[str, bytes]:
    """The same answers as editors, shells and servers write them."""
    lines = "\n".join(map(json.dumps, answers))
    pretty = "\n".join(json.dumps(answer, indent=2) for answer in answers)
    return {
        "plain.jsonl": lines.encode(),
        "windows.jsonl": b"\xef\xbb\xbf" + lines.replace("\n", "\r\n").encode(),
        "powershell.jsonl": lines.encode("utf-16"),
        "unmarked.jsonl": lines.encode("utf-16-le"),
        "big.jsonl": b"\xfe\xff" + lines.encode("utf-16-be"),
        "wide.jsonl": lines.encode("utf-32"),
        "packed.jsonl.gz": gzip.compress(lines.encode("utf-16")),
        "array.json": json.dumps(answers).encode(),
        "long-array.json": json.dumps(answers, indent=1).encode(),
        "broken-off-array.json": json.dumps([*answers, answers[0]], indent=1).encode()[:-60],
        "pretty.jsonl": pretty.encode(),
        "sequence.jsonl": "".join(f"\x1e{json.dumps(a)}\n" for a in answers).encode(),
        "latin.jsonl": lines.encode() + "\n# d\xe9j\xe0 vu\n".encode("latin-1"),
        "old-mac.jsonl": lines.replace("\n", "\r").encode(),
    }


@pytest.mark.parametrize("name", list(arranged([openai("a", "")])))
def test_files_are_read_whatever_wrote_them(
    make_run: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    run = make_run(rows=5, shards=1)
    build_prompts(run.store, run.config)
    answers = [openai(row["cf_id"], json.dumps(GOOD)) for row in run.rows]
    (tmp_path / name).write_bytes(arranged(answers)[name])
    counts = parse_answers(run.store, run.config, str(tmp_path / name))
    assert (counts["parsed"], counts["missing"], counts["unparsable"]) == (5, 0, 0)
    folder = tmp_path / "answers"
    folder.mkdir()
    (folder / name).write_bytes(arranged(answers)[name])
    assert parse_answers(run.store, run.config, str(folder))["parsed"] == 5


def test_an_answer_that_was_parted_from_its_thoughts_or_cut_off_behind_its_end() -> None:
    text = json.dumps(GOOD)
    parted = openai("a", None)
    parted["response"]["body"]["choices"][0]["message"]["reasoning_content"] = text
    assert read_answer(parted) == ("a", GOOD)
    parted["response"]["body"]["choices"][0]["finish_reason"] = "length"  # drafts, so far
    assert str(read_answer(parted)[1]) == "the answer was cut off (max_tokens)"
    assert read_answer(openai("a", text + "\n" * 50, finish_reason="length")) == ("a", GOOD)
    assert str(read_answer(openai("a", None))[1]) == "the answer has no content"


def test_a_file_without_one_usable_answer_replaces_nothing_and_says_why(
    make_run: Callable[..., Any], tmp_path: Path
) -> None:
    run = make_run()
    build_prompts(run.store, run.config)
    names = [row["cf_id"] for row in run.rows]
    parse_answers(
        run.store,
        run.config,
        write(tmp_path / "good.jsonl", [openai(name, json.dumps(GOOD)) for name in names]),
    )
    before = run.store.read("judge/scores.parquet")
    files = {
        "empty.jsonl": b"",
        "prompts.jsonl": run.store.read("judge/prompts-00000.jsonl"),
        "strangers.jsonl": json.dumps(openai("0" * 16, json.dumps(GOOD))).encode(),
        "table.csv": b"id,score\n" * 5000,
        "damaged.jsonl.gz": gzip.compress(b"{}" * 999)[:-9],
        "prose.jsonl": json.dumps(openai(names[0], "Very \x1b[2J nice!")).encode(),
        "braces.jsonl": b"{\n" * 5000,
    }
    reasons = {}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError) as caught:
            parse_answers(run.store, run.config, str(tmp_path / name))
        reasons[name] = str(caught.value)
        assert run.store.read("judge/scores.parquet") == before, name
        assert "\n" not in reasons[name]
    assert "40 x the line is a prompt, not an answer" in reasons["prompts.jsonl"]
    assert "1 of 1 of another run's rows" in reasons["strangers.jsonl"]
    assert "5000 x the line is no JSON object, such as answer 1" in reasons["table.csv"]
    assert "expected a whole gzip file" in reasons["damaged.jsonl.gz"]
    assert (
        rf"1 x the content is no JSON, such as {names[0]}: Very \x1b[2J nice!"
        in reasons["prose.jsonl"]
    )


def test_scores_that_a_call_takes_away_are_counted(
    make_run: Callable[..., Any], tmp_path: Path
) -> None:
    run = make_run()
    names = [row["cf_id"] for row in run.rows]
    lines = [openai(name, json.dumps(GOOD)) for name in names]
    parse_answers(run.store, run.config, write(tmp_path / "all.jsonl", lines))
    told = parse_answers(run.store, run.config, write(tmp_path / "few.jsonl", lines[:15]))
    assert (told["parsed"], told["lost"]) == (15, 25)
    assert "25 rows had scores before and have none now" in describe(told)


def test_parameters_are_settings_and_follow_models_that_think() -> None:
    picture = {"bytes": b"1"}
    row = {"cf_id": "a", "original": picture, "counterfactual": picture}

    def asked(**settings: Any) -> dict[str, Any]:
        line = json.loads(request(row, "From {source}?", "A", "B", JudgeConfig(**settings)))
        body: dict[str, Any] = line["body"]
        return body

    def sent(**settings: Any) -> dict[str, Any]:
        names = ("max_tokens", "max_completion_tokens", "temperature")
        return {name: value for name, value in asked(**settings).items() if name in names}

    assert sent() == {"max_tokens": 300, "temperature": 0}
    assert sent(model="some/o3d-vlm") == sent(model="gpt-5-chat-latest") == sent()
    for name in ("o1", "o3-2025-04-16", "o4-mini", "gpt-5", "gpt-5.1-mini", "openai/o3"):
        assert sent(model=name) == {"max_completion_tokens": 4000}, name
    assert sent(model="Qwen/thinker", reasoning=True) == {"max_completion_tokens": 4000}
    assert sent(model="o3", reasoning=False) == {"max_tokens": 300, "temperature": 0}
    assert sent(model="o3", max_tokens=900, temperature=1) == {
        "max_completion_tokens": 900,
        "temperature": 1,
    }
    assert sent(max_tokens=None, temperature=None) == {}
    assert sent(temperature=0.5)["temperature"] == 0.5
    pictures = [
        part["image_url"]
        for part in asked(detail="low")["messages"][0]["content"]
        if part["type"] == "image_url"
    ]
    assert [sorted(part) for part in pictures] == [["detail", "url"]] * 2
    assert "detail" not in json.dumps(asked())


def test_wordings_say_what_they_are_about() -> None:
    names = set(presets("judge"))
    assert names == {
        "faces-smile",
        "faces-age",
        "faces-gender",
        "traffic",
        "animals",
        "digits",
        "generic",
    }
    texts = {name: read_wording(name) for name in names}
    for name, text in texts.items():
        assert "{source}" in text, name
        assert text.count("{target}") == 2, name
        for criterion in ("Validity", "Sparsity", "Proximity", "Realism"):
            assert f"- {criterion}: " in text, name
        assert "two sets" not in text, name
        assert "counterfactual images" not in text, name
    assert "modified is gender" in texts["faces-gender"]
    assert "age" not in texts["faces-gender"].replace("image", "")
    assert "animal" not in texts["traffic"]
    assert "traffic" in texts["traffic"]


def test_a_wording_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("prompt: From {source} to {target}?")
    row = {"cf_id": "a", "original": {"bytes": b"1"}, "counterfactual": {"bytes": b"2"}}
    line = json.loads(request(row, read_wording(str(path)), "A {target}", "B", JudgeConfig()))
    assert line["body"]["messages"][0]["content"][0]["text"].startswith("From A {target} to B?")
    path.write_text("prompt: From {origin} to {target}?")
    with pytest.raises(
        UserError, match=r"expected \{source\} and \{target\} in .*, got \{origin\}"
    ):
        read_wording(str(path))
    with pytest.raises(UserError, match="did you mean 'faces-smile'"):
        read_wording("face-smile")
    assert SCHEMA["required"] == list(GOOD)
