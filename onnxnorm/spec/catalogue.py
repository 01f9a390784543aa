"""The catalogue: every normalization of the field that onnxnorm exports, and what becomes of it.

One row for each; the README's table is written from it, and ``tests/catalogue`` has a test for each of its cells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

#: Columns of the table that are the same promise for every row; each has a test of its name for each row.
TYPES = "f32 f16 bf16 f64"


@dataclass(frozen=True)
class Row:
    """One normalization.

    Attributes:
        key: short name, as in test ids.
        title: its name in the field.
        source: who introduced it.
        modules: the PyTorch modules: torch's own or onnxnorm's; modules written by hand export as well.
        evaluation: what an eval graph holds.
        training: what a training graph holds.
        standard: what it is with ``target="standard"``.
        places: 1d, 2d and 3d, or the layers whose weight it normalizes.
        types: element types of the norm itself.
        reference: the module of ``onnxnorm.norms`` with its float64 definition.
        model: the trained reference model in ``models/``.

    """

    key: str
    title: str
    source: str
    modules: str
    evaluation: str
    training: str
    standard: str
    places: str
    reference: str
    model: str
    types: str = TYPES


_DIMENSIONS = "1d, 2d, 3d"
_NO_CONV = "Conv in f32, f16, bf16: ONNX Runtime CPU has no f64 Conv"
_LAYERS = f"Linear, Conv 1d/2d/3d, ConvTranspose, Embedding ({_NO_CONV})"
_CONV = f"Linear, Conv 1d/2d/3d ({_NO_CONV})"
_PRIMITIVE = "primitive operators"
_FOLDED = "folded into the layer beside it, else BatchNormalization"

ROWS: tuple[Row, ...] = (
    Row(
        key="batch-norm",
        title="Batch norm",
        source="Ioffe and Szegedy 2015",
        modules="`torch.nn.BatchNorm1d/2d/3d`, `SyncBatchNorm` (eval)",
        evaluation=f"{_FOLDED}; BatchNormTraining without tracked statistics",
        training="BatchNormTraining",
        standard=f"BatchNormalization; {_PRIMITIVE}",
        places=_DIMENSIONS,
        reference="batch_norm_training",
        model="batch_norm_cnn",
    ),
    Row(
        key="layer-norm",
        title="Layer norm",
        source="Ba et al. 2016",
        modules="`torch.nn.LayerNorm`, `onnxnorm.nn.LayerNorm1d/2d/3d` over the channels",
        evaluation="LayerNorm; LayerNormalization over rows on CUDA",
        training="the same, no state",
        standard=f"LayerNormalization; {_PRIMITIVE}",
        places=_DIMENSIONS,
        reference="layer_norm",
        model="layer_norm_convnext",
    ),
    Row(
        key="instance-norm",
        title="Instance norm",
        source="Ulyanov et al. 2016",
        modules="`torch.nn.InstanceNorm1d/2d/3d`",
        evaluation="GroupNorm; folded where it applies tracked statistics",
        training="GroupNorm; InstanceNormTraining where it tracks statistics",
        standard=f"GroupNormalization (opset 21); {_PRIMITIVE}",
        places=_DIMENSIONS,
        reference="instance_norm_training",
        model="instance_norm_cnn",
    ),
    Row(
        key="group-norm",
        title="Group norm",
        source="Wu and He 2018",
        modules="`torch.nn.GroupNorm`",
        evaluation="GroupNorm",
        training="the same, no state",
        standard=f"GroupNormalization (opset 21); {_PRIMITIVE}",
        places=f"{_DIMENSIONS}, (N, C)",
        reference="group_norm",
        model="group_norm_cnn",
    ),
    Row(
        key="rms-norm",
        title="RMSNorm",
        source="Zhang and Sennrich 2019",
        modules="`torch.nn.RMSNorm`, `onnxnorm.nn.RMSNorm1d/2d/3d` over the channels",
        evaluation="RMSNorm",
        training="the same, no state",
        standard=f"RMSNormalization (opset 23); {_PRIMITIVE}",
        places=f"{_DIMENSIONS}, rows",
        reference="rms_norm",
        model="rms_norm_transformer",
    ),
    Row(
        key="switchable-norm",
        title="Switchable norm",
        source="Luo et al. 2018",
        modules="`onnxnorm.nn.SwitchableNorm1d/2d/3d`",
        evaluation="SwitchableNorm",
        training="SwitchableNormTraining",
        standard=_PRIMITIVE,
        places=_DIMENSIONS,
        reference="switchable_norm",
        model="switchable_norm_cnn",
    ),
    Row(
        key="batch-instance-norm",
        title="Batch-instance norm",
        source="Nam and Kim 2018",
        modules="`onnxnorm.nn.BatchInstanceNorm1d/2d/3d`",
        evaluation="BatchInstanceNorm",
        training="BatchInstanceNormTraining",
        standard=_PRIMITIVE,
        places=_DIMENSIONS,
        reference="batch_instance_norm",
        model="batch_instance_norm_cnn",
    ),
    Row(
        key="filter-response-norm",
        title="Filter response norm, with its threshold",
        source="Singh and Krishnan 2019",
        modules="`onnxnorm.nn.FilterResponseNorm1d/2d/3d`, timm's `FilterResponseNormTlu2d`",
        evaluation="FilterResponseNorm",
        training="the same, no state",
        standard=_PRIMITIVE,
        places=_DIMENSIONS,
        reference="filter_response_norm",
        model="filter_response_norm_cnn",
    ),
    Row(
        key="evo-norm",
        title="EvoNorm-S0",
        source="Liu et al. 2020",
        modules="`onnxnorm.nn.EvoNorm1dS0/2dS0/3dS0`, timm's `EvoNorm2dS0`",
        evaluation="EvoNormS0",
        training="the same, no state",
        standard=_PRIMITIVE,
        places=_DIMENSIONS,
        reference="evo_norm_s0",
        model="evo_norm_cnn",
    ),
    Row(
        key="global-response-norm",
        title="Global response norm",
        source="Woo et al. 2023",
        modules="`onnxnorm.nn.GlobalResponseNorm`, timm's `GlobalResponseNorm`",
        evaluation="GlobalResponseNorm",
        training="the same, no state",
        standard=_PRIMITIVE,
        places=_DIMENSIONS,
        reference="global_response_norm",
        model="global_response_norm_convnext",
    ),
    Row(
        key="batch-renorm",
        title="Batch renormalization",
        source="Ioffe 2017",
        modules="`onnxnorm.nn.BatchRenorm1d/2d/3d`",
        evaluation=_FOLDED,
        training="BatchRenormTraining",
        standard=f"BatchNormalization; {_PRIMITIVE}",
        places=_DIMENSIONS,
        reference="batch_renorm_training",
        model="batch_renorm_cnn",
    ),
    Row(
        key="mean-only-batch-norm",
        title="Mean-only batch norm, with weight norm",
        source="Salimans and Kingma 2016",
        modules="`onnxnorm.nn.MeanOnlyBatchNorm1d/2d/3d`",
        evaluation=_FOLDED,
        training="MeanOnlyBatchNormTraining",
        standard=f"BatchNormalization; {_PRIMITIVE}",
        places=_DIMENSIONS,
        reference="mean_only_batch_norm_training",
        model="mean_only_batch_norm_cnn",
    ),
    Row(
        key="l1-batch-norm",
        title="L1 batch norm",
        source="Hoffer et al. 2018",
        modules="`onnxnorm.nn.L1BatchNorm1d/2d/3d`",
        evaluation=_FOLDED,
        training="L1BatchNormTraining",
        standard=f"BatchNormalization; {_PRIMITIVE}",
        places=_DIMENSIONS,
        reference="l1_batch_norm_training",
        model="l1_batch_norm_cnn",
    ),
    Row(
        key="weight-norm",
        title="Weight norm",
        source="Salimans and Kingma 2016",
        modules="`torch.nn.utils.weight_norm`, `torch.nn.utils.parametrizations.weight_norm`",
        evaluation="folded into a plain weight",
        training="folded into a plain weight: it has no state",
        standard="the plain layer",
        places=_LAYERS,
        reference="weight_norm",
        model="weight_norm_cnn",
    ),
    Row(
        key="spectral-norm",
        title="Spectral norm",
        source="Miyato et al. 2018",
        modules="`torch.nn.utils.spectral_norm`, `torch.nn.utils.parametrizations.spectral_norm`",
        evaluation="folded into a plain weight",
        training=f"power iteration in {_PRIMITIVE}, u and v as state",
        standard=f"the plain layer; {_PRIMITIVE}",
        places=_LAYERS,
        reference="spectral_norm",
        model="spectral_norm_cnn",
    ),
    Row(
        key="weight-standardization",
        title="Weight standardization, with group norm",
        source="Qiao et al. 2019",
        modules="timm's `StdConv2d` and `ScaledStdConv2d`, convolutions written by hand",
        evaluation="folded into a plain weight",
        training="folded into a plain weight: it has no state",
        standard="the plain layer",
        places=_CONV,
        reference="weight_standardization",
        model="weight_standardization_resnet",
    ),
    Row(
        key="rescaling",
        title="Input rescaling: min-max, mean normalization",
        source="textbook; scikit-learn's MinMaxScaler",
        modules="`onnxnorm.nn.MinMaxScaling`, `MeanNormalization`",
        evaluation="folded into the first layer; one Add stays before a zero-padded Conv",
        training="the same, no state",
        standard="the same",
        places=_CONV,
        reference="input_normalization",
        model="input_standardization_cnn",
    ),
    Row(
        key="standardization",
        title="Input standardization, centering",
        source="textbook; scikit-learn's StandardScaler",
        modules="`onnxnorm.nn.Standardization`, `Centering`",
        evaluation="folded into the first layer; one Add stays before a zero-padded Conv",
        training="the same, no state",
        standard="the same",
        places=_CONV,
        reference="input_normalization",
        model="input_standardization_cnn",
    ),
    Row(
        key="unit-length",
        title="Unit length: L1, L2, any p",
        source="textbook; scikit-learn's Normalizer",
        modules="`onnxnorm.nn.UnitLength`, `torch.nn.functional.normalize`, `onnxnorm.nn.L2Norm1d/2d/3d` with a scale",
        evaluation=f"L2Norm where p is 2, else {_PRIMITIVE}",
        training="the same, no state",
        standard=_PRIMITIVE,
        places="any axis",
        reference="input_normalization",
        model="input_whitening_mlp",
    ),
    Row(
        key="whitening",
        title="Decorrelation (PCA), PCA and ZCA whitening",
        source="Kessy et al. 2018; scikit-learn's PCA",
        modules="`onnxnorm.nn.PCADecorrelation`, `PCAWhitening`, `ZCAWhitening`",
        evaluation="merged into a first Linear, else one MatMul or Gemm",
        training="the same, no state",
        standard="the same",
        places="features of (N, D), features of (N, L, D)",
        reference="input_normalization",
        model="input_whitening_mlp",
    ),
)


#: Heading of a column -> what a row's cell holds.
COLUMNS: dict[str, Callable[[Row], str]] = {
    "norm": lambda row: f"{row.title} ({row.source})",
    "PyTorch": lambda row: row.modules,
    "eval graph": lambda row: row.evaluation,
    "training graph": lambda row: row.training,
    "`standard`": lambda row: row.standard,
    "1d, 2d, 3d": lambda row: row.places,
    "types": lambda row: row.types,
    "float64 reference": lambda row: f"`norms/{row.reference}.py`",
    "trained model": lambda row: f"`models/{row.model}.py`",
}


def catalogue_table() -> str:
    """The Markdown table of the catalogue."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(cell(row) for cell in COLUMNS.values()) + " |" for row in ROWS]
    return "\n".join(lines)
