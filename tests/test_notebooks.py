"""Every notebook runs from top to bottom on a ledger that the replay runner made, and is stored with its outputs."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from foretune.launching import launch_study
from foretune.ledger import open_ledger
from foretune.sections import RunnerSection, SurfaceSection
from foretune.study import load_study

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SURFACE = SurfaceSection(
    lr_coefficient=1.0, lr_params_exponent={"mup": -0.4, "standard": -0.5}, lr_tokens_exponent=0.0, lr_curvature=0.02
)


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger with the demo study, replayed from a closed-form surface."""
    folder = tmp_path_factory.mktemp("notebooks")
    study = load_study(ROOT / "studies/lr_width_transfer")
    study = study.model_copy(update={"runner": RunnerSection(kind="replay", surface=SURFACE)})
    with open_ledger(folder / "ledger.db", create=True) as ledger:
        assert launch_study(study, ledger, results=folder, quiet=True) == 0
    return folder / "ledger.db"


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebook_runs(file: Path, replayed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORETUNE_LEDGER", str(replayed))
    notebook = nbformat.read(file, as_version=4)
    NotebookClient(
        notebook, timeout=400, startup_timeout=200, resources={"metadata": {"path": str(file.parent)}}
    ).execute()
    pictures = sum("image/png" in str(cell.get("outputs")) for cell in notebook.cells)
    assert pictures == 4


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebook_is_stored_with_its_outputs(file: Path) -> None:
    notebook = nbformat.read(file, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code), "execute it: make notebooks"
    assert sum("image/png" in str(cell.outputs) for cell in code) == 4
    assert not re.search(r"/(?:root|home|Users|tmp)/", str(notebook)), "an output shows a path of somebody's machine"


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebook_holds_no_logic(file: Path) -> None:
    notebook = nbformat.read(file, as_version=4)
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert not re.search(r"^\s*(?:def|class) ", code, re.MULTILINE)
