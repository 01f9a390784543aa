"""The same bytes from every process: sets of names have another order in each."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx

from onnxnorm.model_file import serialized
from onnxnorm.passes.pipeline import optimize

SCRIPT = """
import hashlib, sys
from onnxnorm.model_file import serialized
from onnxnorm.passes.pipeline import optimize
first = optimize(sys.argv[1]).model
print(hashlib.sha256(serialized(first)).hexdigest())
print(hashlib.sha256(serialized(optimize(first).model)).hexdigest())
"""
TEXT = """(float[1,4,6,6] x) => (float[1,4,6,6] y) {
    c = Conv (x, w) n = BatchNormalization (c, gamma, beta, mean, var) r = Relu (n)
    m = ReduceMean <axes=[1]> (r) d = Sub (r, m) p = Mul (d, d) v = ReduceMean <axes=[1]> (p) e = Add (v, eps)
    s = Sqrt (e) q = Div (d, s) a = Mul (q, k) b = Add (a, k) z = Add (b, x) t = Mul (z, k) y = Sub (t, k) }"""


def test_whatever_the_order_of_hashes_and_twice(lab: Any, tmp_path: Path) -> None:
    arrays = {"w": lab.array(4, 4, 1, 1), "k": lab.array(4, 1, 1, seed=1), "eps": lab.array(1) * 0 + 1e-5}
    model = lab.model(
        TEXT, opset=17, **{name: array.astype("float32") for name, array in arrays.items()}, **lab.batch_norm(4)
    )
    onnx.save(model, tmp_path / "m.onnx")
    here = serialized(optimize(tmp_path / "m.onnx").model)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "m.onnx")]
    there = subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": "77"}, capture_output=True, check=True)
    assert set(there.stdout.decode().split()) == {hashlib.sha256(here).hexdigest()}
    assert len(onnx.ModelProto.FromString(here).graph.node) < len(model.graph.node)
