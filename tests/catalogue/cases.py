"""One module or more for each row of the catalogue and each place it can stand in."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import onnxnorm.nn as own

from . import handwritten as hand

CONV = {"1d": nn.Conv1d, "2d": nn.Conv2d, "3d": nn.Conv3d}
SHAPES = {"1d": (4, 3, 11), "2d": (4, 3, 7, 6), "3d": (3, 3, 5, 4, 6)}
C = 6


@dataclass(frozen=True)
class Case:
    """A module, an input, and what its graphs must hold.

    Attributes:
        row: key of its row.
        label: what it is.
        make: makes the module, with statistics as after training.
        shape: shape of the example input.
        place: which of the row's places it covers.
        leaves: operators of the eval graph in float32; None where there is nothing to fold or fuse yet.
        trains: an operator that the training graph must hold.
        spatial: whether sizes behind axis 1 are dynamic too.
        types: whether it runs in every element type.
        training: whether there is a training graph to compare.

    """

    row: str
    label: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    place: str
    leaves: tuple[str, ...] | None = None
    trains: str | None = None
    spatial: bool = False
    types: bool = False
    training: bool = True

    @property
    def id(self) -> str:
        return f"{self.row}-{self.label}"


def trained(module: nn.Module) -> nn.Module:
    """Random weights and running statistics in place of the ones and zeros of a new module."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in (*module.named_buffers(), *module.named_parameters()):
        leaf = name.rpartition(".")[2]
        if not tensor.is_floating_point() or leaf.endswith(("_u", "_v")) or leaf == "u":
            continue
        if any(word in leaf for word in ("var", "std", "sigma", "scale")):
            tensor.data.uniform_(0.5, 2.0, generator=generator)
        elif "mean" in leaf or leaf == "bias":
            tensor.data.normal_(0.0, 0.5, generator=generator)
        elif leaf == "weight" and tensor.dim() == 1:
            tensor.data.uniform_(0.5, 1.5, generator=generator)
    return module


def net(place: str, norm: Callable[[], nn.Module], conv: Callable[..., nn.Module] | None = None) -> Callable[[], Any]:
    """A convolution with the norm behind it."""
    layer = CONV[place] if conv is None else conv
    return lambda: trained(nn.Sequential(layer(3, C, 3), norm()))


def alone(make: Callable[[], nn.Module]) -> Callable[[], Any]:
    return lambda: trained(make())


def _family(row: str, kinds: dict[str, Any], leaves: tuple[str, ...], trains: str | None, **options: Any) -> list[Case]:
    """The norm behind a convolution in each dimension, and alone in every type."""
    cases = [
        Case(row, place, net(place, lambda kind=kind: kind(C, **options)), SHAPES[place], place, leaves, trains, True)
        for place, kind in kinds.items()
    ]
    alone_2d = alone(lambda: kinds["2d"](C, **options))
    return [*cases, Case(row, "alone", alone_2d, (4, C, 5, 6), "2d", trains=trains, types=True)]


def _three(name: str) -> dict[str, Any]:
    return {place: getattr(own, f"{name}{place}") for place in CONV}


def _torch(name: str) -> dict[str, Any]:
    return {place: getattr(nn, f"{name}{place}") for place in CONV}


def _batch_norm() -> list[Case]:
    row, image = "batch-norm", (4, C, 5, 6)
    cumulative = alone(lambda: nn.BatchNorm2d(C, momentum=None))
    return [
        *_family(row, _torch("BatchNorm"), ("Conv",), "BatchNormTraining"),
        Case(row, "rank-2", alone(lambda: nn.Sequential(nn.Linear(3, C), nn.BatchNorm1d(C))), (4, 3), "1d", ("Gemm",)),
        Case(row, "not-affine", alone(lambda: nn.BatchNorm2d(C, affine=False)), image, "2d", ("BatchNormalization",)),
        Case(row, "not-tracked", alone(lambda: nn.BatchNorm2d(C, track_running_stats=False)), image, "2d",
             ("BatchNormTraining",), "BatchNormTraining", types=True),
        Case(row, "cumulative", cumulative, image, "2d", trains="BatchNormTraining"),
        Case(row, "sync", net("2d", lambda: nn.SyncBatchNorm(C)), SHAPES["2d"], "2d", ("Conv",), training=False),
        Case(row, "by-hand", alone(lambda: hand.HandBatchNorm(C)), image, "2d", types=True),
        Case(row, "by-hand-cumulative", alone(lambda: hand.HandBatchNorm(C, None)), image, "2d"),
    ]  # fmt: skip


