"""The rules of the tree: imports flow one way, heavy packages stay where they belong, files stay small."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("launcher", "blsp", "shards", "cluster")  # each may import those to its right

# Who may import a heavy package, or one whose spread would tie the code to it.
ALLOWED = {
    "aiohttp": {"shards.sets.object_store"},
    "av": {"shards.containers"},
    "botocore": {"shards.sets.object_store"},
    "deepspeed": {
        "blsp.meeting",
        "blsp.run",
        "blsp.engine",
        "blsp.checkpoint",
        "blsp.elastic",
        "blsp.frozen",
        "blsp.guard",
        "blsp.norms",
        "blsp.parts",
        "blsp.snapshot",
        "blsp.zero",
    },
    "espeakng_loader": {"shards.miniature.synth"},
    "fsspec": {"shards.sets.object_store"},
    "h5py": {"shards.corpora.mosei_labels"},
    "ijson": {"shards.corpora.recordings"},
    "openai": {"shards.writers.with_openai"},
    "peft": {"blsp.lora"},
    "pydantic": {
        "blsp.data_section",
        "blsp.engine_section",
        "blsp.recipe",
        "blsp.section",
        "blsp.slurm_section",
        "blsp.supervision_section",
        "blsp.writer_section",
        "launcher.recipe_files",
    },
    "ray": {"cluster.ray_actors", "cluster.ray_session"},
    "s3fs": {"shards.sets.object_store"},
    "sklearn": {"blsp.evaluate.systems", "shards.targets.leakage"},
    "tensorboard": {"blsp.shown", "blsp.tracking", "blsp.validate"},
    "typer": {"launcher.arguments", "launcher.cli", "launcher.cluster_verbs", "launcher.set_verbs"},
    "vllm": {"shards.writers.with_vllm"},
    "webdataset": set(),  # for tests and benchmarks
}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
NO_MODELS = ("deepspeed", "numpy", "peft", "pydantic", "ray", "sklearn", "torch", "transformers")


def sources() -> Iterator[tuple[str, Path]]:
    """(dotted module name, file) of every module of the four packages."""
    for layer in LAYERS:
        for path in sorted((ROOT / layer).rglob("*.py")):
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts), path


def imports(path: Path) -> Iterator[str]:
    """Every module that the file names in an import, at the top, inside functions and for types alike."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize(("module", "path"), [pytest.param(*source, id=source[0]) for source in sources()])
def test_a_module_keeps_to_its_layer(module: str, path: Path) -> None:
    layer = LAYERS.index(module.split(".")[0])
    for name in imports(path):
        top = name.split(".")[0]
        assert top not in LAYERS[:layer], f"{module} imports {name}: imports flow {' -> '.join(LAYERS)}"
        assert top not in ALLOWED or module in ALLOWED[top], f"{module} imports {top}"
        assert not name.startswith("torch.utils.tensorboard") or module in ALLOWED["tensorboard"]
        if LAYERS[layer] == "cluster":
            assert top in {*sys.stdlib_module_names, "cluster", "ray"}, f"{module} imports {top}: standard library only"


@pytest.mark.parametrize(("module", "path"), [pytest.param(*source, id=source[0]) for source in sources()])
def test_a_file_and_its_functions_are_small(module: str, path: Path) -> None:
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES, f"{path}:{node.lineno}: {node.name}"


@pytest.mark.parametrize("module", ["launcher.cli", "cluster.hostfile", "cluster.ray_session"])
def test_light_modules_load_no_heavy_package(module: str) -> None:
    code = f"import sys, {module}; print(*[name for name in {NO_MODELS} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Neither lazily nor for their types alone."""
    imported = {module.removesuffix(".__init__"): set(imports(path)) for module, path in sources()}
    ours = {module: found & imported.keys() - {module} for module, found in imported.items()}
    assert list(TopologicalSorter(ours).static_order())  # or it names them


def test_help_answers_in_half_a_second() -> None:
    def seconds() -> float:
        # Of the processor: what else the machine does is not the command's doing.
        before = os.times()
        subprocess.run([sys.executable, "-m", "launcher", "--help"], cwd=ROOT, capture_output=True, check=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(seconds() for _ in range(6)) < 0.5


def test_everything_that_is_not_python_is_packaged() -> None:
    """An installed copy must have the recipes and the report's page."""
    setup = next(
        node for node in ast.walk(ast.parse((ROOT / "setup.py").read_text("utf-8")))
        if isinstance(node, ast.keyword) and node.arg == "package_data"
    )  # fmt: skip
    globs = ast.literal_eval(setup.value)
    for layer in LAYERS:
        packaged = {path for glob in globs.get(layer, []) for path in (ROOT / layer).glob(glob)}
        others = {path for path in (ROOT / layer).rglob("*") if path.is_file() and "__pycache__" not in path.parts}
        assert {path for path in others if path.suffix != ".py"} <= packaged


def readme_tree() -> dict[str, set[str]]:
    """What README's tree names, by package: an entry is a file, or a folder ending in '/', which stands for all in
    it unless its files follow, further in."""
    tree: dict[str, set[str]] = {}
    package = folder = ""
    for line in (ROOT / "README.md").read_text("utf-8").splitlines():
        if heading := re.match(r"(\w+)/(\s|$)", line):
            package = heading[1]
            tree.setdefault(package, set())
        elif package and (entry := re.match(r"  (\S+?/?)\s+\S", line)):
            tree[package].add(entry[1])
            folder = entry[1]
        elif package and (entry := re.match(r"    (\S+)\s+\S", line)):
            tree[package].discard(folder)
            tree[package].add(folder + entry[1])
        elif line.startswith("```"):
            package = ""
    return tree


@pytest.mark.parametrize("layer", LAYERS)
def test_readme_shows_the_tree_as_it_is(layer: str) -> None:
    if not (ROOT / "README.md").exists():
        pytest.skip("there is no README yet")
    named = readme_tree().get(layer, set())
    folders = tuple(entry for entry in named if entry.endswith("/"))
    real = {path.relative_to(ROOT / layer).as_posix() for path in (ROOT / layer).rglob("*.py")}
    # A package's __init__.py need not be named where it says nothing but what the package is.
    silent = {name for name in real if name.endswith("__init__.py") and name not in named}
    missing = {name for name in real - silent - named if not name.startswith(folders)}
    gone = {entry for entry in named if not (ROOT / layer / entry).exists()}
    assert (missing, gone) == (set(), set())
