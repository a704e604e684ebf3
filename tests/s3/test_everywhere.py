"""s3:// wherever a path goes, a run through a bad line, and refusals that end in one line on every
verb.
"""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from actors.pinned.load import model_digest, weights_folder
from configs.schema import RunConfig, load_run
from counterfactory.metrics.judge import CRITERIA
from pipelines.cli import main
from pipelines.engine import cluster
from pipelines.engine.runner import KINDS, _to_answer
from storage import s3_retry
from storage.attempts import LOCAL, begin
from storage.cache import cached, folder_digest
from storage.commit import read_commits
from storage.errors import NoAnswer
from storage.gc import UNFINISHED, garbage
from storage.run import read_plan
from storage.uri import open_store
from storage.verify import verify

TINY = ["--engine", "local", "--set", "method.settings.max_steps=3", "--set", "engine.shard_rows=3"]
TINY += ["--set", "score.cout_steps=2", "--set", "score.bootstrap=20"]


@pytest.fixture
def data(faces: Path, s3_folder: str) -> str:
    """A file of eight drawn faces in the bucket."""
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(pq.read_table(next(faces.glob("test-*.parquet"))), out, row_group_size=3)
    open_store(s3_folder).write("data/x.parquet", out.getvalue())
    return f"{s3_folder}/data"


@pytest.fixture
def config(data: str, s3_folder: str) -> str:
    """The demo's config in the bucket, with its weights there, too."""
    store = open_store(s3_folder)
    resolved = json.loads(load_run("demo-plain").model_dump_json())
    for spec in resolved["models"].values():
        name = spec["weights"].removeprefix("zoo:")
        store.write(f"weights/{name}", Path("counterfactory/zoo", name).read_bytes())
        spec["weights"] = f"{s3_folder}/weights/{name}"
    resolved |= {"data": resolved["data"] | {"path": data}, "out": f"{s3_folder}/runs", "name": "x"}
    store.write("configs/x.yaml", yaml.safe_dump(resolved).encode())
    return f"{s3_folder}/configs/x.yaml"


