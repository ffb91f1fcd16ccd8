"""One strategy on one problem from Python, on a toy checkpoint."""

import pytest
import tiny
from toy import ToyEngine, lines, told

from extratime.evaluate.grid import EngineSpec
from extratime.evaluate.solve import solve
from extratime.models.engines.open import Opened, open_engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def opened(folder):
    return open_engine(str(folder), {}, EngineSpec(dtype="float32", device="cpu"))


@pytest.mark.parametrize(("strategy", "pool"), [("greedy", 1), ("self_consistency", 4), ("best_of_n", 4)])
def test_an_answer_is_one_response_of_a_pool_within_the_budget(opened, strategy, pool):
    answer = solve("What is 17 + 25?", strategy, budget=4, model=opened, max_tokens=8)
    assert len(answer.pool) == len(answer.weights) == pool and answer.response in answer.pool
    assert sum(response.n_tokens for response in answer.pool) <= 4 * 8
    assert answer.why
    assert answer == solve("What is 17 + 25?", strategy, budget=4, model=opened, max_tokens=8)


def test_a_folder_is_opened_and_read_through_its_chat_template(folder):
    answer = solve("Hi", "greedy", 1, str(folder), max_tokens=4)
    assert answer.response.prompt.text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_without_a_chat_template_the_problem_stands_as_it_is(tmp_path):
    answer = solve("Hi", "greedy", 1, str(tiny.save(tmp_path, chat=False)), max_tokens=4)
    assert answer.response.prompt.text == "Hi"


@pytest.fixture
def toy():
    """Two lines of one or two letters, then an answer; some letters are more probable than others."""
    return Opened(ToyEngine(told(lines)), None, {})


@pytest.mark.parametrize("vote", [len, lambda text: text[-1]])
def test_votes_are_what_the_caller_says(toy, vote):
    answer = solve("p?", budget=32, model=toy, max_tokens=16, answer=vote)
    votes = [vote(response.text) for response in answer.pool]
    assert len(votes) == 32 and len(set(votes)) > 1
    assert votes.count(vote(answer.response.text)) == max(map(votes.count, votes))


def test_temperature_and_options_reach_the_strategy(toy):
    cold = solve("p?", budget=4, model=toy, temperature=0.0, max_tokens=16)
    assert {response.text for response in cold.pool} == {"a\na\n=1"}
    options = ({"k": k} for k in (1, 3))
    one, three = (solve("p?", "first_finish", 8, toy, k, max_tokens=16) for k in options)
    assert one.why != three.why


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strategy": "best_of_m"}, "no strategy 'best_of_m'; there are .*best_of_n"),
        (
            {"strategy": "best_of_n", "options": {"verfy": "likelihood"}},
            "best_of_n has no option 'verfy'; it has verify",
        ),
        ({"strategy": "best_of_n", "options": {"verify": "liklihood"}}, "no verifier 'liklihood'"),
        ({"temperature": -1.0}, "temperature"),
    ],
)
def test_what_is_not_meant_is_an_error_that_names_it(opened, changes, words):
    with pytest.raises(ValueError, match=words):
        solve("Hi", model=opened, **changes)


def test_a_problem_beyond_the_context_says_so(opened):
    with pytest.raises(RuntimeError, match=r"greedy could not answer: .*512"):
        solve("x" * 600, "greedy", model=opened)


def test_a_missing_checkpoint_says_where_it_was_looked_for():
    with pytest.raises((FileNotFoundError, ValueError), match="/nowhere"):
        solve("Hi", model="/nowhere")
