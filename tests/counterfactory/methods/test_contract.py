"""The rules that hold for every method, over every preset in configs/method/; a new preset is
tested by being there.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from counterfactory.methods.contract import Answers, Queries, to_8bit

PRESETS = sorted((Path(__file__).parents[3] / "configs" / "method").glob("*.yaml"))
# Settings that make a method slow, in any method, and what they are lowered to here.
BUDGET = {
    "max_steps": 4,
    "max_edits": 4,
    "iterations": 4,
    "respaced": 8,
    "levels": 2,
    "steps": 4,
    "tau": 2,
    "n_max": 4,
}
BUDGET |= {"answers": 2}  # to a query
BUDGET |= {"starts": 3, "inversion_steps": 4}

Pick = Callable[[Queries, list[int]], Queries]
Run = Callable[[Queries], Answers]


def load(path: Path, **over: Any) -> Any:
    preset = yaml.safe_load(path.read_text(encoding="utf-8"))
    module, _, name = preset["target"].rpartition(".")
    method = getattr(importlib.import_module(module), name)
    known = {field.name for field in fields(method)}
    cheap = {key: value for key, value in BUDGET.items() if key in known}
    return method(**{**preset.get("settings", {}), **cheap, **over})


@pytest.fixture(params=PRESETS, ids=lambda path: path.stem)
def preset(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def used(preset: Path, models: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """The models that the preset's method is called with."""
    method = load(preset)
    if getattr(method, "spurious", None):  # the same model, which then tells attributes
        models["spurious"].attributes = method.spurious
    return {name: models[name] for name in ("classifier", *method.needs)}


@pytest.fixture
def run(preset: Path, used: dict[str, nn.Module]) -> Run:
    method = load(preset)
    return lambda queries: method(queries, **used)


def same(answers: Answers, rows: list[int], others: Answers) -> None:
    """Rows of one batch of queries have the answers that are the whole of another; a method may
    give k to a query.
    """
    k = len(others.reasons) // len(rows)
    rows = [row * k + j for row in rows for j in range(k)]
    assert torch.equal(answers.flipped[rows], others.flipped)
    assert [answers.reasons[row] for row in rows] == others.reasons
    assert (None if answers.edits is None else [answers.edits[row] for row in rows]) == others.edits
    for name in ("steps", "forward", "backward"):
        assert torch.equal(getattr(answers, name)[rows], getattr(others, name)), name
    for name in (
        "counterfactual",
        "latent_before",
        "latent_after",
        "mask",
        "condition_before",
        "condition_after",
    ):
        one, other = getattr(answers, name), getattr(others, name)
        assert (one is None) == (other is None)
        if one is not None:
            # The tiny models give the same bits at any batch size; what a method adds may differ by
            # rounding only.
            torch.testing.assert_close(one[rows], other, atol=1e-5, rtol=0, msg=name)


def test_presets_say_what_they_are(preset: Path) -> None:
    text = yaml.safe_load(preset.read_text(encoding="utf-8"))
    assert set(text) <= {"target", "settings", "paper"}
    assert text["paper"].startswith("https://")
    module, _, name = text["target"].rpartition(".")
    method = getattr(importlib.import_module(module), name)(
        **text["settings"]
    )  # the settings as they stand are accepted
    assert all(key in repr(method) for key in text["settings"])


