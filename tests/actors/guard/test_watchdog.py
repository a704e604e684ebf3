"""What takes too long ends its process, whatever holds it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from actors.guard.watchdog import STOPPED, limit

CODE = """
import ctypes, sys, time
from pathlib import Path
from actors.guard import watchdog
watchdog.GRACE = 0.5
with watchdog.limit(float(sys.argv[1]), "a test", lambda: Path(sys.argv[2]).write_text("noted")):
    {work}
print("done")
"""


def run(work: str, seconds: float, note: Path) -> subprocess.CompletedProcess[str]:
    code = CODE.format(work=work)
    return subprocess.run(
        [sys.executable, "-c", code, str(seconds), str(note)], capture_output=True, text=True
    )


def test_what_sleeps_is_noted_and_stopped(tmp_path: Path) -> None:
    done = run("time.sleep(3600)", 0.3, tmp_path / "note")
    assert done.returncode == STOPPED
    assert done.stderr == "counterfactory: a test took more than 0.3 s: stopped\n"
    assert (tmp_path / "note").read_text() == "noted"


def test_what_lets_no_thread_run_is_stopped_and_shows_where_it_was(tmp_path: Path) -> None:
    done = run("ctypes.PyDLL(None).sleep(3600)", 0.3, tmp_path / "note")
    assert done.returncode == 1
    assert "Timeout (0:00:00.8" in done.stderr
    assert "most recent call first" in done.stderr
    assert not (tmp_path / "note").exists()


def test_what_is_done_in_time_goes_on(tmp_path: Path) -> None:
    done = run("pass", 0.3, tmp_path / "note")
    assert (done.returncode, done.stdout) == (0, "done\n")


def test_no_limit_is_none() -> None:
    with limit(None, "a test", lambda: pytest.fail("noted")):
        pass
