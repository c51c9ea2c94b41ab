"""The house rules that a reviewer would otherwise have to remember."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from alignkit.recipe import CONFIGS, BackboneConfig
from alignkit.stages import STAGES

PACKAGE = Path(__file__).parent.parent / "alignkit"
FILES = sorted(PACKAGE.rglob("*.py"))

# Lower layers know nothing of higher ones. A module is in the layer of the longest name it
# begins with.
LAYERS: dict[str, int] = {
    "alignkit": 0,
    "alignkit.errors": 0,
    "alignkit.other_words": 0,
    "alignkit.what_is": 0,
    "alignkit.resources": 0,
    "alignkit.content_hash": 0,
    "alignkit.losses": 1,
    "alignkit.finite": 1,
    "alignkit.layout": 1,
    "alignkit.launch": 1,
    "alignkit.rows": 1,
    "alignkit.attention": 1,
    "alignkit.half_embedding": 1,
    "alignkit.lm_head": 1,
    "alignkit.logps": 1,
    "alignkit.batching": 1,
    "alignkit.decoder": 1,
    "alignkit.lora": 1,
    "alignkit.last_layer": 1,
    "alignkit.charts": 1,
    "alignkit.template_check": 1,
    "alignkit.template_worker": 1,
    "alignkit.rendering": 1,
    "alignkit.run_template": 1,
    "alignkit.function_source": 1,
    "alignkit.yaml_source": 1,
    "alignkit.heads": 2,
    "alignkit.reference_cache": 2,
    "alignkit.report": 2,
    "alignkit.artifacts": 2,
    "alignkit.recipe": 2,
    "alignkit.recipe_file": 2,
    "alignkit.foreign": 2,
    "alignkit.model_files": 1,
    "alignkit.data": 2,
    "alignkit.data.containers": 0,
    "alignkit.service": 2,
    "alignkit.tiny": 2,
    "alignkit.probe": 3,
    "alignkit.quantized_base": 2,
    "alignkit.model_check": 2,
    "alignkit.model_fit": 2,
    "alignkit.adapter_files": 2,
    "alignkit.adapter_fit": 2,
    "alignkit.tokenizer_check": 2,
    "alignkit.tokenizer_trial": 0,
    "alignkit.backbone": 3,
    "alignkit.reward_model": 3,
    "alignkit.checkpoints": 3,
    "alignkit.generation": 3,
    "alignkit.passthrough": 3,
    "alignkit.stage_pages": 3,
    "alignkit.evaluation": 4,
    "alignkit.judges": 4,
    "alignkit.ppo": 4,
    "alignkit.stages": 5,
    "alignkit.stages.context": 3,
    "alignkit.stages.data": 4,
    "alignkit.stages.token_rows": 4,
    "alignkit.stages.rows": 4,
    "alignkit.trackers": 3,
    "alignkit.stages.training": 4,
    "alignkit.collect": 5,
    "alignkit.plan": 6,
    "alignkit.estimate": 6,
    "alignkit.rehearsal": 6,
    "alignkit.pipeline": 6,
    "alignkit.summary": 6,
    "alignkit.cli": 7,
    "alignkit.__main__": 7,
}


def module_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> int | None:
    parts = module.split(".")
    if module in LAYERS:
        return LAYERS[module]
    for end in range(len(parts), 1, -1):  # the package itself covers no module
        name = ".".join(parts[:end])
        if name in LAYERS:
            return LAYERS[name]
    return None


def imports_at_top(file: Path) -> Iterator[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_point_downwards(file: Path) -> None:
    own = layer_of(module_of(file))
    assert own is not None, f"{module_of(file)} has no place in LAYERS"
    for imported in imports_at_top(file):
        if imported.startswith("alignkit."):
            other = layer_of(imported)
            assert other is not None and other <= own, f"{module_of(file)} imports {imported}"


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
    assert loading == {"alignkit.backbone", "alignkit.model_fit"}


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
COMMON = ("alignkit.plan", "alignkit.pipeline", "alignkit.passthrough")


def test_every_setting_is_read_by_the_stage_it_belongs_to() -> None:
    """An option that nothing reads is a promise that nothing keeps."""
    modules = {module_of(file): ast.parse(file.read_text(encoding="utf-8")) for file in FILES}
    idle = []
    for kind, config in CONFIGS.items():
        read = set(READ_BY_READERS)
        for module in reached({STAGES[kind][0], *COMMON}, modules):
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
        if name in found or name not in modules or name == "alignkit.recipe":
            continue
        found.add(name)
        for node in ast.walk(modules[name]):
            if isinstance(node, ast.ImportFrom) and node.module:
                open_ += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found
