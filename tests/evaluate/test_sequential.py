"""Strategies that read what they said before: their rules step by step, and their laws on models known in full."""

import functools
import itertools
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from laws import within
from played import P, response, rng, scored
from scipy.stats import binom
from toy import ToyEngine, ended, p_value, problem, run

from extratime.evaluate.program import Gather
from extratime.evaluate.schedule import Cell
from extratime.evaluate.strategies.best_of_n import best_of_n
from extratime.evaluate.strategies.iterative_agent_decoding import extremes, iterative_agent_decoding
from extratime.evaluate.strategies.recursive_reasoning import recursive_reasoning, section, thought
from extratime.evaluate.strategies.revision import hierarchical, revise, revision, width
from extratime.evaluate.strategies.self_refine import content, self_refine
from extratime.evaluate.strategies.solve_then_verify import allocation, solve_then_verify
from extratime.evaluate.verifiers.oracle import oracle
from extratime.models.judge import Judge
from extratime.models.paths import path_seed
from extratime.models.request import Sample

RUNS = 250


def repeated(strategy, budget, law, n=RUNS, max_tokens=4, engine=None, **fields):
    cells = [Cell(f"{i}", problem(max_tokens=max_tokens, **fields), strategy, budget, replicate=i) for i in range(n)]
    return run(engine or ToyEngine(law, slots=64), cells)


def right(results):
    return sum(result.cell.problem.correct(result.answer.response.text) for result in results)


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


def graded(scores):
    """A verifier that knows each answer's score."""

    def verify(problem, responses):
        yield from ()
        return [scores.get(ended(r.text) or "", 0.0) for r in responses]

    return verify


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
    assert "[1] a=1\n\n[2] c=2" in asked.prompt.text and asked.prompt.text.startswith("p?")
    [asked], _ = steps(revise(P, [response("b", "cut")]), saying("d=3"))
    assert asked == Sample(P.prompt, 1)


def test_chains_grow_side_by_side_until_the_budget_is_spent():
    texts = [f"v{i}=1" for i in range(1, 8)]
    asked, answer = steps(revision(P, 7, rng(), scored(lambda text: 1.0), context=1), saying(*texts))
    assert [request.n for request in asked] == [3, 1, 1, 1, 1]
    assert [re.findall(r"v(\d)", request.prompt.text) for request in asked] == [[], ["1"], ["2"], ["3"], ["4"]]
    assert [r.text[1] for r in answer.pool] == list("1472536")


def test_a_long_chain_shows_its_last_four():
    texts = [f"v{i}=1" for i in range(1, 8)]
    asked, _ = steps(revision(P, 7, rng(), scored(lambda text: 1.0), ratio=math.inf), saying(*texts))
    shown = [re.findall(r"v(\d)", request.prompt.text) for request in asked]
    assert shown == [[], ["1"], ["1", "2"], ["1", "2", "3"], list("1234"), list("2345"), list("3456")]


def test_winners_of_chains_vote_with_their_own_scores():
    chains = [[response(text) for text in row] for row in (["a=1", "b=1", "c=2"], ["d=2"], ["e=3", "f=2"])]
    votes = [0.3, 0.3, 0.5, 0.2, 0.4, 0.1]
    # Chains elect 1 (0.6 against 0.5), 2 and 3; their best responses weigh 0.3, 0.2 and 0.4.
    answer = hierarchical(P, chains, votes)
    assert answer.response.text == "e=3" and answer.weights == tuple(votes) and len(answer.pool) == 6
    texts = [r.text for chain in chains for r in chain]
    verify = scored(dict(zip(texts, votes, strict=True)))
    flat = steps(revision(P, 6, rng(), verify, 0, select="flat"), saying(*texts))[1]
    assert flat.response.text == "c=2"  # 0.8 against 0.6 and 0.4


def test_a_majority_of_all_answers_asks_no_verifier():
    verify = scored({})
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


# --- iterative agent decoding


