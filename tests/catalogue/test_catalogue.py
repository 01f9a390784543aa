"""Each cell of the README's catalogue: what it says is what an export does, within float64's reach of PyTorch."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from onnxnorm.spec.catalogue import ROWS, TYPES, Row

from .cases import CASES, Case
from .conftest import export_case, run_beside_pytorch

TRAINING = [case for case in CASES if case.training]
TYPED = [case for case in CASES if case.types]
#: The last typed case of each row, which is written by hand where one is, in every type; the others in bfloat16.
EVERY_TYPE = {case.row: case.id for case in TYPED}
KINDS = [
    (case, mode, kind)
    for case in TYPED
    for mode in ("eval", "train")
    for kind in ("f16", "bf16", "f64")
    if (mode == "eval" or case.training) and (kind == "bf16" or case.id == EVERY_TYPE[case.row])
]
pytestmark = [
    pytest.mark.usefixtures("zoo"),
    pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm.*is deprecated:FutureWarning"),
]
#: A training graph lowered to standard operators costs seconds: one case for each row, the first.
STANDARD = list({case.row: case for case in reversed(CASES)}.values())


def ids(cases: list[Case] | tuple[Case, ...]) -> list[str]:
    return [case.id for case in cases]


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_evaluation(case: Case) -> None:
    export = export_case(case, "eval")
    assert not export.result.state
    if case.leaves is not None:
        assert sorted(export.ops) == sorted(case.leaves), export.result.explain()
    for library in (False, True):
        run_beside_pytorch(export, library)


@pytest.mark.parametrize("case", TRAINING, ids=ids(TRAINING))
def test_training(case: Case) -> None:
    export = export_case(case, "train")
    if case.trains is not None:
        assert case.trains in export.ops, export.ops
    for library in (False, True):
        run_beside_pytorch(export, library)


@pytest.mark.parametrize(("case", "mode", "kind"), KINDS, ids=["-".join((case.id, *rest)) for case, *rest in KINDS])
def test_types(case: Case, mode: str, kind: str) -> None:
    export = export_case(case, mode, kind)
    for library in (False, True):
        run_beside_pytorch(export, library)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("case", STANDARD, ids=ids(STANDARD))
def test_standard(case: Case, mode: str) -> None:
    export = export_case(case, mode, target="standard")
    assert {entry.domain for entry in export.proto.opset_import} == {""}
    assert not export.proto.functions
    run_beside_pytorch(export, False)


def _of(row: Row) -> list[Case]:
    return [case for case in CASES if case.row == row.key]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.key)
def test_no_cell_is_without_a_test(row: Row) -> None:
    """Every column has a case of this row, and every place that the row names."""
    cases = _of(row)
    for column, chosen in {"training": TRAINING, "types": TYPED, "standard": STANDARD}.items():
        assert any(case.row == row.key for case in chosen), f"{row.key} has no case for the column {column}"
    places = {case.place for case in cases}
    text = row.places.replace("1d/2d/3d", "1d, Conv 2d, Conv 3d")
    for place in places:
        assert place in text, f"{place} is not in the catalogue: {text}"
    named = [part.strip() for part in text.partition(" (Conv in")[0].split(",")]
    if row.key not in ("group-norm", "unit-length", "whitening"):
        assert set(named) <= places, f"no case for {set(named) - places}"
    kinds = {kind for case, _, kind in KINDS if case.row == row.key}
    assert {"f32", *kinds} == set(row.types.split()) == set(TYPES.split())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.key)
def test_what_the_table_says_is_what_the_cases_hold(row: Row) -> None:
    """An operator of onnxnorm that a cell names is in the graph of a case of that row."""
    from onnxnorm.norms import all_specs

    held = {name for case in _of(row) for name in (*(case.leaves or ()), case.trains) if name}
    for cell in (row.evaluation, row.training):
        words = set(cell.replace(",", " ").replace(";", " ").split())
        for name in words & set(all_specs()):
            assert name in held, f"no case of {row.key} shows {name}"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.key)
def test_the_reference_and_the_model_are_there(row: Row) -> None:
    module = importlib.import_module(f"onnxnorm.norms.{row.reference}")
    assert (module.__doc__ or "").count("\n") > 3
    model = importlib.import_module(f"models.{row.model}").MODEL
    assert model.name == row.model
    assert Path(__file__).parents[2].joinpath("models", f"{row.model}.py").is_file()
