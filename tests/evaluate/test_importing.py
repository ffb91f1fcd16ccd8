"""Generations from elsewhere: what becomes a draw, what an evaluation makes of it, and what is refused."""

import json

import pytest
import tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from extratime.evaluate.cli import main
from extratime.evaluate.grid import parse
from extratime.evaluate.importing import import_generations
from extratime.evaluate.run import run_recipe
from extratime.evaluate.streams import Streams

STRATEGIES = ["self_consistency", {"best_of_n": {"verify": "likelihood"}}]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("model"))


def say(checkpoint, output, **changes):
    plain = {
        "model": str(checkpoint),
        "tasks": ["sums_easy"],
        "strategies": STRATEGIES,
        "budgets": [3],
        "max_tokens": 128,
        "limit": 4,
        "chat": False,
        "engine": {"dtype": "float32", "device": "cpu"},
        "output": str(output),
    }
    return plain | changes


@pytest.fixture
def recipe(checkpoint, tmp_path):
    return lambda name="run", **changes: parse(say(checkpoint, tmp_path / name, **changes))


@pytest.fixture(scope="module")
def ran(checkpoint, tmp_path_factory):
    return run_recipe(parse(say(checkpoint, tmp_path_factory.mktemp("ran") / "run")))


def lines(folder, kind):
    return [json.loads(line) for line in (folder / kind / "0-of-1.jsonl").open()]


def exported(folder):
    """Every draw of a run, as a user would write it."""
    said = {r["id"]: r for r in lines(folder, "responses")}
    for result in lines(folder, "results"):
        if result["strategy"] == "self_consistency":
            for name, _ in result["pool"]:
                draw = said[name]
                kept = {key: draw[key] for key in ("text", "tokens", "logprobs")}
                yield kept | {"prompt": result["question"], "finished": draw["finish"] == "eos"}


def write(file, generations):
    file.write_text("".join(json.dumps(line) + "\n" for line in generations))
    return file


def prompts(folder):
    return list(dict.fromkeys(line["question"] for line in lines(folder, "results")))


def decoded(folder):
    counts = json.loads((folder / "run-0-of-1.json").read_text())["counts"]
    return counts.get("policy", {}).get("decode", 0)


def told(folder):
    """Answers and pools, but for the digits of log-probabilities that an export rounds away."""
    return [(r["cell"], r["problem"], r["response"], [n for n, _ in r["pool"]]) for r in lines(folder, "results")]


def weights(folder):
    return [w for r in lines(folder, "results") for _, w in r["pool"]]


def test_generations_of_one_run_answer_another_without_a_draw(ran, recipe, tmp_path):
    generations = list(exported(ran))
    assert {line["finished"] for line in generations} == {True, False}
    said = import_generations(recipe(), write(tmp_path / "g.jsonl", generations))
    assert (said.lines, said.kept, said.strangers, said.bare) == (12, 12, (), 0)
    folder = run_recipe(recipe())
    assert decoded(ran) > 0 == decoded(folder)
    assert told(folder) == told(ran)
    assert weights(folder) == pytest.approx(weights(ran), abs=1e-4)


def test_a_replay_needs_the_import_alone(ran, recipe, tmp_path):
    import_generations(recipe(), write(tmp_path / "g.jsonl", exported(ran)))
    assert told(run_recipe(recipe(model="/nowhere"), replay=True)) == told(ran)


def test_text_alone_is_turned_into_tokens_and_what_is_not_finished_is_read_on(ran, recipe, tmp_path):
    texts = ["abc=1", "=22", "é, 12 and more"]
    generations = [{"prompt": p, "text": t} for p in prompts(ran) for t in texts]
    generations[0] |= {"text": "abc", "finished": False}
    import_generations(recipe(), write(tmp_path / "g.jsonl", generations))
    folder = run_recipe(recipe())
    said = {r["id"]: r for r in lines(folder, "responses")}
    pools = [[said[n] for n, _ in r["pool"]] for r in lines(folder, "results") if r["strategy"] == "self_consistency"]
    assert [[r["text"] for r in pool] for pool in pools[1:]] == [texts] * 3
    assert pools[1][0]["n_tokens"] == len(tiny.tokenizer()("abc=1").input_ids) + 1
    assert pools[0][0]["text"].startswith("abc") and pools[0][0]["n_tokens"] > 1
    assert decoded(folder) == pools[0][0]["n_tokens"] - len(tiny.tokenizer()("abc").input_ids)


@pytest.mark.parametrize("logprobs", [[], [-1.0, -2.0, -3.0]])
def test_an_end_token_among_the_ids_is_the_end(ran, recipe, tmp_path, logprobs):
    ids = tiny.tokenizer()("=1", add_special_tokens=False).input_ids
    generations = [{"prompt": p, "text": "=1", "tokens": [*ids, 263], "logprobs": logprobs} for p in prompts(ran)]
    import_generations(recipe(), write(tmp_path / "g.jsonl", generations))
    folder = run_recipe(recipe(strategies=["self_consistency"], budgets=[1]))
    (response,) = lines(folder, "responses")[:1]
    assert (response["tokens"], response["n_tokens"], response["finish"]) == (ids, 3, "eos")
    assert (response["logprobs"], decoded(folder)) == (logprobs, 0)


