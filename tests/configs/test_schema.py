"""Settings: what is refused, in which words, and how presets and --set combine."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.schema import RunConfig, fingerprint, load_run, load_train
from configs.strict import UserError, apply_sets, check, presets, read_yaml

GOOD: dict[str, Any] = {
    "name": "trial",
    "data": {"path": "faces"},
    "models": {
        "classifier": {"role": "classifier", "target": "models.x.Net", "classes": ["a", "b"]}
    },
    "method": {"target": "counterfactory.methods.ace.ACE"},
}


def broken(change: str) -> dict[str, Any]:
    return apply_sets(yaml.safe_load(yaml.safe_dump(GOOD)), [change], {})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("enigne.workers=2", "unknown key 'enigne': did you mean 'engine'?"),
        ("data.pth=x", "unknown key 'data.pth': did you mean 'path'?"),
        (
            "models.classifier.wieghts=x",
            "unknown key 'models.classifier.wieghts': did you mean 'weights'?",
        ),
        ("engine.workers=0", "engine.workers: input should be greater than or equal to 1, got 0"),
        ("data.rows=5-9", "expected a slice like 5000:6000, got '5-9'"),
        ("data.crop=[9, 0, 3, 5]", "expected left < right"),
        ("method.target=system", "method.target"),
        ("target={}", "exactly one of rule, name, column"),
        ("models.classifier.std=[0, 0, 0]", "mean and std of one length"),
        ("models.classifier.classes=[]", "expected `classes`"),
        ("name=../escape", "name"),
        ("score.cout_steps=fifty", "score.cout_steps"),
        (
            "models.classifier.classes=[no, yes]",
            "classes.0: input should be a valid string, got False",
        ),
        ("models.classifier.classes=[no, yes]", "write it in quotes (no, off and false are one"),
        ("data.label=7", "data.label: input should be a valid string, got 7: write it in quotes"),
        ("name=2020-01-01", "got datetime.date(2020, 1, 1): write it in quotes"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(change: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        check(RunConfig, broken(change), "trial.yaml")
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("trial.yaml: ")


def test_a_sigmoid_head_with_three_classes_is_refused() -> None:
    raw = broken("models.classifier.head=sigmoid")
    raw["models"]["classifier"]["classes"] = ["a", "b", "c"]
    with pytest.raises(UserError, match="expected 2 classes"):
        check(RunConfig, raw, "trial.yaml")


def test_a_class_may_be_called_by_a_number() -> None:
    run = load_run("demo-plain", ["models.classifier.classes=[7, 8]", "target=7"])
    assert run.models["classifier"].classes == ["7", "8"]
    assert run.target.name == "7"
    assert load_run("demo-plain", ["target={name: 8}"]).target.name == "8"
    assert load_run("demo-plain", ["target=runner-up"]).target.rule == "runner-up"
    with pytest.raises(UserError, match=r"target\.name: .* got False: write it in quotes"):
        load_run("demo-plain", ["target=no"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("out #1", "out #1"),
        ("#1", "#1"),
        ("a#b", "a#b"),
        ("'a' # b", "a"),
        ("5 # five", 5),
        ("~ # none", None),
        ("[a] # list", ["a"]),
    ],
)
def test_a_hash_in_a_path_is_no_comment(text: str, value: Any) -> None:
    assert apply_sets({}, [f"x={text}"], {}) == {"x": value}


@pytest.mark.parametrize("name", presets("run"))
def test_every_run_preset_is_valid_and_survives_a_round_trip(name: str) -> None:
    config = load_run(name)
    again = check(RunConfig, yaml.safe_load(config.model_dump_json()), name)
    assert again == config


@pytest.mark.parametrize("name", presets("train"))
def test_every_training_preset_is_valid(name: str) -> None:
    assert load_train(name).name == name


def test_set_reaches_into_a_preset() -> None:
    plain = load_run("demo-plain")
    changed = load_run(
        "demo-plain",
        ["method.settings.max_steps=7", "data.size=32", "models.classifier.sha256=null"],
    )
    assert changed.method.settings["max_steps"] == 7
    assert {**changed.method.settings, "max_steps": None} == {
        **plain.method.settings,
        "max_steps": None,
    }
    assert (changed.data.size, changed.data.label) == (32, plain.data.label)
    assert changed.models["classifier"].classes == plain.models["classifier"].classes


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'demo-plain'"):
        load_run("demo-plane")


def test_yaml_cannot_make_objects(tmp_path: Any) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text("name: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(UserError, match="expected YAML"):
        load_run(str(path))


def test_a_fingerprint_ignores_the_order_of_keys_and_nothing_else() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1, "b": [1, 2]}) != fingerprint({"a": 1, "b": [2, 1]})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("24:32", "24:32"),
        ("1e-3", 0.001),
        ("12", 12),
        ("-3", -3),
        ("0.5", 0.5),
        (".5", 0.5),
        ("1_000", "1_000"),
        ("true", True),
    ],
)
def test_numbers_are_what_people_mean(text: str, value: Any) -> None:
    read = read_yaml(f"a: {text}")["a"]
    assert read == value
    assert type(read) is type(value)
    assert load_run("demo-plain", ["data.rows=24:32"]).data.rows == "24:32"


def test_a_preset_starts_from_another_one() -> None:
    whole, cut = (load_run("faces", [f"method={name}"]) for name in ("ace-demo", "ace-demo-core"))
    assert (whole.method.core, cut.method.core) == (False, True)
    assert (cut.method.target, cut.method.settings) == (whole.method.target, whole.method.settings)
    assert cut.method.paper == whole.method.paper
    assert cut.method.preset == "ace-demo-core"
    own = load_run("faces", ["method.core=true", "method.settings.lr=0.5"])
    assert (own.method.core, own.method.settings["lr"]) == (True, 0.5)


def test_files_that_start_from_one_another(tmp_path: Path) -> None:
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text("preset: fgsm-demo\nsettings: {eps: 3.0}\n")
    two.write_text(f"preset: {one}\ncore: true\n")
    method = load_run("faces", [f"method={two}"]).method
    assert (method.settings, method.core) == ({"eps": 3.0}, True)
    one.write_text(f"preset: {two}\n")
    with pytest.raises(UserError, match="expected a method preset that is not itself") as error:
        load_run("faces", [f"method={two}"])
    assert "\n" not in str(error.value)
