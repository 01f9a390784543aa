"""Candidates are verified before they are timed, and what cannot run says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from onnxnorm.bench import Case, Protocol, default_cases, ops, run_cases
from onnxnorm.bench.candidate import Candidate, Ready, SameAs, Unavailable, Workbench
from onnxnorm.bench.candidates import _within, candidates
from onnxnorm.bench.case import inference_specs, make_data
from onnxnorm.bench.table import case_table, header, remarks
from onnxnorm.bench.torch_forms import torch_form
from onnxnorm.errors import UsageError
from onnxnorm.runtime.arrays import from_torch, to_torch

CASE = Case("GroupNorm", (2, 8, 5, 7), groups=4)


def _giving(change: Callable[[Any], Any]) -> Callable[[Workbench], Ready]:
    """A candidate whose output is the truth, changed."""

    def prepare(bench: Workbench) -> Ready:
        outputs = [change(item.astype(np.float32)) for item in bench.data.truth]
        return Ready(lambda: None, lambda: outputs, "made up")

    return prepare


def _raising(error: Exception) -> Callable[[Workbench], Ready]:
    def prepare(bench: Workbench) -> Ready:
        raise error

    return prepare


def _with(monkeypatch: pytest.MonkeyPatch, *more: Candidate) -> None:
    copy = candidates()[0]
    monkeypatch.setattr(ops, "candidates", lambda provider: (copy, *more))


def test_wrong_candidates_are_found_and_marked(
    monkeypatch: pytest.MonkeyPatch, fast: Protocol, check_schema: Callable[[Any], None]
) -> None:
    def shifted(y: Any) -> Any:
        y.flat[3] += 1e-5
        return y

    def broken(y: Any) -> Any:
        y.flat[3] = np.nan
        return y

    _with(
        monkeypatch,
        Candidate("onnxnorm", "ours", _giving(shifted), ours=True),
        Candidate("good", "good", _giving(lambda y: y)),
        Candidate("off", "off", _giving(shifted)),
        Candidate("nan", "nan", _giving(broken)),
        Candidate("shape", "shape", _giving(lambda y: y[:1])),
        Candidate("far", "far", _giving(lambda y: y * 1.5)),
        Candidate("twin", "twin", _raising(SameAs("onnxnorm"))),
        Candidate("absent", "absent", _raising(Unavailable("not installed"))),
        Candidate("crash", "crash", _raising(RuntimeError("no kernel\nat all"))),
    )
    report = run_cases([CASE], protocol=fast)
    result = report.cases[0]
    rows = {row.key: row for row in result.rows}
    assert {key: row.status for key, row in rows.items()} == {
        "copy": "ok",
        "onnxnorm": "wrong",
        "good": "ok",
        "off": "inaccurate",
        "nan": "wrong",
        "shape": "wrong",
        "far": "wrong",
        "twin": "same",
        "absent": "not available",
        "crash": "not available",
    }
    assert not report.passed
    assert rows["crash"].reason == "RuntimeError: no kernel at all"
    assert rows["onnxnorm"].timing is not None, "a wrong candidate is timed all the same"
    assert rows["nan"].distance == float("inf")
    assert result.fastest is not None
    assert result.fastest.key in ("good", "off")
    assert result.ratio(rows["twin"], "onnxnorm") == 1.0
    assert result.ratio(rows["absent"], "copy") is None
    check_schema(report.to_json())
    text = "\n".join(remarks(result))
    assert "ours: wrong: distance 1e-05 from float64" in text.replace("9.9e-06", "1e-05") or "ours: wrong" in text
    assert "absent: not available: not installed" in text
    assert "twin: the same as ours" in text


def test_only_our_own_mistakes_fail(monkeypatch: pytest.MonkeyPatch, fast: Protocol) -> None:
    _with(monkeypatch, Candidate("far", "far", _giving(lambda y: y * 1.5)))
    assert run_cases([CASE], protocol=fast).passed


@pytest.mark.parametrize("op", ["GroupNorm", "SkipLayerNorm"])
def test_the_real_candidates(op: str, fast: Protocol, check_schema: Callable[[Any], None]) -> None:
    case = default_cases([op], shapes=[(2, 8, 5, 7)], groups=4 if op == "GroupNorm" else None, activations=["silu"])
    report = run_cases(case, protocol=fast, without=["compile", "openvino"], threads=1)
    assert report.passed
    rows = {row.key: row for row in report.cases[0].rows}
    for key in ("copy", "body", "ort-18", "torch"):
        assert rows[key].status == "ok", rows[key].reason
        assert rows[key].timing is not None
    for row in rows.values():
        assert (row.timing is None) == (row.status in ("same", "not available"))
        assert row.status in ("ok", "same") or row.reason
    assert "Sigmoid" in rows["ort-18"].note or "operators" in rows["ort-18"].note
    check_schema(report.to_json())
    assert report.machine["threads"] == 1


def test_a_dtype_without_kernels_is_told(fast: Protocol) -> None:
    case = default_cases(["GroupNorm"], shapes=[(2, 8, 5)], dtypes=["bfloat16"], groups=4, activations=["silu"])
    report = run_cases(case, protocol=fast, only=["ort-18", "body"])
    rows = {row.key: row for row in report.cases[0].rows}
    assert set(rows) == {"copy", "body", "ort-18"}
    assert rows["body"].status == "ok"
    assert rows["ort-18"].status == "not available"
    assert "bfloat16" in rows["ort-18"].reason


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("op", sorted(inference_specs()))
def test_torch_forms_compute_the_norm(op: str, layout: str) -> None:
    spec = inference_specs()[op]
    names = {item.name for item in spec.attributes}
    last = layout == "last" and "channels_last" in names
    case = default_cases(
        [op],
        shapes=[(2, 5, 3, 8) if last else (2, 8, 5, 3)],
        dtypes=["float64"],
        activations=["gelu"] if "activation" in names else [],
        groups=4 if "num_groups" in names else None,
        axes=(-1, 1) if layout == "last" and "axes" in names else None,
        channels_last=last,
    )[0]
    data = make_data(case)
    form = torch_form(op, case.attributes)
    assert form is not None, "every norm so far has a PyTorch form"
    outputs = form(*(to_torch(array) for array in data.inputs))
    assert len(outputs) == len(data.truth)
    for have, want in zip(outputs, data.truth, strict=True):
        assert have.is_contiguous()
        scale = np.abs(want).max()
        np.testing.assert_allclose(from_torch(have), want, rtol=0, atol=1e-12 * scale)


def test_a_norm_without_a_torch_form_has_none() -> None:
    assert torch_form("NewNorm", {}) is None


def test_threads_of_torch_are_put_back(fast: Protocol) -> None:
    before = torch.get_num_threads()
    run_cases([CASE], protocol=fast, only=["torch"], threads=before + 1)
    assert torch.get_num_threads() == before


def test_compiling_is_cut_short() -> None:
    def forever() -> None:
        while True:
            pass

    with pytest.raises(Unavailable, match=r"compiling took more than 0\.05 s"), _within(0.05, "compiling"):
        forever()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"only": ["tvm"]}, "there is no candidate 'tvm'; there are copy, onnxnorm, body"),
        ({"without": ["tvm"]}, "there is no candidate 'tvm'"),
        ({"provider": "tpu"}, "provider is 'tpu'"),
    ],
)
def test_mistakes(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        run_cases([CASE], **options)


@pytest.mark.parametrize("width", [80, 140])
def test_the_table_fits(width: int, fast: Protocol) -> None:
    from rich.console import Console

    report = run_cases([CASE], protocol=fast, only=["body", "torch"])
    screen = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    screen.print(header(report.machine))
    screen.print(case_table(report.cases[0], width))
    screen.file.close()
    lines = screen.export_text().splitlines()
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "PyTorch eager" in text
    assert ("what ran" in text) == (width == 140)
    assert "…" not in "".join(line for line in lines if "PyTorch" in line)
