"""What a person gets to see: the table, the progress lines, the report."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from rich.console import Console

from models import all_models
from models.charts import LogScale
from models.latency import Block, Latency, measure, summarize
from models.progress import Bar, Lines, watcher_for
from models.proofs import MEANINGS
from models.report import render_report, write_report
from models.result import ModelResult
from models.table import Marks, marks_for, render

WORDS = Marks("ok", "NO")


def with_latency(result: ModelResult, *, quiet: bool) -> ModelResult:
    """A copy whose latencies are 4, 2 and 1 ms."""
    ways = {
        key: replace(way, latency=Latency(value, value, value, 10, quiet))
        for (key, way), value in zip(result.ways.items(), (4.0, 2.0, 1.0), strict=True)
    }
    return replace(result, ways=ways)


def test_table(ran, job_of) -> None:
    text = render(job_of(with_latency(ran.result, quiet=True)), WORDS).plain
    assert max(map(len, text.splitlines())) <= 100
    assert re.search(r"^ok +group_norm_cnn +\d+ +15 +5 +99\.\d\d% .* 4\.00 +2\.00 +1\.00$", text, re.MULTILINE)
    assert "lib 1 ok   no-lib 1 ok   ref 1 ok   checker 1 ok   train 1 ok" in text
    assert text.splitlines()[-1].startswith("passed: 1 of 1 models")
    assert "~" not in text


def test_a_busy_machine_gives_no_speed(ran, job_of) -> None:
    job = job_of(with_latency(ran.result, quiet=False))
    text = render(job, WORDS).plain
    assert "~1.00" in text
    assert "quiet machine" in text
    html = render_report(job)
    assert "4.00x" not in html
    assert "quiet machine" in html


def test_headings_stand_over_their_columns(job_of) -> None:
    spanning, header, rule, *_ = render(job_of(), WORDS).plain.splitlines()
    assert len(header) == len(rule) <= 100
    assert re.findall(r"\S+", header) == [
        "model",
        "plain",
        "ours",
        "left",
        "PyTorch",
        "ours",
        "PyTorch",
        "plain",
        "ours",
    ]
    ends = [match.end() for match in re.finditer(r"\S+", header)]
    for heading, column in {"nodes": 2, "norms": 3, "distance": 5, "median ms": 8}.items():
        assert spanning.index(heading) + len(heading) == ends[column]


def test_every_name_fits_its_column() -> None:
    assert max(map(len, all_models())) < 30


def test_table_of_a_model_that_went_nowhere(job_of) -> None:
    failed = ModelResult(all_models()["group_norm_cnn"], problems=["step train: RuntimeError: no"])
    job = job_of(failed)
    assert job.exit_status == 1
    lines = render(job, WORDS).plain.splitlines()
    assert lines[-2:] == ["group_norm_cnn: step train: RuntimeError: no", "FAILED: 1 of 1 models (12 s)"]
    assert "step train: RuntimeError: no" in render_report(job)


def test_no_models_is_no_pass(job_of) -> None:
    assert job_of().exit_status == 1


class Links(HTMLParser):
    """Collects tags and everything that could make a browser fetch something."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.references += [value or "" for name, value in attrs if name in ("href", "src", "srcset", "data", "action")]


def test_the_report_needs_nothing_else(ran, job_of) -> None:
    html = render_report(job_of(ran.result))
    links = Links()
    links.feed(html)
    assert all(reference.startswith("#") for reference in links.references)
    assert not links.tags & {"script", "link", "iframe", "img", "object", "embed", "base"}
    assert "@import" not in html
    assert "url(" not in html
    assert "://" not in html
    assert str(ran.folder) not in html


def test_the_report_says_what_was_found(ran, job_of) -> None:
    html = render_report(job_of(ran.result))
    assert "a &lt;fast&gt; one" in html, "texts are escaped"
    assert html.count('<span class="good" title="holds">') == 1 + len(MEANINGS)
    assert "prefers-color-scheme: dark" in html
    for decision in ran.result.decisions:
        assert decision.node in html
    assert html.count("PyTorch float32</span>") == len(ran.result.checks)


def test_the_report_is_whole_or_not_there(ran, job_of, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("models.report.os.replace", full)
    with pytest.raises(OSError, match="no space"):
        write_report(job_of(ran.result), tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_log_scale() -> None:
    scale = LogScale.around([2e-7, 3e-6])
    assert (scale.low, scale.high) == (-7, -5)
    assert scale.percent(1e-6) == pytest.approx(50)
    assert scale.percent(0) == scale.percent(1e-9) == 0
    assert scale.percent(float("inf")) == 100
    assert LogScale.around([0.0]).decades == [-8, -7, -6, -5]


def test_progress_in_a_log_is_plain_lines() -> None:
    stream = io.StringIO()
    watcher = watcher_for(Console(file=stream, force_terminal=False), ["one", "two"])
    assert isinstance(watcher, Lines)
    watcher.begin("two", "train")
    watcher.advance(0.5)
    watcher.end("loss 0.1")
    watcher.fail("two", "off")
    watcher.close()
    assert re.fullmatch(r"\[2/2\] two: train +0\.0 s   loss 0\.1\ntwo: FAILED: off\n", stream.getvalue())


def test_progress_on_a_terminal_is_a_bar() -> None:
    watcher = watcher_for(Console(file=io.StringIO(), force_terminal=True, width=100), ["one"])
    assert isinstance(watcher, Bar)
    watcher.begin("one", "measure")
    watcher.end("")
    watcher.close()
    assert watcher.progress.tasks[0].percentage == 100


def test_marks_that_the_console_can_write() -> None:
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    assert marks_for(Console(file=ascii_only)) == WORDS
    assert marks_for(Console(file=io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))).good == "✓"


def test_latency_counts_quiet_blocks_only() -> None:
    blocks = [Block((1.0, 3.0), 0.0), Block((50.0, 70.0), 0.4)]
    assert summarize(blocks, quiet=True).median == 2.0
    assert summarize(blocks, quiet=False).median == 26.5
    busy, fine = summarize(blocks, quiet=False), summarize(blocks, quiet=True)
    assert fine.speed_against(fine) == 1.0
    assert fine.speed_against(busy) is None
    assert busy.speed_against(fine) is None


def test_latency_ends_on_a_machine_that_is_never_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**6))
    monkeypatch.setattr("models.latency.waited_seconds", lambda: float(next(clock)))
    found = measure({"one": lambda: None, "two": lambda: None}, limit=0.1)
    assert not any(latency.quiet for latency in found.values())


def test_latency_alternates() -> None:
    called: list[str] = []
    measure({"one": lambda: called.append("one"), "two": lambda: called.append("two")}, blocks=2)
    first_of_turns = [name for name, before in zip(called, ["", *called], strict=False) if name != before]
    assert first_of_turns[:3] == ["one", "two", "one"]
