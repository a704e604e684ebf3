"""Checks of a run's invariants, from its stored files alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage.check import (
    NAMED,
    TWICE,
    answers_each,
    commit_lines,
    each_lines,
    name_doubled,
    open_lines,
    plan_lines,
)
from storage.commit import (
    GENERATE,
    all_revisions,
    commit_path,
    committed_bytes,
    parse_commit,
    read_commit,
    revisions,
    stages,
)
from storage.names import COLUMNS, Hashes, doubled, hashes, keys, unpack
from storage.products import product_lines
from storage.records import Commit, Plan
from storage.run import MANIFEST, PLAN, read_manifest, read_plan
from storage.schema import FORMAT, counterfactual_id
from storage.seal import has_seal, read_sealed
from storage.tables import footer_digest, open_parquet
from storage.uri import Store
from storage.verdicts import verdict_lines

DAMAGE = (
    ValueError,
    FileNotFoundError,
)  # other OSErrors do not concern the run: they are raised
CONFIG, REPORT = "config.yaml", "report.html"
TABLES = (
    *("score/table.json", "attribution/table.json", "interventions/table.json"),
    *("interventions/themes.json", "judge/live.json"),
)
JUDGED = ("target", "flipped")  # columns that are read in addition to those that name rows


@dataclass
class Given:
    """The input of each shard from the plan, and then from `generate`: rows and hashes of
    their names.
    """

    rows: dict[int, int]
    names: dict[int, Hashes] = field(default_factory=dict)


def verify(store: Store) -> list[str]:
    """Return a line for each broken invariant; [] if all hold. FileNotFoundError where there is no
    run.

    Of every stage: each shard of the plan has a commit and no other shard has one; rows_in =
    rows_out + quarantined; rows_in is the plan's count, or after `generate` the count that
    `generate` committed; the data file has the committed sha256, size, rows, ids and flips; no
    cf_id is there twice, and no id twice with the same k; each cf_id is computed from its row and
    the plan's method; each row has its answers 0 to k-1, with the same k in all shards; a later
    stage has the rows that `generate` has; a revision has every row of the revision before it. Of
    the run: plan, commits, reviewers' verdicts and manifest have the digests in their seals, and
    every product has the digest in the manifest. Holds one shard and 24 bytes a row in memory.
    """
    store.expect_inside()
    lines = list(_manifest_lines(store))
    try:
        plan = read_plan(store)
    except DAMAGE as error:
        if not lines and not store.exists(MANIFEST):
            raise
        return [_one_line(error), *lines]
    given = Given({shard.index: shard.rows for shard in plan.shards})
    lines += plan_lines(plan)
    for stage in dict.fromkeys([GENERATE, *stages(store), *_told_stages(store)]):
        found, got = _stage_lines(store, plan, stage, given)
        lines += found
        given = got if stage == GENERATE else given
    return [*lines, *verdict_lines(store)]


def unkept(store: Store) -> str:
    """Return a line on what cannot be checked where the run was closed before digests were stored.

    Returns "" where all can be checked.
    """
    try:
        old = "products" not in read_manifest(store)
    except DAMAGE:
        return ""
    told = "the manifest is from before digests were kept: tables, sets and report are not checked"
    return f"{store.uri}: {told}; the next command adds their digests" if old else ""


def _manifest_lines(store: Store) -> Iterator[str]:
    """Yield what is broken in the manifest: the file itself, its plan, and the products."""
    try:
        manifest = read_manifest(store)
    except FileNotFoundError:
        summed_up = any(store.is_file(path) for path in (*TABLES, REPORT))
        if summed_up and store.is_file(CONFIG):
            yield f"{MANIFEST}: expected one, got none: the run's last command did not end"
        return
    except ValueError as error:
        yield _one_line(error)
        return
    if "products" not in manifest:
        return
    if not has_seal(store.read(MANIFEST)):
        yield f"{MANIFEST}: expected its seal, got none"
    yield from product_lines(store, manifest["products"])
    with suppress(*DAMAGE):  # another check reports a damaged plan
        plan = read_plan(store)
        for name, ours in (("fingerprint", plan.fingerprint), ("models", plan.models)):
            if manifest.get(name) != ours:
                yield f"{MANIFEST}: expected the plan's {name}, got another"


def _told_stages(store: Store) -> Iterator[str]:
    """Yield the stages that the run's tables were made from, even where their files are gone."""
    for path in TABLES:
        with suppress(*DAMAGE, KeyError):  # a damaged table is reported as a product
            yield str(read_sealed(store, path)["stage"])


def _stage_lines(store: Store, plan: Plan, stage: str, given: Given) -> tuple[list[str], Given]:
    """Return a stage's broken invariants and its output for later stages; given: each
    shard's input.
    """
    planned = {shard.index: shard for shard in plan.shards}
    sealed = has_seal(store.read(PLAN))  # a run with seals has a seal in every commit
    done = revisions(store, stage)
    lines = open_lines(stage, planned, done)
    lines += _earlier_lines(store, stage, done)
    got, others = Given({}), []
    ids: list[Hashes] = []
    answers: list[Hashes] = []
    each: dict[int, int] = {}
    for index, revision in done.items():
        where = f"{stage}: shard {index}"
        try:
            path = commit_path(stage, index, revision)
            data = store.read(path)
            commit = parse_commit(store, path, data)
            if sealed and not has_seal(data):
                lines.append(f"{where}: {path}: expected its seal, got none")
            lines += [
                f"{where}: {line}"
                for line in commit_lines(commit, planned.get(index), given.rows.get(index))
            ]
            got.rows[index] = commit.rows
            each |= answers_each(commit)
            table = _table(store, commit)
        except DAMAGE as error:
            lines.append(f"{where}: {_one_line(error)}")
            continue
        lines += [f"{where}: {line}" for line in _table_lines(commit, table, stage)]
        lines += [f"{where}: {line}" for line in _name_lines(plan, table)]
        pairs, names = keys(table)
        ids.append(hashes(pairs))
        answers.append(hashes(names))
        got.names[index] = np.sort(ids[-1])
        if index in given.names and not np.array_equal(given.names[index], got.names[index]):
            others.append(f"{where}: expected the rows of {GENERATE}, got others")
    lines += each_lines(stage, each)
    twice_lines = []
    for what, parts, part in ((TWICE, ids, 0), ("expected each cf_id once", answers, 1)):
        if twice := doubled(parts):
            twice_lines += [
                f"{stage}: {line}"
                for line in name_doubled(_tables(store, stage, done), twice, what, part)
            ]
    return [*lines, *(twice_lines or others)], got


