"""Feedback, attempt by attempt: what is told, what it costs, and the law of elimination."""

import functools

import pytest
from composed import RUNS, repeated, replying, response, right
from laws import within
from played import P, rng, scored

from extratime.evaluate.strategies.sequential_feedback import NO_HINT, sequential_feedback
from extratime.models.request import fail


def taught(ends, budget=9, hint="look at the sign", **options):
    """Attempts that end with these answers; "9" is right."""
    texts = iter(f"{i}={end}" for i, end in enumerate(ends))

    def answer(request):
        return [hint] if "A student gave" in request.prompt.text else [next(texts)]

    verify = scored(lambda text: float(text.endswith("9")))
    return replying(sequential_feedback(P, budget, rng(), verify, **options), answer)


def test_wrong_attempts_and_a_hint_are_told_until_one_is_right():
    asked, answer = taught("129")
    assert len(asked) == 5 and asked[0].prompt == P.prompt
    assert "[1] 0=1\n\n[2] 1=2" in asked[3].prompt.text and "A student gave" in asked[3].prompt.text
    assert "wrong, 2 so far:\n\n[1] 0=1\n\n[2] 1=2\n\nHint:\nlook at the sign" in asked[4].prompt.text
    assert asked[4].prompt.text.endswith(P.question) and answer.response.text == "2=9"
    assert answer.weights == (0.0, 0.0, 1.0) and len(taught("9")[0]) == 1


@pytest.mark.parametrize(
    ("budget", "options", "asked", "tried"),
    [
        (1, {}, 1, 1),
        (2, {}, 1, 1),
        (3, {}, 3, 2),
        (9, {}, 9, 5),
        (9, {"attempts": 3}, 5, 3),
        (4, {"hints": False}, 4, 4),
        (4, {"role": "judge"}, 7, 4),
    ],
)
def test_attempts_and_hints_keep_within_the_budget(budget, options, asked, tried):
    requests, answer = taught("1" * 9, budget, **options)
    assert (len(requests), len(answer.pool)) == (asked, tried) and answer.response.text == "0=1"
    assert sum(ask.role == "policy" for ask in requests) <= budget


def test_a_hint_that_gives_the_solution_away_is_not_told():
    asked, _ = taught("12", 3, hint="it is =9")
    assert "=9" not in asked[2].prompt.text and NO_HINT in asked[2].prompt.text
    assert NO_HINT in taught("12", 3, hint=" ")[0][2].prompt.text


def test_an_unfinished_attempt_is_not_right_yet():
    drawn = iter([response("9", "length"), "a hint", response("9=9")])
    verify = scored(lambda text: float(text.endswith("9")))
    asked, answer = replying(sequential_feedback(P, 3, rng(), verify), lambda ask: [next(drawn)])
    assert len(asked) == 3 and answer.response.text == "9=9"


def test_an_attempt_that_failed_says_nothing_and_is_made_again():
    drawn = iter([fail(response(""), "down"), response("9=9")])
    verify = scored(lambda text: float(text.endswith("9")))
    asked, answer = replying(sequential_feedback(P, 3, rng(), verify), lambda ask: [next(drawn)])
    assert [ask.prompt for ask in asked] == [P.prompt] * 2 and answer.response.text == "9=9"


def four(prompt, text):
    """One of four answers, none of them an earlier one if the prompt tells it."""
    left = [answer for answer in "1234" if f"={answer}" not in prompt]
    return {"": 1.0} if text else {f"={answer}": 1 / len(left) for answer in left}


def forgetful(prompt, text):
    """One of four answers, whatever was tried."""
    return {"": 1.0} if text else {f"={answer}": 1 / 4 for answer in "1234"}


@pytest.mark.parametrize(("law", "p"), [(four, 3 / 4), (forgetful, 1 - (3 / 4) ** 3)])
def test_feedback_on_few_answers_is_elimination(law, p):
    """Four answers, three attempts: 3/4 by elimination, 1 − (3/4)³ = .578 without."""
    strategy = functools.partial(sequential_feedback, hints=False)
    assert within(right(repeated(strategy, 3, law)), p, RUNS)
