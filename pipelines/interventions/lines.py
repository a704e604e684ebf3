"""The table of interventions as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from counterfactory.interventions.switches import KINDS


def format_table(found: Mapping[str, Any]) -> Iterator[str]:
    """Return the table as lines of text."""
    if not found["n"]:
        yield "no flipped row to measure"
        return
    yield found["audit"]["verdict"]
    whole = found["whole"]
    yield (
        f"concentration {_text(whole['concentration'])} of the effect in a tenth of the cells,"
        f" which hold {100 * whole['changed_concentration']:.0f} % of the change"
    )
    if found["control"]:
        yield f"unrelated pairs: {_text(found['control']['concentration'])}"
    for head, lines in (("places", found["places"]), ("rings", found["rings"])):
        told = [
            f"{line['name']} {_text(line['share'])} (change {100 * line['changed']:.0f} %)"
            for line in lines[:4]
        ]
        if told:
            yield f"{head}: {', '.join(told)}"
    if found["kinds"]:
        yield "kinds: " + ", ".join(f"{name} {_text(found['kinds'][name])}" for name in KINDS)
    if found["look"] and found["look"]["value"] is not None:
        yield f"look (colour and contrast of the whole): {_text(found['look'])}"
    for line in found["attributes"][:5]:
        yield (
            f"  {line['name']:24s} map {_text(line['similarity'], percent=False)}"
            f"  changed {_text(line['rate'])}"
        )
    core = found["core"]
    if core:
        yield (
            f"cores: {core['cells']:g} of {len(whole['map'])} cells in the median,"
            f" L1 {core['full_l1']['value']:.4f} -> {core['l1']['value']:.4f}"
        )
        if core["second"]:
            yield (
                f"second classifier: sees the target in {100 * core['second']['full']:.0f} % of"
                f" answers and {100 * core['second']['core']:.0f} % of cores"
            )


def summary(found: Mapping[str, Any]) -> str:
    """Return one line: what the stage found."""
    if not found["n"]:
        return "no flipped row to measure"
    core = found["core"]
    told = f"; cores keep {100 * core['share']['value']:.0f} % of the change" if core else ""
    return (
        f"{_text(found['whole']['concentration'])} of the effect in a tenth of the cells"
        f" (n {found['n']}){told}"
    )


def _text(found: Mapping[str, Any], *, percent: bool = True) -> str:
    if found["value"] is None:
        return "unknown"
    scale, unit = (100, " %") if percent else (1, "")
    digits = 0 if percent else 2
    span = (
        ""
        if found["low"] is None
        else f" [{scale * found['low']:.{digits}f}, {scale * found['high']:.{digits}f}]"
    )
    return f"{scale * found['value']:.{digits}f}{unit}{span}"
