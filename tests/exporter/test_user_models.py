"""Models as users write them, exported, run in every way, and compared with their float64 run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

import onnxnorm
from onnxnorm.nn import SwitchableNorm1d, SwitchableNorm2d, SwitchableNorm3d
from onnxnorm.runtime.arrays import from_ort, to_ort
from onnxnorm.runtime.environment import newest_opset

from .conftest import (
    assert_equals_module,
    export_to,
    fed,
    in_another_process,
    lively,
    norms,
    randn,
)

NEWEST = newest_opset()
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
SWITCHABLE = {1: SwitchableNorm1d, 2: SwitchableNorm2d, 3: SwitchableNorm3d}
SIZE = {1: (12,), 2: (6, 5), 3: (4, 5, 3)}


class ConvNet(nn.Module):
    """Convolutions with and without bias, a grouped transposed one, a residual; one norm behind each."""

    def __init__(self, rank: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.first = CONV[rank](3, 8, 3, padding=1, bias=False)
        self.norm1 = norm(8)
        self.up = TRANSPOSED[rank](8, 6, 2, stride=2, groups=2)
        self.norm2 = norm(6)
        self.last = CONV[rank](6, 6, 3, padding=1, groups=3)
        self.norm3 = norm(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm1(self.first(x)))
        x = F.silu(self.norm2(self.up(x)))
        return x + F.gelu(self.norm3(self.last(x)))


class UNet(nn.Module):
    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), norm(8), nn.SiLU())
        self.down = nn.Sequential(nn.Conv2d(8, 16, 2, stride=2), norm(16), nn.SiLU())
        self.up = nn.Sequential(nn.ConvTranspose2d(16, 8, 2, stride=2), norm(8), nn.ReLU())
        self.leave = nn.Conv2d(16, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        high = self.enter(x)
        result: torch.Tensor = self.leave(torch.cat([high, self.up(self.down(high))], 1))
        return result


class Transformer(nn.Module):
    """Pre-norm attention with RMSNorm in a ModuleList, eps None, two-dimensional and without weight."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(20, 16)
        self.norms = nn.ModuleList([nn.RMSNorm(16), nn.RMSNorm(16, eps=1e-6)])
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 16))
        self.final = nn.RMSNorm((4, 4), elementwise_affine=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids)
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        x = x + self.mlp(self.norms[1](x))
        result: torch.Tensor = self.final(x.unflatten(-1, (4, 4)))
        return result


