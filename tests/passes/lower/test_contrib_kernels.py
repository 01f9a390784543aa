"""The table of ONNX Runtime's own operators on the CPU, against the installed ONNX Runtime."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from onnxnorm.passes.contrib import REWRITTEN
from onnxnorm.passes.lower import contrib_kernels
from onnxnorm.passes.lower.contrib_kernels import CPU_TYPES, installed_kernels, problems, runs_on_cpu


def test_the_installed_one_has_every_kernel_of_the_table() -> None:
    assert list(problems()) == []


def test_what_the_table_has_none_for_has_none() -> None:
    found = installed_kernels()
    assert {name for name, types in CPU_TYPES.items() if not types} & found.keys() == set()
    assert CPU_TYPES.keys() >= REWRITTEN


def test_a_missing_kernel_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert contrib_kernels.main() == 0
    monkeypatch.setitem(CPU_TYPES, "GroupNorm", frozenset({ir.DataType.FLOAT}))
    assert contrib_kernels.main() == 1
    assert "GroupNorm: no kernel for tensor(float)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("op_type", "dtype", "runs"),
    [
        ("SkipLayerNormalization", ir.DataType.FLOAT16, True),
        ("SkipLayerNormalization", ir.DataType.BFLOAT16, False),
        ("QuickGelu", ir.DataType.FLOAT16, True),
        ("QuickGelu", ir.DataType.BFLOAT16, False),
        ("GroupNorm", ir.DataType.FLOAT, False),
        ("GroupNorm", None, False),
        ("SkipLayerNormalization", None, True),
        ("Unheard", ir.DataType.BFLOAT16, True),
    ],
)
def test_what_runs(op_type: str, dtype: ir.DataType | None, runs: bool) -> None:
    assert runs_on_cpu(op_type, dtype) is runs