def test_a_special_token_before_the_end_stays_where_log_probabilities_tell_the_end(ran, recipe, tmp_path):
    said = {"text": "=", "tokens": [*tiny.tokenizer()("=").input_ids, 261], "logprobs": [-1.0, -2.0, -3.0]}
    import_generations(recipe(), write(tmp_path / "g.jsonl", [said | {"prompt": p} for p in prompts(ran)]))
    folder = run_recipe(recipe(strategies=["self_consistency"], budgets=[1]), replay=True)
    assert lines(folder, "responses")[0]["tokens"] == said["tokens"]


def test_text_goes_on_after_its_prompt_where_a_tokenizer_marks_the_first_word(recipe, tmp_path):
    core = Tokenizer(models.WordLevel({chr(i): i for i in range(33, 127)} | {"▁": 32}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="first"), pre_tokenizers.Split("", "isolated")]
    )
    core.decoder = decoders.Metaspace(prepend_scheme="first")
    folder = tiny.save(tmp_path / "marking")
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="~").save_pretrained(folder)
    file = write(tmp_path / "g.jsonl", [{"prompt": "Who?", "text": "me"}, {"prompt": "Who?", "text": " I am"}])
    assert import_generations(recipe(model=str(folder)), file).kept == 2
    kept = Streams(recipe().output / "streams").paths.values()
    assert ["".join(map(chr, known.tokens)) for known in kept] == ["me", " I am"]


def test_places_drawn_before_keep_their_draws_and_strangers_are_counted(ran, recipe, tmp_path):
    generations = [*exported(ran), {"prompt": "Who?", "text": "me"}, {"prompt": "Who?", "text": "you"}]
    file = write(tmp_path / "g.jsonl", generations[3:])
    first = import_generations(recipe(), file)
    assert (first.lines, first.kept, first.strangers, first.bare) == (11, 11, ("Who?",), 1)
    again = import_generations(
        recipe(), write(file, [line | {"text": "x", "tokens": None, "logprobs": None} for line in generations])
    )
    assert (again.lines, again.kept) == (14, 3)
    run_recipe(recipe())
    others = [[line for line in told(folder) if line[1] != "sums_easy/0"] for folder in (recipe().output, ran)]
    assert len(others[0]) == 6 and others[0] == others[1]
    assert "1 prompts are no document's, the first: 'Who?'; 1 documents have no generation" in str(first)
    assert "3 of 14 generations kept as draws; 11 left out" in str(again)


def test_a_greedy_recipe_has_one_place_a_prompt(ran, recipe, tmp_path):
    generations = [{"prompt": p, "text": t} for p in prompts(ran) for t in ("=1", "=2")]
    greedy = recipe(strategies=["greedy"], sampling={"temperature": 0})
    assert import_generations(greedy, write(tmp_path / "g.jsonl", generations)).kept == 4
    assert {r["text"] for r in lines(run_recipe(greedy), "responses")} == {"=1"}
    assert decoded(greedy.output) == 0


GOOD = {"prompt": "Who?", "text": "=1"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not JSON"),
        ([1], "a mapping is expected, not list"),
        ({"text": "a"}, "'prompt' must be a text, not None"),
        (GOOD | {"text": 3}, "'text' must be a text, not 3"),
        (GOOD | {"tokens": ["a"]}, "'tokens' must be a list of token ids"),
        (GOOD | {"tokens": [28, 999]}, "token 999 is not in the model's vocabulary"),
        (GOOD | {"tokens": [28, 28]}, "the tokens say '==', not '=1'"),
        (GOOD | {"text": "a<|im_end|>b"}, "the tokens say 'ab'"),
        (GOOD | {"logprobs": [-1.0, 0.5, -1.0]}, "'logprobs' must be a list of finite numbers"),
        (GOOD | {"logprobs": [-1.0, -1.0]}, "2 log-probabilities for 3 tokens, the end token included"),
        (GOOD | {"logprobs": [-1.0], "finished": False}, "1 log-probabilities for 2 tokens; give all"),
        (GOOD | {"finished": "yes"}, "'finished' must be true or false"),
        (GOOD | {"text": "", "finished": False}, "says nothing"),
    ],
)
def test_a_line_that_is_not_valid_is_named_and_nothing_is_kept(recipe, tmp_path, line, words):
    file = tmp_path / "g.jsonl"
    file.write_text(f"{json.dumps(GOOD)}\n\n{line if isinstance(line, str) else json.dumps(line)}\n")
    with pytest.raises(ValueError, match=r"g\.jsonl:3: ") as caught:
        import_generations(recipe(), file)
    assert words in str(caught.value)
    assert not recipe().output.exists()


def test_the_command_says_what_it_kept(checkpoint, tmp_path, capsys):
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(say(checkpoint, tmp_path / "run")))
    command = ["import", str(file), str(write(tmp_path / "g.jsonl", [GOOD])), "--set", "limit=2"]
    assert main(command) == 0
    assert "1 of 1 generations kept as draws" in capsys.readouterr().out
    assert main([*command[:2], str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl" in capsys.readouterr().err
