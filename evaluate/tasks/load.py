"""lm-eval tasks for a grid: loading, and the task's own reading of a response."""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from lm_eval.api.filter import FilterEnsemble
from lm_eval.api.instance import Instance
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager
from lm_eval.utils import env

from extratime.evaluate.grade import answer_key, strip_thinking
from extratime.evaluate.grid import Recipe, Scoring
from extratime.evaluate.named import RecipeError
from extratime.models.manifest import write_text

OURS = Path(__file__).parent

# lm-eval compiles a task's template anew for each document and column, which would take most of a replay's time.
env.from_string = functools.cache(env.from_string)


def load_tasks(recipe: Recipe) -> dict[str, Task]:
    """The tasks of a recipe, by name; groups and tags are expanded.

    Raises:
        RecipeError: a task is unknown, does not generate text, or repeats itself.
    """
    ours = _manager(ours_only=True)
    manager = ours if all(name in ours.task_index for name in recipe.tasks) else _manager(ours_only=False)
    for name in recipe.tasks:
        if name not in manager.task_index:
            raise RecipeError(f"no task {name!r} in lm-eval or in {OURS}; `lm-eval ls tasks` lists them")
    for name in [*recipe.overrides, *recipe.data]:
        if name not in recipe.tasks:
            raise RecipeError(f"data or overrides are given for the task {name!r}, which the recipe does not run")
    tasks: dict[str, Task] = manager.load([_spec(manager, recipe, name) for name in recipe.tasks])["tasks"]
    for name, task in tasks.items():
        _check(name, task)
        _configure(task, recipe)
    return tasks


@functools.cache
def _manager(ours_only: bool) -> TaskManager:
    """Knows all tasks; to read lm-eval's own 14,000 files takes seconds, so it is done where needed, and once."""
    return TaskManager(include_path=str(OURS), include_defaults=not ours_only)


def _spec(manager: TaskManager, recipe: Recipe, name: str) -> str:
    """The task's name, or a YAML file in the run folder that includes the task and overrides some of it."""
    changes = _local(name, recipe) | dict(recipe.overrides.get(name, {}))
    if not changes:
        return name
    file = recipe.output / "tasks" / f"{name}.yaml"
    base = {"include": str(manager.task_index[name].yaml_path)}
    write_text(file, yaml.safe_dump(base | changes))
    return str(file)


def _local(name: str, recipe: Recipe) -> dict[str, Any]:
    """What makes a task read its documents from a folder."""
    if name not in recipe.data:
        return {}
    folder = Path(recipe.data[name]).expanduser()
    files = {file.stem: str(file.resolve()) for file in sorted(folder.glob("*.jsonl"))}
    if not files:
        raise RecipeError(f"data.{name}: no <split>.jsonl in {folder}; give the folder that holds test.jsonl")
    return {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}


def _check(name: str, task: Task) -> None:
    if task.OUTPUT_TYPE != "generate_until":
        raise RecipeError(f"task {name} asks for {task.OUTPUT_TYPE}; strategies need a task that generates text")
    if task.config.repeats != 1:
        raise RecipeError(
            f"task {name} repeats each document {task.config.repeats} times by itself; "
            f"set overrides.{name}.repeats to 1 and let a strategy draw"
        )


def _configure(task: Task, recipe: Recipe) -> None:
    if recipe.fewshot is not None:
        task.set_config("num_fewshot", recipe.fewshot)
    elif task.get_config("num_fewshot") is None:
        task.set_config("num_fewshot", 0)


@dataclass(frozen=True, slots=True)
class Reading:
    """How one task reads a response.

    Attributes:
        filter: name of the filter pipeline that counts.
        metric: name of the metric that counts.
        answer: what a response votes for.
        score: the metric of one response to a document.
    """

    filter: str
    metric: str
    answer: Callable[[str], Hashable | None]
    score: Callable[[Mapping[str, Any], str], float]


def reading(task: Task, scoring: Scoring, thinking: bool) -> Reading:
    """The task's own reading, as `scoring` chooses.

    Args:
        task: the task.
        scoring: filter, metric and kind of answer.
        thinking: whether `<think>` blocks are to be removed first.
    """
    pipelines = {pipeline.name: pipeline for pipeline in task._filters}
    pipeline = pipelines[_choose(scoring.filter, list(pipelines), "filter", task)]
    metric = _choose(scoring.metric, list(task.higher_is_better()), "metric", task)
    clean = strip_thinking if thinking else str
    extracts = len(pipeline.filters) > 1 and not callable(task.config.process_results)
    kind = scoring.answer or ("task" if extracts else "math")
    answer = functools.partial(_extracted, task, pipeline, metric) if kind == "task" else answer_key

    def score(doc: Mapping[str, Any], text: str) -> float:
        return float(task.process_results(doc, [_filtered(pipeline, clean(text), doc)])[metric])

    return Reading(pipeline.name, metric, functools.cache(lambda text: answer(clean(text))), score)


def _choose(wanted: str | None, known: list[str], what: str, task: Task) -> str:
    if wanted is not None and wanted not in known:
        raise RecipeError(f"task {task.config.task} has no {what} {wanted!r}; it has {', '.join(known)}")
    return wanted or known[0]


def _filtered(pipeline: FilterEnsemble, text: str, doc: Mapping[str, Any]) -> Any:
    instance = Instance("generate_until", dict(doc), ("", {}), 0, resps=[text])
    pipeline.apply([instance])
    return instance.filtered_resps[pipeline.name]


def _extracted(task: Task, pipeline: FilterEnsemble, metric: str, text: str) -> str | None:
    """The filter's extraction as the metric compares it; None where the filter fell back."""
    found = _filtered(pipeline, text, {})
    found = found[0] if isinstance(found, list) else found
    fallbacks = {getattr(make(), "fallback", "[invalid]") for make in pipeline.filters}
    if not isinstance(found, str) or found in fallbacks or not found.strip():
        return None
    return _normal(found, task._metric_fn_kwargs.get(metric, {}))


def _normal(text: str, options: Mapping[str, Any]) -> str:
    """`text` under the equivalence of lm-eval's exact_match."""
    for pattern in options.get("regexes_to_ignore") or ():
        text = re.sub(pattern, "", text)
    if options.get("ignore_case"):
        text = text.lower()
    if options.get("ignore_punctuation"):
        text = text.translate(str.maketrans("", "", string.punctuation))
    if options.get("ignore_numbers"):
        text = text.translate(str.maketrans("", "", string.digits))
    return text.strip()
