"""The one table of roles, and what derives from it."""

from __future__ import annotations

import inspect

import pytest

from configs.schema import ModelConfig, TrainConfig
from configs.strict import UserError, check
from counterfactory.models.roles import MODEL_ROLES, ROLES, TRAINED_ROLES, roles_of
from counterfactory.models.wrapping.load import find, wrap
from pipelines import cli
from pipelines.train.trainer import Trainer


def test_every_wrapper_and_trainer_is_there_and_takes_what_the_table_says() -> None:
    for name, role in ROLES.items():
        if role.wrapper:
            takes = inspect.signature(find(role.wrapper)).parameters
            assert next(iter(takes)) == "network", name
            assert role.classes is None or role.classes in takes, name
        if role.trainer:
            trainer = find(role.trainer)
            assert issubclass(trainer, Trainer), name
            assert not inspect.isabstract(trainer), name
        assert set(role.models) <= set(MODEL_ROLES), name
        assert role.becomes is None or role.becomes in MODEL_ROLES, name
        assert role.help.strip(), name


def test_models_have_the_role_of_their_name() -> None:
    assert roles_of("encoder") == ("autoencoder", "attgan")
    assert roles_of("oracle") == ("attributes",)
    assert roles_of("simsiam") == ("features",)
    assert roles_of("denoiser") == ("denoiser",)


def test_an_unknown_role_is_told_with_all_that_there_are() -> None:
    training = {"name": "n", "target": "a.b", "data": {"path": "p"}, "steps": 1, "out": "o"}
    for model, raw, known in (
        (ModelConfig, {"target": "a.b"}, MODEL_ROLES),
        (TrainConfig, training, TRAINED_ROLES),
    ):
        line = f"here: role: expected a role out of {', '.join(known)}, got 'wizard'"
        with pytest.raises(UserError, match=f"^{line}$"):
            check(model, {**raw, "role": "wizard"}, "here")


def test_distractors_and_training_roles_are_not_wrapped() -> None:
    for role in ("distractors", "simsiam", "wizard"):
        with pytest.raises(ValueError, match=f"expected a role out of classifier, .* got '{role}'"):
            wrap(role, None, {}, {}, {})  # type: ignore[arg-type]


def test_the_command_line_trains_what_the_table_trains() -> None:
    for role in TRAINED_ROLES:
        assert cli.parser().parse_args(["train", role, "x"]).role == role
    with pytest.raises(SystemExit):
        cli.parser().parse_args(["train", "gan", "x"])
