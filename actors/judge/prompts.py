"""The prompt for a vision-language judge about one pair, and the format of its answer.

Models that think before they answer need other parameters: their thoughts count as tokens, under
another name, and they refuse a temperature. OpenAI's models of this kind are known by their names.
"""

from __future__ import annotations

import base64
import json
import re
from typing import Any

from configs.schema import JudgeConfig
from configs.strict import UserError, read_preset
from counterfactory.metrics.judge import CRITERIA

ANSWER = (
    "Answer with a JSON object and nothing else: the keys "
    + ", ".join(CRITERIA)
    + ", each with a whole number from 1 (worst) to 10 (best)."
)
# The numbers are an enum: every server that accepts strict schemas knows it, but not all know
# minimum and maximum.
SCHEMA = {
    "type": "object",
    "properties": {name: {"type": "integer", "enum": list(range(1, 11))} for name in CRITERIA},
    "required": list(CRITERIA),
    "additionalProperties": False,
}


REASONING = re.compile(r"(.*/)?(o\d+\b|gpt-[5-9](?!.*chat))", re.IGNORECASE)
TOKENS, TOKENS_WITH_THOUGHTS = 300, 4000


def read_wording(name: str) -> str:
    """Return a wording of configs/judge by name, or of a .yaml file by path.

    Its `prompt` may hold {source} and {target}.
    """
    try:
        found = read_preset("judge", name)
    except UserError as error:
        raise UserError(f"judge.wording: {error}") from None
    if list(found) != ["prompt"] or not isinstance(found["prompt"], str):
        raise UserError(
            f"judge.wording: expected one key, `prompt`, a text, in {name}, got"
            f" {', '.join(found) or 'none'}"
        )
    unknown = set(re.findall(r"\{(\w*)\}", found["prompt"])) - {"source", "target"}
    if unknown:
        raise UserError(
            f"judge.wording: expected {{source}} and {{target}} in {name}, got"
            f" {{{sorted(unknown)[0]}}}"
        )
    return str(found["prompt"]).strip()


def request(
    row: dict[str, Any], wording: str, source: str, target: str, settings: JudgeConfig
) -> bytes:
    """Return one line of a batch file for a row, with both PNGs.

    The format is OpenAI's, which vLLM's run-batch reads too.
    """
    pictures = row["original"]["bytes"], row["counterfactual"]["bytes"]
    line = {
        "custom_id": row["cf_id"],
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": body_of(pictures, wording, source, target, settings),
    }
    return json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def body_of(
    pictures: tuple[bytes, bytes],
    wording: str,
    source: str,
    target: str,
    settings: JudgeConfig,
    *,
    swapped: bool = False,
) -> dict[str, Any]:
    """Return the body of one request: wording, both PNGs, and the format of the answer.

    swapped: the counterfactual comes before the original; both are named all the same.
    """
    shown = [
        [{"type": "text", "text": f"The {name} image:"}, _picture(png, settings.detail)]
        for name, png in zip(("original", "counterfactual"), pictures, strict=True)
    ]
    return {
        "model": settings.model,
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": text_of(wording, source, target)},
                    *(part for parts in (shown[::-1] if swapped else shown) for part in parts),
                ],
            }
        ],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "counterfactual_scores", "strict": True, "schema": SCHEMA},
        },
        **sampling(settings),
    }


def text_of(wording: str, source: str, target: str) -> str:
    """Return the text of a request: the wording with its classes, and how to answer."""
    said = {"source": source, "target": target}
    text = re.sub(r"\{(source|target)\}", lambda found: said[found[1]], wording)
    return f"{text}\n{ANSWER}"


def sampling(settings: JudgeConfig) -> dict[str, Any]:
    """Return the request's parameters for length and temperature.

    Skips null settings, so that the server's own default holds.
    """
    thinks = settings.reasoning
    if thinks is None:
        thinks = REASONING.match(settings.model) is not None
    most, heat = settings.max_tokens, settings.temperature
    if most == "auto":
        most = TOKENS_WITH_THOUGHTS if thinks else TOKENS
    if heat == "auto":
        heat = None if thinks else 0
    given = {
        "max_completion_tokens" if thinks else "max_tokens": most,
        "temperature": heat,
        "reasoning_effort": settings.effort,
    }
    return {name: value for name, value in given.items() if value is not None}


def _picture(png: bytes, detail: str | None) -> dict[str, Any]:
    url = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return {
        "type": "image_url",
        "image_url": {"url": url, **({"detail": detail} if detail else {})},
    }
