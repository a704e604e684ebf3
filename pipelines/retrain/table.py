"""The tables of a retraining: figures of each arm and seed, their means, and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from configs.retrain import RetrainConfig
from counterfactory.metrics import means, rates
from counterfactory.metrics.calibration import expected_calibration_error
from pipelines.engine.tables import escape_markdown
from pipelines.retrain.inputs import group_names
from pipelines.retrain.worker import CHANGED, ORIGINAL, TEST, VALIDATION

BASE = "erm"  # the arm that the others are compared with, where it is there; else the first
GROUP_MARK = "*"
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Answers:
    """A classifier's answers on one part. labels, groups: (N,); probabilities: (N,K).

    groups: all 0 where there are none.
    """

    ids: list[str]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    probabilities: Floats

    @property
    def right(self) -> Floats:
        """Return 1 for each row whose class is the predicted one, else 0."""
        return np.asarray(self.probabilities.argmax(1) == self.labels, dtype=np.float64)


ByPart = dict[str, Answers]
ByArm = Mapping[str, Mapping[int, ByPart]]  # by arm and seed


def answers_of(table: pa.Table) -> ByPart:
    """Return a unit's committed answers by part."""
    parts = np.array(table["part"].to_pylist())
    names = table["id"].to_pylist()
    labels, groups = (
        np.array([-1 if v is None else v for v in table[name].to_pylist()])
        for name in ("label", "group")
    )
    probabilities = np.array(table["probabilities"].to_pylist(), dtype=np.float64)
    return {
        str(part): Answers(
            [names[i] for i in np.flatnonzero(parts == part)],
            labels[parts == part],
            np.maximum(groups[parts == part], 0),
            probabilities[parts == part],
        )
        for part in dict.fromkeys(parts.tolist())
    }


def with_chosen(config: RetrainConfig, found: ByArm) -> tuple[ByArm, dict[str, dict[int, str]]]:
    """Return the answers with those of `choose`, and by its names the arm taken for each seed: the
    one that is best on the validation rows, the first of several.
    """
    out, taken = dict(found), dict[str, dict[int, str]]()
    for name, arms in config.choose.items():
        taken[name] = {}
        for seed in config.seeds:
            scores = {
                arm: _validated(config, found[arm][seed][VALIDATION])
                for arm in arms
                if seed in found[arm]
            }
            if scores:
                taken[name][seed] = max(scores, key=lambda arm: scores[arm])
        out[name] = {seed: found[arm][seed] for seed, arm in taken[name].items()}
    return out, taken


def _validated(config: RetrainConfig, answers: Answers) -> float:
    if config.choose_by == "worst":
        return float(by_group(answers, None).min())
    return float(answers.right.mean())


def table_of(config: RetrainConfig, found: ByArm) -> dict[str, Any]:
    """Return table.json: of each arm its figures by seed, their means over seeds, and the paired
    differences against the base arm.
    """
    every, taken = with_chosen(config, found)
    names = group_names(config) if config.groups else []
    base = BASE if BASE in every else next(iter(every))
    first = next(iter(every[base].values()))[TEST]
    weights = means.bootstrap_weights(first.ids, config.bootstrap)
    arms = {}
    for name, seeds in every.items():
        figures = {str(seed): _figures(parts, names) for seed, parts in seeds.items()}
        line: dict[str, Any] = {"groups": config.uses_groups(name), "seeds": figures}
        if name in taken:
            line["chosen"] = {str(seed): arm for seed, arm in taken[name].items()}
        kinds = ("accuracy", "worst", "ece", "flips")
        line |= {kind: _spread([each[kind] for each in figures.values()]) for kind in kinds}
        if name != base:
            mine, theirs = (_by_seed(config, each, every[each]) for each in (name, base))
            line["against"] = _differences(mine, theirs, weights)
        arms[name] = line
    return {
        "name": config.name,
        "base": base,
        "steps": config.step_count,
        "test_rows": len(first.labels),
        "group_names": names,
        "seeds": config.seeds,
        "arms": arms,
    }


def _by_seed(config: RetrainConfig, name: str, seeds: Mapping[int, ByPart]) -> Mapping[int, ByPart]:
    """Return the answers by seed; those of a classifier that was not trained for every seed."""
    if name in config.arms and config.arms[name].kind == "given":
        return dict.fromkeys(config.seeds, next(iter(seeds.values())))
    return seeds


def _figures(parts: ByPart, names: Sequence[str]) -> dict[str, Any]:
    test = parts[TEST]
    groups = {name: _rate(test.right[test.groups == place]) for place, name in enumerate(names)}
    out: dict[str, Any] = {
        "accuracy": _rate(test.right),
        "ece": {"value": round(expected_calibration_error(test.probabilities, test.labels), 4)},
        "worst": None,
        "groups": groups,
        "flips": None,
        "validation": None,
    }
    if groups:
        worst = min(groups, key=lambda name: float(groups[name]["value"]))
        out["worst"] = {"group": worst, **groups[worst]}
    if ORIGINAL in parts:
        sides = [parts[part].probabilities.argmax(1) for part in (ORIGINAL, CHANGED)]
        out["flips"] = _rate((sides[0] != sides[1]).astype(np.float64))
    if VALIDATION in parts:
        out["validation"] = _rate(parts[VALIDATION].right)
    return out


def _rate(right: Floats) -> dict[str, Any]:
    """Return a share with its 95 % Wilson interval."""
    found = rates.compute(rates.update(right))
    known = {"value": found.value, "low": found.low, "high": found.high}
    rounded = {k: None if v is None else round(v, 4) for k, v in known.items()}
    return {**rounded, "n": len(right)}


