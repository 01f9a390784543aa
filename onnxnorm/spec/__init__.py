"""What a normalization is (``record``) and what is derived from that: function bodies, schemas, translations.

The normalizations themselves are in ``onnxnorm.norms``, one file each.
"""
