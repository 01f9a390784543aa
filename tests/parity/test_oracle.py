"""The truth: float64 all through, constants as deployed, the caller's module untouched."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from onnxnorm.errors import UsageError
from onnxnorm.parity.double import machine_epsilon
from onnxnorm.parity.oracle import ModuleFailure, Oracle


class Calls(nn.Module):
    """A module whose forward is the given function."""

    def __init__(self, function: Any, weight: torch.Tensor | None = None) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.ones(1) if weight is None else weight)

    def forward(self, *args: Any) -> Any:
        return self.function(self, *args)


def truth(module: nn.Module, *args: Any) -> np.ndarray:
    result = Oracle(module).truth(args, {})
    assert result.precision == "float64", result.notes
    assert result.outputs[0].value.dtype == np.float64
    return result.outputs[0].value


THIRD = torch.tensor([1 / 3, 0.1, 7.7], dtype=torch.float32)
EXACT = THIRD.double().numpy() ** 2

NARROWING = {
    "float": lambda m, x: (x * x).float(),
    "to": lambda m, x: (x.to(torch.float32) * x).to(x.dtype),
    "half": lambda m, x: x.half() * x.half(),
    "type": lambda m, x: x.type(torch.bfloat16) * x.type("torch.FloatTensor"),
    "type_as": lambda m, x: (x * x).type_as(torch.zeros(1, dtype=torch.float32)),
    "sum_dtype": lambda m, x: torch.stack([x * x]).sum(0, dtype=torch.float32),
    "zeros": lambda m, x: torch.zeros(3, dtype=torch.float32).copy_(x * x),
    "out": lambda m, x: torch.mul(x, x, out=torch.empty(3, dtype=torch.float32)),
    "new_zeros": lambda m, x: x.new_zeros(3, dtype=torch.float16) + x * x,
    "default_dtype": lambda m, x: torch.empty(3).copy_(x * x),
    "legacy_constructor": lambda m, x: torch.FloatTensor([1.0]) * x * x,
    "numpy_constant": lambda m, x: torch.from_numpy(np.zeros(3, np.float32)).add_(x * x),
    "closure": lambda m, x: CLOSED.float() * x,
    "inference_mode": lambda m, x: _in_inference_mode(x),
    "scripted": lambda m, x: _scripted(x),
}
CLOSED = THIRD.clone()


def _in_inference_mode(x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return (x * x).to(torch.float32)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecated, and still in users' models

    @torch.jit.script
    def _scripted(x: torch.Tensor) -> torch.Tensor:
        return x.to(torch.float32) * x.float()


@pytest.mark.parametrize("name", NARROWING)
def test_casts_to_narrower_floats_become_float64(name: str) -> None:
    got = truth(Calls(NARROWING[name]), THIRD)
    np.testing.assert_allclose(got, EXACT, rtol=1e-15)


def test_python_constants_keep_their_last_digits() -> None:
    assert truth(Calls(lambda m, x: torch.tensor(0.1, dtype=torch.float32) * x), torch.ones(1))[0] == 0.1


def test_softmax_with_a_narrow_dtype() -> None:
    got = truth(Calls(lambda m, x: torch.softmax(x, -1, dtype=torch.float32)), THIRD)
    exponent = np.exp(THIRD.double().numpy() - 7.7)
    np.testing.assert_allclose(got, exponent / exponent.sum(), rtol=1e-15)


def test_autocast_regions_are_float64() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return x @ x.T

    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(truth(Calls(forward), x), (x.double() @ x.double().T).numpy(), rtol=1e-15)


def test_integer_casts_stay() -> None:
    result = Oracle(Calls(lambda m, x: x.to(torch.int32))).truth((THIRD,), {})
    assert result.outputs[0].value.tolist() == [0, 0, 7]


@pytest.mark.parametrize("deployed", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("form", ["module", "function", "torch", "aten"])
def test_rms_norm_keeps_the_epsilon_of_the_deployed_type(deployed: torch.dtype, form: str) -> None:
    norms = {
        "function": lambda m, x: F.rms_norm(x, (4,)),
        "torch": lambda m, x: torch.rms_norm(x, (4,)),
        "aten": lambda m, x: torch.ops.aten.rms_norm.default(x, [4]),
    }
    module = nn.RMSNorm(4) if form == "module" else Calls(norms[form])
    x = (torch.tensor([[1.0, -2.0, 3.0, 0.5]]) * 1e-4).to(deployed)
    epsilon = float(np.finfo(np.float64 if deployed == torch.float64 else np.float32).eps)
    exact = x.double().numpy()
    exact = exact / np.sqrt((exact**2).mean(-1, keepdims=True) + epsilon)
    np.testing.assert_allclose(truth(module.to(deployed), x), exact, rtol=1e-14)
    assert machine_epsilon(deployed) == epsilon
    deployed_run = Oracle(module.to(deployed)).deployed((x,), {})[0].value.astype(np.float64)
    np.testing.assert_allclose(deployed_run, exact, rtol=2e-2 if deployed == torch.bfloat16 else 4e-3)


def test_finfo_answers_for_the_deployed_type() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        info = torch.finfo(x.dtype)
        assert isinstance(info, torch.finfo)
        return x * 0 + torch.tensor([info.eps, info.min, torch.finfo(torch.float16).eps])

    module = Calls(forward).float()
    single = np.finfo(np.float32)
    assert truth(module, torch.ones(3)).tolist() == [single.eps, single.min, 2.0**-10]
    assert torch.finfo(torch.float64).eps == 2.0**-52  # put back
    assert torch.get_default_dtype() == torch.float32


class LlamaNorm(nn.Module):
    """As transformers writes it: statistics in float32, the result back in the input's type."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kind = x.dtype
        x = x.to(torch.float32)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * x.to(kind)