def test_only_what_can_be_read_is_shown_and_only_where_it_differs():
    pool = [response("=1"), response("=2"), response("=3"), response("=1 ")]
    inf = math.inf
    assert extremes(pool, [0.2, 0.9, 0.1, 0.9]) == (1, 2)
    assert extremes(pool, [0.5, 0.5, 0.5, 0.5]) == (0, None)
    assert extremes(pool, [-inf, 0.5, 0.1, -inf]) == (1, 2)
    assert extremes([pool[0], pool[3]], [0.9, 0.1]) == (0, None)
    assert extremes(pool, [-inf] * 4) == (None, None)


def iad(budget, verify, texts, **options):
    return steps(iterative_agent_decoding(P, budget, rng(), verify, **options), saying(*texts))


SCORES = {"a=1": 0.3, "b=2": 0.1, "c=3": 0.7, "d": 0.9, "e=5": 0.7, "f=6": 0.0}


def test_each_round_sees_the_best_and_the_weakest_so_far():
    asked, answer = iad(6, scored(SCORES), SCORES, samples=2)
    assert [request.n for request in asked] == [2, 2, 2]
    assert asked[0].prompt == P.prompt
    shown = [re.findall(r"(best|weakest) attempt so far(?: \(score (.*?)\))?:\n(.*)", r.prompt.text) for r in asked]
    assert shown[1] == [("best", "0.3", "a=1"), ("weakest", "0.1", "b=2")]
    assert shown[2] == [("best", "0.7", "c=3"), ("weakest", "0.1", "b=2")], "what does not parse never ranks"
    assert answer.response.text == "c=3" and len(answer.pool) == 6, "an equal score keeps the earlier answer"
    assert answer.weights == (0.3, 0.1, 0.7, -math.inf, 0.7, 0.0)


def test_feedback_by_kind():
    plain_ = iad(4, scored(SCORES), SCORES, samples=2, feedback="none")[0]
    assert [request.prompt for request in plain_] == [P.prompt] * 2
    bare = iad(4, scored(SCORES), SCORES, samples=2, feedback="attempts")[0][1].prompt.text
    assert "a=1" in bare and "b=2" in bare and "0.3" not in bare
    texts = ["a=1", "b=2", "carry the one", "c=3", "d"]
    first, critic, second = iad(4, scored(SCORES), texts, samples=2, feedback="critique")[0]
    assert critic.role == "judge" and "a=1" in critic.prompt.text and critic.prompt.ids is None
    own = iad(4, scored(SCORES), texts, samples=2, feedback="critique", critic="policy")[0]
    assert [(r.role, r.n) for r in own] == [("policy", 2), ("policy", 1), ("policy", 1)]
    assert len(iad(3, scored(SCORES), texts, samples=2, feedback="critique", critic="policy")[0]) == 1
    assert "carry the one" in second.prompt.text and (first.role, second.role) == ("policy", "policy")


def test_it_stops_when_the_best_is_good_enough_or_nothing_gets_better():
    assert len(iad(6, scored(SCORES), SCORES, samples=2, enough=0.7)[1].pool) == 4
    assert len(iad(6, scored(SCORES), SCORES, samples=1, patience=1)[1].pool) == 2
    assert len(iad(6, scored(SCORES), SCORES, samples=1, patience=2)[1].pool) == 5
    assert len(iad(5, scored(SCORES), SCORES, samples=2)[1].pool) == 5, "the last round takes what is left"


@pytest.mark.parametrize("value", [0.5, math.nan, -math.inf])
def test_a_verifier_that_knows_nothing_keeps_the_first(value):
    asked, answer = iad(4, scored(lambda text: value), ["=1", "=2", "=3", "=4"], samples=2)
    assert answer.response.text == "=1"
    assert ("=1" in asked[1].prompt.text) == (value == 0.5) and "=2" not in asked[1].prompt.text


LADDER = 24


def ladder(better):
    """Quality of a fresh draw: j with probability 2^-(j+1); a draw told of the best makes it one better, or worse."""

    def law(prompt, text):
        if text:
            return {"": 1.0}
        told = re.search(r"best attempt so far.*:\n=(\d+)", prompt)
        if told:
            return {f"={int(told[1]) + 1}": better, "=0": 1 - better}
        return {f"={j}": 0.5 ** (j + 1) for j in range(LADDER)}

    return law


def quality(problem, responses):
    yield from ()
    return [float(ended(r.text)) for r in responses]


def highest(n):
    """Mean of the greatest of `n` fresh qualities, P(q >= j) = 2^-j."""
    return sum(1 - (1 - 0.5**j) ** n for j in range(1, LADDER))


