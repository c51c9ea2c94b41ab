"""The house rules that a reviewer would otherwise have to remember."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from alignkit.recipe.settings import CONFIGS, BackboneConfig

PACKAGE = Path(__file__).parent.parent / "alignkit"
FILES = sorted(PACKAGE.rglob("*.py"))

# Rooms, lowest first: a room imports from those before it, at the top of a module or inside a
# function, and from itself; never from those after it. So no two rooms import each other.
ROOMS = (
    "errors",
    "store",
    "files",
    "service",
    "recipe",
    "forward",
    "model",
    "tiny",
    "data",
    "training",
    "statistics",
    "evaluation",
    "scorers",
    "judges",
    "ppo",
    "report",
    "stages",
    "collect",
    "run",
    "cli",
    "__main__",
)


def module_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """`data` of `alignkit.data.edit.clean`."""
    return module.split(".")[1]


def imports_of(file: Path) -> Iterator[str]:
    """Every import, those inside functions too, which only the moment of loading sets apart."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "alignkit":
            yield from (f"alignkit.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_point_downwards(file: Path) -> None:
    module = module_of(file)
    if module == "alignkit":
        assert not [name for name in imports_of(file) if name.startswith("alignkit")]
        return
    assert room_of(module) in ROOMS, f"{module} is in no room of ROOMS"
    below = ROOMS[: ROOMS.index(room_of(module)) + 1]
    for imported in imports_of(file):
        if imported.startswith("alignkit."):
            assert room_of(imported) in (*below, "__version__"), f"{module} imports {imported}"


def test_every_room_is_there() -> None:
    there = {room_of(module_of(file)) for file in FILES if module_of(file) != "alignkit"}
    assert there == set(ROOMS)
    # A module of its own beside the rooms is one that everybody uses.
    assert {file.stem for file in PACKAGE.glob("*.py")} == {
        "__init__", "__main__", "errors", "service",
    }  # fmt: skip


def calls(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def test_models_are_loaded_in_one_place() -> None:
    loading = {
        module_of(file)
        for file in FILES
        for call in calls(file)
        if call.endswith(".from_pretrained") and "Config" not in call and "Tokenizer" not in call
    }
    # model_fit loads tensors without contents, on no device; tokenizer_trial no model.
    assert loading == {"alignkit.model.backbone", "alignkit.model.fit"}


def test_nothing_unpickles_or_opens_a_shell() -> None:
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        for word in ("pickle.load", "weights_only=False", "shell=True", "os.system("):
            assert word not in text, f"{word} in {module_of(file)}"


def test_remote_code_is_never_trusted() -> None:
    for file in FILES:
        assert "trust_remote_code=True" not in file.read_text(encoding="utf-8"), file


# --- settings ----------------------------------------------------------------------------------

# Read by name alone: a stage's name is what the recipe's reader looks stages up by.
READ_BY_READERS = {"name"}
# Every stage's settings pass through these on their way.
COMMON = ("alignkit.run.plan", "alignkit.run.execute", "alignkit.recipe.trainer_arguments")
# To be read for an estimate alone keeps no promise; nor does it to be declared.
ESTIMATES = ("alignkit.stages.cost", "alignkit.stages.trial")


def test_every_setting_is_read_by_the_stage_it_belongs_to() -> None:
    """An option that nothing reads is a promise that nothing keeps."""
    modules = {module_of(file): ast.parse(file.read_text(encoding="utf-8")) for file in FILES}
    idle = []
    for kind, config in CONFIGS.items():
        read = set(READ_BY_READERS)
        for module in reached({f"alignkit.stages.{kind}", *COMMON}, modules):
            read |= settings_read(modules[module])
        idle += [f"{kind}.{name}" for name in config.model_fields if name not in read]
    assert idle == []
    everywhere = set().union(*map(settings_read, modules.values()))
    assert set(BackboneConfig.model_fields) <= everywhere


def settings_read(tree: ast.Module) -> set[str]:
    """Names read from what is called a configuration: `config.beta`, and SHARED_ARGUMENTS."""
    read = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            if ast.unparse(node.value).endswith(("config", "recipe.backbone", "plan.backbone")):
                read.add(node.attr)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SHARED_ARGUMENTS":
            read |= set(ast.literal_eval(node.value))
    return read


def reached(names: set[str], modules: dict[str, ast.Module]) -> set[str]:
    """Modules that these import, directly or not; types and settings themselves left out."""
    found, open_ = set(), list(names)
    while open_:
        name = open_.pop()
        if name in found or name not in modules or name in ESTIMATES:
            continue
        if name.startswith("alignkit.recipe.settings"):
            continue
        found.add(name)
        for node in ast.walk(modules[name]):
            if isinstance(node, ast.ImportFrom) and node.module:
                open_ += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def test_the_tree_of_the_readme_lists_the_rooms_in_order() -> None:
    readme = (PACKAGE.parent / "README.md").read_text(encoding="utf-8")
    tree = readme.partition("```\nalignkit/\n")[2].partition("```")[0]
    names = [line.split()[0].removesuffix("/").removesuffix(".py") for line in tree.splitlines()]
    assert names == [room for room in ROOMS if room != "__main__"]


def test_one_module_imports_trl() -> None:
    """So that a new release of TRL is one file to look at."""
    using = {module_of(f) for f in FILES if any(n.startswith("trl") for n in imports_of(f))}
    assert using == {"alignkit.training.trl"}
