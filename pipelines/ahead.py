"""What the later stages of a run ask of its settings, checked before the first one works."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from actors.judge.prompts import read_wording
from actors.score import causal_columns, query_column
from configs.schema import RunConfig
from configs.strict import UserError
from pipelines.attribution import job as attribution
from pipelines.augment.labels import labels_of
from pipelines.augment.leaks import expect_held_out
from pipelines.interventions.job import expect_places, region_names
from pipelines.score.labels import expect_labels


def expect_settings(config: RunConfig, stages: tuple[str, ...]) -> None:
    """Raise the first fault of the settings of these stages."""
    for error in faults(config, stages):
        raise error


def faults(config: RunConfig, stages: tuple[str, ...]) -> Iterator[UserError]:
    """Yield an error for each setting that would end a stage later, in the order of the stages."""
    told = set[str]()  # two stages may read one setting
    for name in stages:
        for check in CHECKS.get(name, ()):
            try:
                check(config)
            except UserError as error:
                if str(error) not in told:
                    told.add(str(error))
                    yield error


def _places(config: RunConfig) -> None:
    expect_places(config, region_names(config))


def _attributes(config: RunConfig) -> None:
    """Check score.causal, score.query and score.cd_labels against the oracle's names."""
    names = attributes_of(config)
    if names is None:
        return
    causal_columns(names, config.score.causal)
    query_column(names, config.score.model_dump())
    if config.score.cd_labels is not None:
        expect_labels(config.score.cd_labels, names)


def _labels(config: RunConfig) -> None:
    classes, names = config.models["classifier"].classes, attributes_of(config)
    if classes and names is not None:
        labels_of(config, classes, names)


def attributes_of(config: RunConfig) -> list[str] | None:
    """Return the oracle's attributes, [] without one; None where only its weights name them."""
    oracle = config.models.get("oracle")
    return [] if oracle is None else list(oracle.classes) or None


def _wording(config: RunConfig) -> None:
    read_wording(config.judge.wording)


CHECKS: dict[str, tuple[Callable[[RunConfig], None], ...]] = {
    "interventions": (_places,),
    "score": (_attributes,),
    "attribution": (attribution.expect,),
    "judge": (_wording,),
    "augment": (_labels, expect_held_out),
}
