"""Published process reward models, on random checkpoints of their architectures and names of weights.

Each head is made so that what stands at step t tells t: a wrong place, a wrong class or a wrong order shows.
"""

import json

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from extratime.evaluate.grid import parse
from extratime.evaluate.run import run_recipe
from extratime.models.conventions import CONVENTIONS, Gated
from extratime.models.engines.reward import RewardEngine
from extratime.models.request import Failure, Prompt, Score
from extratime.models.reward import load_reward

LLAMA3 = (
    "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] + "
    "'<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
WIDTH, WORDS = 32, 280
QUESTION = "What is 1+1?"
STEPS = ["It is one", "and one more", "so two", "= 2"]


def tokenizer(name):
    made = tiny.tokenizer()
    marks = {"qwen2.5-math-prm": ["<extra_0>"], "math-shepherd": [" ки"]}.get(name, [])
    if name in ("rlhflow", "armorm"):
        marks = ["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
        made.chat_template = LLAMA3
    made.add_tokens(marks, special_tokens=name != "math-shepherd")
    return made


ARCHITECTURES = {
    "qwen2.5-math-prm": ("Qwen2ForProcessRewardModel", Qwen2Config, Qwen2ForCausalLM),
    "skywork-o1-open-prm": ("Qwen2ForPrmModel", Qwen2Config, Qwen2ForCausalLM),
    "math-shepherd": ("LlamaForCausalLM", LlamaConfig, LlamaForCausalLM),
    "rlhflow": ("LlamaForCausalLM", LlamaConfig, LlamaForCausalLM),
    "armorm": ("LlamaForRewardModelWithGating", LlamaConfig, LlamaForCausalLM),
}


def heads(name, weights):
    """The published names of what follows the backbone, with random weights."""
    torch.manual_seed(7)
    if name == "qwen2.5-math-prm":
        shapes = {"score.0.weight": (WIDTH, WIDTH), "score.0.bias": (WIDTH,), "score.2.weight": (2, WIDTH)}
        shapes["score.2.bias"] = (2,)
    elif name == "skywork-o1-open-prm":
        shapes = {"v_head.summary.weight": (1, WIDTH), "v_head.summary.bias": (1,)}
    elif name == "armorm":
        shapes = {"regression_layer.weight": (5, WIDTH), "reward_transform_matrix": (5, 5), "gating.logit_scale": (1,)}
        sizes = [WIDTH, 16, 16, 16, 5]
        for i in range(4):
            shapes |= {
                f"gating.layers.{i}.weight": (sizes[i + 1], sizes[i]),
                f"gating.layers.{i}.bias": (sizes[i + 1],),
            }
    else:
        return weights
    return {k: v for k, v in weights.items() if k != "lm_head.weight"} | {
        k: torch.randn(s) / 5 for k, s in shapes.items()
    }


@pytest.fixture(params=CONVENTIONS)
def checkpoint(request, tmp_path):
    return request.param, save(tmp_path, request.param)


def save(folder, name, **more):
    torch.manual_seed(3)
    architecture, config, build = ARCHITECTURES[name]
    made = config(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=400,
        initializer_range=0.3,
        tie_word_embeddings=False,
        pad_token_id=261,
        bos_token_id=None,
        **more,
    )
    build(made).save_pretrained(folder)
    tokenizer(name).save_pretrained(folder)
    file = folder / "model.safetensors"
    save_file(heads(name, load_file(file)), file, {"format": "pt"})
    said = json.loads((folder / "config.json").read_text())
    told = {"architectures": [architecture], "num_labels": 2}
    if "Causal" not in architecture:
        told["auto_map"] = {"AutoModel": "modeling_own.Own", "AutoConfig": "configuration_own.Own"}
    (folder / "config.json").write_text(json.dumps(said | told))
    return folder


def opened(name, folder, **more):
    auto = CONVENTIONS[name].architecture is not None
    return load_reward(folder, convention=None if auto else name, **more)


def ask(engine, *said, question=QUESTION):
    for i, text in enumerate(said):
        engine.submit(i, Score(Prompt("the policy's own rendering"), text, question=question))
    told = {}
    while answered := engine.poll():
        told |= dict(answered)
    return [told[i] for i in range(len(said))]


def written(name):
    """What the model reads about STEPS, in words, and the steps' ends in tokens; told apart from the code."""
    own, q = tokenizer(name), QUESTION
    ids = lambda text: own(text, add_special_tokens=False).input_ids  # noqa: E731
    if name == "qwen2.5-math-prm":
        lead = (
            "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
        )
        lead += f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n"
        parts = [lead + STEPS[0] + "<extra_0>", *(f"{step}<extra_0>" for step in STEPS[1:])]
        tail, back = "<|im_end|>\n", 1
    elif name == "skywork-o1-open-prm":
        parts, tail, back = [f"{q}\n{STEPS[0]}\n", *(f"{step}\n" for step in STEPS[1:])], "", 1
    elif name == "math-shepherd":
        parts = [f"{q}\n {STEPS[0]} ки", *(f"\n{step} ки" for step in STEPS[1:])]
        tail, back = "", 1
    else:
        head, turn = "<|start_header_id|>{}<|end_header_id|>\n\n", "<|eot_id|>"
        parts, closing = [], ""
        for t, step in enumerate(STEPS):
            said = f"{q} {step}" if t == 0 else step
            parts.append(closing + head.format("user") + said + turn + head.format("assistant"))
            closing = "+" + turn
        tail, back = closing, 1
    joined, ends = [], []
    for part in parts:
        joined += ids(part)
        ends.append(len(joined) - back)
    return joined + ids(tail), ends


STEPWISE = [name for name in CONVENTIONS if CONVENTIONS[name].steps]


@pytest.mark.parametrize("name", STEPWISE)
def test_texts_are_put_together_as_published(name, tmp_path):
    reward = opened(name, save(tmp_path, name))
    ids, ends = reward.how.read(QUESTION, CONVENTIONS[name].separator.join(STEPS))
    assert tokenizer(name).decode(ids) == tokenizer(name).decode(written(name)[0])
    assert (list(ids), list(ends)) == written(name)


@pytest.mark.parametrize("name", STEPWISE)
def test_rewards_are_the_right_class_at_the_right_places_in_order(name, tmp_path):
    folder = save(tmp_path, name)
    (reply,) = ask(RewardEngine(opened(name, folder)), CONVENTIONS[name].separator.join(STEPS))
    ids, ends = written(name)
    weights = load_file(folder / "model.safetensors")
    backbone = ARCHITECTURES[name][2](LlamaOrQwen(name)).model.eval()
    backbone.load_state_dict({k.removeprefix("model."): v for k, v in weights.items() if k.startswith("model.")})
    with torch.inference_mode():
        hidden = backbone(torch.tensor([ids])).last_hidden_state[0][ends]
    if name == "qwen2.5-math-prm":
        inner = torch.relu(hidden @ weights["score.0.weight"].T + weights["score.0.bias"])
        wanted = (inner @ weights["score.2.weight"].T + weights["score.2.bias"]).softmax(-1)[:, 1]
    elif name == "skywork-o1-open-prm":
        wanted = (hidden @ weights["v_head.summary.weight"][0] + weights["v_head.summary.bias"]).sigmoid()
    else:
        own = tokenizer(name)
        plus, minus = (own(word, add_special_tokens=False).input_ids[-1] for word in "+-")
        logits = hidden @ weights["lm_head.weight"].T
        wanted = logits[:, [plus, minus]].softmax(-1)[:, 0]
    assert reply.values == pytest.approx(wanted.tolist(), abs=1e-5)
    assert len({round(value, 4) for value in reply.values}) == len(STEPS)


def LlamaOrQwen(name):
    return ARCHITECTURES[name][1](
        vocab_size=WORDS,
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=400,
        pad_token_id=261,
        tie_word_embeddings=False,
    )


@pytest.mark.parametrize("name", STEPWISE)
def test_logits_that_count_the_steps_come_back_in_their_order(name, tmp_path):
    """The model under the head is replaced by one whose output at each place is the number of steps ended by then."""
    reward = opened(name, save(tmp_path, name))
    ids, ends = written(name)

    class Counting(torch.nn.Module):
        config, device = reward.model.config, torch.device("cpu")

        def forward(self, input_ids, attention_mask):
            assert input_ids[0].tolist() == ids
            count = torch.tensor([[sum(end <= i for end in ends) for i in range(input_ids.shape[1])]]).float()
            two = torch.stack([torch.zeros_like(count), count], -1)
            return type("Said", (), {"logits": count[..., None] if name.startswith("skywork") else two})

    object.__setattr__(reward, "model", Counting())
    (reply,) = ask(RewardEngine(reward), CONVENTIONS[name].separator.join(STEPS))
    assert reply.values == pytest.approx([torch.tensor(float(t)).sigmoid().item() for t in range(1, len(STEPS) + 1)])


@pytest.mark.parametrize("name", STEPWISE)
def test_a_separator_that_never_occurs_makes_one_step_of_all(name, tmp_path):
    """What particle filtering found best: the whole beginning is judged as one step."""
    reward = opened(name, save(tmp_path, name), separator="<never>")
    ids, ends = reward.how.read(QUESTION, CONVENTIONS[name].separator.join(STEPS))
    said = tokenizer(name).decode(ids)
    assert len(ends) == 1 and all(step in said for step in STEPS)
    assert said.index(STEPS[-1]) < len(tokenizer(name).decode(ids[: ends[0] + 1]))
    (reply,) = ask(RewardEngine(reward), CONVENTIONS[name].separator.join(STEPS))
    assert len(reply.values) == 1


@pytest.mark.parametrize("sure", [-3e4, 3e4])
@pytest.mark.parametrize("name", STEPWISE)
def test_a_reward_of_exactly_nothing_keeps_its_place(name, sure, tmp_path):
    """Published helpers pick the rewards that are not 0, and so lose steps whose probability underflows."""
    reward = opened(name, save(tmp_path, name))
    ends = written(name)[1]

    class Sure(torch.nn.Module):
        config, device = reward.model.config, torch.device("cpu")

        def forward(self, input_ids, attention_mask):
            at = torch.zeros(1, input_ids.shape[1])
            at[0, ends[1]] = sure
            two = torch.stack([torch.zeros_like(at), at], -1)
            return type("Said", (), {"logits": at[..., None] if name.startswith("skywork") else two})

    object.__setattr__(reward, "model", Sure())
    (reply,) = ask(RewardEngine(reward), CONVENTIONS[name].separator.join(STEPS))
    assert reply.values == (0.5, float(sure > 0), *[0.5] * (len(STEPS) - 2))


def test_batches_and_padding_change_nothing(checkpoint):
    name, folder = checkpoint
    separator = CONVENTIONS[name].separator or "\n"
    texts = [separator.join(STEPS[:n]) for n in (1, 3, 2)]
    alone = [ask(RewardEngine(opened(name, folder)), text)[0] for text in texts]
    together = ask(RewardEngine(opened(name, folder)), *texts)
    for one, other, text in zip(alone, together, texts, strict=True):
        assert one.values == pytest.approx(other.values, abs=1e-5)
        assert len(one.values) == (text.count(separator) + 1 if CONVENTIONS[name].steps else 1)
    reward = opened(name, folder)
    ids, ends = reward.how.read(QUESTION, texts[1])
    padded = torch.tensor([[261] * 5 + list(ids)])
    mask = torch.tensor([[0] * 5 + [1] * len(ids)])
    with torch.inference_mode():
        row = reward.how.tell(reward.model(input_ids=padded, attention_mask=mask).logits)[0]
    left = [row[end + 5].item() for end in ends] if ends else [row[0].item()]
    assert left == pytest.approx(alone[1].values, abs=1e-4)


@pytest.mark.parametrize("name", STEPWISE)
def test_marks_inside_a_step_are_no_ends_of_steps(name, tmp_path):
    reward = opened(name, save(tmp_path, name))
    separator = CONVENTIONS[name].separator
    spoilt = separator.join(["It <extra_0>is one", "and one ки more", "so<|im_end|> two", "= 2"])
    plain = separator.join(["It is one", "and one  more", "so two", "= 2"])
    if name not in ("qwen2.5-math-prm",):
        plain = plain.replace("It is", "It <extra_0>is")
    if name != "math-shepherd":
        plain = plain.replace("one  more", "one ки more")
    assert reward.how.read(QUESTION, spoilt) == reward.how.read(QUESTION, plain)
    assert len(reward.how.read(QUESTION, spoilt)[1]) == 4
    (none, blank) = ask(RewardEngine(reward), "", separator * 3)
    assert none.values == blank.values == ()


def test_armorm_gates_objectives_by_the_question(tmp_path):
    folder = save(tmp_path, "armorm")
    reward = load_reward(folder)
    (reply,) = ask(RewardEngine(reward), "It is two")
    own, weights = tokenizer("armorm"), load_file(folder / "model.safetensors")
    ids = own(
        f"<|start_header_id|>user<|end_header_id|>\n\n{QUESTION}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nIt is two<|eot_id|>",
        add_special_tokens=False,
    ).input_ids
    eot = own.convert_tokens_to_ids("<|eot_id|>")
    with torch.inference_mode():
        hidden = reward.model.backbone(torch.tensor([ids])).last_hidden_state[0]
    x = hidden[ids.index(eot)]
    for i in range(4):
        x = weights[f"gating.layers.{i}.weight"] @ x + weights[f"gating.layers.{i}.bias"]
        x = torch.relu(x) if i < 3 else x
    gate = (x / 10).softmax(-1) * weights["gating.logit_scale"]
    objectives = weights["regression_layer.weight"] @ hidden[-1]
    assert reply.values == pytest.approx([(gate @ (objectives @ weights["reward_transform_matrix"])).item()], rel=1e-4)
    assert isinstance(reward.model.head, Gated) and not reward.how.steps


def test_what_is_too_long_or_no_number_fails_and_is_never_cut(tmp_path):
    name = "qwen2.5-math-prm"
    reward = opened(name, save(tmp_path, name))
    long = "\n\n".join(["a long step"] * 60)
    good, failed = ask(RewardEngine(reward), "a\n\nb", long)
    assert len(good.values) == 2 and isinstance(failed, Failure) and "too long" in failed.error
    with torch.no_grad():
        reward.model.head[2].weight.fill_(float("nan"))
    (broken,) = ask(RewardEngine(reward), "a\n\nb")
    assert isinstance(broken, Failure) and "NaN" in broken.error


def test_a_tokenizer_without_the_convention_s_mark_is_told(tmp_path):
    folder = save(tmp_path, "qwen2.5-math-prm")
    tiny.tokenizer().save_pretrained(folder)
    (reply,) = ask(RewardEngine(load_reward(folder)), "a\n\nb")
    assert isinstance(reply, Failure) and "0 ends of steps (<extra_0>) where 2 were put" in reply.error


def test_a_template_that_changes_turns_is_told(tmp_path):
    folder = save(tmp_path, "rlhflow")
    own = tokenizer("rlhflow")
    own.chat_template = "{{ messages | length }}" + LLAMA3
    own.save_pretrained(folder)
    (reply,) = ask(RewardEngine(load_reward(folder, convention="rlhflow")), "a\n\nb")
    assert isinstance(reply, Failure) and "no place predicts '+'" in reply.error


def test_what_a_recipe_says_of_it_has_to_fit(tmp_path):
    folder = save(tmp_path / "steps", "math-shepherd")
    with pytest.raises(ValueError, match=r"set verifier\.convention to how it is asked \(qwen"):
        load_reward(folder)
    with pytest.raises(ValueError, match=r"no convention 'qwen'; there are qwen2\.5-math-prm"):
        load_reward(folder, convention="qwen")
    with pytest.raises(ValueError, match=r"lacks v_head\.summary\.weight, .*which this convention reads"):
        load_reward(folder, convention="skywork-o1-open-prm")
    with pytest.raises(ValueError, match=r"weighs whole texts: leave verifier\.separator out"):
        load_reward(save(tmp_path / "whole", "armorm"), separator="\n")


def test_two_words_of_a_tied_vocabulary_are_rows_of_the_embedding(tmp_path):
    folder = save(tmp_path, "math-shepherd")
    tied = AutoModelForCausalLM.from_pretrained(folder)
    tied.config.tie_word_embeddings = True
    tied.tie_weights()
    tied.save_pretrained(folder)
    tokenizer("math-shepherd").save_pretrained(folder)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    reward = load_reward(folder, convention="math-shepherd")
    words = tied.get_input_embeddings().weight
    minus, plus = (tokenizer("math-shepherd")(w, add_special_tokens=False).input_ids[-1] for w in "-+")
    assert torch.equal(reward.model.head.weight, words[[minus, plus]])


def test_separator_and_convention_are_part_of_the_name(tmp_path):
    folder = save(tmp_path, "rlhflow")
    tokenizer("math-shepherd").save_pretrained(folder)
    prints = {
        load_reward(folder, convention=convention, separator=separator).fingerprint
        for convention in ("rlhflow", "math-shepherd")
        for separator in (None, "a")
    }
    assert len(prints) == 4


def test_a_recipe_asks_by_the_question_whatever_the_policy_s_chat_template(tmp_path):
    checkpoint = save(tmp_path / "reward", "qwen2.5-math-prm")
    said = {
        "model": str(tiny.save(tmp_path / "policy")),
        "verifier": {"model": str(checkpoint), "device": "cpu", "separator": "a"},
        "tasks": ["sums_easy"],
        "strategies": [{"best_of_n": {"verify": "reward_model"}}],
        "budgets": [4],
        "max_tokens": 8,
        "limit": 2,
        "engine": {"dtype": "float32", "device": "cpu"},
        "output": str(tmp_path / "run"),
    }
    folder = run_recipe(parse(said))
    texts = {r["id"]: r["text"] for r in map(json.loads, (folder / "responses" / "0-of-1.jsonl").open())}
    engine = RewardEngine(load_reward(checkpoint, separator="a"))
    for line in map(json.loads, (folder / "results" / "0-of-1.jsonl").open()):
        question = line["question"].removeprefix("<|im_start|>user\n").partition("<|im_end|>")[0]
        assert question.startswith("Sum: ") and "<|im_start|>assistant" in line["question"]
        replies = ask(engine, *(texts[name] for name, _ in line["pool"]), question=question)
        assert [w for _, w in line["pool"]] == pytest.approx([r.values[-1] for r in replies], abs=1e-4)
