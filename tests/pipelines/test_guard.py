"""The guard at the command line: a fault of our own is one line, a file and its own exit code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import cli


def test_a_fault_of_our_own_is_a_line_and_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("aws_secret_access_key=abc123\nand more")

    monkeypatch.setattr("pipelines.report.show.show", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cli.main(["show", str(tmp_path)]) == os.EX_SOFTWARE
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("counterfactory: a fault of counterfactory's own, KeyError: ")
    (file,) = tmp_path.glob("counterfactory-*.txt")
    assert str(file) in line
    assert "in broken" in file.read_text()


def test_a_reader_that_has_enough_is_no_fault() -> None:
    code = (
        "import sys; from pipelines import cli\n"
        "cli.parser = lambda: type('P', (), {'parse_args': lambda self, argv: type('A', (), {"
        "'version': False, 'command': 'x', 'job': staticmethod(lambda args: [print('y' * 99)"
        " for _ in range(99999)] and 0)})()})()\nsys.exit(cli.main([]))"
    )
    run = subprocess.run(
        f'"{sys.executable}" -c "$CODE" | head -c 5; echo " ${{PIPESTATUS[0]}}"',
        shell=True,
        executable="/bin/bash",
        env={**os.environ, "CODE": code},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == "yyyyy 141\n"
    assert not re.search("Traceback|fault", run.stderr)
