"""Charts and the HTML report."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from onnxnorm.bench import Case, ModelsReport, OpsReport, Protocol, bench_models, run_cases
from onnxnorm.bench.chart import THEME, case_svg, check_plot_path, save_plot
from onnxnorm.bench.report import check_report_path, render_report, save_report
from onnxnorm.errors import UsageError


@pytest.fixture(scope="module")
def ops_report() -> OpsReport:
    quick = Protocol(repeats=1, seconds=1e-4, burst_seconds=1e-4, settle_seconds=0)
    cases = [Case("GroupNorm", (1, 8, 3, 3), groups=groups) for groups in (2, 4)]
    return run_cases([*cases, Case("LayerNorm", (3, 8))], protocol=quick, only=["body", "onnxnorm"])


@pytest.fixture(scope="module")
def models_report(make_model: Callable[..., Path]) -> ModelsReport:
    quick = Protocol(repeats=1, seconds=1e-4, burst_seconds=1e-4, settle_seconds=0)
    return bench_models([make_model()], dims={"batch": 1}, protocol=quick)


@pytest.mark.parametrize("kind", ["ops", "models"])
@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml")], ids=["png", "svg"])
def test_plots(
    kind: str, suffix: str, start: bytes, ops_report: OpsReport, models_report: ModelsReport, tmp_path: Path
) -> None:
    path = tmp_path / f"plot{suffix}"
    save_plot(ops_report if kind == "ops" else models_report, str(path))
    data = path.read_bytes()
    assert data.startswith(start)
    if suffix == ".svg":
        text = data.decode()
        for word in (
            ("GroupNorm 1x8x3x3 float32 groups=2", "LayerNorm") if kind == "ops" else ("net.onnx", "by operator type")
        ):
            assert word in text


def test_a_svg_for_the_page_takes_the_colours_of_the_page(ops_report: OpsReport) -> None:
    text = case_svg(ops_report.cases[0])
    ET.fromstring(text)
    assert "var(--ink, #1c2127)" in text
    for name, colour in THEME.items():
        assert text.count(colour) == text.count(f"var(--{name}, {colour})")
    assert len(set(THEME.values())) == len(THEME)


@pytest.mark.parametrize("kind", ["ops", "models"])
def test_the_report_needs_nothing_else(kind: str, ops_report: OpsReport, models_report: ModelsReport) -> None:
    text = render_report(ops_report if kind == "ops" else models_report, "onnxnorm bench --quick")
    outside = re.findall(r'(?:src|href)="(?!#)[^"]*"|url\((?!#)[^)]*\)|@import|<script|<link', text)
    assert not outside
    assert "prefers-color-scheme: dark" in text
    assert text.count("<svg") == (3 if kind == "ops" else 1)
    assert "onnxnorm bench --quick" in text
    variables = set(re.findall(r"var\(--([a-z-]+)", text))
    for theme in re.findall(r":root \{(.*?)\}", text, flags=re.DOTALL):
        assert variables <= {*re.findall(r"--([a-z-]+):", theme)}


def test_names_are_escaped(ops_report: OpsReport) -> None:
    assert "<b>bold</b>" not in render_report(ops_report, "<b>bold</b>")


def test_clip_paths_of_two_charts_do_not_mix(ops_report: OpsReport) -> None:
    ids = [set(re.findall(r'<clipPath id="([^"]+)"', case_svg(case))) for case in ops_report.cases]
    assert not ids[0] & ids[1]


def test_writes_the_report(ops_report: OpsReport, tmp_path: Path) -> None:
    save_report(ops_report, str(tmp_path / "r.html"))
    assert [item.name for item in tmp_path.iterdir()] == ["r.html"]


def test_wrong_names() -> None:
    with pytest.raises(UsageError, match=r"--plot x\.pdf: the file's name must end in \.png or \.svg"):
        check_plot_path("x.pdf")
    with pytest.raises(UsageError, match=r"--html x\.svg: the file's name must end in \.html"):
        check_report_path("x.svg")
