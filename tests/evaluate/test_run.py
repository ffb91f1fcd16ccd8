"""Whole evaluations on a toy checkpoint: the run folder, shards, replays, interruptions; plain lm-eval beside it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import lm_eval
import pytest
import tiny
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from extratime.evaluate.grid import parse
from extratime.evaluate.named import RecipeError
from extratime.evaluate.plan import describe
from extratime.evaluate.report.leaderboard import leaderboard
from extratime.evaluate.report.read import read
from extratime.evaluate.run import run_recipe
from extratime.evaluate.strategies.greedy import greedy
from extratime.evaluate.tasks.load import OURS, load_tasks
from extratime.models import manifest
from extratime.models.judge import Judge

STRATEGIES = ["greedy", "self_consistency", {"best_of_n": {"verify": "likelihood"}}, {"beam_search": {"width": 2}}]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("model"))


def say(checkpoint, output, **changes):
    plain = {
        "model": str(checkpoint),
        "tasks": ["sums_easy"],
        "strategies": STRATEGIES,
        "budgets": [1, 4],
        "max_tokens": 12,
        "limit": 5,
        "chat": False,
        "engine": {"dtype": "float32", "device": "cpu", "slots": 7},
        "output": str(output),
    }
    return plain | changes


@pytest.fixture
def recipe(checkpoint, tmp_path):
    return lambda name="run", **changes: parse(say(checkpoint, tmp_path / name, **changes))


@pytest.fixture(scope="module")
def whole(checkpoint, tmp_path_factory):
    """The folder of one run; tests read it and leave it as it is."""
    return run_recipe(parse(say(checkpoint, tmp_path_factory.mktemp("whole") / "run")))


@pytest.fixture
def copied(whole, tmp_path):
    """A copy of it where `recipe()` has its output."""
    return shutil.copytree(whole, tmp_path / "run")


def lines(folder, kind="results"):
    said = [json.loads(line) for file in sorted((folder / kind).glob("*.jsonl")) for line in file.open()]
    return sorted(said, key=lambda line: json.dumps(line, sort_keys=True))


def test_a_run_leaves_a_result_for_every_cell_and_a_text_for_every_response(whole):
    results = lines(whole)
    assert len(results) == 5 * (1 + 3 * 2)
    known = {line["id"]: line for line in lines(whole, "responses")}
    for line in results:
        assert line["response"] in known and all(name in known for name, _ in line["pool"])
        assert line["score"] == known[line["response"]]["score"]
        assert line["cost"]["generated"] <= line["budget"] * 12
        assert (line["outcome"] == "right") == (line["score"] == 1)
    counts = json.loads((whole / "run-0-of-1.json").read_text())["counts"]["policy"]
    drawn = sum(len(record["ends"]) for record in records(whole) if "path" in record)
    assert counts["decode"] == drawn


def judge_folder(folder):
    """A checkpoint of another model that was trained to judge."""
    said = Judge(
        "{problem}{response}?", "{problem}{first}|{second}?", "e", "y", "n", "a", "b", max_tokens=20, chat=False
    )
    tiny.save(folder, seed=3)
    manifest.write(folder, manifest.Manifest("judge_sft", "full", "base", judge=said))
    return folder


def test_a_run_with_a_judge_replays_and_keeps_the_accounts_of_both_apart(recipe, checkpoint, tmp_path):
    ways = {"direct": {}, "votes": {"votes": 4, "cues": 1}, "pairs": {"form": "pairwise", "votes": 1, "soft": False}}
    entries = [{"best_of_n": {"verify": {"generative": said}, "label": label}} for label, said in ways.items()]
    folder = judge_folder(tmp_path / "judge")
    judge = {"model": str(folder), "dtype": "float32", "device": "cpu"}
    run = run_recipe(recipe(judge=judge, strategies=[*entries, "self_consistency"]))
    results = lines(run)
    judged = {label: sum(r["cost"]["judged"] for r in results if r["strategy"] == label) for label in ways}
    assert judged["votes"] > judged["pairs"] > judged["direct"] == 0
    assert all(r["cost"]["generated"] <= r["budget"] * 12 for r in results)
    weights = [weight for r in results if r["strategy"] == "direct" for _, weight in r["pool"]]
    assert weights and all(0 <= weight <= 1 for weight in weights)
    account = json.loads((run / "run-0-of-1.json").read_text())
    assert account["engine"]["judge"] != account["engine"]["policy"]
    assert account["counts"]["judge"]["decode"] and account["counts"]["policy"]["decode"]
    drawn = sum(len(record["ends"]) for record in records(run) if "path" in record)
    assert drawn == account["counts"]["judge"]["decode"] + account["counts"]["policy"]["decode"]
    rows = {(row.strategy, row.budget): row for row in leaderboard(read(run), resamples=100)}
    assert rows["votes", 4].judged > 0 == rows["self_consistency", 4].judged
    assert rows["votes", 4].flops > rows["self_consistency", 4].flops
    shutil.rmtree(run / "results")
    shutil.rmtree(folder)
    run_recipe(recipe(model="/nowhere", judge=judge, strategies=[*entries, "self_consistency"]), replay=True)
    assert lines(run) == results


def test_without_a_judge_the_policy_judges_itself(recipe):
    run = run_recipe(recipe(strategies=[{"best_of_n": {"verify": {"generative": {"votes": 1}}}}], limit=2))
    account = json.loads((run / "run-0-of-1.json").read_text())
    assert account["engine"]["judge"] == account["engine"]["policy"] and account["counts"]["judge"]["decode"]
    rates = read(run).machine.rates
    work = [account["counts"][role]["decode"] for role in ("policy", "judge")]
    assert rates.decode == pytest.approx(account["seconds"]["decode"] / sum(work))


def told(line):
    """What a result says, but for scores that depend on the batch's shape in their last digits."""
    return {key: value for key, value in line.items() if key != "pool"}


