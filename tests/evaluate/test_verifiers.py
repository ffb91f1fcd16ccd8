"""What each verifier asks, and what number it makes of the reply."""

import math
from dataclasses import replace

import pytest
from toy import problem

from extratime.evaluate.verifiers.likelihood import likelihood, mean_logprob
from extratime.evaluate.verifiers.oracle import oracle
from extratime.evaluate.verifiers.reward_model import reward_model
from extratime.evaluate.verifiers.self_eval import self_eval
from extratime.models.request import Completion, Probe, Score, fail

P = problem()


def response(text, finish="eos", n_tokens=6, **fields):
    return Completion(P.prompt, text, n_tokens, finish=finish, **fields)


def scores_of(program, reply=None):
    try:
        asked = next(program)
        program.send([reply(request) for request in asked])
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it asks twice")


def test_likelihood_is_the_mean_and_asks_only_for_what_the_engine_did_not_tell():
    failed, empty = fail(response("c", logprobs=(-1.0,)), "no"), response("", n_tokens=0)
    pool = [response("a", logprobs=(-1.0, -3.0)), response("b"), failed, empty]
    told = {Score(P.prompt, "b", "policy"): (-0.5, -1.5, -4.0)}
    assert scores_of(likelihood(P, pool), told.__getitem__) == [-2.0, -2.0, -math.inf, -math.inf]
    assert scores_of(likelihood(P, pool[:1])) == [-2.0] == [mean_logprob(pool[0])]


def test_oracle_knows_and_says_when_it_cannot():
    assert scores_of(oracle(P, [response("=1"), response("=2")])) == [1.0, 0.0]
    with pytest.raises(ValueError, match=r"problem p: .*no oracle"):
        scores_of(oracle(replace(P, correct=None), [response("=1")]))


@pytest.mark.parametrize(("aggregate", "expected"), [("last", 0.5), ("min", 0.2), ("mean", 0.5), ("prod", 0.08)])
def test_reward_model_aggregates_steps(aggregate, expected):
    pool = [response("a"), fail(response("b"), "no"), response("c")]
    replies = {"a": (0.8, 0.2, 0.5), "c": ()}
    scores = scores_of(reward_model(P, pool, aggregate), lambda ask: replies[ask.continuation])
    assert scores == [pytest.approx(expected), -math.inf, -math.inf]


def test_reward_model_tells_the_question_of_a_chat():
    said = (("user", "2?"), ("assistant", "2"), ("user", "3?"), ("assistant", ""))
    turns = tuple({"role": role, "content": content} for role, content in said)
    asked = []
    for messages in ((), turns):
        program = reward_model(replace(P, messages=messages), [response("a")])
        scores_of(program, lambda ask: asked.append(ask) or (1.0,))
    assert asked == [Score(P.prompt, "a", "verifier", question) for question in ("", "3?")]


def test_self_eval_is_the_share_of_the_good_answer():
    replies = {"a": (0.03, 0.01), "c": (0.0, 0.0), "d": (0.0, 0.2)}
    pool = [response("a"), fail(response("b"), "no"), response("c"), response("d", "length")]
    asked = []

    def reply(request):
        asked.append(request)
        return replies[request.completion.text]

    assert scores_of(self_eval(P, pool), reply) == [pytest.approx(0.75), -math.inf, -math.inf, 0.0]
    assert all(isinstance(ask, Probe) and ask.adapter == "self_eval" and ask.role == "policy" for ask in asked)


def test_self_eval_tells_each_response_s_weakest_token_where_the_question_asks_for_it():
    pool = [response("a", logprobs=(-0.1, -1.7)), response("b", logprobs=(-0.2,)), response("", n_tokens=0)]
    said = []
    scores_of(self_eval(P, pool, question="at {weakest}?"), lambda ask: said.append(ask.question) or (0.5, 0.5))
    assert said == ["at 3?", "at 0?", "at 0?"]
    with pytest.raises(ValueError, match=r"tells \{weakest\}, but the engine tells no log-probabilities"):
        scores_of(self_eval(P, [response("a")], question="at {weakest}?"))
