"""Modules named on a command line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from onnxnorm.errors import UsageError
from onnxnorm.parity import load_module

FILE = """
import torch
import beside
HERE = torch.nn.Linear(2, 3)
class Holder:
    inner = HERE
def plain():
    return torch.nn.Linear(2, beside.WIDTH)
def with_args():
    return torch.nn.Linear(2, 3), (torch.ones(1, 2),)
def raises():
    raise ValueError("no weights here")
def number():
    return 5
limit = 7
"""


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("WIDTH = 4\n")
    path = tmp_path / "net.py"
    path.write_text(FILE)
    return path


def test_a_file(user_file: Path) -> None:
    before = list(sys.path)
    module, args = load_module(f"{user_file}:plain")
    assert isinstance(module, torch.nn.Linear)
    assert module.out_features == 4
    assert args is None
    assert isinstance(load_module(f"{user_file}:HERE")[0], torch.nn.Linear)
    assert isinstance(load_module(f"{user_file}:Holder.inner")[0], torch.nn.Linear)
    module, args = load_module(f"{user_file}:with_args")
    assert args[0].shape == (1, 2)
    assert sys.path == before


def test_a_package() -> None:
    assert isinstance(load_module("torch.nn:Identity")[0], torch.nn.Identity)


@pytest.mark.usefixtures("zoo")
def test_timm() -> None:
    assert type(load_module("timm:resnet10t")[0]).__name__ == "ResNet"
    with pytest.raises(UsageError, match="timm cannot make 'resnet1': .*close to it are .*resnet18"):
        load_module("timm:resnet1")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet18", "'resnet18' names no module; write timm:NAME"),
        ("FILE:", "names no module"),
        ("FILE:missing", r"net.py has no 'missing'; it has HERE, Holder, beside, limit"),
        ("FILE:raises", "raises ValueError: no weights here"),
        ("FILE:number", "gives a int; it must give a torch.nn.Module"),
        ("FILE:limit", "is a int; it must be a torch.nn.Module or make one"),
        ("/nowhere/net.py:plain", "/nowhere/net.py: no such file"),
        ("no_such_package.at_all:f", "there is no Python module 'no_such_package'"),
        ("torch.nothing_of_it:f", "there is no Python module 'torch.nothing_of_it'"),
    ],
)
def test_mistakes_get_one_clear_line(user_file: Path, spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        load_module(spec.replace("FILE", str(user_file)))
    assert "\n" not in str(caught.value)


def test_a_file_that_does_not_run(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("import no_such_thing\n")
    with pytest.raises(UsageError, match=r"broken.py does not run: ModuleNotFoundError"):
        load_module(f"{path}:f")


def test_timm_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match="timm is not installed"):
        load_module("timm:resnet18")
