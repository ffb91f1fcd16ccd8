"""A memory of concepts or lessons, written from solved training problems (ArcMemo, arXiv 2509.04439).

From the draws of `extratime train rollouts`: for each problem the shortest right one. The model tells it as
pseudo-code, then writes down the concepts that it uses, in view of the memory so far, and they are merged. In the
open-ended form (`form: lessons`) it tells how one gets to the solution, then writes down what to do in which
situation; it does not see the memory, to which all is added. Problems without a right draw teach nothing. Evaluations
read the file and never write it (`evaluate/strategies/arcmemo.py`, `arcmemo_open_ended.py`).

Problems of a batch see the same memory and are merged in the order of the draws, so that the file does not hang on
timing: batches of 1 learn most from what is there, larger ones are drawn side by side.

    extratime train rollouts recipes/rollouts/math.yaml
    extratime train concepts --config recipes/concepts/math.yaml        # → <output_dir>/memory.yaml
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from trl import TrlParser

from extratime.evaluate.algorithms.concepts import Memory, append, dump, entries, merge, render
from extratime.evaluate.algorithms.prompts import fill
from extratime.evaluate.grid import read_recipe
from extratime.evaluate.program import Answer, EngineError, Problem, Program, sample
from extratime.evaluate.schedule import Cell, Schedule
from extratime.evaluate.streams import Streams
from extratime.models.engines.open import Opened, open_recipe
from extratime.models.manifest import write_text
from extratime.models.request import Completion
from extratime.train.mrt_star import read_draws

PSEUDO = (
    "Problem:\n{problem}\n\nSolution:\n{solution}\n\n"
    "Write this solution as pseudo-code that hides all detail, and a summary of one line."
)
ABSTRACT = """\
A memory holds concepts that help to solve problems: structures to see in them, and routines to carry out.

Concepts so far:
{concepts}

Problem:
{problem}

Pseudo-code of its solution:
{solution}

Write a YAML list of the concepts that the solution uses and that may help with other problems. A concept of the memory
is named exactly as there, alone or with what is new about it. Make parameters of whatever is particular to this
problem. A new entry has the keys name, kind (structure or routine), subtype, description, output, parameters (name,
typing, description), cues (what to look for in a problem) and implementation (how to do it). Quote texts that hold a
colon. For example:

- name: running total
  kind: routine
  description: add up numbers from left to right
  output: number
  parameters:
  - {name: numbers, typing: list of numbers, description: what to add up}
  cues: ["several numbers with plus signs"]
  implementation: ["add one number at a time and keep the sum"]
"""
THOUGHTS = (
    "Problem:\n{problem}\n\nSolution:\n{solution}\n\n"
    "Tell how one gets to this solution who does not know it: what to look at, what to try, what decides."
)
LESSONS = """\
Problem:
{problem}

How it is solved:
{solution}

Write a YAML list of lessons that help with other problems: the important ones only, each with the keys situation (when
it helps) and suggestion (what to do then). Make parameters of whatever is particular to this problem. Quote texts that
hold a colon. For example:

- situation: several numbers are added and subtracted
  suggestion: keep a running total from left to right, and check its sign at each step
"""


@dataclass
class Config:
    """Settings of the data stage.

    Attributes:
        rollouts: run folder of `extratime.train.rollouts` with its draws.
        output_dir: where memory.yaml goes.
        model: who writes: hub id, folder or "embedded"; empty takes the model that drew.
        form: "concepts", or "lessons" (open-ended).
        batch: problems that see the same memory (published: 1, and 10 where throughput counts).
        usage: uses from which the writer is told a concept in full, the others by name (published: 2).
        temperature: of the writer (published: 0.3).
        max_tokens: length of a reply.
        problems: how many to learn from; None takes all.
    """

    rollouts: str = ""
    output_dir: str = ""
    model: str = ""
    form: str = "concepts"
    batch: int = 1
    usage: int = 2
    temperature: float = 0.3
    max_tokens: int = 1024
    problems: int | None = None


def solved(draws: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The shortest right draw of each problem, the earlier one of equals; in the order of the problems."""
    kept: dict[str, Mapping[str, Any]] = {}
    for draw in draws:
        name = draw["problem"]
        if draw["reward"] > 0 and (name not in kept or len(draw["response"]) < len(kept[name]["response"])):
            kept[name] = draw
    return list(kept.values())


def abstract(
    problem: Problem,
    budget: int,
    rng: np.random.Generator,
    solution: str,
    prompts: tuple[str, str],
    said: Mapping[str, str],
    temperature: float,
) -> Program[Answer]:
    """The YAML that the model writes about a solution; the pool holds how it told the solution before."""
    told = fill(prompts[0], problem=problem.question, solution=solution)
    [retold] = yield from sample(problem.turn(told), temperature=temperature)
    if retold.finish == "failed":
        raise EngineError(retold.error)
    told = fill(prompts[1], problem=problem.question, solution=retold.text, **said)
    [reply] = yield from sample(problem.turn(told), temperature=temperature)
    return Answer(reply, (retold, reply), (0.0, 0.0), "what a solution teaches")


