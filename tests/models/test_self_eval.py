import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from extratime.models.self_eval import (
    SelfEval,
    invocation_ids,
    level,
    question_ids,
    question_suffix,
    read_out,
    target_ids,
    tell,
)

ASK = SelfEval("ok?", "n", "y")


def test_the_question_closes_the_response_and_asks_as_the_user():
    expected = "<|im_end|>\n<|im_start|>user\nok?<|im_end|>\n<|im_start|>assistant\n"
    tokenizer = tiny.tokenizer()
    assert question_suffix(tokenizer, ASK) == expected
    assert [tokenizer.decode(ids) for ids in question_ids(tokenizer, ASK)] == [expected]


def test_what_follows_a_response_is_what_the_template_adds_to_the_conversation():
    tokenizer = tiny.tokenizer()
    chat = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2, I think"}]
    prompt = tokenizer.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True)
    asked = tokenizer.apply_chat_template([*chat, {"role": "user", "content": "ok?"}], tokenize=False)
    whole = prompt + chat[1]["content"] + question_suffix(tokenizer, ASK)
    assert whole == asked + "<|im_start|>assistant\n"


def test_plain_text_is_followed_by_the_question_as_it_is():
    plain = SelfEval("\nok?", " n", "y", chat=False)
    for tokenizer in (tiny.tokenizer(), tiny.tokenizer(chat=False)):
        assert question_suffix(tokenizer, plain) == "\nok?"


def test_a_question_that_tells_the_weakest_token_is_ten_questions_with_one_beginning():
    tokenizer = tiny.tokenizer()
    ask = SelfEval("ok at {weakest}?", "n", "y")
    assert ask.tells and not ASK.tells
    found = question_ids(tokenizer, ask)
    assert len(set(found)) == 10
    suffix = question_suffix(tokenizer, ask)
    for n, ids in enumerate(found):
        assert tokenizer.decode(ids) == tell(suffix, [-n / 2 - 0.1]) == suffix.replace("{weakest}", str(n))
        assert ids[: len(invocation_ids(found))] == invocation_ids(found)
    assert tokenizer.decode(invocation_ids(found)).endswith("ok at ")
    assert invocation_ids(question_ids(tokenizer, ASK)) == question_ids(tokenizer, ASK)[0]
    assert tokenizer.convert_ids_to_tokens(target_ids(tokenizer, ask)) == ["n", "y"]


def test_a_question_that_begins_with_what_it_tells_marks_no_beginning():
    ask = SelfEval("{weakest}?", "n", "y", chat=False)
    with pytest.raises(ValueError, match=r"begins with \{weakest\}.*put words before it"):
        invocation_ids(question_ids(tiny.tokenizer(), ask))


@pytest.mark.parametrize(
    ("logprobs", "expected"),
    [
        ((), 0),
        ((0.0,), 0),
        ((-0.0, -0.49), 0),
        ((-0.5, -0.1), 1),
        ((-0.1, -2.3), 4),
        ((-4.4,), 8),
        ((-4.5,), 9),
        ((-80.0,), 9),
    ],
)
def test_the_level_of_the_weakest_token_is_in_half_nats(logprobs, expected):
    assert level(logprobs) == expected


@given(st.lists(st.floats(-30, 0), min_size=1), st.floats(-30, 0))
def test_one_more_token_never_lowers_the_level(logprobs, more):
    assert level(logprobs) <= level([*logprobs, more])


def test_without_a_template_there_is_no_turn_to_make():
    with pytest.raises(ValueError, match=r"no chat template.*chat: false"):
        question_suffix(tiny.tokenizer(chat=False), ASK)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}",
        "{% for m in messages %}{{ m['content'] | replace('?', '!') }}{% endfor %}",
    ],
)
def test_a_template_that_changes_words_is_refused(template):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match="changes the words"):
        question_suffix(tokenizer, ASK)


def test_answers_are_single_tokens():
    tokenizer = tiny.tokenizer()
    assert tokenizer.convert_ids_to_tokens(target_ids(tokenizer, ASK)) == ["n", "y"]
    assert tokenizer.convert_ids_to_tokens(target_ids(tokenizer, SelfEval("ok?", "abc", "y"))) == ["abc", "y"]
    with pytest.raises(ValueError, match=r"target 'No' is 2 tokens of .*\['N', 'o'\], not one"):
        target_ids(tokenizer, SelfEval("ok?", "No", "y"))
    with pytest.raises(ValueError, match=r"target 'yes' is 3 tokens"):
        target_ids(tokenizer, SelfEval("ok?", "n", "yes"))


def test_an_answer_that_merges_with_the_question_is_refused():
    with pytest.raises(ValueError, match="target 'b' merges with the end of the question"):
        target_ids(tiny.tokenizer(), SelfEval("is it a", "b", "y", chat=False))


@pytest.mark.parametrize("words", [("", "n", "y"), ("ok?", "", "y"), ("ok?", "n", "")])
def test_no_words_are_no_question(words):
    with pytest.raises(ValueError, match="at least one character"):
        SelfEval(*words)


@pytest.mark.parametrize(("good", "bad"), [("No", "No"), ("No", "Not"), ("Yes.", "Yes")])
def test_answers_that_begin_alike_are_refused(good, bad):
    with pytest.raises(ValueError, match="share their beginning"):
        SelfEval("ok?", good, bad)


@given(st.floats(1e-6, 1), st.floats(0, 1))
def test_the_read_out_is_the_share_of_the_good_answer(good, other):
    bad = (1 - good) * other
    g = read_out(good, bad)
    assert 0 <= g <= 1 and g * (good + bad) == pytest.approx(good)


@pytest.mark.parametrize(("good", "bad"), [(0.0, 0.0), (float("nan"), 0.5), (0.9, 0.9)])
def test_probabilities_that_are_none_are_refused(good, bad):
    with pytest.raises(ValueError, match="no self-evaluation to read"):
        read_out(good, bad)
