"""The shipped models: the pinned files, small enough, as good as their cards say on faces drawn
here and now.
"""

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from configs.schema import ModelConfig, load_train
from configs.strict import check, presets, read_preset
from counterfactory.models.wrapping.head import head_of
from counterfactory.models.wrapping.load import build
from counterfactory.worlds.faces import ATTRIBUTES, draw, labels, masks
from counterfactory.worlds.faces_masks import MOUTH, REGIONS

ZOO = Path(__file__).parents[3] / "counterfactory" / "zoo"
NAMES = [
    "faces-plain",
    "faces-biased",
    "faces-second",
    "faces-oracle",
    "faces-autoencoder",
    "faces-denoiser",
]
NAMES += [
    "faces-simsiam",
    "faces-causal-plain",
    "faces-causal-biased",
    "faces-named",
    "faces-attribution",
]
NAMES += ["faces-semantic", "faces-attgan", "faces-direction-plain", "faces-direction-biased"]
FRESH = 20_260_101  # a seed that nothing was trained or measured on


@cache
def model(name: str) -> Any:
    spec = check(ModelConfig, read_preset("model", name), name)
    assert spec.weights is not None
    return build(spec.model_dump(), ZOO / spec.weights.removeprefix("zoo:"), torch.device("cpu"))


@cache
def fresh(rows: int) -> tuple[Tensor, Tensor]:
    """Fresh faces (N,3,64,64) in [0,1] and their attributes (N,A) bool."""
    numbers = np.arange(rows)
    bits = labels(FRESH, numbers)
    images = (
        torch.from_numpy(draw(FRESH, numbers, attributes=bits)).permute(0, 3, 1, 2).float() / 255
    )
    return images, torch.from_numpy(bits)


@pytest.mark.parametrize("name", NAMES)
def test_files_are_the_pinned_ones_and_say_how_they_came(name: str) -> None:
    spec = check(ModelConfig, read_preset("model", name), name)
    assert spec.weights == f"zoo:{name}.safetensors"
    data = (ZOO / f"{name}.safetensors").read_bytes()
    assert hashlib.sha256(data).hexdigest() == spec.sha256
    card = yaml.safe_load((ZOO / f"{name}.yaml").read_text())
    assert card["model"]["sha256"] == spec.sha256
    # a recipe may go on from another one, as the denoiser's does
    recipe = card["training"]["config"]["name"]
    assert recipe.startswith(name)
    role = "simsiam" if spec.role == "features" else spec.role
    assert card["training"]["command"] == f"counterfactory train {role} {recipe}"
    assert card["training"]["config"] == load_train(recipe).model_dump(
        mode="json", exclude_defaults=True
    )
    assert name in (ZOO / "README.md").read_text()


def test_the_zoo_is_small_and_holds_nothing_else() -> None:
    files = sorted(ZOO.glob("*.safetensors"))
    assert sorted(path.stem for path in files) == sorted(NAMES)
    assert sum(path.stat().st_size for path in files) <= 12_100_000
    assert set(NAMES) <= set(presets("model"))


@pytest.mark.parametrize("name", ["faces-plain", "faces-second"])
def test_plain_classifiers_see_the_smile(name: str) -> None:
    images, bits = fresh(500)
    smiling = bits[:, ATTRIBUTES.index("Smiling")]
    assert float(((model(name)(images).argmax(1) == 1) == smiling).float().mean()) >= 0.99


def test_the_biased_classifier_sees_the_hair() -> None:
    images, bits = fresh(500)
    guess = model("faces-biased")(images).argmax(1) == 1
    smiling, blond = (bits[:, ATTRIBUTES.index(name)] for name in ("Smiling", "Blond_Hair"))
    agree = smiling == blond
    assert float((guess == smiling)[agree].float().mean()) >= 0.97
    assert float((guess == blond)[~agree].float().mean()) >= 0.6


@pytest.mark.parametrize("name", ["faces-oracle", "faces-named"])
def test_the_oracle_is_right_on_every_attribute(name: str) -> None:
    images, bits = fresh(500)
    oracle = model(name)
    assert oracle.attributes == ATTRIBUTES
    right = ((oracle(images) > 0.5) == bits).float().mean(0)
    assert dict(zip(ATTRIBUTES, right.tolist(), strict=True)) == {
        name: pytest.approx(1, abs=0.01) for name in ATTRIBUTES
    }


