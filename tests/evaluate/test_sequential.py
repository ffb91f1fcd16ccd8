"""Strategies that revise what they said: their rules step by step, and their laws on models known in full."""

import functools
import itertools
import math
import re
from dataclasses import replace

import pytest
from laws import repeated, right, within
from played import P, response, rng, saying, scored, steps
from scipy.stats import binom
from toy import ended

from extratime.evaluate.strategies.recursive_reasoning import recursive_reasoning, section, thought
from extratime.evaluate.strategies.revision import hierarchical, revise, revision, width
from extratime.evaluate.strategies.self_refine import content, self_refine
from extratime.evaluate.verifiers.oracle import oracle
from extratime.models.request import Sample

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
    assert refined(5, "one", "hm", "two", "hm", "three")[1].response.text == "three"
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
