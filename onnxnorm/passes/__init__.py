"""Rewrites of ONNX graphs: canonicalize, fold, fuse, lower. ``pipeline`` is the only place for their order."""
