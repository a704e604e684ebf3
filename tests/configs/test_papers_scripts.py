"""The scripts of docs/papers.md, run as they stand there on made-up files of the layout that is
published.
"""

import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from configs.schema import load_run, load_train
from counterfactory.models.densenet import DenseNet121
from counterfactory.models.wrapping.load import build
from pipelines.prepare.job import prepare_celeba, prepare_images

PAGE = (Path(__file__).parents[2] / "docs" / "papers.md").read_text()
SCRIPTS = {
    block.split()[2].rstrip(","): block for block in re.findall(r"```python\n(.*?)```", PAGE, re.S)
}


def script(name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    exec(compile(SCRIPTS[name], name, "exec"), {})


def rows_of(files: str, *columns: str) -> list[dict[str, Any]]:
    """The rows of the files that a data set's path names."""
    found = sorted(Path().glob(files))
    return [row for file in found for row in pq.read_table(file, columns=list(columns)).to_pylist()]


def picture(path: Path, width: int, height: int, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def test_celebahqs_rows_have_celebas_partition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    celeba, splits = [119613, 99094, 7, 4], ["0", "2", "1", "0"]
    lines = [
        "idx    orig_idx    orig_file",
        *(f"{i}   {n}   {n:06d}.jpg" for i, n in enumerate(celeba)),
    ]
    Path("CelebA-HQ-to-CelebA-mapping.txt").write_text("\n".join(lines) + "\n")
    parts = [f"{n:06d}.jpg {s}" for n, s in zip(celeba, splits, strict=True)]
    Path("list_eval_partition.txt").write_text("\n".join([*sorted(parts), "000001.jpg 0"]) + "\n")
    rows = ["0.jpg  1 -1 1", "1.jpg -1  1 1", "2.jpg 1 1 -1", "3.jpg -1 -1 -1"]
    attributes = Path("CelebAMask-HQ-attribute-anno.txt")
    attributes.write_text("\n".join(["4", "Male Smiling Young", *rows]) + "\n")
    for i in range(4):
        picture(tmp_path / "CelebA-HQ-img" / f"{i}.jpg", 32, 32, seed=i)
    script("celebahq_partition.py", monkeypatch=monkeypatch)
    data = load_run("celebahq-smile").data
    folder = data.path.rpartition("/")[0]
    prepare_celeba(
        folder,
        images=Path("CelebA-HQ-img"),
        attributes=attributes,
        partition=Path("celebahq-partition.txt"),
    )
    assert rows_of(data.path, "id", "split", *data.columns) == [
        {"id": "1", "split": "test", "Male": False, "Smiling": True, "Young": True}
    ]
    assert [row["id"] for row in rows_of(load_train("celebahq-causal").data.path, "id")] == [
        "0",
        "3",
    ]


def test_bdd_oias_rows_have_its_four_actions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = {
        "b.jpg": [1, 0, 0, 1],
        "a.jpg": [0, 1, 0, 0, 0],
        "confused.jpg": [0, 1, 0, 0, 1],
        "missing.jpg": [1, 0, 0, 0],
    }
    for part, before in (("train", "t"), ("val", "v")):
        actions = {
            "images": [{"file_name": before + name, "id": i} for i, name in enumerate(flags)],
            "annotations": [{"category": found} for found in flags.values()],
        }
        Path(f"{part}_25k_images_actions.json").write_text(json.dumps(actions))
        for name in list(flags)[:3]:
            picture(tmp_path / "data" / (before + name), 32, 18)
    script("bdd_labels.py", monkeypatch=monkeypatch)
    data = load_run("bdd-oia").data
    prepare_images("data/bdd-oia", folder=Path("data"), labels=Path("bdd-oia.csv"))
    names = ("Forward", "Stop", "Left", "Right")
    assert set(names) <= set(data.columns)
    assert [tuple(row.values()) for row in rows_of(data.path, "id", "split", *names)] == [
        ("va.jpg", "validation", False, True, False, False),
        ("vb.jpg", "validation", True, False, False, True),
    ]
    assert [row["id"] for row in rows_of(load_train("bdd-oia-causal").data.path, "id")] == [
        "ta.jpg",
        "tb.jpg",
    ]


def test_imagenets_pairs_are_square_and_named_as_the_classifier_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, folder in enumerate(re.findall(r'"(n\d{8})"', SCRIPTS["imagenet_pairs.py"])):
        picture(
            tmp_path / "val" / folder / f"ILSVRC2012_val_{number:08d}.JPEG", 60, 40, seed=number
        )
    script("imagenet_pairs.py", "val", "imagenet-pairs", monkeypatch=monkeypatch)
    prepare_images("out", folder=Path("imagenet-pairs"), labels=Path("imagenet-pairs/labels.csv"))
    names = [row["name"] for row in rows_of("out/*.parquet", "name")]
    assert names == ["sorrel", "zebra", "cougar", "cheetah", "Persian cat", "Egyptian cat"]
    assert set(names) <= set(load_run("imagenet-sorrel-zebra").models["classifier"].classes)
    sizes = {Image.open(path).size for path in Path("imagenet-pairs").glob("*.png")}
    assert sizes == {(256, 256)}
    script("imagenet_pairs.py", "val", "pair", "cougar", "cheetah", monkeypatch=monkeypatch)
    with Path("pair/labels.csv").open() as lines:
        assert [row["label"] for row in csv.DictReader(lines)] == ["cougar", "cheetah"]


def layouts(state: dict[str, Tensor]) -> dict[str, Any]:
    """A DenseNet-121's weights as STEEX, DiVE and torchvision have published theirs."""
    body = {name: value for name, value in state.items() if name.startswith("features")}
    last = {name: state[f"classifier.{name}"] for name in ("weight", "bias")}
    inner = {f"feat_extract.{name}": value for name, value in body.items()}
    steex = {f"feat_extract.{name}": value for name, value in inner.items()}
    old = {
        re.sub(r"(layer\d+\.(?:norm|conv))(\d)", r"\1.\2", name): value
        for name, value in state.items()
    }
    return {
        "steex": {
            "epoch": 3,
            "loss": 0.1,
            "optimizer_state_dict": {"state": {}, "param_groups": [{"lr": 0.1}]},
            "model_state_dict": {
                **steex,
                **{f"classifier.{name}": value for name, value in last.items()},
            },
        },
        "dive": {"feat_extract": inner, "classifier": last},
        "torchvision": {
            name: value for name, value in old.items() if not name.endswith("num_batches_tracked")
        },
    }


@pytest.mark.parametrize("layout", ["steex", "dive", "torchvision"])
def test_a_published_densenet_loads_once_converted(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network = DenseNet121(outputs=3).eval()
    source, out = tmp_path / "checkpoint.tar", tmp_path / "out.safetensors"
    torch.save(layouts(network.state_dict())[layout], source)
    script("densenet.py", str(source), str(out), monkeypatch=monkeypatch)
    spec = load_run("celebahq-smile").models["classifier"].model_dump()
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        scores = build(spec, out, torch.device("cpu"))(images)
        torch.testing.assert_close(scores[:, 1], network(images * 2 - 1)[:, 1])


def test_the_other_queries_command_is_one_that_resolves() -> None:
    command = re.search(
        r"(?m)^    (counterfactory train causal celebahq-causal --set .*\n(?: {8}.*\n)+)", PAGE
    )
    assert command is not None
    sets = [one or other for one, other in re.findall(r"--set (?:'([^']*)'|(\S+))", command[1])]
    config, run = load_train("celebahq-causal", sets), load_run("celebahq-age")
    assert len(sets) == 7
    assert (config.out, config.data.label) == (run.models["spurious"].weights, run.data.label)
    assert config.models["classifier"].output == run.models["classifier"].output
    assert config.classes == config.models["classifier"].classes == run.models["classifier"].classes


def test_every_preset_that_the_page_names_is_there() -> None:
    runs = re.findall(
        r"(?m)^\| `([a-z0-9-]+)`(?:, `-([a-z]+)`, `-([a-z]+)`)? \| (?:CelebA|BDD|30 )", PAGE
    )
    names = [first for first, *_ in runs] + [
        f"{first.rpartition('-')[0]}-{query}"
        for first, *others in runs
        for query in others
        if query
    ]
    assert len(names) == 10
    for name in names:
        assert load_run(name).name == name