@pytest.mark.parametrize(("n", "mean"), [(2, 1.667), (4, 2.505), (8, 3.421), (16, 4.377)])
def test_best_of_n_climbs_the_ladder_by_luck(n, mean):
    assert highest(n) == pytest.approx(mean, abs=5e-4)


@pytest.mark.parametrize(("better", "n"), [(0.6, 2), (0.6, 4), (0.6, 8), (0.2, 4), (0.2, 8)])
def test_feedback_climbs_the_ladder_by_steps(better, n):
    """Mean 1 + (N − 1)u: worse than best-of-N at u = 0.2, better from N = 4 on at u = 0.6."""
    iterated = functools.partial(iterative_agent_decoding, verify=quality, samples=1, enough=math.inf)
    tops = [float(ended(r.answer.response.text)) for r in repeated(iterated, n, ladder(better), n=400)]
    error = np.std(tops) / math.sqrt(len(tops))
    assert np.mean(tops) == pytest.approx(1 + (n - 1) * better, abs=3.3 * error)
    assert (1 + (n - 1) * better > highest(n)) == (better == 0.6 and n >= 4)
    lucky = functools.partial(best_of_n, verify=quality)
    tops = [float(ended(r.answer.response.text)) for r in repeated(lucky, n, ladder(better), n=400)]
    assert np.mean(tops) == pytest.approx(highest(n), abs=3.3 * np.std(tops) / math.sqrt(len(tops)))


def test_without_feedback_it_is_best_of_n():
    ablated = functools.partial(iterative_agent_decoding, verify=quality, samples=2, feedback="none", enough=math.inf)
    left, right_ = (repeated(s, 7, ladder(0.6), n=60) for s in (ablated, functools.partial(best_of_n, verify=quality)))
    assert [r.answer.response for r in left] == [r.answer.response for r in right_]


def test_the_best_score_never_falls_though_true_quality_may():
    """A verifier that tells a wrong number in 30 % of its replies."""

    def flipping(problem, responses):
        yield from ()
        return [-float(ended(r.text)) if path_seed(r.path) % 10 < 3 else float(ended(r.text)) for r in responses]

    strategy = functools.partial(iterative_agent_decoding, verify=flipping, samples=1, enough=math.inf)
    fell = 0
    for result in repeated(strategy, 6, ladder(0.6), n=100):
        tops = list(itertools.accumulate(result.answer.weights, max))
        leaders = [
            next(r for r, w in zip(result.answer.pool, result.answer.weights, strict=True) if w == t) for t in tops
        ]
        truth = [float(ended(r.text)) for r in leaders]
        assert tops == sorted(tops) and result.answer.response == leaders[-1]
        fell += truth != sorted(truth)
    assert fell


def constrained(prompt, text):
    """A response is letters, each met or not; told what is missing, it mends just that, else all is drawn anew."""
    if text:
        return {"": 1.0}
    best = re.search(r"best attempt so far.*:\n=([yn]+)", prompt)
    fault = re.search(r"mend (\d)", prompt)
    if best and fault:
        at = int(fault[1])
        return {f"={best[1][:at]}y{best[1][at + 1 :]}": 1.0}
    return {"=" + "".join(letters): 1 / 8 for letters in itertools.product("yn", repeat=3)}


def met(problem, responses):
    yield from ()
    return [(ended(r.text) or "").count("y") / 3 for r in responses]


def test_a_critique_that_names_the_fault_mends_one_a_round():
    def critic(prompt, text):
        attempt = re.search(r"attempt at this problem:\n=([yn]+)", prompt)
        if attempt is None:
            return constrained(prompt, text)
        return {"": 1.0} if text else {f"mend {attempt[1].find('n')}": 1.0}

    told = functools.partial(iterative_agent_decoding, verify=met, samples=1, feedback="critique")
    for result in repeated(told, 8, critic, n=100, max_tokens=8):
        missing = result.answer.pool[0].text.count("n")
        assert len(result.answer.pool) == 1 + missing and ended(result.answer.response.text) == "yyy"
        assert result.cost.judged == 2 * missing and result.cost.generated == 2 * (1 + missing)
    silent = functools.partial(iterative_agent_decoding, verify=met, samples=1, feedback="attempts")
    drawn = [len(r.answer.pool) for r in repeated(silent, 8, critic, n=400)]
    geometric = {k: 7 ** (k - 1) / 8**k for k in range(1, 8)} | {8: (7 / 8) ** 7}
    assert p_value(drawn, geometric) > 1e-3


