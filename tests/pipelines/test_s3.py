"""The same commands on a bucket: data, run and report in S3, and a resume that redoes nothing."""

import pytest

from pipelines.cli import main
from storage.uri import open_store


def test_a_run_in_a_bucket(
    s3_folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    assert main(["prepare", "faces", f"{s3_folder}/data", "--rows", "6", "--test-rows", "2"]) == 0
    command = [
        "run",
        "demo-plain",
        "--engine",
        "local",
        "--out",
        f"{s3_folder}/runs",
        "--set",
        f"data.path={s3_folder}/data",
    ]
    command += ["--set", "method.settings.max_steps=5", "--set", "engine.shard_rows=4"]
    assert main(command) == 0
    store = open_store(f"{s3_folder}/runs/demo-plain")
    commits = {name: store.read(name) for name in store.list("commit/generate")}
    assert len(commits) == 3  # two files, and no shard crosses from one into the other
    assert main(command) == 0
    assert {name: store.read(name) for name in store.list("commit/generate")} == commits
    assert main(["verify", store.uri]) == 0
    assert main(["show", store.uri]) == 0
    assert "8 counterfactuals" in capsys.readouterr().out
    for name in ("report.html", "MANIFEST.json", "plan.json", "config.yaml"):
        assert b"planted-secret" not in store.read(name)
