"""Tables of a sweep in the form of papers: methods as rows, metrics as columns, the best figure
bold and the second underlined.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.engine.tables import escape_markdown
from pipelines.engine.terminal import printable

ARROWS = {"higher": "↑", "lower": "↓"}
# text in the notes of figures that have no interval because there is a single row
OF_ONE_ROW = ("n = 1: no interval", "one row: no interval")
TEX_ARROWS = {"↑": r"$\uparrow$", "↓": r"$\downarrow$"}


@dataclass(frozen=True)
class Column:
    """A metric over one subset of rows; better: the good direction, None where there is none."""

    metric: str
    subset: str
    better: str | None

    @property
    def title(self) -> str:
        """Return the column's heading: the metric with its arrow, and its subset unless it is all
        rows.
        """
        arrow = f" {ARROWS[self.better]}" if self.better else ""
        return f"{self.metric}{arrow}" + (f" ({self.subset})" if self.subset != "all" else "")


@dataclass(frozen=True)
class Grid:
    """One table with a title, row labels and columns; each cell holds a figure's line or None."""

    title: str
    axes: list[str]
    labels: list[tuple[str, ...]]
    columns: list[Column]
    figures: list[list[dict[str, Any] | None]]


def grids(
    lines: Sequence[dict[str, Any]], rows: Sequence[str], by: Sequence[str], metrics: Sequence[str]
) -> list[Grid]:
    """Return tables made from tidy lines.

    rows: axes that make the rows. by: axes that make separate tables. metrics: the columns, in this
    order.
    """
    known = list(dict.fromkeys(line["metric"] for line in lines))
    order = select_figures(metrics, known) or known
    columns = []
    for metric in order:
        first = next(line for line in lines if line["metric"] == metric)
        columns.append(Column(metric, first["subset"], first["better"]))
    found = []
    for group in dict.fromkeys(tuple(line[axis] for axis in by) for line in lines):
        mine = [line for line in lines if tuple(line[axis] for axis in by) == group]
        labels = list(dict.fromkeys(tuple(str(line[axis]) for axis in rows) for line in mine))
        at = {(tuple(str(line[axis]) for axis in rows), line["metric"]): line for line in mine}
        figures = [[at.get((label, column.metric)) for column in columns] for label in labels]
        title = ", ".join(f"{axis} {value}" for axis, value in zip(by, group, strict=True))
        found.append(Grid(title, list(rows), labels, columns, figures))
    return found


def select_figures(metrics: Sequence[str], known: Sequence[str]) -> list[str]:
    """Return the figures that `metrics` names.

    A name matches a whole figure's name, or else all figures with that name before the bracket,
    which holds their network or direction.
    """
    found = []
    for metric in metrics:
        found += (
            [metric]
            if metric in known
            else [name for name in known if name.partition("[")[0] == metric]
        )
    return found


def ranks(figures: Sequence[dict[str, Any] | None], better: str | None) -> list[int | None]:
    """Return 1 for the best figures of a column, 2 for the second, None for the others.

    A figure shares the rank of the best one where their 95 % intervals overlap, because the rows
    cannot separate them. No figure has a rank where the metric has no direction or where there is
    only one figure. A figure of a single row without an interval has no rank either.
    """
    known = [i for i, figure in enumerate(figures) if figure is not None and _can_win(figure)]
    out: list[int | None] = [None] * len(figures)
    if better is None or len(known) < 2:
        return out
    for rank in (1, 2):
        left = [i for i in known if out[i] is None]
        if not left:
            break
        best = (max if better == "higher" else min)(left, key=lambda i: figures[i]["value"])  # type: ignore[index]
        for i in left:
            if _overlap(figures[i], figures[best]):  # type: ignore[arg-type]
                out[i] = rank
    return out


def _can_win(figure: dict[str, Any]) -> bool:
    """Return whether a figure can be compared.

    A figure of a single row has no interval and cannot. A figure of a set may have no interval by
    its nature, and can.
    """
    note = figure.get("note", "")
    return figure["value"] is not None and not any(why in note for why in OF_ONE_ROW)


def _overlap(one: dict[str, Any], other: dict[str, Any]) -> bool:
    def span(figure: dict[str, Any]) -> tuple[float, float]:
        low, high = figure["low"], figure["high"]
        return (figure["value"], figure["value"]) if low is None or high is None else (low, high)

    return span(one)[0] <= span(other)[1] and span(other)[0] <= span(one)[1]


