"""Model files cannot run code: what would is refused in one line, and its payload never runs."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from actors.pinned.load import load_models
from configs.strict import UserError

SCORES = {"role": "classifier", "classes": ["a", "b"]}


class Net(nn.Module):
    """A network small enough to export in a test."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.mean((2, 3)))


class Payload:
    """Makes a file when unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return exec, (f"open({str(self.mark)!r}, 'w').close()",)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A file that is there once a payload has run."""
    return tmp_path / "a-payload-has-run"


def load(path: Path, **spec: Any) -> nn.Module:
    whole = {
        "source": "torch",
        "target": "torch.nn.Identity",
        **SCORES,
        "weights": str(path),
        **spec,
    }
    return load_models({"models": {"classifier": whole}}, ["classifier"], torch.device("cpu"))[
        "classifier"
    ]


def refused(path: Path, mark: Path, **spec: Any) -> str:
    """The one line with which a file is refused; the payload has not run."""
    with pytest.raises(UserError) as caught:
        load(path, **spec)(torch.rand(1, 3, 4, 4))
    assert not mark.exists(), "the payload has run"
    told = str(caught.value)
    assert told.startswith("models.classifier")
    assert "\n" not in told
    return told


@pytest.mark.parametrize("name", ["x.pt", "x.bin", "x.pkl", "x.joblib", "x.safetensors", "x.pt2"])
@pytest.mark.parametrize("kind", ["pickle", "torch", "legacy", "state dict"])
def test_a_pickle_with_a_payload(tmp_path: Path, mark: Path, name: str, kind: str) -> None:
    out = io.BytesIO()
    payload: Any = (
        {"weight": torch.zeros(1), "x": Payload(mark)} if kind == "state dict" else Payload(mark)
    )
    if kind == "pickle":
        pickle.dump(payload, out)
    else:
        torch.save(payload, out, _use_new_zipfile_serialization=kind != "legacy")
    (tmp_path / name).write_bytes(out.getvalue())
    source = "export" if name.endswith(".pt2") else "torch"
    assert "expected a" in refused(tmp_path / name, mark, source=source)
    pickle.loads(pickle.dumps(Payload(mark)))
    assert mark.exists(), "it would have run"


def test_a_joblib_file(tmp_path: Path, mark: Path) -> None:
    joblib = pytest.importorskip("joblib")
    joblib.dump({"model": Payload(mark)}, tmp_path / "x.joblib")
    assert "expected a safetensors or torch weights file" in refused(tmp_path / "x.joblib", mark)


