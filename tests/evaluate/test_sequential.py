"""Strategies that read what they said before: their rules step by step, and their laws on models known in full."""

import functools
import itertools
import math
import re

import numpy as np
import pytest
from scipy.stats import binom
from toy import ToyEngine, ended, problem, run, turn

from extratime.evaluate.program import Gather
from extratime.evaluate.prompts import ask, fill, listed
from extratime.evaluate.schedule import Cell
from extratime.evaluate.strategies.revision import hierarchical, revise, revision, width
from extratime.evaluate.verifiers.oracle import oracle
from extratime.models.request import Completion, Sample

P = problem(max_tokens=12)
RUNS = 250


def repeated(strategy, budget, law, n=RUNS, max_tokens=4, engine=None, **fields):
    cells = [Cell(f"{i}", problem(max_tokens=max_tokens, **fields), strategy, budget, replicate=i) for i in range(n)]
    return run(engine or ToyEngine(law, slots=64), cells)


def right(results):
    return sum(result.cell.problem.correct(result.answer.response.text) for result in results)


def within(successes, p, n=RUNS):
    """Whether a count is inside the central 99.9 % of its binomial law."""
    return binom.ppf(0.0005, n, p) <= successes <= binom.ppf(0.9995, n, p)


def rng():
    return np.random.default_rng(0)


def response(text, finish="eos", n_tokens=6, **fields):
    return Completion(P.prompt, text, n_tokens, finish=finish, **fields)


def steps(program, say):
    """Run a program whose samples are answered by `say(request, i)`: all its requests, and what it returned."""
    asked, value = [], None
    while True:
        try:
            request = program.send(value)
        except StopIteration as stop:
            return asked, stop.value
        if isinstance(request, Gather):
            parts = [steps(child, say) for child in request.programs]
            asked += [request for part, _ in parts for request in part]
            value = [told for _, told in parts]
        else:
            asked.append(request)
            value = [say(request, i) for i in range(len(request.along) or request.n)]


def saying(*texts):
    """Answers with these texts, one after the other."""
    left = iter(texts)
    return lambda request, i: response(next(left))


def weighing(table):
    """A verifier that looks a response up by its text, and remembers what it was asked."""

    def verify(problem, responses):
        yield from ()
        verify.asked.append([r.text for r in responses])
        return [table(r.text) if callable(table) else table[r.text] for r in responses]

    verify.asked = []
    return verify


def graded(scores):
    """A verifier that knows each answer's score."""

    def verify(problem, responses):
        yield from ()
        return [scores.get(ended(r.text) or "", 0.0) for r in responses]

    return verify


# --- what is asked


def test_places_are_filled_once_and_other_braces_stay():
    assert fill(r"{a} \boxed{} {b}", a=" {b} ", b="x") == r"{b} \boxed{} x"
    with pytest.raises(ValueError, match=r"no place for \{b\}"):
        fill("{a}", a="x", b="y")


def test_a_turn_of_another_role_has_no_tokens_of_the_policy():
    assert ask(P, "so") == turn("so") and ask(P, "so").ids
    assert ask(P, "so", "judge").text == turn("so").text and ask(P, "so", "judge").ids is None


# --- revision


@pytest.mark.parametrize(
    ("budget", "ratio", "chains"),
    [(16, 1, 4), (16, 4, 2), (16, 0.25, 8), (16, 0, 16), (16, math.inf, 1), (7, 1, 3), (2, 1, 1), (1, 0.01, 1)],
)
def test_chains_by_ratio(budget, ratio, chains):
    assert width(budget, ratio) == chains


def test_a_negative_ratio_is_refused():
    with pytest.raises(ValueError, match="ratio"):
        width(4, -1)


def test_a_revision_sees_the_last_answers_that_were_finished():
    seen = [response("a=1"), response("b", "cut"), response("c=2")]
    [asked], said = steps(revise(P, seen), saying("d=3"))
    assert asked == Sample(asked.prompt, 1) and said.text == "d=3"
    assert listed(["a=1", "c=2"]) in asked.prompt.text and asked.prompt.text.startswith("p?")
    [asked], _ = steps(revise(P, [response("b", "cut")]), saying("d=3"))
    assert asked == Sample(P.prompt, 1)


