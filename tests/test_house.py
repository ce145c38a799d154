"""The house: which room may import which, no circle, and a size that a reader can hold in the head."""

import ast
import graphlib
from pathlib import Path

import pytest
import yaml

from thyroid_lib.common.files import LIBRARY

TABLE = yaml.safe_load(Path(__file__).with_name("rooms.yaml").read_text(encoding="utf-8"))
MAY_IMPORT = {
    room: {*others, *(TABLE["beneath"] if "beneath" in others else [])} - {"beneath"}
    for room, others in TABLE["rooms"].items()
}
MODULES = {
    ".".join(path.relative_to(LIBRARY.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(LIBRARY.rglob("*.py"))
    if path.name != "__main__.py"
}


def imports(module: str) -> set[str]:
    """The project's modules that a module imports, anywhere in it."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {name if (name := f"{base}.{alias.name}") in MODULES else base for alias in node.names}
    return {name for name in found if name in MODULES and name != module}


def room(module: str) -> str:
    """ "thyroid_lib.training.loop" -> "training"; "thyroid_lib" itself is no room."""
    return (module.split(".") + [""])[1]


@pytest.mark.parametrize("name", sorted({room(module) for module in MODULES} - {""}))
def test_a_room_imports_only_what_the_table_allows(name):
    modules = [module for module in MODULES if room(module) == name]
    asked = {(module, other) for module in modules for other in imports(module) if room(other)}
    wrong = {(a, b) for a, b in asked if room(b) not in MAY_IMPORT[name] | {name}}
    assert not wrong, "see the picture of the rooms in CONTRIBUTING.md"


def test_the_arrows_point_one_way_between_rooms_and_inside_them():
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    for arrows in ({module: imports(module) - packages for module in MODULES}, MAY_IMPORT):
        graphlib.TopologicalSorter(arrows).prepare()  # its error names the way round


def test_a_module_reads_in_one_sitting_and_the_top_of_the_library_is_one_screen():
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES.values()}
    assert {path: n for path, n in lines.items() if n > 400} == {}
    assert len([path for path in LIBRARY.iterdir() if not path.name.startswith("__")]) <= 20
