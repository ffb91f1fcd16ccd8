"""Monte-Carlo values of steps against a chain whose values are known: p^(T − t) before an error, 0 after one."""

import math
from dataclasses import replace

import numpy as np
import pytest
from toy import Silent, ToyEngine, plain, problem, run, told

from extratime.evaluate.schedule import Cell
from extratime.evaluate.strategies.step_values import step_values
from extratime.evaluate.streams import Streams

P, T, K = 0.7, 6, 8


def chain(text):
    """T steps, each right ("o") with probability P; the answer is 1 where all were."""
    if "=" in text:
        return {"": 1.0}
    if text.count("\n") == T:
        return {"=2": 1.0} if "x" in text else {"=1": 1.0}
    return {"o\n": P, "x\n": 1 - P}


def cells(count, draws=1, **options):
    def strategy(problem, budget, rng):
        return step_values(problem, budget, rng, completions=K, steps=T, **options)

    length = T + 2
    return [Cell(f"{i}", problem(f"p{i}", length), strategy, draws * (1 + K * T)) for i in range(count)]


def valued(results):
    """Each prefix of each response: its steps, whether all are right, and its value."""
    return [
        (part.text.count("\n"), "x" not in part.text, weight)
        for result in results
        for part, weight in zip(result.answer.pool, result.answer.weights, strict=True)
        if part.finish == "pause"
    ]


@pytest.fixture(scope="module")
def found():
    return valued(run(ToyEngine(told(chain), slots=64), cells(400)))


def test_soft_labels_are_unbiased_and_hard_ones_have_the_law_of_any_of_k(found):
    assert len(found) == 400 * T
    for t in range(1, T + 1):
        at = np.array([value for step, right, value in found if step == t and right])
        p = P ** (T - t)
        assert abs(at.mean() - p) <= 3 * math.sqrt(p * (1 - p) / (K * len(at))) + 1e-12
        hard = 1 - (1 - p) ** K
        assert abs((at > 0).mean() - hard) <= 3 * math.sqrt(hard * (1 - hard) / len(at)) + 1e-12
    assert pytest.approx(0.770, abs=1e-3) == 1 - (1 - P**5) ** K


def test_after_an_absorbing_error_no_label_is_positive(found):
    wrong = [value for _, right, value in found if not right]
    assert len(wrong) > 400 and set(wrong) == {0.0}


def test_a_response_s_own_end_is_its_own_value_and_stands_behind_its_prefixes():
    [result] = run(ToyEngine(told(chain)), cells(1, draws=3))
    ends = [(r, w) for r, w in zip(result.answer.pool, result.answer.weights, strict=True) if r.finish == "eos"]
    assert len(ends) == 3 and [w for _, w in ends] == [float("x" not in r.text) for r, _ in ends]
    assert [r.text.count("\n") for r in result.answer.pool] == [*range(1, T + 1), T] * 3
    assert result.answer.response == ends[0][0]


def test_the_budget_pays_for_all_completions_and_for_no_other():
    budget = 2 * (1 + K * T)
    for result in run(ToyEngine(told(chain)), cells(20, draws=2)):
        values = [w for w in result.answer.weights if math.isnan(w)]
        assert not values and result.cost.generated <= budget * (T + 2)
    [short] = run(ToyEngine(told(chain)), [replace(cells(1)[0], budget=K * T)])
    assert len(short.answer.pool) == 1


def test_a_step_whose_completions_were_not_all_read_to_their_end_has_no_value():
    """Those that a budget cuts are the long ones, and here only long ones are wrong."""

    def uneven(text):
        return {"": 1.0} if "=" in text else {"=1": 0.5, "a": 0.4, "=2": 0.1} if text else {"a\n": 1.0}

    def starved(problem, budget, rng):
        return step_values(problem, 3, rng, completions=2, steps=1)

    def weights(budget):
        made = [Cell(f"{i}", problem("q", 8), starved, budget, replicate=i) for i in range(60)]
        results = run(ToyEngine(told(uneven)), made)
        pools = [zip(r.answer.pool, r.answer.weights, strict=True) for r in results]
        return [weight for pool in pools for part, weight in pool if part.text == "a\n"]

    assert not any(map(math.isnan, weights(3))) and 0.0 in weights(3)
    short = weights(1)
    assert any(map(math.isnan, short)) and len(short) == 60


def test_values_replay_and_do_not_hang_on_what_ran_beside_them():
    streams = Streams()
    results = run(ToyEngine(told(chain), slots=3, seed=5), cells(4), streams)
    assert [plain(r) for r in run(Silent(told(chain)), cells(4), streams)] == [plain(r) for r in results]
    alone = [run(ToyEngine(told(chain), slots=1), [cell])[0] for cell in cells(4)]
    assert [plain(r) for r in alone] == [plain(r) for r in results]


def test_blank_steps_have_no_value_and_no_end_is_counted_twice():
    def blanks(text):
        order = ["\n", "a", "\n", "\n", "b", "\n", "=1"]
        return {order[len(text)]: 1.0} if len(text) < 6 else {"=1": 1.0} if "=" not in text else {"": 1.0}

    [result] = run(ToyEngine(told(blanks)), [replace(cells(1)[0], problem=problem("q", 12))])
    assert [r.text for r in result.answer.pool] == ["\na\n", "\na\n\nb\n", "\na\n\nb\n=1"]
    assert result.answer.weights == (1.0, 1.0, 1.0)


def test_a_task_that_cannot_tell_what_is_right_is_refused():
    with pytest.raises(ValueError, match=r"problem q: .*steps have no value"):
        next(step_values(replace(problem("q"), correct=None), 9, np.random.default_rng(0)))
    with pytest.raises(ValueError, match="completions and steps must be at least 1"):
        next(step_values(problem("q"), 9, np.random.default_rng(0), completions=0))
