"""REBASE, reward-balanced search (Wu et al., arXiv 2408.00724): a tree of fixed width, fed by its rewards.

Sample N = budget first steps; then at each depth, B of the N being unfinished, give node j

    W_j ≈ B · exp(R_j / T_b) / Σ_k exp(R_k / T_b)

children, ΣW = B; a node without children is pruned. Finished nodes leave the tree and take their place with them, so
that there are N leaves in the end, which vote with their scores. W is rounded up from the greatest reward on, as in
the authors' code: rounding each by itself, as the paper writes it, changes the width. T_b → 0 follows the best
node alone, T_b → ∞ is plain sampling. Nodes scored NaN or -inf are pruned; if all are, they share evenly. Leaves stay
in their places: in order of completion, short responses would win the ties of the vote.

Budget law: N nodes a depth, shared prefixes read once: N full lengths at most where steps are equally long. What is
pruned counts, too; beyond N full lengths nodes are cut off.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from extratime.evaluate.algorithms import smc
from extratime.evaluate.algorithms.search import allot
from extratime.evaluate.algorithms.vote import elect
from extratime.evaluate.program import Answer, Problem, Program, Verifier, extend, growing, sample
from extratime.evaluate.strategies.weighted_vote import weights
from extratime.evaluate.verifiers.likelihood import likelihood


def rebase(
    problem: Problem,
    budget: int,
    rng: np.random.Generator,
    verify: Verifier = likelihood,
    balance: float = 0.1,
    step: Sequence[str] = ("\n",),
    rounds: int = 25,
) -> Program[Answer]:
    """A leaf with the answer of the greatest total score.

    Args:
        problem: what to answer.
        budget: width of the tree.
        rng: not used.
        verify: scores prefixes and responses.
        balance: temperature T_b in units of the score, > 0; published 0.1 (paper) and 0.2 (code) for scores in [0, 1].
        step: strings that end a step.
        rounds: steps after which every node is read to its end.
    """
    leaves = yield from sample(problem.prompt, budget, pause=step)
    for _ in range(rounds):
        places = [i for i, leaf in enumerate(leaves) if growing(problem, leaf)]
        if not places:
            break
        nodes = [leaves[i] for i in places]
        shares = children((yield from verify(problem, nodes)), balance, len(nodes))
        branches = [node for node, share in zip(nodes, shares, strict=True) for _ in range(share)]
        grown = yield from extend(branches, pause=step)
        for i, leaf in zip(places, grown, strict=True):
            leaves[i] = leaf
    leaves = yield from extend(leaves)
    return elect(problem, leaves, weights((yield from verify(problem, leaves))), "weighted vote of the leaves")


def children(rewards: Sequence[float], balance: float, n: int) -> list[int]:
    """How many of `n` children each node gets."""
    softmax, _ = smc.normalise(np.asarray(rewards, dtype=np.float64) / balance)
    return allot(softmax.tolist(), n)
