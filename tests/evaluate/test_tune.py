"""Searches: what is proposed and kept, and what is believed in the end."""

import json
import math

import numpy as np
import optuna
import pytest
import run_folder
from worlds import ANY, World, options, space, study, tried

from extratime.evaluate.grid import columns
from extratime.evaluate.named import RecipeError
from extratime.evaluate.tuning import holdout
from extratime.evaluate.tuning.holdout import Told
from extratime.evaluate.tuning.study import RUNGS, Outcome, Settings, best_of, counted, open_study, search
from extratime.evaluate.tuning.tune import PARTS, as_text, finish, run, tune

optuna.logging.set_verbosity(optuna.logging.WARNING)


def test_the_first_strategy_at_its_start_is_the_first_trial_and_nothing_is_run_twice():
    world = World(lambda o: 0.1 * o.get("x", 0), exact=True)
    trials = search(space(x={"choice": [1, 2, 3]}), Settings(trials=4, batch=2), study(), world)
    assert tried(trials)[0] == {} and {o.get("x") for o in tried(trials)} == {None, 1, 2, 3}
    run = [said for _, batch in world.calls for said in batch]
    assert len(run) == len(set(run)) == 4 and all(len(batch) <= 2 for _, batch in world.calls)
    assert options(best_of(trials).user_attrs["candidate"]) == {"x": 3}


def test_a_small_space_comes_to_an_end():
    world = World(lambda o: 0.5, exact=True)
    trials = search(space(x={"choice": [1]}), Settings(trials=5, batch=4), study(), world)
    assert len({json.dumps(o) for o in tried(trials)}) == 2 and len(trials) >= 20


def test_no_more_is_tried_than_was_asked_for():
    world = World(lambda o: 0.5, exact=True)
    search({"strategies": [{"other": {"x": ANY}}]}, Settings(trials=6, batch=4), study(), world)
    assert [len(batch) for _, batch in world.calls] == [4, 2]


def test_what_takes_more_tokens_than_the_first_is_no_candidate_and_ties_go_to_the_cheaper():
    world = World(lambda o: min(o.get("x", 1), 4) / 10, lambda o: {5: 8.0, 6: 11.0}.get(o.get("x"), 10.0), exact=True)
    trials = search(space(x={"choice": [4, 5, 6]}), Settings(trials=4, batch=4), study(), world)
    assert options(best_of(trials).user_attrs["candidate"]) == {"x": 5}
    assert options(best_of(trials, tokens=9.0).user_attrs["candidate"]) == {"x": 5}
    dear = next(trial for trial in trials if options(trial.user_attrs["candidate"]) == {"x": 6})
    assert dear.value == pytest.approx(0.4 - 0.1)
    assert best_of(trials, tokens=5.0) is trials[0]  # nothing is within them
    wide = search(space(x={"choice": [4, 5, 6]}), Settings(trials=4, batch=4, tokens=11.0), study(), world)
    assert all(trial.value == trial.user_attrs["accuracy"] for trial in wide)


def test_options_that_cannot_be_are_failures_not_zeros():
    def accuracy(said):
        if said.get("x") == 2:
            raise ValueError("x must be odd")
        return 0.5

    world, kept = World(accuracy, exact=True), study()
    trials = search(space(x={"choice": [1, 2, 3]}), Settings(trials=4, batch=4), kept, world)
    failed = [trial for trial in kept.trials if trial.state.name == "FAIL"]
    assert {trial.user_attrs["error"] for trial in failed} == {"x must be odd"}
    assert {o.get("x") for o in tried(trials)} == {None, 1, 3} and all(trial.value == 0.5 for trial in trials)
    assert counted(kept) == (3, 1)


def test_a_first_strategy_that_cannot_be_is_an_error():
    def accuracy(said):
        raise ValueError("no such thing")

    with pytest.raises(ValueError, match="the first strategy, which has to be beaten, cannot be run: no such thing"):
        search(space(), Settings(trials=1), study(), World(accuracy))


class Killed(BaseException):
    pass


def test_a_killed_search_goes_on_as_if_it_had_not_been(tmp_path):
    raw, settings = space(x={"uniform": [0, 1]}, y={"choice": ["a", "b"]}), Settings(trials=9, batch=3, seed=5)

    def chance(o):
        return 0.5 + 0.4 * o.get("x", 0) - 0.2 * (o.get("y") == "b")

    whole = search(raw, settings, open_study(tmp_path / "whole.jsonl", "s"), World(chance))

    def dies(candidates, part):
        if len(world.calls) == 1:
            raise Killed
        return world(candidates, part)

    world, file = World(chance), tmp_path / "killed.jsonl"
    with pytest.raises(Killed):
        search(raw, settings, open_study(file, "s"), dies)
    file.write_bytes(file.read_bytes() + b'{"op_code": 4, "torn')
    again = World(chance)
    trials = search(raw, settings, open_study(file, "s"), again)
    assert tried(trials) == tried(whole) and [t.value for t in trials] == [t.value for t in whole]
    run = [said for _, batch in (*world.calls, *again.calls) for said in batch]
    assert run == list(dict.fromkeys(json.dumps(o, sort_keys=True) for o in tried(whole)))  # nothing twice


