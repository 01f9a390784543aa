"""Input normalizations against float64 NumPy and scikit-learn."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from onnxnorm.nn import (
    Centering,
    MeanNormalization,
    MinMaxScaling,
    PCADecorrelation,
    PCAWhitening,
    Standardization,
    UnitLength,
    ZCAWhitening,
    prepend,
)

ELEMENTWISE: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "min-max": (MinMaxScaling, lambda x, axes: (x - low(x, axes)) / (high(x, axes) - low(x, axes))),
    "min-max [-1, 3]": (
        lambda axis, **kw: MinMaxScaling((-1, 3), axis, **kw),
        lambda x, axes: (x - low(x, axes)) / (high(x, axes) - low(x, axes)) * 4 - 1,
    ),
    "mean": (MeanNormalization, lambda x, axes: (x - mean(x, axes)) / (high(x, axes) - low(x, axes))),
    "standard": (Standardization, lambda x, axes: (x - mean(x, axes)) / x.std(axis=axes, keepdims=True)),
    "centre": (Centering, lambda x, axes: x - mean(x, axes)),
}
MATRIX: dict[str, Callable[..., Any]] = {
    "PCA": PCADecorrelation,
    "PCA whitening": PCAWhitening,
    "ZCA": ZCAWhitening,
}
every_elementwise = pytest.mark.parametrize(("make", "formula"), ELEMENTWISE.values(), ids=list(ELEMENTWISE))
every_matrix = pytest.mark.parametrize("make", MATRIX.values(), ids=list(MATRIX))


def low(x: Any, axes: Any) -> Any:
    return x.min(axis=axes, keepdims=True)


def high(x: Any, axes: Any) -> Any:
    return x.max(axis=axes, keepdims=True)


def mean(x: Any, axes: Any) -> Any:
    return x.mean(axis=axes, keepdims=True)


def data(*shape: int, seed: int = 0, offset: float = 3.0) -> torch.Tensor:
    """Correlated features with means of their own."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    mixed = x @ (rng.standard_normal((shape[-1], shape[-1])) + np.eye(shape[-1])) + offset * rng.standard_normal(
        shape[-1]
    )
    return torch.from_numpy(mixed)


@every_elementwise
@pytest.mark.parametrize(
    ("shape", "axis", "axes"),
    [
        ((20, 4), -1, (0,)),
        ((5, 4, 3), 1, (0, 2)),
        ((6, 3, 4, 2), 1, (0, 2, 3)),
        ((6, 3, 4), None, (0, 1, 2)),
        ((7,), 0, ()),
    ],
)
def test_formulas(make: Any, formula: Any, shape: tuple[int, ...], axis: int | None, axes: tuple[int, ...]) -> None:
    x = data(*shape)
    norm = make(axis=axis, dtype=torch.float64).fit(x)
    if shape == (7,):  # one value of each feature: constant, with range and deviation 1
        want = np.full(7, -1.0) if getattr(norm, "feature_range", None) == (-1.0, 3.0) else np.zeros(7)
    else:
        want = formula(x.numpy(), axes)
    np.testing.assert_allclose(norm(x).numpy(), want, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(norm.inverse(norm(x)).numpy(), x.numpy(), rtol=1e-11, atol=1e-11)
    assert torch.equal(norm.train()(x), norm.eval()(x))


@every_elementwise
def test_batches_give_what_all_data_give(make: Any, formula: Any) -> None:
    x = data(97, 4)
    whole = make(axis=-1, dtype=torch.float64).fit(x)
    dataset = torch.utils.data.TensorDataset(x, torch.arange(97))
    loader = torch.utils.data.DataLoader(dataset, batch_size=10)
    for given in (x.split(13), (part for part in x.split(1)), loader, [x[:50].numpy(), x[50:].numpy()]):
        norm = make(axis=-1, dtype=torch.float64).fit(given)
        for name, value in whole.state_dict().items():
            np.testing.assert_allclose(norm.state_dict()[name].numpy(), value.numpy(), rtol=1e-13)


@pytest.mark.parametrize("offset", [1e4, 1e8])
def test_data_far_from_zero(offset: float) -> None:
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((5000, 3)) + offset)
    norm = Standardization(dtype=torch.float64).fit(x.split(77))
    np.testing.assert_allclose(norm.std.numpy(), (x.numpy() - offset).std(0), rtol=1e-10 * offset / 1e4)
    white = PCAWhitening(dtype=torch.float64).fit(x.split(77))(x)
    np.testing.assert_allclose(np.cov(white.numpy().T), np.eye(3), atol=1e-6)


