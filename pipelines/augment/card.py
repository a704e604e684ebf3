"""A summary of the augmentation set in one sentence, and a card that is stored beside the data."""

from __future__ import annotations

from typing import Any

from configs.schema import RunConfig
from pipelines.augment.gates import limits_of
from pipelines.engine.tables import escape_markdown

# Hugging Face reads the YAML on top where load_dataset gets the whole folder. Its cache identifies
# a set only by the folder's name, which is `augment` in every run, and by this name.
CARD = """---
configs:
- config_name: {config_name}
  data_files: data/part-*.parquet
---
# Counterfactuals of run {run}

{summary}

Each row is a generated image that the classifier sees as `target`, made from the data set's row
`source_id`, which it saw as `source`. {label}{several}
Images are PNG as they were stored and scored.
{warnings}
| | rows |
|---|---:|
| considered | {considered} |
{rejected}| **kept** | **{kept}** |

A row that fails is counted at the first gate it fails, in this order. {held_out}

{per_class}{attributes}
Gates: {gates}. Method: `{method}`. Splits: {splits}.

    datasets.load_dataset("parquet", data_files="data/part-*.parquet")  # Image, ClassLabel
    pandas.read_parquet("data")  # image is {{"bytes": PNG, "path": name}}
{formats}"""
LABELS = {
    "target": "Its `label` is the target class: what the image was changed to show.",
    "source": "Its `label` is `source`: the change should not have moved the decision.",
    "oracle": (
        "Its `label` is the class that the oracle sees in the image: rows of which it is less sure"
        " than 0.9 are left out."
    ),
    "judge": (
        "Its `label` is by the judge's validity: `target` from 8, `source` up to 3, in all its"
        " answers; other rows are left out."
    ),
    "review": (
        "Its `label` is by the people who reviewed it: `target` where more than half found it"
        " valid, and the original's class where more than half found it spurious; other rows are"
        " left out."
    ),
    "soft": (
        "Its `probabilities` are those of the classes by the oracle, and its `label` is the"
        " likelier class."
    ),
    "original": (
        "Its `label` is that of the original: the change should not have moved the decision."
    ),
}
# How further formats are read, by their place.
READERS = {
    "webdataset": (
        '    webdataset.WebDataset("{}/part-00000.tar", shardshuffle=False).decode("pil")\n'
    ),
    "folder": '    datasets.load_dataset("imagefolder", data_dir="{}")\n',
}
# A warning for readers who split the set again.
SEVERAL = (
    " A row of the data set may have several answers here, `k` says which: answers that are alike"
    " are left out, all of a row's are in its split, and whoever splits the set again should split"
    " by `source_id`."
)
# Of the table of labels and attributes; counts.json has all pairs.
PAIRS = 20
BEFORE = {
    "label": "the originals of the splits, by their labels",
    "source": "the originals of the splits, by their predicted classes, since they have no labels",
}


def summary(counts: dict[str, Any]) -> str:
    """Return one sentence on how many rows were kept, or on why none was."""
    kept, considered, rejected = counts["kept"], counts["considered"], counts["rejected"]
    if kept:
        classes = ", ".join(f"{n} {name}" for name, n in counts["per_class"].items())
        told = f"kept {kept} of {_rows(counts)} ({classes})"
        missing = [name for name in counts["classes"] if name not in counts["per_class"]]
        return told + (f"; none of class {', '.join(missing)}" if missing else "")
    if not considered:
        return "kept no row: the run has none"
    reasons = ", ".join(
        f"{n} {gate}" for gate, n in sorted(rejected.items(), key=lambda item: -item[1])
    )
    hint = (
        "; no row says which split it is of (data.split)"
        if counts["without_split"] == considered
        else ""
    )
    return f"kept none of {_rows(counts)}: {reasons}{hint}"


def _rows(counts: dict[str, Any]) -> str:
    """Return the number of considered rows as text, or of answers where rows have several."""
    considered, originals = counts["considered"], counts.get("originals", counts["considered"])
    return (
        f"{considered} rows"
        if considered == originals
        else f"{considered} answers to {originals} rows"
    )


def set_name(config: RunConfig, counts: dict[str, Any]) -> str:
    """Return a name that no other set has: the run's, and the set's digest."""
    return f"{config.name}-{counts['digest'][:16]}"


def card(config: RunConfig, counts: dict[str, Any]) -> str:
    """Return the card as Markdown."""
    settings = counts["settings"]
    limits = limits_of(config.augment).items()
    gates = ", ".join(f"{name} {limit:g}" for name, (_, limit) in limits if limit is not None)
    classes = ((escape_markdown(name), n) for name, n in counts["per_class"].items())
    per_class = "".join(f"| {name} | {n} |\n" for name, n in classes)
    sentence = escape_markdown(counts["summary"])
    return CARD.format(
        config_name=set_name(config, counts),
        run=config.name,
        summary=sentence[:1].upper() + sentence[1:] + ".",
        label=LABELS[counts["label"]],
        several=SEVERAL if counts["considered"] > counts["originals"] else "",
        considered=counts["considered"],
        rejected="".join(
            f"| {escape_markdown(gate)} | {n} |\n" for gate, n in counts["rejected"].items()
        ),
        kept=counts["kept"],
        held_out=_held_out(counts["held_out"]),
        formats="".join(READERS[name].format(path) for name, path in counts["formats"].items()),
        warnings="".join(f"\n{escape_markdown(line)}.\n" for line in counts["warnings"]),
        attributes=_attributes(counts["attributes"]),
        per_class=f"| class | kept |\n|---|---:|\n{per_class}" if per_class else "",
        gates=gates or "none",
        method=config.method.target,
        splits=escape_markdown(", ".join(settings["splits"])) or "none",
    )


def _held_out(told: dict[str, int]) -> str:
    if not told["rows"]:
        return "There were no held-out rows to compare with."
    bad = f" ({told['unreadable']} more cannot be read)" if told["unreadable"] else ""
    return f"Compared with {told['rows']} held-out rows{bad}: by id, pixels and perceptual hash."


def _attributes(told: dict[str, Any] | None) -> str:
    """Return the pairs of class and attribute that go together most, before or after."""
    if told is None:
        return ""

    def strength(pair: dict[str, Any]) -> float:
        return max(abs(float(pair[side]["phi"])) for side in ("before", "after"))

    lines = []
    for pair in sorted(told["pairs"], key=strength, reverse=True)[:PAIRS]:
        cells = [escape_markdown(pair["class"]), escape_markdown(pair["attribute"])]
        for side in ("before", "after"):
            (a, b), (c, d) = pair[side]["rows"]
            cells.append(f"{d} of {c + d}, {b} of {a + b}")
        cells += [f"{pair[side]['phi']:.2f}" for side in ("before", "after", "both")]
        lines.append(f"| {' | '.join(cells)} |\n")
    return (
        f"\nRows with an attribute among those of a class and among the others. Before:"
        f" {BEFORE[told['of']]}. After: this set, by its `label`. Phi is the correlation of class"
        " and attribute; `both` is of the two together.\n\n"
        "| class | attribute | before | after | phi before | phi after | phi both |\n"
        "|---|---|---:|---:|---:|---:|---:|\n" + "".join(lines)
    )
