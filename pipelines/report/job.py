"""One self-contained HTML page of a run, or of several compared runs.

It shows the runs' settings, their figures and pictures for the reader to judge.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from configs.strict import UserError
from counterfactory.metrics.together import Pair, describe
from pipelines.engine.committed import outdated_scores
from pipelines.report.attribution import heading, importance_panels
from pipelines.report.data import RunData, read_run
from pipelines.report.figures import cards, metric_rows, percent, plural, short_number
from pipelines.report.gallery import gallery
from pipelines.report.interventions import intervention_panels, share_scale
from pipelines.report.parts import JUDGED, calibration_lines, review_counts
from pipelines.report.plots import attribute_panels, distributions, sound
from pipelines.report.story import Story
from pipelines.report.themes import theme_panels
from storage.codec import sides
from storage.uri import Store, open_store

HERE = Path(__file__).parent
WORDS = r"(?:secret|passw|credential|signature|api_?key|access_?key|(?<!max_)token)"
SECRET_KEY = re.compile(WORDS, re.I)
# user:password@ in an address, secret=value in a link or a command line
SECRET_TEXT = re.compile(rf"""(?<=://)[^/@\s'"]+(?=@)|[\w.-]*{WORDS}[\w.-]*=[^&\s'"]+""", re.I)
HIDDEN = "(hidden)"


def report(runs: Sequence[Store], *, out: str | None = None, story: Story | None = None) -> str:
    """Write the page and return its address.

    The page is `report.html` in the run's folder, or `out`, which several runs need. Where a stage
    has not been run, a sentence stands in place of its section. story: the first section, where
    the runs are two audits of a chain. UserError where a folder holds no run.
    """
    if not runs or (len(runs) > 1 and out is None):
        raise ValueError(f"expected one run, or several and `out`, got {len(runs)} and {out!r}")
    page = render([_read(store) for store in runs], datetime.now(UTC), story).encode(
        errors="backslashreplace"
    )
    folder, name = (runs[0], "report.html") if out is None else _split(out)
    folder.replace(name, page)
    return folder.url(name)


def render(runs: Sequence[RunData], now: datetime, story: Story | None = None) -> str:
    """Return the page as text; `now` is its only part that changes with time."""
    template = page_environment().get_template("report.html.j2")
    settings = runs[0].config["report"]
    proven, grouped = intervention_panels(runs), theme_panels(runs)
    return template.render(
        title=settings["title"] or " and ".join(run.name for run in runs),
        names=[run.name for run in runs],
        several=len(runs) > 1,
        story=story,
        each=_each(runs),
        findings=[_finding(run) for run in runs],
        facts=_shared([_facts(run) for run in runs]),
        unfinished=[line for run in runs for line in _unfinished(run)],
        scored=[run.table is not None for run in runs],
        cards=cards(runs),
        tables=metric_rows(runs),
        panels=attribute_panels(runs),
        importances=importance_panels(runs),
        groups=distributions(runs),
        interventions=proven,
        themes=grouped,
        gallery=gallery(
            runs,
            settings["gallery"],
            settings["failures"],
            share_scale(runs),
            proven["pictures"] + grouped["pictures"],
        ),
        failures=[_failures(run) for run in runs],
        judged=[
            (
                run.name,
                ", ".join(run.judges) or "a vision-language model",
                [(name, *run.judge[name]) for name in JUDGED if name in run.judge],
                calibration_lines(run.store),
            )
            for run in runs
            if run.judge
        ],
        reviewed=[(run.name, told) for run in runs if (told := review_counts(run.store))],
        augmented=[(run.name, run.augment) for run in runs if run.augment],
        reproduce=[_reproduce(run) for run in runs],
        date=now.strftime("%d %B %Y, %H:%M UTC").lstrip("0"),
    )


def page_environment(*folders: Path) -> Environment:
    """Return the environment of the report's template, and of templates in further folders that
    extend it.
    """
    environment = Environment(
        loader=FileSystemLoader([*folders, HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        csp=_csp, plural=plural, percent=percent, number=short_number, heading=heading
    )
    return environment


def _each(runs: Sequence[RunData]) -> str:
    """Return a sentence on runs that have several answers to a row; "" where no run has."""
    told = [f"{run.name} has {run.each} answers to each row" for run in runs if run.each > 1]
    if len(runs) == 1 and told:
        told = [f"Each row has {runs[0].each} answers"]
    return f"{'; '.join(told)}: n counts answers, and intervals are over rows." if told else ""


def redact(value: Any) -> Any:
    """Return settings or text with secrets hidden.

    A secret is a value under a secret's name, a password in an address, or a value in a signed
    link.
    """
    if isinstance(value, Mapping):
        return {
            key: HIDDEN if SECRET_KEY.search(str(key)) and isinstance(item, str) else redact(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact(item) for item in value]
    return SECRET_TEXT.sub(_hide, value) if isinstance(value, str) else value


def _hide(found: re.Match[str]) -> str:
    name, equals, _ = found.group().partition("=")
    return f"{name}={HIDDEN}" if equals else HIDDEN


def _read(store: Store) -> RunData:
    try:
        return read_run(store)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"report: {redact(str(error))}") from None


def _split(out: str) -> tuple[Store, str]:
    folder, _, name = out.rpartition("/")
    if not name:
        raise UserError(
            f"report: expected the page's file in `out`, like runs/report.html, got {out!r}"
        )
    return open_store(folder or "."), name


def _finding(run: RunData) -> dict[str, Any]:
    """Return the audit's verdict, or the summary where there is none.

    A verdict that interventions give comes before one of attributes that changed.
    """
    tables = (run.interventions, run.table)
    audit = next((table["audit"] for table in tables if table and table.get("audit")), None)
    return {
        "run": run.name,
        "text": audit["verdict"] if audit else _flips(run),
        "sound": sound(audit),
        "together": _together(run),
    }


def _together(run: RunData) -> list[str]:
    """Return sentences on attributes that go together in the originals."""
    pairs = (run.table.get("together") if run.table else None) or []
    return [
        f"In the originals, as the oracle sees them, {text}. What to do: {advice}."
        for text, advice in describe([Pair(**pair) for pair in pairs])
    ]


def _flips(run: RunData) -> str:
    n, flipped = run.tally.rows, run.tally.flipped
    if n == 0:
        return "No counterfactual has been generated yet."
    low, high = run.band(flipped, n)
    band = f"95 % interval {percent(low)} to {percent(high)}"
    told = (
        f"{plural(flipped, run.noun)} of {short_number(n)} flipped: {percent(flipped / n)}"
        f" ({band})."
    )
    if run.each < 2:
        return told
    rows = run.totals["rows_out"]
    return f"{told} Of {plural(rows, 'row')} {short_number(run.tally.hit)} have an answer that did."


def _unfinished(run: RunData) -> list[str]:
    """Return sentences on the rows and shards that the figures do not cover."""
    whole, made = len(run.plan.shards), run.tally.rows
    left = whole - run.totals["shards"]
    told = run.table["rows"] if run.table else made
    lines = (
        [
            f"{run.name}: {left} of {plural(whole, 'shard')} not generated yet; figures are of the"
            " others."
        ]
        if left
        else []
    )
    if told != made:
        lines.append(
            f"{run.name}: scores are of {told} of {plural(made, 'counterfactual')}: score the run"
            " again."
        )
    if old := outdated_scores(run.store):
        lines.append(f"{run.name}: {old}: score the run again.")
    if run.attribution and run.attribution["rows"] != made:
        told = run.attribution["rows"]
        lines.append(
            f"{run.name}: importances are of {told} of {plural(made, 'counterfactual')}: attribute"
            " it again."
        )
    if run.interventions and run.interventions["rows"] != made:
        told = run.interventions["rows"]
        lines.append(
            f"{run.name}: interventions are of {told} of {plural(made, 'counterfactual')}: run"
            " `counterfactory interventions` again."
        )
    return lines


def _facts(run: RunData) -> dict[str, str]:
    """Return the run's settings as label and text."""
    config: dict[str, Any] = redact(run.config)
    engine, classifier, method, data = (
        config["engine"],
        config["models"]["classifier"],
        config["method"],
        config["data"],
    )
    counts, tally, used = run.totals, run.tally, run.plan.versions
    settings = (
        ", ".join(f"{key} {_plain(value)}" for key, value in method["settings"].items())
        or "its own defaults"
    )
    settings += "; cores of its answers" if method.get("core") else ""
    rule = {key: value for key, value in config["target"].items() if value is not None}
    right = (
        f", right on {percent(tally.correct / tally.labelled)} of these rows"
        if tally.labelled
        else ""
    )
    bad = f", {plural(counts['quarantined'], 'row')} quarantined" if counts["quarantined"] else ""
    several = f", {run.each} answers to each row" if run.each > 1 else ""
    width, height = sides(data["size"])
    workers = f", {plural(engine['workers'], 'worker')}" if engine.get("workers") else ""
    return {
        "Data": (
            f"{data['path']}"
            + (f", rows {data['rows']}" if data.get("rows") else "")
            + f", {width} × {height} pixels"
        ),
        "Rows": (
            f"{plural(counts['rows_in'], 'row')} in, {plural(tally.rows, 'counterfactual')}"
            f" out{several}{bad}"
        ),
        "Classifier": (
            f"{classifier['preset'] or classifier['target'] or classifier['weights']}{right}"
        ),
        "Method": f"{method['preset'] or method['target'].rpartition('.')[2]}: {settings}",
        "Target": ", ".join(
            f"{_plain(value)}" if key == "rule" else f"{key} {_plain(value)}"
            for key, value in rule.items()
        ),
        "Engine": f"{engine['kind']}{workers}, batches of {engine['batch']}, seed {config['seed']}",
        "Work": f"{duration(counts['seconds'])} in {plural(counts['shards'], 'shard')}",
        "Versions": ", ".join(
            f"{name} {used[name]}" for name in ("counterfactory", "torch", "python") if name in used
        ),
    }


def _shared(facts: Sequence[Mapping[str, str]]) -> list[tuple[str, list[str]]]:
    """Return facts over runs: one text where all runs agree, else one text per run."""
    return [
        (key, [first] if all(one[key] == first for one in facts) else [one[key] for one in facts])
        for key, first in facts[0].items()
    ]


def _failures(run: RunData) -> dict[str, Any]:
    """Return the unflipped and quarantined rows, counted by reason."""
    tally = run.tally
    return {
        "run": run.name,
        "noun": run.noun,
        "rows": tally.rows,
        "missed": tally.rows - tally.flipped,
        "reasons": [
            (redact(reason), n, percent(n / tally.rows))
            for reason, n in tally.reasons.most_common()
        ],
        "quarantined": sum(run.quarantined.values()),
        "bad": [
            (redact(reason), n, run.quarantined_ids[reason])
            for reason, n in run.quarantined.most_common()
        ],
    }


def _reproduce(run: RunData) -> dict[str, Any]:
    text = yaml.safe_dump(
        json.loads(json.dumps(redact(run.config), default=str)), sort_keys=False, allow_unicode=True
    )
    started = (run.manifest or {}).get("command")
    return {
        "run": run.name,
        "command": f"counterfactory run {run.name}.yaml",
        "started": redact(started) if started else None,
        "config": text,
        "download": f"data:text/yaml;base64,{base64.b64encode(text.encode()).decode('ascii')}",
        "folder": redact(run.store.uri),
        "models": sorted(run.plan.models.items()),
        "versions": sorted(run.plan.versions.items()),
        "fingerprint": sorted(run.plan.fingerprint.items()),
    }


def duration(seconds: float) -> str:
    """Return seconds as text: `48 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{short_number(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _csp(script: str) -> Markup:
    """Return a content security policy for the page.

    It allows this one script, inline styles and data: images, and no address.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    rules = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action"
        " 'none'"
    )
    return Markup("{}; script-src 'sha256-{}'").format(Markup(rules), digest)
