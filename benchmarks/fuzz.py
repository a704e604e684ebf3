"""Mutated files: each is read as what it is or refused in words, never a traceback, a hang or a
silent change.

    python -m benchmarks.fuzz --cases 100000 --out benchmarks/fuzz.md

Kinds: images, Parquet inputs, configs, plans, commits, a run's data files and answers of a judge. A
case changes bits, bytes and slices of a good file, or a value in its JSON or YAML, by a seed that
`--only KIND --first N --cases 1` repeats. Cases run in processes of their own, in chunks, so that a
crash of a decoder is seen, too. *Silent*: a run's own file was changed and nobody noticed: not the
reader, and not `verify`.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

CHUNK, PATIENCE = 500, 20  # cases a process; seconds a case
FINE, REFUSED = "read", "refused"
BAD = ("traceback", "hang", "crash", "silent")
ODD: list[Any] = [
    *(None, True, -1, 0, 1, 2**31, 2**63, 10**30, 1e308, float("nan"), float("inf"), 0.5, "", "x"),
    *("\ud800", "\0", "../../etc/passwd", "9" * 30, [], {}, [[]], {"a": {}}, [1, "a"], "é"),
]


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to four changes of bits, bytes and slices."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        if not out:
            break
        at, kind = rng.randrange(len(out)), rng.randrange(7)
        size = min(len(out) - at, rng.choice((1, 2, 8, 64, 512)))
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at : at + size] = rng.randbytes(size)
        elif kind == 2:
            del out[at : at + size]
        elif kind == 3:
            del out[at:]
        elif kind == 4:
            out[at:at] = out[at : at + size]
        elif kind == 5:
            out[at : at + size] = bytes([rng.choice((0, 255, 127, 128))]) * size
        else:
            out[at:at] = rng.randbytes(size)
    return bytes(out)


def mutate_value(value: Any, rng: random.Random) -> Any:
    """A value of JSON or YAML with one part exchanged, taken out, doubled or nested."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value, key=str))
        out = dict(value)
        if rng.random() < 0.15:
            out[str(rng.choice(ODD))] = out.pop(key)
        elif rng.random() < 0.15:
            del out[key]
        else:
            out[key] = mutate_value(out[key], rng)
        return out
    if isinstance(value, list) and value and rng.random() < 0.9:
        out_list = list(value)
        at = rng.randrange(len(value))
        if rng.random() < 0.3:
            out_list.insert(at, out_list[at])
        else:
            out_list[at] = mutate_value(out_list[at], rng)
        return out_list
    if isinstance(value, int | float) and not isinstance(value, bool) and rng.random() < 0.5:
        return value + rng.choice((-1, 1, 0.5, 1e9))
    return rng.choice(ODD)


class Ground:
    """Good files to begin with: drawn faces and a finished run of them, made once in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.faces, self.run = folder, folder / "faces", folder / "out" / "fuzz"
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "done").exists():
            self._make()
        self.data = next(self.faces.rglob("*.parquet"))
        self.config: dict[str, Any] = yaml.safe_load((folder / "fuzz.yaml").read_text())

    def _make(self) -> None:
        config = {
            "name": "fuzz",
            "data": {"path": str(self.faces), "label": "label", "id": "id", "split": "split"},
            "models": {"classifier": "faces-plain", "oracle": "faces-oracle"},
            "method": "fgsm-demo",
            "out": str(self.folder / "out"),
            "engine": {"kind": "local", "shard_rows": 6},
        }
        config["data"]["size"] = 64
        (self.folder / "fuzz.yaml").write_text(yaml.safe_dump(config))
        command = [sys.executable, "-m", "counterfactory"]
        for arguments in (
            ["prepare", "faces", str(self.faces), "--rows", "12", "--test-rows", "0"],
            ["run", str(self.folder / "fuzz.yaml")],
        ):
            subprocess.run([*command, *arguments], check=True, capture_output=True)
        (self.folder / "done").touch()

    def faces_png(self) -> bytes:
        """One face as it is stored."""
        import pyarrow.parquet as pq

        cell = pq.read_table(self.data)["image"][0].as_py()
        return bytes(cell["bytes"])


def refusals() -> tuple[type[Exception], ...]:
    """What the command line shows as one line."""
    from configs.strict import NothingMade, UserError
    from storage.errors import TOLD

    return (UserError, NothingMade, *TOLD)


def image(ground: Ground, rng: random.Random, work: Path) -> str:
    """An image through the codec: a picture or a row's reason."""
    import io

    from PIL import Image

    from storage.codec import BadRow, decode

    png = ground.faces_png()
    kind = rng.choice(("PNG", "JPEG", "WEBP"))
    if kind != "PNG":
        buffer = io.BytesIO()
        Image.open(io.BytesIO(png)).convert("RGB").save(buffer, kind)
        png = buffer.getvalue()
    try:
        picture = decode(mutate_bytes(png, rng), size=64, crop=None, max_pixels=10**6)
    except BadRow:
        return REFUSED
    assert picture.shape == (64, 64, 3)
    return FINE


