"""docs/own-classifier.md from its first command to its last, in an empty folder."""

from __future__ import annotations

import csv
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from configs.strict import UserError
from counterfactory.__main__ import main

PAGE = (Path(__file__).parents[1] / "docs" / "own-classifier.md").read_text()
# What keeps the trainings short; the commands are the page's otherwise.
SHORT = {
    "smile.yaml": ["--set", "steps=60", "--set", "lr=0.02"],
    "my-ae.yaml": ["--set", "steps=3", "--set", "settings.widths=[8, 8, 8, 8]"],
    "my-attributes.yaml": ["--set", "steps=3", "--set", "settings.width=4"],
    "latent.yaml": ["--set", "method.settings.max_steps=3", "--set", "score.cout_steps=4"],
    "audit.yaml": ["--set", "score.cout_steps=4"],
}


@pytest.fixture
def folder(tmp_path: Path, faces: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's folder of photographs and its CSV: 24 drawn faces."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "photos").mkdir()
    with (tmp_path / "labels.csv").open("w", newline="") as out:
        table = csv.writer(out)
        table.writerow(["file", "label", "split", "Smiling", "Eyeglasses"])
        for file in sorted(faces.glob("*.parquet")):
            for row in pq.read_table(file).to_pylist():
                name = f"{row['row']:04d}.png"
                (tmp_path / "photos" / name).write_bytes(row["image"]["bytes"])
                label = "smiling" if row["label"] else "not smiling"
                flags = [int(row[name]) for name in ("Smiling", "Eyeglasses")]
                table.writerow([name, label, row["split"], *flags])
    return tmp_path


def steps() -> Iterator[tuple[str, str]]:
    """The page's files, as (name, text), and its commands, as ("", command), in its order."""
    pattern = re.compile(r"^```\w+\n# (\S+)\n(.*?)^```|^    counterfactory ([^\n]+)$", re.S | re.M)
    for found in pattern.finditer(PAGE):
        yield (found[1], found[2]) if found[1] else ("", found[3])


def test_every_command_works_from_an_empty_folder(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = []
    for name, text in steps():
        if name:
            (folder / name).write_text(text)
            continue
        words = shlex.split(text)
        short = SHORT.get(words[-1] if words[0] == "train" else words[1], [])
        takes = words[0] in ("train", "run", "doctor")
        assert main([*words, *(short if takes else [])]) == 0, (text, capsys.readouterr())
        done.append(words[0])
    assert done.count("train") == 3
    assert done.count("run") == 3
    assert (folder / "runs" / "latent" / "report.html").is_file()


def test_the_error_of_the_page_is_the_programs(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from actors.pinned.load import load_models

    text = dict(steps())["mynets.py"]
    (folder / "mynets.py").write_text(text)
    names: dict[str, type[torch.nn.Module]] = {}
    exec(text, names)
    (folder / "models").mkdir()
    save_file(names["SmileNet"]().state_dict(), folder / "models" / "smile.safetensors")
    card = "model: {target: mynets.SmileNet, settings: {width: 16}}\n"
    (folder / "models" / "smile.yaml").write_text(card)
    spec = {
        "role": "classifier",
        "source": "torch",
        "target": "mynets.SmileNet",
        "settings": {"width": 24},
        "weights": "models/smile.safetensors",
        "classes": ["not smiling", "smiling"],
    }
    with pytest.raises(UserError) as error:
        load_models({"models": {"classifier": spec}}, ["classifier"], torch.device("cpu"))
    shown = re.search(r"^    (models\.classifier: .*\n    .*)$", PAGE, re.M)
    assert shown is not None
    for part in " ".join(shown[1].split()).split(" ... "):
        assert part in str(error.value)
