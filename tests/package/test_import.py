"""``import onnxnorm`` is cheap, and every public name is where it says."""

from __future__ import annotations

import subprocess
import sys

import onnxnorm


def _run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_importing_onnxnorm_imports_nothing_heavy() -> None:
    heavy = ("numpy", "torch", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "rich")
    assert _run(f"import sys, onnxnorm; print([name for name in {heavy!r} if name in sys.modules])") == "[]"


def test_a_session_and_an_optimization_need_no_torch() -> None:
    code = (
        "import sys, onnxnorm; onnxnorm.InferenceSession; onnxnorm.optimize; onnxnorm.register; onnxnorm.library_path;"
        "print('torch' in sys.modules)"
    )
    assert _run(code) == "False"


def test_every_public_name_resolves() -> None:
    for name in (*onnxnorm.__all__, "__version__"):
        assert getattr(onnxnorm, name) is not None
    assert set(onnxnorm.__all__) <= set(dir(onnxnorm))


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(onnxnorm, "no_such_name")


def test_no_package_takes_the_name_of_a_function() -> None:
    code = (
        "import pkgutil, onnxnorm; names = {item.name for item in pkgutil.iter_modules(onnxnorm.__path__)};"
        "print(names & {name for name in onnxnorm.__all__ if callable(getattr(onnxnorm, name))})"
    )
    assert _run(code) == "set()"
