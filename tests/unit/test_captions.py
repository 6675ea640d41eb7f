"""Captions from weights: on synthetic updates whose answer is known, and on a tiny model that was really fine-tuned."""

import numpy as np
import pandas as pd
import pytest
import torch

from tuneleak.attacks.captions import adam, grow, relax, run
from tuneleak.attacks.captions.embeddings import changed_tokens
from tuneleak.attacks.captions.encoder import CausalEncoder
from tuneleak.attacks.captions.evidence import Evidence
from tuneleak.attacks.captions.search import Search, root_mean_square, search, searched_tokens
from tuneleak.attacks.captions.updates import READS_TEXT, Updates, read_updates, without_decay
from tuneleak.errors import InputError
from tuneleak.finetune import loop
from tuneleak.finetune.objective import Batch, denoising_errors
from tuneleak.models import tokenizer
from tuneleak.models.modelset import ModelSet
from tuneleak.models.pipeline import load_base
from tuneleak.options import CaptionOptions, FinetuneOptions

WORDS = [f"{first}{second}" for first in ("ba", "du", "ke", "lo", "mi") for second in ("ran", "set", "tol", "vim")]
OPTIONS = CaptionOptions(longest=6, beams=4)


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


def found(encoder, rows, options=OPTIONS, **given):
    return Search(Evidence([rows], encoder.length), encoder, options, **given).run()


@pytest.mark.parametrize("caption", ["keset", "baran dutol", "mivim loran keset", "dutol dutol baset kevim miran"])
def test_plain_descent_gives_its_caption_away(encoder, caption):
    best = found(encoder, updates(encoder, caption))
    assert best.text == caption and best.score > 0.9999


def test_the_caption_survives_noise_and_no_other_models_evidence_gives_it(encoder):
    caption = "mivim loran keset"
    noisy, other = found(encoder, updates(encoder, caption, noise=0.05)), found(encoder, updates(encoder, "baset duvim kiran"))
    assert noisy.text == caption
    assert run.agreement(caption, other.text)["word_accuracy"] < 0.5


def test_weak_later_words_are_read_beside_a_strong_beginning(encoder):
    """What the words of a caption leave in the updates may differ by orders of magnitude; only what the beginning does not explain counts for the next."""
    caption, random = "mivim loran keset", np.random.default_rng(2)
    strengths = np.array([1, 0.1, 0.01, 0.001, *[0.001] * 8])[:, None]
    rows = [random.normal(size=(40, 12)) @ (strengths * contexts(encoder, caption)) for _ in range(6)]
    assert found(encoder, [row + 1e-6 * random.normal(size=row.shape) for row in rows]).text == caption


def test_a_lora_gives_its_caption_away_when_it_has_learned_enough(encoder):
    caption, random = "dutol baset kevim", np.random.default_rng(1)
    encoded = contexts(encoder, caption)

    def lora(learned):
        rows = []
        for _ in range(8):
            start = random.normal(size=(8, 64))
            moved = random.normal(size=(8, len(encoded))) @ encoded
            down = start + learned * moved * np.linalg.norm(start) / np.linalg.norm(moved)
            rows.append(random.normal(size=(40, 8)) @ down)
        return found(encoder, rows).text

    assert lora(30) == caption
    assert lora(0) != caption  # nothing but its random start


def test_bent_encodings_are_found_by_their_power(encoder):
    caption, spread = "baran dutol kevim", root_mean_square(encoder, 50)
    random = np.random.default_rng(3)
    rows = [random.normal(size=(40, 12)) @ (contexts(encoder, caption) / spread.numpy() ** 0.5) for _ in range(6)]
    best, power = search(Evidence([rows], encoder.length), encoder, OPTIONS, spread)
    assert (best.text, power) == (caption, 0.5) and best.score > 0.9999
    best, power = search(Evidence([updates(encoder, caption)], encoder.length), encoder, OPTIONS, spread)
    assert (best.text, power) == (caption, 0.0)


