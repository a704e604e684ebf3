"""An audit is killed at points of its progress, or two drivers make it at once: the same command
ends with the findings of an audit that nobody disturbed.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import FORKS, Job  # type: ignore[import-not-found]
from crash import At, wait_until_stopped

sys.path.append(str(Path(__file__).parents[1] / "pipelines" / "audit"))
from audit_place import Place, make_place  # type: ignore[import-not-found]

from pipelines.audit.ledger import read_ledger
from storage.names import unpack
from storage.uri import Store, open_store
from storage.verify import verify

FORKS.set_forkserver_preload(["torch", "pipelines.audit.make", "crash"])
POINTS = [
    At("put_new", "ledger/", when="after"),
    At("put_new", "commit/generate/", nth=2, when="after"),
    At("put_new", "findings.json"),
]
MORE = [
    At("write", "audits/b/rows-"),
    At("put_new", "ledger/"),
    At("put_new", "plan.json"),
    At("answer", nth=2),
    At("put_new", "commit/interventions"),
    At("put_new", "commit/score", nth=2),
    At("put_new", "findings.json", when="after"),
    At("replace", "audit.prom", when="after"),
    At("replace", "report.html", nth=2),
]


class AuditJob(Job):  # type: ignore[misc]
    """The audits of a place: a command that makes one of them."""

    def argv(self, command: str = "b") -> list[str]:
        return ["audit", str(self.folder / "watch.yaml"), "--id", command]

    @property
    def audits(self) -> Store:
        return open_store(self.folder / "out" / "watch")

    def findings(self, name: str) -> bytes:
        found: bytes = self.audits.read(f"audits/{name}/findings.json")
        return found


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> AuditJob:
    """The first audit, which the others are compared with."""
    folder = tmp_path_factory.mktemp("begun")
    job = write_config(make_place(folder), folder)
    code, said = job.run(command="a")
    assert code == 0, said
    return job


@pytest.fixture(scope="module")
def whole(begun: AuditJob, tmp_path_factory: pytest.TempPathFactory) -> AuditJob:
    """Two audits that nobody disturbed."""
    job = copy_of(begun, tmp_path_factory.mktemp("whole"))
    code, said = job.run(command="b")
    assert code == 0, said
    return job


def copy_of(begun: AuditJob, folder: Path) -> AuditJob:
    """The same audits of the same data in another folder."""
    shutil.copytree(begun.folder / "out", folder / "out")
    return write_config(Place(begun.folder), folder)


def write_config(place: Place, folder: Path) -> AuditJob:
    config = place.config("a", budget=20, out=str(folder / "out"))
    (folder / "watch.yaml").write_text(yaml.safe_dump(config.model_dump()))
    return AuditJob(folder)


def expect_whole(job: AuditJob, whole: AuditJob) -> None:
    assert job.findings("a") == whole.findings("a")
    assert job.findings("b") == whole.findings("b")
    records = read_ledger(job.audits)
    assert [record.id for record in records] == ["a", "b"]
    assert verify(open_store(job.audits.url("audits/b/run"))) == []
    for path in ("junit.xml", "report.html", "audit.prom"):
        assert job.audits.is_file(f"audits/b/{path}")
    assert job.audits.read("audit.prom") == job.audits.read("audits/b/audit.prom")


@pytest.mark.parametrize(
    "at",
    [*POINTS, *(pytest.param(at, marks=pytest.mark.slow) for at in MORE)],
    ids=lambda at: f"{at.when}-{at.verb}-{at.path}-{at.nth}",
)
def test_a_killed_audit_is_continued_and_finds_the_same(
    tmp_path: Path, begun: AuditJob, whole: AuditJob, at: Any
) -> None:
    job = copy_of(begun, tmp_path)
    code, said = job.run(at, command="b")
    assert code == -signal.SIGKILL, said
    code, said = job.run(command="b")
    assert code == 0, said
    expect_whole(job, whole)


def test_two_drivers_of_one_audit_make_it_once(
    tmp_path: Path, begun: AuditJob, whole: AuditJob
) -> None:
    job = copy_of(begun, tmp_path)
    held = job.start(At("put_new", "ledger/", what="stop"), command="b")
    wait_until_stopped(held.pid)
    code, said = job.run(command="b")
    assert code == 0, said
    os.kill(held.pid, signal.SIGCONT)
    held.join(900)
    assert held.exitcode == 0
    expect_whole(job, whole)


def test_two_audits_at_once_share_no_row(tmp_path: Path, begun: AuditJob) -> None:
    job = copy_of(begun, tmp_path)
    held = job.start(At("put_new", "ledger/", what="stop"), command="b")
    wait_until_stopped(held.pid)
    code, said = job.run(command="c")
    assert code == 0, said
    os.kill(held.pid, signal.SIGCONT)
    held.join(900)
    assert held.exitcode == 0
    records = read_ledger(job.audits)
    assert [record.id for record in records] == ["a", "c", "b"]
    drawn = [set(unpack(record.ids).tolist()) for record in records]
    assert len(set.union(*drawn)) == sum(map(len, drawn)) == 60
