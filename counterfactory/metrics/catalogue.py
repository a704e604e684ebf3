"""The list of all metrics: each with its columns of the scores, the function that computes them,
its figures and its version.

The score table, the Parquet schema of scores, the report, sweeps and docs/figures.md are built from
this list. A new metric needs an entry here, its file, and its test. Functions are given by name and
not imported, so that importing the list is fast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

from counterfactory.metrics.estimate import Measure
from counterfactory.metrics.judge import CRITERIA

Kind = Literal["float", "int", "floats"]


@dataclass(frozen=True)
class Metric:
    """One computation per row, with its columns and figures.

    needs: the names of models, or of figures that take a network, that a run must have. columns:
    the columns that it adds to a run's scores, with their types. function: computes these columns
    from `pairs.Pairs`; "" where generating stores them, or where figures are computed from many
    rows at once. version: raise it when the numbers change; a run's scores are then computed again.
    """

    name: str
    figures: tuple[Measure, ...]
    needs: tuple[str, ...] = ()
    columns: Mapping[str, Kind] = field(default_factory=dict)
    function: str = ""
    version: int = 1


PER_ROW = "attributes per row"
METRICS = (
    Metric(
        "flips",
        (
            Measure(
                *("flip_rate", "flipped", "rate", "all", "higher"),
                label="Flip rate",
                help="rows whose stored counterfactual is classified as the target",
            ),
            Measure(
                *("flip_rate[any]", "any_flipped", "rate", "all", "higher"),
                label="Rows flipped",
                help="rows of which at least one answer flipped",
                derive="flips.any_flipped_of",
                reads=("flipped",),
                of_rows=True,
            ),
            Measure(
                *("flip_rate[p>0.75]", "confident", "rate", "all", "higher"),
                label="Flip rate at p > 0.75",
                help="the same, with a probability above 0.75",
                derive="flips.confident_of",
                reads=("p_target",),
            ),
            Measure(
                *("p_target", "p_target", "mean", "all", "higher", "probability"),
                label="Confidence",
                help="mean probability of the target class on the stored counterfactual",
                written="rate",
            ),
        ),
        columns={"p_target": "float"},
        function="flips.measure",
    ),
    Metric(
        "second",
        (
            Measure(
                *("second_agrees", "second_agrees", "rate", "flipped", "higher"),
                label="Second classifier agrees",
                help="one that was never attacked sees the target class too",
            ),
            Measure(
                *("second_agrees_on_originals", "second_base", "rate", "all", None),
                label="Second agrees on originals",
                help="sees the class in them that the first one sees",
            ),
        ),
        needs=("second",),
        columns={"second_p_target": "float", "second_agrees": "float", "second_base": "float"},
        function="flips.measure_second",
    ),
    Metric(
        "cout",
        (
            Measure(
                *("cout", "cout", "mean", "correct", "higher"),
                label="COUT",
                help="how soon the decision turns as the most changed pixels are carried over,"
                " \N{MINUS SIGN}1 to 1",
                axis=(-1.0, 1.0),
            ),
        ),
        columns={"cout": "float"},
        function="cout.measure",
    ),
    Metric(
        "pixels",
        (
            Measure(
                *("l1", "l1", "mean", "all", "lower", "mean |x'-x|"),
                label="L1 change",
                help="mean absolute change of a pixel, on a scale of 1",
            ),
            Measure(
                *("l2", "l2", "mean", "all", "lower", "root mean square"),
                label="L2 change",
                help="root mean square change of a pixel, on a scale of 1",
            ),
            Measure(
                *("linf", "linf", "mean", "all", "lower", "largest |x'-x|"),
                label="Largest change",
                help="of any pixel, on a scale of 1",
            ),
            Measure(
                *("sparsity", "sparsity", "mean", "all", "lower", "share of pixels"),
                label="Pixels changed",
                help="share of pixels that moved by more than 1/255",
                written="rate",
            ),
        ),
        columns={"l1": "float", "l2": "float", "linf": "float", "sparsity": "float"},
        function="pixels.measure",
    ),
    Metric(
        "lpips",
        (
            Measure(
                *("lpips", "lpips", "mean", "all", "lower"),
                label="LPIPS",
                help="perceptual distance to the original",
            ),
            # Over queries with several answers: sigma_L of DiME and ACE. It is not LPIPS, the
            # distance to the original.
            Measure(
                *("lpips_diversity", "lpips_diversity", "mean", "all", "higher"),
                label="LPIPS diversity",
                help="mean perceptual distance of the answers to one query",
                of_rows=True,
            ),
        ),
        needs=("lpips",),
        columns={
            "lpips": "float",
            "lpips_diversity": "float",  # of the answers to one query, at its first answer
            "lpips_diversity_flipped": "float",  # the same, of the flipped answers
        },
        function="perceptual.measure",
    ),
    Metric(
        "s3",
        (
            Measure(
                *("s3", "s3", "mean", "correct", "higher", "cosine"),
                label="S\N{SUPERSCRIPT THREE}",
                help="cosine of SimSiam's outputs",
                axis=(-1.0, 1.0),
            ),
        ),
        needs=("s3",),
        columns={"s3": "float"},
        function="similarity.measure_s3",
    ),
    Metric(
        "faces",
        (
            Measure(
                *("fva", "verified", "rate", "flipped", "higher"),
                label="Face verified",
                help="pairs that a face network takes for one person",
                derive="similarity.verified_of",
                reads=("fs",),
                lacks="fs",
            ),
            Measure(
                *("fs", "fs", "mean", "flipped", "higher", "cosine"),
                label="Face similarity",
                help="cosine of face embeddings",
                axis=(-1.0, 1.0),
            ),
        ),
        needs=("fs",),
        columns={"fs": "float"},
        function="similarity.measure_faces",
    ),
    Metric(
        "lpr",
        (
            Measure(
                *("lpr", "lpr", "mean", "all", "lower", "share of latents moved"),
                label="Latents changed",
                help="share, LPR, both images encoded again by one encoder",
                written="rate",
            ),
        ),
        needs=("lpr",),
        columns={"lpr": "float"},
        function="latents.measure",
    ),
    Metric(
        "attributes",
        (
            Measure(
                *("causal_share", "causal_share", "mean", "flipped", "higher"),
                "share of changed attributes",
                label="Causal share",
                help="part of the attribute change that falls on the causal attribute",
                written="rate",
                needs=("causal",),
                lacks="attributes_after",
            ),
            Measure(
                *("changed_causal", "changed_causal", "mean", "flipped", None, PER_ROW),
                label="Causal attributes changed",
                help="per row",
                needs=("causal",),
                lacks="attributes_after",
            ),
            Measure(
                *("changed_spurious", "changed_spurious", "mean", "flipped", "lower", PER_ROW),
                label="Other attributes changed",
                help="per row",
                needs=("causal",),
                lacks="attributes_after",
            ),
            Measure(
                *("mnac", "changed_all", "mean", "flipped", "lower", PER_ROW),
                label="Attributes changed",
                help="mean number, MNAC, the target attribute among them",
                lacks="attributes_after",
            ),
            Measure(
                *("mnac[without target]", "changed_others", "mean", "flipped", "lower", PER_ROW),
                label="Attributes changed besides",
                help="MNAC without the target",
                needs=("query",),
                lacks="attributes_after",
            ),
        ),
        needs=("oracle",),
        columns={
            "attributes_before": "floats",  # the oracle's probabilities
            "attributes_after": "floats",
            "causal_share": "float",
            "changed_causal": "int",
            "changed_spurious": "int",
            "changed_all": "int",  # with the query attribute
            "changed_others": "int",  # without the query attribute
        },
        function="attributes.measure",
    ),
    Metric(
        "cost",
        (
            Measure(
                *("seconds", "seconds", "mean", "all", "lower", "s per row"),
                label="Time per row",
                help="wall clock of the method, shared over its batch",
                written="seconds",
            ),
            Measure(
                *("forward", "forward", "mean", "all", "lower", "evaluations per row"),
                label="Model evaluations",
                help="of every network, forward, per row",
            ),
            Measure(
                *("backward", "backward", "mean", "all", "lower", "evaluations per row"),
                label="Backward passes",
                help="of every network, per row",
            ),
        ),
        columns={"seconds": "float", "forward": "float", "backward": "float"},
    ),
    # The features from which fid, sfid and kid are summed. For shards of usual size they take less
    # space than the sums: the outer products of 64 rows of 2,048 features take 32 MB as a matrix,
    # for each of 20 buckets per side.
    Metric(
        "features",
        (
            Measure(
                *("fid", "", "set", "flipped", "lower", "originals against flipped"),
                label="FID",
                help="Fr\N{LATIN SMALL LETTER E WITH ACUTE}chet distance to the originals",
                lacks="features_after",
            ),
            Measure(
                *("sfid", "", "set", "flipped", "lower"),
                "originals against the other half's flipped",
                label="Split FID",
                help="to the originals of the other half",
                lacks="features_after",
            ),
            Measure(
                *("kid", "", "set", "flipped", "lower", "originals against flipped"),
                label="KID",
                help="polynomial MMD to the originals, unbiased for few rows",
                lacks="features_after",
            ),
            Measure(
                *("kid_apart", "", "set", "flipped", "lower", "originals against flipped"),
                label="KID apart",
                help="KID that leaves out a row's own pair; not what others report",
                lacks="features_after",
            ),
        ),
        needs=("fid",),
        columns={"features_before": "floats", "features_after": "floats"},
        function="moments.measure",
    ),
    Metric(
        "cd",
        (
            Measure(
                *("cd", "", "set", "flipped", "lower", "summed over attributes"),
                label="Correlation difference",
                help="of what changes together from what goes together",
                needs=("query",),
                lacks="attributes_after",
            ),
        ),
        needs=("oracle",),
    ),
    Metric(
        "tflops",
        (
            Measure(
                *("tflops", "", "set", "all", "lower", "TFLOP per row"),
                label="TFLOP per row",
                help="of the method and its networks, as torch counts them",
                of_rows=True,
            ),
        ),
    ),
    Metric(
        "interventions",
        (
            Measure(
                *("core_share", "core_share", "mean", "flipped", "lower", "share of |x'-x|"),
                label="Core",
                help="part of the change that is needed to flip",
                written="rate",
            ),
            Measure(
                *("core_l1", "core_l1", "mean", "flipped", "lower", "mean |core-x|"),
                label="L1 change of the core",
                help="mean absolute change of a pixel, of the part that is needed to flip",
            ),
            Measure(
                *("concentration", "", "set", "flipped", None, "share of the effect"),
                label="Concentration",
                help="share of the effect in the tenth of the cells with most of it",
                written="rate",
            ),
            Measure(
                *("place_share", "", "set", "flipped", None, "share of the effect"),
                label="Place",
                help="share of the effect in the named regions (interventions.places)",
                written="rate",
            ),
        ),
        needs=("interventions",),
    ),
    Metric(
        "judge",
        (
            Measure(
                *("judge", "judge", "mean", "all", "higher", "1 to 10"),
                label="Judge",
                help="mean of a vision-language model's four scores, 1 to 10",
                axis=(1.0, 10.0),
            ),
            *(
                Measure(
                    *(f"judge_{name}", name, "mean", "all", "higher", "1 to 10"),
                    label=f"Judge: {name}",
                    help="score of 1 to 10",
                    axis=(1.0, 10.0),
                )
                for name in CRITERIA
            ),
        ),
        needs=("judge",),
    ),
)
METRIC = {metric.name: metric for metric in METRICS}
FIGURES = {figure.name: figure for metric in METRICS for figure in metric.figures}


def measured(have: Iterable[str]) -> list[Metric]:
    """Return the metrics whose needs a run has; have: the names that the run has."""
    given = set(have)
    return [metric for metric in METRICS if given.issuperset(metric.needs)]


def figures_of(have: Iterable[str]) -> list[Measure]:
    """Return the figures that a run has, in the table's order."""
    given = set(have)
    return [
        figure
        for metric in measured(given)
        for figure in metric.figures
        if given.issuperset(figure.needs)
    ]