def _spread(figures: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """Return mean, least and largest of a figure over seeds; None where it was not measured."""
    values = [figure["value"] for figure in figures if figure is not None]
    if not values:
        return None
    mean, low, high = (round(float(f(values)), 4) for f in (np.mean, np.min, np.max))
    return {"mean": mean, "least": low, "most": high, "seeds": len(values)}


def _differences(
    mine: Mapping[int, ByPart], base: Mapping[int, ByPart], weights: Floats
) -> dict[str, Any] | None:
    """Return the mean over seeds of an arm's accuracy and worst group less those of the base, on
    the same rows.

    The 95 % interval is of a bootstrap over rows: each replicate weights the rows of both arms and
    of all seeds alike.
    """
    pairs = [(mine[seed][TEST], base[seed][TEST]) for seed in mine if seed in base]
    if not pairs:
        return None
    out = {}
    for kind, of in (("accuracy", _accuracy), ("worst", by_group)):
        whole = np.mean([_least(of(a, None)) - _least(of(b, None)) for a, b in pairs])
        drawn = np.mean([_least(of(a, weights)) - _least(of(b, weights)) for a, b in pairs], axis=0)
        low, high = np.quantile(drawn, [0.025, 0.975])
        value = {"value": whole, "low": min(low, whole), "high": max(high, whole)}
        out[kind] = {k: round(float(v), 4) for k, v in value.items()}
    return out


def _least(shares: Floats) -> Floats:
    return np.asarray(shares.min(0))


def _accuracy(answers: Answers, weights: Floats | None) -> Floats:
    w = np.ones((len(answers.labels), 1)) if weights is None else weights
    return np.asarray(answers.right @ w / np.maximum(w.sum(0), 1))[None]


def by_group(answers: Answers, weights: Floats | None) -> Floats:
    """Return the accuracy of each group with rows, by replicate, (G,R); weights: (N,R)."""
    w = np.ones((len(answers.labels), 1)) if weights is None else weights
    found = []
    for group in np.unique(answers.groups):
        rows = answers.groups == group
        drawn = w[rows].sum(0)
        # a replicate that drew no row of a group says nothing of it
        found.append(np.where(drawn > 0, answers.right[rows] @ w[rows] / np.maximum(drawn, 1), 1))
    return np.stack(found)


def markdown(table: Mapping[str, Any]) -> str:
    """Return table.md."""
    arms: dict[str, Any] = table["arms"]
    grouped, base = bool(table["group_names"]), table["base"]
    head = ["arm", "accuracy", *(["worst group", "by seed"] if grouped else ["by seed"])]
    head += ["ECE", "flips", f"accuracy - {base}", *([f"worst - {base}"] if grouped else [])]
    lines = [f"# {escape_markdown(table['name'])}", "", _told(table), ""]
    lines += [_row(head), "|---" + "|---:" * (len(head) - 1) + "|"]
    for name, arm in arms.items():
        kind = "worst" if grouped else "accuracy"
        seeds = ", ".join(f"{each[kind]['value']:.3f}" for each in arm["seeds"].values())
        cells = [
            escape_markdown(name) + (GROUP_MARK if arm["groups"] else ""),
            _mean(arm["accuracy"]),
            *([_mean(arm["worst"])] if grouped else []),
            seeds,
            _mean(arm["ece"]),
            _mean(arm["flips"]),
        ]
        against = arm.get("against") or {}
        cells += [_difference(against.get(kind)) for kind in ("accuracy", *(("worst",) * grouped))]
        lines.append(_row(cells))
    if grouped:
        lines += ["", "**Accuracy by group**", "", *_groups(table)]
    chosen = [
        f"- {escape_markdown(name)}: "
        + ", ".join(f"{arm} (seed {seed})" for seed, arm in line["chosen"].items())
        for name, line in arms.items()
        if "chosen" in line
    ]
    if chosen:
        lines += ["", "**Chosen on the validation rows**", "", *chosen]
    return "\n".join(lines) + "\n"


def _told(table: Mapping[str, Any]) -> str:
    seeds = ", ".join(map(str, table["seeds"]))
    told = (
        f"{table['steps']:,} steps each; seeds {seeds}; {table['test_rows']:,} test rows."
        " Means over seeds. ECE: expected calibration error. flips: share of the counterfactuals"
        " that flip this classifier. Differences are on the same rows, with a 95 % bootstrap"
        " interval."
    )
    if any(arm["groups"] for arm in table["arms"].values()):
        told += f" {GROUP_MARK}: uses the groups of train or validation rows."
    return told


def _groups(table: Mapping[str, Any]) -> list[str]:
    """Return the lines of the accuracy by group, with the smallest lower and the largest upper
    bound over seeds.
    """
    arms, names = table["arms"], table["group_names"]
    first = next(iter(next(iter(arms.values()))["seeds"].values()))["groups"]
    head = [f"{escape_markdown(name)} (n {first[name]['n']:,})" for name in names]
    lines = [_row(["arm", *head]), "|---" + "|---:" * len(head) + "|"]
    for name, arm in arms.items():
        cells = [escape_markdown(name)]
        for group in names:
            seeds = [each["groups"][group] for each in arm["seeds"].values()]
            mean = np.mean([each["value"] for each in seeds])
            low, high = min(each["low"] for each in seeds), max(each["high"] for each in seeds)
            cells.append(f"{mean:.3f} [{low:.3f}, {high:.3f}]")
        lines.append(_row(cells))
    return lines


def _mean(figure: Mapping[str, Any] | None) -> str:
    return "-" if figure is None else f"{figure['mean']:.3f}"


def _difference(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return "-"
    return f"{figure['value']:+.3f} [{figure['low']:+.3f}, {figure['high']:+.3f}]"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
