"""Whole evaluations on a toy checkpoint: the run folder, shards, replays, interruptions, and plain lm-eval beside it."""

import json
import os
import signal
import subprocess
import sys
import time

import lm_eval
import pytest
import tiny
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from extratime.evaluate.grid import RecipeError, parse
from extratime.evaluate.plan import describe
from extratime.evaluate.run import run_recipe
from extratime.evaluate.tasks.load import OURS, load_tasks

STRATEGIES = ["greedy", "self_consistency", {"best_of_n": {"verify": "likelihood"}}, {"beam_search": {"width": 2}}]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("model"))


@pytest.fixture
def recipe(checkpoint, tmp_path):
    def make(name="run", **changes):
        plain = {
            "model": str(checkpoint),
            "tasks": ["sums_easy"],
            "strategies": STRATEGIES,
            "budgets": [1, 4],
            "max_tokens": 12,
            "limit": 5,
            "chat": False,
            "engine": {"dtype": "float32", "device": "cpu", "slots": 7},
            "output": str(tmp_path / name),
        }
        return parse(plain | changes)

    return make


def lines(folder, kind="results"):
    said = [json.loads(line) for file in sorted((folder / kind).glob("*.jsonl")) for line in file.open()]
    return sorted(said, key=lambda line: json.dumps(line, sort_keys=True))


def test_a_run_leaves_a_result_for_every_cell_and_a_text_for_every_response(recipe):
    folder = run_recipe(recipe())
    results = lines(folder)
    assert len(results) == 5 * (1 + 3 * 2)
    known = {line["id"]: line for line in lines(folder, "responses")}
    for line in results:
        assert line["response"] in known and all(name in known for name, _ in line["pool"])
        assert line["score"] == known[line["response"]]["score"]
        assert line["cost"]["generated"] <= line["budget"] * 12
        assert (line["outcome"] == "right") == (line["score"] == 1)
    counts = json.loads((folder / "run-0-of-1.json").read_text())["counts"]["policy"]
    drawn = sum(len(record["ends"]) for record in records(folder) if "path" in record)
    assert counts["decode"] == drawn


def told(line):
    """What a result says, but for scores that depend on the batch's shape in their last digits."""
    return {key: value for key, value in line.items() if key != "pool"}


def records(folder):
    return [json.loads(line[9:]) for file in (folder / "streams").glob("*.jsonl") for line in file.open()]


def test_a_replay_repeats_the_run_without_its_model(recipe):
    folder = run_recipe(recipe())
    before = lines(folder)
    gone = recipe(model="/nowhere")
    run_recipe(gone, replay=True)
    assert lines(folder) == before


def test_a_replay_of_more_than_was_run_says_what_is_missing(recipe):
    run_recipe(recipe())
    with pytest.raises(LookupError, match="streams do not hold"):
        run_recipe(recipe(limit=6), replay=True)


def test_shards_together_are_the_whole_run(recipe):
    whole = run_recipe(recipe())
    for i in range(3):
        parts = run_recipe(recipe("parts"), shard=(i, 3))
    assert [told(line) for line in lines(parts)] == [told(line) for line in lines(whole)]
    assert {r["id"] for r in lines(parts, "responses")} == {r["id"] for r in lines(whole, "responses")}


def test_slots_do_not_change_what_is_drawn_on_one_thread(recipe):
    one = run_recipe(recipe("one", engine={"dtype": "float32", "device": "cpu", "slots": 1}))
    many = run_recipe(recipe("many", engine={"dtype": "float32", "device": "cpu", "slots": 64}))
    assert [(r["cell"], r["answer"]) for r in lines(one)] == [(r["cell"], r["answer"]) for r in lines(many)]


def test_a_killed_run_goes_on_and_repeats_no_draw(recipe, tmp_path):
    said = {"limit": 40, "max_tokens": 48, "budgets": [8]}
    file = tmp_path / "recipe.yaml"
    plain = recipe("killed", **said)
    file.write_text(json.dumps(_plain(plain)))
    stream = plain.output / "streams" / "0-of-1.jsonl"
    started = subprocess.Popen(
        [sys.executable, "-m", "extratime.evaluate.cli", "evaluate", str(file), "--no-report"],
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    while started.poll() is None and not (stream.exists() and stream.stat().st_size > 20_000):
        time.sleep(0.05)
    assert started.poll() is None, "the run ended before it could be killed: make it longer"
    started.send_signal(signal.SIGKILL)
    started.wait()
    kept = stream.read_bytes().rpartition(b"\n")[0]
    run_recipe(plain)
    assert stream.read_bytes().startswith(kept)
    places = [(json.dumps(r["path"]), r["start"] + k) for r in records(plain.output) if "path" in r for k in range(len(r["ends"]))]
    assert len(places) == len(set(places))
    assert len(lines(plain.output)) == 40 * 4


def _plain(recipe):
    return {
        "model": recipe.model,
        "tasks": list(recipe.tasks),
        "strategies": STRATEGIES,
        "budgets": list(recipe.budgets),
        "max_tokens": recipe.max_tokens,
        "limit": recipe.limit,
        "chat": False,
        "engine": {"dtype": "float32", "device": "cpu", "slots": 7},
        "output": str(recipe.output),
    }


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
    for sample in plain["samples"]["sums_easy"]:
        line = ours[sample["doc_id"]]
        assert texts[line["response"]] == sample["resps"][0][0]
        assert line["score"] == sample["exact_match"]


def test_lm_eval_s_own_numbers_are_ours(recipe):
    folder = run_recipe(recipe())
    report = json.loads((folder / "lm_eval" / "0-of-1.json").read_text())
    for cell in {line["cell"] for line in lines(folder)}:
        scores = [line["score"] for line in lines(folder) if line["cell"] == cell]
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
        ({"tasks": ["lambada_openai"]}, "asks for loglikelihood"),
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


def test_recipe_errors_are_recipe_errors(recipe):
    with pytest.raises(RecipeError):
        run_recipe(recipe(tasks=["no_such_task"]))
