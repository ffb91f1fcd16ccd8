"""Generative judges: what a judge is told, and how its verdict is read.

A judge reads a problem with one response (pointwise: is it right?) or two (pairwise: which is better?), reasons, and
writes a verdict of one token after a fixed opener:

    {prompt}…reasoning…{opener}{verdict}

The probability of each verdict at that slot is GenRM's score (Zhang et al., arXiv 2408.15240); with no reasoning in
between it is the direct read-out. J1 (Chan et al., arXiv 2505.11875; Whitehouse et al., arXiv 2505.10320) trains the
reasoning, and makes a judge think on by putting a cue where its verdict would have begun.

Deviation: the papers' wordings are not all published, so they are fields of the checkpoint's manifest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from transformers import PreTrainedTokenizerBase

Form: TypeAlias = Literal["pointwise", "pairwise"]
_SLOTS = {"pointwise": ("problem", "response"), "pairwise": ("problem", "first", "second")}


@dataclass(frozen=True, slots=True)
class Judge:
    """What a judge is told.

    Attributes:
        pointwise: the prompt about one response, with the places {problem} and {response}.
        pairwise: the prompt about two, with the places {problem}, {first} and {second}.
        opener: what the verdict follows, alike in both forms.
        yes: the verdict on a right response; one token.
        no: the verdict on a wrong response; one token.
        first: the verdict that prefers the first response; one token.
        second: the verdict that prefers the second response; one token.
        cue: what stands in place of a verdict to have the judge think on.
        form: what it was trained for, and what it is asked unless a recipe says otherwise.
        max_tokens: length of a judgement.
        chat: whether the chat template makes the prompt a turn; False takes it as it is.
    """

    pointwise: str = (
        "Judge whether the response to this problem is right.\n\nProblem:\n{problem}\n\nResponse:\n{response}\n\n"
        'Verify it step by step, then end with "Verdict: Yes" if it is right or "Verdict: No" if it is not.'
    )
    pairwise: str = (
        "Judge which response to this problem is better. Neither their order nor their length matters.\n\n"
        "Problem:\n{problem}\n\nResponse A:\n{first}\n\nResponse B:\n{second}\n\n"
        'Verify both step by step, then end with "Verdict: A" or "Verdict: B".'
    )
    opener: str = "\nVerdict:"
    yes: str = " Yes"
    no: str = " No"
    first: str = " A"
    second: str = " B"
    cue: str = "\nWait,"
    form: Form = "pointwise"
    max_tokens: int = 512
    chat: bool = True

    def __post_init__(self) -> None:
        if self.form not in _SLOTS:
            raise ValueError(f"a judge's form is {' or '.join(_SLOTS)}, not {self.form!r}")
        for form, slots in _SLOTS.items():
            for slot in slots:
                if f"{{{slot}}}" not in getattr(self, form):
                    raise ValueError(f"the judge's {form} prompt has no place for {{{slot}}}: {getattr(self, form)!r}")
            one, other = (verdict.strip() for verdict in self.verdicts(form))  # type: ignore[arg-type]
            if not (one and other) or one.startswith(other) or other.startswith(one):
                raise ValueError(f"{form} verdicts {one!r} and {other!r} share their beginning: choose distinct words")
        if not self.opener.strip() or not self.cue or self.opener in self.cue:
            raise ValueError("a judge needs an opener with words, and a cue that does not hold the opener")
        if self.max_tokens < 1:
            raise ValueError(f"a judgement is at least 1 token long, not {self.max_tokens}")

    def verdicts(self, form: Form) -> tuple[str, str]:
        """The two verdicts of a form: for the response, or the first of two; and against it."""
        return (self.yes, self.no) if form == "pointwise" else (self.first, self.second)

    def about(self, problem: str, *responses: str) -> str:
        """The prompt about one response, or about two in this order."""
        form: Form = "pointwise" if len(responses) == 1 else "pairwise"
        told = dict(zip(_SLOTS[form], (text.strip() for text in (problem, *responses)), strict=True))
        return re.sub(r"\{(problem|response|first|second)\}", lambda m: told[m[1]], getattr(self, form))


def rendered(tokenizer: PreTrainedTokenizerBase, judge: Judge) -> Judge:
    """`judge` with prompts as the model reads them, chat mark-up included.

    Raises:
        ValueError: the tokenizer has no chat template, or its template changes what a user says.
    """
    if not judge.chat:
        return judge
    if not tokenizer.chat_template:
        raise ValueError(
            f"{tokenizer.name_or_path}: no chat template, so the judge's prompt cannot be a turn; save one with the "
            "tokenizer (tokenizer.chat_template = …; tokenizer.save_pretrained(folder)), or set chat: false"
        )
    pointwise, pairwise = (_turn(tokenizer, said) for said in (judge.pointwise, judge.pairwise))
    return replace(judge, pointwise=pointwise, pairwise=pairwise, chat=False)


def _turn(tokenizer: PreTrainedTokenizerBase, said: str) -> str:
    chat = [{"role": "user", "content": said}]
    text = str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
    if said not in text:
        raise ValueError(f"{tokenizer.name_or_path}: its chat template changes the words of a turn: set chat: false")
    return text


def check_verdicts(tokenizer: PreTrainedTokenizerBase, judge: Judge) -> None:
    """Refuse verdicts that are not one token each after the opener.

    Raises:
        ValueError: one is not; the message names it.
    """
    before = tokenizer.encode(judge.opener, add_special_tokens=False)
    for verdict in (judge.yes, judge.no, judge.first, judge.second):
        ids = tokenizer.encode(verdict, add_special_tokens=False)
        if len(ids) != 1:
            raise ValueError(f"verdict {verdict!r} is {len(ids)} tokens of {tokenizer.name_or_path}, not one")
        if tokenizer.encode(judge.opener + verdict, add_special_tokens=False) != [*before, *ids]:
            raise ValueError(f"verdict {verdict!r} merges with the end of the opener in {tokenizer.name_or_path}")


def verdict(text: str, judge: Judge, form: Form) -> int | None:
    """Which verdict a judgement ends with: 0 or 1, an index of `judge.verdicts(form)`; None if it has none.

    What stands after the last opener counts, as a whole word.
    """
    _, found, said = text.rpartition(judge.opener)
    for i, word in enumerate(judge.verdicts(form)):
        if found and re.match(rf"\s*{re.escape(word.strip())}(?!\w)", said):
            return i
    return None
