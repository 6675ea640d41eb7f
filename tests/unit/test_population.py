"""The embedded world: deterministic, without twins, with folds that differ by a coin only."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from tuneleak.data import avatars, captions, population, vocabulary
from tuneleak.data.imageset import ImageSet, pixel_digest
from tuneleak.data.render import _folded, render
from tuneleak.errors import InputError
from tuneleak.options import PopulationOptions

WORLD = PopulationOptions()
SMALL = PopulationOptions(
    public_identities=20,
    public_artists=2,
    public_pictures=4,
    private_artists=3,
    tune_artists=1,
    named_identities=6,
    named_photographs=8,
    instrument_photographs=4,
    private_identities=6,
    tune_identities=2,
    private_pool=4,
    private_heldout=6,
    lora_train_identities=6,
    lora_test_identities=4,
    distractor_identities=4,
    dp_train=12,
    dp_test=4,
)


def everybody(options=WORLD):
    return [person for people in population.identities(options).values() for person in people]


def test_sizes_are_those_of_the_protocol():
    sizes = {name: len(people) for name, people in population.identities(WORLD).items()}
    assert sizes == {"named": 60, "private-identities": 24, "lora-train": 400, "lora-test": 100, "distractors": 400, "public-faces": 2000}


def test_no_two_people_share_an_attribute_combination_or_a_name():
    people = everybody()
    assert len({person.combination for person in people}) == len(people)
    named = [person.name for person in people if person.name]
    assert len(set(named)) == len(named) == 60 + 24 + 400 + 100 + 400


def test_the_first_of_a_pool_differ_from_the_rest_and_the_held_outs_by_a_coin_only():
    """Fine-tunes take the first six of a pool: over 300 people their factors and poses are distributed as those of the rest of it, and of the held-outs."""
    parts = {"members": [], "pool": [], "heldout": []}
    for person in population.identities(WORLD)["public-faces"][:300]:
        folded = _folded("private-identities", WORLD, person)
        pool = [photograph for fold, photograph in folded if fold == "train"]
        parts["members"] += pool[:6]
        parts["pool"] += pool[6:]
        parts["heldout"] += [photograph for fold, photograph in folded if fold == "heldout"]
    for other in ("pool", "heldout"):
        for factor in (*population.PHOTOGRAPH_FACTORS, "background", "flip"):
            counts = [Counter(photograph[factor] for photograph in parts[name]) for name in ("members", other)]
            table = [[count[value] for value in sorted(counts[1])] for count in counts]
            assert stats.chi2_contingency(table).pvalue > 1e-3, (other, factor)
        for pose in ("rotate", "scale", "translateX", "translateY"):
            assert stats.ks_2samp(*([photograph[pose] for photograph in parts[name]] for name in ("members", other))).pvalue > 1e-3, (other, pose)


def hex_distance(first, second):
    return max(abs(int(first[i : i + 2], 16) - int(second[i : i + 2], 16)) for i in (0, 2, 4))


def test_nobody_has_a_twin():
    groups = {}
    for person in everybody():
        groups.setdefault((person.hair, person.rear_hair, person.beard), []).append(person.hex_colours)
    closest = min(max(map(hex_distance, a, b)) for group in groups.values() for a, b in itertools.combinations(group, 2))
    assert closest > 6  # of 255, in the most different channel of the most different colour


def test_small_sets_do_not_depend_on_the_size_of_large_ones():
    other = PopulationOptions(public_identities=50, distractor_identities=3)
    for name in ("named", "private-identities", "lora-train", "lora-test"):
        assert population.identities(other)[name] == population.identities(WORLD)[name]


def test_photographs_of_a_person_are_distinct_over_all_folds():
    for person in population.identities(WORLD)["named"][:5]:
        drawn = population.photographs(WORLD, person, 124, "photographs")
        assert len({tuple(photograph[name] for name in (*population.PHOTOGRAPH_FACTORS, "background")) for photograph in drawn}) == 124


def test_more_photographs_of_a_person_leave_the_first_as_they_are():
    person = population.identities(WORLD)["lora-train"][3]
    assert population.photographs(WORLD, person, 20, "photographs")[:12] == population.photographs(WORLD, person, 12, "photographs")


def test_factors_are_balanced():
    counts = Counter(
        photograph["mouth"] for person in population.identities(WORLD)["named"] for photograph in population.photographs(WORLD, person, 100, "photographs")
    )
    expected = sum(counts.values()) / 5
    chi_squared = sum((count - expected) ** 2 / expected for count in counts.values())
    assert len(counts) == 5 and chi_squared < 18.5  # 99.9 % quantile with 4 degrees of freedom


def test_doses_are_one_four_or_sixteen_by_lot():
    person = population.identities(WORLD)["named"][0]
    doses = Counter(population.dose(WORLD, person, row) for row in range(300))
    assert set(doses) == {1, 4, 16} and min(doses.values()) > 60


def test_bits_per_identity():
    assert population.identity_bits() == pytest.approx(math.log2(4 * 5 * 6 * 8 * 6 * 10))


def test_pixels_are_those_of_the_pinned_packages():
    person = population.identities(WORLD)["private-identities"][0]
    photograph = population.photographs(WORLD, person, 60, "photographs")[0]
    assert (
        pixel_digest(avatars.draw("toon-head", avatars.face_options(person, photograph), 64))
        == "2a1ce047c95da44d5b904dcf0d90a8f981e0a51772f4c8223f824871f3115703"
    )
    assert (
        pixel_digest(avatars.draw("clay", avatars.art_options("clay", "2026/0")[0], 64)) == "c4cd5b7fd358bae5b3427d48ea8fa15d78ddd60234f6a63371cbcf12b00c2697"
    )
    assert (
        pixel_digest(avatars.draw("glyphs", avatars.art_options("glyphs", "2026/0")[0], 64))
        == "9eb5ee7b7f2d7a4f97c1b564a3caa5f755bf8935d8fd22a04a85fe3891dd2d10"
    )


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    for name in population.set_names():
        render(name, folder / name, SMALL)
    return {name: ImageSet.load(folder / name) for name in population.set_names()}


def test_every_set_renders_without_repeated_pictures(rendered):
    digests = Counter(digest for name, images in rendered.items() for digest in images.table.sha256 if name != "public-twins")
    repeated = sum(count - 1 for count in digests.values())
    assert repeated == 0


def test_folds_p_q_and_instrument_partition_the_named_photographs(rendered):
    parts = [set(rendered[name].table.image_id) for name in ("named-p", "named-q", "instrument")]
    assert [len(part) for part in parts] == [48, 48, 24]
    assert len(set.union(*parts)) == 120
    assert set(rendered["named-p"].table.concept) == set(rendered["named-q"].table.concept)


def test_private_splits_and_folds(rendered):
    table = rendered["private-identities"].table
    assert table.groupby("split").concept.nunique().to_dict() == {"tune": 2, "test": 4}
    assert table.groupby(["concept", "fold"]).size().unstack().to_numpy().tolist() == [[6, 4]] * 6
    assert (table.groupby("concept").caption.nunique() == 1).all()


def test_rendering_twice_gives_the_same_pictures(rendered, tmp_path):
    render("private-artists", tmp_path / "again", SMALL)
    assert ImageSet.load(tmp_path / "again").table.equals(rendered["private-artists"].table)


def test_styles_are_used_once_and_have_a_stated_free_licence():
    styles = [*population.PUBLIC_STYLES, *population.PRIVATE_STYLES, *population.DP_STYLES.values(), avatars.FACE_STYLE]
    assert len(set(styles)) == len(styles) == 28
    assert {avatars.credit(style)["licence"] for style in styles} <= {"CC0 1.0", "CC BY 4.0", "MIT"}


def test_captions_tokenise_to_known_words():
    words = set(vocabulary.words())
    assert len(words) >= 1500
    for person in everybody():
        assert not person.name or set(captions.by_name(person.name).split()) <= words
    for artist in vocabulary.artist_names(27):
        assert artist in words


def test_twins_differ_from_the_first_photograph_in_expression_only(rendered):
    first = rendered["public-faces"].table.groupby("concept").first()
    twin = rendered["public-twins"].table.groupby("concept").first()
    for factor in ("mouth", "eyes", "eyebrows"):
        assert (first[f"factor_{factor}"] != twin[f"factor_{factor}"]).all()
    for factor in ("hair", "clothes", "background"):
        assert (first[f"factor_{factor}"] == twin[f"factor_{factor}"]).all()


def test_too_many_people_or_photographs_are_refused():
    with pytest.raises(InputError, match="first and last name"):
        population.identities(PopulationOptions(named_identities=400))
    with pytest.raises(InputError, match="not possible"):
        population.photographs(WORLD, everybody()[0], 100_000, "x")
    with pytest.raises(InputError, match="no set"):
        render("nobody", "unused", SMALL)


def test_lab_to_srgb_of_reference_colours():
    assert population.lab_to_hex((100, 0, 0)) == "ffffff"
    assert population.lab_to_hex((0, 0, 0)) == "000000"
    red = population.lab_to_hex((53.24, 80.09, 67.20))  # sRGB red in CIELAB (D65)
    assert np.allclose([int(red[i : i + 2], 16) for i in (0, 2, 4)], [255, 0, 0], atol=3)
