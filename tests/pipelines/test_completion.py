"""What a shell is offered for the words typed so far, and the help's groups."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from configs.strict import presets
from pipelines.cli import PURPOSES, main, parser
from pipelines.completion import SCRIPTS, complete

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("audit fac", ["faces"]),
        ("swe", ["sweep"]),
        ("run faces-d", ["faces-dive"]),
        ("train classifier faces-plain-", ["faces-plain-first"]),
        ("train cau", ["causal"]),
        ("prepare dig", ["digits"]),
        ("run faces --eng", ["--engine"]),
        ("run faces --engine l", ["local"]),
        ("run --engine local faces-d", ["faces-dive"]),
        ("run faces --set method=fg", ["method=fgsm", "method=fgsm-demo"]),
        ("run faces --set engine.bat", ["engine.batch="]),
        ("train classifier a --set lo", ["log_every="]),
        ("attribution runs/a --encoder faces-auto", ["faces-autoencoder"]),
        ("show runs/", []),
        ("nothing x", []),
        ("run faces more", []),
    ],
)
def test_words_that_fit(line: str, expected: list[str]) -> None:
    assert sorted(complete(parser(), line.split(" "))) == sorted(expected)


def test_an_empty_word_gets_all_that_fits() -> None:
    assert complete(parser(), ["run", ""]) == list(presets("run"))
    assert set(complete(parser(), [""])) == {name for names in PURPOSES.values() for name in names}


def test_what_bash_splits_at_its_equals_sign_is_one_word() -> None:
    assert complete(parser(), ["run", "a", "--set", "method", "=", "ace-c"]) == [
        "ace-celeba",
        "ace-celebahq",
    ]
    assert "ace-l1" in complete(parser(), ["run", "a", "--set", "method", "="])
    assert complete(parser(), ["run", "--set", "method", "=", "ace-l1", "faces-d"]) == [
        "faces-dive"
    ]


def test_the_help_names_every_command_once(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    for names in PURPOSES.values():
        for name in names:
            assert sum(line[:1] == [name] for line in lines) == 1, name


@pytest.mark.parametrize("shell", SCRIPTS)
def test_a_shell_reads_its_script(
    shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    run = subprocess.run([shell, "-n", str(script)], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")


def test_bash_completes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["completion", "bash"])
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    command = tmp_path / "counterfactory"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m counterfactory "$@"\n')
    command.chmod(0o755)
    typed = (
        f". {script}; COMP_WORDS=(counterfactory run faces-d); COMP_CWORD=2; _counterfactory;"
        ' echo "${COMPREPLY[@]}"'
    )
    run = subprocess.run(
        ["bash", "-c", typed],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    assert run.stdout.strip() == "faces-dive"
