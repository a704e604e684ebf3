"""SIGTERM and SIGHUP (an eviction, a closed terminal) end a command as Ctrl-C does, and are no
row's fault.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import Job  # type: ignore[import-not-found]
from crash import SIGNALS, At

from pipelines.engine.stop import Stopped, raise_if_stopped, report_stop, stopped_by_signals
from storage import s3_retry

LINE = "counterfactory: stopped; what is committed stays, the same command goes on from there"


@pytest.mark.parametrize("what", ["int", "term", "hup"])
def test_driver_stopped_in_the_middle_of_a_shard(job: Job, what: str) -> None:
    code, said = job.run(At("answer", nth=6, what=what))
    assert code == 128 + SIGNALS[what]
    assert said.splitlines()[-1] == LINE
    assert "Traceback" not in said
    before = job.commits()
    assert len(before) == 2
    assert "a worker ended" not in job.finish()
    assert before.items() <= job.commits().items()


@pytest.mark.parametrize(
    "at",
    [
        At("put_new", "plan.json", what="term"),
        At("write", "data/generate/", what="term"),
        At("put_new", "commit/generate/", what="term"),
        At("put_new", "commit/generate/", what="term", when="after"),
        At("put_new", "commit/score", nth=3, what="term"),
        At("replace", "report.html", what="term"),
        At("replace", "MANIFEST.json", what="hup"),
    ],
)
def test_driver_stopped_at_a_file(job: Job, at: At) -> None:
    code, said = job.run(at, command="run")
    assert code == 128 + SIGNALS[at.what]
    assert said.splitlines()[-1] == LINE
    assert "a worker ended" not in job.finish(command="run")


def test_rows_are_not_blamed_however_often_the_driver_is_stopped(job: Job) -> None:
    for _ in range(3):
        assert job.run(At("answer", nth=2, what="kill"))[0] == -signal.SIGKILL
    for _ in range(4):  # row by row now, and stopped on a row each time
        code, said = job.run(At("answer", nth=2, what="term"))
        assert code == 143
        assert "row by row" in said or "a worker ended" not in said
    job.finish()


def test_a_row_is_not_blamed_for_one_kill_while_it_was_worked_on(job: Job) -> None:
    for _ in range(2):
        job.run(At("answer", nth=1, what="kill"))
    for nth in (1, 2, 3, 4):  # each of the shard's rows once
        assert job.run(At("answer", nth=nth, what="kill"))[0] == -signal.SIGKILL
    job.finish()


def test_an_ignored_signal_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with stopped_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_caller_gets_its_handlers_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_retry, "_end", float("inf"))  # and so afterwards
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    with pytest.raises(Stopped), stopped_by_signals():
        signal.raise_signal(signal.SIGTERM)
    assert before == {number: signal.getsignal(number) for number in before}
    assert s3_retry._end <= time.monotonic() + s3_retry.HURRIED  # nobody waits for S3 any longer


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_driver_stopped_on_ray(job: Job, number: signal.Signals) -> None:
    """One line, no dump of native code, no process left; the same command goes on."""
    path = str(Path(__file__).parent)
    job.sets += ["engine.kind=ray", "engine.workers=1"]
    job.environ |= {"FAULT": "hang:13", "PYTHONPATH": path, "ONCE": str(job.folder)}
    child = job.start()
    end = time.monotonic() + 240
    while not (job.folder / "hangs").exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert (job.folder / "hangs").exists(), job.said  # Ray takes the shards in any order
    os.kill(child.pid, number)
    child.join(60)
    assert child.exitcode == 128 + number, job.said
    assert job.said.splitlines()[-1] == LINE
    for word in ("***", "Traceback", "SIGTERM received", "Fatal"):
        assert word not in job.said
    job.environ["FAULT"] = ""
    said = job.finish()
    assert "row by row" not in said


def test_a_signal_comes_to_the_main_thread_only() -> None:
    seen: list[bool] = []

    def other() -> None:
        with stopped_by_signals():
            seen.append(signal.getsignal(signal.SIGTERM) is before)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == [True]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_an_error_after_a_signal_is_the_stop(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """An import that swallows the stop leaves half a module, whose use then fails."""
    monkeypatch.setattr("pipelines.engine.stop.hurry", lambda: None)
    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, usual)
    try:
        with pytest.raises(Stopped) as stop, stopped_by_signals():
            _swallow(number)
        assert report_stop(stop.value) == 128 + number
        with pytest.raises(AttributeError), stopped_by_signals():
            raise AttributeError("no signal arrived in this command")
    finally:
        signal.signal(number, before)


def _swallow(number: signal.Signals) -> None:
    with suppress(KeyboardInterrupt):
        signal.raise_signal(number)
    raise AttributeError("module 'half' has no attribute 'whole'")


def test_a_stop_that_a_destructor_swallows_is_raised_at_the_next_shard(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipelines.engine.stop.hurry", lambda: None)

    class Dying:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Stopped), stopped_by_signals():
        _die(Dying)
    assert "Traceback" not in capsys.readouterr().err
    raise_if_stopped()  # the command is over, and the next one starts without a stop


def _die(kind: type) -> None:
    one = kind()
    del one
    raise_if_stopped()