def learn(
    draws: Sequence[Mapping[str, Any]],
    schedule: Schedule,
    problem: Callable[[Mapping[str, Any]], Problem],
    args: Config,
) -> tuple[Memory, dict[str, int]]:
    """The memory that solved draws come to, and counts: problems, entries, unreadable ones, those of no known kind.

    Args:
        draws: one a problem, all right.
        schedule: runs the writer.
        problem: makes the `Problem` of a draw.
        args: settings.

    Raises:
        RuntimeError: the engine failed on a reply: what it would have taught is not to be left out unseen.
    """
    memory, counts = Memory(), {"problems": len(draws), "entries": 0, "unreadable": 0, "of no known kind": 0}
    for start in range(0, len(draws), args.batch):
        batch = draws[start : start + args.batch]
        writer = functools.partial(abstract, temperature=args.temperature, **_asked(memory, args))
        cells = [
            Cell(draw["problem"], problem(draw), functools.partial(writer, solution=draw["response"]), 2)
            for draw in batch
        ]
        for draw, result in zip(batch, schedule.run(cells), strict=True):
            reply = _whole(result.answer.response, draw["problem"])
            memory, told = _added(memory, reply, draw["problem"], problem(draw).question, args.form)
            for name, n in zip(("entries", "unreadable", "of no known kind"), told, strict=True):
                counts[name] += n
    return memory, counts


def _asked(memory: Memory, args: Config) -> dict[str, Any]:
    """What the writer is asked, in view of the memory or not."""
    if args.form == "lessons":
        return {"prompts": (THOUGHTS, LESSONS), "said": {}}
    return {"prompts": (PSEUDO, ABSTRACT), "said": {"concepts": render(memory, usage=args.usage) or "none"}}


def _added(memory: Memory, reply: str, name: str, question: str, form: str) -> tuple[Memory, tuple[int, int, int]]:
    """The memory after a reply, and its entries, those unreadable and those of no known kind."""
    if form == "lessons":
        found, dropped = entries(reply, ("situation", "suggestion"))
        return append(memory, found, name, question), (len(found), dropped, 0)
    found, dropped = entries(reply)
    memory, skipped = merge(memory, found, name, question)
    return memory, (len(found), dropped, skipped)


def _whole(reply: Completion, name: str) -> str:
    if reply.finish == "failed":
        raise RuntimeError(f"the engine failed on the concepts of {name}: {reply.error}")
    return reply.text


def parse(argv: Sequence[str]) -> Config:
    """Read `--config FILE` and overrides.

    Raises:
        ValueError: a key is not known, or what is needed is not named.
    """
    (args,) = TrlParser(dataclass_types=[Config]).parse_args_and_config(list(argv))
    if not (args.rollouts and args.output_dir):
        raise ValueError("name the folder of draws (rollouts) and where the memory goes (output_dir)")
    if args.form not in ("concepts", "lessons"):
        raise ValueError(f"form must be concepts or lessons, not {args.form!r}")
    if args.batch < 1:
        raise ValueError(f"batch must be at least 1, not {args.batch}")
    return args


def reader(opened: Opened, chat: bool, max_tokens: int) -> Callable[[Mapping[str, Any]], Problem]:
    """Makes the problem of a draw, as the writer is asked about it."""
    encode = opened.engine.encode

    def problem(draw: Mapping[str, Any]) -> Problem:
        messages = tuple(draw.get("messages", ()))
        told = {"messages": messages, "encode": encode, "turn": opened.turn if chat else encode}
        return Problem(draw["problem"], encode(draw["prompt"]), str, max_tokens=max_tokens, **told)

    return problem


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage. Goes on where its streams end."""
    args = parse(sys.argv[1:] if argv is None else argv)
    folder, output = Path(args.rollouts), Path(args.output_dir)
    draws = solved(read_draws(folder))[: args.problems]
    recipe = read_recipe(folder / "recipe.yaml")
    opened = open_recipe(replace(recipe, model=args.model or recipe.model))
    streams = Streams(output / "streams", "concepts")
    try:
        schedule = Schedule(opened.roles, streams)
        memory, counts = learn(draws, schedule, reader(opened, recipe.chat, args.max_tokens), args)
    finally:
        streams.close()
        for engine in opened.roles.values():
            engine.close()
    write_text(output / "memory.yaml", dump(memory))
    told = ", ".join(f"{n} {name}" for name, n in counts.items())
    sys.stderr.write(f"{output / 'memory.yaml'}: {len(memory.concepts) or len(memory.lessons)} {args.form} ({told})\n")


if __name__ == "__main__":
    main()