def test_the_oracle_stands_light_noise_and_blur() -> None:
    images, bits = fresh(500)
    noise = 0.03 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    blurred = torch.nn.functional.avg_pool2d(images, 3, 1, 1, count_include_pad=False)
    for other in (
        images + noise,
        images * 0.9,
        images * 0.9 + 0.1,
        torch.lerp(images, blurred, 0.5),
    ):
        right = ((model("faces-oracle")(other.clamp(0, 1)) > 0.5) == bits).float().mean(0)
        assert float(right.min()) >= 0.97


def test_the_oracle_tells_what_was_redrawn() -> None:
    rows = np.arange(100)
    bits = labels(FRESH, rows)
    changed = bits.copy()
    changed[:, ATTRIBUTES.index("Smiling")] ^= True
    images = [
        torch.from_numpy(draw(FRESH, rows, attributes=b)).permute(0, 3, 1, 2).float() / 255
        for b in (bits, changed)
    ]
    before, after = (model("faces-oracle")(x) > 0.5 for x in images)
    rates = (before != after).float().mean(0)
    assert float(rates[ATTRIBUTES.index("Smiling")]) >= 0.97
    assert float(rates[[i for i, name in enumerate(ATTRIBUTES) if name != "Smiling"]].max()) <= 0.03


def test_reconstructions_are_close_and_keep_what_is_seen() -> None:
    images, bits = fresh(100)
    net = model("faces-autoencoder")
    rebuilt = net.decode(net.encode(images))
    assert float((rebuilt - images).abs().mean()) <= 0.03
    kept = ((model("faces-oracle")(rebuilt) > 0.5) == bits).float().mean(0)
    assert float(kept[ATTRIBUTES.index("Smiling")]) >= 0.95
    assert float(kept.mean()) >= 0.95


def test_the_semantic_autoencoder_draws_a_mouth_from_its_style() -> None:
    """Another face's mouth style brings its smile along, and little outside of the mouth."""
    images, bits = fresh(64)
    mask = torch.from_numpy(masks(FRESH, np.arange(64), attributes=bits.numpy())).long()
    net, smiling = model("faces-semantic"), bits[:, ATTRIBUTES.index("Smiling")]
    assert net.regions == REGIONS
    styles = net.encode(images, mask)
    rebuilt = net.decode(styles, mask)
    assert float((rebuilt - images).abs().mean()) <= 0.03
    swapped = styles.clone()
    swapped[:, MOUTH] = styles.flip(0)[:, MOUTH]
    moved = net.decode(swapped, mask)
    seen = model("faces-oracle")(moved)[:, ATTRIBUTES.index("Smiling")] > 0.5
    assert float((seen == smiling.flip(0)).float().mean()) >= 0.75
    change = (moved - rebuilt).abs().sum(1)
    assert float(change[mask == MOUTH].sum() / change.sum()) >= 0.8


def test_the_denoiser_predicts_the_noise() -> None:
    images, _ = fresh(16)
    net = model("faces-denoiser")
    generator = torch.Generator().manual_seed(0)
    eps = torch.randn(images.shape, generator=generator)
    # the more noise, the surer its share
    for step, bound in ((100, 0.2), (500, 0.02), (900, 0.005)):
        a = net.alphas_cumprod[step].float()
        x_t = a.sqrt() * (images * 2 - 1) + (1 - a).sqrt() * eps
        guess, weight = net(x_t, torch.full((16,), step))
        assert weight is None
        assert float((guess - eps).square().mean()) <= bound


