"""The table of interventions as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from counterfactory.interventions.switches import KINDS
from pipelines.interventions.places import cell_name

# a look whose net change is less of the whole change is not named
NAMED = 0.12
WORDS = {
    "light": ("lighter", "darker"),
    "red": ("redder", "greener"),
    "blue": ("bluer", "yellower"),
    "contrast": ("more contrast", "less contrast"),
}


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


def theme_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Return the themes of each direction as lines of text."""
    for way in found["directions"]:
        yield f"{way['source']} -> {way['target']}: {theme_summary(way)}"
        for number, theme in enumerate(way["themes"], 1):
            place = ", ".join(
                f"{name} {100 * share:.0f} %" for name, share in places_of(theme, found)
            )
            yield (
                f"  theme {number}: {_text(theme['share'])} of the flips, adds"
                f" {_text(theme['effect'], percent=False)} to the log-odds; at {place}"
                f"{'; ' if look_of(theme) else ''}{look_of(theme)}"
            )
            for one in theme["attributes"]:
                yield f"    {attribute_of(one)} in {_text(one['rate'])}"
            yield "    for example " + ", ".join(row["id"] for row in theme["exemplars"][:3])


def theme_summary(way: Mapping[str, Any]) -> str:
    """Return how the flips of a direction group, in a sentence without its end."""
    number, n = len(way["themes"]), way["n"]
    rows = f"{n} flips" if n == way["flips"] else f"a sample of {n} of {way['flips']} flips"
    if not number:
        return f"no themes in {rows}: {way['why']}"
    if number == 1:
        told = f"one theme in {rows}"
    else:
        told = f"{number} themes in {rows}; stability {_text(way['stability'], percent=False)}"
    return f"{told}; {way['rest']} flips in none" if way["rest"] else told


def places_of(theme: Mapping[str, Any], found: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return up to three places of a theme's effect with their shares: regions of the masks, else
    cells.
    """
    if theme["regions"]:
        every = [(part["name"], part["share"]) for part in theme["regions"]]
    else:
        every = [(cell_name(at, *found["grid"]), share) for at, share in enumerate(theme["map"])]
    return [place for place in sorted(every, key=lambda one: -one[1])[:3] if place[1] >= 0.1]


def look_of(theme: Mapping[str, Any]) -> str:
    """Return in words how a theme's cores look beside the originals; "" where nothing is common."""
    return ", ".join(
        WORDS[name][0 if change > 0 else 1]
        for name, change in theme["look"].items()
        if abs(change) >= NAMED
    )


def attribute_of(one: Mapping[str, Any]) -> str:
    """Return the attribute that a theme changes, with a sign where it mostly comes or goes."""
    gained = one["gained"]
    return f"{'+' if gained > 0.75 else '-' if gained < 0.25 else '+/-'} {one['name']}"


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
