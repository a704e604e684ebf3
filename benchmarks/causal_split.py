"""What C and S hold where the causes are known: the tables of benchmarks/causal-split.md.

    python -m benchmarks.causal_split --seeds 11 12 13

For each classifier of the drawn faces, h and g are trained with the shipped recipe and several
seeds; then linear probes are fitted on C, on S and on R itself, on faces whose attributes are
independent, and measured on others of them. What is done is kept in runs/causal/split, and a second
call goes on from there.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from actors.pinned.load import load_models
from configs.schema import ImageData, TrainConfig, load_train
from configs.strict import check
from counterfactory.models.causal import CausalVAE, flow
from counterfactory.models.wrapping.head import head_of
from counterfactory.worlds.faces import ATTRIBUTES
from pipelines.train.causal import MEASURED, Explained, features_of, fit
from pipelines.train.data import load

CPU = torch.device("cpu")
KEPT = Path("runs/causal/split")
# Name in the table: the recipe that trains it, and its own training rows.
CLASSIFIERS = {
    "plain": ("faces-plain", "data/zoo-plain/train-*.parquet"),
    "hair 0.9": ("faces-biased-90", "data/zoo-biased-90/train-*.parquet"),
    "hair 0.98": ("faces-biased-98", "data/zoo-biased-98/train-*.parquet"),
    "hair 0.99": ("faces-biased", "data/zoo-biased/train-*.parquet"),
}
# Independent faces: the probes' own training rows (which no split was trained on) and their test.
INDEPENDENT = {
    "probe": ("data/zoo-plain/train-*.parquet", "20000:23000"),
    "test": ("data/zoo-plain/test-*.parquet", None),
}


def recipe(name: str, seed: int) -> TrainConfig:
    """The shipped recipe, for another classifier and seed."""
    trained, path = CLASSIFIERS[name]
    sets = [
        f"data.path={path}",
        "data.rows=0:8000",
        f"seed={seed}",
        f"name={name.replace(' ', '-')}",
        "log_every=1000",
    ]
    config = load_train("faces-causal-plain", sets)
    made = load_train(trained)
    spec = {
        "role": "classifier",
        "target": made.target,
        "settings": {**made.settings, "outputs": 2},
        "size": 64,
    }
    spec |= {"classes": made.classes, "mean": [0.5], "std": [0.5], "weights": made.out}
    return check(
        TrainConfig, {**config.model_dump(exclude_unset=True), "models": {"classifier": spec}}, name
    )


def measured(name: str) -> tuple[Any, dict[str, tuple[Tensor, Tensor]]]:
    """A classifier, and of its own and of the independent rows R (N,F) and attributes (N,A); kept
    on disk.
    """
    config = recipe(name, 0)
    classifier = load_models(config.model_dump(), ["classifier"], CPU)["classifier"]
    place = KEPT / f"{name.replace(' ', '-')}.pt"
    if not place.exists():
        sources = {"own": (config.data.path, "0:8000"), **INDEPENDENT}
        found = {}
        for part, (path, rows) in sources.items():
            samples = load(
                check(ImageData, {"path": path, "rows": rows, "size": 64}, part), list(ATTRIBUTES)
            )
            bits = torch.tensor([samples.columns[a] for a in ATTRIBUTES]).T.bool()
            found[part] = (features_of(classifier, samples, CPU), bits)
        place.parent.mkdir(parents=True, exist_ok=True)
        torch.save(found, place)
    return classifier, torch.load(place, weights_only=True)


def probes(train: Tensor, bits: Tensor, test: Tensor, truth: Tensor) -> dict[str, list[float]]:
    """Per attribute the held-out AUC and accuracy of a logistic regression on codes (N,D)."""
    out = {}
    for place, attribute in enumerate(ATTRIBUTES):
        made = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
        made.fit(train.numpy(), bits[:, place].numpy())
        wanted = truth[:, place].numpy()
        auc = roc_auc_score(wanted, made.decision_function(test.numpy()))
        out[attribute] = [
            round(float(auc), 4),
            round(float((made.predict(test.numpy()) == wanted).mean()), 4),
        ]
    return out


def one(name: str, seed: int) -> dict[str, Any]:
    """Train h and g with one seed, and measure; gives what is kept."""
    place = KEPT / f"{name.replace(' ', '-')}-{seed}.json"
    if place.exists():
        kept: dict[str, Any] = json.loads(place.read_text())
        return kept
    classifier, rows = measured(name)
    (own, own_bits), (probe, probe_bits), (test, test_bits) = (
        rows["own"],
        rows["probe"],
        rows["test"],
    )
    with torch.no_grad():
        head = head_of(
            classifier, torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        )
    config, smiling = recipe(name, seed), ATTRIBUTES.index("Smiling")
    torch.manual_seed(seed)
    net = CausalVAE(features=own.shape[1], **config.settings)
    started = time.process_time()
    fit(config, net, Explained(classifier, own, own_bits[:, smiling].long(), head), print)
    spent = time.process_time() - started
    net.requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    rebuilt = net.decode(net.posterior(test)[0])
    wrong = (net.normal(rebuilt) - net.normal(test)).square().mean() / net.normal(test).var(
        0, correction=0
    ).mean()
    (c, s), (ct, st) = net.split(probe), net.split(test)
    g = {
        part: net(r).argmax(1).bool() == b[:, smiling]
        for part, r, b in (("own", own, own_bits), ("test", test, test_bits))
    }
    out = {
        "cpu_seconds": round(spent, 1),
        "flow_bits": [
            float(flow(net, head, generator, of=of, **MEASURED)) / math.log(2)
            for of in ("causal", "spurious")
        ],
        "r2": float(1 - wrong),
        "agrees": float((head(rebuilt).argmax(1) == head(test).argmax(1)).float().mean()),
        "g_own": float(g["own"].float().mean()),
        "g_independent": float(g["test"].float().mean()),
        "C": probes(c, probe_bits, ct, test_bits),
        "S": probes(s, probe_bits, st, test_bits),
    }
    place.write_text(json.dumps(out))
    return out


def ceiling(name: str) -> dict[str, Any]:
    """Probes on R itself, and what the classifier decides on independent faces."""
    place = KEPT / f"{name.replace(' ', '-')}-R.json"
    if place.exists():
        kept: dict[str, Any] = json.loads(place.read_text())
        return kept
    classifier, rows = measured(name)
    (probe, probe_bits), (test, test_bits) = rows["probe"], rows["test"]
    with torch.no_grad():
        head = head_of(
            classifier, torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        )
        decided = head(test).argmax(1).bool()
    agrees = {
        a: float((decided == test_bits[:, i]).float().mean()) for i, a in enumerate(ATTRIBUTES)
    }
    out = {"agrees": agrees, "R": probes(probe, probe_bits, test, test_bits)}
    place.write_text(json.dumps(out))
    return out


def cell(values: list[float], digits: int = 2) -> str:
    """Mean, and half the range where there are several."""
    spread = (max(values) - min(values)) / 2
    return f"{np.mean(values):.{digits}f}" + (
        f" ± {spread:.{digits}f}" if round(spread, digits) else ""
    )


def tables(names: list[str], seeds: list[int]) -> None:
    """Print both tables as Markdown, of what has been measured."""
    found: dict[str, list[dict[str, Any]]] = {n: [] for n in names}
    for seed in seeds:  # the first of every classifier before the second of any
        for n in names:
            found[n].append(one(n, seed))
    print(
        "| classifier | decision is Smiling / Blond_Hair | flow C, bits | flow S, bits | R2 | head"
        " on rebuilt R agrees | g on S, its own rows | g on S, independent rows"
        " |\n|---|---|---|---|---|---|---|---|"
    )
    for name in names:
        a, runs = ceiling(name)["agrees"], found[name]
        flows = [cell([r["flow_bits"][k] for r in runs], 3) for k in (0, 1)]
        rest = [
            cell([r[key] for r in runs], 3) for key in ("r2", "agrees", "g_own", "g_independent")
        ]
        print(
            f"| {name} | {a['Smiling']:.3f} / {a['Blond_Hair']:.3f} | "
            + " | ".join([*flows, *rest])
            + " |"
        )
    for kind, k in (("AUC", 0), ("accuracy", 1)):
        print(
            f"\n{kind}\n\n| classifier | probe on | "
            + " | ".join(ATTRIBUTES)
            + " |\n"
            + "|---" * (len(ATTRIBUTES) + 2)
            + "|"
        )
        for name in names:
            top = ceiling(name)["R"]
            print(f"| {name} | R | " + " | ".join(f"{top[a][k]:.2f}" for a in ATTRIBUTES) + " |")
            for part in ("C", "S"):
                print(
                    f"| | {part} | "
                    + " | ".join(cell([r[part][a][k] for r in found[name]]) for a in ATTRIBUTES)
                    + " |"
                )


if __name__ == "__main__":
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--classifiers", nargs="+", default=list(CLASSIFIERS), choices=list(CLASSIFIERS)
    )
    options.add_argument("--seeds", nargs="+", type=int, default=[11, 12, 13])
    given = options.parse_args()
    torch.set_num_threads(1)
    tables(given.classifiers, given.seeds)
