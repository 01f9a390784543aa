"""What a process may do with the library: several sessions, threads, children, copies and versions of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from .building import OLD_VERSION, old_library
from .conftest import SPECS, TYPES, assert_close, available_levels, model, op_table, run, session

ROOT = Path(__file__).resolve().parents[2]
#: What the scripts below begin with: a model of one group norm, its truth, and a session with a library.
PRELUDE = """
import os, sys, numpy as np, onnxruntime as ort
from pathlib import Path
import onnxnorm
from onnxnorm.model_file import serialized
from onnxnorm.norms import all_specs
from onnxnorm.spec.sample_model import sample_model

SPEC = all_specs()["GroupNorm"]
SAMPLE = next(iter(SPEC.samples()))
FEEDS = {item.name: value.astype(np.float32) for item, value in zip(SPEC.inputs, SAMPLE.inputs, strict=True)}
TRUTH = SPEC.reference([value.astype(np.float64) for value in FEEDS.values()], SAMPLE.attributes)[0]
CONTENT = serialized(sample_model(SPEC, SAMPLE, body=False))

def session(library, threads=2):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.register_custom_ops_library(str(library))
    return ort.InferenceSession(CONTENT, options, providers=["CPUExecutionProvider"])

def check(current):
    (y,) = current.run(None, FEEDS)
    assert np.abs(y - TRUTH).max() <= 4e-7 * np.abs(TRUTH).max()

def refused(call, *words):
    try:
        call()
    except Exception as error:
        text = " ".join(str(error).split())
        assert all(word in text for word in words), text
        return error
    raise AssertionError("nothing was refused")
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="fork, and copies found by their ELF headers")