def test_a_folder_with_another_search_is_refused(tmp_path):
    open_study(tmp_path / "study.jsonl", "one")
    with pytest.raises(RecipeError, match="holds the search of another recipe"):
        open_study(tmp_path / "study.jsonl", "two")


# --- what is believed


def test_a_winner_that_is_no_better_on_fresh_questions_is_not_taken(tmp_path):
    raw, world = space(x={"integer": [1, 30]}), World(lambda o: 0.7, questions=50)
    found = finish(raw, Settings(trials=30), study(), world, tmp_path)
    assert found.best.accuracy > 0.75 > 0.7  # the luck of the best of thirty
    assert not found.taken and set(found.holdout) == {"first"}
    assert [part for part, _ in world.calls[-2:]] == ["validation", "holdout"]
    assert "no significant difference, keep the first" in as_text(found)


@pytest.mark.parametrize(("fresh", "taken"), [(0.1, False), (0.52, False), (0.9, True)])
def test_only_what_is_better_by_more_than_chance_is_taken(fresh, taken, tmp_path):
    """Against 0.5 on a hundred questions: much worse, two questions better, and much better."""

    def world(candidates, part):
        levels = [(0.8 if part == "tuning" else fresh) if options(one) else 0.5 for one in candidates]
        return [Outcome((np.arange(100) < 100 * level).astype(float), np.ones(100)) for level in levels]

    found = finish(space(x={"choice": [1]}), Settings(trials=2), study(), world, tmp_path)
    assert found.gain.value == pytest.approx(fresh - 0.5) and found.taken is taken


def test_a_winner_that_is_better_is_taken_and_the_holdout_is_told_through_its_guard(tmp_path, monkeypatch):
    def world(candidates, part):
        levels = [options(one).get("x", 0.4) + 0.005 * (part == "holdout") for one in candidates]
        return [Outcome(np.full(200, level), np.ones(200)) for level in levels]

    monkeypatch.setattr(holdout, "suggested", lambda public, hidden: (0.1, 0.0))  # no chance in it
    raw = space(x={"choice": [0.2, 0.9]})
    found = finish(raw, Settings(trials=3), study(), world, tmp_path)
    assert found.taken and options(found.best.candidate) == {"x": 0.9} and found.gain.value == pytest.approx(0.5)
    assert found.holdout == {"first": Told(pytest.approx(0.4), False), "best": Told(pytest.approx(0.9), False)}
    said = as_text(found)
    assert found.left == 20 and "take the best" in said and "agree with the validation part" in said
    told = (tmp_path / "tuned.json").read_text() + (tmp_path / "holdout.json").read_text() + said
    assert "0.905" not in told and "0.405" not in told and "90.5" not in said


def test_a_holdout_that_disagrees_corrects_and_is_spent(tmp_path):
    def world(candidates, part):
        level = {"tuning": 0.9, "validation": 0.9, "holdout": 0.2}[part]
        return [Outcome(np.full(200, level), np.ones(200)) for _ in candidates]

    found = finish({"strategies": ["one"]}, Settings(trials=1, answers=1), study(), world, tmp_path)
    assert found.holdout["first"].corrected and found.holdout["first"].value == pytest.approx(0.2, abs=0.15)
    found = finish({"strategies": ["two"]}, Settings(trials=1, answers=1), study(), world, tmp_path)
    assert found.holdout["first"] == Told(None, False) and "its budget is spent" in as_text(found)


def test_few_hidden_documents_are_told_in_steps(tmp_path):
    def world(candidates, part):
        return [Outcome(np.full(100, options(one).get("x", 0.43)), np.ones(100)) for one in candidates]

    said = as_text(finish(space(x={"choice": [0.87]}), Settings(trials=2), study(), world, tmp_path))
    assert "holdout, first: 40.0 %, in steps of 10.0 points\nholdout, best: 90.0 %, in steps of 10.0 points" in said
    shared = Settings(trials=1, holdout=str(tmp_path / "holdout.json"))
    said = as_text(finish({"strategies": [{"other": {"x": 0.5}}]}, shared, study(), world, tmp_path / "again"))
    assert "holdout, first: no better than the 90.0 % told before, in steps of 10.0 points" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("p", "trials", "questions", "highest", "seeds", "most"),
    [(0.7, 30, 50, 0.827, 200, 0.1), (0.5, 50, 128, 0.599, 60, 0.15)],
)
def test_equals_keep_the_first(p, trials, questions, highest, seeds, most, tmp_path):
    """The best of thirty equals on 50 questions looks 13 points better than it is, and is not taken."""
    found = [
        finish(
            space(x=ANY), Settings(trials=trials, batch=trials, seed=1000 * seed), study(),
            World(lambda o: p, questions=questions, seed=seed), tmp_path / str(seed),
        )
        for seed in range(seeds)
    ]  # fmt: skip
    assert np.mean([one.best.accuracy for one in found]) == pytest.approx(highest, abs=0.01)
    assert np.mean([one.taken for one in found]) <= most
    gains = [one.gain.value for one in found if one.gain]
    assert np.mean(gains) == pytest.approx(0, abs=3 * np.sqrt(2 * p * (1 - p) / questions / len(gains)))


