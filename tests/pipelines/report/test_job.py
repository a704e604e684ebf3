"""The report on made-up runs: complete and partial, hostile strings, several runs, and in a
browser.
"""

import base64
import html
import io
import json
import re
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from actors.rows.scores import SCORES
from configs.schema import RunConfig, load_run
from configs.strict import UserError
from counterfactory.metrics.rates import wilson
from counterfactory.metrics.together import Pair
from counterfactory.worlds.faces import ATTRIBUTES, draw, labels
from pipelines.report.data import balanced, rank, read_run
from pipelines.report.gallery import choose
from pipelines.report.job import redact, report
from pipelines.report.pictures import amplified, change, data_uri, full_scale, overlay
from pipelines.report.show import show
from storage.codec import decode, encode
from storage.commit import commit_shard
from storage.records import Plan, Shard
from storage.run import read_plan, versions, write_plan
from storage.schema import COUNTERFACTUALS, counterfactual_id
from storage.seal import read_sealed, sealed
from storage.uri import Store, open_store

CLASSES = ["not smiling", "smiling"]
SHARD = 12
PLANTED = (
    '"><script>document.title="planted"</script><img src=x onerror="document.title=\'planted\'">'
)
CHROMIUM = (
    shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
)


def settings(name: str, folder: Path, **more: Any) -> dict[str, Any]:
    """A resolved config, as plan.json holds it."""
    oracle = {
        "role": "attributes",
        "target": "counterfactory.models.networks.SmallCNN",
        "classes": list(ATTRIBUTES),
    }
    classifier = {
        "role": "classifier",
        "target": "counterfactory.models.networks.SmallCNN",
        "classes": CLASSES,
        **more.pop("classifier", {}),
    }
    config = {
        "name": name,
        "data": {"path": str(folder / "data"), "label": "Smiling", "size": 64},
        "models": {"classifier": classifier, "oracle": oracle},
        "method": {
            "target": "counterfactory.methods.counterfactual_attack.CounterfactualAttack",
            "settings": {"max_steps": 100, "lr": 0.1},
        },
        "score": {"causal": ["Smiling"]},
        "out": str(folder),
        **more,
    }
    return RunConfig.model_validate(config).model_dump()


