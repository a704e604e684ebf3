"""The manifests in configs/cluster: valid, without addresses or secrets, and named by
their tick."""

import copy
import os
import re
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from configs.audit import load_audit, run_of

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs" / "cluster").glob("*.yaml"))
SCHEMA = yaml.safe_load((Path(__file__).parent / "kubernetes.yaml").read_text())
CHECK = jsonschema.Draft7Validator(SCHEMA)


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "configs" / "cluster" / f"{name}.yaml").read_text()))


def values(tree: Any) -> list[Any]:
    """Every leaf of a tree."""
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in values(value)]
    return [leaf for value in tree for leaf in values(value)] if isinstance(tree, list) else [tree]


def containers(tree: Any) -> list[dict[str, Any]]:
    if isinstance(tree, list):
        return [found for item in tree for found in containers(item)]
    if not isinstance(tree, dict):
        return []
    return [
        *tree.get("containers", []),
        *(found for value in tree.values() for found in containers(value)),
    ]


def test_the_manifests_are_these() -> None:
    CHECK.check_schema(SCHEMA)
    assert [path.stem for path in FILES] == ["cronjob", "raycronjob", "rayjob"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_manifest_is_valid(path: Path) -> None:
    for document in documents(path.stem):
        CHECK.validate(document)
    assert documents(path.stem)[0]["kind"] == "ConfigMap"


@pytest.mark.parametrize(
    ("name", "keys", "value"),
    [
        ("rayjob", ["spec", "entryPoint"], "x"),
        ("rayjob", ["spec", "rayClusterSpec", "authOptions", "mode"], "password"),
        ("rayjob", ["spec", "rayClusterSpec", "workerGroupSpecs", 0, "minReplicas"], "4"),
        ("raycronjob", ["spec", "jobTemplate", "spec"], {}),
        ("raycronjob", ["spec", "concurrencyPolicy"], "Forbid"),
        ("cronjob", ["spec", "concurrencyPolicy"], "Never"),
        ("cronjob", ["spec", "jobTemplate", "spec", "template", "spec", "restartPolicy"], "Always"),
        ("cronjob", ["spec", "schedule"], "at two"),
        (
            "cronjob",
            ["spec", "jobTemplate", "spec", "podFailurePolicy", "rules", 0, "action"],
            "Fail",
        ),
    ],
)
def test_the_schema_notices_a_mistake(name: str, keys: list[Any], value: Any) -> None:
    document = copy.deepcopy(documents(name)[1])
    place = document
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        CHECK.validate(document)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_images_have_no_address_and_secrets_are_named_only(path: Path) -> None:
    found = containers(documents(path.stem))
    assert found
    for container in found:
        assert container["image"] == f"counterfactory:{version('counterfactory')}"
        assert container["envFrom"] == [{"secretRef": {"name": "counterfactory-s3"}}]
        assert not any(entry.get("value") for entry in container.get("env", []))
        assert container["resources"]["requests"] == container["resources"]["limits"]
    assert not re.search(r"AWS_|AUTH_TOKEN", path.read_text())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_audit_in_a_manifest_is_one(path: Path, tmp_path: Path) -> None:
    (tmp_path / "audit.yaml").write_text(documents(path.stem)[0]["data"]["audit.yaml"])
    audit = load_audit(str(tmp_path / "audit.yaml"))
    assert audit.out.startswith("s3://")
    config = run_of(audit)
    assert config.data.path.startswith("s3://")
    assert all(str(model.weights).startswith("s3://") for model in config.models.values())
    assert config.engine.gpus == 0.5
    script = values(documents(path.stem)[1]["spec"])
    assert any(
        "counterfactory audit /config/audit.yaml --id" in str(text)
        or "/config/nightly.sh" in str(text)
        for text in script
    )


def test_an_alarm_and_a_users_error_are_not_retried() -> None:
    job = documents("cronjob")[1]["spec"]["jobTemplate"]["spec"]
    (rule,) = job["podFailurePolicy"]["rules"]
    names = [container["name"] for container in job["template"]["spec"]["containers"]]
    assert rule == {
        "action": "FailJob",
        "onExitCodes": {"containerName": names[0], "operator": "In", "values": [1, 2]},
    }
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # which the policy needs
    # a RayJob has no such policy: its retry reads the committed verdict
    assert documents("rayjob")[1]["spec"]["backoffLimit"] == 1
    assert documents("raycronjob")[1]["spec"]["jobTemplate"]["backoffLimit"] == 1


def named(script: str, tmp_path: Path, **environment: str) -> str:
    """The audit's id that a script gives, with a `date` that says what the test wants as now."""
    for name, text in (("counterfactory", 'echo "$@"'), ("date", 'exec /bin/date "$@"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    if "NOW" in environment:  # "2 hours ago" counted from there
        (tmp_path / "date").write_text('#!/bin/sh\nexec /bin/date -u -d "$NOW $3" "$4"\n')
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-c", script],
        env={**environment, "PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip().removeprefix("audit /config/audit.yaml --id ")


def test_a_cron_jobs_audit_is_named_by_the_scheduled_minute(tmp_path: Path) -> None:
    script = documents("cronjob")[0]["data"]["nightly.sh"]
    minutes = 29_397_720  # 2025-11-23 02:00 UTC
    assert named(script, tmp_path, JOB=f"counterfactory-nightly-{minutes}") == "2025-11-23T0200"
    assert (
        named(script, tmp_path, JOB=f"counterfactory-nightly-{minutes + 1440}") == "2025-11-24T0200"
    )


def test_a_ray_cron_jobs_audit_is_named_by_the_day_of_the_last_tick(tmp_path: Path) -> None:
    script = documents("raycronjob")[0]["data"]["nightly.sh"]
    ticks = [
        "2026-11-22 02:00:07",
        "2026-11-22 18:00:00",
        "2026-11-23 01:59:59",
        "2026-11-23 02:00:00",
    ]
    names = [named(script, tmp_path, NOW=f"{tick} UTC") for tick in ticks]
    assert names == ["2026-11-22"] * 3 + ["2026-11-23"]


def test_the_shift_is_the_schedules_hour_and_a_late_retry_ends_before_the_next_tick() -> None:
    config, job = documents("raycronjob")
    hour = int(job["spec"]["schedule"].split()[1])
    assert f"'{hour} hours ago'" in config["data"]["nightly.sh"]
    assert job["spec"]["timeZone"] == "Etc/UTC"
    assert job["spec"]["jobTemplate"]["activeDeadlineSeconds"] < 24 * 3600
