"""Schemas of the tables, and row names that do not depend on order, shard size or cluster."""

from __future__ import annotations

import hashlib
import json
import re

import pyarrow as pa

# Version of ids, seeds and fingerprints: raised when a plan's rows would get other answers.
FORMAT = 2

# the type that Hugging Face `datasets` reads as an Image
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

# in a Parquet schema's metadata: a JSON list of the meanings of the values in column `mask`
REGIONS = "regions"


def _need(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)  # Parquet then refuses to write a null


def with_images(schema: pa.Schema) -> pa.Schema:
    """Return the schema with metadata that lets Hugging Face `datasets` show IMAGE columns as
    pictures.

    The columns must be nullable: `datasets` compares the field with its own, and shows a struct
    where they differ.
    """
    features = {field.name: {"_type": "Image"} for field in schema if field.type == IMAGE}
    told = json.dumps({"info": {"features": features}}).encode()
    return schema.with_metadata({**(schema.metadata or {}), b"huggingface": told})


# Columns of every kind of data.
COMMON = pa.schema(
    [
        _need("id", pa.string()),
        _need("cf_id", pa.string()),
        _need("k", pa.int32()),  # which of a row's counterfactuals
        _need("row", pa.int64()),  # position over all selected input
        ("split", pa.string()),
        ("label", pa.int32()),
        _need("source", pa.int32()),  # class predicted before
        _need("target", pa.int32()),
        _need("predicted", pa.int32()),  # class of the counterfactual as stored
        ("correct", pa.bool_()),  # source == label
        _need("flipped", pa.bool_()),  # predicted == target
        ("reason", pa.string()),  # why it did not flip
        ("p_source_before", pa.float32()),
        ("p_target_before", pa.float32()),
        ("p_source_after", pa.float32()),
        ("p_target_after", pa.float32()),
        ("steps", pa.int32()),
        ("forward", pa.int32()),  # classifier evaluations of this row
        ("backward", pa.int32()),
        ("seconds", pa.float32()),
        _need("method", pa.string()),
        ("latent_before", pa.list_(pa.float32())),
        ("latent_after", pa.list_(pa.float32())),
        # the attributes passed to the method's decoder
        ("condition_before", pa.list_(pa.float32())),
        ("condition_after", pa.list_(pa.float32())),
        ("edits", pa.string()),  # JSON of what was replaced by what, where a method does that
        ("carried", pa.string()),  # JSON of the columns carried along
    ]
)
# Further columns of images.
OF_IMAGES = pa.schema(
    [
        ("original", IMAGE),  # PNG at working size
        ("counterfactual", IMAGE),  # PNG
        ("mask", pa.binary()),  # PNG, grey
        ("regions", pa.binary()),  # PNG: the region of every pixel, where the data have masks
    ]
)
COUNTERFACTUALS = with_images(pa.schema([*COMMON, *OF_IMAGES]))

ATTRIBUTIONS = pa.schema(
    [
        *(
            COUNTERFACTUALS.field(name)
            for name in ("id", "cf_id", "k", "source", "target", "flipped")
        ),
        # Of the descriptors, in their order. Before, after: log-odds of binary ones, standard
        # deviations from the mean of continuous ones; importance: the difference of the predictors'
        # outputs, where log-odds are probabilities.
        ("before", pa.list_(pa.float32())),
        ("after", pa.list_(pa.float32())),
        ("importance", pa.list_(pa.float32())),
    ]
)

# Log-odds are of the target, then of each attribute of the oracle, in its order: F numbers. A
# mixture has some of the C parts of a change. Rows that did not flip have null in all columns but
# the first seven.
INTERVENTIONS = with_images(
    pa.schema(
        [
            *(
                COUNTERFACTUALS.field(name)
                for name in ("id", "cf_id", "k", "source", "target", "correct", "flipped")
            ),
            ("log_odds_before", pa.list_(pa.float32())),  # (F) of the original
            ("log_odds_after", pa.list_(pa.float32())),  # (F) of the counterfactual
            ("mixtures", pa.binary()),  # (M,C) bits, the first one the highest of the first byte
            ("log_odds", pa.list_(pa.float32())),  # (M) of the mixtures
            # (M,F-1) the attributes' log-odds of the mixtures, of sampled rows
            ("attributes_log_odds", pa.list_(pa.float32())),
            ("changed", pa.list_(pa.float32())),  # (C) share of |x'-x| in each part
            ("places", pa.list_(pa.float32())),  # (C,R) share of a part's |x'-x| in each region
            ("kinds", pa.list_(pa.float32())),  # effect of colour, coarse and fine change
            ("kinds_changed", pa.list_(pa.float32())),  # their shares of the change
            ("own_map", pa.list_(pa.float32())),  # (C) effect of each part in this row
            ("core", IMAGE),  # PNG: the original with the core's parts changed
            ("core_cells", pa.list_(pa.int32())),  # the core's parts
            ("core_share", pa.float32()),  # of |x'-x|
            ("core_l1", pa.float32()),  # mean |core-x|, [0,1]
            ("full_l1", pa.float32()),  # mean |x'-x|
            ("core_p_target", pa.float32()),
            ("second_full", pa.bool_()),  # the second classifier sees the target in x'
            ("second_core", pa.bool_()),  # and in the core
            ("evaluations", pa.int32()),  # of the classifier
            # A pair of this row's original and an unrelated row that is classified as the target.
            ("control_mixtures", pa.binary()),
            ("control_log_odds", pa.list_(pa.float32())),
            ("control_ends", pa.list_(pa.float32())),
            ("control_look", pa.list_(pa.float32())),  # effect of the look, and of the whole change
        ]
    )
)


def holds_images(kind: pa.DataType) -> bool:
    """Return whether a column of this type can hold encoded images.

    These are bytes, or a struct with them as `bytes`.
    """
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = (
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_fixed_size_binary,
        pa.types.is_binary_view,
    )
    return any(test(inner) for test in tests)


def row_id(content: bytes, source_key: str) -> str:
    """Return the name of a row whose data set has none.

    It is 32 hex digits of sha256 over the row's source and content.
    """
    key = source_key.encode()
    return hashlib.sha256(len(key).to_bytes(8, "big") + key + content).hexdigest()[:32]


def image_path(name: str) -> str:
    """Return a row's name as a file name, for readers that unpack images to disk.

    It has no separators and no leading dot, and is not long.
    """
    return f"{re.sub(r'[^A-Za-z0-9_.=+-]', '_', name).lstrip('.')[:100] or 'row'}.png"


def counterfactual_id(row_id: str, method_fingerprint: str, target: int, k: int) -> str:
    """Return a counterfactual's name.

    It is 32 hex digits of sha256 over row, method's fingerprint, target class and k.
    """
    return hashlib.sha256(
        json.dumps([row_id, method_fingerprint, int(target), int(k)]).encode()
    ).hexdigest()[:32]


def seed_of(row_id: str, seed: int, k: int = 0) -> int:
    """Return the 63-bit seed of a row's k-th answer.

    It is the same on every redo and for every method and classifier, so that runs with one seed use
    the same noise.
    """
    name = json.dumps([row_id, int(seed), int(k)]).encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:8], "big") >> 1
