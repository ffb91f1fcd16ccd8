"""From graded draws to what judges learn from: pairs, and judgements kept by rejection sampling.

`draws` is what `extratime.train.rollouts` leaves. Of each problem, right and wrong responses make pairs
(`<output_dir>/pairs.jsonl`: problem, question, right, wrong). The current judge then judges each prompt, both orders
in, `samples` times, through evaluate's scheduler; judgements whose verdict equals the label are kept
(`<output_dir>/judgements.jsonl`: prompt, completion), as many of one verdict as of the other. Reflective ones join a
wrong judgement, its verdict taken back, a cue, and a right one on the same prompt (J1-7B, arXiv 2505.11875; how the
authors made theirs is not published).

    python -m extratime.train.judge_data --config recipes/judge_data/sums.yaml

Draws are kept in `<output_dir>/streams`, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import random
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from trl import TrlParser

from extratime.evaluate.grid import EngineSpec
from extratime.evaluate.program import Answer, Problem, Program, question
from extratime.evaluate.schedule import Cell, Schedule
from extratime.evaluate.streams import Streams
from extratime.evaluate.verifiers.generative import Bench, conclude, think
from extratime.models import judge as judges
from extratime.models.engines.open import Opened, open_engine
from extratime.models.judge import Form, Judge
from extratime.models.manifest import write_lines
from extratime.train.judge_sft import JudgeConfig, asked, turn


@dataclass
class Config(JudgeConfig):
    """Settings of the data stage, beside those of the judge.

    Attributes:
        draws: JSONL of draws with rewards.
        output_dir: where pairs and judgements go.
        model: the current judge; its own manifest tells what it is asked, where it has one that does.
        pairs: most pairs of one problem.
        forms: what the judge learns; only the form it is asked in, by default.
        samples: judgements drawn for each prompt; 0 writes pairs only.
        keep: most plain and most reflective judgements kept of one prompt.
        reflect: reflective judgements for each plain one.
        direct: whether the bare verdict is learned as well, for read-outs without reasoning.
        temperature: of the judge.
        slots: draws worked on at a time; 0 takes the engine's own number.
        shuffle_labels: the control: which response of a pair is right is decided by chance.
        seed: of every choice.
    """

    draws: str = ""
    output_dir: str = ""
    model: str = "embedded"
    pairs: int = 2
    forms: list[str] = field(default_factory=list)
    samples: int = 4
    keep: int = 1
    reflect: float = 0.25
    direct: bool = False
    temperature: float = 1.0
    slots: int = 0
    shuffle_labels: bool = False
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Pair:
    """A right and a wrong response to one problem, whose question is as a judge reads it."""

    problem: str
    question: str
    right: str
    wrong: str

    def prompts(self, judge: Judge, form: Form) -> list[tuple[str, int]]:
        """Two prompts, both orders or both texts, with the verdict each deserves: index of `judge.verdicts(form)`."""
        if form == "pointwise":
            return [(judge.about(self.question, text), i) for i, text in enumerate((self.right, self.wrong))]
        orders = ((self.right, self.wrong), (self.wrong, self.right))
        return [(judge.about(self.question, *texts), i) for i, texts in enumerate(orders)]


def read_graded(path: str) -> Iterator[dict[str, Any]]:
    """Draws with rewards, one a line.

    Raises:
        ValueError: a line is no such draw; the message names it.
    """
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        try:
            draw = json.loads(line)
            told = {key: draw[key] for key in ("problem", "prompt", "response")} | {"reward": float(draw["reward"])}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}:{number}: not a draw of problem, prompt, response, reward ({error!r})"
            ) from error
        yield told | {"messages": draw.get("messages", ())}


def make_pairs(
    draws: Iterable[Mapping[str, Any]], most: int, rng: random.Random, shuffle_labels: bool = False
) -> list[Pair]:
    """Up to `most` pairs of each problem that was answered both rightly and wrongly; equal texts count once.

    Raises:
        ValueError: there is no such problem.
    """
    texts: dict[str, tuple[dict[str, None], dict[str, None]]] = defaultdict(lambda: ({}, {}))
    questions = {}
    for draw in draws:
        texts[draw["problem"]][draw["reward"] <= 0][draw["response"].strip()] = None
        questions[draw["problem"]] = question(draw["prompt"], draw.get("messages", ()))
    made = []
    for problem, (right, wrong) in texts.items():
        both = list(product(right, wrong))
        for a, b in rng.sample(both, min(most, len(both))):
            a, b = (b, a) if shuffle_labels and rng.random() < 0.5 else (a, b)
            made.append(Pair(str(problem), questions[problem], a, b))
    if not made:
        raise ValueError("no problem was answered both rightly and wrongly, so there are no pairs to learn from")
    return made


def read_pairs(path: str) -> list[Pair]:
    """Pairs, one a line.

    Raises:
        ValueError: a line is not a pair, or there is none; the message names it.
    """
    found = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        try:
            found.append(Pair(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}:{number}: not a pair of problem, question, right, wrong ({error})") from error
    if not found:
        raise ValueError(f"{path} holds no pairs")
    return found


def judgements(form: Form, bench: Bench, prompts: Iterable[str], args: Config) -> dict[str, list[str]]:
    """What the current judge says to each prompt, `bench.votes` times."""

    def judge(problem: Problem, budget: int, rng: np.random.Generator) -> Program[Answer]:
        thoughts = yield from think(problem.prompt.text, bench)
        written = yield from conclude(thoughts, form, bench)
        return Answer(written[0], tuple(written), (0.0,) * len(written), "rejection sampling")

    opened = open_engine(args.model, {}, EngineSpec(slots=args.slots or None))
    heard = {text: _heard(opened, bench.judge, text) for text in prompts}
    cells = [
        Cell(text, Problem(text, opened.engine.encode(read), str, max_tokens=bench.judge.max_tokens), judge, 1)
        for text, read in heard.items()
    ]
    streams = Streams(Path(args.output_dir) / "streams", "judgements")
    try:
        results = Schedule(opened.roles, streams).run(cells)
    finally:
        streams.close()
        opened.engine.close()
    if failed := [result.error for result in results if result.error]:
        sys.stderr.write(
            f"{len(failed)} of {len(results)} prompts could not be judged, the first since: {failed[0]}\n"
        )
    return {result.cell.key: [said.text for said in result.answer.pool] for result in results}


def _heard(opened: Opened, judge: Judge, text: str) -> str:
    """A prompt as the model reads it."""
    if not judge.chat:
        return text
    if opened.render is None:
        raise ValueError("the judge's prompt is to be a turn, but the model has no chat template: set chat: false")
    return opened.render(turn(judge, "user", text), True)


def sorted_out(said: Iterable[str], label: int, judge: Judge, form: Form) -> tuple[list[str], list[str]]:
    """Of the judgements of one prompt, the right ones; and reflective ones, a wrong one before each right one.

    All are cut after their verdict; equal texts count once.
    """
    found: dict[int | None, list[str]] = {0: [], 1: [], None: []}
    for text in dict.fromkeys(said):
        found[judges.verdict(text, judge, form)].append(text.rpartition(judge.opener)[0])
    end = judge.opener + judge.verdicts(form)[label]
    right, wrong = ([*dict.fromkeys(found[v])] for v in (label, 1 - label))
    return [t + end for t in right], [w + judge.cue + t + end for w, t in zip(wrong, right, strict=False)]


def balanced(rows: Sequence[tuple[str, str, int]], rng: random.Random) -> list[tuple[str, str, int]]:
    """As many rows of one label as of the other, in a random order."""
    by = [[row for row in rows if row[2] == label] for label in (0, 1)]
    few = min(map(len, by))
    chosen = [row for group in by for row in rng.sample(group, few)]
    return rng.sample(chosen, len(chosen))


def parse(argv: Sequence[str]) -> Config:
    """Read `--config FILE` and overrides."""
    (args,) = TrlParser(dataclass_types=[Config]).parse_args_and_config(list(argv))
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Write pairs and judgements."""
    args = parse(sys.argv[1:] if argv is None else argv)
    if not Path(args.draws).is_file() or not args.output_dir:
        raise ValueError(f"draws {args.draws!r} must be a file, and output_dir {args.output_dir!r} a folder to write")
    rng, folder, judge = random.Random(args.seed), Path(args.output_dir), asked(args.model, args)
    pairs = make_pairs(read_graded(args.draws), args.pairs, rng, args.shuffle_labels)
    write_lines(folder / "pairs.jsonl", map(asdict, pairs))
    sys.stderr.write(f"{folder / 'pairs.jsonl'}: {len(pairs)} pairs\n")
    if args.samples:
        rows = learned(pairs, judge, args, rng)
        write_lines(folder / "judgements.jsonl", rows)
        sys.stderr.write(f"{folder / 'judgements.jsonl'}: {len(rows)} judgements\n")