def parquet(ground: Ground, rng: random.Random, work: Path) -> str:
    """A Parquet input through plan and read: rows, quarantined rows or one line."""
    from actors.modality import modality_of
    from actors.rows.read import decoded, read
    from configs.schema import resolve_run
    from storage.plan import plan_shards

    file = work / "mutated.parquet"
    file.write_bytes(mutate_bytes(ground.data.read_bytes(), rng))
    raw = {**ground.config, "data": {**ground.config["data"], "path": str(file)}}
    config = resolve_run(raw, [], "fuzz.yaml")
    modality, names = modality_of(config.data), ("not smiling", "smiling")
    shards, _ = plan_shards(str(file), shard_rows=6, rows=None, columns=["image", "label", "id"])
    for shard in shards:
        records = read(shard, config.data, config.target, modality)
        list(decoded(records, shard, config, names, set(), modality))
    return FINE


def config(ground: Ground, rng: random.Random, work: Path) -> str:
    """A config: settings, or one line that names the file."""
    from configs.schema import load_run

    file, good = work / "mutated.yaml", (ground.folder / "fuzz.yaml").read_bytes()
    if rng.random() < 0.5:
        data = mutate_bytes(good, rng)
    else:
        value = mutate_value(ground.config, rng)
        data = yaml.safe_dump(value, allow_unicode=rng.random() < 0.5).encode(
            rng.choice(("utf-8", "utf-16", "latin-1")), "replace"
        )
    file.write_bytes(data)
    load_run(str(file), [])
    return FINE


def _of_run(ground: Ground, rng: random.Random, work: Path, name: str, as_json: bool) -> str:
    """A file of a run, mutated: the run's figures and `verify` notice."""
    from pipelines.report.show import show
    from storage.uri import open_store
    from storage.verify import verify

    run = work / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(ground.run, run)
    file = rng.choice(sorted(run.glob(name)))
    good = file.read_bytes()
    if as_json and rng.random() < 0.5:
        text = json.dumps(mutate_value(json.loads(good), rng))
        data = text.encode("utf-8", "surrogatepass")
    else:
        data = mutate_bytes(good, rng)
    if data == good or (as_json and _same(data, good)):
        return FINE
    file.write_bytes(data)
    noticed = False
    for look in (show, verify):
        try:
            found: Any = look(open_store(str(run)))
            noticed |= look is verify and bool(found)
        except refusals():
            noticed = True
    return REFUSED if noticed else "silent"


def _same(data: bytes, good: bytes) -> bool:
    try:
        return bool(json.loads(data) == json.loads(good))
    except (ValueError, RecursionError):
        return False


def plan(ground: Ground, rng: random.Random, work: Path) -> str:
    """A run's plan."""
    return _of_run(ground, rng, work, "plan.json", True)


def commit(ground: Ground, rng: random.Random, work: Path) -> str:
    """A commit of any stage."""
    return _of_run(ground, rng, work, "commit/*/*.json", True)


def data(ground: Ground, rng: random.Random, work: Path) -> str:
    """A committed data file."""
    return _of_run(ground, rng, work, "data/*/*.parquet", False)


def answers(ground: Ground, rng: random.Random, work: Path) -> str:
    """A file of a judge's answers: scores, reasons, or one line."""
    from pipelines.judge.answers import read_answers

    lines = []
    for number in range(4):
        scores = {"validity": 8, "proximity": 7, "realism": 9, "plausibility": 6}
        content = json.dumps(scores)
        value: Any = {
            "custom_id": f"row-{number}",
            "response": {
                "status_code": 200,
                "body": {"choices": [{"message": {"content": content}}]},
            },
        }
        if rng.random() < 0.5:
            value = mutate_value(value, rng)
        lines.append(json.dumps(value))
    raw = "\n".join(lines).encode()
    file = work / "answers.jsonl"
    file.write_bytes(mutate_bytes(raw, rng) if rng.random() < 0.7 else raw)
    list(read_answers(str(file)))
    return FINE


