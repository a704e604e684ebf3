"""What a vision-language judge is asked about one pair, and what its answer must look like."""

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
# The numbers as an enum: every server that takes strict schemas knows it, while not all know
# minimum and maximum.
SCHEMA = {
    "type": "object",
    "properties": {name: {"type": "integer", "enum": list(range(1, 11))} for name in CRITERIA},
    "required": list(CRITERIA),
    "additionalProperties": False,
}
FENCE = re.compile(r"\A```[A-Za-z]*\s*(.*?)\s*```\Z", re.DOTALL)


class BadAnswer(ValueError):  # noqa: N818 (the answer is bad, not the program)
    """An answer that gives no four scores; str() is the reason."""


def read_wording(name: str) -> str:
    """A wording of configs/judge by name, or a .yaml file by path; its `prompt` may hold {source}
    and {target}.
    """
    found = read_preset("judge", name)
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
    """One line of a batch file (OpenAI's format, which vLLM's run-batch reads too) for a row with
    both PNGs.
    """
    said = {"source": source, "target": target}
    text = re.sub(r"\{(source|target)\}", lambda found: said[found[1]], wording)
    body = {
        "model": settings.model,
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": f"{text}\n{ANSWER}"},
                    {"type": "text", "text": "The original image:"},
                    _picture(row["original"]["bytes"]),
                    {"type": "text", "text": "The counterfactual image:"},
                    _picture(row["counterfactual"]["bytes"]),
                ],
            }
        ],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "counterfactual_scores", "strict": True, "schema": SCHEMA},
        },
        "max_tokens": settings.max_tokens,
        "temperature": 0,
    }
    line = {
        "custom_id": row["cf_id"],
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": body,
    }
    return json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _picture(png: bytes) -> dict[str, Any]:
    return {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{base64.b64encode(png).decode()}"},
    }


def read_line(line: bytes) -> tuple[str | None, dict[str, int] | BadAnswer]:
    """The custom_id and the four scores of one line of an answer file, or why there are none.

    Takes OpenAI's lines (response.body.choices) and those of servers that put the completion
    straight into `response`.
    """
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        return None, BadAnswer("the line is no JSON")
    if not isinstance(answer, dict) or not isinstance(answer.get("custom_id"), str):
        return None, BadAnswer("the line has no custom_id")
    try:
        return answer["custom_id"], read_scores(_content(answer))
    except BadAnswer as reason:
        return answer["custom_id"], reason


def read_scores(content: str) -> dict[str, int]:
    """Four whole numbers from 1 to 10 out of a model's text; BadAnswer otherwise.

    A code fence and white space around the JSON are forgiven. A fraction is not, nor 8.0: rounding
    it would be our judgement, and a model that gives one has not kept to the schema.
    """
    text = content.strip()
    fenced = FENCE.match(text)
    try:
        found = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        raise BadAnswer("the content is no JSON") from None
    if not isinstance(found, dict):
        raise BadAnswer(f"the content is no JSON object but a {type(found).__name__}")
    for name in CRITERIA:
        if name not in found:
            raise BadAnswer(f"{name} is missing")
        if type(found[name]) is not int:  # a bool is an int to isinstance
            raise BadAnswer(f"{name} is no whole number")
        if not 1 <= found[name] <= 10:
            raise BadAnswer(f"{name} is not within 1 to 10")
    return {name: found[name] for name in CRITERIA}


def _content(answer: dict[str, Any]) -> str:
    """The model's text; reasons hold no more of the line than a status, an error's code or a finish
    reason.
    """
    error, response = answer.get("error"), answer.get("response")
    if error:
        code = error.get("code") or error.get("type") if isinstance(error, dict) else None
        raise BadAnswer(
            f"the server answered with an error{f' ({str(code)[:40]})' if code else ''}"
        )
    if not isinstance(response, dict):
        raise BadAnswer("the line has no response")
    if response.get("status_code", 200) != 200:
        raise BadAnswer(f"the server answered with status {str(response['status_code'])[:10]}")
    body = response["body"] if isinstance(response.get("body"), dict) else response
    choices = body.get("choices")
    choice = (
        choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    )
    message = choice["message"] if isinstance(choice.get("message"), dict) else {}
    if message.get("refusal"):
        raise BadAnswer("the model refused")
    content = message.get("content")
    if isinstance(content, list):  # content parts
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    if choice.get("finish_reason") == "length":
        raise BadAnswer("the answer was cut off (max_tokens)")
    if not isinstance(content, str) or not content.strip():
        raise BadAnswer("the answer has no content")
    return content
