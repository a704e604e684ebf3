"""Reading torch.export and TorchScript archives without running code that they contain.

torch loads both with more trust than a weights file should get: pickles without `weights_only`,
symbolic expressions and guards that go through `eval` and `exec`, functions found by name, native
libraries. This module checks each member that a network needs, rebuilds the archive from these
members only, and passes nothing else to torch. ValueError names what was refused.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from typing import Any

import torch
from torch import nn

from counterfactory.models.wrapping.exported import (
    ByItself,
    expect_eval_script,
    network_of_program,
)

EXPORT = re.compile(
    r"models/model\.json|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)|data/sample_inputs/model\.pt"
    r"|archive_format|archive_version|byteorder|\.format_version|\.storage_alignment|\.data/[a-z_]+"
)
SCRIPT = re.compile(
    r"code/[\w./-]+\.py|(data|constants)\.pkl|(data|constants)/\d+|version|byteorder|\.\w+|\.data/\w+"
)
TARGET = re.compile(
    r"torch\.ops\.(aten|prims)\.\w+\.\w+|torch\.ops\.higher_order\.wrap_with_(set_grad_enabled|autocast)"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|pow|neg|pos|eq|ne|ge|gt|le|lt|and_|or_)"
    r"|math\.(ceil|floor|trunc)|torch\.sym_(float|int|max|min|not|ite|sqrt)"
)
FILES = re.compile(r"file|save|load")  # in an operator's name: it accesses the disk
# any other text of a program: names, numbers and modes, without calls and quotes
PLAIN = re.compile(r"[\w .,:+>\-/\[\]=]*")
SYMBOL = re.compile(r"[a-z]+\d+")
WHOLE_SYMBOL = re.compile(
    r"Symbol\('([a-z]+\d+)'(?:, (?:positive|nonnegative|negative|integer|real)=(?:True|False))*\)"
)
FUNCTIONS = {
    "Max",
    "Min",
    "FloorDiv",
    "CeilDiv",
    "CleanDiv",
    "Mod",
    "PythonMod",
    "Pow",
    "Integer",
    "ToFloat",
    "Not",
}
FUNCTIONS |= {"Eq", "Ne", "Ge", "Gt", "Le", "Lt", "And", "Or", "floor", "ceiling", "True", "False"}
# members of a TorchScript archive that no call needs
DROPPED = re.compile(r"\.debug_pkl$|^traced_inputs")
TREES = {"builtins.tuple", "builtins.list", "builtins.dict", None}
# bytes by which an archive may grow in unpacking; torch stores its tensors uncompressed
SWELL = 64 << 20


def archive(data: bytes) -> nn.Module:
    """Return the module in a torch.export archive (.pt2) or a TorchScript file (.pt).

    The members of the zip decide which of the two it is. ValueError where the archive is refused.
    """
    members = _members(data)
    if any(name.startswith("code/") for name in members):
        kept = {name: body for name, body in members.items() if not DROPPED.search(name)}
        _expect_members(kept, SCRIPT, "TorchScript")
        if any(b"__setstate__" in body for name, body in kept.items() if name.startswith("code/")):
            raise ValueError(
                "expected a TorchScript archive that runs nothing when loaded, got a __setstate__"
                " in it"
            )
        script: nn.Module = torch.jit.load(_packed(kept), map_location="cpu")  # type: ignore[no-untyped-call]
        _expect_operators(script)
        expect_eval_script(script.eval())
        return ByItself(script).eval()
    _expect_members(members, EXPORT, "torch.export")
    for name in members:
        if name.endswith("_config.json") and _pickled(_json(members[name], name)):
            raise ValueError(
                f"expected plain tensors in the archive, got a pickle that {name} names"
            )
    members["data/sample_inputs/model.pt"] = b""  # a pickle that is not needed
    members["models/model.json"] = json.dumps(
        _program(_json(members["models/model.json"], "model.json"))
    ).encode()
    return network_of_program(torch.export.load(_packed(members)))


def _members(data: bytes) -> dict[str, bytes]:
    """Return the zip's members by name, without the folder that torch puts around them."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            infos = [info for info in file.infolist() if not info.is_dir()]
            if sum(info.file_size for info in infos) > len(data) + SWELL:
                raise ValueError(
                    "expected an archive of stored tensors, got one that swells in unpacking"
                )
            names = [info.filename.partition("/")[2] for info in infos]
            if (
                len(set(names)) < len(names)
                or len({info.filename.partition("/")[0] for info in infos}) > 1
            ):
                raise ValueError(
                    "expected an archive with one folder and every name once, got another"
                )
            return {name: file.read(info) for name, info in zip(names, infos, strict=True)}
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError):
        raise ValueError(
            f"expected a torch.export or TorchScript archive, got {len(data)} bytes of something"
            " else"
        ) from None


