"""Writes batch files of prompts for a vision-language judge and reads scores from its answers."""

from __future__ import annotations

import heapq
import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from actors.judge.answer import BadAnswer
from actors.judge.prompts import read_wording, request
from configs.schema import RunConfig
from configs.strict import UserError
from counterfactory.metrics.judge import CRITERIA
from pipelines.engine.committed import class_name, class_names, generated, made_shards
from pipelines.engine.terminal import printable
from pipelines.judge.answers import read_answers
from storage.commit import read_committed
from storage.records import TEXT_OR_NONE, checked
from storage.seal import read_sealed, sealed
from storage.tables import parquet_writer
from storage.uri import Store

PROMPTS, SCORES = "judge/prompts.json", "judge/scores.parquet"
FILE_BYTES, FILE_LINES, LINE_BYTES = (
    190_000_000,
    50_000,
    40_000_000,
)  # below the limits of servers that accept batch files
NO_ANSWER = "no answer"
COUNTS = ("parsed", "unparsable", "missing", "unknown", "duplicate", "nameless")
SHOWN = 120  # most characters of an example
Answer = tuple[int, ...] | str  # the scores in the order of CRITERIA, or the reason for none
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
    """Write judge/prompts-00000.jsonl and further files, in the order of shards and rows.

    Returns {"prompts", "files", ...}. With judge.max_rows, the rows are those with the smallest
    cf_id: a fair sample, the same in every run of the stage, and part of every larger sample. The
    same run results in the same bytes. Empties further files of an earlier, longer set.
    """
    made_shards(store)
    last = last_id(store, config.judge.max_rows)
    rows = _rows(store, None if last is None else lambda names: pc.less_equal(names, last))
    files, prompts, too_large = write_requests(store, config, rows, "prompts")
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


def write_retry(store: Store, config: RunConfig, failed: set[str]) -> int:
    """Write judge/retry-00000.jsonl and further files: the requests of the rows with these cf_id.

    Returns their number. Empties files of an earlier, longer set.
    """
    wanted = pa.array(sorted(failed), pa.string())
    rows = _rows(store, lambda names: pc.is_in(names, wanted)) if failed else iter(())
    return write_requests(store, config, rows, "retry")[1]


def write_requests(
    store: Store, config: RunConfig, rows: Iterator[dict[str, Any]], stem: str
) -> tuple[list[str], int, int]:
    """Write the requests of rows into judge/STEM-00000.jsonl and further files.

    Returns the files, the number of requests, and of those that are too large for any server.
    """
    wording, names = read_wording(config.judge.wording), class_names(store, config)
    files: list[str] = []
    lines, count = io.BytesIO(), 0  # its getvalue() copies nothing
    written = too_large = 0

    def close() -> None:
        nonlocal lines, count
        if count:
            files.append(f"judge/{stem}-{len(files):05d}.jsonl")
            store.replace(files[-1], lines.getvalue())
            lines, count = io.BytesIO(), 0

    for row in rows:
        source, target = class_name(names, row["source"]), class_name(names, row["target"])
        line = request(row, wording, source, target, config.judge)
        if len(line) > LINE_BYTES:
            too_large += 1
            continue
        if count == FILE_LINES or lines.tell() + len(line) > FILE_BYTES:
            close()
        lines.write(line)
        count += 1
        written += 1
    close()
    for path in store.list("judge"):
        if path.startswith(f"judge/{stem}-") and path not in files:
            store.replace(path, b"")
    return files, written, too_large


def last_id(store: Store, max_rows: int | None) -> str | None:
    """Return the largest cf_id that has a prompt; None where all rows have one, "" where no row
    has.
    """
    if max_rows is None:
        return None
    if max_rows == 0:
        return ""
    columns = (read_committed(store, commit, ["cf_id"])["cf_id"] for commit in generated(store))
    smallest = heapq.nsmallest(
        max_rows, (name for column in columns for name in column.to_pylist())
    )
    return smallest[-1] if smallest else ""


def _rows(store: Store, wanted: Callable[[Any], Any] | None) -> Iterator[dict[str, Any]]:
    """Return the rows to write requests of, with one shard in memory at a time.

    wanted: which of a column of cf_id, as a mask; None: all. Does not read the images of shards
    without such rows.
    """
    columns = ["cf_id", "source", "target", "original", "counterfactual"]
    for commit in generated(store):
        if wanted is not None:
            names = read_committed(store, commit, ["cf_id"])["cf_id"]
            if not pc.any(wanted(names)).as_py():
                continue
        # reads the whole file, since these columns are almost all of it
        table = read_committed(store, commit).select(columns)
        chosen = table if wanted is None else table.filter(wanted(table["cf_id"]))
        for batch in chosen.to_batches(max_chunksize=64):
            yield from batch.to_pylist()


