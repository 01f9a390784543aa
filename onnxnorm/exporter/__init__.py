"""From a PyTorch module to an ONNX model.

The folder is not called ``export``: importing a package of that name would put it in the place of the function
``onnxnorm.export``.
"""