def _table_lines(commit: Commit, table: pa.Table, stage: str) -> Iterator[str]:
    if table.num_rows != commit.rows:
        yield f"expected {commit.rows} rows in its file, got {table.num_rows}"
    elif commit.ids is not None and not _are(commit.ids, hashes(keys(table)[0])):
        yield "expected the ids that its commit holds, got others"
    flips = commit.extra.get("flipped")
    if flips is not None and "flipped" in table.column_names:
        found = pc.sum(table["flipped"]).as_py() or 0
        if found != flips:
            yield f"expected {flips} flipped in its file, got {found}"
    ids = set(table["id"].to_pylist()) if "id" in table.column_names else set()
    answered = len(ids) if stage == GENERATE and ids else table.num_rows
    if answered != commit.rows_out:
        yield f"expected {commit.rows_out} rows answered in its file, got {answered}"
    elif {"id", "k"} <= set(table.column_names):
        yield from _answer_lines(table)


def _are(packed: str, names: Hashes) -> bool:
    """Return whether these are the hashes in a commit; ValueError where it holds none."""
    return np.array_equal(np.sort(unpack(packed)), np.sort(names))


def _name_lines(plan: Plan, table: pa.Table) -> Iterator[str]:
    """Yield counterfactuals whose name is not that of their row, target, k and the plan's
    method.
    """
    method = plan.fingerprint.get("method")
    ours = plan.fingerprint.get("format") == str(FORMAT)
    if not ours or method is None or not {*COLUMNS, "target"} <= set(table.column_names):
        return
    cells = (table[name].to_pylist() for name in ("cf_id", "id", "target", "k"))
    wrong = [
        name
        for name, row, target, k in zip(*cells, strict=True)
        if name != counterfactual_id(row, method, target, k)
    ]
    if wrong:
        yield (
            f"expected each cf_id made of its row and the plan's method, got {len(wrong)} others,"
            f" such as {wrong[0]}"
        )


def _answer_lines(table: pa.Table) -> Iterator[str]:
    """Yield rows that lack an answer that the other rows of the file have.

    Another check reports duplicate answers.
    """
    found: dict[str, set[int]] = {}
    for name, k in zip(table["id"].to_pylist(), table["k"].to_pylist(), strict=True):
        found.setdefault(name, set()).add(k)
    most = Counter(len(ks) for ks in found.values()).most_common(1)
    wanted = set(range(most[0][0])) if most else set()
    lines = [
        f"expected answers 0 to {len(wanted) - 1} to row {name}, got"
        f" {', '.join(map(str, sorted(ks))) or 'none'}"
        for name, ks in found.items()
        if ks != wanted
    ]
    yield from lines[:NAMED]
    if len(lines) > NAMED:
        yield f"and {len(lines) - NAMED} more rows without all their answers"


def _table(store: Store, commit: Commit) -> pa.Table:
    """Read the naming columns of a committed file, after a check of its bytes."""
    data = committed_bytes(store, commit)
    if commit.footer not in (None, footer_digest(data)):
        raise ValueError(f"{commit.file}: expected the committed footer, got another")
    with open_parquet(pa.BufferReader(data)) as file:
        there = file.schema_arrow.names
        columns = [name for name in (*COLUMNS, *JUDGED) if name in there]
        return file.read(columns=columns or None, use_threads=False)


def _tables(store: Store, stage: str, done: Mapping[int, int]) -> Iterator[tuple[int, pa.Table]]:
    """Yield the naming columns of each shard; skips damaged ones, which are already reported."""
    for index, revision in done.items():
        with suppress(*DAMAGE):
            yield index, _table(store, read_commit(store, commit_path(stage, index, revision)))


def _earlier_lines(store: Store, stage: str, done: Mapping[int, int]) -> list[str]:
    """Yield what is wrong in superseded revisions.

    Also yields rows that a superseded revision answered and that the current one does not have.
    """
    lines = []
    for index, numbers in all_revisions(store, stage).items():
        counts = done.get(index, numbers[-1])
        for earlier in range(counts) if stage == GENERATE else set(numbers) - {counts}:
            where = f"{stage}: shard {index}: revision {counts}"
            try:
                before = read_commit(store, commit_path(stage, index, earlier))
                committed_bytes(store, before)
                if stage != GENERATE:
                    continue
                now = read_commit(store, commit_path(stage, index, counts))
                missing = len(np.setdiff1d(unpack(before.ids or ""), unpack(now.ids or "")))
            except DAMAGE as error:
                lines.append(f"{where}: {_one_line(error)}")
                continue
            if missing:
                lines.append(
                    f"{where}: expected every row of revision {earlier}, got {missing} fewer"
                )
    return lines


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
