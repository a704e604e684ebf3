"""What docs/schema.md states of table.json is so, and its examples run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from configs.schema import resolve_run
from pipelines.prepare.job import prepare_faces
from pipelines.run import run
from pipelines.score.job import score

PAGE = (Path(__file__).parents[2] / "docs" / "schema.md").read_text()


def paths(value: Any, above: str = "") -> Iterator[str]:
    """The dotted names of a JSON value's leaves; `[]` is an item of a list."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from paths(inner, f"{above}.{name}" if above else name)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        yield from paths(value[0], f"{above}[]")
    else:
        yield above


def test_every_key_of_the_score_table_is_on_the_page(make_run: Callable[..., Any]) -> None:
    made = make_run(rows=20, answers=2)
    table = json.loads(json.dumps(score(made.store, made.config)))
    part = PAGE.partition("\n## Score table\n")[2].partition("\n## ")[0]
    told = set(re.findall(r"^\| `([^`]+)` \|", part, re.M))
    assert len(told) == part.count("\n| `")
    # a key whose own keys are on the page stands for none of them
    whole = {key for key in told if not any(other.startswith(f"{key}.") for other in told)}

    def within(path: str) -> set[str]:
        return {key for key in whole if re.match(rf"{re.escape(key)}(\.|\[|$)", path)}

    found = list(paths(table))
    assert [path for path in found if not within(path)] == []
    assert whole - set().union(*map(within, found)) == set()


@pytest.fixture
def audited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run runs/audit over data/photos, in the current folder."""
    monkeypatch.chdir(tmp_path)
    prepare_faces("data/photos", rows=10, test_rows=4)
    data = {"path": "data/photos", "label": "label", "id": "id", "split": "split", "size": 64}
    raw = {"name": "audit", "data": data, "models": {"classifier": "faces-plain"}, "method": "fgsm"}
    config = resolve_run(raw, ["engine.kind=local", "engine.shard_rows=4"], "audit")
    run(config, stages=("generate", "score"))


def test_the_examples_run(audited: None, ray_session: None) -> None:
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.S | re.M):
        exec(compile(block, "schema.md", "exec"), names)
    assert list(names["some"].columns) == ["id", "k", "flipped", "l1"]
    rows = names["rows"].set_index("id")
    assert len(rows) == 14
    for joined in (names["by_name"], names["by_place"], names["joined"].to_pandas()):
        young = joined.set_index("id")["Young"]
        assert young.notna().all()
        assert (young == names["by_name"].set_index("id")["Young"]).loc[rows.index].all()
    assert names["images"].shape[1:] == (64, 64, 3)
