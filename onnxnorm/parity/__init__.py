"""Numeric parity: is the deployed model the model that was trained?

``check`` runs a PyTorch module in float64 (the truth), the same module at its deployed dtype, and the ONNX file on ONNX
Runtime, and judges the file's distance from the truth against PyTorch's own. Nothing here imports torch before it is
needed.

    oracle       the truth, and PyTorch at the deployed dtype (``double``: how a module's code becomes float64)
    training     the same for training graphs: several steps, outputs and state
    source       the ONNX file: what runs, and its signature
    inputs       the user's inputs, or (``generate``) inputs made from the signature
    runs         what is measured: provider x native library x optimization level
    compare      distances and verdicts of one output (``outputs``: which output is which)
    report       the result, as text, JSON and exit status
    module_spec  modules named on a command line
"""

from onnxnorm.parity.checker import check
from onnxnorm.parity.module_spec import load_module
from onnxnorm.parity.report import Report

__all__ = ["Report", "check", "load_module"]
