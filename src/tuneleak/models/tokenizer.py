"""The embedded world's CLIPTokenizer: whole words of the vocabulary are one token, any other string falls back to bytes."""

import re

from tuneleak.data import vocabulary

START, END = "<|startoftext|>", "<|endoftext|>"


def byte_symbols():
    """The 256 printable stand-ins that byte-level BPE (GPT-2, CLIP) uses for the bytes."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return sorted({*map(chr, printable), *(chr(256 + number) for number in range(len(others)))})


def build(words=None, length=32):
    """A `CLIPTokenizer` of `length` tokens; end-of-text has the highest id, as CLIP's pooling expects.

    The merges are those byte-pair encoding learns on the word list until every word is a single token. CLIPTokenizer maps an unknown
    symbol to end-of-text, which would cut a prompt short; all 256 byte symbols, alone and at the end of a word, are therefore in the vocabulary.
    """
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    words = vocabulary.words() if words is None else words
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=100_000, min_frequency=1, end_of_word_suffix="</w>", show_progress=False, initial_alphabet=byte_symbols())
    learner.train_from_iterator(sorted(words), trainer)
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in json.loads(learner.to_str())["model"]["merges"]]
    symbols = byte_symbols()
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols)]
    tokens += sorted({"".join(pair) for pair in merges} - set(tokens))
    vocabulary_ids = {token: number for number, token in enumerate([*tokens, START, END])}
    return CLIPTokenizer(vocab=vocabulary_ids, merges=merges, bos_token=START, eos_token=END, pad_token=END, unk_token=END, model_max_length=length)


def whole_words(tokenizer):
    """The words of three letters or more that a CLIP tokenizer knows as single tokens, sorted; letters a to z only."""
    return sorted(token[:-4] for token in tokenizer.get_vocab() if re.fullmatch(r"[a-z]{3,}</w>", token))
