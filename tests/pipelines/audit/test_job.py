"""Audits of a tiny classifier: the first, the next, a swapped classifier, and every mistake."""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import yaml
from audit_place import Place  # type: ignore[import-not-found]

from configs.audit import AuditConfig, run_of
from configs.strict import UserError, check
from counterfactory.metrics.alarms import flips_needed
from pipelines.audit.job import audit, store_of
from pipelines.audit.ledger import read_ledger
from pipelines.audit.make import NotYet, folder_of
from pipelines.cli import main
from storage.errors import BadRecord
from storage.names import unpack
from storage.uri import Store
from storage.verify import verify

ROOT = Path(__file__).parents[3]
SCHEMA = ROOT / "pipelines" / "audit" / "findings.schema.json"
OUTPUTS = ("findings.json", "junit.xml", "audit.prom", "report.html")


def files(store: Store, name: str) -> dict[str, bytes]:
    return {path: folder_of(store, name).read(path) for path in OUTPUTS}


def test_audits_of_the_same_classifier_are_clean_and_share_no_row(place: Place) -> None:
    first = audit(place.config("2026-11-01", strata=["group"]))
    second = audit(place.config("2026-11-08", strata=["group"]))
    assert (first["verdict"], first["tests"], first["reference"]) == ("reference", [], None)
    assert second["verdict"] == "clean"
    assert second["reference"] == {"id": "2026-11-01", "same_classifier": True}
    assert second["rows"] == {
        "candidates": 36,
        "drawn": 24,
        "answered": 24,
        "flipped": second["rows"]["flipped"],
        "without_id": 0,
    }
    kinds = [test["kind"] for test in second["tests"]]
    assert set(kinds) == {"flip_rate", "attribute", "place", "kind", "distance"}
    store = store_of(place.config("x"))
    one, other = (set(unpack(record.ids).tolist()) for record in read_ledger(store))
    assert len(one) == len(other) == 24
    assert not one & other
    assert verify(Store(folder_of(store, "2026-11-08").url("run"))) == []
    told = json.loads(store.read("audit.json"))
    assert told["run"]["engine"]["address"] is None
    assert run_of(check(AuditConfig, told, "audit.json")).data.id == "id"


def test_findings_follow_the_published_schema(place: Place) -> None:
    schema = json.loads(SCHEMA.read_text())
    assert (ROOT / "docs" / SCHEMA.name).read_text() == SCHEMA.read_text()
    jsonschema.Draft202012Validator.check_schema(schema)
    check = jsonschema.Draft202012Validator(schema)
    for name, weights in (("a", "old"), ("b", "new")):
        audit(place.config(name, weights=weights, budget=20, strata=["class"]))
        found = json.loads(folder_of(store_of(place.config("a")), name).read("findings.json"))
        check.validate(found)
        assert found.keys() == schema["properties"].keys()
    untested = [test for test in found["tests"] if not test["tested"]]
    assert untested
    assert all(test["note"].startswith("not tested: ") for test in untested)
    found["tests"][0]["alarm"] = "yes"
    with pytest.raises(jsonschema.ValidationError):
        check.validate(found)


def test_a_finished_audit_is_read_and_not_made_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit(place.config("a"))
    found = audit(place.config("b"))
    store = store_of(place.config("a"))
    before, entries = files(store, "b"), store.list("ledger")
    # neither the data nor the classifier are needed any more
    for path in place.folder.glob("data/*"):
        path.unlink()
    monkeypatch.setattr("pipelines.audit.make.pin", None)
    for lost in ("junit.xml", "report.html"):
        folder_of(store, "b").remove(lost)
    assert audit(place.config("b")) == found
    assert files(store, "b") == before
    assert store.list("ledger") == entries


def test_another_classifier_starts_afresh_and_is_compared_with_the_first_audit(
    place: Place,
) -> None:
    audit(place.config("a", budget=60))
    with pytest.raises(UserError, match="expected rows that were not audited yet"):
        audit(place.config("b", budget=60))
    found = audit(place.config("c", budget=60, weights="new"))
    assert found["rows"]["candidates"] == found["rows"]["drawn"] == 60
    assert found["reference"] == {"id": "a", "same_classifier": False}
    store = store_of(place.config("a"))
    assert [record.id for record in read_ledger(store)] == ["a", "c"]


