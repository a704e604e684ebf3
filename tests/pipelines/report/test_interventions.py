"""The report's panels of interventions and the gallery with cores, from known tables."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.report.cells import Grid, edges, levels, overlay_cells
from pipelines.report.figures import percent
from pipelines.report.interventions import _control
from pipelines.report.job import report
from pipelines.report.pictures import overlay
from storage.codec import encode
from storage.uri import Store
from tests.pipelines.report.proven import CELLS, NONE, effect_map, prove, span, with_two_answers
from tests.pipelines.report.test_job import (
    CHROMIUM,
    FRAMES,
    PLANTED,
    browse,
    cards_of,
    make_run,
    page_of,
    text_of,
)

THIN = "\N{NARROW NO-BREAK SPACE}"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A run of three shards on drawn faces, without interventions."""
    return make_run(tmp_path_factory.mktemp("proven"), "plain")


@pytest.fixture
def shown(tmp_path: Path) -> Any:
    """A function that proves a fresh run with a table and returns its page."""

    def show(**over: Any) -> str:
        store = make_run(tmp_path, "plain")
        prove(store, **over)
        return page_of(store)

    return show


def section(page: str) -> str:
    return page.partition('<section id="where"')[2].partition("</section>")[0]


def ways_of(page: str) -> list[str]:
    parts = section(page).split('<article class="way">')[1:]
    return [part.partition("</article>")[0] for part in parts]


def charts_of(page: str) -> dict[str, str]:
    """The charts beside the maps, by title."""
    panels = section(page).split('<figure class="panel">')[1:]
    titles = [re.search(r'class="title">([^<]*)<', one) for one in panels]
    return {html.unescape(t[1]): one for t, one in zip(titles, panels, strict=True) if t}


def test_a_run_without_interventions_has_neither_panel_nor_cores(run: Store) -> None:
    page = page_of(run)
    assert section(page) == ""
    assert 'href="#where"' not in page
    assert 'id="as-difference"' in page
    assert 'class="core"' not in page
    assert all(card.count("<img") == 4 for card in cards_of(page))


def test_each_direction_has_its_mean_pair_and_both_maps(shown: Any) -> None:
    page = shown()
    ways = ways_of(page)
    assert [re.search(r'class="title">([^<]*)<', way)[1] for way in ways] == [  # type: ignore[index]
        "not smiling → smiling",
        "smiling → not smiling",
    ], "the direction with most rows first"
    for way in ways:
        assert re.findall(r'alt="(mean \w+)', way) == ["mean original", "mean counterfactual"]
        assert re.findall(r"<figcaption>(Wh[^<]*)<", way) == ["Where decisions lie", "What changed"]
        assert way.count("<svg") == 2
        assert way.count("<rect") == 2 * CELLS**2 + 1, "every cell, and one that is outlined"
        assert len(re.findall(r"row 7, column 4: 40\.\d", way)) == 2, "both maps tell both shares"
        table = text_of(way.partition("<tbody>")[2])
        assert table.startswith("row 7, column"), "the largest effect first"
        assert table.count("row ") == CELLS**2
        assert re.search(r'aria-label="[^"]*where decisions lie, most at row 7, column [45]', way)
    data = re.findall(r'src="data:image/png;base64,([^"]+)" alt="mean', "".join(ways))
    assert [Image.open(io.BytesIO(base64.b64decode(one))).size for one in data] == [(64, 64)] * 4


def test_cells_whose_interval_holds_0_are_faint_and_those_below_are_outlined(shown: Any) -> None:
    way = ways_of(shown())[0]
    opaque = [float(one) for one in re.findall(r'fill-opacity="([\d.]+)"', way)][: CELLS**2]
    assert opaque[51] == opaque[52] == 1
    assert all(one <= 0.3 for cell, one in enumerate(opaque) if cell not in (51, 52))
    assert re.findall(r'y="(\d+)"[^>]*class="against"', way) == ["0"]
    assert "Faint: the interval of the cell's effect holds 0. Dashed: the cell works against" in (
        text_of(way)
    )
    assert "row 1, column 1: \N{MINUS SIGN}" in html.unescape(way)


