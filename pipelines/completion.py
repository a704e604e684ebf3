"""Completion in a shell: prints a script that calls this command for the words that may
come next.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence

from pydantic import BaseModel

from configs.audit import AuditConfig
from configs.retrain import RetrainConfig
from configs.schema import PRESET_GROUPS, RunConfig, TrainConfig
from configs.strict import presets

# Each calls `counterfactory completion SHELL WORD ...`; without an answer the shell offers files.
SCRIPTS = {
    "bash": """\
# eval "$(counterfactory completion bash)" in ~/.bashrc
_counterfactory() {
    local IFS=$'\\n'
    COMPREPLY=($(counterfactory completion bash "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
    if [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *= ]]; then compopt -o nospace; fi
}
complete -o bashdefault -o default -F _counterfactory counterfactory
""",
    "zsh": """\
# eval "$(counterfactory completion zsh)" in ~/.zshrc, after compinit
_counterfactory() {
    local -a found
    found=("${(@f)$(counterfactory completion zsh "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -z ${found[1]} ]]; then _files; return; fi
    compadd -- ${found:#*=}
    compadd -S '' -- ${(M)found:#*=}
}
compdef _counterfactory counterfactory
""",
    "fish": """\
# counterfactory completion fish > ~/.config/fish/completions/counterfactory.fish
function __counterfactory
    set -l typed (commandline -opc) (commandline -ct)
    counterfactory completion fish $typed[2..] 2>/dev/null
end
complete -c counterfactory -a '(__counterfactory)'
""",
}
# The folder of configs/ for each argument whose value may be a preset's name.
PRESETS = {
    "config": "run",
    "sweep": "sweep",
    "predictors": "model",
    "encoder": "model",
    "classifier": "model",
}
# The settings of commands whose config is no run's; the presets lie in the folder of that name.
CONFIGS: dict[str, type[BaseModel]] = {
    "train": TrainConfig,
    "retrain": RetrainConfig,
    "audit": AuditConfig,
}


def complete(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[str]:
    """Return the possible values of the last word, given the words before it; [] where it is a path
    or free text.
    """
    joined, cut = _join(words)
    *before, last = joined or [""]
    option: argparse.Action | None = None  # the option whose value comes next
    command, place = "", 0
    for word in before:
        if option is not None:
            option = None
        elif word.startswith("-"):
            found = parser._option_string_actions.get(word)
            option = found if found is not None and found.nargs is None else None
        else:
            action = _positional(parser, place)
            if isinstance(action, argparse._SubParsersAction):
                if word not in action.choices:
                    return []
                command, parser, place = command or word, action.choices[word], 0
            else:
                place += 1
    if option is None and last.startswith("-"):
        fitting: Iterable[str] = parser._option_string_actions
    else:
        fitting = _values(command, option or _positional(parser, place), last)
    return [text[cut:] for text in fitting if text.startswith(last)]


def _join(words: Sequence[str]) -> tuple[list[str], int]:
    """Join each `key=value`, which bash splits at its `=`, into one word. Returns the words, and
    the number of characters of the last word before the part that bash completes.
    """
    joined: list[str] = []
    open_end = glued = False
    for word in words:
        glued = bool(joined) and (word == "=" or (open_end and word != ""))
        joined[-1:] = [joined[-1] + word] if glued else [*joined[-1:], word]
        open_end = word == "="
    return joined, joined[-1].index("=") + 1 if glued else 0


def _positional(parser: argparse.ArgumentParser, place: int) -> argparse.Action | None:
    """Return the positional argument at a place; None where there is none."""
    found = [action for action in parser._actions if not action.option_strings]
    return found[place] if place < len(found) else None


def _values(command: str, action: argparse.Action | None, last: str) -> Iterable[str]:
    """Return the possible values of an argument."""
    if action is None:
        return ()
    if action.choices is not None:
        return [str(choice) for choice in action.choices]
    if action.dest == "set":
        key, equals, _ = last.partition("=")
        if not equals:
            return [f"{name}=" for name in _settings(CONFIGS.get(command, RunConfig))]
        return (
            [f"{key}={name}" for name in presets(PRESET_GROUPS[key])]
            if key in PRESET_GROUPS
            else ()
        )
    if action.dest in PRESETS:
        return presets(command if command in CONFIGS else PRESETS[action.dest])
    return ()


def _settings(model: type[BaseModel]) -> Iterator[str]:
    """Yield the dotted names of a config's settings."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from (f"{name}.{deeper}" for deeper in _settings(inner))
        elif name not in PRESET_GROUPS:
            yield name
    yield from (name for name in model.model_fields if name in PRESET_GROUPS)