def function(name: str) -> Callable[..., Any]:
    """Return a function by its name in counterfactory.metrics, such as `cout.measure`."""
    module, _, attribute = name.rpartition(".")
    found: Callable[..., Any] = getattr(
        import_module(f"counterfactory.metrics.{module}"), attribute
    )
    return found


def outdated(versions: Mapping[str, int] | None) -> str:
    """Return how these metric versions differ from the present ones, such as `cout 1, now 2`; ""
    where they do not.

    None stands for scores without versions, made before metrics had them.
    """
    if versions is None:
        return "made before metrics had versions"
    return ", ".join(
        f"{name} {version}, now {METRIC[name].version if name in METRIC else 'gone'}"
        for name, version in versions.items()
        if name not in METRIC or METRIC[name].version != version
    )


def markdown() -> str:
    """Return every figure as a Markdown table, for docs/figures.md."""
    arrows = {"higher": "higher", "lower": "lower", None: ""}
    lines = [
        "| figure | meaning | rows | better | unit | column |",
        "|---|---|---|---|---|---|",
    ]
    for figure in FIGURES.values():
        cells = (
            f"`{figure.name}`",
            f"{figure.label}: {figure.help}",
            figure.subset,
            arrows[figure.better],
            figure.unit.replace("|", r"\|"),
            f"`{figure.column}`" if figure.column and not figure.derive else "",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
