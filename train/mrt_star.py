"""Traces that stop where an answer is worth most: the data of MRT-STaR (arXiv 2503.07572, section on STaR).

From traces of the previous policy (`extratime.train.rollouts`): cut each into episodes, estimate Ĵ(prefix) by K forced
answers after every prefix, find the earliest prefix with the highest Ĵ, force fresh answers there, and keep prefix and
answer if the first of them is right. The supervised warm-up (`extratime.train.sft`) learns from the rows.

Deliberate deviations:
- The trace is cut at the prefix. The paper does not say whether it cuts or only filters whole traces.
- `suffix: true` learns only the last kept episode and the answer: the objective takes no gradient on contexts, which
  are the previous policy's, and learning whole prefixes teaches the wrong attempts in them, too.
- The fresh answers: the highest of noisy numbers is too high, and an answer among those that chose the prefix is
  right too often.
- `select: outcome` keeps whole traces that are right (STaR, arXiv 2203.14465), and `select: shuffle` permutes Ĵ among
  the prefixes of each trace: the baseline and the control.

    python -m extratime.train.mrt_star --config recipes/mrt_star/signs.yaml              # → <output_dir>/rows.jsonl
    python -m extratime.train.sft --config recipes/sft/mrt_star.yaml --data <output_dir>/rows.jsonl
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl import TrlParser

from extratime.evaluate.algorithms.episodes import episodes, prefixes, split
from extratime.evaluate.algorithms.forcing import Context, force
from extratime.evaluate.cost import Ledger
from extratime.evaluate.grid import Recipe, read_recipe
from extratime.evaluate.program import Problem
from extratime.evaluate.schedule import Schedule
from extratime.evaluate.streams import Streams
from extratime.evaluate.tasks.load import Reading, load_tasks, reading
from extratime.models.engines.open import Opened, open_recipe
from extratime.models.manifest import write_lines
from extratime.models.request import Completion


@dataclass
class Segmentation:
    """How a trace is cut; see `extratime.evaluate.algorithms.episodes`.

    Attributes:
        end: text that ends the thinking, such as `</think>`.
        cue: text that stops the thinking early and opens the answer; must hold `end`. Empty takes `end`.
        cues: words that begin an episode; without any, each blank-line step is one.
        gap: steps after the beginning of an episode in which no cue counts.
        most: episodes to tell apart in a trace.
        group: how many episodes are joined to one.
    """

    end: str = ""
    cue: str = ""
    cues: list[str] = field(default_factory=list)
    gap: int = 2
    most: int | None = None
    group: int = 1

    def __post_init__(self) -> None:
        """Refuse what cannot be cut."""
        if not self.end:
            raise ValueError("end must name the text that ends the thinking, such as </think>")
        self.cue = self.cue or self.end
        if self.end not in self.cue:
            raise ValueError(f"cue {self.cue!r} does not end the thinking: it must hold end, {self.end!r}")

    def cut(self, trace: str) -> list[tuple[str, str]]:
        """The prefixes of a trace, from no episode to all, and what ends each: complete thinking only gets its end."""
        thinking, answer = split(trace, self.end)
        found = prefixes(episodes(thinking, self.cues, self.gap, self.most, self.group))
        return [*((prefix, self.cue) for prefix in found[:-1]), (found[-1], self.end if answer else self.cue)]


@dataclass
class Config(Segmentation):
    """Settings of the data stage.

    Attributes:
        rollouts: run folder of `extratime.train.rollouts` with its draws; its recipe names model, law and tasks.
        output_dir: where rows.jsonl and prefixes.jsonl go.
        select: "progress" keeps the prefix with the highest Ĵ, "shuffle" permutes Ĵ first, "outcome" keeps traces.
        suffix: learn only the last episode of a prefix and the answer; the episodes before it are context.
        k: forced answers after each prefix.
        max_tokens: length of a forced answer.
        traces: how many of the draws to use; None takes all.
        seed: of the permutation.
    """

    rollouts: str = ""
    output_dir: str = ""
    select: str = field(default="progress", metadata={"choices": ["progress", "shuffle", "outcome"]})
    suffix: bool = False
    k: int = 8
    max_tokens: int = 32
    traces: int | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Tasks:
    """The tasks of a rollouts' recipe, and what they say of its problems."""

    recipe: Recipe
    tasks: Mapping[str, Any]
    readings: Mapping[str, Reading]

    def document(self, problem: str) -> tuple[Reading, Mapping[str, Any]]:
        """Reading and document of a problem, such as `signs/12`."""
        name, _, number = problem.rpartition("/")
        return self.readings[name], self.tasks[name].eval_docs[int(number)]

    def limits(self, problem: str) -> tuple[int, tuple[str, ...]]:
        """Tokens of a full response, and the strings that end one."""
        options = self.tasks[problem.rpartition("/")[0]].config.generation_kwargs
        until = options.get("until") or ()
        stops = (until,) if isinstance(until, str) else tuple(until)
        return int(self.recipe.max_tokens or options.get("max_gen_toks") or 256), tuple(filter(None, stops))


def open_tasks(folder: Path) -> Tasks:
    """The tasks of a run folder."""
    recipe = read_recipe(folder / "recipe.yaml")
    tasks = load_tasks(recipe)
    readings = {name: reading(task, recipe.reading(name), recipe.strip_thinking) for name, task in tasks.items()}
    return Tasks(recipe, tasks, readings)


