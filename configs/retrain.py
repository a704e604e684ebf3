"""A retraining: one classifier trained in several ways (arms) and with several seeds, compared on
the same test rows.
"""

from __future__ import annotations

import copy
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from configs.schema import (
    Count,
    EngineConfig,
    ImageData,
    ModelConfig,
    Name,
    TrainConfig,
    Word,
    expanded,
)
from configs.strict import Strict, UserError, apply_sets, check, merge, nearest, read_preset

Share = Annotated[float, Field(gt=0, lt=1)]


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= value[0] <= value[1]:
        raise ValueError(f"expected 0 <= first <= second, got {list(value)}")
    return value


Line = Annotated[tuple[float, float], AfterValidator(_ordered)]
# The arms that need no settings of their own, by their names.
ARMS: dict[str, dict[str, Any]] = {
    "before": {"kind": "given"},
    "erm": {"kind": "erm"},
    "copies": {"kind": "mix", "line": [0, 0], "label": "original_label"},
    "standard": {"kind": "erm", "train": {"flip": True, "objective": {"jitter": 0.5, "warp": 1.0}}},
    "counterfactuals": {"kind": "mix", "line": [1, 1]},
    "line": {"kind": "mix"},
    "target": {"kind": "mix", "label": "target"},
    "balanced": {"kind": "balanced"},
    "jtt": {"kind": "jtt"},
    "dfr": {"kind": "dfr"},
}
WITH_GROUPS = ("balanced", "dfr")  # the kinds that need the groups of train or validation rows
GROUPS = {
    "train": "train",
    **{f"train.{key}": "data" for key in ("data", "holdout")},
    **dict.fromkeys(("validation", "test"), "data"),
    "models.*": "model",
}


class MixConfig(Strict):
    """How counterfactuals get into a batch.

    A share of each batch is x + t (x' - x), cut to [0,1], of an original x and its counterfactual
    x'. t is uniform between the two numbers of `line`: 1 is the counterfactual, more goes past it.
    """

    share: Share = 0.5
    line: Line = (0.0, 2.0)


class ArmConfig(Strict):
    """One way of training.

    kind: erm, the rows as they are; mix, with counterfactuals (MixConfig); balanced, all groups
    equally often; jtt, the rows that a first network gets wrong more often (Liu et al. 2021); dfr,
    erm with a last layer fitted to group-balanced validation rows (Kirichenko et al. 2023); given,
    models.classifier as it is.
    """

    kind: Literal["erm", "mix", "balanced", "jtt", "dfr", "given"]
    # in place of the retraining's own: sets, mix.share and mix.line
    augment: list[str] = []
    share: Share | None = None
    line: Line | None = None
    # the column of the set that a counterfactual's label is read from
    label: Literal["label", "target", "source", "original_label"] = "label"
    # settings of the training that differ, such as flip or objective
    train: dict[str, Any] = {}
    # jtt: steps of the first network as a share of the steps, and how much more often a row that it
    # gets wrong is drawn
    first: Share = 0.25
    weight: Annotated[float, Field(ge=1)] = 20.0


class CommandConfig(Strict):
    """A training command of the user's own, in place of a TrainConfig.

    command: its words; {train}, {validation} and {test} become folders of Parquet files, {out} the
    folder to write to, {seed} and {steps} numbers. It writes model.yaml and its weights, or
    predictions.parquet, to {out} (docs/retrain.md).
    """

    command: Annotated[list[str], Field(min_length=1)]
    data: ImageData  # rows to train on
    classes: Annotated[list[Word], Field(min_length=2)]
    steps: Count = 1
    batch: Count = 64
    flip: bool = False

    @field_validator("command")
    @classmethod
    def _places(cls, value: list[str]) -> list[str]:
        for place in ("{train}", "{out}"):
            if not any(place in word for word in value):
                raise ValueError(f"expected {place} in one of its words, got {value}")
        return value


class VerdictConfig(Strict):
    """A check of the labels along each counterfactual's line by models.oracle.

    A pair is left out where the oracle's verdict on t = 0, 1 or the line's end is not its label.
    attribute: of the oracle, the one that the second class means. margin: the least distance of its
    probability from 1/2.
    """

    attribute: str
    margin: Annotated[float, Field(ge=0, lt=0.5)] = 0.0


