"""Prompts for a vision-language judge as batch files, and the way back from its
answers to scores."""

from __future__ import annotations

import heapq
import io
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from configs.schema import RunConfig
from configs.strict import UserError
from counterfactory.metrics.judge import CRITERIA
from pipelines.engine.committed import class_name, class_names, generated, made_shards
from pipelines.judge.prompts import BadAnswer, read_line, read_wording, request
from storage.commit import read_committed
from storage.records import TEXT_OR_NONE, checked
from storage.seal import read_sealed, sealed
from storage.tables import parquet_writer
from storage.uri import Store, open_store, split_url

PROMPTS, SCORES = "judge/prompts.json", "judge/scores.parquet"
FILE_BYTES, FILE_LINES, LINE_BYTES = (
    190_000_000,
    50_000,
    40_000_000,
)  # under the limits of servers that take batch files
NO_ANSWER = "no answer"
Answer = tuple[int, ...] | str  # the scores in the order of CRITERIA, or why there are none
ANSWERS = pa.schema(
    [
        pa.field("cf_id", pa.string(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        ("correct", pa.bool_()),
        ("flipped", pa.bool_()),
        *((name, pa.int32()) for name in CRITERIA),
        ("judge", pa.float64()),  # the mean of the four
        ("error", pa.string()),  # why there are no scores
    ]
)


def build_prompts(store: Store, config: RunConfig) -> dict[str, Any]:
    """Write judge/prompts-00000.jsonl and on, in the order of shards and rows; gives {"prompts",
    "files", ...}.

    With judge.max_rows, the rows are those with the smallest cf_id: a fair sample, the same in
    every run of the stage, and part of every larger one. The same run gives the same bytes. Files
    of an earlier, longer set are emptied.
    """
    made_shards(store)
    wording, names = read_wording(config.judge.wording), class_names(store, config)
    last = last_id(store, config.judge.max_rows)
    files: list[str] = []
    lines, count = io.BytesIO(), 0  # its getvalue() copies nothing
    prompts = too_large = 0

    def close() -> None:
        nonlocal lines, count
        if count:
            files.append(f"judge/prompts-{len(files):05d}.jsonl")
            store.replace(files[-1], lines.getvalue())
            lines, count = io.BytesIO(), 0

    for row in _rows(store, last):
        source, target = class_name(names, row["source"]), class_name(names, row["target"])
        line = request(row, wording, source, target, config.judge)
        if len(line) > LINE_BYTES:
            too_large += 1
            continue
        if count == FILE_LINES or lines.tell() + len(line) > FILE_BYTES:
            close()
        lines.write(line)
        count += 1
        prompts += 1
    close()
    for path in store.list("judge"):
        if path.startswith("judge/prompts-") and path not in files:
            store.replace(path, b"")
    told = {
        "prompts": prompts,
        "too_large": too_large,
        "files": files,
        "wording": config.judge.wording,
        "model": config.judge.model,
        "last_id": last,
    }
    store.replace(PROMPTS, sealed(told))
    return told


def last_id(store: Store, max_rows: int | None) -> str | None:
    """The largest cf_id that is prompted for; None: all are, "": none is."""
    if max_rows is None:
        return None
    if max_rows == 0:
        return ""
    columns = (read_committed(store, commit, ["cf_id"])["cf_id"] for commit in generated(store))
    smallest = heapq.nsmallest(
        max_rows, (name for column in columns for name in column.to_pylist())
    )
    return smallest[-1] if smallest else ""


def _rows(store: Store, last: str | None) -> Iterator[dict[str, Any]]:
    """Rows to prompt for, one shard in memory at a time; images of shards without such rows are not
    read.
    """
    columns = ["cf_id", "source", "target", "original", "counterfactual"]
    for commit in generated(store):
        if last is not None:
            names = read_committed(store, commit, ["cf_id"])["cf_id"]
            if not len(names) or pc.min(names).as_py() > last:
                continue
        table = read_committed(store, commit).select(columns)  # all but the whole of it
        wanted = table if last is None else table.filter(pc.less_equal(table["cf_id"], last))
        for batch in wanted.to_batches(max_chunksize=64):
            yield from batch.to_pylist()


def parse_answers(store: Store, config: RunConfig, answers_path: str) -> dict[str, Any]:
    """Write judge/scores.parquet from answer files, matched by custom_id; gives counts, and reasons
    of unparsable ones.

    answers_path: a JSONL file, or a folder of them. Rows are those prompted for, and any other row
    of the run that was answered. Of several answers to one prompt the last that parses counts, so
    that a retry's file can be added. The next `score` puts the judge's figures into its table.
    """
    answers, counts = _read_answers(answers_path)
    if store.exists(PROMPTS):
        last = checked(read_sealed(store, PROMPTS), store.url(PROMPTS), {"last_id": TEXT_OR_NONE})[
            "last_id"
        ]
    else:
        last = last_id(store, config.judge.max_rows)
    out, reasons = io.BytesIO(), Counter[str]()
    with parquet_writer(out, ANSWERS) as writer:
        for commit in generated(store):
            rows = []
            for row in read_committed(
                store, commit, ["cf_id", "id", "correct", "flipped"]
            ).to_pylist():
                answer = answers.pop(row["cf_id"], None)
                if answer is None and last is not None and row["cf_id"] > last:
                    continue
                if isinstance(answer, tuple):
                    counts["parsed"] += 1
                    scores = dict(zip(CRITERIA, answer, strict=True))
                    rows.append(
                        {**row, **scores, "judge": sum(answer) / len(CRITERIA), "error": None}
                    )
                    continue
                if answer is None:
                    counts["missing"] += 1
                else:
                    counts["unparsable"] += 1
                    reasons[answer] += 1
                rows.append({**row, "error": NO_ANSWER if answer is None else answer})
            writer.write_table(pa.Table.from_pylist(rows, schema=ANSWERS))
    counts["unknown"] = len(answers)
    store.replace(SCORES, out.getvalue())
    return {**counts, "reasons": dict(reasons.most_common())}


def _read_answers(path: str) -> tuple[dict[str, Answer], dict[str, int]]:
    """Scores, or why there are none, by custom_id; and how many lines were duplicates or named no
    prompt.
    """
    counts = dict.fromkeys(
        ("parsed", "unparsable", "missing", "unknown", "duplicate", "nameless"), 0
    )
    answers: dict[str, Answer] = {}
    # each distinct answer is held once: there are 10^4 scores, and few reasons
    told: dict[Answer, Answer] = {}
    for line in _answer_lines(path):
        name, found = read_line(line)
        if name is None:
            counts["nameless"] += 1
            continue
        if name in answers:
            counts["duplicate"] += 1
            if isinstance(found, BadAnswer):
                continue
        answer = (
            str(found)
            if isinstance(found, BadAnswer)
            else tuple(found[criterion] for criterion in CRITERIA)
        )
        answers[name] = told.setdefault(answer, answer)
    return answers, counts


def _answer_lines(path: str) -> Iterator[bytes]:
    """The lines of a JSONL file, or of all those in a folder, in name order; UserError where there
    is none.
    """
    folder, name = split_url(open_store(path).uri)
    if not folder.is_file(name):
        folder, names = (
            open_store(path),
            [file for file in open_store(path).list("") if file.endswith(".jsonl")],
        )
    else:
        names = [name]
    if not names:
        raise UserError(f"answers: expected a JSONL file or a folder of them, got {path}")
    for file in names:
        yield from (line for line in folder.read(file).splitlines() if line.strip())