KINDS: dict[str, tuple[Callable[[Ground, random.Random, Path], str], float]] = {
    # and their share of all cases
    "image": (image, 0.5),
    "parquet": (parquet, 0.1),
    "config": (config, 0.2),
    "plan": (plan, 0.03),
    "commit": (commit, 0.03),
    "data": (data, 0.04),
    "answers": (answers, 0.1),
}


class Hang(Exception):  # noqa: N818 (said of the case)
    """A case that takes too long."""


def one(kind: str, number: int, ground: Ground, work: Path) -> tuple[str, str]:
    """What came of a case, and the error where it is none that a user is shown."""
    rng = random.Random(f"{kind} {number}")

    def stop(*_: Any) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(PATIENCE)
    try:
        return KINDS[kind][0](ground, rng, work), ""
    except refusals():
        return REFUSED, ""
    except Hang:
        return "hang", f"{PATIENCE} s"
    except Exception as error:
        # the planner turns these into a user's line
        planned = kind == "parquet" and isinstance(error, ValueError) and "expected" in str(error)
        return (REFUSED, "") if planned else ("traceback", repr(error)[:300])
    finally:
        signal.alarm(0)


def chunk(kind: str, first: int, count: int, folder: Path) -> list[tuple[int, str, str]]:
    """Cases in a process of their own; one that ends it is a crash, and the others go on."""
    found, at = [], first
    while at < first + count:
        command = [*(sys.executable, "-X", "faulthandler", "-m", "benchmarks.fuzz", "--work", kind)]
        command += ["--first", str(at), "--cases", str(first + count - at), "--ground", str(folder)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("[")]
        found += [(number, what, error) for number, what, error in lines]
        at = found[-1][0] + 1 if found else at
        if run.returncode:
            found.append((at, "crash", f"exit code {run.returncode}: {run.stderr[-300:]}"))
            at += 1
    return found


def work(kind: str, first: int, count: int, folder: Path) -> None:
    """The child: one line a case."""
    ground = Ground(folder)
    with tempfile.TemporaryDirectory() as name:
        for number in range(first, first + count):
            print(json.dumps([number, *one(kind, number, ground, Path(name))]), flush=True)


def campaign(
    cases: int, folder: Path, only: str | None = None, first: int = 0
) -> tuple[dict[str, Counter[str]], list[str]]:
    """Counts by kind and outcome, and a line for each bad case."""
    counts: dict[str, Counter[str]] = {}
    worst = []
    for kind, (_, share) in KINDS.items():
        if only not in (None, kind):
            continue
        total = cases if only else max(1, round(cases * share))
        counts[kind] = Counter()
        for at in range(first, first + total, CHUNK):
            for number, what, error in chunk(kind, at, min(CHUNK, first + total - at), folder):
                counts[kind][what] += 1
                if what in BAD:
                    worst.append(f"{kind} {number}: {what}: {error}")
                    print(worst[-1], file=sys.stderr, flush=True)
    return counts, worst


def main() -> None:
    """Run the campaign, print its table; exit code 1 where a case is bad."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--ground", type=Path)
    parser.add_argument("--work", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.work:
        work(args.work, args.first, args.cases, args.ground)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = args.ground or Path(name)
        Ground(folder)
        began = time.perf_counter()
        counts, worst = campaign(args.cases, folder, args.only, args.first)
        seconds = time.perf_counter() - began
    heads = [FINE, REFUSED, *BAD]
    table = [
        "# Mutated files",
        "",
        f"`python -m benchmarks.fuzz --cases {args.cases}`, {seconds / 60:.0f} minutes,"
        f" Python {platform.python_version()}.",
        "",
        f"| kind | cases | {' | '.join(heads)} |",
        "|---|" + "--:|" * (len(heads) + 1),
        *(
            f"| {kind} | {sum(found.values()):,} | {' | '.join(f'{found[h]:,}' for h in heads)} |"
            for kind, found in counts.items()
        ),
        "",
    ]
    print("\n".join(table))
    if args.out:
        args.out.write_text("\n".join(table))
    sys.exit(1 if worst else 0)


if __name__ == "__main__":
    main()
