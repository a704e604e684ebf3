"""Which rows an audit draws: new ones, spread over the strata, the same on every try."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow.parquet as pq
import pytest
from audit_place import Place  # type: ignore[import-not-found]

from configs.audit import AuditConfig, run_of
from configs.strict import UserError
from pipelines.audit.make import _with_strata
from pipelines.audit.pools import allocate
from pipelines.audit.rows import STRATUM
from pipelines.audit.sample import Drawn, draw
from storage.names import hashes
from storage.uri import Store, open_store

NOTHING = np.zeros(0, np.uint64)


def drawn(
    place: Place, config: AuditConfig, name: str = "a", before: Sequence[str] = ()
) -> tuple[Store, Drawn]:
    store = open_store(place.folder / "out")
    run = _with_strata(run_of(config), config)
    old = np.sort(hashes(before)) if before else NOTHING
    return store, draw(store, config, run, name, old)


def ids(store: Store, made: Drawn) -> list[str]:
    tables = [pq.read_table(store.url(path)) for path in store.list(made.folder)]
    return [name for table in tables for name in table["id"].to_pylist()]


def test_small_strata_are_taken_whole_and_the_others_share_the_rest() -> None:
    assert allocate({("a",): 3, ("b",): 100, ("c",): 40}, 60) == {("a",): 3, ("b",): 29, ("c",): 28}
    assert allocate({("a",): 3, ("b",): 4}, 60) == {("a",): 3, ("b",): 4}


@pytest.mark.parametrize("budget", [7, 24])
def test_the_budget_is_spread_over_classes_and_groups(place: Place, budget: int) -> None:
    config = place.config("a", budget=budget, strata=["class", "group"])
    store, made = drawn(place, config)
    assert sum(stratum.drawn for stratum in made.strata) == budget
    assert {tuple(s.values.values()): s.rows for s in made.strata} == {
        (name, group): rows
        for name in ("one", "two", "three")
        for group, rows in (("common", 15), ("rare", 5))
    }
    counts = [stratum.drawn for stratum in made.strata]
    assert max(counts) - min(counts) <= 1
    table = pq.read_table(store.url(made.folder))
    found = Counter(table[STRATUM].to_pylist())
    assert [found[at] for at in range(len(made.strata))] == counts
    for at, label, group in zip(
        *(table[name].to_pylist() for name in (STRATUM, "label", "group")), strict=True
    ):
        named = ["one", "two", "three"][label]
        assert made.strata[at].values == {"class": named, "group": group}


def test_weights_count_every_candidate_once(place: Place) -> None:
    _, made = drawn(place, place.config("a", budget=9, strata=["group"]))
    assert sum(stratum.weight * stratum.drawn for stratum in made.strata) == pytest.approx(60)
    assert made.strata[0].weight != made.strata[1].weight


def test_the_same_audit_draws_the_same_rows_in_any_order_of_the_data(place: Place) -> None:
    store, made = drawn(place, place.config("a"))
    again = drawn(place, place.config("a"))[1]
    assert ids(store, made) == ids(store, again)
    assert made.folder != again.folder
    (place.folder / "data" / "b.parquet").rename(place.folder / "data" / "0.parquet")
    assert set(ids(store, drawn(place, place.config("a"))[1])) == set(ids(store, made))
    assert set(ids(store, drawn(place, place.config("a"), "b")[1])) != set(ids(store, made))


def test_audited_rows_are_not_drawn_again(place: Place) -> None:
    before = [f"row-{i}" for i in range(50)]
    store, made = drawn(place, place.config("a"), before=before)
    assert sorted(ids(store, made)) == [f"row-{i}" for i in range(50, 60)]
    assert made.strata[0].rows == 10
    with pytest.raises(UserError, match=r"rows that were not audited yet .* got none of 60"):
        drawn(place, place.config("a"), before=[f"row-{i}" for i in range(60)])


def test_images_are_copied_even_where_the_data_have_paths_alone(place: Place) -> None:
    table = pq.read_table(place.folder / "data" / "b.parquet")
    names = [f"{i}.png" for i in range(table.num_rows)]
    for name, image in zip(names, table["image"].to_pylist(), strict=True):
        (place.folder / "data" / name).write_bytes(image["bytes"])
    paths = table.set_column(0, "image", [names])
    (place.folder / "data" / "a.parquet").unlink()
    pq.write_table(paths, place.folder / "data" / "b.parquet")
    store, made = drawn(place, place.config("a", budget=20))
    copied = pq.read_table(store.url(made.folder)).to_pylist()
    assert len(copied) == 20
    by_id = {row["id"]: row["image"]["bytes"] for row in table.to_pylist()}
    assert {row["id"]: row["image"]["bytes"] for row in copied} == by_id


def test_rows_without_an_id_are_counted_and_left_out(place: Place) -> None:
    named = [None if i < 3 else f"other-{i}" for i in range(10)]
    place.write("c", 60, 10, id=named)
    store, made = drawn(place, place.config("a", budget=100))
    assert made.nameless == 3
    assert len(ids(store, made)) == 67


def test_an_id_with_two_rows_and_too_many_strata_are_refused(place: Place) -> None:
    with pytest.raises(UserError, match="at most as many as the budget of 5 rows"):
        drawn(place, place.config("a", budget=5, strata=["id"]))
    place.write("c", 10, 2)
    with pytest.raises(UserError, match="expected one row for each value of 'id', got 2 values"):
        drawn(place, place.config("a"))
    with pytest.raises(UserError, match=r"expected a column of .* got 'grup'"):
        drawn(place, place.config("a", strata=["grup"]))