def test_small_and_negative_shares_have_one_zero_and_a_minus_sign() -> None:
    shown = [percent(share) for share in (-0.0004, 0.0004, -0.012, 1.0)]
    assert shown == [f"{text}{THIN}%" for text in ("0", "0", "\N{MINUS SIGN}1.2", "100")]


def test_figures_beside_the_maps_have_intervals_and_the_control(shown: Any) -> None:
    page = shown()
    text = text_of(section(page))
    assert "The core keeps 2 of 64 cells in the median of 20 flipped rows" in text
    assert "in the mean, 12.0 % (7.0 to 17.0 %) of the change, L1 0.0510 → 0.0110." in text
    assert "believes 95.0 % of the full answers and 90.0 % of the cores (n = 19)" in text
    assert "unrelated originals show another map (cosine of the maps 0.10, n = 12)" in text
    charts = charts_of(page)
    assert list(charts) == [
        "How concentrated the effect is",
        "Regions",
        "Kinds of change",
        "Attributes by likeness to the classifier's map",
    ]
    spread = text_of(charts["How concentrated the effect is"])
    assert "all directions 80.0 % 75.0 to 85.0 % 19.0 % 20" in spread
    assert "control: unrelated pairs 22.0 % 17.0 to 27.0 % — 20" in spread
    kinds = charts["Kinds of change"]
    assert "fine 70.0 % 65.0 to 75.0 % 31.0 % 20" in text_of(kinds)
    assert kinds.count("<line") == 3 + 3 * 3, "three grid lines and a whisker for each kind"
    assert kinds.count('class="bar before"') == 3, "the share of the change beside each"
    assert "mouth 83.0 % 78.0 to 88.0 % 7.0 % 20" in text_of(charts["Regions"])
    alike = charts["Attributes by likeness to the classifier's map"]
    assert "Smiling 0.970 0.950 to 0.990 98.0 % 20" in text_of(alike)
    assert 'class="bar causal"' in alike
    assert 'class="bar spurious"' in alike


def test_both_maps_have_one_scale(shown: Any) -> None:
    table = {**effect_map((3,), 0.64), "source": "a", "target": "b"}
    picture = base64.b64encode(encode(np.zeros((64, 64, 3), np.uint8))).decode()
    table |= {"before": picture, "after": picture, "changed": [0.16] + 63 * [0.84 / 63]}
    page = shown(directions=[table])
    top = max(table["map"])
    assert f"≥ {100 * top:.1f} %; the middle is {100 * top / 4:.1f} %" in text_of(section(page))
    fills = re.findall(r'fill="(#\w+)"', ways_of(page)[0])
    assert fills[3] == "#fff8ce", "the largest share of both maps has the last colour"
    level = levels([0.16], top)[0]
    assert level == pytest.approx(0.5, abs=0.01), "a quarter of the share is half the scale"
    assert fills[CELLS**2] != fills[3]


def test_parts_that_were_not_measured_are_left_out(shown: Any) -> None:
    page = shown(
        attributes=[], places=[], rings=[], control=None, kinds=None, kinds_changed=None, core=None
    )
    assert list(charts_of(page)) == ["How concentrated the effect is"]
    text = text_of(section(page))
    assert "control" not in text
    assert "core keeps" not in text
    assert len(ways_of(page)) == 2


def test_rings_stand_where_there_are_no_regions(shown: Any) -> None:
    charts = charts_of(shown(places=[]))
    assert "Regions" not in charts
    assert "border 3.0 %" in text_of(charts["Border and halves"])


def test_no_measured_row_is_said_in_a_sentence(shown: Any) -> None:
    nothing = dict.fromkeys(("whole", "control", "kinds", "kinds_changed", "core"))
    lists = {key: [] for key in ("directions", "places", "rings", "attributes", "alike")}
    page = shown(n=0, **nothing, **lists)
    assert "No flipped row was measured" in text_of(section(page))
    assert ways_of(page) == []
    assert charts_of(page) == {}


