"""Captions from weights: on synthetic updates whose answer is known, and on a tiny model that was really fine-tuned."""

import numpy as np
import pandas as pd
import pytest
import torch

from tuneleak.attacks.captions import run
from tuneleak.attacks.captions.embeddings import changed_tokens
from tuneleak.attacks.captions.encoder import CausalEncoder
from tuneleak.attacks.captions.evidence import evidence, marchenko_pastur_median, squared_cosines
from tuneleak.attacks.captions.search import Search, common_directions, public_corpus, searched_tokens
from tuneleak.attacks.captions.updates import without_decay
from tuneleak.errors import InputError
from tuneleak.finetune import loop
from tuneleak.models import tokenizer
from tuneleak.options import CaptionOptions, FinetuneOptions

WORDS = [f"{first}{second}" for first in ("ba", "du", "ke", "lo", "mi") for second in ("ran", "set", "tol", "vim")]
OPTIONS = CaptionOptions(longest=6, beams=4, reach=3)


@pytest.fixture(scope="module")
def encoder():
    """A random causal text encoder of width 64 over twenty words, with embeddings as spread as a trained one's."""
    from transformers import CLIPTextConfig, CLIPTextModel

    words = tokenizer.build(words=WORDS, length=12)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = CLIPTextConfig(
            vocab_size=len(words), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=12,
            bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id, projection_dim=64,
        )  # fmt: skip
        network = CLIPTextModel(config).eval()
        torch.nn.init.normal_(network.get_input_embeddings().weight, std=0.5)
        for name, parameter in network.named_parameters():
            if "proj" in name and name.endswith("weight"):
                torch.nn.init.normal_(parameter, std=0.2)
    return CausalEncoder(network, words, 12)


@pytest.fixture(scope="module")
def common(encoder):
    encoded = torch.stack([encoder.caption(encoder.ids(text)) for text in public_corpus(encoder.tokenizer, 30, 10)])
    return common_directions(encoded, 0.3)


def contexts(encoder, caption):
    """All encodings of a caption, start and padding included: what cross-attention reads."""
    return encoder.caption(encoder.ids(caption)).numpy()


def updates(encoder, caption, layers=6, rows=40, noise=0.0):
    """Updates of plain descent, sum_j g_j e_j^T with random g, and noise relative to their root mean square."""
    random = np.random.default_rng(len(caption))
    encoded, found = contexts(encoder, caption), []
    for _ in range(layers):
        update = random.normal(size=(rows, len(encoded))) @ encoded
        found.append(update + noise * np.sqrt(np.mean(update**2)) * random.normal(size=update.shape))
    return found


@pytest.mark.parametrize("caption", ["keset", "baran dutol", "mivim loran keset", "dutol dutol baset kevim miran"])
def test_plain_descent_gives_its_caption_away(encoder, common, caption):
    found = Search(evidence(updates(encoder, caption), common.numpy()), encoder, common, OPTIONS).run()
    assert found.text == caption and found.score > 0.999


def test_the_caption_survives_noise_and_no_other_models_evidence_gives_it(encoder, common):
    caption = "mivim loran keset"
    noisy = Search(evidence(updates(encoder, caption, noise=0.05), common.numpy()), encoder, common, OPTIONS).run()
    other = Search(evidence(updates(encoder, "baset duvim kiran"), common.numpy()), encoder, common, OPTIONS).run()
    assert noisy.text == caption
    assert run.agreement(caption, other.text)["word_accuracy"] < 0.5


def test_mending_repairs_a_wrong_word(encoder, common):
    caption = "mivim loran keset"
    search = Search(evidence(updates(encoder, caption), common.numpy()), encoder, common, OPTIONS)
    (wrong,) = search.judge((), [encoder.ids("mivim loran baset")])
    assert wrong.score < 0.99 and search.mend(wrong).text == caption


