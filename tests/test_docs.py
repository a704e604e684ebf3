"""What README.md and docs/ state of files, commands, presets and columns is so."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pyarrow as pa
import pytest

from actors.judge.worker import JUDGED
from actors.score import SCORES
from configs.schema import load_run
from pipelines.augment.parts import schema_of
from pipelines.cli import parser
from pipelines.judge.job import ANSWERS
from storage.schema import ATTRIBUTIONS, COUNTERFACTUALS

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
FENCED = re.compile(r"^(```+)[^\n]*\n(.*?)^\1", re.S | re.M)
INDENTED = re.compile(r"(?:^(?: {4}|\t)[^\n]*\n)+", re.M)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose_of(text: str) -> str:
    """A page without its code."""
    return re.sub(r"`[^`\n]*`", "", INDENTED.sub("", FENCED.sub("", text)))


def commands_of(text: str) -> list[list[str]]:
    """The words after `counterfactory` of every command line in a page's code blocks."""
    blocks = [found[1] for found in FENCED.findall(text)] + INDENTED.findall(FENCED.sub("", text))
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [
        shlex.split(line.strip(), comments=True)[1:]
        for line in lines
        if line.strip().startswith("counterfactory ")
    ]


def choices_of(command: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The commands below a command, by name."""
    for action in command._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def anchors_of(text: str) -> set[str]:
    """The anchors of a page's headings."""
    heads = re.findall(r"^#+ (.+)$", FENCED.sub("", text), re.M)
    return {re.sub(r"[^\w -]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def test_readme_has_at_most_700_words() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 700


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose_of(page.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors_of(target.read_text()), link


def test_every_page_is_reached_from_the_site_and_from_the_index() -> None:
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    index = (ROOT / "docs" / "index.md").read_text()
    for page in DOCS:
        path = str(page.relative_to(ROOT / "docs"))
        assert f": {path}\n" in nav, path
        assert path == "index.md" or f"]({path})" in index, path
    assert nav.count(".md\n") == len(DOCS)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_of_the_code_blocks_exists(page: Path) -> None:
    known = choices_of(parser())
    for words in commands_of(page.read_text()):
        if words[0] == "COMMAND":
            continue
        assert words[0] in known, words
        if below := choices_of(known[words[0]]):
            assert words[1] in below, words
        parts = [known[words[0]], *choices_of(known[words[0]]).values()]
        options = {option for part in parts for option in part._option_string_actions}
        for word in words[1:]:
            assert not word.startswith("--") or word.partition("=")[0] in options, words


def test_the_commands_page_lists_every_command() -> None:
    text = (ROOT / "docs" / "commands.md").read_text()
    named = set(re.findall(r"`([a-z]+)(?: [^`]*)?`", text))
    assert set(choices_of(parser())) <= named


def test_the_check_of_commands_finds_a_wrong_one() -> None:
    fenced = "```\ncounterfactory run a.yaml \\\n  --out b\n```\n"
    text = f"    counterfactory fly runs/x  # no\n\n{fenced}"
    assert commands_of(text) == [["run", "a.yaml", "--out", "b"], ["fly", "runs/x"]]


@pytest.mark.parametrize(
    ("heading", "schema"),
    [
        ("Counterfactuals", COUNTERFACTUALS),
        ("Scores", SCORES),
        ("Attributions", ATTRIBUTIONS),
        ("Augmentation set", schema_of([])),
        ("Judge", ANSWERS),
        ("Live answers", JUDGED),
    ],
)
def test_the_schema_page_has_every_column_and_no_other(heading: str, schema: pa.Schema) -> None:
    text = (ROOT / "docs" / "schema.md").read_text()
    part = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    told = dict(re.findall(r"^\| `(\w+)` \| ([\w ]+) \|", part, re.M))
    assert len(told) == part.count("\n| `")
    assert told == {field.name: type_of(field.type) for field in schema}


def type_of(kind: pa.DataType) -> str:
    """A type as the page writes it."""
    if pa.types.is_struct(kind):
        return "image"
    if pa.types.is_list(kind):
        return f"list of {'struct' if pa.types.is_struct(kind.value_type) else kind.value_type}"
    return str(kind)


def test_every_preset_is_on_the_methods_page() -> None:
    told = re.findall(r"^\| `([a-z0-9-]+)` \|", (ROOT / "docs" / "methods.md").read_text(), re.M)
    assert sorted(told) == sorted(path.stem for path in (ROOT / "configs/method").glob("*.yaml"))


def test_the_config_of_the_readme_is_valid(tmp_path: Path) -> None:
    (text,) = re.findall(
        r"^```yaml\n(name: .*?)^```", (ROOT / "README.md").read_text(), re.S | re.M
    )
    (tmp_path / "audit.yaml").write_text(text)
    assert load_run(str(tmp_path / "audit.yaml")).name == "audit"


def test_every_error_of_the_faq_is_in_the_code() -> None:
    folders = ("configs", "storage", "actors", "pipelines", "counterfactory")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    # as the reader of the code sees a message that goes over several lines
    code = re.sub(r'"\s*\n\s*f?"', "", "\n".join(path.read_text() for path in files))
    table = (ROOT / "docs" / "faq.md").read_text().partition("\n## ")[0]
    shown = re.findall(r"^\| (`+)(.+?)\1 \|", table, re.M)
    assert len(shown) > 15
    absent = [part for _, line in shown for part in line.split("...") if part.strip() not in code]
    assert not absent


def blocks_of(page: str) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.S | re.M)


def test_the_notebooks_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = blocks_of("notebook.md")
    names: dict[str, object] = {}
    exec(compile(example, "notebook.md", "exec"), names)
    assert names["answers"].flipped.all()  # type: ignore[attr-defined]
    assert "torch.Size([4, 3, 16, 16])" in capsys.readouterr().out


def test_the_template_repository_keeps_the_contract(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = {block.split("\n")[0].removeprefix("# "): block for block in blocks_of("extend.md")}
    assert set(blocks) == {"mymethods/step.py", "tests/test_step.py"}
    for name, block in blocks.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(block)
    (tmp_path / "mymethods" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    names: dict[str, object] = {}
    exec(compile(blocks["tests/test_step.py"], "test_step.py", "exec"), names)
    names["test_step_keeps_the_contract"]()  # type: ignore[operator]