def test_answers_are_well_formed(run: Run, queries: Queries, used: dict[str, nn.Module]) -> None:
    answers = run(queries)
    queries = queries.repeated(len(answers.counterfactual) // len(queries))
    image, n = answers.counterfactual, len(queries)
    assert image.shape == queries.images.shape
    assert image.dtype == torch.float32
    assert bool(image.isfinite().all())
    assert float(image.min()) >= 0
    assert float(image.max()) <= 1
    assert torch.equal(image, to_8bit(image))
    for name in ("steps", "forward", "backward"):
        counts: Tensor = getattr(answers, name)
        assert counts.shape == (n,)
        assert counts.dtype == torch.int64
        assert bool((counts >= 0).all())
    assert bool((answers.forward > 0).all())
    assert bool((answers.backward <= answers.forward).all())
    for latent in (answers.latent_before, answers.latent_after):
        assert latent is None or (
            latent.ndim == 2 and len(latent) == n and bool(latent.isfinite().all())
        )
    if answers.mask is not None:
        assert answers.mask.shape == (n, 1, *image.shape[2:])
        unmasked = (answers.mask == 0).expand_as(image)
        assert torch.equal(image[unmasked], queries.images[unmasked])
    with torch.no_grad():
        predicted = used["classifier"](image).argmax(1)
    assert answers.flipped.dtype == torch.bool
    assert torch.equal(answers.flipped, predicted == queries.target)
    assert [reason is None for reason in answers.reasons] == answers.flipped.tolist()
    assert all(reason is None or reason.strip() for reason in answers.reasons)


def test_a_row_that_has_its_target_keeps_it(run: Run, queries: Queries) -> None:
    assert queries.source[-1] == queries.target[-1]
    answers = run(queries)
    k = len(answers.counterfactual) // len(queries)
    assert bool(answers.flipped[-k:].all())
    assert answers.reasons[-k:] == [None] * k


def test_the_input_and_the_models_are_left_alone(
    run: Run, queries: Queries, used: dict[str, nn.Module]
) -> None:
    before = deepcopy((queries, {name: model.state_dict() for name, model in used.items()}))
    run(queries)
    for name in ("images", "source", "target", "seed"):
        assert torch.equal(getattr(queries, name), getattr(before[0], name)), name
    assert not queries.images.requires_grad
    for name, model in used.items():
        assert not any(module.training for module in model.modules()), name
        assert all(parameter.grad is None for parameter in model.parameters()), name
        assert all(
            torch.equal(value, before[1][name][key]) for key, value in model.state_dict().items()
        ), name


def test_the_same_seed_gives_the_same_bytes(run: Run, queries: Queries) -> None:
    torch.manual_seed(1)
    one = run(queries)
    torch.manual_seed(2)  # global noise must not matter
    other = run(queries)
    assert one.counterfactual.numpy().tobytes() == other.counterfactual.numpy().tobytes()
    same(one, list(range(len(queries))), other)


def test_a_batch_is_its_rows_one_by_one(run: Run, queries: Queries, pick: Pick) -> None:
    whole = run(queries)
    for row in range(len(queries)):
        same(whole, [row], run(pick(queries, [row])))


def test_answers_permute_with_the_rows(run: Run, queries: Queries, pick: Pick) -> None:
    order = [5, 0, 7, 2, 6, 1, 4, 3]
    same(run(queries), order, run(pick(queries, order)))


def test_a_bad_row_ends_alone(
    preset: Path, used: dict[str, nn.Module], queries: Queries, pick: Pick
) -> None:
    """A classifier that gives NaN on one row, as long as a mark in its corner is there, must not
    touch the others.
    """
    method, classifier = load(preset), used["classifier"]
    queries.images[2, :, :4, :4] = 1.0

    class Sick(nn.Module):
        classes = classifier.classes

        def forward(self, images: Tensor) -> Tensor:
            return classifier(images) * self.health(images)[:, None]

        def split(self, images: Tensor, layer: str) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
            maps, head = classifier.split(images, layer)
            return maps * self.health(images)[:, None, None, None], head

        def health(self, images: Tensor) -> Tensor:
            return torch.where(images[:, :, :4, :4].mean((1, 2, 3)) > 0.8, torch.nan, 1.0)

    answers = method(queries, **{**used, "classifier": Sick().eval()})
    k = len(answers.counterfactual) // len(queries)
    for one in range(2 * k, 3 * k):  # where the method loses the mark, the row may flip
        assert (answers.reasons[one] is None) == bool(answers.flipped[one])
    assert bool(answers.counterfactual.isfinite().all())
    healthy = [0, 1, 3, 4, 5, 6, 7]
    same(answers, healthy, method(pick(queries, healthy), **used))


def test_methods_know_nothing_of_ray_or_files() -> None:
    targets = {
        yaml.safe_load(path.read_text(encoding="utf-8"))["target"].rpartition(".")[0]
        for path in PRESETS
    }
    code = (
        f"import sys, {', '.join(sorted(targets))}; print(sorted({{'ray', 'pyarrow', 'pandas'}} &"
        " set(sys.modules)))"
    )
    root = Path(__file__).parents[3]
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "[]"