def peak(said):
    """Accuracy by τ: 0.65 at 0.2, 0.51 at 1, where it starts."""
    return 0.5 + 0.15 * math.exp(-((math.log10(said["tau"] / 0.2)) ** 2) / 0.18)


PEAK = {"strategies": [{"filter": {"tau": {"log_uniform": [0.05, 5.0], "default": 1.0}}}]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "questions", "fresh", "least"),
    [
        ({"trials": 50, "batch": 10}, 128, 128, 0.7),
        ({"trials": 27, "batch": 27, "halving": True}, 288, 256, 0.85),
    ],
    ids=["all on all", "halving"],
)
def test_a_planted_optimum_is_found_and_confirmed(settings, questions, fresh, least, tmp_path):
    """In most searches a τ is taken that is worth 0.60 or more (arXiv 2411.09238 in small)."""
    reached = []
    for seed in range(40):
        tuning, others = World(peak, questions=questions, seed=seed), World(peak, questions=fresh, seed=seed)

        def world(candidates, part, tuning=tuning, others=others):
            return (tuning if part.startswith("tuning") else others)(candidates, part)

        found = finish(PEAK, Settings(**settings, seed=100 * seed), study(), world, tmp_path / str(seed))
        reached.append(peak(options(found.best.candidate if found.taken else found.first.candidate)))
    assert np.mean([worth >= 0.6 for worth in reached]) >= least


# --- successive halving


def test_a_third_of_a_batch_goes_on_and_the_first_always():
    world = World(lambda o: 0.1 + o.get("x", 0) / 100, exact=True)
    kept, settings = study(), Settings(trials=10, batch=10, halving=True)
    trials = search(space(x={"choice": list(range(1, 10))}), settings, kept, world)
    runs = [(part, [json.loads(said).get("x", 0) for said in batch]) for part, batch in world.calls]
    assert [part for part, _ in runs[:3]] == ["tuning-9", "tuning-3", "tuning"]
    tried = set(runs[0][1]) - {0}
    best = sorted(tried, reverse=True)[: math.ceil(len(tried) / 3)]
    assert runs[1][1] == [0, *best] and runs[2][1] == [0, *best[: math.ceil(len(best) / 3)]]
    assert options(best_of(trials).user_attrs["candidate"]) == {"x": 9}
    stopped = [trial for trial in kept.trials if trial.state.name == "PRUNED"]
    assert {trial.user_attrs["part"] for trial in stopped} == {"tuning-9", "tuning-3"}
    assert all(trial.value == pytest.approx(trial.user_attrs["accuracy"]) for trial in stopped)


def test_stopped_candidates_count_as_tried_and_are_not_tried_again(tmp_path):
    world = World(lambda o: 0.1 + o.get("x", 0) / 100, exact=True)
    raw, settings = space(x={"choice": list(range(1, 10))}), Settings(trials=10, batch=4, halving=True)
    found = finish(raw, settings, study(), world, tmp_path)
    runs = [(part, said) for part, batch in world.calls for said in batch if part.startswith("tuning")]
    assert len(runs) == len(set(runs)) and len({said for _, said in runs}) == 10
    assert (found.trials, found.failed, options(found.best.candidate)) == (10, 0, {"x": 9})


def test_a_race_leaves_out_what_cannot_be_and_what_takes_too_many_tokens():
    def accuracy(said):
        if said.get("x") == 9:
            raise ValueError("no")
        return 0.1 + said.get("x", 0) / 100

    world = World(accuracy, lambda o: 40.0 if o.get("x", 0) > 5 else 10.0, exact=True)
    settings = Settings(trials=10, batch=10, halving=True)
    search(space(x={"choice": list(range(1, 10))}), settings, study(), world)
    race = [[json.loads(said).get("x", 0) for said in batch] for part, batch in world.calls if part != "tuning-9"]
    assert race[0][0] == race[1][0] == 0 and {*race[0], *race[1]} <= {0, 1, 2, 3, 4, 5} and len(race[0]) > 1
    with pytest.raises(ValueError, match="the first strategy, which has to be beaten"):
        search({"strategies": [{"other": {"x": 9}}]}, settings, study(), world)


