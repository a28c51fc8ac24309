"""Of the libraries' names only public ones are used; what begins with an underscore may go with the next release."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("p2p", "convert", "serve", "examples", "tests")
LIBRARIES = ("composer", "streaming", "torch", "torchvision")
PUBLIC = {"_asdict", "_replace", "_fields", "_exit"}  # documented: of named tuples, and of os

# (file, name): why there is no other way. Aimed at empty.
EXCEPTIONS = {
    ("p2p/train/callbacks.py", "_foreach_lerp_"): "averages all weights in one kernel; torch.lerp_ takes one at a time",
    ("p2p/train/flops.py", "_cdata"): "tells storages on the meta device apart, whose address is 0",
    ("p2p/model/original_file.py", "_utils"): "a name that pickled files mention; it is read as text, never used",
    ("tests/data/conftest.py", "_shutdown_workers"): "left to the garbage collector, a worker is waited for 5 s",
    ("tests/benchmarks/bench_data.py", "_shutdown_workers"): "as in the tests",
    ("tests/benchmarks/bench_data.py", "_task_info"): "whether the loader is as far ahead as it may be",
    ("tests/benchmarks/bench_data.py", "_tasks_outstanding"): "whether the loader is as far ahead as it may be",
    ("tests/benchmarks/bench_data.py", "_worker_result_queue"): "whether the loader is as far ahead as it may be",
    ("tests/benchmarks/bench_data.py", "_workers"): "the processes whose memory is watched",
    ("tests/train/programs/shard_on_meta.py", "_internal"): "torch's stand-in for a group of many processes",
}
# Files that may use any: what they count, only the insides of torch's compiler tell.
INSIDE = ("tests/benchmarks/gpu_counter.py", "tests/benchmarks/gpu_run.py")
IN_TEXT = re.compile(rf"(?:{'|'.join(LIBRARIES)})[\w.]*\.(_\w+)")


@functools.cache
def sources() -> dict[str, ast.Module]:
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    return {
        str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in paths if not path.name.endswith("_pb2.py")
    }


def is_private(name: str) -> bool:
    return name.startswith("_") and name.strip("_") != "" and not name.endswith("__")


def defined(tree: ast.AST) -> Iterator[str]:
    """Names that a file gives a meaning to."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr


def used(tree: ast.AST) -> Iterator[str]:
    """Parts of names of modules, and attributes, that a file uses; also in texts such as those of monkeypatch."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LIBRARIES:
            yield from [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            yield from (part for alias in node.names for part in alias.name.split(".") if part != "__future__")
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from IN_TEXT.findall(node.value)


def private_names(files: dict[str, ast.Module]) -> set[tuple[str, str]]:
    """(file, name) of the private names that the project uses and defines nowhere."""
    own = {name for tree in files.values() for name in defined(tree)}
    return {
        (path, name)
        for path, tree in files.items()
        for name in used(tree)
        if is_private(name) and name not in own | PUBLIC
    }


def overridden(files: dict[str, ast.Module]) -> set[tuple[str, str]]:
    """(file, name) of the private methods of a library's class that a class of ours replaces."""
    found = set()
    for path, tree in files.items():
        homes = {
            alias.asname or alias.name: (node.module, alias.name)
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in LIBRARIES
            for alias in node.names
        }
        for cls in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
            theirs: set[str] = set()
            for base in cls.bases:
                name = ast.unparse(base).partition("[")[0]
                if name in homes:
                    theirs |= names_of_class(*homes[name])
            ours = {node.name for node in cls.body if isinstance(node, ast.FunctionDef) and is_private(node.name)}
            found |= {(path, name) for name in ours & theirs}
    return found


@functools.cache
def names_of_class(module: str, name: str) -> set[str]:
    """All that a class of a library defines; Composer's by its source, because importing it takes many seconds."""
    library = module.split(".")[0]
    if library.startswith("torch"):
        return set(dir(getattr(import_module(module), name, None)))
    spec = find_spec(library)
    assert spec is not None
    assert spec.submodule_search_locations
    begin = f"class {name}".encode()
    names: set[str] = set()
    for path in Path(spec.submodule_search_locations[0]).rglob("*.py"):
        content = path.read_bytes()
        if begin in content:
            classes = [node for node in ast.walk(ast.parse(content)) if isinstance(node, ast.ClassDef)]
            names.update(each for node in classes if node.name == name for each in defined(node))
    return names


def test_no_private_name_of_a_library_is_used_but_those_that_have_a_reason() -> None:
    files = {path: tree for path, tree in sources().items() if path not in INSIDE}
    assert private_names(files) == set(EXCEPTIONS)


def test_no_private_method_of_a_library_is_overridden() -> None:
    assert overridden(sources()) == set()


def test_the_search_finds_what_it_is_for() -> None:
    bad = """
from streaming.base.dataset import _Iterator
from torch.utils.data import DataLoader
import torch
class Loader(DataLoader):
    def _get_iterator(self): ...
    def _of_its_own(self): ...
torch.PRIVATE([], [])
monkeypatch.setattr("composer.core.PLACE", ())
""".replace("PRIVATE", "_foreach_add_").replace("PLACE", "_NAMES")
    files = {"bad.py": ast.parse(bad)}
    assert private_names(files) == {("bad.py", name) for name in ("_Iterator", "_foreach_add_", "_NAMES")}
    assert overridden(files) == {("bad.py", "_get_iterator")}
