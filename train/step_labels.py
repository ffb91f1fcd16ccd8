"""Monte-Carlo labels of steps, as training data: an evaluation of the training split, written as one line a response.

The recipe is one of `extratime evaluate` with the strategy `step_values` (Math-Shepherd, arXiv 2312.08935), so tasks,
prompts, sampling, engines, shards and resuming are those of an evaluation. h steps of n responses cost n · (1 + K · h)
completions; its budget has to pay for them (see the strategy's budget law), and what it does not use costs nothing.

    extratime train step_labels recipes/step_labels/sums.yaml                 # → <output>/steps.jsonl
    extratime train step_labels recipes/step_labels/sums.yaml --set limit=50
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from extratime.evaluate.grid import Recipe, StrategySpec, columns
from extratime.evaluate.strategies.step_values import step_values
from extratime.models.manifest import write_lines
from extratime.models.steps import split
from extratime.train.rollouts import lines, run_from


def rows(folder: Path, recipe: Recipe) -> Iterator[dict[str, Any]]:
    """Every response in the pools of a run folder, in the order of its results; failed and cut ones are left out.

    Yields:
        problem, prompt, steps (their texts), labels (the value of each step, None where it has none), k, reward.

    Raises:
        ValueError: the recipe has no strategy `step_values`, or one that ends steps at several strings.
    """
    specs = {column.key: column.spec for column in columns(recipe) if column.spec.name == "step_values"}
    if not specs:
        raise ValueError("the recipe labels no steps: add step_values to its strategies")
    said = {line["id"]: line for line in lines(folder, "responses")}
    told = set()
    for result in lines(folder, "results"):
        if result["cell"] not in specs:
            continue
        k, separator = _settings(specs[result["cell"]])
        for place, trail in enumerate(_trails(result["pool"], said)):
            end, _ = trail[-1]
            name = result["problem"], result["replicate"], place, k, separator, end["id"]
            if end["finish"] not in ("failed", "cut") and name not in told:
                told.add(name)
                yield {
                    "problem": result["problem"],
                    "prompt": result["question"],
                    **_labelled(trail, separator),
                    "k": k,
                    "reward": end["score"],
                }


def _settings(spec: StrategySpec) -> tuple[int, str]:
    options = {name: p.default for name, p in inspect.signature(step_values).parameters.items()} | spec.options
    if len(options["step"]) != 1 or isinstance(options["step"], str):
        raise ValueError(f"step_values.step must be a list of one string here, not {options['step']!r}")
    return int(options["completions"]), str(options["step"][0])


def _trails(pool: Sequence[Sequence[Any]], said: Mapping[str, Any]) -> Iterator[list[tuple[Any, float | None]]]:
    """The pool's responses, each as the list of its prefixes and itself, with their values."""
    trail = []
    for name, weight in pool:
        trail.append((said[name], weight))
        if said[name]["finish"] != "pause":
            yield trail
            trail = []


def _labelled(trail: Sequence[tuple[Any, float | None]], separator: str) -> dict[str, Any]:
    """Steps and labels. Where a response ended right after a separator, what counts is the value before it ended."""
    steps = split(trail[-1][0]["text"], separator)
    labels: list[float | None] = [None] * len(steps)
    for part, value in reversed(trail):
        text = part["text"].rpartition(separator)[0] if part["finish"] == "pause" else part["text"]
        if reached := len(split(text, separator)):
            labels[reached - 1] = value
    return {"steps": steps, "labels": labels}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the recipe and write its labels."""
    recipe, folder = run_from("step_labels", __doc__, "recipes/step_labels/sums.yaml", argv)
    made = list(rows(folder, recipe))
    write_lines(folder / "steps.jsonl", made)
    labels = [label for row in made for label in row["labels"]]
    known = [label for label in labels if label is not None]
    mean = sum(known) / len(known) if known else float("nan")
    sys.stderr.write(
        f"{folder / 'steps.jsonl'}: {len(made)} responses, {len(labels)} steps, mean label {mean:.3f}"
        f"{f'; {len(labels) - len(known)} steps have none: raise budgets or steps' if None in labels else ''}\n"
    )


if __name__ == "__main__":
    main()
