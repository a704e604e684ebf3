"""Describes an augmentation set in Croissant 1.0, the JSON-LD format of MLCommons for data sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from storage.uri import Digest

CONFORMS = "http://mlcommons.org/croissant/1.0"
CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}


def croissant(
    name: str, description: str, schema: pa.Schema, files: Mapping[str, Digest]
) -> dict[str, Any]:
    """Return the description of a set in Parquet files of one schema.

    files: the digest of each, by its path from the description's folder. Each file is one record
    set, `part-00000` and so on, since the format has no list of files as the source of a field.
    """
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "name": name,
        "description": description,
        "conformsTo": CONFORMS,
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": path,
                "name": path,
                "contentUrl": path,
                "contentSize": f"{digest.bytes} B",
                "encodingFormat": "application/x-parquet",
                "sha256": digest.sha256,
            }
            for path, digest in files.items()
        ],
        "recordSet": [_records(schema, path) for path in files],
    }


def _records(schema: pa.Schema, path: str) -> dict[str, Any]:
    name = path.rpartition("/")[2].partition(".")[0]
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "key": {"@id": f"{name}/id"},
        "field": [_field(field, name, path) for field in schema],
    }


def _field(field: pa.Field, records: str, path: str) -> dict[str, Any]:
    extract: dict[str, str] = {"column": field.name}
    source: dict[str, Any] = {"fileObject": {"@id": path}, "extract": extract}
    kind = field.type
    if pa.types.is_struct(kind):
        source["transform"] = {"jsonPath": "bytes"}
    found = {
        "@type": "cr:Field",
        "@id": f"{records}/{field.name}",
        "name": field.name,
        "dataType": _type(kind),
        "source": source,
    }
    return {**found, "repeated": True} if pa.types.is_list(kind) else found


def _type(kind: pa.DataType) -> str:
    if pa.types.is_struct(kind):
        return "sc:ImageObject"
    kind = kind.value_type if pa.types.is_list(kind) else kind
    if pa.types.is_integer(kind):
        return "sc:Integer"
    return "sc:Float" if pa.types.is_floating(kind) else "sc:Text"
