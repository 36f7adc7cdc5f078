"""The notebooks run from top to bottom, and print what their committed outputs say.

`make notebooks` runs them and writes the outputs.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
#: Notebook -> what it prints if it went well.
NAMES = {
    "quickstart": "(True, [])",
    "train_gpt": "equal to the uninterrupted run, to the bit: True",
    "mixture": "resumed with the same next batch: True",
}

#: A cell with this tag prints what depends on the processor.
VARIES = "varies"


def execute(name: str, folder: Path) -> Any:
    """Run a notebook in a folder, from no outputs."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    # Two threads of torch on two busy cores wait for each other most of the time.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(folder)}}).execute(env=environment)
    return notebook


def texts(cell: Any) -> list[str]:
    """What a cell prints and shows as text, without temporary paths."""
    found = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.get("outputs", [])]
    return [re.sub(r"/\S*/(?=\w)", "", text) for text in found]


def kinds(notebook: Any) -> list[list[str]]:
    return [[output.output_type for output in cell.get("outputs", [])] for cell in notebook.cells]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_prints_what_its_committed_outputs_say(name: str, tmp_path: Path) -> None:
    committed = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    fresh = execute(name, tmp_path)
    assert kinds(fresh) == kinds(committed)
    assert sum(map(len, kinds(fresh))) > 8
    everything = "\n".join(text for cell in fresh.cells for text in texts(cell))
    assert NAMES[name] in everything
    if committed.metadata.language_info.version != fresh.metadata.language_info.version:
        return  # the sample's text is Python's own documentation, which differs from version to version
    for ours, theirs in zip(fresh.cells, committed.cells, strict=True):
        if VARIES not in ours.metadata.get("tags", []):
            assert texts(ours) == texts(theirs), ours.source


def refresh() -> None:
    """Run the notebooks and write their outputs."""
    for name in NAMES:
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(name, Path(folder))
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # times of day
        nbformat.write(notebook, NOTEBOOKS / f"{name}.ipynb")


if __name__ == "__main__":
    refresh()
