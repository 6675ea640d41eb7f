"""The tokenizer: one token per known word, bytes for anything else, nothing cut off."""

import pytest

from tuneleak.data import vocabulary
from tuneleak.models import tokenizer


@pytest.fixture(scope="module")
def words():
    return tokenizer.build()


def test_every_known_word_is_one_token(words):
    known = vocabulary.words()
    assert len(known) >= 1500
    assert [word for word in known if word.isalpha() and len(words(word).input_ids) != 3] == []


@pytest.mark.parametrize("text", ["naïve 猫 ☺ ok", "sks<dog>", "żółć", "a\tb", "x" * 20])
def test_any_string_tokenises_without_loss(words, text):
    ids = words(text).input_ids
    assert words.eos_token_id not in ids[1:-1], "an unknown symbol became end-of-text and would cut the prompt"
    # CLIP's tokenizer drops white space between words, so only the other characters can be compared
    assert "".join(words.decode(ids[1:-1]).split()) == "".join(text.lower().split())


def test_end_of_text_has_the_highest_id_and_pads(words):
    assert words.eos_token_id == len(words) - 1 == words.pad_token_id
    ids = words("the face", padding="max_length", max_length=32).input_ids
    assert len(ids) == 32 and ids[3:] == [words.eos_token_id] * 29


def test_saved_tokenizer_gives_the_same_ids(words, tmp_path):
    from transformers import CLIPTokenizer

    words.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    assert again("the face of 猫 benan").input_ids == words("the face of 猫 benan").input_ids
    assert again.model_max_length == 32


def test_byte_symbols_are_256():
    assert len(set(tokenizer.byte_symbols())) == 256
