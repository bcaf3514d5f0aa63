"""A hook of mkdocs: notebooks as pages. As a program: run a notebook and keep what it shows.

    python docs/hooks/notebooks.py docs/tutorials/digits.ipynb

runs it in an empty folder. Of the outputs the page shows texts and pictures; what goes to stderr,
such as progress bars, is not kept.
"""

import base64
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files


def on_files(files: Files, config: Any) -> Files:
    """Add a page, and its pictures, for every notebook."""
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            notebook = json.loads(file.content_string)
            name = file.src_uri.removesuffix(".ipynb")
            files.append(File.generated(config, f"{name}.md", content=page(notebook, name)))
            for picture, content in pictures(notebook, name):
                files.append(File.generated(config, picture, content=content))
    return files


def page(notebook: dict[str, Any], name: str) -> str:
    """Return a notebook as Markdown; ``name`` is its path in docs/, without the suffix."""
    stem = name.rsplit("/", 1)[-1]
    title, _, rest = "".join(notebook["cells"][0]["source"]).partition("\n")
    parts = [title, f"[This page as a notebook]({stem}.ipynb){{ .notebook download }}", rest]
    for number, cell in enumerate(notebook["cells"][1:], 1):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        else:
            parts.append(f"```python\n{source}\n```")
            parts.extend(_shown(cell, f"{stem}-{number}"))
    return "\n\n".join(parts) + "\n"


def _shown(cell: dict[str, Any], name: str) -> Iterator[str]:
    """Return what a cell shows as Markdown; texts that follow each other are one."""
    text = ""
    for number, output in enumerate(cell["outputs"]):
        more, picture = _content(output)
        text += "" if picture else more
        if text and (picture or output is cell["outputs"][-1]):
            yield f"``` {{ .text .output }}\n{text.rstrip()}\n```"
            text = ""
        if picture:
            yield f"![What the cell above shows]({name}-{number}.png)"


def _content(output: dict[str, Any]) -> tuple[str, str]:
    """Return what an output of a cell has of text, and of a PNG in base 64."""
    data = output.get("data", {})
    return "".join(output.get("text") or data.get("text/plain", "")), data.get("image/png", "")


def pictures(notebook: dict[str, Any], name: str) -> Iterator[tuple[str, bytes]]:
    """Return the path and the content of every picture that a notebook shows."""
    for number, cell in enumerate(notebook["cells"]):
        for place, output in enumerate(cell.get("outputs", [])):
            if picture := _content(output)[1]:
                yield f"{name}-{number}-{place}.png", base64.b64decode(picture)


def code(notebook: dict[str, Any], parameters: str = "") -> str:
    """Return a notebook's cells as one program, with other values in its cell of parameters."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return "\n\n".join(
        parameters
        if parameters and "parameters" in cell["metadata"].get("tags", [])
        else "".join(cell["source"])
        for cell in cells
    )


def run(path: Path) -> None:
    """Run a notebook and write what it shows into it."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, 4)
    root = str(Path(__file__).parents[2])
    os.environ["PYTHONPATH"] = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=None, resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [kept(output) for output in cell.outputs if _is_kept(output)]
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _is_kept(output: Any) -> bool:
    return output.get("name") != "stderr" and any(_content(output))


def kept(output: Any) -> Any:
    """Leave a picture of an output that also has a text, such as the name of its class."""
    data = output.get("data", {})
    if "image/png" in data:
        output["data"] = {"image/png": data["image/png"]}
    return output


if __name__ == "__main__":
    for given in sys.argv[1:]:
        run(Path(given))
