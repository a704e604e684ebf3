"""Reads one answer of a judge: four scores, or the reason why there are none."""

from __future__ import annotations

import json
import re
from typing import Any

from counterfactory.metrics.judge import CRITERIA

TAKEN = 1000  # most objects tried in an answer
THOUGHT = re.compile(r"</?(?:think|thinking)>", re.IGNORECASE)
decoder = json.JSONDecoder()


class BadAnswer(ValueError):  # noqa: N818 (the answer is bad, not the program)
    """An answer without four scores; str() is the reason, `said` the model's text."""

    said = ""


def read_answer(answer: Any) -> tuple[str | None, dict[str, int] | BadAnswer]:
    """Return the custom_id of one answer and its four scores, or the reason why there are none.

    Reads OpenAI's answers (response.body.choices) and answers of servers that put the completion
    directly into `response`.
    """
    if not isinstance(answer, dict):
        return None, BadAnswer("the line is no JSON object")
    if not isinstance(answer.get("custom_id"), str):
        return None, BadAnswer("the line has no custom_id")
    try:
        return answer["custom_id"], _scores(answer)
    except BadAnswer as reason:
        return answer["custom_id"], reason


def read_body(body: Any) -> tuple[str, dict[str, int] | BadAnswer]:
    """Return the text and the scores of a chat completion, or the reason why there are none."""
    _, scores = read_answer({"custom_id": "", "response": body})
    choices = body.get("choices") if isinstance(body, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    message = first.get("message") if isinstance(first, dict) else None
    return (_text(message.get("content")) if isinstance(message, dict) else ""), scores


def _scores(answer: dict[str, Any]) -> dict[str, int]:
    choice = _choice(answer)
    message = choice["message"] if isinstance(choice.get("message"), dict) else {}
    if message.get("refusal"):
        raise BadAnswer("the model refused")
    if choice.get("finish_reason") == "content_filter":
        raise BadAnswer("the content filter stopped the answer")
    cut_off = choice.get("finish_reason") == "length"
    content = _text(message.get("content"))
    if not content.strip() and not cut_off:
        # some servers that separate a model's thoughts put its whole answer here
        content = _text(message.get("reasoning_content")) or _text(message.get("reasoning"))
    try:
        return read_scores(content)
    except BadAnswer as error:
        # blanks up to the limit may follow a complete answer, so try to read it first
        reason = BadAnswer("the answer was cut off (max_tokens)") if cut_off else error
        if not content.strip() and not cut_off:
            reason = BadAnswer("the answer has no content")
        reason.said = content
        raise reason from None


def _choice(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the model's first choice; BadAnswer where there is none to read.

    A reason holds nothing of the line except a status or an error's code.
    """
    error, response = answer.get("error"), answer.get("response")
    if error:
        code = error.get("code") or error.get("type") if isinstance(error, dict) else None
        raise BadAnswer(
            f"the server answered with an error{f' ({str(code)[:40]})' if code else ''}"
        )
    if not isinstance(response, dict):
        prompt = isinstance(answer.get("body"), dict) and "method" in answer
        raise BadAnswer(
            "the line is a prompt, not an answer" if prompt else "the line has no response"
        )
    if response.get("status_code", 200) != 200:
        raise BadAnswer(f"the server answered with status {str(response['status_code'])[:10]}")
    body = response["body"] if isinstance(response.get("body"), dict) else response
    choices = body.get("choices")
    return (
        choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    )


def _text(content: Any) -> str:
    """Return a message's text, which may be in parts; "" where there is none."""
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def read_scores(content: str) -> dict[str, int]:
    """Return four whole numbers from 1 to 10 from a model's text; BadAnswer where it has none.

    Ignores thoughts (`<think>`). Where prose or code fences surround JSON, uses the last object
    with all criteria, since models draft before they answer. 2, 2.0 and "2" are the same number. A
    fraction is refused, because rounding it would be our judgement.
    """
    marks = list(THOUGHT.finditer(content))
    if marks and not marks[-1][0].startswith("</"):
        raise BadAnswer("the thoughts have no end")
    # only the end mark of thoughts is certain: the prompt's template may hold the start mark
    found = _last_object(content[marks[-1].end() :] if marks else content)
    return {name: _whole(name, found[name]) for name in CRITERIA}


def _last_object(text: str) -> dict[str, Any]:
    """Return the last JSON object of a text that has all criteria, with lower-case keys.

    Raises BadAnswer with the text's fault where there is none.
    """
    try:
        whole: Any = json.loads(text)
    except (ValueError, RecursionError):
        whole = None
    reason, at = "the content is no JSON", len(text)
    if whole is not None and not isinstance(whole, dict):
        reason = f"the content is no JSON object but a {type(whole).__name__}"
    for _ in range(TAKEN):
        at = text.rfind("{", 0, at)
        if at < 0:
            break
        try:
            found = decoder.raw_decode(text, at)[0]
        except (ValueError, RecursionError):
            continue
        named = {name.strip().lower(): value for name, value in found.items()}
        missing = [name for name in CRITERIA if name not in named]
        if not missing:
            return named
        reason = f"{missing[0]} is missing"
    raise BadAnswer(reason)


def _whole(name: str, value: Any) -> int:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            value = None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise BadAnswer(f"{name} is no whole number")
    if not 1 <= value <= 10:
        raise BadAnswer(f"{name} is not within 1 to 10")
    return int(value)
