"""Budget forcing (s1, arXiv 2501.19393): think at least so long, at most so long, then answer.

At least: where the model ends its thinking, drop the end, append `more` and let it go on, `budget` − 1 times or until
it has thought `least` tokens. At most: after `most` tokens, or `episodes` blank lines, append `stop` and read the
answer. Asked at a row of caps, it gives accuracy if stopped there: the forced-answer curve.

Budget law: one response of at most a full length, begun again from its end at most `budget` − 1 times. With a budget
of 1 and no cap it is plain sampling. An extension that would leave no room is not made; one that reaches no end, or
from which no answer can be read, leaves the answer to what was finished before it.
"""

from __future__ import annotations

import numpy as np

from extratime.evaluate.algorithms.episodes import bridge, split
from extratime.evaluate.algorithms.forcing import cut, put
from extratime.evaluate.program import Answer, Problem, Program, extend, growing, sample
from extratime.evaluate.strategies.self_refine import latest
from extratime.models.request import Completion

BREAK = "\n\n"


def budget_forcing(
    problem: Problem,
    budget: int,
    rng: np.random.Generator,
    least: int | None = None,
    most: int | None = None,
    episodes: int | None = None,
    end: str = "",
    more: str = "\n\nWait,",
    stop: str = "\n\nFinal Answer:",
) -> Program[Answer]:
    """The response after `budget` − 1 ignored ends, or after a forced end.

    Args:
        problem: what to answer.
        budget: one more than the ends to ignore.
        rng: not used.
        least: tokens of thinking, `more` included, from which on no end is ignored; None sets no bound.
        most: tokens of thinking after which to stop it, which should leave room for the answer; None sets no bound.
        episodes: blank-line episodes of thinking after which to stop it.
        end: text that ends the thinking, such as `</think>`; empty where it ends with the response.
        more: put in place of an ignored end.
        stop: put where the thinking is stopped; must hold `end`, if there is one.
    """
    ends = (end,) if end else ()
    [response] = yield from _think(problem, most, episodes, ends)
    limit = min(most or problem.max_tokens, least or problem.max_tokens, problem.max_tokens)
    whole: list[Completion] = []
    for ignored in range(budget):
        stem = _reopened(problem, response, end, more)
        if ignored == budget - 1 or stem is None or stem.n_tokens >= limit:
            break
        whole += [response] if response.finished else []
        [response] = yield from extend([stem], pause=ends, max_tokens=most)
    if growing(problem, response):
        ended = bool(split(response.text, end)[1])
        stem = response if ended else put(problem, response, bridge(response.text, stop))
        if stem.n_tokens < problem.max_tokens:
            [response] = yield from extend([stem])
    return latest(problem, [*whole, response], f"{ignored} ends ignored")


def _think(
    problem: Problem, most: int | None, episodes: int | None, ends: tuple[str, ...]
) -> Program[list[Completion]]:
    """The thinking as far as its end, its cap or the model's own end."""
    if most == 0 or episodes == 0:
        return [Completion(problem.prompt, "", 0, finish="length")]
    pause = (BREAK, *ends) if episodes else ends
    thought = yield from sample(problem.prompt, pause=pause, max_tokens=most)
    for _ in range((episodes or 1) - 1):
        if thought[0].finish == "pause" and not any(end in thought[0].text for end in ends):
            thought = yield from extend(thought, pause=pause, max_tokens=most)
    return thought


def _reopened(problem: Problem, response: Completion, end: str, more: str) -> Completion | None:
    """`response` with its end dropped and `more` in its place, or None if the model did not end it."""
    thought, rest = split(response.text, end)
    if rest and response.readable:
        return put(problem, cut(problem, response, thought), bridge(thought, more))
    return put(problem, response, bridge(thought, more)) if response.finish == "eos" else None