@pytest.mark.parametrize("deployed", [torch.float16, torch.float32])
def test_norm_that_casts_inside(deployed: torch.dtype) -> None:
    module, x = LlamaNorm().to(deployed), torch.randn(3, 8, generator=torch.Generator().manual_seed(1)).to(deployed)
    wide = x.double().numpy()
    exact = module.weight.detach().double().numpy() * wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(truth(module, x), exact, rtol=1e-14)


class Kept(nn.Module):
    """Everything a copy can lose: tied weights, parametrizations, buffers, plain tensors, complex numbers, hooks."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.embed = nn.Linear(4, 4, bias=False)
        self.head = nn.Linear(4, 4, bias=False)
        self.head.weight = self.embed.weight
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
        self.bn = nn.BatchNorm1d(4)
        self.register_buffer("rotation", torch.polar(torch.ones(2), torch.randn(2, generator=generator)))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.plain = torch.randn(4, generator=generator)
        self.listed = [torch.randn(4, generator=generator)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.steps += 1
        self.plain.mul_(1.0)
        x = self.bn(self.head(self.spectral(self.normed(self.embed(x)))) + self.plain + self.listed[0])
        turned = torch.view_as_complex(x.reshape(-1, 2, 2).contiguous()) * self.rotation
        return torch.view_as_real(turned).flatten(1)


def everything(module: nn.Module) -> dict[str, Any]:
    """State, flags, dtypes and devices of every submodule, plain tensors too."""
    state: dict[str, Any] = {
        f"tensor {name}": (value.clone(), value.dtype, value.device, value.requires_grad, id(value))
        for name, value in [*module.named_parameters(), *module.named_buffers()]
    }
    for name, part in module.named_modules():
        state[f"module {name}"] = (part.training, type(part), sorted(vars(part)))
        for key, value in vars(part).items():
            if isinstance(value, torch.Tensor):
                state[f"plain {name}.{key}"] = (value.clone(), value.dtype, value.device, id(value))
    return state


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before.keys() == after.keys()
    for key, value in before.items():
        for old, new in zip(value, after[key], strict=True):
            assert torch.equal(old, new) if isinstance(old, torch.Tensor) else old == new, key


@pytest.mark.parametrize("training", [True, False])
def test_the_callers_module_is_unchanged(training: bool) -> None:
    module = Kept().train(training)
    module.bn.eval()
    x = torch.randn(3, 4)
    given, random_state, before = x.clone(), torch.get_rng_state(), everything(module)
    oracle = Oracle(module)
    run = oracle.truth((x,), {})
    deployed = oracle.deployed((x,), {})
    assert len(oracle.redrawn((x,), {})) == 2
    assert_same(before, everything(module))
    assert torch.equal(given, x)
    assert torch.equal(random_state, torch.get_rng_state())
    np.testing.assert_allclose(deployed[0].value, run.outputs[0].value, rtol=1e-4, atol=1e-5)
    exact = Kept().double()
    exact.load_state_dict(module.state_dict())
    exact.plain, exact.listed = module.plain.double(), [module.listed[0].double()]
    exact.rotation = module.rotation.to(torch.complex128)
    with torch.no_grad():
        np.testing.assert_allclose(run.outputs[0].value, exact.eval()(x.double()).numpy(), rtol=1e-12, atol=1e-14)


def test_the_callers_module_is_unchanged_when_the_run_raises() -> None:
    class Raises(Kept):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            super().forward(x)
            raise ValueError("no such luck")

    module = Raises().train()
    before = everything(module)
    with pytest.raises(ModuleFailure, match="no such luck"):
        Oracle(module).deployed((torch.ones(2, 4),), {})
    with pytest.raises(ModuleFailure, match=r"neither in float64 nor in float32.*no such luck"):
        Oracle(module).truth((torch.ones(2, 4),), {})
    assert_same(before, everything(module))
    assert torch.get_default_dtype() == torch.float32
    assert torch.finfo is type(torch.finfo(torch.float32))


def test_weights_of_the_old_weight_norm() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = nn.utils.weight_norm(nn.Linear(3, 2))
    x = torch.randn(4, 3)
    layer(x)  # leaves a weight with a gradient history, which deepcopy refuses
    direction, size = layer.weight_v.detach().double(), layer.weight_g.detach().double()
    weight = direction / direction.norm(dim=1, keepdim=True) * size
    exact = x.double() @ weight.T + layer.bias.detach().double()
    np.testing.assert_allclose(truth(layer, x), exact.numpy(), rtol=1e-12)


def test_complex_outputs_are_real_pairs() -> None:
    outputs = Oracle(Calls(lambda m, x: torch.fft.rfft(x))).truth((THIRD,), {}).outputs
    pairs = np.fft.rfft(THIRD.double().numpy())
    np.testing.assert_allclose(outputs[0].value, np.stack([pairs.real, pairs.imag], -1), rtol=1e-14, atol=1e-15)


def test_nested_outputs_have_names() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> Any:
        return {"logits": x, "states": [x + 1, None, (x.long(),)], "flag": True}

    outputs = Oracle(Calls(forward)).truth((THIRD,), {}).outputs
    assert [item.name for item in outputs] == ["logits", "states_0", "states_2_0"]


class SingleOnly(nn.Module):
    """Insists on float32, as custom kernels do; has a weight, which must be float32 then."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype != torch.float32:
            raise TypeError(f"kernel has no {x.dtype}")
        return x * x * self.weight


