"""``python -m onnxnorm``: the same as the command ``onnxnorm``."""

import sys

from onnxnorm.cli import main

if __name__ == "__main__":
    sys.exit(main())