def read_draws(folder: Path, most: int | None = None) -> list[dict[str, Any]]:
    """The draws of a run folder.

    Raises:
        ValueError: there are none.
    """
    file = folder / "draws.jsonl"
    if not file.is_file():
        raise ValueError(f"{file} does not exist: draw traces first, with extratime train rollouts")
    draws = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()][:most]
    if not draws:
        raise ValueError(f"{file} holds no draws")
    return draws


def contexts(draw: Mapping[str, Any], tasks: Tasks, args: Config, opened: Opened) -> list[Context]:
    """Where to force answers along one trace."""
    read, document = tasks.document(draw["problem"])
    encode, (length, until) = opened.engine.encode, tasks.limits(draw["problem"])
    room = args.max_tokens + len(encode(args.cue).ids or args.cue)
    problem = Problem(
        draw["problem"],
        encode(draw["prompt"]),
        read.answer,
        lambda text: read.score(document, text) > 0,
        length + room,
        encode=encode,
    )
    return [Context(problem, prefix, cue, until) for prefix, cue in args.cut(draw["response"])]


def measured(draw: Mapping[str, Any], curve: Sequence[Context], answers: Sequence[Sequence[Completion]]) -> list[Any]:
    """One record a prefix: Ĵ, what it is made of, and mean tokens of prefix, cue and answer: a point of the curve."""
    return [
        {
            "problem": draw["problem"],
            "reward": draw["reward"],
            "j": j,
            "prefix": context.prefix,
            "tokens": sum(answer.n_tokens for answer in said) / len(said),
            "drawn": sum(answer.n_tokens - answer.stem[0] for answer in said),
            "success": context.success(said),
            "k": len(said),
            "unparsed": sum(context.problem.answer(a.text[len(context.prefix) :]) is None for a in said),
        }
        for j, (context, said) in enumerate(zip(curve, answers, strict=True))
    ]


def best(successes: Sequence[float], args: Config, rng: random.Random) -> int:
    """Place of the earliest of the highest; by chance where they are shuffled."""
    told = list(successes)
    if args.select == "shuffle":
        rng.shuffle(told)
    return max(range(len(told)), key=lambda j: (told[j], -j))


def right(context: Context, answers: Sequence[Completion]) -> bool:
    """Whether the first answer is whole and right."""
    return answers[0].finished and bool(context.success(answers[:1]))


def context(curve: Sequence[Context], place: int, args: Config) -> str:
    """What of the kept prefix is not learned: nothing, or all episodes but the last."""
    return curve[max(0, place - 1)].prefix if args.suffix else ""


def row(draw: Mapping[str, Any], said: str, context: str = "") -> dict[str, str]:
    """What the supervised warm-up learns from: what is said after `context`, with which it begins."""
    return {"prompt": draw["prompt"] + context, "completion": said[len(context) :]}


def whole_traces(draws: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, str]]:
    """STaR: every right trace as it is."""
    return (row(draw, draw["response"]) for draw in draws if draw["reward"] > 0)


def best_prefixes(args: Config, folder: Path, draws: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[Any], int]:
    """MRT-STaR: rows, the record of every prefix, and tokens generated for it. Goes on where its streams end."""
    tasks = open_tasks(folder)
    opened, ledger = open_recipe(tasks.recipe), Ledger()
    streams = Streams(folder / "streams", "forced")
    try:
        curves = [contexts(draw, tasks, args, opened) for draw in draws]
        schedule = Schedule(opened.roles, streams, ledger)
        law = (args.k, args.max_tokens, tasks.recipe.sampling)
        flat = iter(force(schedule, [context for curve in curves for context in curve], *law))
        records = [measured(d, curve, [next(flat) for _ in curve]) for d, curve in zip(draws, curves, strict=True)]
        rng = random.Random(args.seed)
        places = [best([record["success"] for record in found], args, rng) for found in records]
        kept = [curve[place] for curve, place in zip(curves, places, strict=True)]
        fresh = force(schedule, kept, *law, replicate=1)
        rows = [
            row(draw, answers[0].text, context(curve, place, args))
            for draw, curve, place, answers in zip(draws, curves, places, fresh, strict=True)
            if right(curve[place], answers)
        ]
        told = [r | {"kept": r["j"] == j} for found, j in zip(records, places, strict=True) for r in found]
        return rows, told, ledger.total().decode
    finally:
        streams.close()
        opened.engine.close()


def parse(argv: Sequence[str]) -> Config:
    """Read `--config FILE` and overrides.

    Raises:
        ValueError: a key is not known, or what is needed is not named.
    """
    (args,) = TrlParser(dataclass_types=[Config]).parse_args_and_config(list(argv))
    if not (args.rollouts and args.output_dir):
        raise ValueError("name the folder of draws (rollouts) and where the rows go (output_dir)")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage."""
    args = parse(sys.argv[1:] if argv is None else argv)
    folder, output = Path(args.rollouts), Path(args.output_dir)
    draws = read_draws(folder, args.traces)
    if args.select == "outcome":
        rows, tokens = list(whole_traces(draws)), 0
    else:
        rows, records, tokens = best_prefixes(args, folder, draws)
        write_lines(output / "prefixes.jsonl", records)
    write_lines(output / "rows.jsonl", rows)
    sys.stderr.write(f"{output / 'rows.jsonl'}: {len(rows)} rows of {len(draws)} traces, {tokens} tokens generated\n")


if __name__ == "__main__":
    main()
