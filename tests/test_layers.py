"""The rules of STYLE.md and DESIGN.md that a parser can check: who imports whom, and how modules are written.

Every module is read as text and nothing is imported, so a module that is broken is still checked.
"""

import ast
import functools
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "segdatagen"

LAYERS = {
    "errors": 0,
    "labels": 0,
    "colours": 0,
    "bands": 0,
    "outlines": 0,
    "segments": 0,
    "images": 0,
    "records": 0,
    "storage": 0,
    "disk_files": 0,
    "file_locks": 0,
    "tables": 0,
    "svg": 0,
    "config_files": 0,
    "datasets": 1,
    "geometry": 1,
    "balance": 1,
    "balance_auto": 1,
    "balance_reference": 1,
    "balance_report": 1,
    "cover": 1,
    "random_turns": 1,
    "goals": 1,
    "missing": 1,
    "costs": 1,
    "class_bars": 1,
    "filters": 1,
    "image_hash": 1,
    "peak_memory": 1,
    "device_errors": 1,
    "layouts": 1,
    "latent_folders": 1,
    "training_record": 1,
    "network_tensors": 1,
    "transformers_tensors": 1,
    "model_configs": 1,
    "method_options": 1,
    "clip_scores": 1,
    "clip_tokenizer": 1,
    "class_ranks": 1,
    "regions": 1,
    "judged": 3,
    "judges": 5,
    "judge_sources": 5,
    "best_of": 5,
    "load_source": 5,
    "method_context": 5,
    "latent_methods": 5,
    "weights": 1,
    "weight_hashes": 1,
    "weights_cache": 1,
    "hub": 1,
    "fetch_weights": 1,
    "prefetch": 5,
    "inert_pickle": 1,
    "torch_files": 1,
    "mask_ddpm_checkpoints": 1,
    "diffusion": 1,
    "priors": 1,
    "metrics": 1,
    "segmenters": 1,
    "prompts": 1,
    "captioners": 1,
    "stages": 2,
    "sources": 3,
    "source_report": 3,
    "source_hashes": 3,
    "decisions": 3,
    "exclude": 3,
    "refilter": 3,
    "planner": 3,
    "plan_rows": 3,
    "progress": 3,
    "samples": 3,
    "lease": 3,
    "run_folder": 3,
    "work": 3,
    "verify": 3,
    "publish": 3,
    "reader": 3,
    "exporters": 3,
    "status": 3,
    "budget": 3,
    "job": 4,
    "methods": 5,
    "filtering": 5,
    "hash_sources": 5,
    "regenerate": 5,
    "dataflow": 5,
    "placement": 5,
    "deep_verify": 5,
    "cluster": 5,
    "ingest": 5,
    "forecast": 5,
    "driver": 5,
    "run": 5,
    "training": 5,
    "experiment": 5,
    "scenes_suite": 6,
    "demo": 6,
    "report": 6,
    "benchmark": 6,
    "cli": 7,
    "__main__": 7,
    "__init__": 0,
}
"""Layer of each module and folder of segdatagen: see DESIGN.md. An import goes down, or stays in its layer."""

RAY_LAYER = 5
MAX_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 5
MAX_DOCSTRING_LINES = 7

MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


@functools.cache
def parse(module: Path) -> ast.Module:
    return ast.parse((PACKAGE / module).read_text(encoding="utf-8"), str(module))


def family(module: Path) -> str:
    """The name that LAYERS knows: the top-level folder, or the module itself."""
    return module.parts[0].removesuffix(".py")


def dotted(module: Path) -> str:
    return ".".join(("segdatagen", *module.with_suffix("").parts)).removesuffix(".__init__")


def imported_names(module: Path) -> set[str]:
    """Dotted names of everything that a module imports, anywhere in it."""
    names = set()
    for node in ast.walk(parse(module)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{'.' * node.level}{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_modules(module: Path) -> set[str]:
    """Those of our own modules that a module imports, by their dotted names."""
    known = {dotted(path) for path in MODULES}
    modules = {name if name in known else name.rpartition(".")[0] for name in imported_names(module)}
    return modules & known - {"segdatagen"}


def importers_of(*packages: str) -> set[Path]:
    return {module for module in MODULES if {name.split(".")[0] for name in imported_names(module)} & set(packages)}


def test_every_module_has_a_layer() -> None:
    assert {family(module) for module in MODULES} <= set(LAYERS)


def test_imports_are_absolute() -> None:
    assert not [m for m in MODULES if any(name.startswith(".") for name in imported_names(m))]


def test_imports_go_down_the_layers() -> None:
    upward = [
        f"{module} (layer {LAYERS[family(module)]}) imports {name} (layer {LAYERS[name.split('.')[1]]})"
        for module in MODULES
        for name in sorted(imported_modules(module))
        if LAYERS[name.split(".")[1]] > LAYERS[family(module)]
    ]
    assert not upward


def test_imports_make_no_circle() -> None:
    graph = {dotted(module): imported_modules(module) - {dotted(module)} for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


def test_only_one_layer_imports_ray() -> None:
    importers = importers_of("ray")
    assert importers
    assert {LAYERS[family(module)] for module in importers} == {RAY_LAYER}
    assert not importers & {Path("methods.py"), Path("filtering.py"), Path("regenerate.py")}


def test_only_storage_imports_fsspec() -> None:
    assert importers_of("fsspec", "s3fs") == {Path("storage.py")}


def test_only_the_command_line_prints() -> None:
    prints = [
        f"{module}:{node.lineno}"
        for module in MODULES
        for node in ast.walk(parse(module))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        if family(module) != "cli"
    ]
    assert not prints


def test_modules_are_short() -> None:
    """Those of the tests as well."""
    paths = [*PACKAGE.rglob("*.py"), *Path(__file__).parent.rglob("*.py")]
    lengths = {str(path): len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    assert not {path: length for path, length in lengths.items() if length > MAX_LINES}


def test_functions_fit_a_screen() -> None:
    functions = [
        (f"{module}:{node.lineno} {node.name}", (node.end_lineno or 0) - node.lineno + 1)
        for module in MODULES
        for node in ast.walk(parse(module))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert not {name: length for name, length in functions if length > MAX_FUNCTION_LINES}


def test_functions_take_few_parameters() -> None:
    """More want an options object. A command of `cli` has as many as its user may give."""
    parameters = [
        (f"{module}:{node.lineno} {node.name}", node.args.posonlyargs + node.args.args + node.args.kwonlyargs)
        for module in MODULES
        if family(module) != "cli"
        for node in ast.walk(parse(module))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    counts = {name: sum(given.arg not in ("self", "cls") for given in found) for name, found in parameters}
    assert not {name: count for name, count in counts.items() if count > MAX_PARAMETERS}


def test_modules_say_what_they_do_and_what_they_do_not_know() -> None:
    docstrings = {module: ast.get_docstring(parse(module)) or "" for module in MODULES}
    assert all(docstrings.values())
    sentences = {m: len(text.replace("\n", " ").split(". ")) for m, text in docstrings.items()}
    assert not {m: count for m, count in sentences.items() if count < 2 and m.name != "__init__.py"}
    assert not {m: text for m, text in docstrings.items() if not 2 <= len(text.splitlines()) <= MAX_DOCSTRING_LINES}


def test_only_the_row_guard_catches_everything() -> None:
    """A broad handler that raises again is none."""
    broad = {
        module
        for module in MODULES
        for node in ast.walk(parse(module))
        if isinstance(node, ast.ExceptHandler) and not isinstance(node.body[-1], ast.Raise)
        if node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
    }
    assert broad == {Path("methods.py")}
