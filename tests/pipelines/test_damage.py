"""A finished run in which something rots: no stage reads it in silence, verify names every file,
and a command says so in a line.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from configs.schema import RunConfig
from configs.strict import UserError
from pipelines.attribution.job import attribute
from pipelines.augment.job import augment
from pipelines.cli import main
from pipelines.judge.job import build_prompts, parse_answers
from pipelines.report.job import report
from pipelines.report.show import show
from pipelines.run import run
from pipelines.score.job import score
from storage import commit as committing
from storage.commit import iterate_commits
from storage.errors import BadRecord
from storage.run import add_products, read_manifest, write_manifest
from storage.seal import read_sealed, sealed
from storage.uri import Store, open_store
from storage.verify import unkept, verify
from tests.pipelines.attribution.test_job import attributed as attributed  # the fixture
from tests.pipelines.conftest import Run

FLIPS = 20  # bits per stage and size of file; all of them at a position of its own


def finish(made: Run, folder: Path) -> Run:
    """All later stages, and the judge's answers, as the commands do them; the run with the models
    that score.
    """
    store, models = made.store, dict(made.config.models)
    for name in ("encoder", "attribution"):
        del models[name]
    config = made.config.model_copy(update={"models": models})
    store.replace("config.yaml", b"name: run\n")
    run(config, stages=("score", "judge", "augment"), store=store)
    run(made.config, stages=("attribution", "report"), store=store)
    names = [line["custom_id"] for line in prompts(store)]
    scores = dict.fromkeys(("validity", "sparsity", "proximity", "realism"), 7)
    lines = [
        {"custom_id": n, "response": {"choices": [{"message": {"content": json.dumps(scores)}}]}}
        for n in names
    ]
    (folder / "answers.jsonl").write_text("\n".join(map(json.dumps, lines)))
    parse_answers(store, config, str(folder / "answers.jsonl"))
    add_products(store)
    assert verify(store) == []
    return Run(store, config, made.rows, made.pictures)


def prompts(store: Store) -> Iterator[dict[str, Any]]:
    for path in store.list("judge"):
        if path.endswith(".jsonl"):
            yield from map(json.loads, store.read(path).splitlines())


@pytest.fixture
def finished(attributed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(
        f"{__name__}.attribute_it", lambda store, config: attribute(store, attributed.config)
    )
    return finish(attributed, tmp_path)


def attribute_it(store: Store, config: RunConfig) -> Any:
    """The attribution stage with the fixture's models."""
    raise AssertionError("set by the fixture")


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def changed_values(data: bytes) -> Iterator[bytes]:
    """A JSON file with one value changed, or one key gone, at a time."""
    value = json.loads(data)

    def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, child in items:
            yield (*path, key)
            if isinstance(child, dict | list):
                yield from places(child, (*path, key))

    found = list(places(value))
    for place in random.Random(0).sample(found, min(len(found), 4)):
        for kind in ("value", "gone"):
            copy = json.loads(data)
            node = copy
            for key in place[:-1]:
                node = node[key]
            old = node[place[-1]]
            if kind == "gone":
                del node[place[-1]]
            else:
                node[place[-1]] = old + 1 if type(old) in (int, float) else "another"
            yield json.dumps(copy, indent=1).encode()


