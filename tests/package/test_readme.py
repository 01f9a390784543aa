"""The README's commands, table and example are the real ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from onnxnorm.passes.pipeline import Result, rule_ids
from onnxnorm.spec.catalogue import catalogue_table
from onnxnorm.spec.document import ops_table

README = Path(__file__).resolve().parents[2] / "README.md"
pytestmark = pytest.mark.skipif(not README.is_file(), reason="needs a checkout")


def _between(start: str, end: str) -> str:
    text = README.read_text()
    first = text.index(start) + len(start)
    return text[first : text.index(end, first)]


def test_the_table_of_ops_is_the_specs() -> None:
    assert _between("<!-- table: ops -->\n", "\n<!-- end of table -->") == ops_table()


def test_the_catalogue_is_the_one_that_is_tested() -> None:
    assert _between("<!-- table: catalogue -->\n", "\n<!-- end of catalogue -->") == catalogue_table()


def test_every_rule_is_named() -> None:
    named = re.findall(r"`((?:fold|fuse|lower)/[a-z0-9-]+)`", _between("<!-- rules -->", "<!-- /rules -->"))
    assert sorted(named) == sorted(rule_ids())


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(_between("```python\n", "```"), "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "fold/batch-norm-into-conv" in printed
    assert "activation = silu" in printed
    assert (tmp_path / "net.onnx").is_file()
    exec(compile(_between("<!-- example: training -->\n```python\n", "```"), "README.md", "exec"), names)
    result = names["result"]
    assert isinstance(result, Result)
    assert result.state["1.running_mean"] == "next.1.running_mean"


def test_the_example_of_recalibration_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(_between("<!-- example: recalibrate -->\n```python\n", "```"), "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "(batches = 5, values per channel = 90000)" in printed
    assert "fold/batch-norm-into-conv" in printed
    assert (tmp_path / "deployed.onnx").is_file()
    state = names["state"]
    assert isinstance(state, dict)
    assert state["1.num_batches_tracked"] == 5


def test_ci_runs_the_second_command() -> None:
    script = (README.parent / ".ci" / "run").read_text()
    assert "command: tests" in script
    (command,) = re.findall(r"<!-- command: tests -->\n```bash\n(.*)\n```", README.read_text())
    assert command.startswith("python3 -m venv .venv && ")
    assert command.endswith("-m pytest")
