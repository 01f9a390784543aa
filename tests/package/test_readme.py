"""The README's commands, table and example are the real ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from onnxnorm.spec.document import ops_table

README = Path(__file__).resolve().parents[2] / "README.md"
pytestmark = pytest.mark.skipif(not README.is_file(), reason="needs a checkout")


def _between(start: str, end: str) -> str:
    text = README.read_text()
    first = text.index(start) + len(start)
    return text[first : text.index(end, first)]


def test_the_table_of_ops_is_the_specs() -> None:
    assert _between("<!-- table: ops -->\n", "\n<!-- end of table -->") == ops_table()


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(_between("```python\n", "```"), "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "fold/batch-norm-into-conv" in printed
    assert "activation = silu" in printed
    assert (tmp_path / "net.onnx").is_file()


def test_ci_runs_the_second_command() -> None:
    script = (README.parent / ".ci" / "run").read_text()
    assert "command: tests" in script
    (command,) = re.findall(r"<!-- command: tests -->\n```bash\n(.*)\n```", README.read_text())
    assert command.startswith("python3 -m venv .venv && ")
    assert command.endswith("-m pytest")
