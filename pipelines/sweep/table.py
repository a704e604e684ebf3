"""A sweep's figures as papers print them: methods down, metrics across, the best bold and the
second underlined.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.engine.tables import escape_markdown
from pipelines.engine.terminal import printable

ARROWS = {"higher": "↑", "lower": "↓"}
# what notes of figures without an interval say where a row is all there is
OF_ONE_ROW = ("n = 1: no interval", "one row: no interval")
TEX_ARROWS = {"↑": r"$\uparrow$", "↓": r"$\downarrow$"}


@dataclass(frozen=True)
class Column:
    """A metric over one subset of rows; better: which direction is good, None where neither is."""

    metric: str
    subset: str
    better: str | None

    @property
    def title(self) -> str:
        """As the table's head has it: the metric with its arrow, and its subset where that is not
        all rows.
        """
        arrow = f" {ARROWS[self.better]}" if self.better else ""
        return f"{self.metric}{arrow}" + (f" ({self.subset})" if self.subset != "all" else "")


@dataclass(frozen=True)
class Grid:
    """One table: what holds for all of it, row labels, columns, and in each cell a figure's line,
    or None.
    """

    title: str
    axes: list[str]
    labels: list[tuple[str, ...]]
    columns: list[Column]
    figures: list[list[dict[str, Any] | None]]


def grids(
    lines: Sequence[dict[str, Any]], rows: Sequence[str], by: Sequence[str], metrics: Sequence[str]
) -> list[Grid]:
    """Tables out of tidy lines; rows, by: axes that make rows and that make tables; metrics: which,
    in this order.
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
    """The figures asked for: by their whole name, or else without the bracket that names their
    network or way.
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
    """1 for the best of a column, 2 for the second, None for the others; ties share a rank.

    A figure ties with the best one of its rank where their 95 % intervals overlap: what the rows
    cannot separate is not separated. Without a direction, or with one figure only, nobody wins, and
    no figure of a single row does that has no interval.
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
    """Whether a figure can be compared: one of a single row, which has no interval, separates
    nothing. (A set's figure may have none by its nature.)
    """
    note = figure.get("note", "")
    return figure["value"] is not None and not any(why in note for why in OF_ONE_ROW)


def _overlap(one: dict[str, Any], other: dict[str, Any]) -> bool:
    def span(figure: dict[str, Any]) -> tuple[float, float]:
        low, high = figure["low"], figure["high"]
        return (figure["value"], figure["value"]) if low is None or high is None else (low, high)

    return span(one)[0] <= span(other)[1] and span(other)[0] <= span(one)[1]


def markdown(grid: Grid) -> str:
    """A Markdown table: **best**, <u>second</u>, intervals in brackets."""
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
    r"""A LaTeX tabular (booktabs): \textbf best, \underline second."""
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
    """An HTML table; every string is escaped."""
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
    """What must be known to read the table's figures, those with one note together; n = 0 stands in
    its cell.
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
    """Labels and marked figures, row by row; spans: with their intervals."""
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
    """A figure with three significant digits, and no exponent between 0.0001 and a million."""
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