class Functional(nn.Module):
    """F.group_norm and F.rms_norm with each parameter missing, on rank 2, 3 and 4, with 1 and C groups."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))
        self.square = nn.Parameter(torch.ones(5, 8))

    def forward(self, x: torch.Tensor, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rows = image.movedim(1, -1)
        return (
            F.group_norm(x, 2),
            F.group_norm(x, 1, self.w),
            F.group_norm(image, 8, None, self.b, 1e-3),
            F.group_norm(image[..., 0], 4, self.w, self.b),
            F.group_norm(image, 2, self.w * x.mean(), self.b),
            F.rms_norm(rows, (8,)),
            F.silu(F.rms_norm(rows, (8,), self.w, 1e-2)),
            F.rms_norm(rows, (5, 8), self.square),
            F.rms_norm(rows, rows.shape[1:]),
        )


class Shared(nn.Module):
    """Modules that are used twice: every call is folded or fused on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.gn = nn.Conv1d(8, 8, 3, padding=1), nn.BatchNorm1d(8), nn.GroupNorm(2, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn(self.conv(self.bn(self.conv(x))))
        return F.silu(self.gn(x)) + self.gn(self.conv(self.gn(x)))


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gn, self.rms, self.conv, self.bn = nn.GroupNorm(2, 8), nn.RMSNorm(5), nn.Conv1d(8, 8, 1), nn.BatchNorm1d(8)

    def forward(self, x: torch.Tensor) -> Any:
        return torch.cond(x.mean() > 0, lambda x: F.silu(self.gn(x)), lambda x: self.rms(self.bn(self.conv(x))), (x,))


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8)
        )
        self.switchable = SwitchableNorm1d(8)
        self.without_batch = SwitchableNorm1d(8, using_bn=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layers(x)
        result: torch.Tensor = self.switchable(x) + F.relu(self.without_batch(x))
        return result


class Single(nn.Module):
    """One norm and nothing else: a graph without any standard operator."""

    def __init__(self) -> None:
        super().__init__()
        self.gn = nn.GroupNorm(2, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.gn(x)
        return result


@dataclass(frozen=True)
class Case:
    """A model, its inputs, others of other sizes, and how many norms each target must have; None does not count."""

    make: Callable[[], nn.Module]
    args: tuple[Any, ...]
    dynamic: Any = None
    others: tuple[tuple[Any, ...], ...] = ()
    group: int = 0
    flat: int = 0  # group norms of (N, C), which are primitive operators in standard form
    rms: int = 0
    switchable: int = 0
    factor: float = 4.0
    standard_factor: float = field(default=16.0)  # ONNX Runtime's own GroupNormalization is less exact


def convnet(rank: int, norm: Callable[[int], nn.Module], **expected: int) -> Case:
    return Case(lambda: ConvNet(rank, norm), (randn(2, 3, *SIZE[rank]),), **expected)  # type: ignore[arg-type]


IMAGES: Any = ({0: "batch", 2: "height", 3: "width"},)
CASES: dict[str, Case] = {
    **{f"batch-norm-{rank}d": convnet(rank, BATCH[rank]) for rank in (1, 2, 3)},
    **{f"group-norm-{rank}d": convnet(rank, lambda c: nn.GroupNorm(2, c), group=3) for rank in (1, 2, 3)},
    **{f"switchable-norm-{rank}d": convnet(rank, SWITCHABLE[rank], switchable=3) for rank in (1, 2, 3)},
    "instance-norm-2d": convnet(2, lambda c: nn.InstanceNorm2d(c, affine=True), group=3),
    "instance-norm-running": convnet(2, lambda c: nn.InstanceNorm2d(c, track_running_stats=True)),
    "group-norm-no-affine": convnet(2, lambda c: nn.GroupNorm(1, c, affine=False), group=3),
    "u-net-group": Case(
        lambda: UNet(lambda c: nn.GroupNorm(4, c)), (randn(2, 3, 8, 12),), IMAGES, ((randn(1, 3, 6, 4),),), group=3
    ),
    "u-net-batch": Case(lambda: UNet(nn.BatchNorm2d), (randn(2, 3, 8, 12),), IMAGES, ((randn(1, 3, 6, 4),),)),
    "u-net-switchable": Case(
        lambda: UNet(SwitchableNorm2d), (randn(2, 3, 8, 12),), IMAGES, ((randn(3, 3, 6, 4),),), switchable=3
    ),
    "transformer": Case(
        Transformer,
        (torch.arange(14).view(2, 7),),
        ({0: "batch", 1: "length"},),
        ((torch.arange(11).view(1, 11),),),
        rms=3,
    ),
    "functional": Case(Functional, (randn(3, 8), randn(2, 8, 3, 5)), group=5, flat=2, rms=4),
    "shared": Case(Shared, (randn(2, 8, 5),), group=3),
    "branches-first": Case(Branches, (randn(2, 8, 5) * 0.5 + 0.5,), group=1, rms=1),
    "branches-second": Case(Branches, (randn(2, 8, 5) * 0.5 - 0.5,), group=1, rms=1),
    "dense": Case(Dense, (randn(5, 8),), ({0: "batch"},), ((randn(3, 8),),), switchable=2),
}


def expected(case: Case, target: str, opset: int) -> dict[str, int]:
    if target == "onnxnorm":
        counts = {
            "onnxnorm.GroupNorm": case.group,
            "onnxnorm.RMSNorm": case.rms,
            "onnxnorm.SwitchableNorm": case.switchable,
        }
    else:
        counts = {
            "GroupNormalization": case.group - case.flat if opset >= 21 else 0,
            "RMSNormalization": case.rms if opset >= 23 else 0,
        }
    return {name: count for name, count in counts.items() if count}


def without_skip(counts: dict[str, int]) -> dict[str, int]:
    """The skip form of a norm, which it takes behind a residual addition, counts as the norm."""
    result: dict[str, int] = {}
    for name, count in counts.items():
        plain = name.replace("onnxnorm.Skip", "onnxnorm.")
        result[plain] = result.get(plain, 0) + count
    return result


#: Whose standard form has nothing that another case's has not.
ONE_TARGET = {"batch-norm-1d", "group-norm-1d", "switchable-norm-1d", "instance-norm-2d", "instance-norm-running"}
ONE_TARGET |= {"group-norm-no-affine", "u-net-batch", "branches-second", "batch-norm-2d", "switchable-norm-2d"}
WAYS_TO_EXPORT = [(name, "onnxnorm", 18) for name in CASES]
WAYS_TO_EXPORT += [(name, "standard", 23) for name in CASES if name not in ONE_TARGET]


@pytest.mark.parametrize(("name", "target", "opset"), WAYS_TO_EXPORT)
def test_model(name: str, target: str, opset: int, tmp_path: Path) -> None:
    case = CASES[name]
    module = lively(case.make()).train()
    path, model, result = export_to(
        tmp_path, module, case.args, opset=opset, target=target, dynamic_shapes=case.dynamic
    )
    assert without_skip(norms(model)) == expected(case, target, opset), result.explain()
    factor = case.factor if target == "onnxnorm" else case.standard_factor
    for args in (case.args, *case.others):
        assert_equals_module(path, module, args, factor=factor)


CHECKED = ["batch-norm-3d", "u-net-group", "transformer", "branches-first"]


@pytest.mark.parametrize("name", CHECKED)
def test_check_passes(name: str) -> None:
    case = CASES[name]
    module = lively(case.make()).train()
    result = onnxnorm.export(module, case.args, dynamic_shapes=case.dynamic)
    onnxnorm.check(module, result).assert_passed()


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.gn, self.sn, self.rms = nn.GroupNorm(2, 8), SwitchableNorm2d(8), nn.RMSNorm((4, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.silu(self.gn(self.bn(self.conv(x))))
        result: torch.Tensor = F.gelu(self.rms(F.relu(self.sn(x))))
        return result


EVERYTHING = Case(Everything, (randn(2, 3, 6, 5),), group=1, rms=1, switchable=1)


OPSETS = [("standard", opset) for opset in range(18, NEWEST + 1)] + [
    ("onnxnorm", opset) for opset in (None, 21, NEWEST)
]


@pytest.mark.parametrize(("target", "opset"), OPSETS)
def test_every_opset(target: str, opset: int | None, tmp_path: Path) -> None:
    module = lively(Everything())
    path, model, _ = export_to(tmp_path, module, EVERYTHING.args, opset=opset, target=target)
    written = next(entry.version for entry in model.opset_import if entry.domain == "")
    assert norms(model) == expected(EVERYTHING, target, written)
    assert_equals_module(path, module, EVERYTHING.args, factor=8.0)


@pytest.mark.parametrize("opset", [None, 18, 25, NEWEST])
def test_a_single_norm_at_any_opset(opset: int | None, tmp_path: Path) -> None:
    path, model, _ = export_to(tmp_path, lively(Single()), (randn(2, 8, 5),), opset=opset)
    assert norms(model) == {"onnxnorm.GroupNorm": 1}
    assert_equals_module(path, lively(Single()), (randn(2, 8, 5),))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same module at both ends of the opsets, for both targets."""
    paths = []
    for opset, target in ((18, "onnxnorm"), (NEWEST, "onnxnorm"), (18, "standard"), (NEWEST, "standard")):
        folder = tmp_path_factory.mktemp(f"{target}{opset}")
        paths.append(export_to(folder, lively(Everything()), EVERYTHING.args, opset=opset, target=target)[0])
    return paths


@pytest.mark.parametrize("import_onnxnorm", [False, True], ids=["onnxnorm-not-imported", "onnxnorm-imported"])
def test_in_a_process_that_knows_or_does_not_know_onnxnorm(import_onnxnorm: bool, files: list[Path]) -> None:
    want = lively(Everything()).eval()(*EVERYTHING.args).detach().double().numpy().ravel()
    found = in_another_process(files, fed(onnx.load(files[0]), EVERYTHING.args), import_onnxnorm)
    assert set(found) == set(map(str, files))
    for path, ways in found.items():
        for way, (values,) in ways.items():
            assert np.abs(np.array(values) - want).max() < 2e-5 * np.abs(want).max(), (path, way)


def test_folded_weights_are_those_of_a_parametrized_layer(tmp_path: Path) -> None:
    module = nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(3, 8, 3)),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        parametrizations.spectral_norm(nn.Conv2d(8, 8, 3)),
        nn.GroupNorm(2, 8),
    )
    module = lively(module)
    path, _, _ = export_to(tmp_path, module, (randn(2, 3, 8, 8),))
    assert_equals_module(path, module, (randn(2, 3, 8, 8),))


def test_batch_statistics_in_evaluation(tmp_path: Path) -> None:
    """BatchNorm without running statistics normalizes by the batch in eval too, and must not be folded."""
    module = nn.Sequential(nn.Conv1d(8, 8, 1), nn.BatchNorm1d(8, track_running_stats=False))
    path, _, _ = export_to(tmp_path, module, (randn(4, 8, 5),))
    assert_equals_module(path, module, (randn(4, 8, 5, seed=2),))


class Nested(nn.Module):
    """Keyword arguments, nested containers, flags and None in, a nested dictionary out."""

    def __init__(self) -> None:
        super().__init__()
        self.gn, self.rms = nn.GroupNorm(2, 8), nn.RMSNorm(5)

    def forward(
        self, x: torch.Tensor, *, scale: Any = None, pair: Any = None, extra: Any = None, flag: bool = True
    ) -> Any:
        y = self.gn(x)
        y = y if scale is None else y * scale
        y = y if pair is None else y + self.rms(pair[0]) - pair[1]
        y = y if extra is None else y + extra["a"] * extra["b"]["c"]
        return {"y": y if flag else -y, "rest": (y.mean(), [x.argmax(-1)])}


def test_keywords_and_nested_containers(tmp_path: Path) -> None:
    x = [randn(2, 8, 5, seed=seed) for seed in range(6)]
    kwargs = {"scale": x[1], "pair": (x[2], x[3]), "extra": {"a": x[4], "b": {"c": x[5]}}, "flag": False}
    module = lively(Nested())
    path, model, _ = export_to(tmp_path, module, (x[0],), kwargs)
    assert len(model.graph.input) == 6
    assert_equals_module(path, module, (x[0],), kwargs)
    path, model, _ = export_to(tmp_path, module, x[0])
    assert len(model.graph.input) == 1
    assert_equals_module(path, module, (x[0],))
    path, model, _ = export_to(tmp_path, module, (), {"x": x[0], "scale": x[1]})
    assert [item.name for item in model.graph.input] == ["x", "scale"]
    assert_equals_module(path, module, (), {"x": x[0], "scale": x[1]})


DIM = torch.export.Dim
FORMS: dict[str, Any] = {
    "names": ({0: "batch", 2: "height"},),
    "dims": ({0: DIM("batch"), 2: DIM("height")},),
    "auto": ({0: DIM.AUTO, 2: DIM.AUTO},),
    "list": ([DIM.AUTO, DIM.STATIC, DIM.AUTO, DIM.STATIC],),
    "by-argument": {"x": {0: DIM.DYNAMIC, 2: DIM.DYNAMIC}},
}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gn, self.sn = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(4, 8), SwitchableNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.sn(F.silu(self.gn(self.conv(x))))
        return result


@pytest.mark.parametrize("form", list(FORMS))
def test_dynamic_shapes_in_every_form(form: str, tmp_path: Path) -> None:
    module = lively(Block())
    path, model, _ = export_to(tmp_path, module, (randn(2, 3, 6, 5),), dynamic_shapes=FORMS[form])
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert [size.HasField("dim_param") for size in shape] == [True, False, True, False]
    if form in ("names", "dims"):
        assert [shape[0].dim_param, shape[2].dim_param] == ["batch", "height"]
    for n, height in ((2, 6), (1, 9), (5, 1)):
        assert_equals_module(path, module, (randn(n, 3, height, 5),), ways=("plain onnxruntime", "native library"))


class NoChannels(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(F.group_norm(x, 2))


@pytest.mark.parametrize(("target", "opset"), [("onnxnorm", 18), ("standard", 18), ("standard", 21)])
def test_dynamic_channels_without_parameters(target: str, opset: int, tmp_path: Path) -> None:
    """The constants of a missing weight and bias must follow the channel count."""
    shapes = ({0: DIM("n"), 1: 2 * DIM("half")},)
    path, _, _ = export_to(tmp_path, NoChannels(), (randn(2, 8, 5),), dynamic_shapes=shapes, opset=opset, target=target)
    for n, channels in ((2, 8), (3, 4), (1, 12)):
        assert_equals_module(path, NoChannels(), (randn(n, channels, 5),), factor=16.0)


def test_batch_one_as_example_of_a_dynamic_batch(tmp_path: Path) -> None:
    module = lively(Block())
    path, _, _ = export_to(tmp_path, module, (randn(1, 3, 6, 5),), dynamic_shapes=({0: "batch"},))
    for batch in (1, 3):
        assert_equals_module(path, module, (randn(batch, 3, 6, 5),), ways=("plain onnxruntime", "native library"))


DTYPES = [torch.float16, torch.bfloat16, torch.float64]


class Norms(nn.Module):
    """Norms and activations alone: ONNX Runtime's CPU provider has no bfloat16 or float64 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.gn, self.rms, self.sn = nn.GroupNorm(2, 8), nn.RMSNorm(5, eps=1e-3), SwitchableNorm1d(8, using_in=True)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return F.silu(self.gn(x)), F.gelu(self.rms(x)), F.relu(self.sn(x))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("opset", [18, 23])
def test_dtypes(dtype: torch.dtype, opset: int, tmp_path: Path) -> None:
    module = lively(Norms()).to(dtype)
    x = randn(3, 8, 5).to(dtype)
    path, model, _ = export_to(tmp_path, module, (x,), opset=opset)
    assert norms(model) == {"onnxnorm.GroupNorm": 1, "onnxnorm.RMSNorm": 1, "onnxnorm.SwitchableNorm": 1}
    assert {node.op_type for node in model.graph.node} == {"GroupNorm", "RMSNorm", "SwitchableNorm"}
    assert_equals_module(path, module, (x,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("kind", ["GroupNorm", "RMSNorm"])
def test_half_input_and_float32_parameters(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """PyTorch takes these together; the ONNX op has one type."""
    module = lively(nn.GroupNorm(2, 8) if kind == "GroupNorm" else nn.RMSNorm(5))
    x = randn(3, 8, 5).to(dtype)
    path, model, _ = export_to(tmp_path, module, (x,))
    want = module(x).detach()
    for run in ("plain", "library"):
        session = onnxnorm.InferenceSession(path, providers=["CPUExecutionProvider"], library=run == "library")
        (value,) = session.run_with_ort_values(None, {name: to_ort(array) for name, array in fed(model, (x,)).items()})
        output = from_ort(value).astype(np.float64)
        scale = float(want.double().abs().max())
        assert np.abs(output - want.double().numpy()).max() <= 8 * torch.finfo(dtype).eps * scale
