"""The whole grid through one lm-eval evaluation in one process.

The grid's columns become lm-eval's `repeats` axis: each document is asked once per column, and each column has its own
copy of the task's filter pipelines, which picks that column's response. lm-eval builds the prompts, extracts and
scores; its own results are kept, without the copies of all responses that it logs with every sample.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lm_eval.api.filter import Filter, FilterEnsemble
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.task import Task
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from extratime.evaluate.grade import strip_thinking
from extratime.evaluate.grid import Column, Recipe
from extratime.evaluate.program import Problem
from extratime.evaluate.schedule import Cell, Result
from extratime.evaluate.tasks.load import Reading
from extratime.models.request import Prompt

Run = Callable[[Sequence[Cell]], Sequence[Result]]


@dataclass(frozen=True, slots=True)
class Scored:
    """A result and what lm-eval gave it.

    Attributes:
        task: name of the task.
        doc_id: the document's number in the task's evaluation split.
        column: where it stands in the grid.
        result: what the strategy came to.
        metric: what `score` is.
        score: the task's metric.
        gold: the task's target.
    """

    task: str
    doc_id: int
    column: Column
    result: Result
    metric: str
    score: float
    gold: str


@dataclass(frozen=True, slots=True)
class Bench:
    """What a grid needs to know of tasks and model.

    Attributes:
        recipe: the recipe.
        columns: of the grid.
        strategies: each column's program.
        tasks: by name.
        readings: how each task reads a response.
        documents: numbers of the documents to evaluate, by task.
        encode: text to prompt.
        render: chat to text, or None where there is no chat template.
    """

    recipe: Recipe
    columns: Sequence[Column]
    strategies: Sequence[Callable[..., Any]]
    tasks: Mapping[str, Task]
    readings: Mapping[str, Reading]
    documents: Mapping[str, list[int]]
    encode: Callable[[str], Prompt]
    render: Callable[[Sequence[Mapping[str, str]], bool], str] | None = None


def evaluate(bench: Bench, run: Run) -> tuple[list[Scored], dict[str, Any]]:
    """Run the grid.

    Args:
        bench: the grid.
        run: answers cells, in their order.

    Returns:
        Every cell with its score, and lm-eval's results.
    """
    # lm-eval takes an empty list of documents for all of them: such tasks must not reach it.
    tasks = [task for name, task in bench.tasks.items() if bench.documents[name]]
    if not tasks:
        return [], {"results": {}, "samples": {}}
    for task in tasks:
        task.set_config("repeats", len(bench.columns))
        task._filters = [
            _pick(column, k, pipeline) for k, column in enumerate(bench.columns) for pipeline in task._filters
        ]
    lm = GridLM(bench, run)
    recipe = bench.recipe
    report = simple_evaluate(
        lm,
        tasks=tasks,
        samples=dict(bench.documents),
        system_instruction=recipe.system,
        apply_chat_template=recipe.chat and bench.render is not None,
        fewshot_as_multiturn=recipe.fewshot_multiturn,
        bootstrap_iters=0,
        log_samples=True,
        # The tasks are loaded; a manager of its own would read all of lm-eval's files once more.
        task_manager=TaskManager(include_defaults=False),
    )
    return list(_scored(bench, lm.results, report["samples"])), _slim(report)


class _Pick(Filter):
    """Keeps one column's response."""

    def __init__(self, column: int) -> None:
        self.column = column

    def apply(self, resps: Iterable[list[str]], docs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
        """See `Filter.apply`."""
        return [[responses[self.column]] for responses in resps]


def _pick(column: Column, k: int, pipeline: FilterEnsemble) -> FilterEnsemble:
    return FilterEnsemble(f"{column.key}|{pipeline.name}", [functools.partial(_Pick, k), *pipeline.filters])


@dataclass(eq=False)
class GridLM(LM):
    """lm-eval's view of a grid: a model that answers each document once per column."""

    bench: Bench
    run: Run
    results: dict[tuple[str, int, str], Result] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        self._chats: dict[str, tuple[Mapping[str, str], ...]] = {}

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """One response per request; requests of one document follow each other, a column each."""
        cells, width = [], len(self.bench.columns)
        for instance in requests[::width]:
            cells += self._cells(instance)
        results = self.run(cells)
        for instance, column, result in zip(requests, self._columns(len(requests)), results, strict=True):
            self.results[instance.task_name, self._number(instance), column.key] = result
        clean = strip_thinking if self.bench.recipe.strip_thinking else str
        return [clean(result.answer.response.text) for result in results]

    def _columns(self, n: int) -> list[Column]:
        return list(self.bench.columns) * (n // len(self.bench.columns))

    def _number(self, instance: Instance) -> int:
        documents: list[int] = self.bench.documents[str(instance.task_name)]
        return documents[int(instance.doc_id or 0)]

    def _cells(self, instance: Instance) -> list[Cell]:
        problem, bench = self._problem(instance), self.bench
        until = instance.args[1].get("until") or ()
        stops = (until,) if isinstance(until, str) else tuple(until)
        return [
            Cell(
                f"{problem.id}/{column.key}",
                problem,
                strategy,
                column.budget,
                bench.recipe.sampling,
                tuple(stop for stop in stops if stop),
                column.replicate,
            )
            for column, strategy in zip(bench.columns, bench.strategies, strict=True)
        ]

    def _problem(self, instance: Instance) -> Problem:
        context, options = instance.args
        reading = self.bench.readings[instance.task_name]
        length = self.bench.recipe.max_tokens or options.get("max_gen_toks") or 256
        return Problem(
            id=f"{instance.task_name}/{self._number(instance)}",
            prompt=self.bench.encode(context),
            answer=reading.answer,
            correct=functools.cache(lambda text: reading.score(instance.doc, text) > 0),
            max_tokens=length,
            doc=instance.doc,
            messages=self._chats.get(context, ()),
            encode=self.bench.encode,
            turn=self._turn,
        )

    def _turn(self, text: str) -> Prompt:
        """What is said to the policy beside the task, as it reads it."""
        render = self.bench.render if self.bench.recipe.chat else None
        return self.bench.encode(render([{"role": "user", "content": text}], True) if render else text)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render a chat as the model reads it."""
        assert self.bench.render is not None
        text = self.bench.render(chat_history, add_generation_prompt)
        self._chats[text] = tuple(chat_history)
        return text

    @property
    def tokenizer_name(self) -> str:
        """Names the template for lm-eval's own caches, which stay off."""
        return self.bench.recipe.model.replace("/", "__")

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not asked of a grid."""
        raise NotImplementedError("strategies answer tasks that generate text; this one compares likelihoods")

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Not asked of a grid."""
        raise NotImplementedError("strategies answer tasks that generate text; this one measures perplexity")


def _scored(
    bench: Bench, results: Mapping[tuple[str, int, str], Result], samples: Mapping[str, list[dict[str, Any]]]
) -> Iterable[Scored]:
    columns = {column.key: column for column in bench.columns}
    for name, logged in samples.items():
        reading = bench.readings[name]
        for sample in logged:
            key, _, pipeline = sample["filter"].rpartition("|")
            if pipeline == reading.filter:
                result = results[name, sample["doc_id"], key]
                score = float(sample[reading.metric])
                gold = str(sample["target"])
                yield Scored(name, sample["doc_id"], columns[key], result, reading.metric, score, gold)


def _slim(report: dict[str, Any]) -> dict[str, Any]:
    """lm-eval's results without the copies of all columns' responses in each sample."""
    for logged in report["samples"].values():
        for sample in logged:
            sample.pop("resps", None)
    return report
