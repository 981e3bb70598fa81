"""The notebooks run from top to bottom, with trainings of two iterations (``code_blocks``)."""

import jupytext
import pytest
import warm_processes
from code_blocks import changed, notebooks, prepare, shortened
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient


class Warm(AsyncKernelManager):
    """A kernel that is a copy of the server of ``warm_processes``."""

    def format_kernel_cmd(self, extra_arguments=None):
        words = super().format_kernel_cmd(extra_arguments)
        return [f"{warm_processes.shims()}/python", *words[1:]]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_every_cell_runs(path, cut_mini, tmp_path, monkeypatch):
    for name, value in prepare(tmp_path, cut_mini).items():
        monkeypatch.setenv(name, value)
    notebook = jupytext.read(path)
    for cell in notebook.cells:
        cell.source = changed(cell.source)
        if cell.source.startswith("%%bash"):
            cell.source = shortened(cell.source).replace("%%bash", "%%bash\nset -euo pipefail", 1)
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(
        notebook, timeout=600, resources=where, kernel_name="python3", kernel_manager_class=Warm
    ).execute()
    assert not [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "error"
    ]


def test_there_are_notebooks():
    assert len(notebooks()) >= 4