def test_shares_that_do_not_exist_are_not_drawn(shown: Any, tmp_path: Path) -> None:
    """The whole change of a direction may add nothing: then there is no effect to divide."""
    store = make_run(tmp_path, "other")
    table = prove(store)
    lost = {"map": 64 * [None], "low": 64 * [None], "high": 64 * [None], "concentration": NONE}
    page = shown(directions=[{**table["directions"][0], **lost}, table["directions"][1]])
    way = ways_of(page)[0]
    assert "where decisions lie, not measured" in way
    assert "nan" not in text_of(page).lower().split()
    assert 'class="against"' not in way


def test_the_most_frequent_directions_are_drawn_and_the_others_are_counted(
    shown: Any, run: Store, tmp_path: Path
) -> None:
    first = prove(make_run(tmp_path, "other"))["directions"][0]
    ten = [{**first, "n": 5 + i, "source": f"s{i}", "target": f"t{i}"} for i in range(10)]
    page = shown(directions=[*ten, {**first, "n": 0, "source": "none", "target": "none"}])
    names = [re.search(r'class="title">([^<]*)<', way)[1] for way in ways_of(page)]  # type: ignore[index]
    assert names == [f"s{i} → t{i}" for i in range(9, 3, -1)]
    assert "4 more are in interventions/table.json" in text_of(section(page))


def test_directions_that_share_a_map_come_last_and_have_no_pictures(
    shown: Any, tmp_path: Path
) -> None:
    first = prove(make_run(tmp_path, "other"))["directions"][0]
    others = {"source": None, "target": None, "before": None, "after": None, "n": 99}
    ways = ways_of(shown(directions=[{**first, **others}, first]))
    assert ["other directions" in way for way in ways] == [False, True]
    assert "<img" not in ways[1]
    assert ways[1].count('class="ground"') == 2


def test_one_direction_has_no_line_for_all(shown: Any, tmp_path: Path) -> None:
    first = prove(make_run(tmp_path, "other"))["directions"][0]
    page = shown(directions=[first])
    assert "all directions" not in charts_of(page)["How concentrated the effect is"]


def test_attributes_that_cannot_be_told_apart_and_spread_effects_are_named(
    shown: Any, tmp_path: Path
) -> None:
    first = prove(make_run(tmp_path, "other"))["directions"][0]
    page = shown(
        alike=[["Smiling", "Mouth_Slightly_Open", "Young"]], directions=[{**first, "spread": True}]
    )
    text = text_of(section(page))
    assert "cannot tell Smiling, Mouth Slightly Open and Young apart" in text
    assert "the effect is spread over the picture" in text


def test_the_verdict_of_interventions_comes_first(shown: Any) -> None:
    verdict = "Decisions lie at the mouth."
    audit = {"depends_on": "Smiling", "spurious": False, "expected": ["Smiling"]}
    page = shown(audit={**audit, "verdict": verdict})
    findings = page.partition('<ul class="findings">')[2].partition("</ul>")[0]
    assert text_of(findings) == verdict
    assert 'class="sound"' in findings


def test_a_stage_behind_the_answers_is_noted(shown: Any) -> None:
    assert "interventions are of 12 of 27 counterfactuals" in text_of(shown(rows=12))


def test_the_gallery_shows_the_core_and_where_it_counts(shown: Any) -> None:
    page = shown()
    cards = cards_of(page)
    assert len(cards) == 24
    for card in cards:
        assert re.findall(r'<figure class="(\w*)"><img', card) == ["", "", "core", "where", "heat"]
        assert 'alt="core of the counterfactual, 2 of 64 cells"' in card
        assert 'alt="where the change counts: most at row 7, column 4, 45.' in card
        assert "core: 2 of 64 cells, p 0.91" in text_of(card)
    assert 'id="as-difference"' not in page
    assert 'id="as-where"' in page
    failed = page.partition('<section id="failed"')[2]
    assert failed.count('class="difference"') == failed.count('class="heat"') > 0


