"""Generations drawn elsewhere, kept as the first draws of a recipe's engine.

    extratime import RECIPE FILE

Each line of the file is one generation:

    {"prompt": "…", "text": "…", "tokens": [5, 3], "logprobs": [-0.1, -2.5, -0.3], "finished": true}

`prompt` is what the model read, chat template included, and `text` what it said. `tokens` are its ids, which must
decode to `text`; where they are missing the text is turned into tokens. `logprobs` are the model's own (temperature
1), one a token and one more for the end token. `finished` (true by default) says that the model ended there; what is
not finished is read on where a strategy wants more. A text that a stop string ended has to hold it, and is not
finished.

The i-th line of a prompt becomes the draw that a strategy's first replicate reads in the i-th place, under the
recipe's sampling law. That the generations come from this model under this law is the user's word: nothing checks it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from lm_eval.api.task import Task

from extratime.evaluate.cost import Cost
from extratime.evaluate.grid import Column, Recipe, StrategySpec
from extratime.evaluate.harness import Bench, evaluate
from extratime.evaluate.lanes import Cursor
from extratime.evaluate.named import RecipeError
from extratime.evaluate.program import Answer
from extratime.evaluate.schedule import Cell, Result
from extratime.evaluate.strategies.greedy import greedy
from extratime.evaluate.streams import Streams
from extratime.evaluate.tasks.load import load_tasks, reading
from extratime.models.engines.open import Opened, open_engine
from extratime.models.engines.text import Text, decoder
from extratime.models.request import Completion, Drawn, Prompt, Sampling, fail

_BROKEN = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True)
class Generation:
    """One line of the file; see the module. `where` names it in errors, `tokens` is None where there are none."""

    where: str
    prompt: str
    text: str
    tokens: tuple[int, ...] | None = None
    logprobs: tuple[float, ...] = ()
    finished: bool = True


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of a file.

    Attributes:
        lines: generations in it.
        kept: those that are draws now; the others stand in places that were drawn before.
        strangers: prompts that no document of the recipe asks; their draws are kept as well.
        bare: documents whose prompt is not in the file.
    """

    lines: int
    kept: int
    strangers: tuple[str, ...]
    bare: int

    def __str__(self) -> str:
        """For the command line."""
        said = [f"{self.kept} of {self.lines} generations kept as draws"]
        if self.kept < self.lines:
            said.append(f"{self.lines - self.kept} left out: their places were drawn before")
        if self.strangers:
            said.append(f"{len(self.strangers)} prompts are no document's, the first: {self.strangers[0]!r}")
        if self.bare:
            said.append(f"{self.bare} documents have no generation")
        return "; ".join(said)


def import_generations(recipe: Recipe, file: Path) -> Imported:
    """Keep the generations of `file` in the recipe's run folder. Nothing is kept if a line is not valid.

    Raises:
        ValueError: a line is not valid; the message names file, line and remedy.
        RecipeError: nobody named the tokenizer of the model behind the recipe's server.
    """
    said, tasks = list(_read(file)), load_tasks(recipe)
    opened = open_engine(recipe.model, recipe.adapters, recipe.engine)
    try:
        prompts = {text: opened.engine.encode(text) for text in dict.fromkeys(line.prompt for line in said)}
        tell = _teller(opened, plain=recipe.sampling == Sampling())
        drawn = [(prompts[line.prompt], tell(line, prompts[line.prompt])) for line in said]
        asked = _asked(recipe, tasks, opened)
        kept = _keep(recipe, opened, drawn)
    finally:
        opened.engine.close()
    strangers = tuple(text for text, prompt in prompts.items() if prompt not in asked)
    return Imported(len(said), kept, strangers, len(asked - set(prompts.values())))