# --- self-refinement


def test_it_stops_only_where_the_critic_says_so_on_a_line_of_its_own():
    for said in ("No error", "All steps hold.\n\nno error.", "**No error**"):
        assert content(said, "No error")
    for said in ("There is no error in step 1, but 3 + 4 is 7.", "No errors in step 1.", "", "not: No error?"):
        assert not content(said, "No error")


def refined(budget, *texts, **options):
    return steps(self_refine(P, budget, rng(), **options), saying(*texts))


def test_a_draft_is_criticised_and_revised_until_nothing_is_wrong():
    asked, answer = refined(7, "=1", "off by one", "=2", "No error")
    assert [r.text for r in answer.pool] == ["=1", "=2"] and answer.response.text == "=2"
    first, critic, again, last = asked
    assert first.prompt == P.prompt and "=1" in critic.prompt.text and "No error" in critic.prompt.text
    assert "=1" in again.prompt.text and "off by one" in again.prompt.text
    assert "=2" in last.prompt.text and "=1" not in last.prompt.text and "off by one" not in last.prompt.text


@pytest.mark.parametrize(("budget", "revisions"), [(1, 0), (2, 0), (3, 1), (6, 2), (7, 3), (64, 3)])
def test_rounds_that_are_paid_for(budget, revisions):
    texts = ["=0"] + [text for i in range(1, 9) for text in ("hm", f"={i}")]
    assert refined(budget, *texts)[1].response.text == f"={revisions}"
    others = min(budget - 1, 3)
    asked, answer = refined(budget, *texts, critic="judge")
    assert answer.response.text == f"={others}" and [r.role for r in asked[1::2]] == ["judge"] * others


def test_the_last_revision_that_can_be_read_answers():
    assert refined(5, "=1", "hm", "=2", "hm", "mumble")[1].response.text == "=2"
    failing = iter([response("=1"), response("", "failed"), response("=2")])
    assert steps(self_refine(P, 5, rng()), lambda request, i: next(failing))[1].response.text == "=1"


@pytest.mark.parametrize(("finds", "alarms"), [(1.0, 0.0), (0.7, 0.2)])
def test_accuracy_follows_the_critics_errors(finds, alarms):
    """Wrong drafts are found with probability `finds` and put right in 0.4; right ones are spoilt after an alarm."""

    def law(prompt, text):
        if text:
            return {"": 1.0}
        last = re.findall(r"=(\d)", prompt)[-1:]
        if "Check it" in prompt:
            found = finds if last != ["1"] else alarms
            return {"wrong": found, "No error": 1 - found}
        p = FIRST if not last else FIXES if last != ["1"] else 1 - BREAKS
        return {"=1": p, "=2": 1 - p}

    good, bad = FIRST, 1 - FIRST  # of chains that still go on
    settled = 0.0
    for _ in range(2):
        settled += good * (1 - alarms)
        good, bad = (
            good * alarms * (1 - BREAKS) + bad * finds * FIXES,
            good * alarms * BREAKS + bad * finds * (1 - FIXES),
        )
    results = repeated(self_refine, 5, law, n=500)
    assert within(right(results), settled + good, 500)
    for result in results:
        pool = [ended(r.text) for r in result.answer.pool]
        calls = 2 * len(pool) - (len(pool) == 3)
        assert result.cost.generated == 2 * calls, "what stops early is not paid for"
        assert alarms or "1" not in pool[:-1]


# --- recursive reasoning

MARKS = ("<", ">")


def test_the_thinking_stands_before_its_last_end():
    assert thought("<a>=1", MARKS) == "a" and thought("<a> <b> c", MARKS) == "a b"
    assert thought("a b", MARKS) == "a b" and thought("<a", MARKS) == "a" and thought("a>b", MARKS) == "a"