def test_an_alarm_is_exit_code_1_and_a_failure_in_every_output(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The classifier's answers differ in their distance where the method may go farther."""
    path = place.folder / "watch.yaml"

    def call(name: str, **settings: Any) -> int:
        path.write_text(yaml.safe_dump(place.config(name, budget=30, **settings).model_dump()))
        return main(["audit", str(path)])

    assert call("a") == os.EX_OK
    store = store_of(place.config("a"))
    real = read_measured_of()

    def farther(store: Store, run: Store, record: Any, config: Any) -> Any:
        found = real(store, run, record, config)
        if record.id == "a":
            return found
        answers = found.answers
        changed = np.ones_like(answers.changed)
        return replace(
            found, answers=replace(answers, distance=answers.distance + 1, changed=changed)
        )

    monkeypatch.setattr("pipelines.audit.make.read_measured", farther)
    assert call("b") == 1
    said = capsys.readouterr().out
    assert "audit b: Different from audit a: " in said
    assert "flips that change Round 0 % -> 100 %" in said
    findings = json.loads(folder_of(store, "b").read("findings.json"))
    alarmed = [test["name"] for test in findings["tests"] if test["alarm"]]
    assert {"Round", "Blue"} <= set(alarmed)
    suite = ElementTree.fromstring(folder_of(store, "b").read("junit.xml"))[0]
    assert suite.get("failures") == str(len(alarmed))
    assert len(suite.findall("testcase/failure")) == len(alarmed)
    assert len(suite.findall("testcase/skipped")) == sum(not t["tested"] for t in findings["tests"])
    metrics = folder_of(store, "b").read("audit.prom").decode()
    assert 'counterfactory_audit_alarm{name="watch"} 1\n' in metrics
    assert store.read("audit.prom").decode() == metrics
    page = folder_of(store, "b").read("report.html").decode()
    assert 'class="unsound"' in page
    assert page.count('<tr class="alarm">') == len(alarmed)
    monkeypatch.undo()
    assert call("b") == 1  # the committed verdict
    # an older audit that is called again does not replace the latest metrics
    assert call("a") == os.EX_OK
    assert store.read("audit.prom").decode() == metrics


def read_measured_of() -> Any:
    from pipelines.audit.measure import read_measured

    return read_measured


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"method": {"settings": {"max_steps": 9}}},
            "another method: put it back",
        ),
        ({"interventions": {"grid": 8}}, "another interventions"),
        ({"data": {"crop": [0, 0, 15, 16]}}, "another data"),
    ],
)
def test_audits_that_cannot_be_compared_are_refused(
    place: Place, settings: dict[str, Any], said: str
) -> None:
    audit(place.config("a"))
    with pytest.raises(UserError, match=said):
        audit(place.run_with(place.config("b"), **settings))
    # it has drawn no rows: with the old settings its id is free
    assert [record.id for record in read_ledger(store_of(place.config("a")))] == ["a"]


def test_a_named_reference_must_be_another_finished_audit(place: Place) -> None:
    audit(place.config("a"))
    audit(place.config("b", budget=8))
    found = audit(place.config("c", budget=8, reference="b"))
    assert found["reference"]["id"] == "b"
    for name in ("d", "nobody"):
        with pytest.raises(UserError, match=rf"expected another audit of .* got '{name}'"):
            audit(place.config("d", budget=8, reference=name))
    folder_of(store_of(place.config("a")), "b").remove("findings.json")
    with pytest.raises(NotYet, match="expected the reference b to be finished"):
        audit(place.config("d", budget=8, reference="b"))


def test_an_unfinished_reference_is_exit_code_75(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    path = place.folder / "watch.yaml"
    for name, code in (("a", 0), ("b", os.EX_TEMPFAIL)):
        path.write_text(yaml.safe_dump(place.config(name).model_dump()))
        assert main(["audit", str(path)]) == code
        folder_of(store_of(place.config("a")), "a").remove("findings.json")
    assert "unfinished" in capsys.readouterr().err


def test_an_audit_is_resumed_with_the_classifier_that_it_was_begun_with(place: Place) -> None:
    audit(place.config("a"))
    folder_of(store_of(place.config("a")), "a").remove("findings.json")
    with pytest.raises(UserError, match=r"audit a: .* got another models\.classifier: put it back"):
        audit(place.config("a", weights="new"))


def test_a_gap_or_damage_in_the_ledger_is_noticed(place: Place) -> None:
    for name in ("a", "b"):
        audit(place.config(name, budget=8))
    store = store_of(place.config("a"))
    damaged = store.read("ledger/000001.json").replace(b'"rows": 8', b'"rows": 9')
    (place.folder / "out" / "watch" / "ledger" / "000001.json").write_bytes(damaged)
    with pytest.raises(BadRecord, match=r"000001\.json: expected the bytes that were sealed"):
        audit(place.config("c", budget=8))
    store.remove("ledger/000000.json")
    with pytest.raises(BadRecord):
        audit(place.config("c", budget=8))


def test_all_rows_quarantined_is_a_mistake_and_no_alarm(place: Place) -> None:
    (place.folder / "data" / "a.parquet").unlink()
    nothing = [{"bytes": b"no picture", "path": None}] * 20
    place.write("b", 40, 20, image=nothing)
    with pytest.raises(UserError, match="expected rows that can be used, got all 20 quarantined"):
        audit(place.config("a"))


def test_an_audit_in_a_bucket(place: Place, s3_folder: str) -> None:
    config = place.config("a", budget=8, out=s3_folder)
    first = audit(config)
    assert first["rows"]["answered"] == 8
    assert audit(place.config("b", budget=8, out=s3_folder))["reference"]["id"] == "a"
    store = store_of(config)
    assert store.uri.startswith("s3://")
    assert len(read_ledger(store)) == 2


def test_the_plan_prints_flips_needed_and_runs_nothing(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    path = place.folder / "watch.yaml"
    config: AuditConfig = place.config("a", alpha=0.001)
    path.write_text(yaml.safe_dump(config.model_dump()))
    assert main(["audit", str(path), "--plan"]) == os.EX_OK
    said = capsys.readouterr().out
    # flip rate, two attributes, ten places, three kinds, three classes
    assert "shared by about 19 tests" in said
    needed = str(flips_needed(0.02, 0.12, 0.001, tests=19))
    assert ["2", "%", "12", "%", needed] in [line.split()[:5] for line in said.splitlines()]
    assert "half of the audits at most" in said
    assert not (place.folder / "out").exists()
