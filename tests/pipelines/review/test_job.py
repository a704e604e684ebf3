"""The command: its start and end, its summary, and the files that other commands know."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.cli import main
from pipelines.gc import gc
from storage.run import read_manifest, read_plan, write_manifest
from storage.verdicts import Verdict, VerdictLog, now_after, read_verdicts
from storage.verify import verify

ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(judged: Any) -> str:
    """The run's folder, with its config and a manifest as commands leave them."""
    plain = json.loads(judged.config.model_dump_json())
    judged.store.write("config.yaml", yaml.safe_dump(plain).encode())
    plan = read_plan(judged.store)
    write_manifest(judged.store, {"fingerprint": plan.fingerprint, "models": plan.models})
    return str(judged.store.uri)


@contextmanager
def served(*options: str) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """The command in a process of its own, its base address and its token."""
    command = [sys.executable, "-m", "counterfactory", "review", *options, "--no-browser"]
    quiet = {name: value for name, value in os.environ.items() if name != "DISPLAY"}
    env = quiet | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        # a test run in the background ignores Ctrl-C, and so would its commands
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"(http://127\.0\.0\.1:\d+)/\?token=([\w-]{43})\b", line)
        try:
            assert found, (line, process.stderr and process.stderr.read())
            yield process, found[1], found[2]
        finally:
            process.kill()


def post(address: str, token: str, cf_id: str, verdict: str, key: str) -> Any:
    body = {"reviewer": "ann", "cf_id": cf_id, "verdict": verdict, "key": key}
    headers = {"Content-Type": "application/json", "X-Review-Token": token}
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"{address}/api/verdict", data, headers)
    with urllib.request.urlopen(request, timeout=30) as reply:
        return json.load(reply)


def listening(port: int) -> set[str]:
    """The addresses of this machine that listen on a port, as the kernel writes them."""
    lines = [
        line.split()
        for name in ("tcp", "tcp6")
        if (table := Path("/proc/net", name)).exists()
        for line in table.read_text().splitlines()[1:]
    ]
    locals_ = [line[1].split(":") for line in lines if line[3] == "0A"]
    return {host for host, number in locals_ if int(number, 16) == port}


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs Linux")
def test_ctrl_c_ends_it_and_the_verdicts_are_known(judged: Any, folder: str) -> None:
    name = judged.rows[1]["cf_id"]
    with served(folder) as (process, address, token):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(address, timeout=30)
        assert listening(int(address.rpartition(":")[2])) == {"0100007F"}  # 127.0.0.1 alone
        post(address, token, name, "valid", "key-00000001")
        assert verify(judged.store) == []  # also while it is served
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert f"review: stopped; 1 verdicts and undos stored in {folder}/review" in out
    assert "the judge against the reviewers: right on 100.0 %" in out
    assert read_verdicts(judged.store)["cf_id"].to_pylist() == [name]
    products = read_manifest(judged.store)["products"]
    (path,) = judged.store.list("review")
    assert {path, "judge/calibration.json"} <= set(products)
    assert verify(judged.store) == []
    assert "review/" not in gc(judged.store, older_than="0s")
    assert main(["report", folder]) == 0
    page = judged.store.read("report.html").decode()
    assert "people reviewed 1 counterfactual: 1 valid." in page
    assert "The judge against the reviewers: right on 100.0 %" in page
    judged.store.remove(path)
    assert any(line.startswith(f"{path}: expected a file") for line in verify(judged.store))


def test_sigterm_ends_it_as_other_commands(judged: Any, folder: str) -> None:
    with served(folder) as (process, address, token):
        post(address, token, judged.rows[0]["cf_id"], "valid", "key-00000001")
        process.terminate()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert err.strip().endswith("the same command goes on from there")


def test_a_kill_loses_nothing_that_was_answered(judged: Any, folder: str) -> None:
    with served(folder) as (process, address, token):
        for i, row in enumerate(judged.rows[:20]):
            post(address, token, row["cf_id"], "valid", f"key-{i:08d}")
        process.kill()
        process.communicate(timeout=60)
    names = read_verdicts(judged.store)["cf_id"].to_pylist()
    assert sorted(names) == sorted(row["cf_id"] for row in judged.rows[:20])
    assert verify(judged.store) == []


def test_the_summary_is_printed(
    judged: Any, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = judged.store.list("")
    log = VerdictLog(judged.store)
    for row in judged.rows[:4]:
        log.add(Verdict(row["cf_id"], "ann\x1b[31m", "valid", at=now_after("")))
    assert main(["review", folder, "--summary"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("review: 4 of 40 rows have verdicts; by the majority 4 valid\n")
    assert "\x1b" not in out
    assert judged.store.list("") == sorted([*before, log.path])


def test_mistakes_are_one_line(
    judged: Any, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["review", folder, "--no-browser", "--port", port]) == 2
        assert f"--port: expected a free port, got {port}" in capsys.readouterr().err
    for options, told in (
        (["--port", "70000"], "--port: expected 0 to 65535"),
        (["--reviewer", " "], "--reviewer: expected a reviewer's name"),
    ):
        assert main(["review", folder, "--no-browser", *options]) == 2
        assert told in capsys.readouterr().err
    judged.store.remove("commit/generate/000000.json")
    judged.store.remove("commit/generate/000001.json")
    judged.store.remove("commit/generate/000002.json")
    assert main(["review", folder, "--no-browser"]) == 2
    assert "run the generate stage first" in capsys.readouterr().err


def test_damage_in_the_log_is_named(
    judged: Any, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    log = VerdictLog(judged.store)
    log.add(Verdict(judged.rows[0]["cf_id"], "ann", "valid", at=now_after("")))
    data = judged.store.read(log.path)
    judged.store.write(log.path, data.replace(b"ann", b"ben"))
    assert main(["review", folder, "--summary"]) == 2
    assert f"{log.path}: expected the bytes that were sealed" in capsys.readouterr().err
    assert any("sealed" in line for line in verify(judged.store))