def test_a_section_is_the_last_that_is_whole():
    assert section("x[a]y[b]z", ("[", "]")) == "b"
    assert section("x[a]y[b", ("[", "]")) == section("xa]", ("[", "]")) == section("", ("[", "]")) == ""


def recursion(budget, *texts, **options):
    left = iter(texts)

    def say(request, i):
        return response((request.along[0].text if request.along else "") + next(left))

    return steps(recursive_reasoning(replace(P, max_tokens=64), budget, rng(), think=MARKS, **options), say)


def test_each_round_criticises_rewrites_and_answers_again():
    asked, answer = recursion(7, "<alpha>=1", "bad", "beta", "=2", "worse", "<gamma>", "=2")
    assert [r.text for r in answer.pool] == ["<alpha>=1", "<beta>=2", "<gamma>=2"]
    assert answer.response.text == "<beta>=2"
    first, critique, rewriting, again, second = asked[:5]
    assert first.prompt == P.prompt and again.along[0].text == "<beta>" and again.along[0].prompt == P.prompt
    assert "alpha" in critique.prompt.text and "alpha" in rewriting.prompt.text and "bad" in rewriting.prompt.text
    assert "beta" in second.prompt.text and "alpha" not in second.prompt.text
    assert "=1" not in critique.prompt.text, "the critic sees no answer"


@pytest.mark.parametrize(("budget", "own", "others"), [(1, 0, 0), (3, 0, 2), (4, 1, 2), (7, 2, 2), (99, 2, 2)])
def test_rounds_of_reasoning_that_are_paid_for(budget, own, others):
    texts = ["<x>=0"] + [text for i in range(1, 4) for text in ("hm", "y", f"={i}")]
    assert recursion(budget, *texts, merge="last")[1].response.text.endswith(f"={own}")
    asked, answer = recursion(budget, *texts, merge="last", critic="judge")
    assert answer.response.text.endswith(f"={others}")
    assert [r.role for r in asked] == ["policy"] + ["judge", "judge", "policy"] * others


def test_merging_by_the_critic_shows_answers_without_thinking_and_is_paid_for():
    asked, answer = recursion(5, "<one>=1", "bad", "two", "=2", "so =3", merge="critic")
    assert answer.response.text == "so =3" and "[1] =1\n\n[2] =2" in asked[-1].prompt.text
    assert len(recursion(4, "<one>=1", merge="critic")[0]) == 1


def test_the_policys_own_reflection_stands_for_a_critique():
    asked, _ = recursion(4, "<one>[my fault]=1", "two", "=2", reflect=("[", "]"))
    assert len(asked) == 3 and "my fault" in asked[1].prompt.text
    asked, _ = recursion(7, "<one>[my fault]=1", "two", "[my haste]=2", "three", "=2", reflect=("[", "]"))
    assert len(asked) == 5 and "my haste" in asked[3].prompt.text and "my fault" not in asked[3].prompt.text
    assert len(recursion(4, "<one>=1", "bad", "two", "=2", reflect=("[", "]"))[0]) == 4, (
        "without one the critic is asked"
    )


def test_thinking_that_is_empty_or_too_long_ends_the_rounds():
    for text in ("", "x" * 99):
        asked, answer = recursion(7, "<one>=1", "bad", text)
        assert len(asked) == 3 and answer.response.text == "<one>=1"


def reasoning(names_fault):
    """Three steps, each right with probability 0.6, and the answer that they give; a critic that names the first fault
    and mends it, or nothing."""

    def law(prompt, text):
        if "Say briefly" in prompt:
            return {"": 1.0} if text else {"mend" if names_fault else "hm": 1.0}
        thinking = re.findall(r"thinks about this problem:\n([yn]+)", prompt)
        if thinking:
            said = thinking[0].replace("n", "y", 1) if "mend" in prompt else thinking[0]
            return {"": 1.0} if text else {said: 1.0}
        said = (prompt + text).rpartition("?")[2]
        if not said:
            return {f"<{''.join(row)}>": math.prod(0.6 if step == "y" else 0.4 for step in row) for row in ROWS}
        return {"": 1.0} if "=" in said else {"=2" if "n" in said else "=1": 1.0}

    return law


ROWS = list(itertools.product("yn", repeat=3))