def test_chains_grow_side_by_side_until_the_budget_is_spent():
    texts = [f"v{i}=1" for i in range(1, 8)]
    asked, answer = steps(revision(P, 7, rng(), weighing(lambda text: 1.0), context=1), saying(*texts))
    assert [request.n for request in asked] == [3, 1, 1, 1, 1]
    assert [re.findall(r"v(\d)", request.prompt.text) for request in asked] == [[], ["1"], ["2"], ["3"], ["4"]]
    assert [r.text[1] for r in answer.pool] == list("1472536")


def test_a_long_chain_shows_its_last_four():
    texts = [f"v{i}=1" for i in range(1, 8)]
    asked, _ = steps(revision(P, 7, rng(), weighing(lambda text: 1.0), ratio=math.inf), saying(*texts))
    shown = [re.findall(r"v(\d)", request.prompt.text) for request in asked]
    assert shown == [[], ["1"], ["1", "2"], ["1", "2", "3"], list("1234"), list("2345"), list("3456")]


def test_winners_of_chains_vote_with_their_own_scores():
    chains = [[response(text) for text in row] for row in (["a=1", "b=1", "c=2"], ["d=2"], ["e=3", "f=2"])]
    votes = [0.3, 0.3, 0.5, 0.2, 0.4, 0.1]
    # Chains elect 1 (0.6 against 0.5), 2 and 3; their best responses weigh 0.3, 0.2 and 0.4.
    answer = hierarchical(P, chains, votes)
    assert answer.response.text == "e=3" and answer.weights == tuple(votes) and len(answer.pool) == 6
    texts = [r.text for chain in chains for r in chain]
    verify = weighing(dict(zip(texts, votes, strict=True)))
    flat = steps(revision(P, 6, rng(), verify, 0, select="flat"), saying(*texts))[1]
    assert flat.response.text == "c=2"  # 0.8 against 0.6 and 0.4


def test_a_majority_of_all_answers_asks_no_verifier():
    verify = weighing({})
    answer = steps(revision(P, 3, rng(), verify, 0, select="majority"), saying("=1", "=2", "=2"))[1]
    assert answer.response.text == "=2" and not verify.asked


FIRST, FIXES, BREAKS = 0.3, 0.4, 0.38


def revising(prompt, text):
    """Right with probability 0.3 at first; then a wrong answer is put right in 0.4, a right one spoilt in 0.38."""
    if text:
        return {"": 1.0}
    last = re.findall(r"=(\d)", prompt)[-1:]
    p = FIRST if not last else FIXES if last != ["1"] else 1 - BREAKS
    return {"=1": p, "=2": 1 - p}


def chains_law(length, rule):
    """Probability that `rule` of a chain's answers is true, by summing over all chains."""
    total = 0.0
    for chain in itertools.product((True, False), repeat=length):
        p = FIRST if chain[0] else 1 - FIRST
        for before, now in itertools.pairwise(chain):
            good = 1 - BREAKS if before else FIXES
            p *= good if now else 1 - good
        total += p * rule(chain)
    return total


@pytest.mark.parametrize(("budget", "ratio"), [(1, 1), (4, 1), (4, math.inf), (9, 1), (6, 1.5), (4, 0)])
def test_with_an_oracle_one_right_answer_in_any_chain_is_enough(budget, ratio):
    chains = width(budget, ratio)
    length = budget // chains
    assert length * chains == budget
    p = 1 - ((1 - FIRST) * (1 - FIXES) ** (length - 1)) ** chains
    assert chains_law(length, any) == pytest.approx(1 - (1 - p) ** (1 / chains))
    results = repeated(functools.partial(revision, verify=oracle, ratio=ratio), budget, revising)
    assert within(right(results), p)


def test_the_majority_of_a_chain_has_the_law_of_its_plurality():
    for length in (3, 4):

        def rule(chain):
            return sum(chain) * 2 > len(chain) or (sum(chain) * 2 == len(chain) and chain[0])

        strategy = functools.partial(revision, ratio=math.inf, select="majority", context=1)
        assert within(right(repeated(strategy, length, revising, n=600)), chains_law(length, rule), 600)
