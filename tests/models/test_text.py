import random

import pytest
from tiny import tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from extratime.models.engines.text import Text, decoder, encoder

TOKENIZER = tokenizer()


def ids_of(text, made=TOKENIZER):
    return tuple(made(text, add_special_tokens=False).input_ids)


def grow(ids, made=TOKENIZER, left=()):
    """Lengths of the stable text after each token, and the text."""
    text = Text(decoder(made), left)
    lengths = []
    for token in ids:
        text.push(token)
        lengths.append(len(text.value))
    return lengths, text.value


def metaspace():
    """Like Llama 2's: words begin with ▁, and the decoder drops the first one; `<s>` leads and `</s>` may follow."""
    words = {"<s>": 0, "</s>": 1, "▁a": 2, "▁b": 3, "c": 4, "<unk>": 5, "▁": 6, "a": 7, "b": 8}
    core = Tokenizer(models.BPE(vocab=words, merges=[("▁", "a"), ("▁", "b")], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    core.add_special_tokens(["<s>", "</s>"])
    core.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("text", ["plain", "abc12\n\n  x", "é", "日本", "a🙂b", "👩‍👩‍👧 ok", "ü\n\nü"])
def test_text_grows_to_what_it_is(text):
    lengths, value = grow(ids_of(text))
    assert value == text
    assert lengths == sorted(lengths)


def test_half_a_character_is_held_back():
    ids = ids_of("a🙂b")
    assert len(ids) == 6
    assert grow(ids)[0] == [1, 1, 1, 1, 2, 3]


def test_a_character_that_stays_broken_is_shown_as_such():
    assert grow((*ids_of("é")[:1], *ids_of("xyzw"))) == ([0, 2, 3, 4, 5], "\N{REPLACEMENT CHARACTER}xyzw")


def test_any_bytes_read_one_by_one_say_what_they_say_together():
    rng = random.Random(0)
    for _ in range(300):
        ids = [rng.randrange(256) for _ in range(rng.randrange(1, 40))]
        assert TOKENIZER.decode(ids).removesuffix("\N{REPLACEMENT CHARACTER}") == grow(ids)[1]


def test_special_tokens_are_silent():
    assert grow(ids_of("a<|im_end|>b"))[1] == "ab"


def test_a_left_neighbour_decides_on_the_space():
    made = metaspace()
    ids = ids_of("a b", made)
    assert grow(ids, made) == ([1, 3], "a b")
    assert grow(ids[1:], made)[1] == "b"
    assert grow(ids[1:], made, left=ids[:1])[1] == " b"


def test_a_character_begun_in_the_prompt_is_finished_in_the_path():
    ids = ids_of("é")
    assert grow(ids[1:], left=ids[:1])[1] == "é"


def test_reading_on_tells_the_same_text():
    rng = random.Random(1)
    for ids in (ids_of("x🙂é\n\n12 日"), tuple(rng.randrange(256) for _ in range(40))):
        whole, value = grow(ids)
        for cut in range(len(ids)):
            text = Text(decoder(TOKENIZER), known=ids[:cut])
            assert len(text.value) == (whole[cut - 1] if cut else 0)
            for token in ids[cut:]:
                text.push(token)
            assert text.value == value


@pytest.mark.parametrize(
    ("value", "stops", "old", "found"),
    [
        ("ab\n", ("\n",), 2, True),
        ("ab\nc", ("\n",), 3, False),
        ("ab\n\nc", ("\n\n",), 3, True),
        ("ab\n\nc", ("\n\n",), 4, False),
        ("abc", ("x", "bc"), 0, True),
        ("aSTOPb", ("STOP",), 4, True),
        ("abc", (), 0, False),
    ],
)
def test_only_stops_that_end_in_new_text_count(value, stops, old, found):
    text = Text(decoder(TOKENIZER))
    text.value = value
    assert text.ends_with_new(stops, old) is found


def test_a_prompt_gets_what_leads_once_and_nothing_behind():
    encode = encoder(metaspace())
    assert encode("a b").ids == (0, 2, 3)
    assert encode("<s>a b").ids[0] == 0
    assert encode("<s>a b").ids.count(0) == 1
    assert encode("").ids == (0,)
    assert encode("a b").text == "a b"


def test_a_prompt_of_a_tokenizer_without_leading_token_is_its_text():
    assert encoder(TOKENIZER)("<|im_start|>abc").ids == (262, *ids_of("abc"))
    assert encoder(TOKENIZER)("").ids == ()