def learned(pairs: Sequence[Pair], judge: Judge, args: Config, rng: random.Random) -> list[dict[str, Any]]:
    """Rows for supervised fine-tuning from a judge's own judgements of pairs.

    Raises:
        ValueError: no judgement was right in both classes.
    """
    bench = Bench(judge, votes=args.samples, temperature=args.temperature)
    rows = []
    for form in args.forms or [judge.form]:
        labels = {text: label for pair in pairs for text, label in pair.prompts(judge, form)}
        rows += of_one_form(form, labels, judgements(form, bench, labels, args), judge, args, rng)
    if not rows:
        raise ValueError("no judgement came to the right verdict in both classes: begin with traces (judge_sft)")
    return [{"prompt": turn(judge, "user", t), "completion": turn(judge, "assistant", c)} for t, c in rows]


def of_one_form(
    form: Form,
    labels: Mapping[str, int],
    said: Mapping[str, Sequence[str]],
    judge: Judge,
    args: Config,
    rng: random.Random,
) -> list[tuple[str, str]]:
    """Prompt and judgement of everything that is learned of one form; as many of one verdict as of the other."""
    plain, reflective = [], []
    for prompt, label in labels.items():
        right, again = sorted_out(said[prompt], label, judge, form)
        plain += [(prompt, text, label) for text in right[: args.keep]]
        reflective += [(prompt, text, label) for text in again[: args.keep]]
    rows = balanced(plain, rng)
    reflective = balanced(reflective, rng)[: round(args.reflect * len(rows))]
    bare = [(p, judge.opener + judge.verdicts(form)[v], v) for p, v in labels.items()] if args.direct else []
    return [(prompt, text) for prompt, text, _ in [*rows, *reflective, *bare]]


if __name__ == "__main__":
    main()
