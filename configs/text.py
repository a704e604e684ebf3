"""Reading text and YAML from users' files; text that cannot be used raises a one-line error."""

from __future__ import annotations

import re
from typing import Any

import yaml

DEEPEST, MOST_NODES = 100, 100_000
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # byte order marks
UNUSABLE = re.compile("[\ud800-\udfff\0]")
INT, FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"


class Loader(yaml.SafeLoader):
    """The safe loader with YAML 1.2's numbers: 1e-3 is a number, and 24:32 is text (a slice), not
    1472 in base 60.
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
    """Return the text of bytes in UTF-8, or in UTF-16 where they start with its byte order mark.

    ValueError where they are neither; it names the file and the line.
    """
    encoding = "utf-16" if data[:2] in UTF_16 else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        got = f"the byte 0x{data[error.start]:02x}" if error.start < len(data) else "half of it"
        raise ValueError(
            f"{where} line {line}: expected text in UTF-8, got {got}: save the file as UTF-8"
        ) from None


def read_yaml(text: str) -> Any:
    """Return one YAML value, read by the safe loader above.

    yaml.YAMLError where the text is not YAML, or where no setting can have the value: a key is
    there twice, there are more than 100 levels, a value contains itself, there are more than
    100,000 values with aliases written out, a number has thousands of digits, a date is impossible,
    or a character is half a surrogate pair or NUL.
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
    except (ValueError, OverflowError) as error:  # a bad date, or a number of 5,000 digits
        raise yaml.YAMLError(str(error)[:200]) from None


def _count(node: yaml.Node, known: dict[int, int | None], depth: int) -> int:
    """Return the number of values of a node, with aliases written out.

    known: the numbers of the nodes seen, by id; None while a node is being counted. yaml.YAMLError
    where a node cannot be a setting.
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