def make_run(
    folder: Path,
    name: str,
    *,
    decides: str = "Smiling",
    rows: int = 30,
    scored: bool = True,
    ids: str = "face-{}",
    left: int = 0,
    **more: Any,
) -> Store:
    """A run on drawn faces whose counterfactuals change what `decides`: all but `left` shards
    generated, and scored.
    """
    store = open_store(folder / name)
    shards = [
        Shard(i, "faces.parquet", "faces.parquet", "1", at, min(SHARD, rows - at), at)
        for i, at in enumerate(range(0, rows, SHARD))
    ]
    plan = Plan(
        fingerprint={
            "data": "0123456789abcdef",
            "method": "fedcba9876543210",
            "target": "00ff00ff00ff00ff",
            "code": "0.1.0",
        },
        shards=shards,
        rows=rows,
        config=settings(name, folder, **more),
        versions=versions(),
        models={"classifier": "ab" * 32, "oracle": "cd" * 32},
    )
    write_plan(store, plan)
    number = np.arange(rows)
    bits = labels(1, number)
    changed = bits.copy()
    chance = np.random.default_rng(7)
    column = ATTRIBUTES.index(decides)
    changed[:, column] ^= chance.random(rows) < 0.95
    changed[:, ATTRIBUTES.index("Mouth_Slightly_Open")] ^= chance.random(rows) < 0.12
    before = draw(1, number, attributes=bits)
    noise = chance.normal(0, 3, before.shape)
    after = np.clip(
        0.9 * draw(1, number, attributes=changed) + 0.1 * before + noise, 0, 255
    ).astype(np.uint8)
    flipped = changed[:, column] != bits[:, column]
    source = bits[:, ATTRIBUTES.index("Smiling")].astype(int)
    reasons = [f"stuck {PLANTED}", "the step limit was reached", "the flip was lost in 8 bits"]
    records, scores = [], []
    for i in range(rows):
        identity, target = ids.format(i), int(1 - source[i])
        p = float(chance.beta(9, 1) * 0.3 + 0.7) if flipped[i] else float(chance.random() * 0.5)
        low = float(chance.beta(1, 14) * 0.5)
        row = {
            "id": identity,
            "cf_id": counterfactual_id(identity, name, target, 0),
            "k": 0,
            "row": i,
            "split": "test",
        }
        row |= {
            "label": int(bits[i, 0]),
            "source": int(source[i]),
            "target": target,
            "correct": bool(bits[i, 0] == source[i]),
        }
        row |= {"predicted": target if flipped[i] else 1 - target, "flipped": bool(flipped[i])}
        row |= {
            "reason": None if flipped[i] else reasons[int((~flipped[:i]).sum()) % 3],
            "p_source_before": 1 - low,
            "p_target_before": low,
        }
        row |= {
            "p_source_after": 1 - p,
            "p_target_after": p,
            "steps": int(chance.integers(8, 100)),
            "forward": 60,
            "backward": 55,
        }
        row |= {
            "seconds": 0.12,
            "method": "counterfactory.methods.counterfactual_attack.CounterfactualAttack",
            "carried": "{}",
        }
        row |= {
            "original": {"bytes": encode(before[i]), "path": None},
            "counterfactual": {"bytes": encode(after[i]), "path": None},
        }
        records.append(row)
        gap = np.abs(before[i].astype(float) - after[i]) / 255
        score = {
            key: row[key]
            for key in (
                "id",
                "cf_id",
                "k",
                "split",
                "label",
                "source",
                "target",
                "correct",
                "flipped",
            )
        }
        score |= {
            "l1": gap.mean(),
            "attributes_before": bits[i].astype(float),
            "attributes_after": changed[i].astype(float),
        }
        scores.append(score)
    for shard in shards[: len(shards) - left]:
        # the last row of each shard is a bad one
        part = slice(shard.start, shard.start + shard.rows - 1)
        bad = [
            {
                "id": ids.format(part.stop),
                "reason": "image: truncated PNG" if shard.index else f"no image {PLANTED}",
            }
        ]
        table = pa.Table.from_pylist(records[part], schema=COUNTERFACTUALS)
        commit_shard(
            store,
            "generate",
            shard,
            table,
            rows_in=shard.rows,
            quarantined=bad,
            seconds=4.2,
            extra={},
        )
        if scored:
            table = pa.Table.from_pylist(scores[part], schema=SCORES)
            commit_shard(
                store,
                "score-1a2b",
                shard,
                table,
                rows_in=table.num_rows,
                quarantined=[],
                seconds=1.0,
                extra={},
            )
    if scored:
        kept = [
            i
            for shard in shards[: len(shards) - left]
            for i in range(shard.start, shard.start + shard.rows - 1)
        ]
        table = score_table(
            decides, flipped[kept], (bits != changed)[kept], [scores[i] for i in kept]
        )
        store.replace("score/table.json", json.dumps(table).encode())
    return store


