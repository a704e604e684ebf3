"""Digests of what a run's answers depend on, and the settings of its workers."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from actors.pinned.load import ELSEWHERE, load_method, method_models
from actors.worker import Job
from configs.schema import ModelConfig, RunConfig, fingerprint
from counterfactory.interventions.answers import VERSION

# These models score answers and do not change them.
JUDGES = (
    "oracle",
    "second",
    "features",
    "perceptual",
    "simsiam",
    "faces",
    "encoder",
    "attribution",
)


def worker_config(config: RunConfig, digests: dict[str, str]) -> tuple[RunConfig, Job]:
    """Return what workers need: the settings with every model pinned, and the fingerprint for ids.

    Paths of local weights are made absolute: a worker's working folder is not the driver's.
    """
    models = {}
    for name, spec in config.models.items():
        pins: dict[str, str] = {}
        if spec.weights and Path(spec.weights).exists():
            pins["weights"] = str(Path(spec.weights).absolute())
        if not digests.get(name, "none").startswith(("hub:", "none", "package:")):
            pins["sha256"] = digests[name]
        models[name] = spec.model_copy(update=pins)
    job = Job(method_fingerprint=method_fingerprint(config, digests))
    return config.model_copy(update={"models": models}), job


def method_fingerprint(config: RunConfig, digests: dict[str, str]) -> str:
    """Return a digest of what a row's answer depends on besides the row: the method and its
    settings, the run's seed and the models.
    """
    core = ["core", VERSION] if config.method.core else []  # older runs keep their digest
    return fingerprint(
        {
            "method": [*method_identity(config), config.method.settings, *core],
            "seed": config.seed,
            "models": {
                name: model_fingerprint(config, name, digests[name])
                for name in answering(config, digests)
            },
        }
    )


def method_identity(config: RunConfig) -> list[str | int]:
    """Return what identifies a method. Our own methods: name and version, independent of the
    module. A user's class: its dotted path, and its version where it declares one.
    """
    target = config.method.target
    if target == ELSEWHERE:
        return [target]
    kind = type(load_method(config.model_dump()))
    declared = vars(kind)  # without inherited names: a subclass is another method
    if kind.__module__.startswith("counterfactory.") and "name" in declared:
        return [declared["name"], declared["version"]]
    return [target, declared.get("version", 0)]


def answering(config: RunConfig, names: Iterable[str]) -> list[str]:
    """Return the models, out of `names`, that a row's answer depends on: all but those that only
    judge it.

    A network that judges but that the method also uses (DiME with a perceptual distance) is
    included.
    """
    needed: tuple[str, ...] = ()
    if config.method.target != ELSEWHERE:
        needed = method_models(load_method(config.model_dump()))
    return [name for name in names if name not in JUDGES or name in needed]


def model_fingerprint(config: RunConfig, name: str, digest: str) -> str:
    """Return a digest of what a model's outputs depend on: its weights, its role and how its file
    is read.

    The location of its code or file does not count; a network without weights is identified by its
    code.
    """
    spec = config.models[name]
    left = {"preset", "weights", "sha256", "label", "access"} | (
        {"target"} if digest != "none" else set()
    )
    # newer settings count only where they are set: older runs keep their digest
    left |= {setting for setting in ("entry", "channels") if getattr(spec, setting) is None}
    return fingerprint([digest, settings_of(spec, left)])


def settings_of(spec: ModelConfig, left: Collection[str]) -> dict[str, Any]:
    """Return a model's settings that its outputs depend on, without those named in `left`.

    Of a black box, how it is reached and how much it may be asked do not count; `ask` of other
    models does not either, since older runs have none.
    """
    found = spec.model_dump(exclude={*left, "ask"})
    return found | ({"ask": spec.ask.identity()} if spec.ask is not None else {})
