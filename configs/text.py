"""Text and YAML from anybody's files: whatever is no usable text ends in one line."""

from __future__ import annotations

import re
from typing import Any

import yaml

DEEPEST, MOST_NODES = 100, 100_000
UNUSABLE = re.compile("[\ud800-\udfff\0]")
INT, FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"


class Loader(yaml.SafeLoader):
    """The safe loader with YAML 1.2's numbers: 1e-3 is one, and 24:32 is a slice and not 1472 in
    base 60.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own table, copied)
        first: [(tag, pattern) for tag, pattern in pairs if tag not in (INT, FLOAT)]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


Loader.add_implicit_resolver(
    INT, re.compile(r"^[-+]?(0|[1-9][0-9]*|0x[0-9a-fA-F]+)$"), list("-+0123456789")
)
Loader.add_implicit_resolver(
    FLOAT,
    re.compile(
        r"^([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)


def decode_text(data: bytes, where: str) -> str:
    """Text in UTF-8, or in UTF-16 where its first bytes say so; ValueError names the file and the
    line where it is neither.
    """
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        got = f"the byte 0x{data[error.start]:02x}" if error.start < len(data) else "half of it"
        raise ValueError(
            f"{where} line {line}: expected text in UTF-8, got {got}: save the file as UTF-8"
        ) from None


def read_yaml(text: str) -> Any:
    """One YAML value by the safe loader above; yaml.YAMLError where it is none, or one that no
    setting can hold.

    Refused besides bad YAML: a key that is there twice, more than 100 levels, a value that holds
    itself or grows beyond 100,000 by its aliases, numbers of thousands of digits, impossible dates,
    and half characters.
    """
    try:
        loader = Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _count(node, {}, 0)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise yaml.YAMLError(f"more than {DEEPEST} levels") from None
    except (ValueError, OverflowError) as error:  # of a date, or a number of 5,000 digits
        raise yaml.YAMLError(str(error)[:200]) from None


def _count(node: yaml.Node, known: dict[int, int | None], depth: int) -> int:
    """How many values a node is once its aliases are written out; known: of nodes seen, None while
    they are counted.
    """
    if id(node) in known:
        count = known[id(node)]
        if count is None:
            raise yaml.YAMLError("a value that holds itself")
        return count
    if depth > DEEPEST:
        raise yaml.YAMLError(f"more than {DEEPEST} levels")
    known[id(node)] = None
    count = 1
    if isinstance(node, yaml.ScalarNode):
        if bad := UNUSABLE.search(node.value):
            raise yaml.YAMLError(f"the character {bad[0]!a}, which is no text")
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.YAMLError(f"the key {key.value!r} twice")
                seen.add(key.value)
        count += sum(
            _count(key, known, depth + 1) + _count(value, known, depth + 1)
            for key, value in node.value
        )
    else:
        count += sum(_count(value, known, depth + 1) for value in node.value)
    if count > MOST_NODES:
        raise yaml.YAMLError(f"more than {MOST_NODES:,} values, aliases written out")
    known[id(node)] = count
    return count
