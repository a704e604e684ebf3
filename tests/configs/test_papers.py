"""The presets of the papers' data sets: their values against the papers' tables, and that their
parts fit together.
"""

from typing import Any

import pytest
import torch

from configs.schema import ImageData, MethodConfig, ModelConfig, RunConfig, load_run, load_train
from configs.strict import check, expand, presets
from counterfactory.methods.contract import ImageQueries
from counterfactory.methods.parts.diffusion import respace
from counterfactory.models.wrapping.load import SCHEDULE, build, find, make, schedule_of

# CECAS, table 5: alpha, lambda, gamma, PGD iterations, diffusion steps; appendix A.1 and section
# 5.1: target and size.
CECAS = {
    "celeba-128-smile": (0.2, 0.001, 0.1, 50, 500, "smiling", 128),
    "celeba-128-age": (0.5, 0.001, 0.1, 50, 500, "young", 128),
    "celeba-128-gender": (0.4, 0.001, 0.1, 50, 500, "male", 128),
    "celebahq-smile": (0.01, 0.001, 0.1, 50, 500, "smiling", 256),
    "celebahq-age": (0.03, 0.001, 0.1, 50, 500, "young", 256),
    "celebahq-gender": (0.005, 0.001, 0.1, 50, 500, "male", 256),
    "bdd-oia": (0.005, 0.001, 0.05, 50, 1000, "move forward", (512, 256)),
    "imagenet-sorrel-zebra": (0.03, 0.001, 0.15, 100, 1000, 340, 256),
    "imagenet-cougar-cheetah": (0.02, 0.001, 0.15, 100, 1000, 293, 256),
    "imagenet-persian-egyptian-cat": (0.04, 0.001, 0.15, 100, 1000, 285, 256),
}
# ACE's own scripts (github.com/guillaumejs2403/ACE, scripts/*-attack.sh): trained steps, respaced,
# levels (respaced times sampling_time_fraction), iterations, l1's weight, threshold of the mask,
# its window.
ACE = {
    "celeba": (500, 50, 5, 50, 0.001, 0.15, 15),
    "celebahq": (500, 25, 5, 50, 0.001, 0.15, 15),
    "bdd": (1000, 100, 5, 50, 0.001, 0.05, 15),
    "imagenet": (1000, 25, 5, 100, 0.001, 0.15, 15),
}
# The same scripts' classifiers: which of how many outputs, in the order of CelebA's 40 attributes,
# of STEEX's three (Male, Smiling, Young) and of BDD-OIA's four actions.
DECISIONS = {
    "celeba-128-smile": (31, 40, "Smiling"),
    "celeba-128-age": (39, 40, "Young"),
    "celeba-128-gender": (20, 40, "Male"),
    "celebahq-smile": (1, 3, "Smiling"),
    "celebahq-age": (2, 3, "Young"),
    "celebahq-gender": (0, 3, "Male"),
    "bdd-oia": (0, 4, "Forward"),
}
# the same scripts' model flags as weights; guided-diffusion's unconditional ImageNet model has
# 552,814,086
UNETS = {
    "celeba-128-denoiser": 105_198_598,
    "celebahq-denoiser": 138_289_926,
    "bdd-oia-denoiser": 92_130_438,
    "imagenet-denoiser": 552_814_086,
}


def ace_of(run: str) -> str:
    """Which of ACE's scripts is of a run's data."""
    return {"celeba": "celeba", "celebahq": "celebahq", "bdd": "bdd", "imagenet": "imagenet"}[
        run.split("-")[0]
    ]


@pytest.mark.parametrize("name", CECAS)
def test_a_run_has_the_values_of_table_5(name: str) -> None:
    run, (alpha, weight, gamma, iterations, steps, target, size) = load_run(name), CECAS[name]
    settings, classes = run.method.settings, run.models["classifier"].classes
    assert run.method.target == "counterfactory.methods.cecas.CECAS"
    assert (settings["alpha"], settings["weight"], settings["gamma"]) == (alpha, weight, gamma)
    assert settings["iterations"] == iterations
    assert run.models["denoiser"].settings["steps"] == steps
    assert run.data.size == size
    if isinstance(target, int):
        assert run.target.name == classes[target]
    else:
        assert run.target.rule == "opposite"
        assert classes[1] == target  # the positive output is the second class