def score_table(
    decides: str, flipped: np.ndarray, changes: np.ndarray, scores: list[dict[str, Any]]
) -> dict[str, Any]:
    """score/table.json of the made-up run."""
    n, hits = len(flipped), int(flipped.sum())
    low, high = wilson(hits, n)
    rate = {
        "metric": "flip_rate",
        "n": n,
        "value": hits / n,
        "low": low,
        "high": high,
        "better": "higher",
        "unit": "",
        "note": "",
    }
    l1 = float(np.mean([s["l1"] for s in scores]))
    figures = [
        ("cout", 0.41, 0.05),
        ("l1", l1, l1 / 9),
        ("l2", 2 * l1, l1 / 4),
        ("sparsity", 0.62, 0.03),
        ("second_agrees", 0.93, 0.03),
    ]
    figures += [
        ("causal_share", 0.9 if decides == "Smiling" else 0.04, 0.03),
        ("seconds", 0.12, 0.004),
        ("forward", 60.0, 0.0),
    ]
    metrics = [{**rate, "subset": "correct", "by": None}, {**rate, "subset": "all", "by": None}]
    metrics.append({**rate, "subset": "all", "by": "smiling -> not smiling"})
    for name, value, half in figures:
        subset = {"cout": "correct", "second_agrees": "flipped", "causal_share": "flipped"}.get(
            name, "all"
        )
        better = "lower" if name in ("l1", "l2", "sparsity", "seconds", "forward") else "higher"
        metrics.append(
            {
                "metric": name,
                "subset": subset,
                "n": n,
                "value": value,
                "low": value - half,
                "high": value + half,
            }
        )
        metrics[-1] |= {"better": better, "unit": "", "note": "", "by": None}
    empty = {
        "metric": "changed_spurious",
        "subset": "flipped",
        "n": 0,
        "value": None,
        "low": None,
        "high": None,
    }
    metrics.append({**empty, "better": "lower", "unit": "", "note": "n = 0", "by": None})
    rates = [int(c) for c in changes[flipped].sum(0)]
    bands = [wilson(c, hits) for c in rates]
    wrong = decides != "Smiling"
    end = (
        ", not Smiling (0 %): the classifier relies on a spurious attribute."
        if wrong
        else ", as expected."
    )
    return {
        "stage": "score-1a2b",
        "versions": {"flips": 1, "cout": 1},
        "rows": n,
        "metrics": metrics,
        "attributes": {
            "names": list(ATTRIBUTES),
            "causal": ["Smiling"],
            "n": hits,
            "changed": [c / hits for c in rates],
            "low": [band[0] for band in bands],
            "high": [band[1] for band in bands],
            "mean_change": [0.0] * len(ATTRIBUTES),
        },
        "audit": {
            "depends_on": decides,
            "spurious": wrong,
            "rate": 1.0,
            "runner_up": "Mouth_Slightly_Open",
            "expected": ["Smiling"],
            "verdict": f"Decisions were flipped mostly by changing {decides} (100 % of flips){end}",
        },
        "directions": [],
    }


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Store]:
    """A sound and an unsound run over the same rows."""
    folder = tmp_path_factory.mktemp("pair")
    return make_run(folder, "plain"), make_run(folder, "biased", decides="Blond_Hair")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A run whose ids, classes, attributes, reasons, verdict, note and title are markup."""
    folder = tmp_path_factory.mktemp("hostile")
    classes = {"classes": [f"no {PLANTED}", f"yes {PLANTED}"]}
    store = make_run(
        folder,
        "hostile",
        ids=f"{{}}-{PLANTED}",
        rows=60,
        classifier=classes,
        report={"title": f"title {PLANTED}"},
    )
    table = read_sealed(store, "score/table.json")
    table["attributes"]["names"] = [f"{name} {PLANTED}" for name in ATTRIBUTES]
    table["attributes"]["causal"] = [f"Smiling {PLANTED}"]
    table["audit"]["verdict"] += PLANTED
    table["metrics"].append(
        {
            **table["metrics"][0],
            "metric": f"odd {PLANTED}",
            "note": PLANTED,
            "by": PLANTED,
            "subset": PLANTED,
        }
    )
    store.replace("score/table.json", json.dumps(table).encode())
    return store


def page_of(store: Store) -> str:
    report([store])
    return store.read("report.html").decode()


def text_of(page: str) -> str:
    """What a reader sees: no styles, scripts and tags, entities resolved."""
    bare = re.sub(r"<(script|style).*?</\1>|<[^>]+>", " ", page, flags=re.S)
    return " ".join(html.unescape(bare).replace("\N{NARROW NO-BREAK SPACE}", " ").split())


def cards_of(page: str) -> list[str]:
    gallery = page.partition('<div class="gallery of-')[2].partition("</section>")[0]
    return gallery.split("<article")[1:]


def test_a_scored_run_is_told_whole(pair: tuple[Store, Store]) -> None:
    page = page_of(pair[0])
    text = text_of(page)
    table = read_sealed(pair[0], "score/table.json")
    rate = next(m for m in table["metrics"] if m["subset"] == "all" and m["metric"] == "flip_rate")
    assert table["audit"]["verdict"] in text
    assert f"{100 * rate['value']:.1f} %" in text
    assert f"{100 * rate['low']:.1f} to {100 * rate['high']:.1f} %" in text
    assert "30 rows in, 27 counterfactuals out, 3 rows quarantined" in text
    assert "max_steps 100, lr 0.1" in text
    assert "image: truncated PNG" in text
    assert "face-23" in text, "a quarantined row is named"
    assert "smiling -> not smiling" in text
    assert f"{'ab' * 32}" in text
    assert "seed: 0" in text, "the resolved settings are shown"
    shown = re.search(r">Other attributes changed.*?</tr>", page, re.S)
    assert shown
    assert "—" in shown[0], "n = 0 is a dash, not a number"
    assert "Other attributes changed: n = 0." in text
    assert "None" not in text
    assert "nan" not in text.lower().split()


def test_attributes_that_go_together_are_reported_below_the_verdict(tmp_path: Path) -> None:
    store = make_run(tmp_path, "mixed")
    table = read_sealed(store, "score/table.json")
    assert "together" not in table, "a table of before has no such key"
    assert "go together" not in text_of(page_of(store))
    told = [
        Pair("Smiling", "<Male>", 0.91, 0.88, 0.94, 90),
        Pair("smiling", "Male", 0.85, 0.8, 0.9, 90, of_class=True),
    ]
    for pairs, count in (([], 0), (told, 2)):
        table["together"] = [asdict(pair) for pair in pairs]
        store.replace("score/table.json", sealed(table))
        page = page_of(store)
        assert page.count("go together: ") == count
    head = text_of(page.partition("<dl")[0])
    assert "Smiling and <Male> (phi 0.91) go together: an answer may change both." in head
    assert "What to do: run `interventions`" in head
    assert "class smiling and Male (phi 0.85) go together: the classifier may have" in head
    assert "<Male>" not in page


def test_the_gallery_is_balanced_flipped_first_and_deterministic(pair: tuple[Store, Store]) -> None:
    run = read_run(pair[0], 48)
    chosen = [card[0][1] for card in choose([run], 10)]
    ways = [pick.direction for pick in chosen]
    assert ways.count((0, 1)) == ways.count((1, 0)) == 5
    assert all(pick.row["flipped"] for pick in chosen)
    for way in ((0, 1), (1, 0)):
        mine = [pick.rank for pick in chosen if pick.direction == way]
        everyone = sorted(
            p.rank for group in run.tally.flipped_groups() for p in group if p.direction == way
        )
        assert mine == everyone[:5], "the lowest hashes of the direction"
    everything = choose([run], 1000)
    assert len(everything) == run.tally.rows
    assert [card[0][1].row["flipped"] for card in everything] == sorted(
        (c[0][1].row["flipped"] for c in everything), reverse=True
    )
    assert cards_of(page_of(pair[0])) == cards_of(page_of(pair[0]))


def test_cards_show_the_stored_pictures_and_what_the_oracle_saw(pair: tuple[Store, Store]) -> None:
    page = page_of(pair[1])
    cards = cards_of(page)
    assert len(cards) == 24
    for card in cards:
        assert card.count("<img") == 4
        assert "Blond Hair" in card
        assert "not flipped" not in card
    images = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(images) > 90
    assert all(
        Image.open(io.BytesIO(base64.b64decode(data))).size == (64, 64) for data in images[:8]
    )


def test_several_runs_share_a_page_and_its_rows(pair: tuple[Store, Store], tmp_path: Path) -> None:
    out = report(pair, out=str(tmp_path / "both.html"))
    assert out == str(tmp_path / "both.html")
    page = Path(out).read_text()
    text = text_of(page)
    for store in pair:
        assert json.loads(store.read("score/table.json"))["audit"]["verdict"] in text
    assert page.count('colspan="3">') == 2 * 2, "two tables with a group of columns per run"
    cards = cards_of(page)
    assert len(cards) == 24
    assert all(card.count('class="answer"') == 2 and card.count("<img") == 7 for card in cards)
    with pytest.raises(ValueError, match=r"expected one run, or several and `out`"):
        report(pair)


def test_runs_without_common_rows_are_shown_one_after_the_other(
    pair: tuple[Store, Store], tmp_path: Path
) -> None:
    other = make_run(tmp_path, "other", ids="other-{}")
    cards = cards_of(Path(report([pair[0], other], out=str(tmp_path / "both.html"))).read_text())
    assert len(cards) == 24
    assert sum("other-" in card for card in cards) == 12


def test_every_string_from_data_is_escaped(hostile: Store) -> None:
    page = page_of(hostile)
    assert "<script>document" not in page
    assert "<img src=x" not in page
    assert page.count("<script") == 1, "only our own"
    text = text_of(page)
    for place in ("title", "no", "yes", "Smiling", "no image", "stuck", "odd"):
        assert f"{place} {PLANTED}" in html.unescape(page).replace(
            "\N{NARROW NO-BREAK SPACE}", " "
        ), place
    assert f"1-{PLANTED}"[:12] in text


def test_a_page_of_text_has_one_line_for_each_reason_and_no_control_characters(
    tmp_path: Path,
) -> None:
    config = settings("tried", tmp_path)
    shard = Shard(0, "f", "f", "v", start=0, rows=2, offset=0)
    store = open_store(tmp_path / "tried")
    write_plan(store, Plan({"data": "d"}, [shard], 2, config=config))
    table = pa.Table.from_pylist([], schema=COUNTERFACTUALS)
    bad = [
        {"id": "a\x1b[2J", "reason": "no image\n     99  forged"},
        {"id": "b\u202e", "reason": "no image\n     99  forged"},
    ]
    commit_shard(store, "generate", shard, table, rows_in=2, quarantined=bad, seconds=1.0, extra={})
    lines = show(store).splitlines()
    assert lines[-1] == r"         2  no image\n     99  forged: a\x1b[2J, b\u202e"


@pytest.mark.parametrize("which", ["pair", "hostile"])
def test_nothing_is_loaded_from_anywhere(which: str, request: pytest.FixtureRequest) -> None:
    found = request.getfixturevalue(which)
    page = page_of(found[0] if which == "pair" else found)
    bare = html.unescape(re.sub(r">[^<]*", ">", page))  # attributes only, as text may say anything
    assert all(value.startswith("data:") for value in re.findall(r'<[^>]*\ssrc="([^"]*)"', page))
    assert all(
        value.startswith(("#", "data:")) for value in re.findall(r'<[^>]*\shref="([^"]*)"', page)
    )
    assert not re.search(r"<(link|iframe|object|embed|base|form(?! method=\"dialog\"))", bare)
    style = page.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page


def test_stages_that_were_not_run_leave_their_section_out(tmp_path: Path) -> None:
    text = text_of(page_of(make_run(tmp_path, "raw", scored=False, left=1)))
    assert "1 of 3 shards not generated yet" in text
    assert "counterfactory score adds the rest" in text
    assert "No attribute oracle has scored these rows" in text
    low, high = wilson(20, 22)
    band = f"95 % interval {100 * low:.1f} % to {100 * high:.1f} %"
    assert f"20 rows of 22 flipped: {100 * 20 / 22:.1f} % ({band})" in text


def test_a_run_with_nothing_generated_has_a_page_too(tmp_path: Path) -> None:
    text = text_of(page_of(make_run(tmp_path, "empty", scored=False, left=3)))
    assert "No counterfactual has been generated yet." in text
    assert "There is nothing to show yet." in text


def test_judge_and_augment_are_told_where_they_are(tmp_path: Path) -> None:
    store = make_run(tmp_path, "judged")
    folder = Path(store.uri)
    (folder / "judge").mkdir()
    (folder / "augment").mkdir()
    scores = {"id": ["a", "b", "c"], "validity": [8.0, 9.0, None], "realism": [4.0, 5.0, 6.0]}
    pq.write_table(pa.table(scores), folder / "judge/scores.parquet")
    pq.write_table(pa.table({"id": ["a", "b"]}), folder / "augment/part-00000.parquet")
    text = text_of(page_of(store))
    assert "validity 8.5 of 10" in text
    assert "realism 5.0 of 10" in text
    assert "2 counterfactuals passed the gates" in text


def test_scores_of_an_older_state_are_said_to_be_that(tmp_path: Path) -> None:
    store = make_run(tmp_path, "stale")
    table = read_sealed(store, "score/table.json")
    store.replace("score/table.json", json.dumps({**table, "rows": 20}).encode())
    assert "scores are of 20 of 27 counterfactuals" in text_of(page_of(store))


def test_no_run_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected a run folder with a plan\.json"):
        report([open_store(tmp_path / "nothing")])


def test_secrets_do_not_reach_the_page(tmp_path: Path) -> None:
    path = "s3://AKIAEXAMPLE:topsecret1@bucket/x?X-Amz-Signature=topsecret2"
    settings = {"hub_token": "topsecret3", "api_key": "topsecret4", "steps": 3}
    method = {
        "target": "counterfactory.methods.counterfactual_attack.CounterfactualAttack",
        "settings": settings,
    }
    store = make_run(tmp_path, "quiet", rows=12, method=method, data={"path": path, "size": 64})
    store.replace(
        "MANIFEST.json",
        json.dumps({"command": "counterfactory run x --set a.password=topsecret5"}).encode(),
    )
    page = page_of(store)
    assert "topsecret" not in html.unescape(page)
    assert "topsecret" not in "".join(_inside_links(page))
    assert redact({"judge": {"max_tokens": 300}, "text": "max_tokens=300"}) == {
        "judge": {"max_tokens": 300},
        "text": "max_tokens=300",
    }


def _inside_links(page: str) -> list[str]:
    return [
        base64.b64decode(data).decode()
        for data in re.findall(r"data:text/yaml;base64,([^\"]+)", page)
    ]


def test_the_settings_on_the_page_are_the_run(pair: tuple[Store, Store], tmp_path: Path) -> None:
    again = tmp_path / "again.yaml"
    again.write_text(_inside_links(page_of(pair[0]))[0])
    assert load_run(str(again)).model_dump() == read_plan(pair[0]).config


def test_what_is_kept_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path, "long", rows=120), 4)
    assert run.tally.rows == 110
    held = [len(heap) for heap in run.tally.shown.values()]
    assert max(held) == 4
    first = min((rank(f"face-{i}"), f"face-{i}") for i in range(120) if (i + 1) % SHARD)
    groups = [*run.tally.flipped_groups(), *run.tally.failed_groups().values()]
    assert first[1] in {pick.row["id"] for group in groups for pick in group}
    assert len({pick.row["id"] for pick in balanced(groups, 1000)}) == sum(held)


def test_pictures_of_change_are_what_they_say() -> None:
    before = np.full((8, 8, 3), 100, np.uint8)
    after = before.copy()
    after[2, 3] = (160, 70, 100)
    changed = change(before, after)
    assert changed[2, 3] == pytest.approx((60 + 30 + 0) / 3 / 255)
    assert np.count_nonzero(changed) == 1
    scale = full_scale([changed])
    drawn = overlay(before, changed, 0.1)
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) == 2, (
        "heat where it changed, one grey elsewhere"
    )
    assert drawn[2, 3].sum() > drawn[0, 0].sum()
    assert amplified(before, after, 60 / 255)[2, 3].tolist() == [255, 127, 0]
    assert 4 / 255 <= scale <= 30 / 255 * 1.01
    with pytest.raises(ValueError, match="expected a pair of images of one shape"):
        change(before, after[:4])


def test_a_page_of_large_pictures_stays_small() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    small = noise[:16, :16]
    assert len(data_uri(noise, 12_000)) < 12_000 * 4 / 3 + 40
    assert data_uri(noise, 12_000).startswith("data:image/jpeg")
    stored = encode(small)
    assert base64.b64decode(data_uri(small, 12_000, stored).partition(",")[2]) == stored
    assert np.array_equal(decode(stored, size=16, crop=None, max_pixels=256), small)


PROBE = """<script>
(async () => {
  const images = [...document.images];
  for (const details of document.querySelectorAll("details")) details.open = true;
  for (const image of images) image.loading = "eager";
  const settled = image => image.complete
    || new Promise(done => { image.onload = image.onerror = done; });
  await Promise.all(images.map(settled));
  const found = {
    width: innerWidth, scroll: document.documentElement.scrollWidth,
    title: document.title, images: images.length,
    broken: images.filter(image => !image.naturalWidth).length,
    foreign: document.querySelectorAll("img[src=x]").length,
  };
  document.querySelector(".card.row img").click();
  found.closer = document.querySelector("dialog").open
    && document.querySelectorAll("dialog img").length;
  const select = document.querySelector(".controls select");
  select.selectedIndex = 1;
  select.dispatchEvent(new Event("change"));
  found.hidden = document.querySelectorAll(".card.row[hidden]").length;
  parent.postMessage(found, "*");
})();
</script>"""
FRAMES = """<!doctype html><title>waiting</title><script>
const all = {{}};
addEventListener("message", e => {{ all[e.data.width] = e.data;
  document.title = JSON.stringify(all); }});