def _read(file: Path) -> Iterator[Generation]:
    with open(file, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                where = f"{file}:{number}"
                try:
                    yield _generation(where, json.loads(line))
                except json.JSONDecodeError as error:
                    raise ValueError(f"{where}: not JSON: {error.msg} at character {error.colno}") from error
                except ValueError as error:
                    raise ValueError(f"{where}: {error}") from error


def _generation(where: str, said: Any) -> Generation:
    if not isinstance(said, dict):
        raise ValueError(f"a mapping is expected, not {type(said).__name__}")
    for key in ("prompt", "text"):
        if not isinstance(said.get(key), str):
            raise ValueError(f"{key!r} must be a text, not {said.get(key)!r}")
    tokens, logprobs, finished = said.get("tokens"), said.get("logprobs") or [], said.get("finished", True)
    if tokens is not None and not (isinstance(tokens, list) and all(type(t) is int and t >= 0 for t in tokens)):
        raise ValueError("'tokens' must be a list of token ids; leave it out where they are not known")
    if not (isinstance(logprobs, list) and all(isinstance(x, int | float) and -inf < x <= 0 for x in logprobs)):
        raise ValueError("'logprobs' must be a list of finite numbers of at most 0; leave it out where there are none")
    if not isinstance(finished, bool):
        raise ValueError(f"'finished' must be true or false, not {finished!r}")
    if not said["text"] and not finished:
        raise ValueError("a text that is empty and not finished says nothing: leave the line out")
    ids = None if tokens is None else tuple(tokens)
    return Generation(where, said["prompt"], said["text"], ids, tuple(map(float, logprobs)), finished)


def _teller(opened: Opened, plain: bool) -> Callable[[Generation, Prompt], Drawn]:
    """From a generation to what the engine would have told of it; `plain` if the law is the model itself."""
    tokenizer = opened.tokenizer
    if tokenizer is None:
        raise RecipeError("to import, the model's tokenizer is needed: set engine.tokenizer to its folder or hub id")
    decode, special, told = decoder(tokenizer), set(tokenizer.all_special_ids), opened.engine.profile.token_ids

    def tokens(said: Generation, prompt: Prompt) -> Iterator[tuple[int, ...]]:
        """What the tokens may be."""
        if said.tokens is not None:
            if max(said.tokens, default=0) >= len(tokenizer):
                raise ValueError(f"{said.where}: token {max(said.tokens)} is not in the model's vocabulary")
            # Log-probabilities, where given, tell whether the end token is among the ids.
            ended = said.finished and said.tokens[-1:] and len(said.logprobs) != len(said.tokens) + 1
            yield said.tokens[:-1] if ended and said.tokens[-1] in special else said.tokens
            return
        before, both = prompt.ids or (), opened.engine.encode(prompt.text + said.text).ids or ()
        if both[: len(before)] == before:
            yield both[len(before) :]
        yield tuple(tokenizer(said.text, add_special_tokens=False).input_ids)

    def tell(said: Generation, prompt: Prompt) -> Drawn:
        for ids in tokens(said, prompt):
            ends, text = _ends(decode, prompt.ids or (), ids)
            if text.rstrip(_BROKEN) == said.text.rstrip(_BROKEN):
                break
        else:
            raise ValueError(f"{said.where}: the tokens say {text!r}, not {said.text!r}")
        ends += [len(text)] * said.finished
        if said.logprobs and len(said.logprobs) != len(ends):
            end = ", the end token included" if said.finished else ""
            raise ValueError(
                f"{said.where}: {len(said.logprobs)} log-probabilities for {len(ends)} tokens{end}; give all or none"
            )
        tempered = said.logprobs if plain else ()
        return Drawn(text, tuple(ends), ids if told else (), said.logprobs, tempered, said.finished)

    return tell


def _ends(decode: Callable[[tuple[int, ...]], str], left: Sequence[int], ids: Sequence[int]) -> tuple[list[int], str]:
    """Length of the text after each token, and the text."""
    text, ends = Text(decode, left), []
    for token in ids:
        text.push(token)
        ends.append(len(text.value))
    return ends, text.value


def _asked(recipe: Recipe, tasks: Mapping[str, Task], opened: Opened) -> set[Prompt]:
    """The prompts of the recipe's documents, as lm-eval makes them for an evaluation that says nothing."""
    column = Column(StrategySpec("greedy", "greedy"), 1, 0)
    readings = {name: reading(task, recipe.reading(name), recipe.strip_thinking) for name, task in tasks.items()}
    documents = {name: list(range(len(task.eval_docs)))[: recipe.limit] for name, task in tasks.items()}
    bench = Bench(recipe, [column], [greedy], tasks, readings, documents, opened.engine.encode, opened.render)

    def silent(cells: Sequence[Cell]) -> list[Result]:
        nothing = [fail(Completion(cell.problem.prompt, "", 0), "not asked") for cell in cells]
        return [Result(cell, Answer(n, (), (), ""), Cost(), n.error) for cell, n in zip(cells, nothing, strict=True)]

    scored, _ = evaluate(bench, silent)
    return {item.result.cell.problem.prompt for item in scored}


def _keep(recipe: Recipe, opened: Opened, drawn: Sequence[tuple[Prompt, Drawn]]) -> int:
    """Put each draw in the next place of its prompt, unless something was drawn there before; returns how many."""
    cursor, kept = Cursor(opened.engine.fingerprint, (0,), {}), 0
    streams = Streams(recipe.output / "streams", "import")
    try:
        for prompt, said in drawn:
            place = cursor.fresh(prompt, recipe.sampling)
            if place not in streams.paths:
                streams.append(place, said)
                kept += 1
    finally:
        streams.close()
    if not (recipe.output / "engine.json").is_file():
        opened.save(recipe.output)
    return kept
