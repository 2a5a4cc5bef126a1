"""The notebook is stored without outputs, and runs as it stands."""

import re
from pathlib import Path

import nbformat
import pytest
from builders import build_model, build_tokenizer

NOTEBOOK = Path(__file__).parents[2] / "benchmarks" / "examples" / "quick_start.ipynb"


def read():
    return nbformat.read(NOTEBOOK, as_version=4)


def run(notebook, folder):
    """Run a notebook in a folder; what its cells printed."""
    from nbclient import NotebookClient

    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(folder)}}).execute()
    printed = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stdout":
                printed.append(output.text)
    return "".join(printed)


def check(notebook, printed, folder):
    rows = re.findall(r"^(base|first expert|second expert|average|merge): syllogism", printed, re.M)
    assert rows == ["base", "first expert", "second expert", "average", "merge"]
    best = [float(score) for score in re.findall(r"^best of \d+: ([\d.]+)$", printed, re.M)]
    assert len(best) == 5 and best == sorted(best)
    assert (folder / "merged-adapter" / "adapter_model.safetensors").is_file()
    (plot,) = [cell for cell in notebook.cells if cell.source == "monitor.plot()"]
    assert any("application/vnd.plotly.v1+json" in output.data for output in plot.outputs)


def test_it_is_valid_without_outputs_and_its_links_lead_somewhere():
    notebook = read()
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
        for link in re.findall(r"\]\(([^)#]+)\)", cell.source):
            assert (NOTEBOOK.parent / link).exists(), link


@pytest.mark.slow
def test_it_runs_on_a_tiny_base(tmp_path, make_adapter):
    build_model().save_pretrained(tmp_path / "base")
    build_tokenizer().save_pretrained(tmp_path / "base")
    experts = [str(make_adapter("first", seed=1)), str(make_adapter("second", seed=2))]
    notebook = read()
    (cell,) = [cell for cell in notebook.cells if "smollm2-135m-instruct" in cell.source]
    cell.source += f"\nbase, experts = 'base', {experts}"
    check(notebook, run(notebook, tmp_path), tmp_path)


@pytest.mark.slow
def test_it_runs_on_the_real_base(tmp_path):
    notebook = read()
    printed = run(notebook, tmp_path)
    check(notebook, printed, tmp_path)
    first, merge = re.findall(r"^(?:first expert|merge): syllogism ([\d.]+)", printed, re.M)
    assert float(first) > 0.5 and float(merge) > 0.4
