"""Cases are derived from the specs: every op has data that it takes, and a mistake is named."""

from __future__ import annotations

import numpy as np
import pytest

from onnxnorm.bench import Case, default_cases
from onnxnorm.bench.case import IMAGES, QUICK_SHAPES, ROWS, aligned, check_case, inference_specs, make_data
from onnxnorm.errors import UsageError

OPS = sorted(inference_specs())


def _small(op: str, **options: object) -> Case:
    names = {item.name for item in inference_specs()[op].attributes}
    groups = 4 if "num_groups" in names else None
    return default_cases([op], shapes=[(2, 8, 3, 5)], groups=groups, activations=["none"], **options)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("op", OPS)
def test_every_op_has_data(op: str, dtype: str) -> None:
    case = _small(op, dtypes=[dtype])
    data = make_data(case)
    case.spec.validate([array.shape for array in data.inputs], case.attributes)
    assert {str(array.dtype) for array in data.inputs} == {dtype}
    assert all(array.ctypes.data % 64 == 0 and array.flags.c_contiguous for array in data.inputs)
    assert all(np.isfinite(array).all() and array.std() > 0 for array in data.truth)
    assert data.truth[0].shape == case.shape


def test_the_truth_is_of_the_rounded_values() -> None:
    case = _small("GroupNorm", dtypes=["bfloat16"])
    data = make_data(case)
    wide = [array.astype(np.float64) for array in data.inputs]
    np.testing.assert_array_equal(data.truth[0], case.spec.reference(wide, case.attributes)[0])


def test_the_same_seed_makes_the_same_data() -> None:
    case = _small("SwitchableNorm")
    one, two, other = make_data(case), make_data(case), make_data(case, seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(one.inputs, two.inputs, strict=True))
    assert not np.array_equal(one.inputs[0], other.inputs[0])


@pytest.mark.parametrize("op", OPS)
def test_default_list(op: str) -> None:
    cases = default_cases([op])
    shapes = {case.shape for case in cases}
    has_axes = "axes" in {item.name for item in inference_specs()[op].attributes}
    assert {shape for shape, _ in IMAGES} <= shapes
    assert (set(ROWS) <= shapes) == has_axes
    assert {case.shape for case in default_cases([op], quick=True)} == shapes & QUICK_SHAPES


def test_groups_of_the_default_list() -> None:
    found = {case.shape: case.groups for case in default_cases(["GroupNorm"])}
    assert found[1, 320, 64, 64] == 32
    assert found[1, 64, 112, 112] == 1
    assert found[1, 32, 16, 64, 64] == 8


def test_op_names_may_be_in_any_case() -> None:
    assert default_cases(["groupnorm"])[0].op == "GroupNorm"


def test_rows_up_to_rank_3_else_channels() -> None:
    rows, channels = default_cases(["LayerNorm"], shapes=[(2, 3, 8), (2, 3, 8, 8)], activations=["none"])
    assert (rows.axes, channels.axes) == ((-1,), (1,))


def test_axes_over_several_dimensions() -> None:
    case = default_cases(["RMSNorm"], shapes=[(2, 3, 5, 7)], axes=(-1, 1), activations=["none"])[0]
    assert make_data(case).inputs[1].shape == (3, 7)


def test_channels_last() -> None:
    case = default_cases(["GroupNorm"], shapes=[(2, 5, 5, 8)], groups=2, channels_last=True)[0]
    assert make_data(case).inputs[1].shape == (8,)
    assert "channels-last" in case.label


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (Case("Norm", (2, 8)), "Norm is no op of onnxnorm; bench measures .*GroupNorm"),
        (Case("BatchNormTraining", (2, 8)), "BatchNormTraining is an op of training graphs"),
        (Case("GroupNorm", (2, 30, 4), groups=32), "num_groups is 32; it must divide the 30 channels"),
        (Case("GroupNorm", (2,), groups=1), "X has rank 1"),
        (Case("GroupNorm", (2, 0, 4), groups=1), "shape 2x0x4 has no elements"),
        (Case("GroupNorm", (2, 8, 4), groups=0), "num_groups"),
        (Case("GroupNorm", (2, 8, 4), "int8", groups=4), "dtype is 'int8'.*float32"),
        (Case("GroupNorm", (2, 8, 4), activation="elu", groups=4), "activation is 'elu'.*relu"),
        (Case("GroupNorm", (2, 8, 4), groups=4, axes=(1,)), "GroupNorm has no attribute axes"),
        (Case("LayerNorm", (2, 8), groups=4), "LayerNorm has no attribute num_groups"),
        (Case("LayerNorm", (2, 8), axes=(3,)), "axis 3 is not one of a tensor of rank 2"),
        (Case("EvoNormS0", (2, 8, 4), activation="relu", groups=4), "EvoNormS0 has no activation"),
    ],
)
def test_mistakes_are_named(case: Case, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_case(case)


def test_an_activation_that_there_is_not() -> None:
    with pytest.raises(UsageError, match="activation is 'elu'"):
        default_cases(activations=["elu"])


@pytest.mark.parametrize("shape", [(), (0,), (3, 5), (1, 1, 1)])
def test_aligned(shape: tuple[int, ...]) -> None:
    array = aligned(shape, np.dtype(np.float64))
    assert array.shape == shape
    assert array.ctypes.data % 64 == 0 or not array.size
    array[...] = 1.0


def test_blocked_forms_are_measured_in_models() -> None:
    with pytest.raises(UsageError, match="BlockedGroupNorm is measured in whole models only"):
        default_cases(["BlockedGroupNorm"])
