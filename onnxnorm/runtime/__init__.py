"""Running models: sessions, the native library, arrays, the doctor.

Nothing is imported here: only ``session`` needs onnxruntime, and rewriting and exporting work without it.
"""