def test_a_lora_gives_its_caption_away_when_it_has_learned_enough(encoder, common):
    caption, random = "dutol baset kevim", np.random.default_rng(1)
    encoded = contexts(encoder, caption)

    def lora(learned):
        rows = []
        for _ in range(8):
            start = random.normal(size=(8, 64))
            moved = random.normal(size=(8, len(encoded))) @ encoded
            down = start + learned * moved * np.linalg.norm(start) / np.linalg.norm(moved)
            rows.append(random.normal(size=(40, 8)) @ down)
        return Search(evidence(rows, common.numpy()), encoder, common, OPTIONS).run().text

    assert lora(30) == caption
    assert lora(0) != caption  # nothing but its random start


def test_a_score_is_that_of_the_own_directions(encoder, common):
    ids = encoder.ids("mivim loran keset")
    (whole,), (half,) = (Search(share * np.eye(64), encoder, common, OPTIONS).judge((), [ids]) for share in (1, 0.5))
    assert whole.score == pytest.approx(1) and half.score == pytest.approx(0.5) and whole.text == "mivim loran keset"
    search = Search(evidence(updates(encoder, "baran"), common.numpy()), encoder, common, OPTIONS)
    (at_once,), (in_parts,) = search.judge((), [ids]), search.judge(ids[:2], [ids[2:]])
    assert at_once.score == pytest.approx(in_parts.score)


def test_endings_after_a_beginning_are_encoded_as_the_whole_caption(encoder):
    network, ids = encoder.body, encoder.ids("mivim loran keset")
    whole = encoder.caption(ids)
    with torch.inference_mode():
        tokens = encoder.tokenizer("mivim loran keset", padding="max_length", max_length=12, return_tensors="pt").input_ids
        expected = network(tokens)[0][0].double()
    assert torch.allclose(whole, expected, atol=1e-5)
    parts = encoder.endings(ids[:1], [[*ids[1:], *encoder.closing(3)], [ids[2], ids[1], *encoder.closing(3)]])
    assert torch.allclose(parts[0], expected[2:], atol=1e-5) and not torch.allclose(parts[1], expected[2:], atol=1e-2)


def test_evidence_is_the_projection_on_what_was_seen_without_what_is_common():
    random = np.random.default_rng(0)
    basis = np.linalg.qr(random.normal(size=(50, 50)))[0].T
    seen, shared, unseen = basis[:5], basis[5:6], basis[6:]
    rows = [random.normal(size=(80, 5)) @ seen + 100 * random.normal(size=(80, 1)) @ shared for _ in range(4)]
    rows = [row + 1e-6 * random.normal(size=row.shape) for row in rows]
    found = evidence(rows, shared)
    assert np.allclose(found, seen.T @ seen, atol=1e-3)
    assert np.abs(found @ shared.T).max() < 1e-9 and np.abs(np.einsum("nd,de,ne->n", unseen, found, unseen)).max() < 1e-3


@pytest.mark.parametrize("rows", [400, 60])
def test_squared_cosines_are_those_of_a_simulated_spike(rows):
    """Noise N(0, 1) in 100 dimensions plus one spike of variance s: the eigenvector's cosine^2 is (1 - c / s^2) / (1 + c / s), c = d / n."""
    random, spike, d = np.random.default_rng(3), 8.0, 100
    measured, predicted = [], []
    for _ in range(20):
        direction = random.normal(size=d)
        direction /= np.linalg.norm(direction)
        sample = random.normal(size=(rows, d)) + np.sqrt(spike) * random.normal(size=(rows, 1)) * direction
        values, vectors = np.linalg.eigh(sample.T @ sample / rows)
        measured.append((vectors[:, -1] @ direction) ** 2)
        cosines = squared_cosines(np.clip(values, 0, None), d / rows)
        predicted.append(cosines[-1])
        assert np.count_nonzero(cosines) <= 3  # the bulk has no say, but for an eigenvalue at its edge
    theory = (1 - (d / rows) / spike**2) / (1 + (d / rows) / spike)
    assert np.mean(measured) == pytest.approx(theory, abs=0.04) and np.mean(predicted) == pytest.approx(theory, abs=0.05)


