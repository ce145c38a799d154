"""The house: which room may import which, no circle, and a size that a reader can hold in the head."""

import ast
from pathlib import Path

import pytest

from thyroid_lib.common.files import LIBRARY

BENEATH = {"common", "frames", "layers", "network", "losses", "regions", "datasets", "manifest"}
"""What any room above the data may ask."""
MAY_IMPORT = {
    "common": set(),
    "layers": {"common"},
    "frames": {"common"},
    "losses": set(),
    "network": {"layers"},
    "regions": {"frames"},
    "phantoms": set(),
    "plots": {"common"},
    "datasets": {"common", "frames", "regions", "phantoms"},
    "manifest": {"common", "datasets"},
    "data": {"common", "frames", "regions", "datasets", "manifest"},
    "inspection": {"common", "layers", "network"},
    "evaluation": {"common"},
    "training": BENEATH | {"phantoms", "data", "evaluation"},
    "classifier": BENEATH | {"data", "evaluation", "training"},
    "explanation": BENEATH | {"data", "evaluation", "training", "classifier", "plots"},
    "deploy": BENEATH | {"data", "evaluation", "training", "classifier"},
    "ablation": BENEATH | {"data", "evaluation", "training", "inspection"},
    "study": BENEATH | {"data", "evaluation", "training", "classifier", "explanation", "ablation", "plots"},
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


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Circles in a graph, each as the way round."""
    found, state, way = [], {}, []

    def visit(node: str) -> None:
        state[node] = "open"
        way.append(node)
        for other in sorted(arrows.get(node, ())):
            if state.get(other) == "open":
                found.append([*way[way.index(other) :], other])
            elif other not in state:
                visit(other)
        way.pop()
        state[node] = "done"

    for node in sorted(arrows):
        if node not in state:
            visit(node)
    return found


@pytest.mark.parametrize("name", sorted({room(module) for module in MODULES} - {""}))
def test_a_room_imports_only_what_the_table_allows(name):
    asked = {
        (module, other)
        for module in MODULES
        if room(module) == name
        for other in imports(module)
        if room(other)
    }
    wrong = {(a, b) for a, b in asked if room(b) not in MAY_IMPORT[name] | {name}}
    assert not wrong, "see the picture of the rooms in CONTRIBUTING.md"


def test_the_arrows_point_one_way_between_rooms_and_inside_them():
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert not circles({module: imports(module) - packages for module in MODULES})
    assert not circles(MAY_IMPORT)


def test_a_circle_would_be_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == [["a", "b", "c", "a"]]


@pytest.mark.parametrize("path", sorted(MODULES.values()), ids=lambda path: str(path.relative_to(LIBRARY)))
def test_a_module_reads_in_one_sitting(path: Path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_the_top_of_the_library_is_one_screen():
    assert len([path for path in LIBRARY.iterdir() if not path.name.startswith("__")]) <= 20