def hub_folder(folder: Path) -> Path:
    """A Hugging Face classifier with safetensors, as `save_pretrained` writes it."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        num_channels=3,
        embedding_size=4,
        hidden_sizes=[4],
        depths=[1],
        layer_type="basic",
        num_labels=2,
    )
    ResNetForImageClassification(config).save_pretrained(folder)
    return folder


def test_a_hugging_face_folder_with_a_pickle_only(tmp_path: Path, mark: Path) -> None:
    folder = hub_folder(tmp_path / "hub")
    assert isinstance(load(folder, source="huggingface"), nn.Module)
    (folder / "model.safetensors").unlink()
    torch.save({"x": Payload(mark)}, folder / "pytorch_model.bin")
    assert "model.safetensors" in refused(folder, mark, source="huggingface")


def test_a_hugging_face_folder_that_brings_code(tmp_path: Path, mark: Path) -> None:
    folder = hub_folder(tmp_path / "hub")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "mine",
        "auto_map": {k: "mine.Mine" for k in ("AutoConfig", "AutoModelForImageClassification")},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Mine: pass\n")
    refused(folder, mark, source="huggingface")


def exported(tmp_path: Path) -> dict[str, bytes]:
    """The members of a good torch.export archive."""
    out = io.BytesIO()
    torch.export.save(torch.export.export(Net().eval(), (torch.zeros(2, 3, 4, 4),)), out)
    with zipfile.ZipFile(out) as file:
        return {name: file.read(name) for name in file.namelist()}


def packed(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, body in members.items():
            file.writestr(name, body)
    return path


MODEL, WEIGHTS = "archive/models/model.json", "archive/data/weights/model_weights_config.json"
CONSTANTS = "archive/data/constants/model_constants_config.json"


def torch_pickle(mark: Path) -> bytes:
    out = io.BytesIO()
    torch.save(({"x": Payload(mark)},), out)
    return out.getvalue()


def with_text(old: str, new: str) -> Callable[[dict[str, bytes], Path], None]:
    def change(members: dict[str, bytes], mark: Path) -> None:
        before = members[MODEL].decode()
        after = before.replace(old, new.replace("MARK", str(mark)))
        assert after != before, "the archive is another than this test was written for"
        members[MODEL] = after.encode()

    return change


def with_guard(members: dict[str, bytes], mark: Path) -> None:
    program = json.loads(members[MODEL])
    program["guards_code"] = [f"open({str(mark)!r}, 'w').close() is None"]
    members[MODEL] = json.dumps(program).encode()


def with_expression(members: dict[str, bytes], mark: Path) -> None:
    program = json.loads(members[MODEL])
    code = f"__import__('builtins').open({str(mark)!r}, 'w').close()"
    program["graph_module"]["graph"]["sym_int_values"] = {
        "s0": {"as_expr": {"expr_str": code, "hint": {"as_int": 1}}}
    }
    members[MODEL] = json.dumps(program).encode()


def with_pickled_weight(members: dict[str, bytes], mark: Path) -> None:
    config = json.loads(members[WEIGHTS])
    first = next(iter(config["config"].values()))
    first["use_pickle"] = True
    members[WEIGHTS] = json.dumps(config).encode()
    members[f"archive/data/weights/{first['path_name']}"] = torch_pickle(mark)


def with_opaque_constant(members: dict[str, bytes], mark: Path) -> None:
    constant = {
        "path_name": "opaque_obj_0",
        "is_param": False,
        "use_pickle": True,
        "tensor_meta": None,
    }
    members[CONSTANTS] = json.dumps({"config": {"x": constant}}).encode()
    members["archive/data/constants/opaque_obj_0"] = pickle.dumps(Payload(mark))


def with_library(members: dict[str, bytes], mark: Path) -> None:
    members["archive/data/aotinductor/model/model.so"] = b"\x7fELF"


BAD = {
    "a function by name": with_text("torch.ops.aten.linear.default", "torch.os.system"),
    "an operator on files": with_text(
        "torch.ops.aten.linear.default", "torch.ops.aten.from_file.default"
    ),
    "code in a name": with_text('"name": "x"', """"name": "x=open('MARK','w')" """.strip()),
    "an expression": with_expression,
    "a pickled weight": with_pickled_weight,
    "a pickled constant": with_opaque_constant,
    "a native library": with_library,
    "a class in a tree": with_text(
        r"\"type\": \"builtins.dict\"", r"\"type\": \"collections.defaultdict\""
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_an_export_archive_with_more_than_a_network(tmp_path: Path, mark: Path, what: str) -> None:
    members = exported(tmp_path)
    BAD[what](members, mark)
    told = refused(packed(tmp_path / "x.pt2", members), mark, source="export")
    assert "archive" in told or "tree" in told


def test_guards_and_sample_inputs_of_an_export_archive_are_left_out(
    tmp_path: Path, mark: Path
) -> None:
    members = exported(tmp_path)
    with_guard(members, mark)
    members["archive/data/sample_inputs/model.pt"] = torch_pickle(mark)
    model = load(packed(tmp_path / "x.pt2", members), source="export")
    assert model(torch.rand(2, 3, 4, 4)).shape == (2, 2)
    assert not mark.exists()
    with suppress(Exception):
        torch.export.load(tmp_path / "x.pt2").module()(torch.rand(2, 3, 4, 4))
    assert mark.exists(), "torch by itself runs them"


class Saves(nn.Module):
    """Writes a file when it is called."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, x: Tensor) -> Tensor:
        torch.save(x, self.path)
        return x.flatten(1)[:, :2]


class SavesWhenLoaded(nn.Module):
    """Writes a file when it is loaded."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :2]

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path, self.training = state[0], state[1]
        torch.save(torch.zeros(1), self.path)


@pytest.mark.parametrize("kind", [Saves, SavesWhenLoaded])
def test_a_torchscript_that_writes_files(tmp_path: Path, mark: Path, kind: type[nn.Module]) -> None:
    torch.jit.script(kind(str(mark))).save(str(tmp_path / "x.pt"))  # type: ignore[call-arg]
    mark.unlink(missing_ok=True)
    assert "expected a TorchScript" in refused(tmp_path / "x.pt", mark, source="export")


def test_a_torchscript_of_a_network_is_taken(tmp_path: Path) -> None:
    torch.jit.script(Net()).save(str(tmp_path / "x.pt"))
    assert load(tmp_path / "x.pt", source="export")(torch.rand(2, 3, 4, 4)).shape == (2, 2)


def test_an_archive_that_swells_is_not_unpacked(tmp_path: Path, mark: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt2", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/models/model.json", b" " * (80 << 20))
    assert "swells in unpacking" in refused(tmp_path / "x.pt2", mark, source="export")
