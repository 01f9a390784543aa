"""Rules that make one onnxnorm op of a normalization and its neighbours."""
