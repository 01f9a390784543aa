"""Recalibration: the statistics of a deployed training graph, measured anew on other data with ONNX Runtime.

Nothing here needs PyTorch. A training graph (``onnxnorm.export(mode="train")``) runs over the data; what it measures
becomes its state, its training ops become what they are in evaluation, and the ordinary pipeline folds them away.

    layers       which training ops move which state, and what every other state depends on
    batches      the data: arrays, files and iterables as batches
    measure      the run over the batches
    eval_form    a training op in its evaluation form
    freeze       states as constants
    recalibrate  all of it in order
"""