@every_matrix
@pytest.mark.parametrize(
    ("shape", "axis"), [((50, 4), -1), ((9, 4, 5), 1), ((4, 5, 3, 2), 1), ((3, 4, 5), -1), ((4, 5, 3), 0)]
)
def test_matrices(make: Any, shape: tuple[int, ...], axis: int) -> None:
    x = data(*shape)
    norm = make(axis=axis, dtype=torch.float64).fit(x)
    y = norm(x)
    assert y.shape == x.shape
    flat = x.movedim(axis, -1).reshape(-1, shape[axis]).numpy()
    values, vectors = np.linalg.eigh(np.cov(flat.T))
    covariance = np.cov(y.movedim(axis, -1).reshape(-1, shape[axis]).numpy().T)
    want = np.diag(values[::-1]) if make is PCADecorrelation else np.eye(shape[axis])
    np.testing.assert_allclose(covariance, want, atol=1e-9 * max(1.0, values.max()))
    if make is ZCAWhitening:
        zca = (vectors / np.sqrt(values)) @ vectors.T
        np.testing.assert_allclose(norm.matrix.numpy(), zca, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(norm.inverse(y).numpy(), x.numpy(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("shape", [(9, 4, 5), (4, 3, 5, 2), (2, 3, 4, 2, 3)])
def test_channels_in_float32_are_a_convolution(shape: tuple[int, ...]) -> None:
    x = data(*shape)
    norm = ZCAWhitening(axis=1, dtype=torch.float64).fit(x)
    np.testing.assert_allclose(copy.deepcopy(norm).float()(x.float()).numpy(), norm(x).numpy(), atol=2e-4)


def test_scikit_learn() -> None:
    preprocessing, decomposition = (
        pytest.importorskip("sklearn.preprocessing"),
        pytest.importorskip("sklearn.decomposition"),
    )
    x = data(60, 5)
    x[:, 3] = 2.5  # constant
    pairs: list[tuple[Any, Any]] = [
        (Standardization(dtype=torch.float64), preprocessing.StandardScaler()),
        (MinMaxScaling(dtype=torch.float64), preprocessing.MinMaxScaler()),
        (MinMaxScaling((-2, 5), dtype=torch.float64), preprocessing.MinMaxScaler((-2, 5))),
        (UnitLength(1), preprocessing.Normalizer("l1")),
        (UnitLength(2), preprocessing.Normalizer("l2")),
        (UnitLength(float("inf")), preprocessing.Normalizer("max")),
    ]
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours.fit(x)(x).numpy(), theirs.fit_transform(x.numpy()), rtol=1e-11, atol=1e-12)
    x[:, 3] = torch.randn(60)
    for options in ({}, {"n_components": 3}):
        pca = decomposition.PCA(**options).fit(x.numpy())
        own = PCADecorrelation(dtype=torch.float64, **options).fit(x)
        signs = np.sign((own.matrix.numpy() * pca.components_).sum(1))
        np.testing.assert_allclose(own(x).numpy() * signs, pca.transform(x.numpy()), atol=1e-9)
        np.testing.assert_allclose(
            own.inverse(own(x)).numpy(), pca.inverse_transform(pca.transform(x.numpy())), atol=1e-9
        )
        white = decomposition.PCA(whiten=True, **options).fit(x.numpy())
        own = PCAWhitening(dtype=torch.float64, **options).fit(x)
        np.testing.assert_allclose(own(x).numpy() * signs, white.transform(x.numpy()), atol=1e-8)


@pytest.mark.parametrize("p", [0.5, 1, 2, 3, float("inf")])
@pytest.mark.parametrize("axis", [-1, 1, 0, (1, 2)])
def test_unit_length(p: float, axis: Any) -> None:
    x = data(3, 4, 5)
    x[0] = 0.0
    norm = UnitLength(p, axis)
    array = x.numpy()
    size = (
        np.abs(array).max(axis, keepdims=True)
        if p == float("inf")
        else (np.abs(array) ** p).sum(axis, keepdims=True) ** (1 / p)
    )
    np.testing.assert_allclose(norm(x).numpy(), array / np.maximum(size, 1e-12), rtol=1e-12)
    if isinstance(axis, int):
        np.testing.assert_allclose(norm(x).numpy(), nn.functional.normalize(x, p=p, dim=axis).numpy(), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_types(dtype: torch.dtype) -> None:
    x = data(40, 4)
    for make in (*(pair[0] for pair in ELEMENTWISE.values()), *MATRIX.values()):
        exact = make(axis=-1, dtype=torch.float64).fit(x)
        norm = copy.deepcopy(exact).to(dtype)
        y = norm(x.to(dtype))
        assert y.dtype == dtype
        double = copy.deepcopy(norm).double()(x.to(dtype).double())  # the statistics as they were rounded
        error = float((y.double() - double).abs().max() / double.abs().max())
        assert error <= 8 * torch.finfo(dtype).eps * 4
    long = torch.full((2, 4), 300.0, dtype=dtype)
    np.testing.assert_allclose(UnitLength()(long).float().numpy(), 0.5, rtol=1e-2)  # 300^2 overflows float16


def test_whole_numbers() -> None:
    x = torch.randint(0, 256, (10, 3, 4, 4), dtype=torch.uint8)
    norm = Standardization(axis=1).fit(x)
    assert norm(x).dtype == torch.float32
    np.testing.assert_allclose(norm.mean.numpy(), x.double().mean((0, 2, 3)).numpy(), rtol=1e-6)


def test_state() -> None:
    x = data(30, 4)
    for make in (*(pair[0] for pair in ELEMENTWISE.values()), *MATRIX.values()):
        norm = make(axis=-1).fit(x)
        assert not list(norm.parameters())
        buffer = io.BytesIO()
        torch.save(norm.state_dict(), buffer)
        buffer.seek(0)
        other = make(axis=-1)
        assert not other.fitted
        with pytest.raises(RuntimeError, match="has no statistics yet: call fit"):
            other(x)
        other.load_state_dict(torch.load(buffer))
        assert torch.equal(other(x), norm(x))


def test_prepend() -> None:
    x = data(30, 4).float()
    model = nn.Linear(4, 2)
    both = prepend(Standardization().fit(x), model)
    assert torch.equal(both(x), model(both.norm(x)))
    assert set(both.state_dict()) == {"norm.mean", "norm.std", "model.weight", "model.bias"}

    class Two(nn.Module):
        def forward(self, x: torch.Tensor, times: float, *, plus: float) -> torch.Tensor:
            return x * times + plus

    norm = Centering().fit(x)
    assert torch.equal(prepend(norm, Two())(x, 2.0, plus=1.0), norm(x) * 2.0 + 1.0)


def test_errors() -> None:
    x = data(30, 4)
    cases: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: Standardization().fit(torch.empty(0, 4)), ValueError, "hold no values"),
        (lambda: Centering().fit([]), ValueError, "hold no values"),
        (lambda: Centering().fit(["text"]), TypeError, "an item of data is str"),
        (lambda: Centering().fit(3), TypeError, "data is int"),
        (lambda: Centering().fit([x, x[:, :3]]), ValueError, "has 3 features, earlier 4"),
        (lambda: Centering().fit(torch.tensor([[1.0, float("nan")]])), ValueError, "not finite"),
        (lambda: Centering(axis=2).fit(x), ValueError, "have no axis 2"),
        (lambda: Centering().fit(x)(x[:, :3]), ValueError, "was fitted on 4 features, got 3"),
        (lambda: Centering(axis=2).fit(x[None])(x), ValueError, "got an input of shape"),
        (lambda: Standardization(correction=1).fit(x[:1]), ValueError, "needs two values"),
        (lambda: Standardization(correction=2), ValueError, "must be 0 or 1"),
        (lambda: Centering(dtype=torch.float16).fit(x + 1e6), ValueError, "does not fit into torch.float16"),
        (lambda: MinMaxScaling((1, 0)), ValueError, "the first number must be the smaller one"),
        (
            lambda: PCAWhitening().fit(x[:3]),
            ValueError,
            "vary in 2 directions only; give an epsilon, or n_components of 2",
        ),
        (lambda: ZCAWhitening().fit(torch.cat([x, x], 1)), ValueError, "vary in 4 directions only; give an epsilon"),
        (lambda: PCADecorrelation().fit(x[:1]), ValueError, "needs two samples"),
        (lambda: PCADecorrelation(n_components=5).fit(x), ValueError, "the data have 4 features"),
        (lambda: PCADecorrelation(n_components=0), ValueError, "must be 1 or more"),
        (lambda: ZCAWhitening(epsilon=-1.0), ValueError, "must be 0 or more"),
        (lambda: UnitLength(p=0), ValueError, "must be greater than 0"),
    ]
    for call, kind, words in cases:
        with pytest.raises(kind, match=words):
            call()


def test_epsilon_and_components_make_dependent_features_possible() -> None:
    x = torch.cat([data(30, 3), data(30, 3)], 1)
    assert bool(torch.isfinite(ZCAWhitening(epsilon=1e-3).fit(x)(x)).all())
    white = PCAWhitening(n_components=3, dtype=torch.float64).fit(x)(x)
    np.testing.assert_allclose(np.cov(white.numpy().T), np.eye(3), atol=1e-8)


def test_what_print_shows() -> None:
    assert str(PCAWhitening(n_components=2)) == "PCAWhitening(axis=-1, not fitted, n_components=2, epsilon=0.0)"
    assert str(UnitLength(1, 0)) == "UnitLength(p=1, axis=0, eps=1e-12)"
    assert str(MinMaxScaling(axis=None).fit(data(3, 3))) == "MinMaxScaling((0.0, 1.0), axis=None)"