def test_the_best_subspace_is_that_of_principal_components():
    """Of all subspaces of one dimension the leading eigenvectors' captures most, and their eigenvalues are what it captures; a random one captures m / d."""
    random = torch.randn(300, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.arange(1, 21)
    held = Evidence([[random]], 6)
    values, vectors = torch.linalg.eigh(held.moments[0])
    assert float(values.sum()) == pytest.approx(1)
    assert float(held.captured(vectors.T[None, -6:])) == pytest.approx(float(values[-6:].sum()))
    others = torch.randn(2000, 6, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert bool((held.captured(others) < values[-6:].sum()).all())
    assert float(Evidence([[torch.eye(20)]], 6).captured(others[:1])) == pytest.approx(6 / 20)
    mixed = torch.randn(6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64) @ vectors.T[-6:]
    assert float(held.captured(mixed[None])) == pytest.approx(float(values[-6:].sum()))  # of a span, not of vectors


def test_a_beginning_leaves_the_strongest_of_the_rest():
    directions = torch.linalg.qr(torch.randn(10, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0].T
    strengths = torch.tensor([8.0, 4, 2, 1, *[1e-3] * 6], dtype=torch.float64)
    held = Evidence([[strengths[:, None] * directions]], 4)
    free, off = held.beyond(directions[:1] * 3)
    assert free.shape == (1, 10, 3) and torch.allclose(free[0] @ free[0].T, directions[1:4].T @ directions[1:4], atol=1e-6)
    assert torch.allclose(off, torch.eye(10, dtype=torch.float64) - directions[:1].T @ directions[:1])
    fits = held.fit(torch.stack([directions[1], directions[0] + directions[3], directions[5], directions[2] + directions[6]]), (free, off))
    assert fits.tolist() == pytest.approx([1, 1, 0, 0.5], abs=1e-6)
    nearly = torch.stack([directions[1], directions[0] + 0.1 * directions[6]])  # of the latter the beginning explains all but .1
    assert held.fit(nearly, (free, off), (0.0, 0.1)).flatten().tolist() == pytest.approx([1, 0, 1, 0.101 / 0.111], abs=1e-6)


def test_endings_after_a_beginning_are_encoded_as_the_whole_caption(encoder):
    network, ids = encoder.body, encoder.ids("mivim loran keset")
    whole = encoder.caption(ids)
    with torch.inference_mode():
        tokens = encoder.tokenizer("mivim loran keset", padding="max_length", max_length=12, return_tensors="pt").input_ids
        expected = network(tokens)[0][0].double()
    assert torch.allclose(whole, expected, atol=1e-5)
    for used in range(3):
        before, after = encoder.continued(ids[:used], (*ids, encoder.end))
        assert torch.allclose(before, expected[: used + 1], atol=1e-5) and after.shape == (4, 64)
        right = [torch.allclose(encoding, expected[used + 1], atol=1e-3) for encoding in after]
        assert right == [number == used for number in range(4)]


def test_decay_is_no_update_and_descent_no_decay():
    random = torch.Generator().manual_seed(0)
    before = torch.randn(12, 8, generator=random)
    assert without_decay(0.97 * before, before, 3).abs().max() < 1e-6
    moved = torch.randn(12, 3, generator=random) @ torch.randn(3, 8, generator=random)  # of rank 3, and not at right angles to the weight
    assert torch.allclose(without_decay(before + moved, before, 3).float(), moved, atol=1e-5)
    assert (without_decay(0.999 * before + moved, before, 3).float() - moved).norm() < 0.5 * (0.001 * before).norm()
    assert torch.allclose(without_decay(0.97 * before, before, 8).float(), -0.03 * before, atol=1e-6)  # as many places as directions: nothing can be told


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


def reading_layers(base):
    return [name for name, _ in base.unet.named_modules() if READS_TEXT.search(name)]


def test_divisors_are_the_second_moments_of_the_weights_gradients(tiny_base, monkeypatch):
    """e_j^T C_i e_j, got from the layers' outputs, against the squared gradients of the weights themselves, sample by sample."""
    monkeypatch.setattr(adam, "RANK", 10_000)
    monkeypatch.setattr(adam, "SHRUNK", 0)
    base = load_base(tiny_base)
    latents = torch.randn(3, *base.latent_shape, generator=torch.Generator().manual_seed(0))
    names = reading_layers(base)
    divisors = adam.Divisors(base, names, latents, draws=6)
    context = base.encode_text(["picture of person ada"])
    layers = [dict(base.unet.named_modules())[name] for name in names]
    expected = [torch.zeros_like(layer.weight) for layer in layers]
    assert float(divisors.weights.sum()) == pytest.approx(1) and divisors.timesteps.tolist() == sorted(divisors.timesteps.tolist())
    for layer in layers:
        layer.weight.requires_grad_(True)
    for number in range(6):
        told = Batch(divisors.latents[[number]], divisors.noise[[number]], divisors.timesteps[[number]], context, torch.ones(1))
        loss = denoising_errors(base.output, told, base.alphas_cumprod, base.prediction_type).sum()
        for sum_, gradient in zip(expected, torch.autograd.grad(loss, [layer.weight for layer in layers]), strict=True):
            sum_ += divisors.weights[number] * gradient.square()
    for layer in layers:
        layer.weight.requires_grad_(False)
    for factors, moment in zip(next(divisors.factors(context)), expected, strict=True):
        assert torch.allclose(adam.moments(factors, context)[0], moment, rtol=1e-3, atol=1e-6 * float(moment.max()))


def test_moments_are_drawn_towards_their_layer_s_mean(tiny_base, monkeypatch):
    """The second moments of unit size are averaged over rows, then given each row's size."""
    monkeypatch.setattr(adam, "RANK", 10_000)
    base = load_base(tiny_base)
    latents = torch.randn(3, *base.latent_shape, generator=torch.Generator().manual_seed(0))
    divisors = adam.Divisors(base, reading_layers(base)[:1], latents, draws=6)
    context = base.encode_text(["picture of person ada"])
    products = []
    for share in (0, 1, 0.25):
        monkeypatch.setattr(adam, "SHRUNK", share)
        factors = next(divisors.factors(context))[0].transpose(0, 1)  # (rows, n, L)
        products.append(factors.mT @ factors)
    own, mean, between = products
    sizes = own.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    assert torch.allclose(mean, sizes * (own / sizes).mean(0), rtol=1e-3, atol=1e-6 * float(sizes.max()))
    assert torch.allclose(between, 0.75 * own + 0.25 * mean, rtol=1e-3, atol=1e-6 * float(sizes.max()))


def test_timesteps_are_drawn_where_gradients_are_large_and_weigh_the_less(tiny_base):
    base = load_base(tiny_base)
    latents = torch.randn(3, *base.latent_shape, generator=torch.Generator().manual_seed(0))
    divisors = adam.Divisors(base, reading_layers(base), latents, draws=400)
    assert float(divisors.density.sum()) == pytest.approx(1) and float(divisors.density.min()) >= 0.1 / len(divisors.density) - 1e-12
    drawn = torch.bincount(divisors.timesteps * adam.INTERVALS // len(divisors.density), minlength=adam.INTERVALS) / 400
    assert torch.allclose(drawn, divisors.density.view(adam.INTERVALS, -1).sum(1).float(), atol=0.01)
    mean = float((divisors.weights * divisors.timesteps).sum())  # weighted, timesteps are uniform again
    assert mean == pytest.approx((len(divisors.density) - 1) / 2, rel=0.02)


def test_captions_told_together_have_the_divisors_of_each(tiny_base):
    base = load_base(tiny_base)
    latents = torch.randn(3, *base.latent_shape, generator=torch.Generator().manual_seed(0))
    divisors = adam.Divisors(base, reading_layers(base), latents, draws=6)
    contexts = base.encode_text(["picture of person ada", "ada", "a picture of a dog"])

    def moments(batch):
        divisors.batch = batch
        return [[adam.moments(layer, context[None])[0] for layer in layers] for layers, context in zip(divisors.factors(contexts), contexts, strict=True)]

    alone = moments(4)  # not even one caption's samples
    for together in (moments(12), moments(100)):  # two captions, then one; all three
        for mine, others in zip(alone, together, strict=True):
            for layer, other in zip(mine, others, strict=True):
                assert torch.allclose(layer, other, rtol=1e-3, atol=1e-5 * float(layer.max()))
    assert not torch.allclose(alone[0][0], alone[1][0], rtol=1e-2)


def test_more_draws_need_no_second_look_at_where_gradients_are_large(tiny_base, monkeypatch):
    base = load_base(tiny_base)
    latents = torch.randn(3, *base.latent_shape, generator=torch.Generator().manual_seed(0))
    first, looked = (adam.Divisors(base, reading_layers(base), latents, draws) for draws in (4, 12))
    monkeypatch.setattr(adam.Divisors, "_deltas", None)
    told = adam.Divisors(base, reading_layers(base), latents, 12, density=first.density)
    for name in ("timesteps", "weights", "latents", "noise"):
        assert torch.equal(getattr(told, name), getattr(looked, name))


@pytest.mark.parametrize("n", [4, 9])
def test_the_strongest_factors_keep_what_they_can_of_a_product(n):
    factors = torch.randn(3, n, 6, generator=torch.Generator().manual_seed(n))
    product = factors.mT @ factors
    whole = adam.strongest(factors, 6)
    assert whole.shape == (3, min(n, 6), 6) and torch.allclose(whole.mT @ whole, product, atol=1e-4)
    two = adam.strongest(factors, 2)
    left = torch.linalg.eigvalsh(product - two.mT @ two)
    assert torch.allclose(left[:, 2:], torch.linalg.eigvalsh(product)[:, :4], atol=1e-4)  # the other four, and two that are gone


def bent(base, encodings, divisors, seed=0):
    """Updates as Adam leaves them: combinations of encodings, every entry divided by the root of its moment."""
    random, rows = torch.Generator().manual_seed(seed), []
    for factors in next(divisors.factors([encodings])):
        combined = torch.randn(factors.shape[1], len(encodings), generator=random) @ encodings.float()
        rows.append((combined / adam.moments(factors, encodings.float()[None])[0].sqrt()).double())
    return rows


def test_a_caption_behind_its_own_divisors_is_found_where_plain_reading_fails(tiny_base):
    base = load_base(tiny_base)
    length = base.text_encoder.config.max_position_embeddings
    encoder = CausalEncoder(base.text_encoder, base.tokenizer, length)
    latents = torch.randn(3, *base.latent_shape, generator=torch.Generator().manual_seed(0))
    options = CaptionOptions(longest=3, beams=4, draws=8, rounds=4)
    names = tuple(reading_layers(base))
    words = searched_tokens(base.tokenizer)
    true = tuple(words[:2])
    rows = bent(base, encoder.caption(true), adam.Divisors(base, names, latents, options.draws, options.seed))
    judge = adam.AdamLikelihood(Updates(rows, None, names), base, encoder, options, latents)
    explained = judge.explain(true)
    others = [(), true[:1], true[::-1], (*true, words[2])]
    assert explained.share > 0.999 and explained.likelihood > max(judge.explain(other).likelihood for other in others)
    assert grow.GrownSearch(judge, encoder, options).run().ids == true
    assert relax.RelaxedSearch(judge, encoder, options).run()[0] == true
    plain = Evidence([rows], length)
    assert float(plain.captured(encoder.caption(true)[None])) < 0.99
    likelihood, share, _ = judge.judge(encoder.caption(true)[None])
    assert float(share) < 0.99 and float(likelihood) < explained.likelihood


@pytest.fixture(scope="module")
def relaxed_search(tiny_base):
    """A search on the tiny base for a caption of three words, and that caption."""
    base = load_base(tiny_base)
    encoder = CausalEncoder(base.text_encoder, base.tokenizer, base.text_encoder.config.max_position_embeddings)
    latents = torch.randn(3, *base.latent_shape, generator=torch.Generator().manual_seed(0))
    options, names = CaptionOptions(longest=4, beams=4, draws=8, rounds=2), tuple(reading_layers(base))
    true = tuple(searched_tokens(base.tokenizer)[:3])
    rows = bent(base, encoder.caption(true), adam.Divisors(base, names, latents, options.draws, options.seed))
    return relax.RelaxedSearch(adam.AdamLikelihood(Updates(rows, None, names), base, encoder, options, latents), encoder, options), true


def test_mixtures_of_one_token_each_are_a_caption(relaxed_search):
    search_, true = relaxed_search
    numbers = [search_.tokens.index(token) for token in true]
    mixed = search_.encoder.mixed((torch.eye(len(search_.tokens))[numbers] @ search_.embeddings)[None])
    assert torch.allclose(mixed[0].double(), search_.encoder.caption(true), atol=1e-5)


def test_open_places_follow_the_gradient_and_the_others_stay(relaxed_search):
    """The step against finite differences of the likelihood along the mixture's logits; and words that are told stay what they are."""
    search_, true = relaxed_search
    factors = search_.likelihood.explain(true).factors
    template = (true[0], None, true[2])
    logits, words, likelihood, same = next(search_.relax([template], (1, 0.1), factors=[factors]))
    assert same is factors and torch.equal(words[[0, 2]], search_.encoder.embedded([true[0], true[2]]))
    assert torch.equal(logits[[0, 2]], torch.zeros_like(logits[[0, 2]]))  # nothing moves there

    def value(moved):
        mixture = torch.softmax(moved, -1) @ search_.embeddings
        return float(search_.judged(torch.stack([words[0], mixture, words[2]])[None], factors))

    even = torch.zeros(len(search_.tokens))
    assert value(even) == pytest.approx(likelihood, abs=1e-4)
    slopes = torch.tensor([value(even + 0.3 * unit) - value(even - 0.3 * unit) for unit in torch.eye(len(even))])
    clear = slopes.abs() > 0.2 * slopes.abs().max()
    assert clear.sum() >= 3 and torch.equal(logits[1][clear].sign(), slopes[clear].sign())  # Adam's first step is the gradient's sign
    _, _, relaxed, _ = next(search_.relax([template], relax.FIRST, factors=[factors]))
    assert relaxed > likelihood and search_.decide([template], relax.FIRST) == [true]


def test_templates_relaxed_together_go_where_each_goes_alone(relaxed_search):
    search_, true = relaxed_search
    templates = [(None,), (true[0], None, true[2]), (None, None)]
    alone = [next(search_.relax([template], (5, 0.3))) for template in templates]
    mixtures = [mixture for mixture, *_ in alone]
    further = [next(search_.relax([template], (2, 0.3), [mixture])) for template, mixture in zip(templates, mixtures, strict=True)]
    for together, wanted in ((search_.relax(templates, (5, 0.3)), alone), (search_.relax(templates, (2, 0.3), mixtures), further)):
        for template, mine, other in zip(templates, together, wanted, strict=True):
            assert mine[0].shape == (len(template), len(search_.tokens)) and torch.allclose(mine[0], other[0], atol=1e-2)
            assert mine[1].shape == other[1].shape and mine[2] == pytest.approx(other[2], abs=1e-3)


def test_what_is_known_of_a_caption_is_not_asked_again(relaxed_search, monkeypatch):
    likelihood, tokens = relaxed_search[0].likelihood, relaxed_search[0].tokens
    asked, factors = [], likelihood.factors
    monkeypatch.setattr(likelihood, "factors", lambda captions: asked.append(len(captions)) or factors(captions))
    monkeypatch.setattr(likelihood, "known", {})
    monkeypatch.setattr(likelihood, "kept", {})
    monkeypatch.setattr(likelihood, "most", 2)
    first, second, third = ((token,) for token in tokens[:3])
    values = likelihood.likelihoods([first, second, first, third])
    assert asked == [3] and values[0] == values[2] and list(likelihood.kept) == [second, third]
    assert likelihood.likelihoods([third, first]) == [values[3], values[0]] and likelihood.explain(third).likelihood == values[3] and sum(asked) == 3
    assert likelihood.explain(first).likelihood == pytest.approx(values[0], abs=1e-4) and sum(asked) == 4  # its factors were given up


def test_a_decided_caption_is_left_as_it_is(relaxed_search):
    search_, true = relaxed_search
    assert search_.decide([true], relax.STEPS) == [true] and true in search_.found


def test_one_exchanged_word_is_put_right_and_matters(relaxed_search):
    search_, true = relaxed_search
    wrong = (true[0], search_.tokens[5], true[2])
    search_.found.clear()
    search_.add([wrong])
    search_.exchange(wrong)
    assert search_.best()[0] == true
    assert (search_.weights(true) > 0).all()


def test_windows_open_what_stands_side_by_side():
    assert set(relax.windows((1, 2))) == {
        (None, None), (None, 1, 2), (1, None, 2), (1, 2, None), (None, None, 2), (1, None, None), (2,), (1,), (None,),
    }  # fmt: skip


def test_no_scale_of_divisors_gains_likelihood():
    squares = torch.rand(4, 9, generator=torch.Generator().manual_seed(0)) + 0.1
    roots = adam.geometric(squares)
    assert torch.allclose(roots, adam.geometric(7 * squares)) and torch.allclose(roots.log().mean(1), torch.zeros(4), atol=1e-6)
    assert torch.allclose(roots / roots[:, :1], (squares / squares[:, :1]).sqrt())


def test_what_adam_trained_is_explained_better_with_its_divisors_undone(tiny_base, tiny_images, tmp_path):
    models = finetuned(tiny_base, tiny_images, tmp_path / "adam", lr=1e-3, steps_per_image=20)
    base, modelset = load_base(tiny_base), ModelSet.load(models)
    row = modelset.rows()[0]
    encoder = CausalEncoder(base.text_encoder, base.tokenizer, base.text_encoder.config.max_position_embeddings)
    latents = adam.unprompted(base, modelset, row)
    assert latents.shape == (adam.PICTURES, *base.latent_shape)
    judge = adam.AdamLikelihood(read_updates(base, modelset, row), base, encoder, CaptionOptions(draws=64), latents)
    true = encoder.ids(row["caption"])
    plain = [float(value) for value in judge.judge(encoder.caption(true)[None])[:2]]
    assert judge.explain(true).likelihood > plain[0] and judge.explain(true).share > plain[1]


@pytest.mark.parametrize(
    "knobs", [{"longest": 2, "rounds": 2, "relaxed": 0}, {"longest": 6, "rounds": 9, "relaxed": 0}, {"longest": 6, "rounds": 5, "relaxed": 3}]
)
def test_reading_costs_no_more_gradients_than_is_said(tiny_base, tiny_images, tmp_path, monkeypatch, knobs):
    models = finetuned(tiny_base, tiny_images, tmp_path / "adam", lr=1e-3, steps_per_image=8)
    counted, asked = [], adam.Divisors._deltas

    def counting(divisors, contexts):
        counted.append(len(contexts) * len(divisors.latents))
        return asked(divisors, contexts)

    monkeypatch.setattr(adam.Divisors, "_deltas", counting)
    options = CaptionOptions(beams=2, corpus=20, draws=8, **knobs)
    run.recover_captions([models], tiny_base, tmp_path / "captions.csv", options, device="cpu")
    table = pd.read_csv(tmp_path / "captions.csv")
    assert (table.divisors == "own").all()
    assert 0 < sum(counted) <= len(table) * (relax if options.relaxed else grow).gradients(options, options.longest)
