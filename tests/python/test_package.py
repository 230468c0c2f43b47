"""What the package carries besides code: docstrings and stubs."""

import ast
import inspect
from pathlib import Path

import pagemill
from pagemill import _core

FOLDER = Path(pagemill.__file__).parent


def test_docstrings() -> None:
    for name in pagemill.__all__:
        value = getattr(pagemill, name)
        assert value.__doc__, name
        if inspect.isroutine(value):
            assert ("Raises" in value.__doc__) and ("Args" in value.__doc__ or name == "info"), name
    for kind in (pagemill.Cache, pagemill.Plan):
        for name, value in vars(kind).items():
            assert name.startswith("_") or value.__doc__, f"{kind.__name__}.{name}"


def test_stubs() -> None:
    assert (FOLDER / "py.typed").exists()
    stubs = ast.parse((FOLDER / "_core.pyi").read_text())
    defined = {node.name for node in stubs.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
    defined |= {node.target.id for node in stubs.body if isinstance(node, ast.AnnAssign)}
    assert defined == {name for name in vars(_core) if not name.startswith("_")}
