"""What is installed is the tree: names, packages, data files and the direction of imports."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("models", "evaluate", "train")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def files(room):
    """Everything in a room that belongs to the project, from the root."""
    kept = ("__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache")
    found = [path.relative_to(ROOT) for path in (ROOT / room).rglob("*") if path.is_file()]
    return sorted(path for path in found if not set(kept) & set(path.parts))


def modules():
    return [path for room in ROOMS for path in files(room) if path.suffix == ".py"]


def python(*words, cwd, **env):
    """A fresh interpreter's output; its failure is ours."""
    done = subprocess.run(
        [sys.executable, *words], cwd=cwd, env=os.environ | env, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- names


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_is_a_package_by_itself(room):
    assert (ROOT / room).is_dir() and not (ROOT / room / "__init__.py").exists()


def test_evaluate_is_pypi_s_at_the_root_of_the_repository():
    said = python("-c", "import evaluate; print(evaluate.load.__module__, evaluate.__file__)", cwd=ROOT)
    module, file = said.split(maxsplit=1)
    assert module.startswith("evaluate.") and not Path(file.strip()).is_relative_to(ROOT / "evaluate")


def test_no_module_bears_the_name_of_what_we_depend_on():
    groups = PROJECT["project"]["optional-dependencies"].values()
    needed = [*PROJECT["project"]["dependencies"], *(line for group in groups for line in group), "evaluate"]
    names = {plain(re.split(r"[^\w.-]", line)[0]) for line in needed}
    provided = importlib.metadata.packages_distributions().items()
    taken = names | {top for top, makers in provided if names & set(map(plain, makers))}
    assert {"torch", "yaml", "lm_eval", "reasoning_gym"} <= taken, "the check sees the import names of distributions"
    assert not {path.stem for path in modules()} & taken
    assert not {path.parent.name for path in modules() if len(path.parts) > 2} & taken


def plain(distribution):
    return distribution.lower().replace("-", "_")


# --- imports


@pytest.mark.parametrize(("room", "above"), [("models", ("evaluate", "train")), ("evaluate", ("train",))])
def test_imports_go_one_way(room, above):
    seen = [
        f"{path} imports {name}"
        for path in files(room)
        if path.suffix == ".py"
        for name in imported(path)
        if name.split(".")[1] in above and (str(path), name) != ("evaluate/cli.py", "extratime.train.")
    ]
    assert seen == []


@pytest.mark.parametrize(
    ("room", "below"),
    [
        ("statistics", ("statistics",)),
        ("algorithms", ("statistics", "algorithms", "named", "program", "schedule")),
        ("strategies", ("statistics", "algorithms", "named", "program", "schedule", "strategies", "verifiers")),
    ],
)
def test_rooms_of_evaluate_know_only_what_is_below_them(room, below):
    seen = {
        f"{path} imports {name}"
        for path in files(f"evaluate/{room}")
        if path.suffix == ".py"
        for name in imported(path)
        if name.startswith("extratime.evaluate.") and name.split(".")[2] not in below
    }
    assert seen == set()


@pytest.mark.parametrize(
    "line",
    [
        "import extratime.train.run",
        "from extratime.train import run",
        "from extratime import train",
        "def f():\n    from extratime.train.run import fit",
        "importlib.import_module('extratime.train.run')",
        "importlib.import_module(f'extratime.train.{name}')",
        "from ...train import run",
    ],
)
def test_the_check_of_imports_sees_every_way_to_import(tmp_path, line):
    file = Path("models", "engines", "some.py")
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(line)
    assert any(name.split(".")[1] == "train" for name in imported(file, tmp_path))


def imported(path, root=ROOT):
    """Names below `extratime` that a file imports, or holds as a string to import."""
    found = []
    for node in ast.walk(ast.parse((root / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = ["extratime", *path.with_suffix("").parts][: -node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found += [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found += re.findall(r"^extratime\.[\w.]+$", node.value)
    return [name for name in found if name.startswith("extratime.")]


DANGERS = {
    "code from the hub": r"""trust_remote_code["']?\s*[=:]\s*True""",
    "pickles": r"^\s*(import|from)\s+(pickle|dill|cloudpickle|joblib)\b|\btorch\.load\(|allow_pickle\s*=\s*True",
}


@pytest.mark.parametrize("danger", DANGERS)
def test_nothing_runs_what_a_checkpoint_brings(danger):
    pattern = re.compile(DANGERS[danger], re.M)
    assert [str(path) for path in modules() if pattern.search((ROOT / path).read_text(encoding="utf-8"))] == []


# --- the wheel


def test_the_list_of_packages_is_the_tree():
    tree = {"extratime." + ".".join(path.parent.parts) for path in modules()}
    told = PROJECT["tool"]["setuptools"]["packages"]
    assert sorted(told) == sorted(tree)
    assert PROJECT["tool"]["setuptools"]["package-dir"] == {f"extratime.{room}": room for room in ROOMS}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The unpacked wheel of a copy of the tree; nothing is left behind in the tree itself."""
    pytest.importorskip("setuptools", minversion="77", reason="building the wheel needs setuptools ≥ 77")
    pytest.importorskip("pip", reason="building the wheel needs pip")
    folder = tmp_path_factory.mktemp("wheel")
    for room in ROOMS:
        shutil.copytree(ROOT / room, folder / "tree" / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "tree" / name)
    words = ["wheel", "./tree", "--no-deps", "--no-build-isolation", "--no-index", "-w", "built"]
    python("-m", "pip", *words, cwd=folder, PIP_DISABLE_PIP_VERSION_CHECK="1")
    (built,) = (folder / "built").glob("*.whl")
    zipfile.ZipFile(built).extractall(folder / "unpacked")
    return folder / "unpacked"


def test_the_wheel_holds_every_file_of_the_rooms_and_nothing_else(wheel):
    held = {path.relative_to(wheel) for path in wheel.rglob("*") if path.is_file()}
    ours = {path for path in held if path.parts[0] == "extratime"}
    assert ours == {Path("extratime") / path for room in ROOMS for path in files(room)}
    assert {path.suffix for path in ours} >= {".py", ".yaml", ".html", ".js", ".css"}
    assert all(re.fullmatch(r"extratime-[\w.]+\.dist-info", path.parts[0]) for path in held - ours)


def test_the_wheel_works_from_another_folder(wheel, tmp_path):
    said = python("-m", "extratime.evaluate.cli", "--help", cwd=tmp_path, PYTHONPATH=str(wheel))
    assert "extratime evaluate recipes/evaluate/demo.yaml" in said
    (tmp_path / "recipe.yaml").write_text(
        "{model: /nowhere, tasks: [sums_easy], strategies: [greedy], output: run, limit: 3}"
    )
    # The packages of the tree may be installed too, for development: tell which were imported.
    program = """import sys
from extratime.evaluate.cli import main
status = main(["evaluate", "recipe.yaml", "--dry-run"])
print(status, *(m.__file__ for name, m in sys.modules.items() if name.startswith("extratime.") and m.__file__))"""
    plan, _, last = python("-c", program, cwd=tmp_path, PYTHONPATH=str(wheel)).strip().rpartition("\n")
    status, *imported = last.split()
    assert status == "0" and "sums_easy: 3 documents" in plan
    assert imported and all(Path(file).is_relative_to(wheel) for file in imported)
