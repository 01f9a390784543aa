"""Hard data: offsets, huge, tiny and denormal values, NaN, infinities, odd sizes, long reductions, in every layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from .conftest import Runner, assert_close

RNG = np.random.default_rng(7)


def parameters(channels: int) -> list[np.ndarray]:
    return [RNG.uniform(0.5, 1.5, channels), RNG.standard_normal(channels)]


def group(groups: int, last: int = 0, activation: str = "none", epsilon: float = 1e-5) -> dict[str, Any]:
    return {"num_groups": groups, "epsilon": epsilon, "activation": activation, "channels_last": last}


def switchable(x: np.ndarray, last: int = 0, activation: str = "none") -> tuple[list[np.ndarray], dict[str, Any]]:
    channels = x.shape[-1 if last else 1]
    weights = np.array([0.25, 0.5, 0.25])  # exact in every type
    state = [np.full(channels, np.round(x[np.isfinite(x)].mean())), RNG.uniform(0.5, 2.0, channels)]
    return [x, *parameters(channels), weights, weights, *state], {
        "epsilon": 1e-5,
        "activation": activation,
        "channels_last": last,
    }


def batch_instance(x: np.ndarray, last: int = 0, activation: str = "none") -> tuple[list[np.ndarray], dict[str, Any]]:
    channels = x.shape[-1 if last else 1]
    rho = np.resize([0.25, 0.0, 1.0, 0.75], channels)  # exact in every type
    state = [np.full(channels, np.round(x[np.isfinite(x)].mean())), RNG.uniform(0.5, 2.0, channels)]
    return [x, *parameters(channels), rho, *state], {
        "epsilon": 1e-5,
        "activation": activation,
        "channels_last": last,
    }


def layer(
    x: np.ndarray, axes: list[int], activation: str = "none", epsilon: float = 1e-5
) -> tuple[list[np.ndarray], dict[str, Any]]:
    sizes = [x.shape[axis] for axis in axes]
    inputs = [x, RNG.uniform(0.5, 1.5, sizes), RNG.standard_normal(sizes)]
    return inputs, {"axes": axes, "epsilon": epsilon, "activation": activation}


@pytest.mark.parametrize("offset", [1e4, -1e4, 1e6])
@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("shape", [(2, 32, 28, 28), (1, 8, 13), (3, 6, 4099)])
def test_large_mean(shape: tuple[int, ...], last: int, offset: float, level: str, runner: Runner) -> None:
    x = RNG.standard_normal(shape) + offset
    x = np.moveaxis(x, 1, -1) if last else x
    channels = shape[1]
    for groups in (1, 2, channels):
        assert_close(*runner("GroupNorm", [x, *parameters(channels)], group(groups, last)), "float32")
    inputs, attributes = switchable(x, last)
    assert_close(*runner("SwitchableNorm", inputs, attributes), "float32")
    inputs, attributes = batch_instance(x, last)
    assert_close(*runner("BatchInstanceNorm", inputs, attributes), "float32")
    for axes in ([x.ndim - 1], [1], list(range(1, x.ndim)), [0, x.ndim - 1]):
        inputs, attributes = layer(x, axes)
        assert_close(*runner("LayerNorm", inputs, attributes), "float32")


def test_columns_and_runs_with_different_means(level: str, runner: Runner) -> None:
    """Each statistic is merged from chunks, runs or strips whose means are far apart."""
    rows = 10.0 ** np.arange(-2, 6)
    for shape, axes, means in (
        ((3, 8, 4096), [1], rows[:, None]),
        ((3, 8, 4096), [0, 1], rows[:, None]),
        ((3, 8, 4096), [1, 2], rows[:, None]),
        ((8, 700, 3, 5), [0, 2], rows[:, None, None, None]),
        ((2, 8, 3, 70), [1, 3], rows[:, None, None]),
        ((8, 2, 40000), [0, 2], rows[:, None, None]),
    ):
        inputs, attributes = layer(RNG.standard_normal(shape) + means, axes)
        assert_close(*runner("LayerNorm", inputs, attributes), "float32")


def test_channels_with_different_means(level: str, runner: Runner) -> None:
    x = RNG.standard_normal((2, 8, 4096)) + 10.0 ** np.arange(-2, 6)[:, None]
    for groups in (1, 2, 8):
        assert_close(*runner("GroupNorm", [x, *parameters(8)], group(groups)), "float32")
        swapped = np.moveaxis(x, 1, -1)
        assert_close(*runner("GroupNorm", [swapped, *parameters(8)], group(groups, 1)), "float32")


@pytest.mark.parametrize("place", [0, 5, 100, 4095, 5000])
def test_an_outlier(place: int, level: str, runner: Runner) -> None:
    x = RNG.standard_normal((1, 2, 5001))
    x[0, 0, place] = 1e6
    assert_close(*runner("GroupNorm", [x, *parameters(2)], group(1)), "float32")
    assert_close(*runner("GroupNorm", [np.moveaxis(x, 1, -1), *parameters(2)], group(2, 1)), "float32")


@pytest.mark.parametrize("spread", [1e-30, 1e-20, 1e-12, 1e15, 1e25, 1e38])
@pytest.mark.parametrize("epsilon", [0.0, 1e-5])
def test_huge_and_tiny(spread: float, epsilon: float, level: str, runner: Runner) -> None:
    x = RNG.uniform(-3, 3, (2, 4, 77)) * spread
    for last in (0, 1):
        laid = np.moveaxis(x, 1, -1) if last else x
        assert_close(*runner("GroupNorm", [laid, *parameters(4)], group(2, last, epsilon=epsilon)), "float32")
        inputs, attributes = batch_instance(laid, last)
        assert_close(*runner("BatchInstanceNorm", inputs, attributes | {"epsilon": epsilon}), "float32")
    for axes, sizes in (([-1], 77), ([1], 4)):
        attributes = {"axes": axes, "epsilon": epsilon, "activation": "none"}
        assert_close(*runner("RMSNorm", [x, np.ones(sizes)], attributes), "float32")
        assert_close(*runner("LayerNorm", *layer(x, axes, epsilon=epsilon)), "float32")


@pytest.mark.parametrize(("spread", "epsilon"), [(1e200, 1e-5), (1e-200, 0.0)])
@pytest.mark.parametrize("positions", [2, 14, 700, 5000])
def test_float64_beyond_the_range_of_its_squares(
    positions: int, spread: float, epsilon: float, level: str, runner: Runner
) -> None:
    """As in PyTorch: an infinite variance leaves the bias, one that underflows gives infinity; neither gives NaN."""
    half = np.arange(1, positions // 2 + 1) / positions
    x = RNG.permuted(np.tile(np.concatenate([half, -half]), (2, 16, 1)), axis=2) * spread
    last = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    vectors = parameters(16)
    rows, columns = layer(x, [2], epsilon=epsilon), layer(last, [1], epsilon=epsilon)
    calls = [("LayerNorm", *rows, rows[0][2]), ("LayerNorm", *columns, columns[0][2][:, None])]
    for groups in (2, 16):
        calls.append(("GroupNorm", [x, *vectors], group(groups, epsilon=epsilon), vectors[1][:, None]))
        calls.append(("GroupNorm", [last, *vectors], group(groups, 1, epsilon=epsilon), vectors[1]))
    if epsilon > 0:  # without it the batch branch, of weight 0, meets an infinite one
        branches = [np.zeros(16), np.zeros(16), np.ones(16)]
        attributes = {"epsilon": epsilon, "activation": "none", "channels_last": 0}
        calls.append(("BatchInstanceNorm", [x, *vectors, *branches], attributes, vectors[1][:, None]))
    for op, inputs, attributes, bias in calls:
        output, _ = runner(op, inputs, attributes, "float64")
        expected = bias if epsilon > 0 else np.sign(inputs[0]) * np.inf
        np.testing.assert_array_equal(output, np.broadcast_to(expected, output.shape))


def test_float16_rms_does_not_overflow(level: str, runner: Runner) -> None:
    x = RNG.uniform(-6e4, 6e4, (3, 300))
    attributes = {"axes": [-1], "epsilon": 1e-5, "activation": "none"}
    assert_close(*runner("RMSNorm", [x, np.ones(300)], attributes, "float16"), "float16")


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "bfloat16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("last", [0, 1])
def test_not_finite(value: float, last: int, dtype: str, level: str, runner: Runner) -> None:
    x = RNG.standard_normal((2, 6, 19))
    x[0, 1, 3] = value
    x = np.moveaxis(x, 1, -1) if last else x
    for activation in ("none", "relu", "silu", "gelu"):
        assert_close(*runner("GroupNorm", [x, *parameters(6)], group(3, last, activation), dtype), dtype)
        inputs, attributes = switchable(x, last, activation)
        assert_close(*runner("SwitchableNorm", inputs, attributes, dtype), dtype)
        inputs, attributes = batch_instance(x, last, activation)
        assert_close(*runner("BatchInstanceNorm", inputs, attributes, dtype), dtype)
        for axes in ([-1], [1], [0, 2]):
            inputs, attributes = layer(x, axes, activation)
            assert_close(*runner("LayerNorm", inputs, attributes, dtype), dtype)
    for axes in ([-1], [1]):
        attributes = {"axes": axes, "epsilon": 1e-5, "activation": "none"}
        sizes = [x.shape[axis] for axis in axes]
        assert_close(*runner("RMSNorm", [x, np.ones(sizes)], attributes, dtype), dtype)


@pytest.mark.parametrize("activation", ["relu", "silu", "gelu"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_activation_over_its_range(activation: str, dtype: str, level: str, runner: Runner) -> None:
    """A scale of zero makes Y = activation(bias), so the activation is seen on chosen values."""
    bias = np.concatenate([np.linspace(-110, 110, 4001), np.linspace(-1, 1, 2001), [np.inf, -np.inf, np.nan, -0.0]])
    x = RNG.standard_normal((1, bias.size, 1))
    output, truth = runner("GroupNorm", [x, np.zeros(bias.size), bias], group(1, activation=activation), dtype)
    assert_close(output, truth, dtype)
    # Relative too, where PyTorch's own formula does not cancel.
    where = np.isfinite(truth) & (truth > 1e-3)
    unit = {"float32": 2.0**-23, "float64": 2.0**-52, "float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype]
    assert (np.abs(output[where].astype(np.float64) - truth[where]) / truth[where]).max() < 4 * unit


@pytest.mark.parametrize("channels", [1, 2, 3, 7, 8, 9, 15, 17, 31, 33, 65])
@pytest.mark.parametrize("positions", [1, 2, 3, 7, 8, 9, 13, 31, 33, 49, 257])
def test_odd_sizes(channels: int, positions: int, level: str, runner: Runner) -> None:
    x = RNG.standard_normal((2, channels, positions)) + 3
    last = np.moveaxis(x, 1, -1)
    for groups in {1, channels}:
        assert_close(*runner("GroupNorm", [x, *parameters(channels)], group(groups)), "float32")
        assert_close(*runner("GroupNorm", [last, *parameters(channels)], group(groups, 1, "silu")), "float32")
    for axes in ([1], [2], [1, 2], [0], [0, 2]):
        sizes = [x.shape[axis] for axis in axes]
        attributes = {"axes": axes, "epsilon": 1e-6, "activation": "none"}
        assert_close(*runner("RMSNorm", [x, RNG.uniform(0.5, 1.5, sizes)], attributes), "float32")
        assert_close(*runner("LayerNorm", *layer(x, axes)), "float32")
    for laid, is_last in ((x, 0), (last, 1)):
        inputs, attributes = switchable(laid, is_last)
        assert_close(*runner("SwitchableNorm", inputs, attributes), "float32")
        inputs, attributes = batch_instance(laid, is_last)
        assert_close(*runner("BatchInstanceNorm", inputs, attributes), "float32")


@pytest.mark.parametrize("rho", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("constant", [False, True])
def test_no_running_variance_and_no_epsilon(rho: float, constant: bool, level: str, runner: Runner) -> None:
    """The batch branch is infinite, or NaN at the running mean."""
    x = np.zeros((2, 3, 9)) if constant else np.round(RNG.standard_normal((2, 3, 9)) * 4)
    inputs = [x, *parameters(3), np.full(3, rho), np.ones(3), np.zeros(3)]
    attributes = {"epsilon": 0.0, "activation": "none", "channels_last": 0}
    assert_close(*runner("BatchInstanceNorm", inputs, attributes), "float32")


LARGE = [
    ("GroupNorm", (1, 6, 99991), group(1)),
    ("GroupNorm", (1, 6, 99991), group(6)),
    ("GroupNorm", (2, 70001, 6), group(2, 1)),
    ("GroupNorm", (5, 1000, 77), group(4)),
    ("RMSNorm", (1, 400003), {"axes": [-1], "epsilon": 1e-6, "activation": "none"}),
    ("RMSNorm", (3, 5000, 33), {"axes": [1], "epsilon": 1e-6, "activation": "none"}),
    ("RMSNorm", (3, 5000, 33), {"axes": [0, 1], "epsilon": 1e-6, "activation": "none"}),
    ("RMSNorm", (40, 50, 60, 7), {"axes": [1, 3], "epsilon": 1e-6, "activation": "none"}),
    ("RMSNorm", (4, 3, 20011), {"axes": [0, 2], "epsilon": 1e-6, "activation": "none"}),
    ("LayerNorm", (1, 400003), {"axes": [-1], "epsilon": 1e-6, "activation": "none"}),
    ("LayerNorm", (3, 5000, 33), {"axes": [1], "epsilon": 1e-6, "activation": "none"}),
    ("LayerNorm", (3, 5000, 33), {"axes": [0, 1], "epsilon": 1e-6, "activation": "none"}),
    ("LayerNorm", (40, 50, 60, 7), {"axes": [1, 3], "epsilon": 1e-6, "activation": "none"}),
    ("LayerNorm", (50, 40, 30, 7), {"axes": [0, 2], "epsilon": 1e-6, "activation": "gelu"}),
    ("LayerNorm", (4, 3, 20011), {"axes": [0, 2], "epsilon": 1e-6, "activation": "none"}),
    ("LayerNorm", (2, 96, 61, 59), {"axes": [1], "epsilon": 1e-6, "activation": "silu"}),
    ("BatchInstanceNorm", (1, 6, 99991), {"epsilon": 1e-5, "activation": "none", "channels_last": 0}),
    ("BatchInstanceNorm", (2, 70001, 6), {"epsilon": 1e-5, "activation": "none", "channels_last": 1}),
    ("SwitchableNorm", (1, 6, 99991), {"epsilon": 1e-5, "activation": "none", "channels_last": 0}),
    ("SwitchableNorm", (2, 70001, 6), {"epsilon": 1e-5, "activation": "none", "channels_last": 1}),
]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("op", "shape", "attributes"), LARGE, ids=lambda value: str(value)[:24])
def test_large_and_the_same_with_any_number_of_threads(
    op: str, shape: tuple[int, ...], attributes: dict[str, Any], dtype: str, level: str, runner: Runner
) -> None:
    x = RNG.standard_normal(shape) + 2
    if op == "RMSNorm":
        inputs = [x, RNG.uniform(0.5, 1.5, [shape[axis] for axis in attributes["axes"]])]
    elif op == "GroupNorm":
        inputs = [x, *parameters(shape[-1 if attributes["channels_last"] else 1])]
    elif op == "LayerNorm":
        inputs = layer(x, attributes["axes"])[0]
    elif op == "BatchInstanceNorm":
        inputs = batch_instance(x, attributes["channels_last"])[0]
    else:
        inputs = switchable(x, attributes["channels_last"])[0]
    outputs = []
    for threads in (1, 2, 3):
        output, truth = runner(op, inputs, attributes, dtype, threads)
        assert_close(output, truth, dtype)
        outputs.append(output)
    np.testing.assert_array_equal(outputs[0], outputs[1])
    np.testing.assert_array_equal(outputs[0], outputs[2])


@pytest.mark.slow
def test_a_reduction_of_a_hundred_million(runner: Runner) -> None:
    x = np.random.default_rng(1).standard_normal((1, 1, 100_000_000), dtype=np.float32) + np.float32(100)
    output, truth = runner("GroupNorm", [x, np.ones(1), np.zeros(1)], group(1))
    assert_close(output, truth, "float32")
