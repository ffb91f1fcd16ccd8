"""The self-evaluation token: one question after a response, answered by one token of the same model.

"Would you do better if you started over?" closes the assistant's turn; the probability of "No" against "Yes" estimates
that a fresh attempt would not beat the response (Manvi, Singh, Ermon, arXiv 2410.02725):

    g = p(No) / (p(No) + p(Yes)),   p the softmax over the whole vocabulary after the question.

The question is rendered by the tokenizer's own chat template, so that it works for any chat model: what the template
adds to a conversation after the words of the response. A partial response is closed the same way. For a policy that
was trained on plain text it is appended as it is.

Deviations:
- The wording is a field of the checkpoint's manifest, not a constant, since the paper's is not published.
- Where the wording holds `{weakest}`, the question tells how unlikely the response's weakest token was, a digit from 0
  to 9 that the engine knows from drawing it: so g weighs what the policy felt while it wrote, which its hidden states
  after the response no longer show, beside what it can read there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from transformers import PreTrainedTokenizerBase

WEAKEST = "{weakest}"
_RESPONSE = "response-before-the-question"
_LEVELS = 10


@dataclass(frozen=True, slots=True)
class SelfEval:
    """What is asked after a response and which tokens answer it.

    Attributes:
        question: the user's turn after the response; `{weakest}` in it becomes the level of the weakest token.
        good: the answer that keeps the response; one token.
        bad: the answer that starts over; one token.
        chat: whether the chat template makes the question a turn; False appends it as it is.
    """

    question: str = 'Would you do better if you started over? ("Yes." or "No.")'
    good: str = "No"
    bad: str = "Yes"
    chat: bool = True

    @property
    def tells(self) -> bool:
        """Whether the question depends on the log-probabilities of the response."""
        return WEAKEST in self.question

    def __post_init__(self) -> None:
        if not (self.question and self.good and self.bad):
            raise ValueError("the self-evaluation question and both of its targets need at least one character")
        if self.good.startswith(self.bad) or self.bad.startswith(self.good):
            raise ValueError(f"targets {self.good!r} and {self.bad!r} share their beginning: choose distinct words")


def question_suffix(tokenizer: PreTrainedTokenizerBase, ask: SelfEval) -> str:
    """What follows a response up to the place where the answer token stands.

    Closes the assistant's turn, asks the question as the user, opens the next assistant turn.

    Raises:
        ValueError: the tokenizer has no chat template, or its template changes what an assistant said.
    """
    if not ask.chat:
        return ask.question
    if not tokenizer.chat_template:
        raise ValueError(
            f"{tokenizer.name_or_path}: no chat template, so the self-evaluation question cannot be a turn; save one "
            "with the tokenizer (tokenizer.chat_template = …; tokenizer.save_pretrained(folder)), or set chat: false"
        )
    turns = [
        {"role": "user", "content": "problem"},
        {"role": "assistant", "content": _RESPONSE},
        {"role": "user", "content": ask.question},
    ]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    _, found, suffix = str(rendered).rpartition(_RESPONSE)
    if not found or ask.question not in suffix:
        raise ValueError(
            f"{tokenizer.name_or_path}: its chat template changes the words of a turn, so there is no place "
            "for the self-evaluation question after a response"
        )
    return suffix


def level(logprobs: Sequence[float]) -> int:
    """How unlikely the weakest token was, in half nats: from 0 (p > 0.61, or no token) to 9 (p ≤ 0.011).

    Args:
        logprobs: log-probability of each token of a response under the untempered policy, the end token included.
    """
    return min(_LEVELS - 1, int(-2 * min(logprobs, default=0.0)))


def tell(question: str, logprobs: Sequence[float]) -> str:
    """The question about a response with these log-probabilities; see `level`."""
    return question.replace(WEAKEST, str(level(logprobs)))


def question_ids(tokenizer: PreTrainedTokenizerBase, ask: SelfEval) -> tuple[tuple[int, ...], ...]:
    """Token ids that are appended to those of a response: one question, or one for each level that it can tell."""
    return tuple(tuple(tokenizer.encode(text, add_special_tokens=False)) for text in _texts(tokenizer, ask))


def _texts(tokenizer: PreTrainedTokenizerBase, ask: SelfEval) -> list[str]:
    suffix = question_suffix(tokenizer, ask)
    return [suffix.replace(WEAKEST, str(n)) for n in range(_LEVELS)] if ask.tells else [suffix]


def invocation_ids(questions: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The tokens that all questions begin with: they activate the adapter.

    Raises:
        ValueError: there is none.
    """
    shared = tuple(column[0] for column in takewhile(lambda c: len(set(c)) == 1, zip(*questions, strict=False)))
    if not shared:
        raise ValueError(f"the question begins with {WEAKEST}, so nothing marks its beginning: put words before it")
    return shared


def target_ids(tokenizer: PreTrainedTokenizerBase, ask: SelfEval) -> tuple[int, int]:
    """Token ids of the good and the bad answer.

    Raises:
        ValueError: an answer is not one token of this tokenizer, or would merge with the question.
    """
    return _answer_id(tokenizer, ask, ask.good), _answer_id(tokenizer, ask, ask.bad)


def _answer_id(tokenizer: PreTrainedTokenizerBase, ask: SelfEval, answer: str) -> int:
    ids = tokenizer.encode(answer, add_special_tokens=False)
    if len(ids) != 1:
        pieces = [tokenizer.decode([i]) for i in ids]
        raise ValueError(f"target {answer!r} is {len(ids)} tokens of {tokenizer.name_or_path} {pieces}, not one")
    for before in _texts(tokenizer, ask):
        alone, together = (tokenizer.encode(text, add_special_tokens=False) for text in (before, before + answer))
        if together != [*alone, ids[0]]:
            raise ValueError(f"target {answer!r} merges with the end of the question in {tokenizer.name_or_path}")
    return int(ids[0])


def read_out(good: float, bad: float) -> float:
    """The share g in [0, 1] of the good answer, from both probabilities under the full softmax.

    Raises:
        ValueError: both are 0 or one is not a number: the model was never taught this question.
    """
    total = good + bad
    if not 0 < total <= 1 + 1e-3:
        raise ValueError(
            f"no self-evaluation to read: P(good) = {good}, P(bad) = {bad}; "
            "is this the checkpoint, adapter and question of the manifest?"
        )
    return good / total