@pytest.mark.parametrize("name", CECAS)
def test_the_same_rows_can_be_asked_with_ace(name: str) -> None:
    preset = f"ace-{ace_of(name)}"
    run, settings = load_run(name, [f"method={preset}"]), load_run(name).method.settings
    _, respaced, levels, iterations, weight, gamma, kernel = ACE[ace_of(name)]
    assert run.method.target == "counterfactory.methods.ace.ACE"
    found = {
        key: run.method.settings[key]
        for key in ("respaced", "levels", "iterations", "weight", "gamma", "kernel")
    }
    assert list(found.values()) == [respaced, levels, iterations, weight, gamma, kernel]
    assert run.method.settings["distance"] == "l1"
    # What CECAS's table does not say is as ACE has it.
    for key in ("respaced", "levels", "step", "kernel"):
        assert settings[key] == run.method.settings[key], key


@pytest.mark.parametrize("name", DECISIONS)
def test_the_decision_is_the_output_that_the_label_is_of(name: str) -> None:
    run, (output, outputs, label) = load_run(name), DECISIONS[name]
    spec = run.models["classifier"]
    assert (spec.output, spec.settings["outputs"], spec.head) == (output, outputs, "sigmoid")
    assert run.data.label == label
    assert (spec.mean, spec.std, spec.size) == ([0.5], [0.5], None)


def test_imagenets_classes_stand_at_the_papers_numbers() -> None:
    classes = load_run("imagenet-sorrel-zebra").models["classifier"].classes
    assert len(classes) == len(set(classes)) == 1000
    numbers = {
        "Persian cat": 283,
        "Egyptian cat": 285,
        "cougar": 286,
        "cheetah": 293,
        "sorrel": 339,
        "zebra": 340,
    }
    assert {name: classes.index(name) for name in numbers} == numbers
    ends = {
        "tench": 0,
        "tusker": 101,
        "Chihuahua": 151,
        "abacus": 398,
        "missile": 657,
        "volcano": 980,
        "toilet tissue": 999,
    }
    assert {name: classes.index(name) for name in ends} == ends


@pytest.mark.parametrize("name", CECAS)
def test_a_runs_networks_fit_together(name: str) -> None:
    """Made without memory: outputs, features and the weights of every network, and the process that
    it denoises.
    """
    run, networks = load_run(name), {}
    for role in ("classifier", "denoiser", "spurious"):
        spec = run.models[role]
        with torch.device("meta"):
            networks[role] = make(
                str(spec.target), {k: v for k, v in spec.settings.items() if k not in SCHEDULE}
            )
        assert spec.weights is not None
        assert spec.weights.startswith("data/weights/")
    last: Any = (
        networks["classifier"].classifier if name in DECISIONS else networks["classifier"].fc
    )
    assert last.in_features == run.models["spurious"].settings["features"]
    preset = run.models["denoiser"].preset
    assert sum(p.numel() for p in networks["denoiser"].parameters()) == UNETS[str(preset)]
    width, height = (
        run.data.size if isinstance(run.data.size, tuple) else (run.data.size, run.data.size)
    )
    fold: Any = networks["denoiser"].fold
    assert width % fold == height % fold == 0
    find(run.method.target)(**run.method.settings)


@pytest.mark.parametrize("name", UNETS)
def test_a_denoisers_process_is_guided_diffusions(name: str) -> None:
    """Its linear betas go from 1e-4 to 0.02 over 1000 steps and are stretched for other numbers of
    them.
    """
    settings = check(ModelConfig, expand(name, "model"), name).settings
    bar, prediction = schedule_of(settings)
    steps = settings["steps"]
    betas = torch.linspace(1000 / steps * 1e-4, 1000 / steps * 0.02, steps, dtype=torch.float64)
    torch.testing.assert_close(bar, torch.cumprod(1 - betas, 0))
    assert prediction == "epsilon"
    respaced = ACE[ace_of(name)][1]
    assert len(respace(bar, respaced).trained) == respaced


