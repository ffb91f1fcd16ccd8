"""Tasks: our own sums, and how responses are read and scored, beside lm-eval's own account."""

import hashlib
import json
import os
import subprocess
import sys
from itertools import pairwise

import pytest
from lm_eval.api.model import LM
from lm_eval.evaluator import evaluate

from extratime.evaluate.grid import Scoring, parse
from extratime.evaluate.tasks import signs
from extratime.evaluate.tasks.load import load_tasks, reading
from extratime.evaluate.tasks.sums import document, documents

SUMS = {"sums_easy": (3, 1), "sums_medium": (2, 2), "sums_hard": (3, 2)}

# What a response to a question with the answer GOLD votes for, and whether it is right.
READ = {
    "sums_easy": [
        ("1+2=3\n3-9=GOLD", "GOLD", 1),
        ("1+2=GOLD\n3+4=999", "999", 0),
        ("=GOLD", "GOLD", 1),
        ("= GOLD", None, 0),
        ("the sum is GOLD", None, 0),
        ("", None, 0),
    ],
    "signs": [
        ("3+5+1=8+1=9 7 no\n\nWait, 3+5-1=8-1=7 7 yes\n\nAnswer: GOLD", "GOLD", 1),
        ("Answer: GOLD\n\nAnswer: 3+5-0", "3+5-0", 0),
        ("3+5-1=8-1=7 7 yes", None, 0),
        ("Answer:GOLD", None, 0),
        ("Answer: 7", None, 0),
        ("", None, 0),
    ],
    "gsm8k_cot": [
        ("2 * 4 = GOLD. The answer is GOLD.", "GOLD", 1),
        ("The answer is $GOLD.", None, 0),
        ("The answer is GOLD, no: The answer is 7.", "GOLD", 1),
        ("The answer is 1,234.", "1234", 0),
        ("The answer is many.", None, 0),
        ("", None, 0),
    ],
    "minerva_math500": [
        (r"So $x = \frac{1}{2}$. Final Answer: The final answer is $\frac{1}{2}$. I hope it is correct.", "1/2", 1),
        (r"It is \boxed{0.5}", "1/2", 1),
        ("The final answer is $2/4$.", "1/2", 1),
        (r"\boxed{\frac{1}{3}}", "1/3", 0),
        ("I do not know.", None, 0),
        ("", None, 0),
    ],
}
SCORING = {"minerva_math500": Scoring(metric="math_verify")}
ROWS = {
    "gsm8k_cot": {"question": "How many legs have two cats?", "answer": "2 * 4 = <<2*4=8>>8\n#### 8"},
    "minerva_math500": {"problem": "What is half of 1?", "solution": r"It is $\boxed{\frac{1}{2}}$.", "level": 1},
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Each with as many documents as there are responses to read."""
    folder = tmp_path_factory.mktemp("data")
    for name, row in ROWS.items():
        (folder / name).mkdir()
        for split in ("train", "test"):
            lines = [json.dumps(row | {"unique_id": f"{split}/{i}"}) + "\n" for i in range(len(READ[name]))]
            (folder / name / f"{split}.jsonl").write_text("".join(lines))
    said = {"model": "x", "tasks": list(READ), "strategies": ["greedy"], "output": str(folder / "run")}
    return load_tasks(parse(said | {"fewshot": 0, "data": {name: str(folder / name) for name in ROWS}}))


def told(task, name):
    """(document, response, vote, score) for each case of a task."""
    docs = [task.eval_docs[i] for i in range(len(READ[name]))]
    for doc, (text, vote, score) in zip(docs, READ[name], strict=True):
        gold = str(task.doc_to_target(doc))
        yield doc, text.replace("GOLD", gold), vote and vote.replace("GOLD", gold), score


@pytest.mark.parametrize("name", READ)
def test_a_response_votes_for_what_the_task_extracts_or_for_nothing(tasks, name):
    read = reading(tasks[name], SCORING.get(name, Scoring()), thinking=False)
    for doc, text, vote, score in told(tasks[name], name):
        assert read.answer(text) == vote, text
        assert read.score(doc, text) == score, text


class Scripted(LM):
    """Answers by the document's number."""

    def __init__(self, texts):
        super().__init__()
        self.texts = texts

    def generate_until(self, requests):
        return [self.texts[request.doc_id] for request in requests]

    loglikelihood = loglikelihood_rolling = generate_until


@pytest.mark.parametrize("name", READ)
def test_scores_are_lm_eval_s_own(tasks, name):
    task = tasks[name]
    cases = list(told(task, name))
    report = evaluate(
        Scripted([text for _, text, _, _ in cases]), {"tasks": {name: task}}, len(cases), bootstrap_iters=0
    )
    for pipeline in task._filters:
        logged = [sample for sample in report["samples"][name] if sample["filter"] == pipeline.name]
        assert len(logged) == len(cases)
        for metric in task.higher_is_better():
            read = reading(task, Scoring(pipeline.name, metric), thinking=False)
            ours = [read.score(doc, text) for doc, text, _, _ in cases]
            assert ours == [sample[metric] for sample in logged], (pipeline.name, metric)


def test_each_filter_of_a_task_can_be_chosen(tasks):
    strict, flexible = (reading(tasks["gsm8k_cot"], Scoring(f), False) for f in ("strict-match", "flexible-extract"))
    assert (strict.answer("I say 12, or 8"), flexible.answer("I say 12, or 8")) == (None, "8")
    assert reading(tasks["gsm8k_cot"], Scoring(), False).filter == "strict-match"
    exact = reading(tasks["minerva_math500"], Scoring(metric="exact_match"), False)
    assert exact.score(tasks["minerva_math500"].eval_docs[0], r"\boxed{0.5}") == 0


def test_an_answer_can_be_the_value_of_the_formula_instead(tasks):
    read = reading(tasks["sums_easy"], Scoring(answer="math"), thinking=False)
    assert read.answer("It is $1/2$") == read.answer(r"\boxed{0.5}") == "1/2"


def test_thoughts_neither_vote_nor_count(tasks):
    doc = tasks["sums_easy"].eval_docs[0]
    gold = tasks["sums_easy"].doc_to_target(doc)
    text = f"<think>1+1={gold}</think>I give up"
    plain, stripped = (reading(tasks["sums_easy"], Scoring(), thinking) for thinking in (False, True))
    assert (plain.answer(text), plain.score(doc, text)) == (gold, 1)
    assert (stripped.answer(text), stripped.score(doc, text)) == (None, 0)


# --- sums


@pytest.fixture(scope="module")
def sums():
    return {name: documents(*shape, train=300, validation=100, test=100) for name, shape in SUMS.items()}


@pytest.mark.parametrize("name", SUMS)
def test_splits_hold_different_sums(sums, name):
    expressions = [doc["expression"] for split in sums[name].values() for doc in split]
    assert {split: len(docs) for split, docs in sums[name].items()} == {"train": 300, "validation": 100, "test": 100}
    assert len(set(expressions)) == 500


@pytest.mark.parametrize("name", SUMS)
def test_answers_and_every_line_of_a_solution_are_python_s(sums, name):
    terms, digits = SUMS[name]
    for doc in sums[name]["test"]:
        assert str(eval(doc["expression"])) == doc["answer"]
        numbers = doc["expression"].replace("-", "+").split("+")
        assert len(numbers) == terms and {len(number) for number in numbers} == {digits}
        lines = [line.split("=") for line in doc["solution"].splitlines()]
        assert len(lines) == terms - 1 and lines[-1][1] == doc["answer"]
        assert all(str(eval(left)) == right for left, right in lines)
        assert all(after[0].startswith(before[1]) for before, after in pairwise(lines))


def test_the_solution_of_a_sum_is_its_own_best_response(tasks):
    task = tasks["sums_easy"]
    read = reading(task, Scoring(), thinking=False)
    assert all(read.score(doc, doc["solution"]) == 1 for doc in task.eval_docs.select(range(20)))


def test_a_sum_goes_down_to_negative_totals():
    assert document("3 - 9 + 2") == {"expression": "3-9+2", "answer": "-4", "solution": "3-9=-6\n-6+2=-4"}


def test_too_few_sums_are_an_error_that_counts_them():
    with pytest.raises(ValueError, match="of 300 different sums of 2 terms with 1 digits exist"):
        documents(2, 1, train=300)


def test_every_process_makes_the_same_sums(sums):
    program = (
        "import hashlib, json; from extratime.evaluate.tasks.sums import documents;"
        "made = documents(3, 1, train=300, validation=100, test=100);"
        "print(hashlib.sha256(json.dumps({k: v.to_list() for k, v in made.items()}).encode()).hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    ours = json.dumps({split: docs.to_list() for split, docs in sums["sums_easy"].items()})
    assert done.stdout.strip() == hashlib.sha256(ours.encode()).hexdigest()


# --- signs, with traces of several attempts


@pytest.fixture(scope="module")
def signed():
    return signs.documents()


def attempts(doc):
    """The expressions of a trace, and its answer."""
    *said, answer = doc["solution"].split("\n\n")
    return [attempt.removeprefix("Wait, ").partition("=")[0] for attempt in said], answer.removeprefix("Answer: ")


def test_exactly_one_choice_of_signs_is_right(signed):
    for doc in signed["train"]:
        found = signs.choices(tuple(map(int, doc["numbers"].split())))
        assert [e for e in found if eval(e) == int(doc["target"])] == [doc["answer"]]


def test_no_problem_of_signs_is_in_two_splits(signed):
    problems = [(doc["numbers"], doc["target"]) for docs in signed.values() for doc in docs]
    assert len(set(problems)) == len(problems) == 2592
    with pytest.raises(ValueError, match="only 2592 problems of signs exist, not 2593"):
        signs.documents(train=2001)


def test_every_attempt_is_worked_out_without_a_slip(signed):
    for doc in signed["train"]:
        first, *again, _ = doc["solution"].split("\n\n")
        assert all(attempt.startswith("Wait, ") for attempt in again)
        for line in (first, *(attempt.removeprefix("Wait, ") for attempt in again)):
            sides, target, told = line.split(" ")
            results = {eval(side) for side in sides.split("=")}
            assert target == doc["target"] and told == ("yes" if results == {int(target)} else "no")
            assert len(results) == 1


def test_wrong_attempts_are_not_repeated_and_the_answer_is_the_last_if_right_or_else_one_not_tried(signed):
    for doc in signed["train"]:
        said, answer = attempts(doc)
        assert len(said) <= signs.ATTEMPTS
        if said[-1] == doc["answer"]:
            assert answer == said[-1]
        elif doc["answer"] not in said:
            assert len(set(said)) == len(said) and answer not in said
        else:
            assert answer != doc["answer"]


def test_attempts_are_right_as_often_as_the_chain_says(signed):
    chains = [[e == doc["answer"] for e in attempts(doc)[0]] for doc in signed["train"]]
    steps = [pair for chain in chains for pair in pairwise(chain)]
    first, lost = [chain[0] for chain in chains], [not then for now, then in steps if now]
    stops = [len(chain) == 1 for chain in chains if chain[0]]
    for found, expected in ((first, signs.FIRST), (lost, signs.LOSE), (stops, signs.STOP[True])):
        assert abs(sum(found) / len(found) - expected) < 4 * (expected * (1 - expected) / len(found)) ** 0.5


def test_the_trace_of_a_problem_of_signs_is_always_the_same(signed):
    assert signs.documents()["test"].to_list() == signed["test"].to_list()
