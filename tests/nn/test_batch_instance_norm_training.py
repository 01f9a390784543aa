"""Training graphs of BatchInstanceNorm1d, 2d and 3d."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from onnxnorm.nn import BatchInstanceNorm1d, BatchInstanceNorm2d, BatchInstanceNorm3d

from .stateful import assert_training_export_equals, filled

SHAPES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "1d": (BatchInstanceNorm1d, (3, 6, 7)),
    "2d": (BatchInstanceNorm2d, (2, 6, 5, 4)),
    "3d": (BatchInstanceNorm3d, (2, 6, 3, 4, 2)),
}


@pytest.mark.parametrize(("kind", "shape"), SHAPES.values(), ids=list(SHAPES))
def test_the_training_graph(tmp_path: Path, kind: Any, shape: tuple[int, ...]) -> None:
    model = assert_training_export_equals(tmp_path, filled(kind(6)), [shape, (4, *shape[1:]), shape])
    assert [node.op_type for node in model.graph.node].count("BatchInstanceNormTraining") == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_training_graph_in_other_types(tmp_path: Path, dtype: torch.dtype) -> None:
    assert_training_export_equals(tmp_path, filled(BatchInstanceNorm2d(6)), [(2, 6, 4, 5)] * 3, dtype)


def test_the_training_graph_counts_its_own_steps(tmp_path: Path) -> None:
    norm = filled(BatchInstanceNorm2d(6, momentum=None, affine=False))
    assert_training_export_equals(tmp_path, norm, [(2, 6, 4, 5)] * 4)
