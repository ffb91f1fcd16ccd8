"""An evaluation of problems that a bench made up itself."""

import json
from pathlib import Path
from typing import Any

from steps import call

from extratime.evaluate.report.read import Result, Run, read


def answered(folder: Path, problems: list[tuple[str, str]], answer: str, recipe: dict[str, Any]) -> Run:
    """What a recipe answers to problems; goes on where it was.

    Args:
        folder: of the run; the recipe and the problems are written beside it.
        problems: what is asked, word for word, and the right answer.
        answer: a pattern whose group is the answer in a response.
        recipe: without its tasks and its output.
    """
    data = folder.with_name(f"{folder.name}-problems")
    data.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"expression": asked, "answer": right}) for asked, right in problems]
    (data / "test.jsonl").write_text("\n".join(lines))
    found = [{"function": "regex", "regex_pattern": answer}, {"function": "take_first"}]
    task = {"custom_dataset": None, "training_split": None, "validation_split": None}
    task |= {"doc_to_text": "{{expression}}", "filter_list": [{"name": "answer", "filter": found}]}
    said = {"tasks": ["sums_easy"], "data": {"sums_easy": str(data)}, "overrides": {"sums_easy": task}}
    file = folder.with_suffix(".yaml")
    file.write_text(json.dumps(recipe | said | {"chat": False, "output": str(folder)}))
    if not (folder / "results").exists():
        call("extratime.evaluate.cli", "evaluate", file, "--no-report")
    return read(folder)


def columns(run: Run) -> dict[tuple[str, int], list[Result]]:
    """Results by strategy and budget, in the order of the problems."""
    found: dict[tuple[str, int], list[Result]] = {}
    for result in sorted(run.results, key=lambda result: result.doc_id):
        found.setdefault((result.strategy, result.budget), []).append(result)
    return found
