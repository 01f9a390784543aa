"""``onnxnorm compile``: a model as ONNX Runtime runs it on this machine, with the norms in its blocked layout.

ONNX Runtime keeps convolutions on the CPU in a layout of its own, NCHWc, and puts a ReorderOutput and a ReorderInput
around every operator in between that it has no kernel in that layout for. onnxnorm has such kernels for its norms.
"""
