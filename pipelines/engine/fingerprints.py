"""What a run's answers depend on, as digests, and the settings that its workers get."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from actors.pinned.load import load_method, method_models
from configs.schema import RunConfig, fingerprint

# They score answers and change none.
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


def worker_config(config: RunConfig, digests: dict[str, str]) -> dict[str, Any]:
    """The plain settings that workers get: every model pinned, and the fingerprint that seeds noise
    and ids.

    Local weights are named in full: a worker's working folder is not the driver's.
    """
    plain = config.model_dump()
    for spec in plain["models"].values():
        if spec["weights"] and Path(spec["weights"]).exists():
            spec["weights"] = str(Path(spec["weights"]).absolute())
    for name, digest in digests.items():
        if not digest.startswith(("hub:", "none", "package:")):
            plain["models"][name]["sha256"] = digest
    plain["method_fingerprint"] = method_fingerprint(config, digests)
    return plain


def method_fingerprint(config: RunConfig, digests: dict[str, str]) -> str:
    """What a row's answer depends on besides the row: method, settings, seed and the models'
    digests.
    """
    return fingerprint(
        {
            "method": config.method.model_dump(exclude={"preset", "paper"}),
            "seed": config.seed,
            "models": {
                name: model_fingerprint(config, name, digests[name])
                for name in answering(config, digests)
            },
        }
    )


def answering(config: RunConfig, names: Iterable[str]) -> list[str]:
    """The models, out of `names`, that a row's answer depends on: all but those that only judge it.

    A network that judges and that the method is called with as well (DiME with a perceptual
    distance) is one of them.
    """
    needed: tuple[str, ...] = ()
    if config.method.target != "elsewhere":
        needed = method_models(load_method(config.model_dump()))
    return [name for name in names if name not in JUDGES or name in needed]


def model_fingerprint(config: RunConfig, name: str, digest: str) -> str:
    """What a model's outputs depend on: its weights and how they are read, wherever the file is
    kept.
    """
    return fingerprint(
        [digest, config.models[name].model_dump(exclude={"preset", "weights", "sha256"})]
    )
