"""RMSNorm as people write it, and in transformers' models: one op each, at every opset and in every element type."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from onnxnorm.runtime.environment import newest_opset

from .conftest import assert_equals_module, export_to, norms, randn

WAYS = ("plain onnxruntime", "native library")
TYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
HALVES = TYPES[1:3]
WIDTH = 8


class Weighted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, WIDTH))
        self.eps = 1e-3


class Llama(Weighted):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class Gemma(Weighted):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (wide * (1.0 + self.weight.float())).type_as(x)


class T5(Weighted):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * torch.rsqrt(x.to(torch.float32).pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * y.to(self.weight.dtype)


class SquareRoot(Weighted):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x / torch.sqrt(torch.mean(x * x, dim=-1, keepdim=True) + self.eps))


class MinusHalf(Weighted):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (x.square().mean(-1, keepdim=True) + self.eps).pow(-0.5) * (1 + self.weight)


class OneOverRoot(Weighted):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (1.0 / ((x**2).sum(-1, keepdim=True) / x.shape[-1] + self.eps).sqrt())


class NormOverRoot(Weighted):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / (x.norm(2, -1, keepdim=True) / WIDTH**0.5) * self.weight


class Unsqueezed(Weighted):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight * torch.rsqrt(x.pow(2).mean(-1) + self.eps)[..., None]


class Channels(Weighted):
    """Over the channels of NCHW."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.movedim(-1, 1)
        x = x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + self.eps)
        return (x * self.weight.view(1, -1, 1)).movedim(1, -1)


SPELLINGS: list[Callable[[], nn.Module]] = [
    *(Llama, Gemma, T5, SquareRoot, MinusHalf, OneOverRoot, NormOverRoot, Unsqueezed, Channels),
]


