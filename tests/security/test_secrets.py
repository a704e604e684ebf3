"""Secrets of the environment are nowhere in what a run writes and says: a whole run on S3 and Ray,
searched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.engine.runner import _to_answer
from storage import s3
from storage.uri import open_store

KEY, SECRET, TOKEN, PASSWORD = (
    "PLANTEDKEYID12345678",
    "planted-secret-key-1",
    "planted-token-2",
    "planted-password-3",
)
PLANTED = (KEY, SECRET, TOKEN, PASSWORD)


def counterfactory(*args: str, endpoint: str, temp: Path) -> subprocess.CompletedProcess[bytes]:
    """The command in a process of its own, with the planted environment."""
    names = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": TOKEN}
    address = endpoint.replace("http://", f"http://someone:{PASSWORD}@")
    env = {
        **os.environ,
        **names,
        "AWS_ENDPOINT_URL": address,
        "RAY_TMPDIR": str(temp),
        "TMPDIR": str(temp),
    }
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *args], env=env, capture_output=True, timeout=240
    )


def searched(text: bytes) -> list[str]:
    return [secret for secret in PLANTED if secret.encode() in text]


@pytest.fixture
def temp() -> Iterator[Path]:
    """A folder with a name short enough for Ray's sockets."""
    folder = Path(tempfile.mkdtemp(prefix="cf-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_a_whole_run_holds_no_secret(
    s3_folder: str, s3_endpoint: str, faces: Path, temp: Path
) -> None:
    store = open_store(s3_folder)
    store.write("data/x.parquet", next(faces.glob("test-*.parquet")).read_bytes())
    command = [
        "run",
        "demo-plain",
        "--out",
        f"{s3_folder}/runs",
        "--set",
        f"data.path={s3_folder}/data",
    ]
    for item in (
        "method.settings.max_steps=3",
        "score.cout_steps=2",
        "score.bootstrap=20",
        "engine.workers=1",
    ):
        command += ["--set", item]
    done = counterfactory(*command, endpoint=s3_endpoint, temp=temp)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert searched(done.stdout + done.stderr) == []
    names = store.list("runs")
    assert any(name.endswith("report.html") for name in names)
    told = {name: searched(store.read(name)) for name in names}
    assert {name: found for name, found in told.items() if found} == {}
    logs = [path for path in temp.rglob("*") if path.is_file()]
    assert {str(path): found for path in logs if (found := searched(path.read_bytes()))} == {}


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_failures_hold_no_secret(
    s3_folder: str, s3_endpoint: str, faces: Path, temp: Path, engine: str
) -> None:
    """A bucket that is not there, behind an address with a password; and a run's name with a key in
    it.
    """
    if engine == "ray":
        command = [
            "run",
            "demo-plain",
            "--out",
            "s3://no-such-bucket/runs",
            "--set",
            f"data.path={faces}",
        ]
        done = counterfactory(*command, "--engine", "ray", endpoint=s3_endpoint, temp=temp)
    else:
        done = counterfactory(
            "show", f"s3://{KEY}:{SECRET}@bucket/run", endpoint=s3_endpoint, temp=temp
        )
    assert done.returncode == 2
    assert searched(done.stdout + done.stderr) == []
    assert b"Traceback" not in done.stderr


def test_the_clusters_address_is_in_no_paper_of_a_run(faces: Path, tmp_path: Path) -> None:
    command = [
        "generate",
        "demo-plain",
        "--engine",
        "local",
        "--address",
        "192.0.2.9:6379",
        "--out",
        str(tmp_path),
    ]
    for item in (f"data.path={faces}", "data.rows=0:2", "method.settings.max_steps=1", "name=x"):
        command += ["--set", item]
    assert main(command) == 0
    for name in ("plan.json", "MANIFEST.json", "config.yaml"):
        assert b"192.0.2.9" not in (tmp_path / "x" / name).read_bytes(), name


@pytest.mark.parametrize("key", ["data.path", "models.classifier.weights", "out"])
def test_a_pre_signed_address_is_refused_without_its_signature(
    key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"https://b.s3.amazonaws.com/x.parquet?X-Amz-Credential={KEY}&X-Amz-Signature={SECRET}"
    assert main(["run", "demo-plain", "--engine", "local", "--set", f"{key}={url}"]) == 2
    told = capsys.readouterr().err
    assert searched(told.encode()) == []
    assert told.count("\n") == 1


def test_a_traceback_of_a_worker_is_cleaned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    told = _to_answer(
        RuntimeError(f"http://me:{PASSWORD}@host/?X-Amz-Signature={TOKEN} {SECRET}"), "runs/x"
    )
    assert "RuntimeError: http://***@host/?X-Amz-Signature=*** ***" in told["error"]


def test_a_store_is_sent_to_workers_as_its_name_only(
    s3_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pickle

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    store = open_store(s3_folder)
    store.write("x", b"")
    assert searched(pickle.dumps(store)) == []
    assert SECRET not in repr(store)
    assert SECRET not in str(vars(s3))
