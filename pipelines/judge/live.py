"""`counterfactory judge RUN --live`: asks a server about every row, shard by shard."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from statistics import mean, median, median_low, pstdev
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.judge.client import Client, address
from actors.judge.gate import Budget, SpendCap
from actors.judge.prompts import body_of, read_wording
from actors.judge.worker import (
    COST,
    HELD,
    OTHER,
    PAIR,
    SAME,
    SPENT,
    SWAPPED,
    Judge,
    JudgeJob,
    controls,
    key_of,
)
from configs.schema import RunConfig, fingerprint
from configs.strict import UserError
from counterfactory.metrics.agreement import krippendorff_alpha
from counterfactory.metrics.judge import CRITERIA
from pipelines.engine.committed import (
    JUDGED,
    class_name,
    class_names,
    generated,
    load_plan,
    made_shards,
)
from pipelines.engine.runner import run_stage
from pipelines.judge.job import ANSWERS, NO_ANSWER, SCORES, last_id, write_retry
from storage.commit import committed, iterate_commits, read_commits, read_committed, stages, todo
from storage.records import Commit
from storage.seal import sealed
from storage.secrets import holds_secret
from storage.tables import parquet_writer
from storage.uri import Store

VERSION = 1  # of the requests and the stored answers: a change here judges every run again
# the settings of judge that an answer depends on
OF_ANSWERS = {
    *("model", "max_tokens", "temperature", "detail", "reasoning", "effort", "dialect"),
    *("repeats", "controls"),
}
MODELS = "models"  # in the metadata of scores.parquet: the names that the server gave
LEAST_CONTROLS = 4  # of each kind that a small run should have
MOST_VALIDITY = 3  # median for identical pairs, above which the judge cannot be used
Scores = dict[str, list[int]]


def judge_live(
    store: Store, config: RunConfig, *, retry: bool = False, server: str | None = None
) -> dict[str, Any]:
    """Ask the server of judge.url about the rows that have no answer yet; return the table.

    Writes judge/scores.parquet, judge/retry-*.jsonl (the rows without scores) and judge/live.json,
    also where the spend cap ends the stage. retry: once every shard is committed, ask again about
    rows without scores, in a further stage. server: the name of a server whose address changes.
    UserError where a setting is missing, or where the cap, the key or the server ends the stage;
    NoAnswer where the server cannot be reached.
    """
    expect_server(config)
    key_of(config.judge.key)
    chain = stages_of(store, base_stage(store, config, server))
    if retry and not todo(load_plan(store), store, chain[-1]) and has_failures(store, chain[-1]):
        chain.append(f"{chain[0]}-r{len(chain)}")
    stage = chain[-1]
    made = set(made_shards(store))
    left = [shard for shard in todo(load_plan(store), store, stage) if shard.index in made]
    engine = config.engine.model_copy(update={"kind": "local"})
    settings = config.model_copy(update={"engine": engine}), job_of(store, config, chain)
    try:
        run_stage(
            store, config=settings[0], stage=stage, actor=Judge, shards=left, settings=settings
        )
    except SpendCap:
        sum_up(store, config, chain)
        raise
    return sum_up(store, config, chain)


def expect_server(config: RunConfig) -> None:
    """Raise UserError where judge.url is no server's address, or holds a secret."""
    url = config.judge.url
    if url is None or not re.match(r"https?://[^/]", url):
        got = "none" if url is None else repr(url)
        raise UserError(f"judge.url: expected a server's address, http(s)://HOST/v1, got {got}")
    if holds_secret(url):
        raise UserError(
            "judge.url: expected an address without a secret, got one with it: put the key into an"
            " environment variable and its name into judge.key"
        )
    proxy = config.judge.proxy
    if proxy is not None and (not re.match(r"https?://[^/]", proxy) or holds_secret(proxy)):
        got = "one with a secret" if holds_secret(proxy) else repr(proxy)
        raise UserError(f"judge.proxy: expected a proxy's address, http(s)://HOST:PORT, got {got}")