class Bits(nn.Module):
    """Reads the bits of its input: float64 has others."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (x.view(torch.int32) >= 0)


@pytest.mark.parametrize(("part", "reason"), [(SingleOnly, "kernel has no"), (Bits, "reinterprets bits")])
def test_a_part_that_cannot_run_in_float64_runs_in_float32(part: type[nn.Module], reason: str) -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Sequential(part(), nn.Linear(4, 4)), part())
    x = torch.randn(2, 4)
    run = Oracle(module).truth((x,), {})
    assert run.precision == "mixed"
    assert len(run.notes) == 1
    assert "truth computed in float32 in 1.0, 2" in run.notes[0]
    assert reason in run.notes[0]
    with torch.no_grad():
        wide = nn.functional.linear(x.double(), module[0].weight.double(), module[0].bias.double()).float()
        wide = part()(wide).double()
        wide = nn.functional.linear(wide, module[1][1].weight.double(), module[1][1].bias.double()).float()
        np.testing.assert_array_equal(run.outputs[0].value, part()(wide).double().numpy())


def test_a_module_that_cannot_run_in_float64_at_all() -> None:
    oracle = Oracle(SingleOnly())
    run = oracle.truth((THIRD,), {})
    assert run.precision == "float32"
    assert run.notes[0].startswith("truth computed in float32: TypeError: kernel has no torch.float64")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_redrawn_runs_move_inputs_and_weights_to_their_neighbours(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(40, generator=generator).to(dtype)
    x[3:6] = torch.tensor([0.0, 1.0, float("inf")])
    same = Calls(lambda m, x: (x, m.weight, m.weight.new_ones(2)), torch.randn(30, generator=generator)).to(dtype)
    first, second = Oracle(same).redrawn((x,), {})
    for run in (first, second):
        for moved, original in zip(run[:2], (x, same.weight.detach()), strict=True):
            value = original.double().numpy()
            parts = value != np.round(value)
            gap = np.abs(moved.value.astype(np.float64)[parts] - value[parts])
            relative = gap / np.abs(value[parts]) / torch.finfo(dtype).eps
            assert ((relative > 0.49) & (relative <= 1.0)).all()
        assert run[0].value[3:6].tolist() == [0, 1, np.inf]  # masks and switches stay
    assert not np.array_equal(first[0].value, second[0].value)
    again = Oracle(same).redrawn((x,), {})[0]
    np.testing.assert_array_equal(first[0].value.astype(np.float64), again[0].value.astype(np.float64))


def test_compiled_modules_run_as_written() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    module[0].compile(backend=_refuse)
    x = torch.randn(2, 4)
    plain = torch.relu(x.double() @ module[0].weight.double().T + module[0].bias.double())
    np.testing.assert_allclose(truth(module, x), plain.detach().numpy(), rtol=1e-12, atol=1e-15)
    wrapped = torch.compile(module, backend=_refuse)
    np.testing.assert_allclose(truth(wrapped, x), plain.detach().numpy(), rtol=1e-12, atol=1e-15)


def _refuse(*_: Any) -> Any:
    raise AssertionError("compiled code must not run")


def test_modules_without_values_are_refused() -> None:
    with pytest.raises(UsageError, match=r"'weight'.*run the lazy module once"):
        Oracle(nn.LazyLinear(3)).deployed((torch.ones(1, 2),), {})
    with pytest.raises(UsageError, match=r"'weight'.*meta device"):
        Oracle(nn.Linear(2, 2, device="meta")).deployed((torch.ones(1, 2),), {})
    uncopied = nn.Linear(2, 2)
    uncopied.stream = (value for value in range(3))
    with pytest.raises(UsageError, match=r"Linear cannot be copied.*generator"):
        Oracle(uncopied).deployed((torch.ones(1, 2),), {})


@pytest.mark.usefixtures("zoo")
@pytest.mark.parametrize("deployed", [torch.float32, torch.float16])
def test_llama_and_t5_are_float64_all_through(deployed: torch.dtype) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

        llama = LlamaForCausalLM(
            LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
        )
        t5 = T5ForConditionalGeneration(
            T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)
        )
    tokens = torch.arange(14).reshape(2, 7)
    for module, kwargs in (
        (llama, {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "use_cache": False}),
        (t5, {"input_ids": tokens, "decoder_input_ids": tokens[:, :5], "use_cache": False}),
    ):
        oracle = Oracle(module.to(deployed))
        run = oracle.truth((), kwargs)
        assert run.precision == "float64"
        logits = run.outputs[0].value
        assert logits.dtype == np.float64
        assert not np.array_equal(logits, logits.astype(np.float32)), "its values have float32's digits only"
        close = oracle.deployed((), kwargs)[0].value.astype(np.float64)
        tolerance = 2e-2 if deployed == torch.float16 else 1e-5
        assert np.abs(close - logits).max() < tolerance * np.abs(logits).max()