def _layer_norm() -> list[Case]:
    row = "layer-norm"
    return [
        *_family(row, _three("LayerNorm"), ("Conv", "LayerNorm"), None),
        Case(row, "rows", alone(lambda: nn.LayerNorm(8)), (4, 5, 8), "1d", ("LayerNorm",), types=True),
        Case(row, "two-axes", alone(lambda: nn.LayerNorm((5, 8))), (4, 3, 5, 8), "2d", ("LayerNorm",)),
        Case(row, "without-bias", alone(lambda: nn.LayerNorm(8, bias=False)), (4, 8), "1d", ("LayerNorm",)),
        Case(row, "not-affine", alone(lambda: nn.LayerNorm(8, elementwise_affine=False)), (4, 8), "1d"),
        Case(row, "by-hand", alone(lambda: hand.HandLayerNorm(C)), (4, C, 5, 6), "2d", types=True),
    ]


def _instance_norm() -> list[Case]:
    row, image = "instance-norm", (4, C, 5, 6)
    tracked = {"affine": True, "track_running_stats": True}
    return [
        *_family(row, _torch("InstanceNorm"), ("Conv",), "InstanceNormTraining", **tracked),
        Case(row, "not-tracked", net("2d", lambda: nn.InstanceNorm2d(C)), SHAPES["2d"], "2d", ("Conv", "GroupNorm"),
             "GroupNorm", True),
        Case(row, "alone-not-tracked", alone(lambda: nn.InstanceNorm2d(C, affine=True)), image, "2d", ("GroupNorm",),
             types=True),
        Case(row, "by-hand", alone(lambda: hand.HandInstanceNorm(C)), image, "2d", types=True),
        Case(row, "by-hand-tracked", alone(lambda: hand.HandInstanceNorm(C, True)), image, "2d"),
    ]  # fmt: skip


def _group_norm() -> list[Case]:
    row = "group-norm"
    leaves = ("Conv", "GroupNorm")
    groups = {"1d": 1, "2d": 3, "3d": C}
    return [
        *(
            Case(row, place, net(place, lambda g=g: nn.GroupNorm(g, C)), SHAPES[place], place, leaves, None, True)
            for place, g in groups.items()
        ),
        Case(row, "alone", alone(lambda: nn.GroupNorm(2, C)), (4, C, 5, 6), "2d", ("GroupNorm",), types=True),
        Case(row, "rank-2", alone(lambda: nn.GroupNorm(2, C)), (4, C), "(N, C)", ("GroupNorm",), types=True),
        Case(row, "not-affine", alone(lambda: nn.GroupNorm(2, C, affine=False)), (4, C, 9), "1d", ("GroupNorm",)),
        Case(row, "by-hand", alone(lambda: hand.HandGroupNorm(2, C)), (4, C, 5, 6), "2d", types=True),
    ]


def _rms_norm() -> list[Case]:
    row, rows = "rms-norm", (4, 5, 8)
    return [
        *_family(row, _three("RMSNorm"), ("Conv", "RMSNorm"), None),
        Case(row, "rows", alone(lambda: nn.RMSNorm(8)), rows, "rows", ("RMSNorm",), types=True),
        Case(row, "without-weight", alone(lambda: nn.RMSNorm(8, elementwise_affine=False)), rows, "rows", ("RMSNorm",)),
        *(
            Case(row, f"by-hand-{order}{'-shifted' * shifted}",
                 lambda order=order, shifted=shifted: hand.HandRMSNorm(8, order, shifted), rows, "rows", ("RMSNorm",),
                 types=True)
            for order in ("llama", "gemma") for shifted in (False, True)
        ),
        Case(row, "by-hand-channels", lambda: hand.HandChannelRMSNorm(C), (4, C, 5, 6), "2d", types=True),
    ]  # fmt: skip


def _switchable_norm() -> list[Case]:
    row, authors = "switchable-norm", hand.AuthorsStyleSwitchableNorm
    image, leaves = (4, C, 5, 6), ("SwitchableNorm",)
    return [
        *_family(
            row, {**_three("SwitchableNorm"), "1d": lambda c: own.SwitchableNorm1d(c, using_in=True)},
            ("Conv", "SwitchableNorm"), "SwitchableNormTraining",
        ),
        Case(row, "rank-2", alone(lambda: own.SwitchableNorm1d(C)), (4, C), "1d", trains="SwitchableNormTraining"),
        Case(row, "without-batch", alone(lambda: own.SwitchableNorm2d(C, using_bn=False)), image, "2d"),
        Case(row, "cumulative", alone(lambda: own.SwitchableNorm2d(C, momentum=None)), image, "2d"),
        Case(row, "authors-2d", alone(lambda: authors(C)), image, "2d", leaves, types=True),
        Case(row, "authors-1d", alone(lambda: authors(C, one_dimensional=True)), (4, C), "1d", leaves),
        Case(row, "authors-3d", alone(lambda: authors(C)), (4, C, 3, 4, 3), "3d", leaves),
        Case(row, "authors-average", alone(lambda: authors(C, using_moving_average=False)), image, "2d", leaves),
        Case(row, "authors-without-batch", alone(lambda: authors(C, using_bn=False)), image, "2d", leaves),
    ]  # fmt: skip