</script>
<iframe src="{0}" style="border: 0; width: 1280px; height: 900px"></iframe>
<iframe src="{0}" style="border: 0; width: 400px; height: 900px"></iframe>"""


def browse(page: Path, profile: Path) -> str:
    """The page's DOM after it has settled in headless Chromium."""
    assert CHROMIUM
    off = (
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    )
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        *off,
        f"--user-data-dir={profile}",
        "--window-size=1400,1000",
    ]
    done = subprocess.run(
        [*command, "--virtual-time-budget=8000", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    return done.stdout


@pytest.mark.chromium
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the PATH")
@pytest.mark.parametrize("several", [False, True], ids=["one run", "three runs"])
def test_in_a_browser(
    several: bool, pair: tuple[Store, Store], hostile: Store, tmp_path: Path
) -> None:
    out = tmp_path / "page.html"
    report([hostile, *pair] if several else [hostile], out=str(out))
    page = out.read_text()
    # The policy would stop a planted script (and the probe) by itself: the escaping has to hold
    # without it.
    bare = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    assert bare != page
    out.write_text(bare.replace("</body>", PROBE + "</body>"))
    frames = tmp_path / "frames.html"
    frames.write_text(FRAMES.format(out.as_uri()))
    dom = browse(frames, tmp_path / "profile")
    title = re.search(r"<title>(.*?)</title>", dom, re.S)
    assert title
    seen = json.loads(html.unescape(title[1]))
    assert set(seen) == {"1280", "400"}
    for width, found in seen.items():
        assert found["scroll"] <= int(width), "the body scrolls sideways"
        assert found["images"] > 90
        assert found["broken"] == 0
        assert found["foreign"] == 0
        assert found["title"].startswith("title ")
        assert "counterfactory" in found["title"], "a planted script has not set the title"
        assert found["closer"] == 4
        assert found["hidden"] > 0


@pytest.mark.chromium
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the PATH")
def test_the_policy_lets_our_own_script_run_and_no_other(
    pair: tuple[Store, Store], tmp_path: Path
) -> None:
    page = page_of(pair[0])
    planted = tmp_path / "planted.html"
    planted.write_text(
        page.replace("</body>", "<script>document.title = 'planted'</script></body>")
    )
    dom = browse(planted, tmp_path / "profile")
    assert "zoomable" in dom.partition("<main>")[2], "our own script ran"
    assert "<title>planted" not in dom
