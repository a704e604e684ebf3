"""The table of the roles that a model can have. The command line, the settings, loading and
training derive from it.

It is plain data, so that a config can be checked before torch is imported.
"""

from __future__ import annotations

from dataclasses import dataclass

# Sources of classifiers that can only be asked: behind a server, or in this process.
SERVERS = ("kserve", "tfserving", "torchserve", "hf", "http")
BLACK_BOXES = (*SERVERS, "python", "sklearn")

WRAPPING, TRAINING = "counterfactory.models.wrapping.wrap", "pipelines.train"


@dataclass(frozen=True)
class Role:
    """One role of a model.

    help: one line for the user. wrapper: dotted path of the class that wraps a network in the
    role's interface, or None where no network is wrapped; it takes those entries of a model's
    config that its signature names. trainer: dotted path of the class that trains the role, or None
    where there is no training. classes: the wrapper's argument for the config's `classes`, which
    are names in the order of the outputs, or None where it has no such argument. names: the keys
    that such a model may have in a run's `models`, where they differ from the role's name. models:
    other models that its training loads. becomes: the role of the trained model, where it is
    another one.
    """

    help: str
    wrapper: str | None = None
    trainer: str | None = None
    classes: str | None = None
    names: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    becomes: str | None = None


ROLES: dict[str, Role] = {
    "classifier": Role(
        "images to class scores",
        wrapper=f"{WRAPPING}.ClassifierWrapper",
        trainer=f"{TRAINING}.basic.ClassifierTrainer",
        classes="classes",
        names=("classifier", "second"),
    ),
    "attributes": Role(
        "images to probabilities of attributes, an oracle",
        wrapper=f"{WRAPPING}.AttributeWrapper",
        trainer=f"{TRAINING}.basic.AttributesTrainer",
        classes="attributes",
        names=("attributes", "oracle", "spurious"),
    ),
    "causal": Role(
        "the split of a classifier's features into causes and the rest",
        wrapper="counterfactory.models.causal.CausalWrapper",
        trainer=f"{TRAINING}.causal.CausalTrainer",
        names=("causal", "spurious"),
        models=("classifier",),
    ),
    "autoencoder": Role(
        "images to latents and back",
        wrapper=f"{WRAPPING}.AutoencoderWrapper",
        trainer=f"{TRAINING}.basic.AutoencoderTrainer",
        names=("autoencoder", "encoder"),
    ),
    "gan": Role("latents to images", wrapper=f"{WRAPPING}.GeneratorWrapper"),
    "attgan": Role(
        "images to latents and back under attributes",
        wrapper=f"{WRAPPING}.AttGANWrapper",
        trainer=f"{TRAINING}.attgan.AttGANTrainer",
        classes="attributes",
        names=("attgan", "encoder"),
    ),
    "attribution": Role(
        "latents to descriptors: attribution's predictors",
        wrapper="counterfactory.models.attribution.AttributionWrapper",
        trainer=f"{TRAINING}.attribution.AttributionTrainer",
        classes="descriptors",
        models=("autoencoder",),
    ),
    "direction": Role(
        "ways between classes in an autoencoder's latent space, fitted on answers",
        wrapper="counterfactory.models.direction.DirectionWrapper",
        trainer=f"{TRAINING}.direction.DirectionTrainer",
        classes="classes",
        models=("classifier", "autoencoder"),
    ),
    "semantic": Role(
        "images under masks to a style for every region, and back",
        wrapper="counterfactory.models.semantic.SemanticWrapper",
        trainer=f"{TRAINING}.semantic.SemanticTrainer",
        classes="regions",
    ),
    "denoiser": Role(
        "noisy images to their noise, a diffusion model",
        wrapper=f"{WRAPPING}.DenoiserWrapper",
        trainer=f"{TRAINING}.basic.DenoiserTrainer",
    ),
    "features": Role(
        "images to feature vectors",
        wrapper=f"{WRAPPING}.FeatureWrapper",
        names=("features", "simsiam"),
    ),
    "perceptual": Role(
        "two images to how different they look", wrapper=f"{WRAPPING}.PerceptualWrapper"
    ),
    "faces": Role("faces to identity embeddings", wrapper=f"{WRAPPING}.FeatureWrapper"),
    "distractors": Role("images of a data set in the place of a model"),
    "simsiam": Role(
        "features that training finds without labels",
        trainer=f"{TRAINING}.simsiam.SimSiamTrainer",
        becomes="features",
    ),
}
MODEL_ROLES = tuple(name for name, role in ROLES.items() if role.becomes is None)
TRAINED_ROLES = tuple(name for name, role in ROLES.items() if role.trainer is not None)


def roles_of(name: str) -> tuple[str, ...]:
    """Return the roles that a model under this key of a run's `models` may have."""
    return tuple(role for role in MODEL_ROLES if name in ROLES[role].names) or (name,)


def expect_role(role: str, known: tuple[str, ...]) -> str:
    """Return the role; ValueError where it is not one of the known roles."""
    if role not in known:
        raise ValueError(f"expected a role out of {', '.join(known)}, got {role!r}")
    return role