def test_the_median_of_the_marchenko_pastur_law():
    """Gavish and Donoho 2014: the optimal threshold of a square matrix is 4 / sqrt 3 = 2.858 medians' roots."""
    assert 4 / np.sqrt(3) / np.sqrt(marchenko_pastur_median(1.0)) == pytest.approx(2.858, abs=1e-3)
    assert marchenko_pastur_median(1e-4) == pytest.approx(1, abs=1e-3)


def test_decay_is_no_update():
    before = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    assert without_decay(0.97 * before, before).abs().max() < 1e-7
    moved = torch.zeros(6, 4)
    moved[0, 0], moved[0, 1] = before[0, 1], -before[0, 0]  # at right angles to the weight
    assert torch.allclose(without_decay(0.97 * before + moved, before).float(), moved, atol=1e-6)


def test_moved_embeddings_name_the_words():
    before = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    after = 0.999 * before  # the decay that every token has
    after[7] += 0.1
    after[3] += 0.01
    assert changed_tokens(before, after) == [7, 3]


def test_only_words_are_searched_unless_pieces_are_asked_for(encoder):
    words, pieces = (encoder.tokenizer.convert_ids_to_tokens(searched_tokens(encoder.tokenizer, flag)) for flag in (False, True))
    assert set(WORDS) <= {token[:-4] for token in words} and all(token.endswith("</w>") for token in words)
    assert set(words) < set(pieces)


def test_agreement_and_the_control():
    assert run.agreement("a b c d", "a c b") == {"exact": 0, "word_accuracy": 0.25, "words_found": 0.75}
    assert run.agreement("a b", "a b") == {"exact": 1, "word_accuracy": 1, "words_found": 1}
    table = pd.DataFrame({"caption": ["a b", "c d", "e"], "recovered": ["a b", "a d", "e"], "words": [2, 2, 1]})
    assert list(run.with_control(table).other_accuracy) == [0.5, 0, 0]  # the row's truth against what the next model of its length gave


def finetuned(tiny_base, tiny_images, out, **options):
    options = FinetuneOptions(**({"images_per_concept": 3, "steps_per_image": 4, "batch": 2, "method": "dreambooth", "caption_words": [2]} | options))
    loop.finetune(base=tiny_base, images=tiny_images, world="w", split="tune", start=0, stop=2, out=out, options=options, device="cpu")
    return out


def test_a_model_that_was_really_trained_gives_its_caption_away(tiny_base, tiny_images, tmp_path):
    models = finetuned(tiny_base, tiny_images, tmp_path / "sgd", optimizer="sgd", lr=1.0)
    run.recover_captions([models], tiny_base, tmp_path / "captions.csv", CaptionOptions(longest=4, corpus=20), ["sgd"], device="cpu")
    table = pd.read_csv(tmp_path / "captions.csv")
    assert set(table.training) == {"sgd"} and (table.words == 2).all() and (table.layers > 0).all() and table.changed.isna().all()
    assert (table.word_accuracy >= 0.5).all() and (table.exact == 1).any()  # in float32, and with embeddings that random weights hardly tell apart


def test_a_tuned_text_encoder_names_its_words(tiny_base, tiny_images, tmp_path):
    models = finetuned(tiny_base, tiny_images, tmp_path / "te", train_text_encoder=True, lr=1e-4, caption_words=[1])
    run.recover_captions([models], tiny_base, tmp_path / "captions.csv", CaptionOptions(longest=2, corpus=20), device="cpu")
    table = pd.read_csv(tmp_path / "captions.csv")
    assert (table.changed == 1).all() and (table.words_found == 1).all()


def test_a_model_that_learned_nothing_of_text_is_refused(tiny_base, tiny_images, tmp_path):
    models = finetuned(tiny_base, tiny_images, tmp_path / "none", lr=0.0)
    with pytest.raises(InputError, match="no caption can be read"):
        run.recover_captions([models], tiny_base, tmp_path / "captions.csv", CaptionOptions(), device="cpu")
    with pytest.raises(InputError, match="labels"):
        run.recover_captions([models], tiny_base, tmp_path / "captions.csv", CaptionOptions(), ["a", "b"], device="cpu")