def test_h_and_g_are_trained_on_a_partition_that_no_run_explains() -> None:
    for data, part in (
        ("celeba-128", "validation"),
        ("celebahq", "test"),
        ("bdd-oia", "validation"),
    ):
        assert load_train(f"{data}-causal").data.path.endswith("/train-*.parquet")
        runs = [name for name in CECAS if name.startswith(data)]
        assert {load_run(name).data.path.rpartition("/")[2] for name in runs} == {
            f"{part}-*.parquet"
        }
    for query in ("smile", "age", "gender"):
        for data in ("celeba-128", "celebahq"):
            spurious = load_run(f"{data}-{query}").models["spurious"]
            assert spurious.weights == f"data/weights/{data}-{query}-causal.safetensors"


def test_a_causal_model_is_trained_to_where_its_run_looks_for_it() -> None:
    for data, run in (
        ("celeba-128", "celeba-128-smile"),
        ("celebahq", "celebahq-smile"),
        ("bdd-oia", "bdd-oia"),
    ):
        causal, spurious = load_train(f"{data}-causal"), load_run(run).models["spurious"]
        assert causal.out == spurious.weights
        assert causal.settings.items() <= spurious.settings.items()
        assert causal.classes == load_run(run).models["classifier"].classes
        assert causal.data.size == load_run(run).data.size
    pair = load_train("imagenet-causal")
    assert pair.out == load_run("imagenet-sorrel-zebra").models["spurious"].weights
    assert pair.classes == ["sorrel", "zebra"]


@pytest.mark.parametrize("method", ["cecas-bdd", "ace-bdd"])
def test_the_networks_work_together_on_wide_images(method: str) -> None:
    """The run of BDD-OIA, untrained and small: 64x32 px, a thin UNet, two iterations through two
    levels.
    """
    less = ["respaced=4", "levels=2", "iterations=2", "kernel=3"]
    thin = ["size=32", "channels=32", "multiples=[1, 2]"]
    sets = [
        *(f"method.settings.{item}" for item in less),
        *(f"models.denoiser.settings.{item}" for item in thin),
    ]
    run = load_run("bdd-oia", [f"method={method}", *sets])
    torch.manual_seed(0)
    cpu = torch.device("cpu")
    models = {role: build(spec.model_dump(), None, cpu) for role, spec in run.models.items()}
    images = (
        torch.rand(2, 3, 32, 64, generator=torch.Generator().manual_seed(1))
        .mul(255)
        .round()
        .div(255)
    )
    source = models["classifier"](images).argmax(1)
    queries = ImageQueries(
        images=images, source=source, target=1 - source, seed=torch.tensor([1, 2])
    )
    made: Any = find(run.method.target)(**run.method.settings)
    answers = made(queries, **{name: models[name] for name in ("classifier", *made.needs)})
    assert answers.counterfactual.shape == images.shape
    assert bool(answers.counterfactual.isfinite().all())
    assert answers.backward.tolist() == [answers.backward[0]] * 2
    assert int(answers.backward[0]) >= 2 * 3  # two iterations through two levels and the classifier


@pytest.mark.parametrize("name", presets("data"))
def test_every_data_preset_is_valid(name: str) -> None:
    check(ImageData, expand(name, "data"), name)


@pytest.mark.parametrize("name", presets("model"))
def test_every_model_preset_is_valid(name: str) -> None:
    check(ModelConfig, expand(name, "model"), name)


@pytest.mark.parametrize("name", presets("method"))
def test_every_method_preset_is_valid(name: str) -> None:
    check(MethodConfig, expand(name, "method"), name)


def test_a_preset_of_a_run_can_be_changed_by_set() -> None:
    config: RunConfig = load_run("celebahq-age", ["method.settings.alpha=0.1", "data.rows=:30"])
    assert config.method.settings["alpha"] == 0.1
    assert config.method.settings["gamma"] == 0.1
    assert config.data.rows == ":30"