class RetrainConfig(Strict):
    """A retraining; its folder is out/name."""

    name: Name
    # a preset of configs/train for a classifier with settings that differ, or a command
    train: TrainConfig | CommandConfig
    # runs with an augmentation set, or folders of sets
    augment: list[str] = []
    mix: MixConfig = MixConfig()
    arms: Annotated[dict[Name, ArmConfig], Field(min_length=1)]
    # arms besides balanced and dfr that use the groups of rows, marked in the table
    group_arms: list[Name] = []
    # further rows of the table: of several arms, the one that is best on the validation rows
    choose: dict[Name, Annotated[list[Name], Field(min_length=2)]] = {}
    choose_by: Literal["accuracy", "worst"] = "accuracy"
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = [0, 1, 2]
    steps: Count | None = None  # of every arm; default: train.steps
    validation: ImageData | None = None
    test: ImageData | None = None  # default: train.holdout
    # Boolean columns: a group is a class and a value of each of them.
    groups: list[str] = []
    # oracle: for verdict; classifier: for the arm `before`
    models: dict[str, ModelConfig] = {}
    verdict: VerdictConfig | None = None
    bootstrap: Count = 400
    out: str = "runs"
    engine: EngineConfig = EngineConfig()

    @field_validator("arms", mode="before")
    @classmethod
    def _known_arms(cls, value: Any) -> Any:
        named = dict.fromkeys(value) if isinstance(value, list) else value
        if not isinstance(named, dict):
            return value
        out: dict[Any, Any] = {}
        for name, arm in named.items():
            known = ARMS.get(str(name))
            if isinstance(arm, ArmConfig):
                out[name] = arm
                continue
            given = arm or {}
            if known is None and not (isinstance(given, dict) and "kind" in given):
                raise ValueError(
                    f"expected a known arm or the key `kind`, got {name!r}: {nearest(name, ARMS)}"
                )
            out[name] = merge(known or {}, given) if isinstance(given, dict) else given
        return out

    @field_validator("seeds")
    @classmethod
    def _seeds(cls, value: list[int]) -> list[int]:
        if len(set(value)) < len(value):
            raise ValueError(f"expected each seed once, got {value}")
        return value

    @model_validator(mode="after")
    def _fits(self) -> RetrainConfig:
        if isinstance(self.train, TrainConfig) and self.train.role != "classifier":
            raise ValueError(f"train: expected role classifier, got {self.train.role}")
        self._expect_arms()
        if self.test_data is None:
            raise ValueError("expected `test`, the rows to compare on, got none")
        for place, data in (("train.data", self.train.data), ("test", self.test_data)):
            if data.label is None:
                raise ValueError(f"{place}.label: expected the column of the label, got none")
        if self.verdict is not None and "oracle" not in self.models:
            raise ValueError("verdict: expected `oracle` in models, got none")
        return self

    def _expect_arms(self) -> None:
        for name, arm in self.arms.items():
            if arm.kind == "mix" and not (arm.augment or self.augment):
                raise ValueError(f"arms.{name}: expected `augment`, runs or sets, got none")
            if arm.kind in WITH_GROUPS and not self.groups:
                raise ValueError(f"arms.{name}: expected `groups`, got none")
            if arm.kind == "dfr" and self.validation is None:
                raise ValueError(f"arms.{name}: expected `validation` rows, got none")
            if arm.kind == "given" and "classifier" not in self.models:
                raise ValueError(f"arms.{name}: expected `classifier` in models, got none")
            if arm.kind in ("jtt", "dfr") and isinstance(self.train, CommandConfig):
                raise ValueError(
                    f"arms.{name}: {arm.kind}: expected one of our own networks (a preset of"
                    " configs/train), got a command"
                )
        chosen = [(name, of) for name, arms in self.choose.items() for of in arms]
        for where, name in [*(("group_arms", name) for name in self.group_arms), *chosen]:
            if name not in self.arms:
                raise ValueError(f"{where}: expected an arm, got {name!r}")
        for name in self.choose:
            if name in self.arms:
                raise ValueError(f"choose: expected another name than an arm's, got {name!r}")
        if self.choose and self.validation is None:
            raise ValueError("choose: expected `validation` rows, got none")
        if self.choose_by == "worst" and not self.groups:
            raise ValueError("choose_by: worst: expected `groups`, got none")

    @property
    def test_data(self) -> ImageData | None:
        """Return the rows to compare on."""
        return self.test or (self.train.holdout if isinstance(self.train, TrainConfig) else None)

    @property
    def step_count(self) -> int:
        """Return the steps of every arm."""
        return self.steps or self.train.steps

    def mix_of(self, arm: ArmConfig) -> MixConfig:
        """Return how an arm mixes."""
        return MixConfig(share=arm.share or self.mix.share, line=arm.line or self.mix.line)

    def sets_of(self, arm: ArmConfig) -> list[str]:
        """Return the sets of an arm."""
        return arm.augment or self.augment

    def uses_groups(self, name: str) -> bool:
        """Return whether a row of the table rests on the groups of train or validation rows."""
        if name in self.choose:
            return self.choose_by == "worst" or any(map(self.uses_groups, self.choose[name]))
        return name in self.group_arms or self.arms[name].kind in WITH_GROUPS


def load_retrain(name: str, sets: list[str] | None = None) -> RetrainConfig:
    """Read a retraining by preset name or path; sets: `a.b=c` settings that override it."""
    return resolve_retrain(read_preset("retrain", name), sets or [], name)


def resolve_retrain(raw: dict[str, Any], sets: list[str], where: str) -> RetrainConfig:
    """Return the checked retraining of raw settings, which may name presets.

    sets: `a.b=c` settings that override them. UserError, which names `where`, on a mistake.
    """
    raw = apply_sets(copy.deepcopy(raw), sets, GROUPS)
    train = raw.get("train")
    if isinstance(train, str):
        train = {"preset": train}
    if isinstance(train, dict):
        if isinstance(train.get("preset"), str):
            over = {key: value for key, value in train.items() if key != "preset"}
            train = merge(read_preset("train", train["preset"]), over)
        kind = CommandConfig if "command" in train else TrainConfig
        raw["train"] = check(kind, expanded(train), f"{where}: train")
    if "groups" in raw and not isinstance(raw["groups"], list):
        raise UserError(f"{where}: groups: expected a list of columns, got {raw['groups']!r}")
    return check(RetrainConfig, expanded(raw), where)
