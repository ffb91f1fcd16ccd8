"""Monte Carlo tree search over steps, its exploration as in arXiv 2411.09238, where search is tuned before its guide.

A simulation goes down the tree to a prefix without children, each time to the child of the greatest

    Z = W/Ω + α · sqrt(ln(M + 1) / (Q + 1))

(W the mean of the child's own score and of those of the rollouts through it, Ω the mean of W over the siblings, M and
Q the visits of all siblings and of the child). There it samples `width` steps, scores them, reads the best one on to
its end and adds the score of this rollout to each prefix on the way. Dividing by Ω makes α mean the same whatever the
scale of the scores; a verifier that knows nothing leaves the search to the visits. The best response found answers.

The source searches tours by moves of edges; steps, prefixes and rollouts stand in their place here. Budget law:
`budget` full lengths. A prefix has at most as many children as can still be read to their ends, so that no rollout is
cut off; the search ends where there is none to expand. A budget of 1 is a plain draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from extratime.evaluate.algorithms.search import affordable, branch, probabilities, root
from extratime.evaluate.program import Answer, Problem, Program, Verifier, best, extend, growing
from extratime.evaluate.verifiers.likelihood import likelihood
from extratime.models.request import Completion


@dataclass(slots=True, eq=False)
class Node:
    """A prefix in the tree.

    Attributes:
        prefix: the response so far.
        total: its own score and those of the rollouts through it, each in [0, 1].
        open: whether there is anything to expand at or below it.
        visits: rollouts through it.
        children: its continuations by a step.
    """

    prefix: Completion
    total: float = 0.0
    open: bool = True
    visits: int = 0
    children: list[Node] = field(default_factory=list)

    @property
    def mean(self) -> float:
        """W: the mean of its scores."""
        return self.total / (self.visits + 1)


def mcts(
    problem: Problem,
    budget: int,
    rng: np.random.Generator,
    width: int = 4,
    explore: float = 1.0,
    verify: Verifier = likelihood,
    step: Sequence[str] = ("\n",),
) -> Program[Answer]:
    """The response with the highest score among all that were read to their ends.

    Args:
        problem: what to answer.
        budget: full lengths that may be read.
        rng: not used.
        width: children of a prefix.
        explore: α; published 1, tuned values 0 to 2.
        verify: scores prefixes and responses in [0, 1]; negative scores are read as log-probabilities.
        step: strings that end a step.
    """
    tree, spent = Node(root(problem)), 0
    ended: list[tuple[Completion, float]] = []
    while tree.open:
        way = descend(tree, explore)
        leaf = way[-1]
        n = min(width, affordable(problem, leaf.prefix, budget, spent))
        if n > 0:
            steps, tokens = yield from branch(problem, leaf.prefix, n, step)
            yield from expand(problem, leaf, steps, verify, ended)
            tokens += yield from roll_out(problem, [*way, choose(leaf.children, explore)], verify, ended)
            spent += tokens
        for node in reversed(way):
            node.open = any(child.open for child in node.children)
    return best([r for r, _ in ended], [s for _, s in ended], f"highest score of {len(ended)} responses")


def descend(tree: Node, explore: float) -> list[Node]:
    """The way to a prefix without children."""
    path = [tree]
    while path[-1].children:
        path.append(choose([child for child in path[-1].children if child.open], explore))
    return path


def choose(siblings: Sequence[Node], explore: float) -> Node:
    """The one of greatest Z, the earlier of two equals."""
    visits = sum(node.visits for node in siblings)
    omega = sum(node.mean for node in siblings) / len(siblings)

    def z(node: Node) -> float:
        worth = node.mean / omega if omega > 0 else 1.0
        return worth + explore * math.sqrt(math.log(visits + 1) / (node.visits + 1))

    return max(siblings, key=z)


def expand(
    problem: Problem, leaf: Node, steps: Sequence[Completion], verify: Verifier, ended: list[tuple[Completion, float]]
) -> Program[None]:
    """Give `leaf` its children; those that end with the step are added to `ended`."""
    scores = yield from verify(problem, steps)
    for said, score, p in zip(steps, scores, probabilities(scores), strict=True):
        leaf.children.append(Node(said, p, growing(problem, said)))
        if not growing(problem, said):
            ended.append((said, score))


def roll_out(
    problem: Problem, path: Sequence[Node], verify: Verifier, ended: list[tuple[Completion, float]]
) -> Program[int]:
    """Read the last prefix to its end and tell its score to all on the path; returns the tokens read."""
    prefix, value = path[-1].prefix, path[-1].total
    [response] = yield from extend([prefix])
    if growing(problem, prefix):
        [score] = yield from verify(problem, [response])
        ended.append((response, score))
        [value] = probabilities([score])
    for node in path:
        node.total += value
        node.visits += 1
    return response.n_tokens - prefix.n_tokens