def _packed(members: dict[str, bytes]) -> io.BytesIO:
    """Return the zip that torch reads. It holds these members only, so torch never parses the
    original file.
    """
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as file:
        for name, body in members.items():
            file.writestr(f"archive/{name}", body)
    out.seek(0)
    return out


def _expect_members(members: dict[str, bytes], known: re.Pattern[str], kind: str) -> None:
    for name in members:
        if not known.fullmatch(name) or ".." in name:
            raise ValueError(
                f"expected a {kind} archive of a network and its tensors alone, got {name[:80]!r}"
                " in it"
            )


def _json(body: bytes, name: str) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError(f"expected JSON in the archive's {name}, got something else") from None


def _pickled(config: Any) -> bool:
    payloads = config.get("config", {}).values() if isinstance(config, dict) else [None]
    return any(
        not isinstance(payload, dict) or payload.get("use_pickle") is not False
        for payload in payloads
    )


def _program(found: Any, key: str = "") -> Any:
    """Return a program's JSON without guards and notes; ValueError where a string in it could be a
    call.
    """
    if isinstance(found, dict):
        if key == "range_constraints" and not all(SYMBOL.fullmatch(name) for name in found):
            raise ValueError(
                "expected symbols in the archive's range_constraints, got something else"
            )
        for name in found:
            if not PLAIN.fullmatch(name) or name in ("as_custom_obj", "as_operator"):
                raise ValueError(
                    f"expected a program of plain operators in the archive, got {name[:80]!r}"
                )
        # notes are removed without reading them
        kept = {
            name: {} if name == "metadata" else _program(value, name)
            for name, value in found.items()
        }
        return kept | _no_guards(kept)
    if isinstance(found, list):
        return [_program(value, key) for value in found]
    if isinstance(found, str):
        _expect_plain(found, key)
    return found


def _no_guards(found: dict[str, Any]) -> dict[str, Any]:
    return {"guards_code": []} if "guards_code" in found else {}


def _expect_plain(text: str, key: str) -> None:
    if key == "target":
        good = TARGET.fullmatch(text) is not None and not FILES.search(text)
    elif key == "expr_str":
        text = WHOLE_SYMBOL.sub(r"\1", text)
        words = re.findall(r"[A-Za-z_]\w*", text)
        good = all(SYMBOL.fullmatch(word) or word in FUNCTIONS for word in words)
        good = good and re.fullmatch(r"([\w+\-*/%(), <>=&|~]|\d\.\d)*", text) is not None
    elif key in ("in_spec", "out_spec"):
        good = _plain_tree(_json(text.encode(), key))
    else:
        good = key in ("guards_code", "metadata") or PLAIN.fullmatch(text) is not None
    if not good:
        raise ValueError(
            f"expected a program of plain operators in the archive, got {key} {text[:80]!r}"
        )


def _plain_tree(tree: Any) -> bool:
    """Return whether a description of nested arguments consists of tuples, lists and dicts only."""
    if isinstance(tree, list):
        return all(isinstance(part, int) or _plain_tree(part) for part in tree)
    return (
        isinstance(tree, dict)
        and tree.get("type") in TREES
        and re.fullmatch(r'None|null|\[[\w", ]*\]', str(tree.get("context"))) is not None
        and _plain_tree(tree.get("children_spec"))
    )


def _expect_operators(script: nn.Module) -> None:
    """Raise ValueError where any method has an operator that accesses files or is not torch's
    own.
    """
    for module in script.modules():
        compiled: Any = module._c
        for method in compiled._method_names():
            graph = compiled._get_method(method).graph.copy()
            torch._C._jit_pass_inline(graph)
            for kind in _kinds(graph):
                space, _, name = kind.partition("::")
                if space not in ("aten", "prim", "quantized") or FILES.search(name):
                    raise ValueError(
                        f"expected a TorchScript network of plain operators, got {kind}"
                    )


def _kinds(block: Any) -> set[str]:
    found = set()
    for node in block.nodes():
        found.add(node.kind())
        for inner in node.blocks():
            found |= _kinds(inner)
    return found