@pytest.mark.parametrize(
    ("name", "decides"), [("faces-plain", "Smiling"), ("faces-biased", "Blond_Hair")]
)
def test_the_cause_is_what_the_classifier_reads(name: str, decides: str) -> None:
    """One threshold on C alone tells the attribute that decides, and the classifier's decision on
    what h rebuilds; what the other attribute is, C does not say."""
    images, bits = fresh(300)
    classifier, causal = model(name), model(name.replace("faces-", "faces-causal-"))
    features = classifier.features(images)
    c = causal.network.split(features)[0][:, 0]
    told = {}
    for attribute in ("Smiling", "Blond_Hair"):
        truth = bits[:, ATTRIBUTES.index(attribute)]
        above = float((c[truth][:, None] > c[~truth][None, :]).float().mean())  # the AUC
        told[attribute] = max(above, 1 - above)
    assert told.pop(decides) > 0.98
    assert max(told.values()) < 0.6
    rebuilt = causal.network.decode(causal.network.posterior(features)[0])
    assert (
        float(
            (head_of(classifier, images[:4])(rebuilt).argmax(1) == classifier(images).argmax(1))
            .float()
            .mean()
        )
        > 0.97
    )
    assert causal(images, classifier).shape == (300, 1, 2)
    other = model("faces-biased" if name == "faces-plain" else "faces-plain")
    with pytest.raises(
        ValueError, match="expected the classifier that the causal model was trained with"
    ):
        causal(images, other)


def test_predictors_tell_what_was_redrawn() -> None:
    """Of faces with one thing redrawn, the importance of that thing alone goes all the way."""
    rows, changed = np.arange(20), ("Smiling", "Blond_Hair", "Young")
    bits = labels(FRESH, rows)
    encoder, predictors = model("faces-autoencoder"), model("faces-attribution")
    predictors.expect(encoder, (64, 64))

    def told(which: np.ndarray) -> Tensor:
        images = (
            torch.from_numpy(draw(FRESH, rows, attributes=which)).permute(0, 3, 1, 2).float() / 255
        )
        out: Tensor = predictors(encoder.encode(images))
        return out

    before = told(bits)
    for name in changed:
        other = bits.copy()
        place = ATTRIBUTES.index(name)
        other[:, place] ^= True
        signs = torch.from_numpy(np.where(other[:, place], 1.0, -1.0))
        means = ((told(other) - before) * signs[:, None]).mean(0)
        assert predictors.descriptors[int(means.abs().argmax())] == name
        assert float(means[place]) > 0.9
        assert float(means.abs().sort().values[-2]) < 0.1


def test_simsiam_sees_the_hair_through_light_and_noise() -> None:
    rows = np.arange(100)
    bits = labels(FRESH, rows)
    dyed = bits.copy()
    dyed[:, ATTRIBUTES.index("Blond_Hair")] ^= True
    images, others = (
        torch.from_numpy(draw(FRESH, rows, attributes=b)).permute(0, 3, 1, 2).float() / 255
        for b in (bits, dyed)
    )
    net = model("faces-simsiam")
    noise = 0.02 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    z, noisy, hair = (net(x) for x in (images, (images * 0.95 + 0.02 + noise).clamp(0, 1), others))
    assert z.shape == (100, 128)
    assert float(torch.cosine_similarity(z, noisy).mean()) >= 0.9
    assert float(torch.cosine_similarity(z, hair).mean()) <= 0.3
    # no collapse to a point
    assert float(torch.nn.functional.normalize(z, dim=1).std(0).mean()) * 128**0.5 >= 0.5


def test_attgan_edits_what_it_is_told_and_little_else() -> None:
    """Hair, skin and glasses of fresh faces, as the oracle sees them; benchmarks/attgan.md has
    every attribute.
    """
    images, _ = fresh(60)
    attgan, oracle = model("faces-attgan"), model("faces-oracle")
    with torch.inference_mode():
        z, skip, a = (
            attgan.encode(images),
            attgan.skip(images),
            (attgan.attributes_of(images) > 0.5).float(),
        )
        rebuilt, before = attgan.decode(z, a, skip), oracle(images) > 0.5
        assert float((rebuilt - images).abs().mean()) < 0.03
        for name in ("Blond_Hair", "Pale_Skin", "Eyeglasses", "Male"):
            b, column = a.clone(), list(attgan.attributes).index(name)
            b[:, column] = 1 - b[:, column]
            edited = (images + attgan.decode(z, b, skip) - rebuilt).clamp(0, 1)
            changed = (oracle(edited) > 0.5) != before
            own = list(oracle.attributes).index(name)
            others = [place for place in range(len(oracle.attributes)) if place != own]
            assert float(changed[:, own].float().mean()) > 0.75
            assert float(changed[:, others].float().mean()) < 0.05
