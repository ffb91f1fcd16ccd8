"""docs/strategies.md has two rows for each strategy: what it does, and its options with what they cost."""

import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = sorted(file.stem for file in (ROOT / "evaluate/strategies").glob("[a-z]*.py"))
DOCS = (ROOT / "docs/strategies.md").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_each_strategy_is_told_with_all_its_options(name):
    rows = re.findall(rf"^\| `{name}` \|.*$", DOCS, re.M)
    assert len(rows) >= 2
    strategy = getattr(import_module(f"extratime.evaluate.strategies.{name}"), name)
    options = [*inspect.signature(strategy).parameters][3:]
    tables = [re.findall(r"`(\w+)`", row.split("|")[2]) for row in rows]
    assert options in tables, f"{name}: {options} are its options, the tables say {tables}"