class Block(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.before, self.norm, self.after = nn.Linear(WIDTH, WIDTH), norm, nn.Linear(WIDTH, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.after(F.silu(self.norm(self.before(x))))
        return result


def exported(folder: Path, module: nn.Module, x: Any, **options: Any) -> Any:
    path, model, result = export_to(folder, module, (x,), **options)
    assert not [node for node in model.graph.node if node.op_type in ("ReduceMean", "ReduceL2")], result.explain()
    return path, model


#: Each in float32; those with casts inside in both half types, the others in one.
SPELLED = [
    *((spelling, torch.float32) for spelling in SPELLINGS),
    *((spelling, dtype) for spelling in SPELLINGS[:3] for dtype in HALVES),
    *((spelling, HALVES[index % 2]) for index, spelling in enumerate(SPELLINGS[3:])),
]


@pytest.mark.parametrize(("spelling", "dtype"), SPELLED)
def test_every_spelling(spelling: Callable[[], nn.Module], dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Block(spelling()).to(dtype).eval()
    shapes = ({0: "batch", 1: "length"},)
    path, model = exported(tmp_path, module, randn(2, 5, WIDTH).to(dtype), dynamic_shapes=shapes)
    assert norms(model) == {"onnxnorm.RMSNorm": 1}
    assert_equals_module(path, module, (randn(3, 4, WIDTH).to(dtype),), ways=WAYS)


@pytest.mark.parametrize("spelling", [SquareRoot, MinusHalf, Unsqueezed])
def test_float64(spelling: Callable[[], nn.Module], tmp_path: Path) -> None:
    """Where float32 is not asked for inside."""
    torch.manual_seed(0)
    module = Block(spelling()).double().eval()
    path, model = exported(tmp_path, module, randn(2, 5, WIDTH).double())
    assert norms(model) == {"onnxnorm.RMSNorm": 1}
    assert_equals_module(path, module, (randn(2, 5, WIDTH, seed=2).double(),), ways=WAYS)


@pytest.mark.parametrize(
    ("opset", "target"), [(23, "onnxnorm"), (newest_opset(), "onnxnorm"), (20, "standard"), (24, "standard")]
)
def test_gemma_in_float16(opset: int, target: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Block(Gemma()).half().eval()
    x = randn(2, 5, WIDTH).half()
    path, model, _ = export_to(tmp_path, module, (x,), opset=opset, target=target)
    fused = {"onnxnorm": "onnxnorm.RMSNorm", "standard": "RMSNormalization"}[target]
    assert norms(model) == ({fused: 1} if target == "onnxnorm" or opset >= 23 else {})
    assert_equals_module(path, module, (x,), ways=WAYS if target == "onnxnorm" else WAYS[:1])


class OutsideTheRoot(Weighted):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / (x.norm(2, -1, keepdim=True) / WIDTH**0.5 + self.eps) * self.weight


class Clamped(Weighted):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.normalize(x, dim=-1) * WIDTH**0.5 * self.weight


@pytest.mark.parametrize(("norm", "found"), [(OutsideTheRoot, {}), (Clamped, {"onnxnorm.L2Norm": 1})])
def test_other_functions_are_no_rms_norm(norm: Callable[[], nn.Module], found: dict[str, int], tmp_path: Path) -> None:
    """Epsilon outside the root stays and is told; a clamped length is another norm."""
    module = norm().eval()
    x = torch.cat([randn(2, WIDTH), torch.zeros(1, WIDTH)])
    path, model, result = export_to(tmp_path, module, (x,))
    assert norms(model) == found
    assert found or "epsilon is added outside the root" in result.explain()
    assert_equals_module(path, module, (x,), ways=WAYS)


# --- transformers' and timm's models ------------------------------------------------------------------------------


class Logits(nn.Module):
    def __init__(self, model: nn.Module, is_pair: bool) -> None:
        super().__init__()
        self.model, self.is_pair = model, is_pair

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        more = {"decoder_input_ids": ids[:, :5]} if self.is_pair else {}
        result: torch.Tensor = self.model(input_ids=ids, use_cache=False, **more).logits
        return result


NAMES = {
    "Llama": "LlamaConfig",
    "Mistral": "MistralConfig",
    "Qwen2": "Qwen2Config",
    "Gemma": "GemmaConfig",
    "Gemma2": "Gemma2Config",
    "Gemma3": "Gemma3TextConfig",
}
#: Each opset and type at least once, each model in float16.
RUNS = [
    *(("Gemma", opset, torch.float16) for opset in (18, 23, 24)),
    *(("Llama", 23, torch.float16), ("Llama", 18, torch.float32), ("Mistral", 20, torch.float16)),
    *(("Qwen2", 24, torch.float16), ("Gemma2", 25, torch.float16)),
    *(("Gemma3", 24, torch.float16), ("T5", 18, torch.float16)),
    *(("T5", 24, torch.float32), ("Llama", 23, torch.bfloat16), ("Gemma", 24, torch.bfloat16)),
]


def tiny(name: str) -> nn.Module:
    import transformers

    torch.manual_seed(0)
    if name == "T5":
        config = transformers.T5Config(
            vocab_size=50, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
        )
        model = transformers.T5ForConditionalGeneration(config)
    else:
        sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
        more = {"head_dim": 8} if "Gemma" in name else {}
        model = getattr(transformers, f"{name}ForCausalLM")(
            getattr(transformers, NAMES[name])(**sizes, **heads, **more)
        )
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key.lower():
                parameter.copy_(torch.rand_like(parameter) * 0.5 + 0.75)
    return Logits(model, name == "T5")


def is_norm_module(part: nn.Module) -> bool:
    return type(part).__name__.endswith(("RMSNorm", "T5LayerNorm"))


@pytest.mark.slow
@pytest.mark.usefixtures("zoo")
@pytest.mark.parametrize(("name", "opset", "dtype"), RUNS)
def test_transformers(name: str, opset: int, dtype: torch.dtype, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = tiny(name).to(dtype).eval()
        ids = torch.arange(14).reshape(2, 7)
        path, model = exported(tmp_path, module, ids, opset=opset)
        counts = norms(model)  # behind a residual addition it is the skip form
        assert set(counts) <= {"onnxnorm.RMSNorm", "onnxnorm.SkipRMSNorm"}
        assert sum(counts.values()) == sum(map(is_norm_module, module.modules()))
        assert_equals_module(path, module, (ids,), ways=WAYS)


@pytest.mark.parametrize("dtype", HALVES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.usefixtures("zoo")
def test_timm_over_channels(dtype: torch.dtype, tmp_path: Path) -> None:
    from timm.layers.norm import RmsNorm2d

    module = nn.Sequential(nn.Conv2d(3, 8, 3), RmsNorm2d(8), nn.ReLU()).to(dtype).eval()
    x = randn(2, 3, 6, 5).to(dtype)
    path, model = exported(tmp_path, module, x, dynamic_shapes=({0: "batch"},))
    assert norms(model) == {"onnxnorm.RMSNorm": 1}
    assert_equals_module(path, module, (x,), ways=WAYS)