def base_stage(store: Store, config: RunConfig, server: str | None) -> str:
    """Return the name of the stage that these settings make."""
    # a setting that adds requests only where it is used, so that stages of before keep their name
    added = {"swapped"} if config.judge.swapped else set[str]()
    parts = {
        "version": VERSION,
        "settings": config.judge.model_dump(include=OF_ANSWERS | added),
        "wording": read_wording(config.judge.wording),
        "server": server or address(config.judge.url or ""),
        "classes": class_names(store, config),
        "last": last_id(store, config.judge.max_rows),
        "seed": config.seed,
    }
    return f"judge-{fingerprint(parts)}"


def stages_of(store: Store, base: str) -> list[str]:
    """Return a stage and those that asked again about its rows without scores, the newest last."""
    count = sum(re.fullmatch(rf"{base}-r\d+", name) is not None for name in stages(store))
    return [base, *(f"{base}-r{number + 1}" for number in range(count))]


def has_failures(store: Store, stage: str) -> bool:
    """Return whether a stage committed rows without scores."""
    return any(commit.extra["failed"] for commit in iterate_commits(store, stage))


def job_of(store: Store, config: RunConfig, chain: list[str]) -> JudgeJob:
    """Return the input of the stage's worker."""
    most = [c.extra["most_in"] for stage in chain for c in iterate_commits(store, stage)]
    return JudgeJob(
        wording=read_wording(config.judge.wording),
        classes=tuple(class_names(store, config)),
        last_id=last_id(store, config.judge.max_rows),
        controls=share_of_controls(store, config),
        spent=sum(spent(store, stage) for stage in chain),
        most_in=max(most, default=0),
        redo=chain[-2] if len(chain) > 1 else None,
    )


def share_of_controls(store: Store, config: RunConfig) -> float:
    """Return the share of rows with a control of each kind; larger in a small run."""
    share = config.judge.controls
    return max(share, min(1.0, LEAST_CONTROLS / max(load_plan(store).rows, 1))) if share else 0.0


def spent(store: Store, stage: str) -> float:
    """Return what a stage has cost: its commits, and starts that ended otherwise.

    A start whose end was never noted (a kill) counts with what it might have cost.
    """
    commits = list(iterate_commits(store, stage))
    total = float(sum(commit.extra["cost"] for commit in commits))
    done = {commit.extra["start"] for commit in commits}
    notes: dict[str, dict[str, str]] = {}
    for path in store.list(f"{SPENT}/{stage}"):
        start, _, how = path.rpartition("/")[2].rpartition("-")
        if how in (HELD, COST):
            notes.setdefault(start, {})[how] = path
    for start, ends in notes.items():
        if start not in done:
            total += float(json.loads(store.read(ends.get(COST) or ends[HELD])))
    return total


def dry_run(store: Store, config: RunConfig, server: str | None = None) -> str:
    """Return one line: requests x tokens x price, with nothing sent; server: as in `judge_live`."""
    expect_server(config)
    base = base_stage(store, config, server)
    stage = stages_of(store, base)[-1]
    job, done = job_of(store, config, [stage]), set(committed(store, stage))
    settings, client = config.judge, None
    rows = requests = most_in = most_out = 0
    budget = Budget(settings.spend, job.spent)
    for commit in generated(store):
        if commit.shard.index in done:
            continue
        columns = ["id", "cf_id"] if client else None
        records = read_committed(store, commit, columns).to_pylist()
        for place, record in enumerate(records):
            if job.last_id is not None and record["cf_id"] > job.last_id:
                continue
            rows += 1
            requests += settings.repeats * (
                1 + len(controls(records, place, job.controls, settings.swapped))
            )
            if client is None:
                pictures = record["original"]["bytes"], record["counterfactual"]["bytes"]
                names = [class_name(list(job.classes), record[n]) for n in ("source", "target")]
                client = Client(settings, None, budget, job.most_in)
                most_in, most_out = client.estimate(
                    body_of(pictures, job.wording, names[0], names[1], settings)
                )
    price = requests * budget.cost(most_in, most_out)
    cap = settings.spend.cap
    return (
        f"judge --live --dry-run: {rows:,} rows x {settings.repeats} repeats, with controls"
        f" {requests:,} requests to {settings.model}; each about {most_in:,} tokens in and at most"
        f" {most_out:,} out; at most {price:.4g} at {settings.spend.per_million_in:g} in and"
        f" {settings.spend.per_million_out:g} out per million tokens"
        + (f"; {job.spent:.4g} spent" if job.spent else "")
        + (f"; the cap is {cap:g}" if cap is not None else "")
    )


