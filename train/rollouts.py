"""Draws from a policy, as training data: an evaluation of the training split, written as one line a draw.

The recipe is one of `extratime evaluate`, so tasks, prompts, sampling, engines, shards and resuming are those of an
evaluation; every strategy's pool counts, and `self_consistency` has the plainest one: `budget` i.i.d. samples. The
reward is the task's own metric. Failed draws are left out and counted.

    python -m extratime.train.rollouts recipes/rollouts/sums.yaml            # → <output>/draws.jsonl
    extratime train rollouts recipes/rollouts/sums.yaml --set limit=50
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from extratime.evaluate.grid import Recipe, read_recipe
from extratime.evaluate.run import run_recipe
from extratime.models.engines.text import encoder
from extratime.models.load import load_tokenizer
from extratime.models.manifest import write_lines


def draws(folder: Path) -> Iterator[dict[str, Any]]:
    """Every draw in the pools of a run folder, in the order of its results; each path of a problem once.

    Yields:
        problem, prompt, prompt_ids, response, tokens, logprobs (of the end token too), reward; without ids where the
        engine tells none; messages, where the prompt is a chat.
    """
    said = {line["id"]: line for line in lines(folder, "responses")}
    encode = encoder(load_tokenizer(folder / "tokenizer")) if (folder / "tokenizer").is_dir() else None
    told = set()
    for result in lines(folder, "results"):
        for place, (name, _) in enumerate(result["pool"]):
            response = said[name]
            path = (result["problem"], result["replicate"], place, name)
            if response["finish"] == "failed" or path in told:
                continue
            told.add(path)
            yield {
                "problem": result["problem"],
                "prompt": result["question"],
                **({"messages": result["messages"]} if "messages" in result else {}),
                "response": response["text"],
                "reward": response["score"],
                "logprobs": response["logprobs"],
                **({"prompt_ids": encode(result["question"]).ids, "tokens": response["tokens"]} if encode else {}),
            }


def lines(folder: Path, kind: str) -> Iterator[dict[str, Any]]:
    """All records of a run folder: "results" or "responses"."""
    for file in sorted((folder / kind).glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)


def run_from(name: str, doc: str | None, example: str, argv: Sequence[str] | None) -> tuple[Recipe, Path]:
    """Run the evaluation recipe that the command line names.

    Args:
        name: of the command.
        doc: its module's docstring.
        example: an evaluation recipe.
        argv: the command line's words; None takes the process's own.

    Returns:
        The recipe and its run folder.
    """
    parser = argparse.ArgumentParser(prog=f"extratime train {name}", description=(doc or "").partition("\n")[0])
    parser.add_argument("recipe", type=Path, help=f"an evaluation recipe, e.g. {example}")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args(argv)
    recipe = read_recipe(args.recipe, args.overrides)
    return recipe, run_recipe(recipe)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the recipe and write its draws."""
    _, folder = run_from("rollouts", __doc__, "recipes/rollouts/sums.yaml", argv)
    rows = list(draws(folder))
    write_lines(folder / "draws.jsonl", rows)
    rewards = [row["reward"] for row in rows]
    mean = sum(rewards) / len(rewards) if rewards else float("nan")
    sys.stderr.write(f"{folder / 'draws.jsonl'}: {len(rows)} draws, mean reward {mean:.3f}\n")


if __name__ == "__main__":
    main()