def script(code: str, *arguments: object) -> None:
    """Runs code in a process of its own; ``sys.argv`` holds the arguments."""
    command = [sys.executable, "-W", "ignore", "-c", PRELUDE + textwrap.dedent(code), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return old_library(tmp_path_factory)


@pytest.fixture
def copy(library: Path, tmp_path: Path) -> Path:
    """The same version from another path."""
    return Path(shutil.copy(library, tmp_path / "copy.so"))


def test_a_second_version_is_refused_in_the_same_and_in_another_session(library: Path, old: Path) -> None:
    """Through onnxruntime alone, in either order."""
    for first, second in ((library, old), (old, library)):
        script(
            f"""
            first, second = sys.argv[1:]
            kept = session(first)
            check(kept)
            words = ["two versions in one process", {OLD_VERSION!r}, os.path.realpath(first), os.path.realpath(second)]
            refused(lambda: session(second), *words, "another process")
            options = ort.SessionOptions()
            options.register_custom_ops_library(first)
            refused(lambda: options.register_custom_ops_library(second), *words)
            check(ort.InferenceSession(CONTENT, options))
            check(session(first))
            check(kept)
            """,
            first,
            second,
        )


def test_a_second_version_is_refused_by_register(library: Path, old: Path) -> None:
    script(
        f"""
        first, second = sys.argv[1:]
        os.environ["ONNXNORM_LIBRARY"] = first
        check(onnxnorm.InferenceSession(CONTENT))
        os.environ["ONNXNORM_LIBRARY"] = second
        words = ["two versions in one process", {OLD_VERSION!r}, os.path.realpath(first), os.path.realpath(second)]
        for call in (lambda: onnxnorm.register(ort.SessionOptions()), lambda: onnxnorm.InferenceSession(CONTENT)):
            error = refused(call, *words)
            assert type(error) is onnxnorm.UsageError and "\\n" not in str(error)
        os.environ["ONNXNORM_LIBRARY"] = first
        check(onnxnorm.InferenceSession(CONTENT))
        """,
        library,
        old,
    )


def test_a_second_version_is_refused_in_a_child_of_fork(library: Path, old: Path) -> None:
    script(
        """
        first, second = sys.argv[1:]
        check(session(first))
        kept = session(first)
        child = os.fork()
        if child == 0:
            refused(lambda: session(second), "two versions in one process")
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        """,
        library,
        old,
    )


def test_an_older_library_says_what_it_lacks(old: Path) -> None:
    """An op that it has not, an element type that it has not; with a function body the op runs all the same."""
    script(
        f"""
        os.environ["ONNXNORM_LIBRARY"] = sys.argv[1]
        where = f"native library {{os.path.realpath(sys.argv[1])}} (version {OLD_VERSION})"
        layer = all_specs()["LayerNorm"]
        item = next(iter(layer.samples()))
        bare, whole = (sample_model(layer, item, body=body) for body in (False, True))
        words = ["node 'norm' is onnxnorm.LayerNorm in float32", "no function body", where, f"onnxnorm {{layer.since}}"]
        assert type(refused(lambda: onnxnorm.InferenceSession(bare), *words)) is onnxnorm.ModelError
        feeds = {{i.name: value.astype(np.float32) for i, value in zip(layer.inputs, item.inputs, strict=True)}}
        (truth,) = layer.reference([value.astype(np.float64) for value in feeds.values()], item.attributes)
        (y,) = onnxnorm.InferenceSession(whole, library=True).run(None, feeds)
        assert np.abs(y - truth).max() <= 1e-6 * np.abs(truth).max()

        check(onnxnorm.InferenceSession(CONTENT, library=True))
        for body in (False, True):
            half = sample_model(SPEC, SAMPLE, "bfloat16", body=body)
            words = ["node 'norm' is onnxnorm.GroupNorm in bfloat16", where, "float32, float16, float64 only",
                     f"onnxnorm {{SPEC.since}} and newer has it"]
            assert type(refused(lambda: onnxnorm.InferenceSession(half), *words)) is onnxnorm.ModelError
        onnxnorm.InferenceSession(half, library=False)
        """,
        old,
    )


def test_looking_at_another_version_s_table_changes_nothing(library: Path, old: Path) -> None:
    script(
        f"""
        from onnxnorm.runtime.library import op_table
        first, second = map(Path, sys.argv[1:])
        assert op_table(second)["version"] == {OLD_VERSION!r}
        assert op_table(second)["registered"] is False
        check(session(first))
        """,
        library,
        old,
    )


def test_a_new_process_takes_the_other_version(library: Path, old: Path) -> None:
    """Nothing is left behind in the environment or on disk, for children that start anew either."""
    script(
        """
        import subprocess
        first, second = sys.argv[1], sys.argv[2:]
        check(session(first))
        if second:
            subprocess.run([*sys.orig_argv[:-2], *second], check=True)
        """,
        library,
        old,
    )


def test_the_same_version_from_two_paths(library: Path, copy: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.so"
    link.symlink_to(library)
    script(
        """
        sessions = [session(path) for path in sys.argv[1:]]
        for current in sessions * 2:
            check(current)
        options = ort.SessionOptions()
        for path in sys.argv[1:3]:
            options.register_custom_ops_library(path)
        refused(lambda: ort.InferenceSession(CONTENT, options), "Domain already set in registry")
        """,
        library,
        copy,
        link,
    )


def test_children_of_fork_make_their_own_sessions(library: Path) -> None:
    """After a session has run on several threads in the parent, whose session goes on afterwards."""
    script(
        """
        import multiprocessing
        library = sys.argv[1]
        parent = session(library, threads=4)
        check(parent)
        for _ in range(3):
            child = os.fork()
            if child == 0:
                for threads in (1, 4):
                    check(session(library, threads))
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0

        def job(_):
            check(session(library, 2))
            return True

        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert all(pool.map(job, range(4)))
        check(parent)
        check(session(library))
        """,
        library,
    )


def test_fork_while_other_threads_register(library: Path) -> None:
    """A lock that another thread held would stay locked in the child."""
    script(
        """
        import ctypes, threading
        library, ends = sys.argv[1], threading.Event()
        table = ctypes.CDLL(library).OnnxnormOpTable
        table.restype = ctypes.c_char_p

        def register():
            while not ends.is_set():
                ort.SessionOptions().register_custom_ops_library(library)
                table()

        threads = [threading.Thread(target=register) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(8):
            child = os.fork()
            if child == 0:
                assert b"GroupNorm" in table()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        ends.set()
        for thread in threads:
            thread.join()
        """,
        library,
    )


def test_sessions_of_all_ops_types_and_levels_come_and_go_at_once(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight threads make sessions of every op, run each from two threads, and drop them."""
    registering = threading.Lock()  # the variable is the process's
    levels = available_levels(library)
    jobs = [
        (op, sample, dtype, levels[i % len(levels)])
        for op, spec in sorted(SPECS.items())
        for i, (sample, dtype) in enumerate((s, d) for s in list(spec.samples())[:4] for d in TYPES)
    ]

    def job(item: tuple) -> None:
        op, sample, dtype, level = item
        values = [np.asarray(value).astype(TYPES[dtype][1]) for value in sample.inputs]
        truth = SPECS[op].reference([value.astype(np.float64) for value in values], sample.attributes)[0]
        content = model(op, dtype, [None] * len(values), dict(sample.attributes))
        with registering:
            monkeypatch.setenv("ONNXNORM_CPU_TARGET", level)
            current = session(library, content)
        others = threading.Thread(target=run, args=(current, values, dtype))
        others.start()
        for _ in range(3):
            assert_close(first(run(current, values, dtype)), truth, dtype)
        others.join()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(job, jobs))


def branches(count: int) -> bytes:
    """Group norms of one X side by side, each with a skip form behind it."""
    nodes = []
    for i in range(count):
        attributes = {**_GROUP, "num_groups": 2 ** (i % 4)}
        nodes.append(helper.make_node("GroupNorm", ["X", "scale", "bias"], [f"a{i}"], domain="onnxnorm", **attributes))
        names = [f"a{i}", "X", "scale", "bias"]
        nodes.append(helper.make_node("SkipGroupNorm", names, [f"y{i}", f"s{i}"], domain="onnxnorm", **attributes))
    shapes = {"X": [1, 16, 60, 61], "scale": [16], "bias": [16]}
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    names = [f"{kind}{i}" for i in range(count) for kind in "ys"]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("onnxnorm", 1)]
    graph = helper.make_graph(nodes, "branches", inputs, outputs)
    content: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return content


def test_branches_of_one_model_at_once(library: Path) -> None:
    """ONNX Runtime's parallel mode: several nodes of a session share its pool, with the bits of one by one."""
    content, rng = branches(8), np.random.default_rng(11)
    feeds = {"X": rng.standard_normal((1, 16, 60, 61)), "scale": rng.standard_normal(16), "bias": np.ones(16)}
    feeds = {name: value.astype(np.float32) for name, value in feeds.items()}
    expected = session(library, content).run(None, feeds)
    options = ort.SessionOptions()
    options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    options.inter_op_num_threads, options.intra_op_num_threads = 4, 2
    options.register_custom_ops_library(str(library))
    current = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    with ThreadPoolExecutor(3) as pool:
        for outputs in pool.map(lambda _: current.run(None, feeds), range(12)):
            for output, one in zip(outputs, expected, strict=True):
                np.testing.assert_array_equal(output, one)


def test_sessions_that_come_and_go_leave_nothing(library: Path) -> None:
    """What a leaked kernel, its scratch or a thread's memory would add, beside what the allocator keeps."""
    script(
        """
        import gc

        def resident():
            gc.collect()
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

        def come_and_go(count):
            for _ in range(count):
                check(session(sys.argv[1]))

        come_and_go(30)
        before, threads = resident(), len(os.listdir("/proc/self/task"))
        come_and_go(120)
        assert len(os.listdir("/proc/self/task")) == threads
        assert resident() - before < 1500, f"{resident() - before} kB after 120 sessions"
        """,
        library,
    )


def first(outputs: object) -> np.ndarray:
    return np.asarray(outputs[0] if isinstance(outputs, list | tuple) else outputs)


def test_the_table_says_whether_it_is_registered(library: Path) -> None:
    session(library, model("GroupNorm", "float32", [[1, 4, 2], [4], [4]], _GROUP))
    assert op_table(library)["registered"] is True


_GROUP = {"num_groups": 2, "epsilon": 1e-5, "activation": "silu", "channels_last": 0}