def mutations(path: str, data: bytes) -> Iterator[tuple[str, bytes | None]]:
    """Ways in which a file can be damaged: its bytes afterwards, None where it is gone."""
    places = sorted(random.Random(path).sample(range(8 * len(data)), min(8 * len(data), 4)))
    for bit in {0, 8 * len(data) - 1, *places}:
        yield f"bit {bit}", flipped(data, bit)
    yield "cut in half", data[: len(data) // 2]
    yield "one byte short", data[:-1]
    yield "empty", b""
    yield "one byte more", data + b"\n"
    yield "gone", None
    if path.endswith(".json"):
        for i, text in enumerate(changed_values(data)):
            yield f"value {i}", text


def test_verify_names_every_file_that_is_not_as_it_was_written(finished: Run) -> None:
    store = finished.store
    files = [
        path
        for path in store.list("")
        if not path.startswith("attempt/")  # marks, which gc may delete
    ]
    kinds = {path.rpartition("/")[0] or path for path in files}
    assert {"plan.json", "MANIFEST.json", "config.yaml", "report.html"} <= kinds
    assert {"data/generate", "commit/generate", "score", "attribution", "judge"} <= kinds
    assert {"augment", "augment/data"} <= kinds
    silent: list[str] = []
    tried: Counter[str] = Counter()
    one = {path: data for path in files if (data := store.read(path))}
    for path, data in one.items():
        place = Path(store.url(path))
        for what, damaged in mutations(path, data):
            assert damaged != data
            place.unlink() if damaged is None else place.write_bytes(damaged)
            tried[path] += 1
            told = "\n".join(verify(store))
            name = path.rpartition("/")[2].partition(".")[0]
            shard = f"shard {int(name[:6])}" if name[:6].isdigit() else path
            if shard not in told and "have no commit" not in told:
                silent.append(f"{path}: {what}: {told[:100]}")
            place.write_bytes(data)
    assert silent == []
    assert len(tried) > 20
    assert sum(tried.values()) > 200
    assert verify(store) == []


READERS: dict[str, tuple[str, Callable[[Run], Any]]] = {
    "score": ("generate", lambda run: fresh(run, "score-", score)),
    "attribution": ("generate", lambda run: fresh(run, "attribution-", attribute_it)),
    "score's sums": ("score-", lambda run: score(run.store, run.config)),
    "attribution's sums": ("attribution-", lambda run: attribute_it(run.store, run.config)),
    "judge": ("generate", lambda run: build_prompts(run.store, run.config)),
    "augment": ("generate", lambda run: augment(run.store, run.config)),
    "augment of scores": ("score-", lambda run: augment(run.store, run.config)),
    "report": ("generate", lambda run: report([run.store])),
    "report of scores": ("score-", lambda run: report([run.store])),
    "report of attributions": ("attribution-", lambda run: report([run.store])),
    "show": ("generate", lambda run: show(run.store)),
}


def fresh(made: Run, stage: str, job: Callable[..., Any]) -> Any:
    """A stage done from its start."""
    for folder in ("commit", "data", "attempt"):
        for path in Path(made.store.url(folder)).glob(f"{stage}*"):
            shutil.rmtree(path)
    return job(made.store, made.config)


def outcome(made: Run, reader: str) -> str:
    """What a stage makes of a run, all of its files but those that bear a time; or what it says
    where it refuses to.
    """
    store = made.store
    try:
        told = str(READERS[reader][1](made))
    except (BadRecord, UserError) as error:
        return f"refused: {error}"
    files = [f for top in ("score", "attribution", "judge", "augment") for f in store.list(top)]
    texts = [store.read(path) for path in files]
    return f"{told} {hash(tuple(texts))} {page(store)}"


def page(store: Store) -> str:
    """The report but for its time."""
    text = store.read("report.html").decode()
    return " ".join(line for line in text.splitlines() if " UTC" not in line)


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("reader", READERS)
def test_no_stage_reads_a_flipped_bit_in_silence(
    finished: Run, reader: str, size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """large: files that are too large to be read whole, for a column of them."""
    if size == "large":
        monkeypatch.setattr(committing, "WHOLE", 0)
    store, prefix = finished.store, READERS[reader][0]
    (stage,) = [name for name in os.listdir(store.url("data")) if name.startswith(prefix)]
    file = next(iterate_commits(store, stage)).file
    data, place = store.read(file), Path(store.url(file))
    right = outcome(finished, reader)
    drawn = random.Random(f"{reader} {size}")
    footer = int.from_bytes(data[-8:-4], "little") + 8  # half of the flips are there
    bits = {drawn.randrange(8 * len(data)) for _ in range(FLIPS // 2)}
    bits |= {8 * len(data) - 1 - drawn.randrange(8 * footer) for _ in range(FLIPS // 2)}
    said: list[str] = []
    silent: list[int] = []
    for bit in sorted(bits):
        place.write_bytes(flipped(data, bit))
        found = outcome(finished, reader)
        if found.startswith("refused"):
            said.append(found)
        elif found != right:
            silent.append(bit)
    assert silent == []
    assert len(said) > len(bits) // 3
    assert all(file in line and "\n" not in line for line in said)


def test_a_damaged_judge_table_is_read_by_nobody(finished: Run) -> None:
    store, place = finished.store, Path(finished.store.url("judge/scores.parquet"))
    data = place.read_bytes()
    again = open_store(store.uri)  # a later command's: it has only the manifest to go by
    for bit in range(0, 8 * len(data), 8 * len(data) // 8):
        place.write_bytes(flipped(data, bit))
        for job in (score, augment):
            with pytest.raises(BadRecord, match=r"judge/scores\.parquet: expected the table"):
                job(again, finished.config)
    place.write_bytes(data)
    score(again, finished.config)


COMMANDS = ("show", "verify", "gc", "report", "augment", "judge")
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "text": lambda data: b"no such thing\xff",
    "a list": lambda data: b"[]",
    "deep": lambda data: b"[" * 100_000,
    "a bit": lambda data: flipped(data, 8 * (len(data) // 2)),
}


@pytest.mark.parametrize(
    "what", ["plan.json", "commit", "data", "score", "MANIFEST.json", "config"]
)
@pytest.mark.parametrize("how", DAMAGE)
def test_every_command_names_a_damaged_file_in_a_line(
    finished: Run,
    what: str,
    how: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = finished.store
    monkeypatch.setattr("pipelines.run.find_run", lambda *args: (store, finished.config))
    commit = next(iterate_commits(store, "generate"))
    path = {
        "commit": "commit/generate/000000.json",
        "data": commit.file,
        "score": "score/table.json",
        "config": "config.yaml",
    }.get(what, what)
    Path(store.url(path)).write_bytes(DAMAGE[how](store.read(path)))
    for command in COMMANDS:
        code = main([command, store.uri])
        told = capsys.readouterr()
        if command == "verify":
            assert code == 1, told
            assert path in told.out or "shard 0" in told.out
            assert "Traceback" not in told.out
        elif code:
            assert code == 2, told
            assert path in told.err.splitlines()[-1]
            assert "Traceback" not in told.err
        else:  # a command that reads no such file
            assert (command, what) not in MUST_READ


MUST_READ = {
    *((command, "plan.json") for command in COMMANDS),
    *((command, what) for command in ("show", "report") for what in ("commit", "data")),
    ("augment", "data"),
    ("judge", "data"),
    ("judge", "commit"),
    ("report", "score"),
    ("augment", "score"),
    ("report", "MANIFEST.json"),
    ("judge", "MANIFEST.json"),
    ("augment", "MANIFEST.json"),
}


def test_a_run_closed_before_digests_were_kept_is_read_and_said_to_be_one(
    finished: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    store = finished.store
    for path in ["plan.json", "score/table.json", *store.list("commit")]:
        value = read_sealed(store, path)
        value.pop("footer", None)
        store.replace(path, json.dumps(value).encode())
    manifest = read_manifest(store)
    del manifest["products"]
    store.replace("MANIFEST.json", json.dumps(manifest).encode())
    again = Run(open_store(store.uri), finished.config, finished.rows, finished.pictures)
    assert verify(again.store) == []
    assert main(["verify", store.uri]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told == [f"{store.uri}: every invariant holds", unkept(store)]
    assert "from before digests were kept" in told[1]
    assert "flipped" in show(again.store)
    augment(again.store, again.config)
    write_manifest(again.store, manifest)  # the next command
    assert unkept(again.store) == ""
    assert {"plan.json", "report.html", "score/table.csv"} <= set(
        read_manifest(again.store)["products"]
    )
    assert verify(again.store) == []


def test_a_product_that_rots_keeps_its_digest_through_later_commands(finished: Run) -> None:
    store = open_store(finished.store.uri)
    place = Path(store.url("report.html"))
    place.write_bytes(flipped(place.read_bytes(), 99))
    augment(store, finished.config)
    write_manifest(store, read_manifest(store))
    assert [line.partition(":")[0] for line in verify(store)] == ["report.html"]
    report([store])
    write_manifest(store, read_manifest(store))
    assert verify(store) == []


def test_what_a_record_says_is_held_against_the_data(finished: Run) -> None:
    """Sealed anew, as a program would that means harm."""
    store = finished.store
    path = "commit/generate/000001.json"
    made = read_sealed(store, path)
    ids = read_sealed(store, "commit/generate/000000.json")["ids"]
    for change, told in (
        ({"extra": {**made["extra"], "flipped": 1}}, "expected 1 flipped in its file, got"),
        ({"ids": ids}, "expected the ids that its commit holds, got others"),
        ({"footer": "0" * 64}, "expected the committed footer, got another"),
    ):
        store.replace(path, sealed({**made, **change}))
        assert any(f"generate: shard 1: {told}" in line or told in line for line in verify(store))
    store.replace(path, sealed(made))
    manifest = read_manifest(store)
    store.replace("MANIFEST.json", sealed({**manifest, "fingerprint": {"data": "x"}}))
    assert verify(store) == ["MANIFEST.json: expected the plan's fingerprint, got another"]


def test_answers_that_do_not_fit_on_the_disk_are_a_line(
    finished: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    store = finished.store
    monkeypatch.setattr("pipelines.run.find_run", lambda *args: (store, finished.config))
    before = store.read("judge/scores.parquet")
    for code in (errno.ENOSPC, errno.EROFS):

        def fail(path: str, data: bytes, code: int = code) -> None:
            raise OSError(code, os.strerror(code), path)

        with monkeypatch.context() as patch:
            patch.setattr("storage.local.write", fail)
            args = ["judge", store.uri, "--answers", str(tmp_path / "answers.jsonl")]
            assert main(args) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert errno.errorcode[code] in line
        assert store.uri in line
    assert store.read("judge/scores.parquet") == before
    assert verify(store) == []


def test_a_folder_of_the_run_that_leads_elsewhere_is_refused(
    finished: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = finished.store
    inside = Path(store.url("data"))
    inside.rename(tmp_path / "elsewhere")
    for name, goal in (("data", tmp_path / "elsewhere"), ("data", Path("../elsewhere"))):
        Path(store.url(name)).symlink_to(goal)
        for command in COMMANDS:
            assert main([command, store.uri]) == 2
            told = capsys.readouterr().err
            if command in ("show", "verify", "gc"):
                assert f"expected a folder of the run at {store.url('data')}, got a link" in told
        Path(store.url(name)).unlink()
    (tmp_path / "elsewhere").rename(inside)
    Path(store.url("spare")).symlink_to(inside)  # within the run: it does no harm
    assert verify(store) == []