@dataclass
class _Sums:
    """What the table shows, over the committed shards.

    by_kind: scores by kind of pair and criterion; ratings: (rows, repeats) by criterion, where a
    row has several; swapped: a row's mean score, and that with its pictures in the other order.
    """

    rows: int = 0
    parsed: int = 0
    by_kind: dict[str, Scores] = field(default_factory=dict)
    ratings: dict[str, list[list[float]]] = field(default_factory=dict)
    swapped: list[tuple[float, float]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    failed: set[str] = field(default_factory=set)


def sum_up(store: Store, config: RunConfig, chain: list[str]) -> dict[str, Any]:
    """Write scores.parquet, retry files and live.json from the newest committed answers.

    A row's score is the lower median of its repeats that have scores. Writes no scores where no
    row has any.
    """
    commits: dict[int, Commit] = {}
    for stage in chain:
        commits |= read_commits(store, stage)
    last, sums, out = last_id(store, config.judge.max_rows), _Sums(), io.BytesIO()
    with parquet_writer(out, ANSWERS) as writer:
        for made in generated(store):
            commit = commits.get(made.shard.index)
            names = ["cf_id", "id", "correct", "flipped"]
            table = read_committed(store, made, names) if commit is None else None
            if table is None and commit is not None:
                table = read_committed(store, commit, [*names, "answers"])
            if table is None:
                continue
            if last is not None:
                table = table.filter(pc.less_equal(table["cf_id"], last))
            rows = list(_rows(table.to_pylist(), sums, config.judge.repeats))
            writer.write_table(pa.Table.from_pylist(rows, schema=ANSWERS))
        writer.add_key_value_metadata({MODELS: json.dumps(list(sums.models))})
    if sums.parsed:
        store.replace(SCORES, out.getvalue())
    extras = [c.extra for stage in chain for c in iterate_commits(store, stage)]
    table = {
        "stage": chain[-1],
        "stages": chain,
        "shards": {"done": len(commits), "planned": len(load_plan(store).shards)},
        "rows": sums.rows,
        "parsed": sums.parsed,
        "failed": len(sums.failed),
        "reasons": dict(sums.reasons.most_common()),
        "models": dict(sums.models.most_common()),
        **{
            name: sum(extra[name] for extra in extras)
            for name in ("tokens_in", "tokens_out", "tries")
        },
        "spent": sum(spent(store, stage) for stage in chain),
        "cap": config.judge.spend.cap,
        "controls": {kind: _controls(sums.by_kind.get(kind, {})) for kind in (PAIR, SAME, OTHER)},
        "swapped": _swapped(sums.swapped),
        "agreement": [_agreement(name, sums.ratings.get(name, [])) for name in CRITERIA],
        "retry": write_retry(store, config, sums.failed),
    }
    store.replace(JUDGED, sealed(table))
    return table


def _rows(records: list[dict[str, Any]], sums: _Sums, repeats: int) -> Iterator[dict[str, Any]]:
    """Yield rows of ANSWERS, and add them to the sums."""
    for record in records:
        answers = record.pop("answers", None) or []
        for each in answers:
            if each["model"]:
                sums.models[each["model"]] += 1
            if each["error"] is None:
                for name in CRITERIA:
                    held = sums.by_kind.setdefault(each["kind"], {})
                    held.setdefault(name, []).append(each[name])
        pairs = [each for each in answers if each["kind"] == PAIR]
        found = [each for each in pairs if each["error"] is None]
        sums.rows += 1
        if not found:
            reason = pairs[0]["error"] if pairs else NO_ANSWER
            sums.reasons[reason] += 1
            sums.failed.add(record["cf_id"])
            yield {**record, "error": reason}
            continue
        sums.parsed += 1
        scores = {name: median_low(each[name] for each in found) for name in CRITERIA}
        if repeats > 1:
            for name in CRITERIA:
                said = [float(each[name]) for each in found]
                padded = said + [np.nan] * (repeats - len(said))
                sums.ratings.setdefault(name, []).append(padded)
        whole = sum(scores.values()) / len(CRITERIA)
        other = [e for e in answers if e["kind"] == SWAPPED and e["error"] is None]
        if other:
            means = [mean(each[name] for name in CRITERIA) for each in other]
            sums.swapped.append((whole, mean(means)))
        yield {**record, **scores, "judge": whole, "error": None}


def _controls(scores: Mapping[str, list[int]]) -> dict[str, Any]:
    """Return n and the medians of a kind of pair."""
    n = len(scores.get(CRITERIA[0], []))
    return {"n": n, **{name: median(scores[name]) if n else None for name in CRITERIA}}


def _swapped(pairs: list[tuple[float, float]]) -> dict[str, Any]:
    """Return n, how much the mean score rises where the pictures' order is exchanged, and how much
    it differs.
    """
    changes = [after - before for before, after in pairs]
    return {
        "n": len(pairs),
        "rise": mean(changes) if pairs else None,
        "difference": mean(map(abs, changes)) if pairs else None,
    }


def _agreement(name: str, ratings: list[list[float]]) -> dict[str, Any]:
    """Return alpha of a criterion's repeats, with the spread of its scores beside it.

    spread: standard deviation over all answers; within: mean standard deviation of a row's repeats;
    unanimous: share of rows whose repeats are equal. None where no row has two answers.
    """
    several = [said for row in ratings if len(said := [v for v in row if v == v]) > 1]
    return {
        "criterion": name,
        "n": len(several),
        "alpha": krippendorff_alpha(ratings) if several else None,
        "spread": pstdev(value for said in several for value in said) if several else None,
        "within": mean(pstdev(said) for said in several) if several else None,
        "unanimous": mean(len(set(said)) == 1 for said in several) if several else None,
    }


def describe_live(table: Mapping[str, Any]) -> str:
    """Return the result of `judge_live` as text."""
    shards = table["shards"]
    lines = [
        f"judge: {table['parsed']} of {table['rows']} rows have scores,"
        f" {shards['done']} of {shards['planned']} shards; by"
        f" {', '.join(table['models']) or 'an unnamed model'}",
        f"  {table['tokens_in']:,} tokens in, {table['tokens_out']:,} out, {table['tries']:,}"
        f" requests; {table['spent']:.4g} spent"
        + (f" of {table['cap']:g}" if table["cap"] is not None else ""),
    ]
    lines += [f"  {count} x {reason}" for reason, count in list(table["reasons"].items())[:10]]
    same, other, pair = (table["controls"][kind] for kind in (SAME, OTHER, PAIR))
    if same["n"]:
        good = same["validity"] <= MOST_VALIDITY
        told = "" if good else ": this judge does not see whether anything changed"
        lines.append(
            f"  control, identical pairs: validity {same['validity']:g} in the median of"
            f" {same['n']}, expected at most {MOST_VALIDITY}{told}"
        )
    if other["n"] and pair["n"]:
        told = (
            "" if other["proximity"] < pair["proximity"] else ": this judge does not see distance"
        )
        lines.append(
            f"  control, another row's answer: proximity {other['proximity']:g} in the median of"
            f" {other['n']}, {pair['proximity']:g} for the row's own{told}"
        )
    order = table["swapped"]
    if order["n"]:
        lines.append(
            f"  pictures in the other order: the mean score of a row differs by"
            f" {order['difference']:.2f}, by {order['rise']:+.2f} on average, of {order['n']} rows"
        )
    for found in table["agreement"]:
        if found["n"]:
            alpha = "none" if found["alpha"] is None else f"{found['alpha']:.2f}"
            lines.append(
                f"  repeats, {found['criterion']}: Krippendorff's alpha {alpha}, spread"
                f" {found['spread']:.2f} (within a row {found['within']:.2f}),"
                f" {100 * found['unanimous']:.0f} % of {found['n']} rows unanimous"
            )
    if table["retry"]:
        lines.append(
            f"  the {table['retry']} rows without scores are in judge/retry-*.jsonl;"
            " `judge --live --retry` asks again"
        )
    return "\n".join(lines)
