"""Audits' settings: presets, levels, and mistakes that end in one line."""

from typing import Any

import pytest

from configs.audit import AuditConfig, load_audit, run_of, today
from configs.strict import UserError, check, presets
from pipelines.audit.findings import level_of


def made(**settings: Any) -> AuditConfig:
    raw = {"name": "a", "run": {"method": "pixel-pgd-demo", **RUN}, "budget": 10, **settings}
    return check(AuditConfig, raw, "test")


RUN = {
    "data": {"path": "nowhere", "id": "id"},
    "models": {"classifier": "faces-plain"},
}


@pytest.mark.parametrize("name", presets("audit"))
def test_a_preset_is_an_audit(name: str) -> None:
    audit = load_audit(name, ["run.engine.kind=local", "id=2026-11-22"])
    assert audit.id == "2026-11-22"
    assert run_of(audit).engine.kind == "local"
    assert run_of(audit).data.id is not None


def test_an_audit_without_an_id_is_todays() -> None:
    assert load_audit("faces").id == today()


def test_settings_that_begin_with_run_are_the_runs() -> None:
    audit = load_audit(
        "faces", ["run.data.rows=:9", "budget=7", "run.models.classifier=faces-biased"]
    )
    assert (audit.budget, run_of(audit).data.rows) == (7, ":9")
    assert run_of(audit).models["classifier"].preset == "faces-biased"


def test_a_run_by_its_presets_name() -> None:
    audit = made(run="demo-plain")
    assert run_of(audit).method.settings["threshold"] == 0.997


def test_the_level_is_given_or_follows_from_a_years_alarms() -> None:
    assert level_of(made(alpha=0.01)) == 0.01
    assert level_of(made()) == pytest.approx(0.000986, rel=1e-3)
    assert level_of(made(alarms={"per_year": 0.1, "audits": 12})) == pytest.approx(
        0.00874, rel=1e-3
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"alpha": 0.01, "alarms": {"audits": 12}}, "expected `alarms` or `alpha`, got both"),
        ({"alpha": 1.0}, "alpha: input should be less than 1"),
        ({"budget": 0}, "budget: input should be greater than or equal to 1"),
        ({"strata": ["class", "class"]}, "expected each column once, got class, class"),
        ({"id": "first"}, "expected another id than `first`"),
        ({"id": "a/b"}, "id: string should match"),
        ({"id": [3]}, "id: input should be a valid string"),
        ({"bugdet": 3}, "did you mean 'budget'?"),
    ],
)
def test_a_mistake_is_one_line(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        made(**settings)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_data_without_ids_or_labels_are_refused() -> None:
    with pytest.raises(UserError, match=r"run\.data\.id: expected the column that names each row"):
        run_of(made(run={**RUN, "method": "pixel-pgd-demo", "data": {"path": "nowhere"}}))
    with pytest.raises(UserError, match=r"strata: class: expected run\.data\.label"):
        run_of(made(strata=["class"]))


def test_an_id_may_be_an_unquoted_date_or_number() -> None:
    audit = load_audit("faces", ["id=2026-11-22", "reference=47"])
    assert (audit.id, audit.reference) == ("2026-11-22", "47")