@pytest.mark.parametrize(("rounds", "merge"), [(1, "last"), (2, "last"), (2, "vote")])
def test_a_critic_that_names_the_first_fault_mends_one_a_round(rounds, merge):
    strategy = functools.partial(recursive_reasoning, rounds=rounds, merge=merge, think=MARKS)
    mended = {"last": rounds, "vote": 1}[merge]  # two of three answers are right after one fault at most
    budget = 1 + 3 * rounds
    for told, most in ((True, mended), (False, 0)):
        results = repeated(strategy, budget, reasoning(told), n=300, max_tokens=16)
        assert within(right(results), binom.cdf(most, 3, 0.4), 300)
        assert all(len(r.answer.pool) == 1 + rounds for r in results)
    # A draft is 3 tokens, a critique and a rewriting 2 each, an answer after the words put 2.
    assert {r.cost.generated for r in results} == {3 + 6 * rounds}


# --- solving and verifying


@pytest.mark.parametrize(
    ("budget", "cost", "votes", "found"),
    [
        (1, 1, None, (1, 0)),
        (3, 1, None, (3, 0)),
        (4, 1, None, (2, 1)),
        (16, 1, None, (4, 3)),
        (64, 1, None, (10, 5)),
        (256, 2, None, (13, 9)),
        (16, 2, 1, (5, 1)),
        (16, 1, 32, (2, 7)),
        (16, 0, 32, (16, 32)),
        (11, 0.1, 1, (10, 1)),
        (16, 1, 0, (16, 0)),
    ],
)
def test_solutions_and_verifications_out_of_one_budget(budget, cost, votes, found):
    n, v = allocation(budget, cost, votes)
    assert (n, v) == found and n * (1 + cost * v) <= budget + 1e-6


def test_a_negative_cost_is_refused():
    with pytest.raises(ValueError, match="at least 0"):
        allocation(4, -1)


def verifying(prompt, text):
    """One of many solutions, right with probability 0.3; a rationale of three tokens before each verdict."""
    if prompt.startswith("Judge "):
        return {"h": 1.0} if len(text) < 2 else {Judge().opener: 1.0}
    if text:
        return {"": 1.0}
    return {f"{i}={a}": p / 1000 for i in range(1000) for a, p in (("1", 0.3), ("2", 0.5), ("3", 0.2))}


def verified(budget, n=250, **options):
    def yes(said, adapter):
        return 0.9 if re.search(r"=1\b", said.prompt.text) else 0.2

    return repeated(
        functools.partial(solve_then_verify, **options),
        budget,
        None,
        n,
        engine=ToyEngine(verifying, slots=64, yes=yes),
    )


def test_counted_tokens_are_those_of_the_cost_law():
    """T_S = 2 and T_V = 3, so λ = 1.5: tokens are T_S·S(1 + λV), where no two solutions are equal."""
    for budget in (1, 4, 16, 40):
        n, v = allocation(budget, 1.5)
        for result in verified(budget, n=20, relative_cost=1.5):
            distinct = len({r.text for r in result.answer.pool})
            assert len(result.answer.pool) == n and result.cost.generated == 2 * n
            assert result.cost.judged == 3 * v * distinct and distinct >= n - 2
            assert result.cost.decoded <= 2 * budget


def test_a_verifier_that_knows_makes_accuracy_pass_at_s_and_without_one_it_is_the_majority():
    assert allocation(8, 1.5, 2) == (2, 2)
    for select in ("best", "vote"):
        assert within(right(verified(8, relative_cost=1.5, votes=2, select=select)), 1 - 0.7**2)
    assert allocation(3, 1.5, 2) == (3, 0)
    majority = 0.3**3 + 3 * 0.3**2 * 0.7 + 0.3 * 2 * 0.5 * 0.2  # a tie of three goes to the first
    assert within(right(verified(3, relative_cost=1.5, votes=2)), majority)


def test_solutions_without_an_answer_never_win_and_other_verifiers_are_asked_once():
    verify = scored({"a": 0.9, "b=1": 0.2, "c=2": 0.3})
    answer = steps(solve_then_verify(P, 12, rng(), verify, votes=3), saying("a", "b=1", "c=2"))[1]
    assert answer.response.text == "c=2" and answer.weights == (-math.inf, 0.2, 0.3) and len(verify.asked) == 1