def parse_answers(store: Store, config: RunConfig, answers_path: str) -> dict[str, Any]:
    """Write judge/scores.parquet from answer files, matched by custom_id.

    Returns counts, the `reasons` of answers without scores, the reasons of `lines` that match no
    prompt, and an example of each reason. answers_path: a file or a folder of files, as in
    `read_answers`. The rows are those with a prompt and all other rows of the run that have an
    answer. Where a prompt has several answers, the last one that parses counts, so a retry's file
    can be added. The next `score` adds the judge's figures to its table. UserError where no answer
    has scores; then no file is replaced.
    """
    answers, counts, lines, examples = _collect(answers_path)
    asked = len(answers)
    if store.exists(PROMPTS):
        last = checked(read_sealed(store, PROMPTS), store.url(PROMPTS), {"last_id": TEXT_OR_NONE})[
            "last_id"
        ]
    else:
        last = last_id(store, config.judge.max_rows)
    out, reasons = io.BytesIO(), Counter[str]()
    scored, failed = _scored(store), set[str]()
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
                    scored.discard(row["cf_id"])
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
                failed.add(row["cf_id"])
            writer.write_table(pa.Table.from_pylist(rows, schema=ANSWERS))
    counts["unknown"] = len(answers)
    told = {
        **counts,
        "lost": len(scored),
        "reasons": dict(reasons.most_common()),
        "lines": dict(lines.most_common()),
        "examples": examples,
    }
    if not counts["parsed"]:
        strangers = f", {len(answers)} of {asked} of another run's rows" if answers else ""
        raise UserError(
            f"answers: expected four scores for rows of {store.uri} in {answers_path}, got none"
            f"{strangers}; nothing was replaced{''.join(f'; {why}' for why in explain(told, 3))}"
        )
    store.replace(SCORES, out.getvalue())
    if store.exists(PROMPTS):
        told["retry"] = write_retry(store, config, failed)
    return told


def explain(told: Mapping[str, Any], most: int = 10) -> list[str]:
    """Return lines on why answers and lines of `parse_answers` have no scores.

    Each line has a reason, its count and one example. The answers' reasons come first, the most
    frequent first.
    """
    return [
        f"{count} x {printable(reason)}, such as {told['examples'][reason]}"
        for reason, count in [*told["reasons"].items(), *told["lines"].items()][:most]
    ]


def describe(told: Mapping[str, Any]) -> str:
    """Return the result of `parse_answers` as text."""
    counts = ", ".join(f"{told[name]} {name}" for name in COUNTS)
    lines = [f"judge: {counts}", *(f"  {why}" for why in explain(told))]
    if told["lost"]:
        lines.append(
            f"  {told['lost']} rows had scores before and have none now: give all answers at once,"
            " as a folder of files"
        )
    if told.get("retry"):
        lines.append(f"  the {told['retry']} rows without scores are in judge/retry-*.jsonl")
    return "\n".join(lines)


def _scored(store: Store) -> set[str]:
    """Return the cf_id of each row that has scores from an earlier call."""
    if not store.exists(SCORES):
        return set()
    try:
        with store.parquet(SCORES) as file:
            found = file.read(["cf_id", "judge"])
    except pa.ArrowInvalid:  # damaged: it is about to be replaced
        return set()
    return set(found.filter(found["judge"].is_valid())["cf_id"].to_pylist())


def _collect(
    path: str,
) -> tuple[dict[str, Answer], dict[str, int], Counter[str], dict[str, str]]:
    """Return the content of answer files, in four parts.

    Scores by custom_id, or the reason why there are none; counts; the reasons of lines that match
    no prompt; an example of each reason.
    """
    counts, lines = dict.fromkeys(COUNTS, 0), Counter[str]()
    answers: dict[str, Answer] = {}
    examples: dict[str, str] = {}
    # each distinct answer is stored once: there are 10^4 possible scores and few reasons
    told: dict[Answer, Answer] = {}
    for number, (name, found) in enumerate(read_answers(path), start=1):
        if isinstance(found, BadAnswer):
            where = f"answer {number}" if name is None else name[:80]
            said = found.said if len(found.said) <= SHOWN else f"{found.said[:SHOWN]}..."
            example = printable(f"{where}: {said}" if said else where)
            examples.setdefault(str(found), example)
        if name is None:
            counts["nameless"] += 1
            lines[str(found)] += 1
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
    return answers, counts, lines, examples