# --- parts and runs


def test_parts_share_no_document_and_a_race_s_are_within_each_other():
    documents = {name: set(range(i, 720, n)) for name, (i, n) in PARTS.items()}
    whole = [documents[name] for name in ("tuning", "validation", "holdout")]
    assert sum(map(len, whole)) == len(set().union(*whole)) == 720
    assert documents["tuning-9"] < documents["tuning-3"] < documents["tuning"]
    assert [len(documents[name]) for name in RUNGS] == [40 * size for size in RUNGS.values()]


def candidate(strategy, temperature=1.0, **more):
    plain = {"model": "m", "tasks": ["t"], "budgets": [4], "sampling": {"temperature": temperature}}
    return {**plain, "strategies": [strategy], **more}


def test_candidates_that_share_all_but_their_strategy_run_together(tmp_path, monkeypatch):
    """Best of n is right on the even documents, others on the odd ones; draws take as many tokens as the document."""
    ran = []

    def fake(recipe, shard):
        ran.append(([spec.name for spec in recipe.strategies], recipe.sampling.temperature, shard, recipe.output.name))
        records = []
        for column in columns(recipe):
            for i in (2, 0, 1):
                right = None if column.spec.name == "dvts" else float(i % 2 == (column.spec.name != "best_of_n"))
                cost = run_folder.COST | {"generated": 10 * i + int(2 * recipe.sampling.temperature), "judged": 1}
                cost |= {"sequential": 1, "requests": 1}
                records.append(run_folder.result(f"t/{i}", column.key, right, cost=cost))
        run_folder.write(recipe.output, records)

    monkeypatch.setattr("extratime.evaluate.run.run_recipe", fake)
    asked = [
        candidate({"best_of_n": {"label": "mine"}}), candidate("self_consistency", 0.5), candidate("self_consistency"),
        candidate({"best_of_n": {"verify": "self_eval"}}), candidate({"dvts": {"width": 2}}, 0.5),
    ]  # fmt: skip
    outcomes = run(asked, "validation", tmp_path)
    assert sorted(ran, key=lambda one: one[1]) == [
        (["self_consistency", "dvts"], 0.5, (1, 4), "validation"),
        (["best_of_n", "self_consistency", "best_of_n"], 1.0, (1, 4), "validation"),
    ]
    assert [list(one.right) for one in outcomes] == [[1, 0, 1], [0, 1, 0], [0, 1, 0], [1, 0, 1], [0, 0, 0]]
    assert [list(one.tokens) for one in outcomes[:2]] == [[3, 13, 23], [2, 12, 22]]
    assert (tmp_path / "validation" / "results").exists()
    run(asked[:1], "holdout", tmp_path)
    assert not any((tmp_path / "holdout" / kind).exists() for kind in ("results", "responses"))
    with pytest.raises(RecipeError, match="a candidate is one strategy at one budget"):
        run([candidate("self_consistency", budgets=[1, 2])], "tuning", tmp_path)


# --- the command


def test_a_file_that_says_too_little_is_named(tmp_path):
    file = tmp_path / "t.yaml"
    for text, words in (
        ("strategies: [greedy]", "an output and a list of strategies"),
        ("strategies: [greedy]\noutput: o\ntune: {trails: 3}", "tune: .*trails"),
        ("strategies: [greedy]\noutput: o\ntune: {trials: 0}", "tune: trials, batch and answers"),
    ):
        file.write_text(text)
        with pytest.raises(RecipeError, match=words):
            tune(file)


def test_the_command_goes_on_with_its_own_study_and_refuses_another_recipe_s(tmp_path, monkeypatch):
    world = World(lambda o: o.get("x", 0) / 10, exact=True)
    monkeypatch.setattr("extratime.evaluate.tuning.tune.run", lambda candidates, part, folder: world(candidates, part))
    file = tmp_path / "t.yaml"
    other = "{best_of_n: {x: {choice: [1, 2, 3]}}}"
    file.write_text(f"strategies: [greedy, {other}]\noutput: {tmp_path / 'out'}\ntune: {{trials: 2, batch: 1}}")
    first = tune(file)
    assert first.trials == 2 and {f.name for f in (tmp_path / "out").iterdir()} >= {"study.jsonl", "tuned.json"}
    run_before = len(world.calls)
    assert tune(file).best == first.best
    assert {part for part, _ in world.calls[run_before:]} == {"validation", "holdout"}
    assert options(tune(file, ["tune.trials=4"]).best.candidate) == {"x": 3}
    with pytest.raises(RecipeError, match="the search of another recipe"):
        tune(file, ["tune.seed=1"])
