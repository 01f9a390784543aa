"""The library and the function bodies in other versions of ONNX Runtime than the installed one.

Every run of the tests downloads the oldest supported version. The whole list, or any other versions:

    ONNXNORM_TEST_ONNXRUNTIME=all python -m pytest tests/ops/test_onnxruntime_versions.py
    ONNXNORM_TEST_ONNXRUNTIME=1.23.2,1.29.0 python -m pytest tests/ops/test_onnxruntime_versions.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from onnxnorm.runtime.environment import OLDEST

ROOT = Path(__file__).resolve().parents[2]
VARIABLE = "ONNXNORM_TEST_ONNXRUNTIME"
VERSIONS = ("1.20.0", "1.22.1", "1.24.4", "1.26.0", "1.28.0", "1.30.0", "1.32.0")


def chosen() -> list[str]:
    wanted = os.environ.get(VARIABLE, "")
    if wanted == "all":
        return list(VERSIONS)
    return [item.strip() for item in wanted.split(",") if item.strip()] or [VERSIONS[0]]


#: Each op by its kernel and by its function body: all samples in float32, two of them in the other types by the kernel.
#: Where versions were asked for: all samples in all types in both ways, and bodies at the oldest and the newest opset.
RUN_SAMPLES = """
import sys
sys.path.insert(0, "tests")
import onnxruntime
from norms.conftest import NUMPY, OPSETS, SAMPLES, SPECS, assert_all_near, cast, in_session, model_bytes, wanted

assert onnxruntime.__version__ == sys.argv[1], onnxruntime.__version__
full = sys.argv[2] == "full"
bodies = kernels = refused = 0
firsts = {(spec.name, sample.label) for spec in SPECS for sample in list(spec.samples())[:2]}
for spec, sample in SAMPLES:
    for dtype in NUMPY:
        if not full and dtype != "float32" and (spec.name, sample.label) not in firsts:
            continue
        expected, arrays = wanted(spec, sample, dtype), cast(sample, dtype)
        opsets = {OPSETS[-1], OPSETS[0] if full else OPSETS[-1]} if dtype == "float32" else OPSETS[:full]
        for opset in opsets:
            where = f"{spec.name} {sample.label} {dtype} opset {opset}"
            content = model_bytes(spec, sample, dtype, opset)
            try:
                outputs = in_session(content, spec, arrays, library=False)
            except Exception as error:
                # Up to 1.28 or so ONNX Runtime itself confuses the shapes of reductions of empty tensors, and says so.
                assert 0 in arrays[0].shape and "attempting to re-use buffer" in str(error), f"{where}: {error}"
                refused += 1
                continue
            assert_all_near(outputs, expected, where + " body")
            bodies += 1
        if spec.native:
            content = model_bytes(spec, sample, dtype, OPSETS[0], body=False)
            outputs = in_session(content, spec, arrays, library=True)
            assert_all_near(outputs, expected, f"{spec.name} {sample.label} {dtype} kernel")
            kernels += 1
print(
    f"onnxruntime {onnxruntime.__version__}: {kernels} runs of kernels, {bodies} of function bodies (opsets {OPSETS}), "
    f"{refused} bodies on empty tensors refused by ONNX Runtime"
)
"""


def downloaded(version: str, folder: Path) -> dict[str, str]:
    """The environment of a process that imports this version."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*command, "--target", str(folder), f"onnxruntime=={version}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (
        f"onnxruntime {version} cannot be downloaded, so the library was not tested with it: {done.stderr[-2000:]}"
    )
    paths = [str(folder), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-10_000:]
    return done.stdout


def test_the_oldest_version_is_the_one_that_is_promised() -> None:
    assert VERSIONS[0] == f"{OLDEST[0]}.{OLDEST[1]}.0"


@pytest.mark.slow
@pytest.mark.parametrize("version", chosen())
def test_kernels_and_function_bodies(version: str, tmp_path: Path) -> None:
    environment = downloaded(version, tmp_path / "onnxruntime")
    extent = "full" if os.environ.get(VARIABLE) else "brief"
    said = run([sys.executable, "-W", "ignore", "-c", RUN_SAMPLES, version, extent], environment)
    assert f"onnxruntime {version}: " in said
    print(said.strip())
    tests = ["tests/ops/test_library.py", "tests/runtime/test_session.py", "tests/runtime/test_missing.py"]
    said = run([sys.executable, "-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider", *tests], environment)
    print(f"{', '.join(tests)}: {said.strip().splitlines()[-1]}")