def test_config_data_weights_answers_and_run_in_a_bucket(
    config: str, s3_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", config, *TINY]) == 0, capsys.readouterr().err
    store = open_store(f"{s3_folder}/runs/x")
    assert verify(store) == []
    lines = [
        line
        for name in store.list("judge")
        if name.endswith("jsonl")
        for line in store.read(name).splitlines()
    ]
    message = {"message": {"content": json.dumps(dict.fromkeys(CRITERIA, 5))}}
    response = {"response": {"body": {"choices": [message]}}}
    answers = [{"custom_id": json.loads(line)["custom_id"], **response} for line in lines]
    text = "\n".join(json.dumps(answer) for answer in answers)
    open_store(s3_folder).write("answers/a.jsonl", text.encode())
    assert main(["judge", store.uri, "--answers", f"{s3_folder}/answers", *TINY[:2]]) == 0
    assert "8 parsed" in capsys.readouterr().out
    formats = ["--set", "augment.formats=[parquet, webdataset, folder]"]
    rows = ["--set", "augment.splits=[test]", "--set", "augment.balance=false"]
    rows += ["--set", "augment.label=target", "--set", "augment.min_target=0"]
    for command in (["augment", *formats, *rows], ["report"]):
        assert main([command[0], store.uri, *TINY[:2], *command[1:]]) == 0
    counts = json.loads(store.read("augment/counts.json"))
    folder = f"augment/{counts['formats']['folder']}"
    assert len(store.read(f"{folder}/metadata.csv").splitlines()) == 1 + counts["kept"]
    for name in (
        "report.html",
        "augment/data/part-00000.parquet",
        "augment/webdataset/part-00000.tar",
        "augment/croissant.json",
        "judge/scores.parquet",
        "MANIFEST.json",
    ):
        assert store.is_file(name)
    for command in (["show"], ["verify"], ["gc"]):
        assert main([*command, store.uri]) == 0
    assert main(["doctor", config, *TINY]) in (0, 1)


def test_training_from_and_to_a_bucket(
    data: str, s3_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [
        f"data.path={data}",
        "data.rows=0:8",
        "steps=2",
        "batch=4",
        f"out={s3_folder}/models/m.safetensors",
    ]
    sets += ["init=null", f"holdout.path={data}", "holdout.rows=0:8"]
    command = [
        "train",
        "classifier",
        "faces-second",
        *[part for item in sets for part in ("--set", item)],
    ]
    assert main(command) == 0, capsys.readouterr().err
    store = open_store(f"{s3_folder}/models")
    card = yaml.safe_load(store.read("m.yaml"))
    assert store.list("") == ["m.safetensors", "m.yaml"]
    assert card["training"]["config"]["out"] == f"{s3_folder}/models/m.safetensors"
    assert card["model"]["sha256"] == model_digest(
        {"weights": f"{s3_folder}/models/m.safetensors"}, "m"
    )


def test_a_model_folder_is_fetched_once_and_whole(
    proxy: Any, s3_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COUNTERFACTORY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(s3_retry, "FIRST_WAIT", 0.001)
    store = open_store(f"{s3_folder}/hub")
    content = {
        "config.json": b"{}",
        "model.safetensors": b"w" * 200_000,
        "unet/config.json": b"[]",
        "x.bin": b"pickle",
    }
    for name, body in content.items():
        store.write(name, body)
    monkeypatch.setenv(s3_retry.SECONDS, "0")
    proxy.fail("reset", "GET", "unet/config.json")
    with pytest.raises(OSError, match="expected S3 to answer"):
        cached(store.uri)
    monkeypatch.delenv(s3_retry.SECONDS)
    kept = [
        path
        for path in (tmp_path / "cache").rglob("*")
        if path.is_file() and path.suffix != ".lock"
    ]
    assert kept == [], "nothing half is kept"
    proxy.fail("cut", "GET", "model.safetensors")
    folder = weights_folder(store.uri, "weights")
    assert folder is not None
    whole = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert whole == {name: body for name, body in content.items() if name != "x.bin"}
    assert folder.name == folder_digest(folder) == model_digest({"weights": store.uri}, "m")
    proxy.seen.clear()
    assert cached(store.uri) == folder
    assert not any(method == "GET" and "list-type" not in path for method, path, _ in proxy.seen)
    store.replace("config.json", b'{"other": 1}')
    assert cached(store.uri) != folder
    shutil.rmtree(folder)


def test_a_hugging_face_folder_in_a_bucket(
    s3_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    from actors.pinned.load import load_models

    monkeypatch.setenv("COUNTERFACTORY_CACHE", str(tmp_path / "cache"))
    settings = {
        "embedding_size": 4,
        "hidden_sizes": [4],
        "depths": [1],
        "layer_type": "basic",
        "num_labels": 2,
    }
    ResNetForImageClassification(ResNetConfig(**settings)).save_pretrained(tmp_path / "hub")
    store = open_store(f"{s3_folder}/hub")
    for path in (tmp_path / "hub").iterdir():
        store.write(path.name, path.read_bytes())
    spec = {
        "role": "classifier",
        "source": "huggingface",
        "weights": store.uri,
        "classes": ["a", "b"],
    }
    # the same wherever it lies
    spec["sha256"] = model_digest({"weights": str(tmp_path / "hub")}, "classifier")
    model = load_models({"models": {"classifier": spec}}, ["classifier"], torch.device("cpu"))[
        "classifier"
    ]
    assert model(torch.rand(1, 3, 32, 32)).shape == (1, 2)


def test_a_generate_stage_through_a_bad_line(
    proxy: Any,
    config: str,
    s3_folder: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(s3_retry, "FIRST_WAIT", 0.001)
    proxy.fail("slow-down", "PUT", "/data/generate", times=4)
    proxy.fail("reset", "GET", "x.parquet", times=3)
    proxy.fail("cut", "GET", "x.parquet", times=3, after=2)
    proxy.fail("lost", "PUT", "/commit/generate/000001", times=2)
    proxy.fail("lost", "PUT", "plan.json")
    proxy.fail("slow-down", "GET", "list-type", times=3)
    proxy.fail("reset", "HEAD", times=3)
    assert main(["generate", config, *TINY]) == 0, capsys.readouterr().err
    store = open_store(f"{s3_folder}/runs/x")
    assert {how: proxy.told(how) for how in ("lost", "cut", "reset", "slow-down")} == {
        "lost": 3,
        "cut": 3,
        "reset": 6,
        "slow-down": 7,
    }
    assert verify(store) == []
    commits = read_commits(store, "generate")
    assert sum(commit.rows_in for commit in commits.values()) == 8
    assert len(store.list("data")) == len(commits) == 3, "no shard was done or written twice"


def test_a_bucket_that_fails_mid_run_is_gone_on_from(
    proxy: Any,
    config: str,
    s3_folder: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(s3_retry, "FIRST_WAIT", 0.0001)
    monkeypatch.setenv(s3_retry.SECONDS, "0.1")
    proxy.fail("slow-down", "PUT", "/commit/generate/000001", times=9999)
    assert main(["generate", config, *TINY]) == 75, (
        "not 2, which says that trying again is of no use"
    )
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "got 503 SlowDown" in told
    proxy.faults.clear()
    assert "the same command goes on" in told
    store = open_store(f"{s3_folder}/runs/x")
    first = store.version("commit/generate/000000.json")
    assert main(["generate", config, *TINY]) == 0
    assert store.version("commit/generate/000000.json") == first
    assert verify(store) == []


def test_a_row_is_not_blamed_for_outages(
    proxy: Any,
    config: str,
    s3_folder: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """The bucket goes away at the same point of a shard again and again, for good each time, after
    kills: row by row, and on the same row.
    """
    monkeypatch.setenv("COUNTERFACTORY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(s3_retry, "FIRST_WAIT", 0.0001)
    store = open_store(f"{s3_folder}/runs/x")
    proxy.fail("slow-down", "PUT", "/attempt/", times=9999)
    monkeypatch.setenv(s3_retry.SECONDS, "0.1")
    assert main(["generate", config, *TINY]) == 75  # it is planned
    proxy.faults.clear()
    for _ in range(3):
        begin(store, "generate", read_plan(store).shards[0], LOCAL)
    for _ in range(3):
        proxy.fail("slow-down", path="-ended", times=9999)
        assert main(["generate", config, *TINY]) == 75
        proxy.faults.clear()
    assert len([name for name in store.list("poison") if name.endswith("-begun")]) == 3
    assert main(["generate", config, *TINY]) == 0
    assert verify(store) == []
    assert not any(commit.quarantined for commit in read_commits(store, "generate").values())
    assert "(3 so far)" in capsys.readouterr().err  # the kills, and no outage


def test_no_answer_is_told_from_a_mistake_on_ray_too() -> None:
    answer = _to_answer(s3_retry.no_answer("bucket/x", "503 SlowDown", 9), "s3://bucket/x")
    assert KINDS[answer["kind"]] is NoAnswer
    assert "got 503 SlowDown 9 times" in answer["error"]


def test_a_probe_that_may_not_be_removed_stays_and_harms_nothing(
    proxy: Any,
    config: str,
    s3_folder: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import ray

    assert main(["generate", config, *TINY]) == 0
    store = open_store(f"{s3_folder}/runs/x")
    plan = read_plan(store)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}])
    asked: list[str] = []
    monkeypatch.setattr(
        cluster, "_ask", lambda nodes, needs: [told for _ in nodes if (told := lacks(needs, asked))]
    )
    proxy.fail("denied", "DELETE")
    cluster.check_nodes(store, RunConfig.model_validate(plan.config).models, plan.shards[0])
    assert len(asked) == 1
    assert proxy.told("denied") == 1
    assert [entry.path for entry in store.entries() if ".probe-" in entry.path] == asked
    assert main(["generate", config, *TINY]) == 0, capsys.readouterr().err
    assert verify(store) == []
    assert {
        file.path for file in garbage(store, older_than=-60, current=()) if file.why == UNFINISHED
    } == set(asked)


def lacks(needs: dict[str, Any], asked: list[str]) -> str | None:
    """What a node would say, on this one; keeps the name of the file that it was shown."""
    asked.append(needs["run"]["probe"])
    return cluster.find_missing(needs)


VERBS = {
    "config": ["run", "{bucket}/x.yaml"],
    "data": ["generate", "demo-plain", "--set", "data.path={bucket}/data", "--engine", "local"],
    "out": [
        "run",
        "demo-plain",
        "--out",
        "{bucket}/runs",
        "--set",
        "data.path={faces}",
        "--engine",
        "local",
    ],
    "weights": [
        "run",
        "demo-plain",
        "--set",
        "models.classifier.weights={bucket}/w.safetensors",
        "--engine",
        "local",
    ],
    "model folder": [
        "run",
        "demo-plain",
        "--set",
        "models.classifier.weights={bucket}/w",
        "--engine",
        "local",
    ],
    "show": ["show", "{bucket}/runs/x"],
    "verify": ["verify", "{bucket}/runs/x"],
    "gc": ["gc", "{bucket}/runs/x"],
    "score": ["score", "{bucket}/runs/x"],
    "report": ["report", "{bucket}/runs/x"],
    "list": ["list", "runs", "--out", "{bucket}/runs"],
    "init": ["init", "--data", "{bucket}/data", "--classifier", "faces-plain", "--name", "none"],
    "prepare": ["prepare", "digits", "{bucket}/digits"],
    "train data": ["train", "classifier", "faces-second", "--set", "data.path={bucket}/data"],
    "train out": ["train", "classifier", "faces-second", "--set", "out={bucket}/m.safetensors"],
}


@pytest.mark.parametrize("fault", ["denied", "no bucket"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_refusal_is_one_line_on_every_verb(
    proxy: Any,
    s3_folder: str,
    faces: Path,
    verb: str,
    fault: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bucket = s3_folder if fault == "denied" else "s3://no-such-bucket/x"
    if fault == "denied":
        proxy.fail("denied", times=999)
    assert main([part.format(bucket=bucket, faces=faces) for part in VERBS[verb]]) == 2
    told = capsys.readouterr().err.strip()
    assert told.startswith("counterfactory: ")
    assert "\n" not in told
    assert bucket.removeprefix("s3://").partition("/")[0] in told
    if fault == "denied":
        assert "check the credentials" in told
    assert "Traceback" not in told