def _filter_response_norm() -> list[Case]:
    row, image, leaves = "filter-response-norm", (4, C, 5, 6), ("FilterResponseNorm",)
    return [
        *_family(row, _three("FilterResponseNorm"), ("Conv", "FilterResponseNorm"), None),
        Case(row, "without-threshold", alone(lambda: nn.Sequential(own.FilterResponseNorm2d(C, tlu=False), nn.SiLU())),
             image, "2d", leaves),
        Case(row, "timm-threshold", alone(lambda: _timm_norm("FilterResponseNormTlu2d", C)), image, "2d", leaves),
        Case(row, "timm-activation", alone(lambda: _timm_norm("FilterResponseNormAct2d", C)), image, "2d", leaves),
        Case(row, "by-hand", lambda: hand.HandFilterResponseNorm(C), image, "2d", leaves, types=True),
    ]  # fmt: skip


def _evo_norm() -> list[Case]:
    row, image, leaves = "evo-norm", (4, C, 5, 6), ("EvoNormS0",)
    kinds = {place: getattr(own, f"EvoNorm{place}S0") for place in CONV}
    return [
        *_family(row, kinds, ("Conv", "EvoNormS0"), None, num_groups=2),
        Case(row, "timm", alone(lambda: _timm_norm("EvoNorm2dS0", C, groups=3)), image, "2d", leaves),
        Case(row, "by-hand", lambda: hand.HandEvoNormS0(C, 3), image, "2d", leaves, types=True),
    ]


def _global_response_norm() -> list[Case]:
    row, image, leaves = "global-response-norm", (4, 5, 6, C), ("GlobalResponseNorm",)
    last = alone(lambda: nn.Sequential(nn.Linear(C, C), nn.GELU(), own.GlobalResponseNorm(C, channels_last=True)))
    return [
        *_family(row, dict.fromkeys(CONV, own.GlobalResponseNorm), ("Conv", "GlobalResponseNorm"), None),
        Case(row, "channels-last", last, image, "2d", ("MatMul", "Add", "GlobalResponseNorm")),
        Case(row, "timm", alone(lambda: _timm_norm("GlobalResponseNorm", C)), image, "2d", leaves),
        Case(row, "by-hand", lambda: hand.HandGlobalResponseNorm(C), image, "2d", leaves, types=True),
    ]


def _weight_side() -> list[Case]:
    cases = []
    layers: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
        "Linear": (lambda: nn.Linear(3, C), (4, 3), "Gemm"),
        "Conv 1d": (lambda: nn.Conv1d(3, C, 3), SHAPES["1d"], "Conv"),
        "Conv 2d": (lambda: nn.Conv2d(3, C, 3), SHAPES["2d"], "Conv"),
        "Conv 3d": (lambda: nn.Conv3d(3, C, 3), SHAPES["3d"], "Conv"),
        "ConvTranspose": (lambda: nn.ConvTranspose2d(3, C, 3), SHAPES["2d"], "ConvTranspose"),
        "Embedding": (lambda: nn.Embedding(9, 5), (4, 7), "Gather"),
    }
    for place, (make, shape, operator) in layers.items():
        for label, weight_norm in (("old", nn.utils.weight_norm), ("new", parametrizations.weight_norm)):
            for dim in (0, 1, None) if place in ("Linear", "Conv 2d") else (0,):
                if dim is None and label == "new":
                    dim = -1  # noqa: PLW2901  (None is a norm over all axes in the old form only)
                build = lambda w=weight_norm, m=make, d=dim: w(m(), dim=d)  # noqa: E731
                cases.append(
                    Case("weight-norm", f"{label}-{place}-{dim}".replace(" ", "-"), build, shape, place, (operator,),
                         types=place in ("Linear", "Embedding") and dim == 0)
                )  # fmt: skip
        for label, spectral_norm in (("old", nn.utils.spectral_norm), ("new", parametrizations.spectral_norm)):
            build = lambda s=spectral_norm, m=make: s(m())  # noqa: E731
            cases.append(
                Case("spectral-norm", f"{label}-{place}".replace(" ", "-"), build, shape, place, (operator,),
                     types=place in ("Linear", "Embedding"))
            )  # fmt: skip
    image = SHAPES["2d"]
    cases += [
        Case("weight-norm", "by-hand", lambda: hand.HandWeightNormConv(3, C, 3), image, "Conv 2d", ("Conv",)),
        Case(
            "spectral-norm", "by-hand", lambda: hand.HandSpectralLinear(3, C), (4, 3), "Linear", ("Gemm",), types=True
        ),
    ]
    return cases


class StandardizedLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(self.weight, dim=1, keepdim=True, unbiased=False)
        return nn.functional.linear(x, (self.weight - mean) / torch.sqrt(var + 1e-6), self.bias)


class StandardizedConv1d(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        weight = nn.functional.layer_norm(self.weight, self.weight.shape[1:])
        return self._conv_forward(x, weight, self.bias)


class StandardizedConv3d(nn.Conv3d):
    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.flatten(1)
        flat = nn.functional.batch_norm(flat[None], None, None, training=True, eps=1e-6)
        return self._conv_forward(x, flat.view_as(self.weight), self.bias)


def _timm(name: str) -> nn.Module:
    """A convolution of timm, which tests import through the fixture ``zoo``."""
    layers = importlib.import_module("timm.layers")
    conv: nn.Module = getattr(layers, name)(3, C, 3)
    return conv


def _timm_norm(name: str, channels: int, **options: Any) -> nn.Module:
    """A norm of timm; ``timm.layers`` does not show all of them."""
    module = importlib.import_module("timm.layers.grn" if name == "GlobalResponseNorm" else "timm.layers")
    norm: nn.Module = getattr(module, name)(channels, **options)
    return norm


def _weight_standardization() -> list[Case]:
    row = "weight-standardization"

    def with_group_norm(conv: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        return alone(lambda: nn.Sequential(conv(), nn.GroupNorm(2, C)))

    image, leaves = SHAPES["2d"], ("Conv", "GroupNorm")
    return [
        Case(row, "by-hand", with_group_norm(lambda: hand.HandStandardizedConv(3, C, 3)), image, "Conv 2d", leaves),
        Case(row, "timm-std", with_group_norm(lambda: _timm("StdConv2d")), image, "Conv 2d", leaves),
        Case(row, "timm-scaled", with_group_norm(lambda: _timm("ScaledStdConv2d")), image, "Conv 2d", leaves),
        Case(row, "conv1d", with_group_norm(lambda: StandardizedConv1d(3, C, 3)), SHAPES["1d"], "Conv 1d", leaves),
        Case(row, "conv3d", with_group_norm(lambda: StandardizedConv3d(3, C, 3)), SHAPES["3d"], "Conv 3d", leaves),
        Case(row, "linear", lambda: StandardizedLinear(3, C), (4, 3), "Linear", ("Gemm",), types=True),
    ]


def _data(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    features = shape[1]
    mix = torch.randn(features, features, generator=generator)
    values = torch.randn(shape, generator=generator).movedim(1, -1) @ mix
    return values.movedim(-1, 1) * 3 + 2


def _input_normalization() -> list[Case]:
    cases = []
    channels = {"axis": 1}
    rows: dict[str, dict[str, Callable[..., nn.Module]]] = {
        "rescaling": {
            "min-max": own.MinMaxScaling,
            "min-max-symmetric": lambda **o: own.MinMaxScaling((-1.0, 1.0), **o),
            "mean": own.MeanNormalization,
        },
        "standardization": {"standardization": own.Standardization, "centering": own.Centering},
    }
    for row, kinds in rows.items():
        for label, kind in kinds.items():
            linear = lambda k=kind: own.prepend(k().fit(_data(50, 3)), nn.Linear(3, C))  # noqa: E731
            cases.append(Case(row, f"{label}-linear", linear, (4, 3), "Linear", ("Gemm",), types=True))
        for place, conv in CONV.items():
            kind = next(iter(kinds.values()))
            shape = (20, *SHAPES[place][1:])
            build = lambda k=kind, c=conv, s=shape: own.prepend(k(**channels).fit(_data(*s)), c(3, C, 3))  # noqa: E731
            cases.append(Case(row, f"conv{place}", build, SHAPES[place], f"Conv {place}", ("Conv",), None, True))
        padded = lambda k=kind: own.prepend(k(**channels).fit(_data(20, 3, 7, 6)), nn.Conv2d(3, C, 3, padding=1))  # noqa: E731
        cases.append(Case(row, "padded", padded, SHAPES["2d"], "Conv 2d", ("Add", "Conv")))
    cases += [
        Case(
            "unit-length",
            f"p-{p:g}",
            lambda p=p: own.UnitLength(p),
            (4, 5),
            "any axis",
            ("L2Norm",) if p == 2.0 else None,
            types=True,
        )
        for p in (1.0, 2.0, 3.0, float("inf"))
    ]
    cases.append(Case("unit-length", "channels", lambda: own.UnitLength(axis=1), (4, 3, 5, 6), "any axis", ("L2Norm",)))
    scaled = alone(lambda: own.L2Norm2d(3))
    cases.append(Case("unit-length", "scaled", scaled, (4, 3, 5, 6), "any axis", ("L2Norm",)))
    cases.append(Case("unit-length", "by-hand", lambda: hand.HandUnitLength(2.0), (4, 5), "any axis", ("L2Norm",)))
    for label, kind in (("pca", own.PCADecorrelation), ("pca-whitening", own.PCAWhitening), ("zca", own.ZCAWhitening)):
        before_linear = lambda k=kind: own.prepend(k().fit(_data(50, 3)), nn.Linear(3, C))  # noqa: E731
        bare = lambda k=kind: k().fit(_data(50, 3))  # noqa: E731
        cases.append(
            Case("whitening", f"{label}-linear", before_linear, (4, 3), "features of (N, D)", ("Gemm",), types=True)
        )
        cases.append(Case("whitening", f"{label}-sequence", bare, (4, 7, 3), "features of (N, L, D)"))
    return cases


def _by_hand() -> list[Case]:
    image = (4, C, 5, 6)
    return [
        Case(
            "batch-instance-norm",
            "by-hand",
            alone(lambda: hand.HandBatchInstanceNorm(C)),
            image,
            "2d",
            ("BatchInstanceNorm",),
            types=True,
        ),
        Case("batch-renorm", "by-hand", alone(lambda: hand.HandBatchRenorm(C)), image, "2d", types=True),
        Case("mean-only-batch-norm", "by-hand", alone(lambda: hand.HandMeanOnlyBatchNorm(C)), image, "2d", types=True),
        Case("l1-batch-norm", "by-hand", alone(lambda: hand.HandL1BatchNorm(C)), image, "2d", types=True),
    ]


def _mean_only() -> list[Case]:
    """Behind convolutions with weight norm, as the paper has it."""
    row = "mean-only-batch-norm"
    cases = []
    for place, conv in CONV.items():
        normed = lambda i, o, k, c=conv: parametrizations.weight_norm(c(i, o, k, bias=False))  # noqa: E731
        kind = getattr(own, f"MeanOnlyBatchNorm{place}")
        make = net(place, lambda kind=kind: kind(C), normed)
        cases.append(Case(row, place, make, SHAPES[place], place, ("Conv",), "MeanOnlyBatchNormTraining", True))
    return [*cases, Case(row, "alone", alone(lambda: own.MeanOnlyBatchNorm2d(C)), (4, C, 5, 6), "2d", types=True)]


#: What these rows compute does not depend on the mode: a training graph of one case shows that it is the same.
STATELESS = frozenset(
    {
        "evo-norm",
        "filter-response-norm",
        "global-response-norm",
        "group-norm",
        "layer-norm",
        "rescaling",
        "rms-norm",
        "standardization",
        "unit-length",
        "weight-norm",
        "weight-standardization",
        "whitening",
    }
)


def _once(cases: tuple[Case, ...]) -> tuple[Case, ...]:
    """Keeps the training graph of one case, that of every type, for rows without state."""
    typed = {case.row: case.id for case in cases if case.types}
    return tuple(
        replace(case, training=case.training and (case.row not in STATELESS or typed[case.row] == case.id))
        for case in cases
    )


_ALL: tuple[Case, ...] = (
    *_batch_norm(),
    *_layer_norm(),
    *_instance_norm(),
    *_group_norm(),
    *_rms_norm(),
    *_switchable_norm(),
    *_family(
        "batch-instance-norm", _three("BatchInstanceNorm"), ("Conv", "BatchInstanceNorm"), "BatchInstanceNormTraining"
    ),
    *_filter_response_norm(),
    *_evo_norm(),
    *_global_response_norm(),
    *_family("batch-renorm", _three("BatchRenorm"), ("Conv",), "BatchRenormTraining"),
    *_mean_only(),
    *_family("l1-batch-norm", _three("L1BatchNorm"), ("Conv",), "L1BatchNormTraining"),
    *_weight_side(),
    *_weight_standardization(),
    *_input_normalization(),
    *_by_hand(),
)
CASES = _once(_ALL)