def records(folder):
    return [json.loads(line[9:]) for file in (folder / "streams").glob("*.jsonl") for line in file.open()]


def test_a_replay_repeats_the_run_without_its_model(recipe, whole, copied):
    shutil.rmtree(copied / "results")
    run_recipe(recipe(model="/nowhere"), replay=True)
    assert lines(copied) == lines(whole)


def test_a_replay_of_more_than_was_run_says_what_is_missing(recipe, copied):
    with pytest.raises(LookupError, match="streams do not hold"):
        run_recipe(recipe(limit=6), replay=True)


def test_shards_together_are_the_whole_run(recipe, whole):
    for i in range(3):
        parts = run_recipe(recipe("parts"), shard=(i, 3))
    assert [told(line) for line in lines(parts)] == [told(line) for line in lines(whole)]
    assert {r["id"] for r in lines(parts, "responses")} == {r["id"] for r in lines(whole, "responses")}


@pytest.mark.parametrize("slots", [1, 64])
def test_slots_do_not_change_what_is_drawn_on_one_thread(recipe, whole, slots):
    other = run_recipe(recipe(engine={"dtype": "float32", "device": "cpu", "slots": slots}))
    assert [(r["cell"], r["answer"]) for r in lines(other)] == [(r["cell"], r["answer"]) for r in lines(whole)]


