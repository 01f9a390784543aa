"""Small networks as ONNX Runtime's optimizer for transformers and diffusion models leaves them for CUDA.

``python optimized_for_cuda.py NAME FOLDER`` writes FOLDER/float32.onnx, FOLDER/float16.onnx and FOLDER/data.npz, which
holds inputs and what the PyTorch module gives for them in float64. In a process of its own, since that optimizer puts
its folder on the module path and PyTorch's older exporter, whose patterns it knows, warns of its age.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

OPSET = {"unet": 14, "vae": 17, "bert": 17, "llama": 17}


class ResnetBlock(nn.Module):
    """Of a diffusion model: two convolutions, each behind group norm and SiLU, and the time step between them."""

    def __init__(self, before: int, after: int, time: int | None) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, before), nn.Conv2d(before, after, 3, padding=1)
        self.time = None if time is None else nn.Linear(time, after)
        self.norm2, self.conv2 = nn.GroupNorm(4, after), nn.Conv2d(after, after, 3, padding=1)
        self.shortcut = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """(N, before, H, W), (N, time) -> (N, after, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        if self.time is not None and t is not None:
            h = h + self.time(F.silu(t))[:, :, None, None]
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class DiffusionAttention(nn.Module):
    """As diffusion models write it: heads in the batch."""

    def __init__(self, size: int, heads: int, context: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (size // heads) ** -0.5
        self.q, self.out = nn.Linear(size, size, bias=False), nn.Linear(size, size)
        self.k, self.v = nn.Linear(context, size, bias=False), nn.Linear(context, size, bias=False)

    def _split(self, x: Tensor) -> Tensor:
        n, length, size = x.shape
        x = x.reshape(n, length, self.heads, size // self.heads).permute(0, 2, 1, 3)
        return x.reshape(n * self.heads, length, size // self.heads)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """(N, S, size), (N, L, context) -> (N, S, size)."""
        q, k, v = self._split(self.q(x)), self._split(self.k(context)), self._split(self.v(context))
        zeros = torch.empty(q.shape[0], q.shape[1], k.shape[1], dtype=q.dtype)
        weights = torch.baddbmm(zeros, q, k.transpose(-1, -2), beta=0, alpha=self.scale).softmax(-1)
        y = torch.bmm(weights, v)
        n, length, size = y.shape[0] // self.heads, y.shape[1], y.shape[2] * self.heads
        return self.out(y.reshape(n, self.heads, length, -1).permute(0, 2, 1, 3).reshape(n, length, size))


class GatedGelu(nn.Module):
    """x * gelu(y), both halves of one product."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.both = nn.Linear(size, 8 * size)

    def forward(self, x: Tensor) -> Tensor:
        """(N, S, size) -> (N, S, 4 size)."""
        left, right = self.both(x).chunk(2, -1)
        return left * F.gelu(right)


class SpatialTransformer(nn.Module):
    """Attention to itself, to a text, and a feed-forward, over the positions of an image."""

    def __init__(self, size: int, heads: int, context: int) -> None:
        super().__init__()
        self.norm, self.into, self.out = nn.GroupNorm(4, size, 1e-6), nn.Conv2d(size, size, 1), nn.Conv2d(size, size, 1)
        self.norms = nn.ModuleList(nn.LayerNorm(size) for _ in range(3))
        self.own, self.cross = DiffusionAttention(size, heads, size), DiffusionAttention(size, heads, context)
        self.feed = nn.Sequential(GatedGelu(size), nn.Linear(4 * size, size))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """(N, size, H, W), (N, L, context) -> (N, size, H, W)."""
        n, size, height, width = x.shape
        h = self.into(self.norm(x)).permute(0, 2, 3, 1).reshape(n, height * width, size)
        own = self.norms[0](h)
        h = self.own(own, own) + h
        h = self.cross(self.norms[1](h), context) + h
        h = self.feed(self.norms[2](h)) + h
        return x + self.out(h.reshape(n, height, width, size).permute(0, 3, 1, 2))


class Unet(nn.Module):
    """Two resolutions' worth of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 32, 3, padding=1)
        self.block1, self.attention1 = ResnetBlock(32, 32, 16), SpatialTransformer(32, 4, 24)
        self.block2, self.attention2 = ResnetBlock(32, 64, 16), SpatialTransformer(64, 4, 24)
        self.norm, self.last = nn.GroupNorm(4, 64), nn.Conv2d(64, 4, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        """(N, 4, H, W), (N, 16), (N, L, 24) -> (N, 4, H, W)."""
        h = self.attention1(self.block1(self.first(x), t), c)
        h = self.attention2(self.block2(h, t), c)
        return self.last(F.silu(self.norm(h)))


class Decoder(nn.Module):
    """Of an autoencoder: blocks without a time step, and larger images on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.block1 = nn.Conv2d(4, 32, 3, padding=1), ResnetBlock(32, 32, None)
        self.up, self.block2 = nn.ConvTranspose2d(32, 32, 4, 2, 1), ResnetBlock(32, 16, None)
        self.norm, self.last = nn.GroupNorm(4, 16), nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 4, H, W) -> (N, 3, 2 H, 2 W)."""
        h = self.up(self.block1(self.first(x)))
        return self.last(F.silu(self.norm(self.block2(h))))


class Attention(nn.Module):
    """As BERT writes it."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(size, size) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """(N, S, size) -> (N, S, size)."""
        n, length, size = x.shape
        q, k, v = (
            layer(x).view(n, length, self.heads, size // self.heads).permute(0, 2, 1, 3)
            for layer in (self.q, self.k, self.v)
        )
        weights = (torch.matmul(q, k.transpose(-1, -2)) / (size // self.heads) ** 0.5).softmax(-1)
        return self.out(torch.matmul(weights, v).permute(0, 2, 1, 3).reshape(n, length, size))


class BertBlock(nn.Module):
    """Layer norm behind each residual addition."""

    def __init__(self, size: int = 32) -> None:
        super().__init__()
        self.attention, self.norm1, self.norm2 = Attention(size, 4), nn.LayerNorm(size), nn.LayerNorm(size)
        self.up, self.down = nn.Linear(size, 4 * size), nn.Linear(4 * size, size)

    def forward(self, x: Tensor) -> Tensor:
        """(N, S, size) -> (N, S, size)."""
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class RootMeanSquareNorm(nn.Module):
    """Written out, as in language models."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(size) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(N, S, size) -> (N, S, size)."""
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class LlamaBlock(nn.Module):
    """Root mean square norm before each part, and behind the last one."""

    def __init__(self, size: int = 32) -> None:
        super().__init__()
        self.norms = nn.ModuleList(RootMeanSquareNorm(size) for _ in range(3))
        self.attention = Attention(size, 4)
        self.gate, self.up = nn.Linear(size, 3 * size, bias=False), nn.Linear(size, 3 * size, bias=False)
        self.down = nn.Linear(3 * size, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, S, size) -> (N, S, size)."""
        x = x + self.attention(self.norms[0](x))
        h = self.norms[1](x)
        return self.norms[2](x + self.down(F.silu(self.gate(h)) * self.up(h)))


def network(name: str) -> tuple[nn.Module, dict[str, Tensor], dict[str, dict[int, str]]]:
    """The module with random weights, its inputs, and the names of their dynamic axes."""
    torch.manual_seed(0)
    image, text = {0: "batch", 2: "height", 3: "width"}, {0: "batch", 1: "length"}
    if name == "unet":
        inputs = {"x": torch.randn(2, 4, 8, 8), "t": torch.randn(2, 16), "c": torch.randn(2, 7, 24)}
        return Unet(), inputs, {"x": image, "t": {0: "batch"}, "c": text}
    if name == "vae":
        return Decoder(), {"x": torch.randn(2, 4, 8, 8)}, {}
    module = nn.Sequential(BertBlock(), BertBlock()) if name == "bert" else LlamaBlock()
    return module, {"x": torch.randn(2, 5, 32)}, {"x": text}


def optimized(name: str, path: Path) -> Any:
    """ONNX Runtime's own wrapper of the model that it optimized for CUDA."""
    from onnxruntime.transformers import fusion_simplified_layernorm
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.onnx_model import OnnxModel
    from onnxruntime.transformers.optimizer import optimize_model

    if name == "llama":
        model = OnnxModel(onnx.load(path))
        fusion_simplified_layernorm.FusionSimplifiedLayerNormalization(model).apply()
        fusion_simplified_layernorm.FusionSkipSimplifiedLayerNormalization(model).apply()
        model.topological_sort()
        return model
    heads = (4, 32) if name == "bert" else (0, 0)
    return optimize_model(
        str(path),
        model_type=name,
        num_heads=heads[0],
        hidden_size=heads[1],
        opt_level=0,
        optimization_options=FusionOptions(name),
        use_gpu=True,
    )


def save(model: Any, path: Path) -> None:
    """With the import of com.microsoft, which a wrapper that was made by hand does not add."""
    if all(item.domain != "com.microsoft" for item in model.model.opset_import):
        model.model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.save(model.model, path)


def main(name: str, folder: Path) -> None:
    """See the module."""
    module, inputs, axes = network(name)
    for parameter in module.parameters():  # norms that start as ones and zeros would hide a mistake
        parameter.data += 0.05 * torch.randn_like(parameter)
    plain = folder / "plain.onnx"
    torch.onnx.export(
        module.eval(),
        tuple(inputs.values()),
        str(plain),
        dynamo=False,
        opset_version=OPSET[name],
        input_names=list(inputs),
        output_names=["y"],
        dynamic_axes=axes,
    )
    model = optimized(name, plain)
    save(model, folder / "float32.onnx")
    model.convert_float_to_float16(keep_io_types=False)
    save(model, folder / "float16.onnx")
    with torch.no_grad():
        y = module.double()(*(value.double() for value in inputs.values()))
    np.savez(folder / "data.npz", y=y.numpy(), **{key: value.numpy() for key, value in inputs.items()})


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