def markdown(grid: Grid) -> str:
    """Return a Markdown table: **best**, <u>second</u>, intervals in brackets."""
    marks = {1: ("**", "**"), 2: ("<u>", "</u>"), None: ("", "")}
    head = [escape_markdown(t) for t in [*grid.axes, *(column.title for column in grid.columns)]]
    rows = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    bodies = _cells(
        grid, lambda text, rank: text.join(marks[rank]), label=escape_markdown, spans=True
    )
    rows += ["| " + " | ".join(cells) + " |" for cells in bodies]
    title = [f"**{escape_markdown(grid.title)}**", ""] if grid.title else []
    return "\n".join([*title, *rows, ""])


def latex(grid: Grid) -> str:
    r"""Return a LaTeX tabular (booktabs): \textbf best, \underline second."""
    marks = {1: r"\textbf{%s}", 2: r"\underline{%s}", None: "%s"}
    head = [*map(_tex, grid.axes), *(_tex(column.title) for column in grid.columns)]
    body = [
        " & ".join(cells) + r" \\"
        for cells in _cells(grid, lambda t, rank: marks[rank] % t, label=_tex)
    ]
    begin = r"\begin{tabular}{" + "l" * len(grid.axes) + "r" * len(grid.columns) + "}"
    title = [f"% {printable(grid.title)}"] if grid.title else []
    head_line = " & ".join(head) + r" \\"
    return "\n".join(
        [
            *title,
            begin,
            r"\toprule",
            head_line,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def page(grid: Grid) -> str:
    """Return an HTML table; every string is escaped."""
    marks = {1: "<b>%s</b>", 2: "<u>%s</u>", None: "%s"}
    head = "".join(
        f"<th>{html.escape(text)}</th>" for text in [*grid.axes, *(c.title for c in grid.columns)]
    )
    body = "".join(
        "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>\n"
        for cells in _cells(
            grid, lambda text, rank: marks[rank] % text, label=html.escape, spans=True
        )
    )
    caption = f"<caption>{html.escape(grid.title)}</caption>" if grid.title else ""
    return f"<table>{caption}\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table>\n"


def notes(grid: Grid) -> list[str]:
    """Return the notes that readers of the table's figures need.

    Figures with the same note share one line. A note n = 0 stands in its cell instead.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for label, row in zip(grid.labels, grid.figures, strict=True):
        for column, figure in zip(grid.columns, row, strict=True):
            note = figure.get("note", "").removeprefix("n = 0").removeprefix("; ") if figure else ""
            if note:
                found.setdefault((column.metric, note), []).append(", ".join(label))
    return [f"{metric} ({'; '.join(labels)}): {note}" for (metric, note), labels in found.items()]


def _cells(
    grid: Grid,
    mark: Callable[[str, int | None], str],
    label: Callable[[str], str] = str,
    spans: bool = False,
) -> list[list[str]]:
    """Return labels and marked figures by row; spans: with their intervals."""
    by_column = [
        ranks([row[c] for row in grid.figures], column.better)
        for c, column in enumerate(grid.columns)
    ]
    out = []
    for r, (names, row) in enumerate(zip(grid.labels, grid.figures, strict=True)):
        cells = [label(name) for name in names]
        for c, figure in enumerate(row):
            if figure is None or figure["value"] is None:
                cells.append("-" if figure is None else "n = 0")
                continue
            low, high = figure["low"], figure["high"]
            span = (
                f" [{short(low)}, {short(high)}]"
                if spans and low is not None and high is not None
                else ""
            )
            cells.append(mark(short(figure["value"]), by_column[c][r]) + span)
        out.append(cells)
    return out


def short(value: float) -> str:
    """Return a figure with three significant digits.

    Between 0.0001 and a million it has no exponent.
    """
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e6:
        return f"{value:.2e}"
    digits = max(0, 2 - int(f"{value:e}".partition("e")[2]))
    return f"{value:.{digits}f}"


def _tex(text: str) -> str:
    special = {
        **TEX_ARROWS,
        **{c: f"\\{c}" for c in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\~{}",
        "^": r"\^{}",
    }
    return "".join(special.get(c, c) for c in printable(text))