def test_a_killed_run_goes_on_and_repeats_no_draw(recipe, checkpoint, tmp_path):
    said = say(checkpoint, tmp_path / "run", limit=16, max_tokens=32, budgets=[8])
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(said))
    stream = tmp_path / "run" / "streams" / "0-of-1.jsonl"
    started = subprocess.Popen(
        [sys.executable, "-m", "extratime.evaluate.cli", "evaluate", str(file), "--no-report"],
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    while started.poll() is None and not (stream.exists() and stream.stat().st_size > 5_000):
        time.sleep(0.01)
    assert started.poll() is None, "the run ended before it could be killed: make it longer"
    started.send_signal(signal.SIGKILL)
    started.wait()
    kept = stream.read_bytes().rpartition(b"\n")[0]
    folder = run_recipe(parse(said))
    assert len(kept) > 5_000 and stream.read_bytes().startswith(kept)
    drawn = [record for record in records(folder) if "path" in record]
    places = [(json.dumps(r["path"]), r["start"] + k) for r in drawn for k in range(len(r["ends"]))]
    assert len(places) == len(set(places))
    assert len(lines(folder)) == 16 * 4


@pytest.mark.parametrize("chat", [False, True])
def test_greedy_equals_plain_lm_eval_per_document(recipe, checkpoint, chat):
    folder = run_recipe(recipe(strategies=["greedy"], chat=chat, limit=8))
    ours = {line["doc_id"]: line for line in lines(folder)}
    texts = {line["id"]: line["text"] for line in lines(folder, "responses")}
    manager = TaskManager(include_path=str(OURS), include_defaults=False)
    plain = lm_eval.simple_evaluate(
        HFLM(str(checkpoint), device="cpu", dtype="float32", batch_size=1),
        tasks=["sums_easy"],
        task_manager=manager,
        limit=8,
        gen_kwargs="max_gen_toks=12",
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
        bootstrap_iters=0,
        log_samples=True,
    )
    assert len(plain["samples"]["sums_easy"]) == len(ours) == 8
    for sample in plain["samples"]["sums_easy"]:
        line = ours[sample["doc_id"]]
        # Where the length cuts a character in two, transformers writes a sign in place of its half; we leave it out.
        assert texts[line["response"]].rstrip("�") == sample["resps"][0][0].rstrip("�")
        assert line["score"] == sample["exact_match"]


def test_lm_eval_s_own_numbers_are_ours(whole):
    report = json.loads((whole / "lm_eval" / "0-of-1.json").read_text())
    for cell in {line["cell"] for line in lines(whole)}:
        scores = [line["score"] for line in lines(whole) if line["cell"] == cell]
        assert report["results"]["sums_easy"][f"exact_match,{cell}|last-answer"] == pytest.approx(
            sum(scores) / len(scores)
        )
    assert all("resps" not in sample for sample in report["samples"]["sums_easy"])


def test_documents_may_come_from_a_folder(recipe, tmp_path):
    folder = tmp_path / "gsm"
    folder.mkdir()
    row = {"question": "How many legs have two cats?", "answer": "2 * 4 = <<2*4=8>>8\n#### 8"}
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    made = load_tasks(recipe(tasks=["gsm8k_cot"], data={"gsm8k_cot": str(folder)}))
    assert made["gsm8k_cot"].eval_docs[0]["question"] == row["question"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tasks": ["no_such_task"]}, "no task 'no_such_task'"),
        ({"overrides": {"sums_easy": {"output_type": "loglikelihood"}}}, "asks for loglikelihood"),
        ({"data": {"sums_easy": "/nowhere"}}, "no <split>.jsonl in /nowhere"),
        ({"data": {"other": "/nowhere"}}, "'other', which the recipe does not run"),
        ({"overrides": {"sums_easy": {"repeats": 3}}}, "repeats each document 3 times"),
        ({"scoring": {"sums_easy": {"metric": "bleu"}}}, "no metric 'bleu'; it has exact_match"),
        ({"scoring": {"sums_easy": {"filter": "first"}}}, "no filter 'first'; it has last-answer"),
        ({"strategies": [{"best_of_n": {"verify": "self_eval"}}]}, "self_eval"),
        ({"strategies": [{"best_of_n": {"verify": "reward_model"}}]}, "verifier"),
    ],
)
def test_what_cannot_be_run_is_refused_before_any_work(recipe, changes, words):
    with pytest.raises(ValueError, match=words):
        run_recipe(recipe(**changes))
    assert not list(recipe().output.glob("results/*"))


def test_a_dry_run_tells_the_grid_without_a_model(recipe):
    said = describe(recipe(model="/nowhere"))
    assert "sums_easy: 5 documents, at most 12 tokens a response" in said
    assert "7 columns, 35 cells" in said
    assert f"at most {5 * 12 * (1 + 3 * 5):,} read by all cells; at most {5 * 12 * 4:,} drawn" in said


def test_a_shard_without_documents_is_done_at_once(recipe):
    folder = run_recipe(recipe(), shard=(6, 7))
    assert (folder / "results" / "6-of-7.jsonl").read_text() == ""
    assert (folder / "run-6-of-7.json").is_file() and records(folder) == []


@pytest.mark.parametrize("chat", [False, True])
def test_what_a_strategy_asks_beside_the_problem_is_a_turn_where_the_problem_is_one(recipe, monkeypatch, chat):
    asked = {}

    def asking(problem, budget, rng):
        asked[problem.id] = problem.question, problem.turn(problem.question), problem.prompt
        return (yield from greedy(problem, budget, rng))

    monkeypatch.setattr("extratime.evaluate.run.bind", lambda spec, known: asking)
    run_recipe(recipe(strategies=["greedy"], chat=chat, limit=2))
    assert len(asked) == 2 and all("<|im_start|>" not in question for question, _, _ in asked.values())
    for question, turn, prompt in asked.values():
        lead, tail = prompt.text.split(question)
        assert question.startswith("Sum: ") and turn.text == (lead + question + tail.lstrip() if chat else question)


def test_chat_without_a_template_is_refused(recipe, tmp_path):
    model = tiny.save(tmp_path / "plain", chat=False)
    with pytest.raises(RecipeError, match="no chat template: set chat: false"):
        run_recipe(recipe(model=str(model), chat=True))