def test_answers_that_did_not_flip_have_no_core(tmp_path: Path) -> None:
    store = make_run(tmp_path, "plain", report={"gallery": 40})
    prove(store)
    missed = [card for card in cards_of(page_of(store)) if "not flipped" in card]
    assert missed
    for card in missed:
        assert '<p class="none">no core</p>' in card
        assert re.findall(r'<figure class="(\w*)"><img', card) == ["", "", "heat"]


@pytest.mark.parametrize("full", [True, False])
def test_a_core_is_doubted_where_the_whole_answer_was_believed(
    full: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.pipelines.report import proven

    real = proven._row
    monkeypatch.setattr(
        proven,
        "_row",
        lambda row, best: {**real(row, best), "second_full": full, "second_core": row["k"] > 0},
    )
    store = make_run(tmp_path, "plain")
    prove(store)
    told = ["believes the whole answer alone" in card for card in cards_of(page_of(store))]
    assert told == len(told) * [full]


def test_each_of_several_answers_has_its_core(tmp_path: Path) -> None:
    store = with_two_answers(make_run(tmp_path, "one", scored=False), tmp_path / "two")
    prove(store)
    page = page_of(store)
    assert "28 flipped answers" in text_of(section(page))
    cards = cards_of(page)
    assert cards
    for card in cards:
        assert card.count('<div class="answer">') == 2
        assert card.count('class="core"') == card.count('class="where"') == 2


def test_runs_with_and_without_interventions_share_a_page(tmp_path: Path, run: Store) -> None:
    store = make_run(tmp_path, "proven")
    prove(store)
    page = Path(report([store, run], out=str(tmp_path / "both.html"))).read_text()
    assert section(page).count('<div class="proven">') == 1
    for card in cards_of(page):
        first, second = card.split('<div class="answer">')[1:]
        assert 'class="where"' in first
        assert 'class="where"' not in second
        assert 'class="heat"' in second


def test_names_in_the_table_are_escaped(tmp_path: Path) -> None:
    store = make_run(tmp_path, "hostile", classifier={"classes": [f"a {PLANTED}", f"b {PLANTED}"]})
    prove(
        store,
        places=[{"name": f"mouth {PLANTED}", "share": span(0.8), "changed": 0.1}],
        attributes=[{"name": f"x {PLANTED}", "similarity": span(0.9), "rate": span(0.9)}],
        alike=[[f"x {PLANTED}", f"y {PLANTED}"]],
        audit={"verdict": f"verdict {PLANTED}"},
    )
    page = page_of(store)
    assert page.count("<script") == 1
    assert "<img src=x" not in page
    for name in ("a", "b", "mouth", "x", "y", "verdict"):
        assert f"{name} {PLANTED}" in html.unescape(page), name


def test_a_page_of_large_pictures_keeps_to_its_bytes(
    shown: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    picture = base64.b64encode(encode(noise)).decode()
    first = prove(make_run(tmp_path, "other"))["directions"][0]
    monkeypatch.setattr("pipelines.report.interventions.MEAN_BYTES", 5_000)
    page = shown(directions=[{**first, "before": picture, "after": picture}])
    data = re.findall(r'base64,([^"]+)"', ways_of(page)[0])
    assert len(data) == 4
    assert max(map(len, data)) <= 5_000 * 4 / 3 + 4


def test_cells_divide_a_picture_as_the_experiment_does() -> None:
    assert edges(64, 8) == list(range(0, 65, 8))
    assert edges(30, 8) == [0, 4, 8, 11, 15, 19, 22, 26, 30]
    grid = Grid(3, 2, 31, 20)
    assert grid.boxes()[4] == (10, 10, 21, 20)
    assert grid.place(4) == "row 2, column 2"
    assert grid.peak([0.1, None, 0.4, 0.4, -0.2, 0.3], "effect") == (
        f"most at row 1, column 3, 40.0{THIN}% of the effect"
    )
    before = np.full((20, 31, 3), 90, np.uint8)
    drawn = overlay_cells(before, [None, 0, -1, 0, 0.5, 0], (3, 2), 0.5)
    plain = overlay(before, np.zeros((20, 31), np.float32), 1.0)
    different = (drawn != plain).any(2)
    assert different[10:20, 10:21].all(), "the cell with a share is coloured whole"
    assert different.sum() == 10 * 11, "and no other"
    with pytest.raises(ValueError, match="expected 6 shares, got 2"):
        overlay_cells(before, [0.5, 0.5], (3, 2), 0.5)


PROBE = """<script>
(async () => {
  const shown = (card, kind) => [...card.querySelectorAll(kind)]
    .filter(one => getComputedStyle(one).display !== "none").length;
  const card = document.querySelector("#gallery .card.row");
  for (const details of document.querySelectorAll("details")) details.open = true;
  for (const image of document.images) image.loading = "eager";
  const settled = image => image.complete
    || new Promise(done => { image.onload = image.onerror = done; });
  await Promise.all([...document.images].map(settled));
  const found = { width: innerWidth, scroll: document.documentElement.scrollWidth,
    broken: [...document.images].filter(image => !image.naturalWidth).length,
    sides: [...new Set([...card.querySelectorAll("img")].map(i => Math.round(i.clientWidth)))]
      .filter(side => side > 0),
    cells: [...document.querySelectorAll("svg.cells")].map(one => one.clientWidth),
    before: [shown(card, ".where"), shown(card, ".heat")] };
  document.getElementById("as-change").click();
  found.after = [shown(card, ".where"), shown(card, ".heat")];
  card.focus();
  card.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter" }));
  const dialog = document.querySelector("dialog");
  const large = [...dialog.querySelectorAll("img")].map(one => one.clientWidth).filter(one => one);
  found.closer = large.length;
  found.large = [Math.min(...large), Math.max(...large)];
  found.inside = dialog.scrollWidth <= dialog.clientWidth;
  parent.postMessage(found, "*");
})();
</script>"""


@pytest.mark.chromium
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the PATH")
@pytest.mark.parametrize("runs", [1, 2])
def test_in_a_browser(runs: int, tmp_path: Path) -> None:
    stores = [make_run(tmp_path, f"run-{i}") for i in range(runs)]
    for store in stores:
        prove(store)
    out = tmp_path / "page.html"
    report(stores, out=str(out))
    bare = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", out.read_text())
    out.write_text(bare.replace("</body>", PROBE + "</body>"))
    frames = tmp_path / "frames.html"
    frames.write_text(FRAMES.format(out.as_uri()))
    title = re.search(r"<title>(.*?)</title>", browse(frames, tmp_path / "profile"), re.S)
    assert title
    seen = json.loads(html.unescape(title[1]))
    assert set(seen) == {"1280", "400"}
    for width, found in seen.items():
        assert found["scroll"] <= int(width), "the body scrolls sideways"
        assert found["broken"] == 0
        assert len(found["sides"]) == 1, "all pictures of a card have one size"
        assert found["sides"][0] >= 100
        assert min(found["cells"]) > 150
        assert found["before"] == [runs, 0], "where it counts, at first"
        assert found["after"] == [0, runs], "what changed, at a click"
        assert found["closer"] == 1 + 4 * runs, "the key opens all pictures"
        assert found["inside"]
        assert found["large"][1] - found["large"][0] <= 1, "of one size"
        assert found["large"][0] > found["sides"][0] - 20


def test_a_control_with_the_same_map_says_where_the_place_does_not_come_from() -> None:
    found = {"control": {"n": 9, "concentration": span(0.7), "similarity": span(0.95)}}
    assert _control(found) == [
        "Pairs of unrelated originals show the same place (cosine of the maps 0.95, n = 9): it does"
        " not come from the counterfactuals."
    ]
    assert _control({"control": None}) == []
