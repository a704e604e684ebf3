"""Does a run end the same whatever happens to it? Processes are killed, stopped and held, disks
fill up, and S3 misbehaves, at random points of every stage; each run is then compared with runs
that nothing happened to.

    python -m benchmarks.chaos --seed 12 --minutes 15 --out benchmarks/chaos.md

Every trial is the command line itself, `counterfactory run` on drawn faces, in processes of its
own; after the fault the same command is given again until it ends with 0. The checker
(chaos_checker.py) imports nothing of the project, and reads the run's folder with pyarrow. Two
undisturbed runs are the reference: what differs between them (times, folders) is not compared, all
else must be equal in the disturbed run. Trial n draws its faults from the seed, its kind and n, so
that `--only KIND --first N --trials 1` repeats one, as far as the machine's timing allows.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.chaos_checker import Lost, Product, Reference
from benchmarks.chaos_line import Bucket, Line

ROWS, SHARD = 24, 4
SETS = (
    f"engine.shard_rows={SHARD}",
    "method.settings.max_steps=12",
    "score.cout_steps=4",
    "score.bootstrap=50",
    "name=x",
)
AGAIN = 8  # times that the command is given before a run counts as lost
LONG = 300.0  # seconds after which a command counts as hung
KEYS = {"AWS_ACCESS_KEY_ID": "chaos", "AWS_SECRET_ACCESS_KEY": "chaos"}
# patterns below a run's folder whose files tell how far it is, with how many there will be
PROGRESS = {
    "plan": ("plan.json", 1),
    "generate": ("commit/generate/*", ROWS // SHARD),
    "score": ("commit/score-*/*", ROWS // SHARD),
    "attribution": ("commit/attribution-*/*", ROWS // SHARD),
    "judge": ("judge/*", 1),
    "augment": ("augment/*", 1),
    "report": ("report.html", 1),
}


@dataclass
class Run:
    """A run's command, and what its processes have said and ended with."""

    folder: Path
    data: Path
    engine: str = "local"
    out: str = "out"
    environ: dict[str, str] = field(default_factory=dict)
    codes: list[int] = field(default_factory=list)

    @property
    def home(self) -> Path:
        return self.folder / "out" / "x"

    @property
    def said(self) -> str:
        log = self.folder / "log"
        return log.read_text(errors="replace") if log.exists() else ""

    def argv(self) -> list[str]:
        sets = [f"data.path={self.data}", *SETS]
        if self.engine == "ray":
            sets.append("engine.workers=1")
        flags = [part for item in sets for part in ("--set", item)]
        command = [sys.executable, "-m", "counterfactory", "run", "demo-plain", *flags]
        return [*command, "--engine", self.engine, "--out", self.out]

    def start(self, argv: list[str] | None = None) -> subprocess.Popen[bytes]:
        """The command in a session of its own, so that its processes can be found."""
        self.folder.mkdir(parents=True, exist_ok=True)
        root = Path(__file__).resolve().parents[1]
        environ = {name: v for name, v in os.environ.items() if not name.startswith("AWS_")}
        environ |= {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
        with open(self.folder / "log", "ab") as log:
            return subprocess.Popen(
                argv or self.argv(),
                cwd=self.folder,
                env=environ | self.environ,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def end(self, process: subprocess.Popen[bytes]) -> int:
        """Wait for a command; Lost where it hangs."""
        try:
            code = process.wait(LONG)
        except subprocess.TimeoutExpired:
            for pid in session(process.pid):
                os.kill(pid, signal.SIGKILL)
            raise Lost(f"a command hangs: {self.said[-200:]}") from None
        self.codes.append(code)
        return code

    def expect(self, code: int, *allowed: int) -> None:
        if code not in allowed:
            raise Lost(f"expected exit code {allowed}, got {code}: {self.said[-300:]}")

    def finish(self) -> None:
        """Give the command until it ends with 0; each time something may still be wrong with it."""
        for _ in range(AGAIN):
            if self.end(self.start()) == 0:
                return
        raise Lost(f"the command never ended with 0: {self.codes}, {self.said[-300:]}")

    def wait(self, process: subprocess.Popen[bytes], stage: str, count: int, more: float) -> bool:
        """Wait until a stage has so many files, then some seconds; False if the command ended."""
        end = time.monotonic() + LONG
        while len(list(self.home.glob(PROGRESS[stage][0]))) < count:
            if process.poll() is not None or time.monotonic() > end:
                return False
            time.sleep(0.02)
        time.sleep(more)
        return process.poll() is None


# --- faults: each disturbs a run, and leaves it to be finished ---


def session(leader: int) -> list[int]:
    """The processes of a session: those that a command has started, and itself."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parts = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(parts[3]) == leader and parts[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def workers(leader: int) -> list[int]:
    """Ray's workers of a session that have work."""
    found = []
    for pid in session(leader):
        try:
            name = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if name.startswith(b"ray::") and b"IDLE" not in name and b"Worker" in name:
            found.append(pid)
    return found


def somewhere(rng: random.Random, stages: tuple[str, ...] = tuple(PROGRESS)) -> tuple[Any, ...]:
    """A stage, how many of its files are to be there, and the seconds to wait then."""
    stage = rng.choice(stages)
    return stage, rng.randint(0, PROGRESS[stage][1]), rng.uniform(0, 1.0)


def hit_driver(numbers: tuple[int, ...], codes: tuple[int, ...]) -> Callable[..., None]:
    """One to three times: the driver gets a signal somewhere."""

    def hit(run: Run, rng: random.Random) -> None:
        for _ in range(rng.randint(1, 3)):
            process = run.start()
            if run.wait(process, *somewhere(rng)):
                os.kill(process.pid, rng.choice(numbers))
                run.expect(run.end(process), *codes, 0)
            else:
                run.expect(run.end(process), 0)

    return hit


def end_session(leader: int) -> None:
    """Ray's processes outlive a driver that was killed for a moment; the next run needs the CPU."""
    end = time.monotonic() + 20
    while time.monotonic() < end and session(leader):
        time.sleep(0.2)
    for pid in session(leader):
        os.kill(pid, signal.SIGKILL)


def hit_ray_driver(number: int, code: int) -> Callable[..., None]:
    """The driver of a run on Ray gets a signal somewhere."""

    def hit(run: Run, rng: random.Random) -> None:
        process = run.start()
        if run.wait(process, *somewhere(rng, ("generate", "score", "attribution", "augment"))):
            os.kill(process.pid, number)
            run.expect(run.end(process), code, 0)
            end_session(process.pid)
        else:
            run.expect(run.end(process), 0)

    return hit


def hit_ray_worker(numbers: tuple[int, ...]) -> Callable[..., None]:
    """A worker of a run on Ray gets signals somewhere; the command itself must end with 0."""

    def hit(run: Run, rng: random.Random) -> None:
        process = run.start()
        if run.wait(process, *somewhere(rng, ("generate", "score"))):
            end = time.monotonic() + 20
            while not (found := workers(process.pid)) and time.monotonic() < end:
                time.sleep(0.05)
            for number in numbers:
                for pid in found:
                    os.kill(pid, number)
                time.sleep(2.0 if len(numbers) > 1 else 0.0)
        run.expect(run.end(process), 0)

    return hit


def hold_driver(run: Run, rng: random.Random) -> None:
    """The driver is held; a second one does the work meanwhile, or not; the first goes on."""
    process = run.start()
    held = run.wait(process, *somewhere(rng))
    if held:
        os.kill(process.pid, signal.SIGSTOP)
        if rng.random() < 0.5:
            run.finish()
        else:
            time.sleep(rng.uniform(0.5, 4.0))
        os.kill(process.pid, signal.SIGCONT)
    run.expect(run.end(process), 0)


def limit_files(run: Run, rng: random.Random) -> None:
    """No file may grow above some bytes (RLIMIT_FSIZE), which fails as a full disk does."""
    blocks = int(2 ** rng.uniform(0, 9))
    # what it says goes through a pipe, which the limit does not hold for
    script = f'{{ (ulimit -f {blocks}; exec "$@") 2>&1; echo code $?; }} | cat'
    run.end(run.start(["sh", "-c", script, "sh", *run.argv()]))
    run.codes[:] = codes_told(run)
    run.expect(run.codes[0], 0, 2)


def codes_told(run: Run) -> list[int]:
    """Exit codes that a shell around the commands has told."""
    return [int(code) for code in re.findall(r"^code (\d+)$", run.said, re.M)]


def small_disk(option: str) -> Callable[..., None]:
    """The run's folder is a tmpfs: full or read-only at first, then in order."""

    def hit(run: Run, rng: random.Random) -> None:
        size = int(2 ** rng.uniform(14, 18.5))
        first = f"size={size}" if option == "full" else "ro,size=64m"
        script = (
            "mkdir -p out && mount -t tmpfs -o size=64m none out && "
            + ('"$@"; echo code $?; ' if option == "ro" and rng.random() < 0.5 else "")
            + f'mount -o remount,{first} out; "$@"; echo code $?; '
            'mount -o remount,rw,size=64m out && "$@"; code=$?; echo code $code; '
            "cp -a out kept; exit $code"
        )
        wrapped = ["unshare", "-m", "--", "sh", "-c", script, "sh", *run.argv()]
        run.expect(run.end(run.start(wrapped)), 0)
        shutil.rmtree(run.folder / "out", ignore_errors=True)
        (run.folder / "kept").rename(run.folder / "out")
        run.codes[:] = codes_told(run)
        run.expect(run.codes[-2], 0, 2)

    return hit


def bad_line(how: str, rate: float = 0.15) -> Callable[..., None]:
    """The run's folder is in S3, behind a line that fails; the others than `faults` hit once more.

    rate: how many of the requests meet a fault.
    """

    def hit(run: Run, rng: random.Random) -> None:
        bucket, name = shared_bucket(), run.folder.name
        line = Line(bucket.url, rng, rate)
        run.out = f"s3://chaos/{name}"
        run.environ = {**KEYS, "AWS_ENDPOINT_URL": line.url, "AWS_DEFAULT_REGION": "us-east-1"}
        run.environ |= {"AWS_EC2_METADATA_DISABLED": "true"}
        try:
            if how != "faults":
                after = rng.randint(0, 3 * ROWS // SHARD - 1)
                if how == "away":
                    run.environ["COUNTERFACTORY_S3_SECONDS"] = "3"
                process = run.start()
                while process.poll() is None and line.commits < after:
                    time.sleep(0.02)
                if how == "kill":
                    time.sleep(rng.uniform(0, 0.5))
                    process.kill()
                    run.expect(run.end(process), -signal.SIGKILL, 0)
                elif how == "term":
                    time.sleep(rng.uniform(0, 0.5))
                    process.terminate()
                    run.expect(run.end(process), 143, -signal.SIGTERM, 0)
                else:
                    line.away = True
                    run.expect(run.end(process), 75, 0)
                    line.away = False
                run.environ["COUNTERFACTORY_S3_SECONDS"] = "60"
            run.finish()
        finally:
            line.close()
        bucket.fetch(f"{name}/", run.folder / "out")

    return hit


BUCKET: list[Bucket] = []
BUCKET_LOCK = threading.Lock()


def shared_bucket() -> Bucket:
    """The one S3 server of this campaign."""
    with BUCKET_LOCK:
        if not BUCKET:
            BUCKET.append(Bucket())
        return BUCKET[0]


def can_mount() -> bool:
    """May this process mount a tmpfs that only its children see?"""
    with tempfile.TemporaryDirectory() as folder:
        script = f"mount -t tmpfs none {folder}"
        try:
            done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True)
        except OSError:
            return False
    return done.returncode == 0


DIE, TERM, HUP = signal.SIGKILL, signal.SIGTERM, signal.SIGHUP
# what happens, in which engine, and how
FAULTS: dict[str, tuple[str, str, Callable[..., None]]] = {
    "kill": ("local", "SIGKILL of the driver, 1 to 3 times", hit_driver((DIE,), (-DIE,))),
    "term": (
        "local",
        "SIGTERM or SIGHUP to the driver, 1 to 3 times",
        hit_driver((TERM, HUP), (128 + TERM, 128 + HUP, -TERM, -HUP)),
    ),
    "hold": ("local", "SIGSTOP of the driver, a second driver or none, SIGCONT", hold_driver),
    "fsize": ("local", "files limited to 0.5 to 256 KB (RLIMIT_FSIZE)", limit_files),
    "full": ("local", "disk full (a tmpfs of 16 to 370 KB)", small_disk("full")),
    "ro": ("local", "disk read-only, before or after the work", small_disk("ro")),
    "s3": ("local", "S3: 15 % of requests meet a fault", bad_line("faults")),
    "s3-kill": (
        "local",
        "S3: 15 % of requests meet a fault, and SIGKILL of the driver",
        bad_line("kill"),
    ),
    "s3-term": (
        "local",
        "S3: 15 % of requests meet a fault, and SIGTERM to the driver",
        bad_line("term"),
    ),
    "s3-away": (
        "local",
        "S3: 15 % of requests meet a fault, and away for longer than is waited",
        bad_line("away"),
    ),
    "ray-kill": ("ray", "Ray: SIGKILL of the driver", hit_ray_driver(DIE, -DIE)),
    "ray-term": ("ray", "Ray: SIGTERM to the driver", hit_ray_driver(TERM, 128 + TERM)),
    "ray-worker-kill": ("ray", "Ray: SIGKILL of the workers", hit_ray_worker((DIE,))),
    "ray-worker-term": ("ray", "Ray: SIGTERM to the workers", hit_ray_worker((TERM,))),
    "ray-worker-hold": (
        "ray",
        "Ray: SIGSTOP of the workers, SIGCONT after 2 s",
        hit_ray_worker((signal.SIGSTOP, signal.SIGCONT)),
    ),
}


@dataclass
class Outcome:
    """How a trial ended: exit codes of its commands, and what is wrong with its run."""

    kind: str
    number: int
    codes: list[int]
    wrong: list[str]
    seconds: float


def place_of(kind: str) -> str:
    """Where the runs of a kind of trial are: disk, s3 or ray."""
    return kind.partition("-")[0] if kind.startswith(("s3", "ray")) else "disk"


def attempt(kind: str, number: int, seed: int, folder: Path, against: References) -> Outcome:
    """One trial: disturb a run, finish it, compare it."""
    engine, _, disturb = FAULTS[kind]
    rng = random.Random(f"{seed}-{kind}-{number}")
    run = Run(folder / f"{kind}-{number}", folder / "data", engine)
    began = time.monotonic()
    wrong: list[str] = []
    try:
        disturb(run, rng)
        if place_of(kind) != "s3":  # there it is finished, and fetched
            run.finish()
        wrong = against[place_of(kind)].differences(Product(run.home))
    except Lost as error:
        wrong = [" ".join(str(error).split())]
    if "Traceback" in run.said:
        wrong.append("a traceback was shown")
    if not wrong:
        shutil.rmtree(run.folder, ignore_errors=True)
    return Outcome(kind, number, run.codes, wrong, time.monotonic() - began)


References = dict[str, Reference]  # by place: disk, s3, ray


def prepare(folder: Path, kinds: list[str], jobs: int) -> References:
    """Draw the data, and make and read two undisturbed runs; two more in S3 where it is tried; of
    Ray one, which is compared with one without.
    """
    data = Run(folder / "prepare", folder / "data")
    argv = [sys.executable, "-m", "counterfactory", "prepare", "faces", str(data.data)]
    if not data.data.exists():
        data.expect(data.end(data.start([*argv, "--rows", str(ROWS), "--test-rows", "0"])), 0)
    places = {place_of(kind) for kind in kinds}

    def make(place: str, n: int) -> Product:
        engine = "ray" if place == "ray" and n else "local"
        run = Run(folder / f"undisturbed-{place}-{n}", data.data, engine)
        if (run.home / "MANIFEST.json").exists():
            pass  # the campaign goes on in a folder that has it
        elif place == "s3":
            bad_line("faults", 0.0)(run, random.Random(0))
        else:
            run.expect(run.end(run.start()), 0)
        return Product(run.home)

    with ThreadPoolExecutor(jobs) as pool:
        made = {place: [pool.submit(make, place, n) for n in range(2)] for place in places}
        return {
            place: Reference(one.result(), other.result()) for place, (one, other) in made.items()
        }


def campaign(
    kinds: list[str],
    *,
    seed: int,
    seconds: float,
    trials: int | None,
    first: int,
    jobs: int,
    folder: Path,
) -> tuple[References, list[Outcome]]:
    """Trials of each kind in turn, until the time or their number is used up."""
    against = prepare(folder, kinds, jobs)
    until = time.monotonic() + seconds

    def rounds() -> Iterator[tuple[str, int]]:
        number = first
        while trials is None or number < first + trials:
            yield from ((kind, number) for kind in kinds)
            number += 1

    left, lock, outcomes = rounds(), threading.Lock(), list[Outcome]()

    def work() -> None:
        while time.monotonic() < until:
            with lock:
                if (following := next(left, None)) is None:
                    return
            outcome = attempt(*following, seed, folder, against)
            outcomes.append(outcome)
            told = f"{outcome.kind} {outcome.number}: exit codes {outcome.codes}"
            print(f"{told}, {outcome.wrong[:3] or 'equal'}", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        for done in [pool.submit(work) for _ in range(jobs)]:
            done.result()
    return against, outcomes


def table(
    outcomes: list[Outcome], kinds: list[str], against: References, given: str, left_out: str
) -> str:
    """The campaign as Markdown."""
    one = next(iter(against.values()))
    today = f"{datetime.now(UTC):%-d %B %Y}"
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    bad = [outcome for outcome in outcomes if outcome.wrong]
    lines = [
        "# What happens to a run that is disturbed?",
        "",
        f"`counterfactory run` on {ROWS} drawn faces in shards of {SHARD}, all stages. A fault"
        " strikes at a random point of a random stage. Then the same command is",
        "given until it ends with 0. A checker that imports nothing of the project (pyarrow,"
        " hashlib, json) compares the run with two undisturbed ones: every row",
        "of every stage, cell by cell, and every product. What differs between the two undisturbed"
        " runs (times, folders, on Ray the engine) is not compared, nor is the count of",
        "attempts in the MANIFEST. A negative exit code is the signal that ended the process.",
        "",
        f"    python -m benchmarks.chaos {given}",
        "",
        f"{today}, {machine}. {len(outcomes)} trials, {sum(len(o.codes) for o in outcomes)}"
        f" commands; {len(one.rows)} rows and {len(one.leaves)} values of products compared in"
        " each.",
        f"Columns of times, not compared: {', '.join(one.timed)}.{left_out}",
        "",
        "| fault | trials | exit codes of their commands | equal |",
        "|---|---:|---|---:|",
    ]
    for kind in kinds:
        mine = [outcome for outcome in outcomes if outcome.kind == kind]
        if not mine:
            continue
        codes = Counter(code for outcome in mine for code in outcome.codes)
        told = ", ".join(f"{code} ({count} times)" for code, count in sorted(codes.items()))
        equal = sum(not outcome.wrong for outcome in mine)
        lines.append(f"| {FAULTS[kind][1]} | {len(mine)} | {told} | {equal} |")
    lines += ["", "Every run is equal to the undisturbed ones." if not bad else "Not equal:", ""]
    lines += [
        f"- `--only {o.kind} --first {o.number} --trials 1`: {'; '.join(o.wrong[:3])[:300]}"
        for o in bad
    ]
    return "\n".join(lines).rstrip() + "\n"


def main(argv: list[str] | None = None) -> int:
    """Run the campaign and print its table; exit code 1 where a run differs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--trials", type=int, help="of each kind; default: as the time allows")
    parser.add_argument("--first", type=int, default=0, help="number of the first trial")
    parser.add_argument("--only", help=f"kinds, by commas, of {', '.join(FAULTS)}")
    parser.add_argument("--jobs", type=int, default=1, help="trials at a time")
    parser.add_argument(
        "--keep",
        type=Path,
        help="folder for the runs: undisturbed ones are used again, those that differ stay",
    )
    parser.add_argument("--out", type=Path, help="write the table here, too")
    args = parser.parse_args(argv)
    kinds = args.only.split(",") if args.only else list(FAULTS)
    if unknown := [kind for kind in kinds if kind not in FAULTS]:
        parser.error(f"--only: expected {', '.join(FAULTS)}, got {unknown[0]}")
    left_out = ""
    if {"full", "ro"} & set(kinds) and not can_mount():
        kinds = [kind for kind in kinds if kind not in ("full", "ro")]
        left_out = " No tmpfs could be mounted here."
    with tempfile.TemporaryDirectory(prefix="chaos-") as scratch:
        folder = (args.keep or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        against, outcomes = campaign(
            kinds,
            seed=args.seed,
            seconds=args.minutes * 60,
            trials=args.trials,
            first=args.first,
            jobs=args.jobs,
            folder=folder,
        )
    given = " ".join(argv or sys.argv[1:]).replace(f" --keep {args.keep}", "")
    text = table(outcomes, kinds, against, given, left_out)
    print(text)
    if args.out:
        args.out.write_text(text)
    return int(any(outcome.wrong for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
