"""Adaptive parallel reasoning (APR, Pan et al., arXiv 2504.15466): the model itself spawns threads and joins them.

Where the parent has written a spawn block, one sub-task a line, each line becomes the whole context of a child, a draw
of the same model. Children run side by side and end with a message between the tags of a join. The spawn block is
taken out of the parent's context, the messages are put in its place, and the parent reads on. Children spawn nothing.
A join that the parent begins itself becomes a spawn, since only what ran can be joined. The model has to know the
protocol; one that never spawns is sampled plainly.

Budget law: the parent may read one full length; its children, and what it wrote into spawn blocks, share `budget` − 1
more. A child may read an even share of what is left of that, at most a full length; where there is nothing left, it
does not run and has no result. Both measures of the paper are the ledger's: `generated` is the total of all threads,
`sequential` the longest chain of dependent tokens, the parent and the longest child of each spawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from extratime.evaluate.algorithms.forcing import cut, put
from extratime.evaluate.program import Answer, Problem, Program, extend, gather, growing, sample
from extratime.models.request import Completion


def parallel_reasoning(
    problem: Problem,
    budget: int,
    rng: np.random.Generator,
    spawn: tuple[str, str] = ("<spawn>", "</spawn>"),
    join: tuple[str, str] = ("<join>", "</join>"),
    child: str = "{task}",
    nothing: str = "no result",
    children: int = 10,
) -> Program[Answer]:
    """The parent's response, with the messages of its children in it.

    Args:
        problem: what to answer.
        budget: see the budget law.
        rng: not used.
        spawn: tags around the sub-tasks.
        join: tags around the messages in the parent, and around its message in a child.
        child: what a child reads; `{task}` becomes its line.
        nothing: the message of a child that has none.
        children: of one spawn that run, the first ones (published: at most 10).
    """
    pause = (spawn[1], join[0])
    [parent] = yield from sample(problem.prompt, pause=pause)
    room, ran = (budget - 1) * problem.max_tokens, 0
    while growing(problem, parent):
        before, tasks = _spawned(parent.text, spawn, join)
        stem = cut(problem, parent, before) if before != parent.text else parent
        room -= max(0, parent.n_tokens - stem.n_tokens)
        if tasks:
            limit = min(problem.max_tokens, room // min(len(tasks), children))
            asked = [child.replace("{task}", task) for task in tasks[:children] if limit > 0]
            said = yield from gather(_child(problem, text, limit, join) for text in asked)
            room, ran = room - sum(thread.n_tokens for thread in said), ran + len(said)
            messages = [_message(thread, join) or nothing for thread in said]
            stem = put(problem, stem, _joined(messages + [nothing] * (len(tasks) - len(said)), join))
        elif stem is not parent:
            stem = put(problem, stem, spawn[0])
        [parent] = yield from extend([stem], pause=pause)
    return Answer(parent, (parent,), (1.0,), f"{ran} children ran")


def _spawned(text: str, spawn: Sequence[str], join: Sequence[str]) -> tuple[str, list[str]]:
    """What stands before the spawn block or join that was just read, and its sub-tasks; all where none is whole."""
    if text.rfind(join[0]) > text.rfind(spawn[1]):
        return text.rpartition(join[0])[0], []
    before, opened, block = text.rpartition(spawn[1])[0].rpartition(spawn[0])
    tasks = [line.strip() for line in block.splitlines() if line.strip()]
    return (before, tasks) if opened and tasks else (text, [])


def _child(problem: Problem, text: str, limit: int, join: Sequence[str]) -> Program[Completion]:
    [thread] = yield from sample(problem.turn(text), max_tokens=limit, pause=(join[1],))
    return thread


def _message(thread: Completion, join: Sequence[str]) -> str:
    """What a child returns; nothing where it was cut off or has failed."""
    if not (thread.finished or thread.finish == "pause"):
        return ""
    return thread.text.rpartition(join[0])[2].partition(join[1])[0].strip() if join[0] in thread.text else ""


def _joined(messages: Sequence[str], join: Sequence[str]) -> str:
    told = "".join(f"\n{i}: {message}" for i, message in enumerate(messages, 1))
    return f"{join[0]}{told}\n{join[1]}"
