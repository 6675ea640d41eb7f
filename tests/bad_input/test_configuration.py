"""Configurations and command lines that cannot be meant."""

import copy
import functools
import itertools
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]

OVERLAYS = {
    # not YAML, or not a configuration
    "empty": ("", "must hold keys and values"),
    "a-list": ("- 1\n- 2\n", "must hold keys and values.*list"),
    "a-word": ("embedded", "must hold keys and values.*str"),
    "a-number": ("3", "must hold keys and values"),
    "unclosed": ("preset: {a: [1, 2", "not valid YAML"),
    "tabs": ("population:\n\tseed: 1\n", "not valid YAML"),
    "two-documents": ("preset: a\n---\npreset: b\n", "not valid YAML"),
    "unknown-anchor": ("preset: *nowhere\n", "not valid YAML"),
    "python-object": ('preset: !!python/object/apply:os.system ["touch trace"]\n', "not valid YAML"),
    "python-name": ("preset: !!python/name:os.system\n", "not valid YAML"),
    "not-utf8": (b"preset: \xff\xfe\xfa\n", "not valid YAML"),
    "nul": (b"preset: a\x00b\n", "not valid YAML"),
    "binary": (bytes(range(256)), "not valid YAML"),
    "impossible-date": ("preset: 2026-13-45\n", "not valid YAML|preset: Input should"),
    "endless-nesting": ("preset: " + "[" * 1200, "not valid YAML"),
    "alias-bomb": (
        "a: &a [x, x, x]\n" + "".join(f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in itertools.pairwise("abcdefghi")),
        "a: Extra inputs are not permitted",
    ),
    "self-reference": ("worlds: &w [*w]\n", "not valid YAML|worlds"),
    # keys
    "unknown-key": ("colour: red", "colour: Extra inputs"),
    "unknown-nested-key": ("finextract: {evaluate: {boostrap: 10}}", "finextract.evaluate.boostrap: Extra inputs"),
    "key-that-is-a-number": ("population: {1: 2}", "Extra inputs|population.1"),
    "null-section": ("finextract: null", "finextract: Input should be"),
    "section-that-is-a-list": ("population: [1]", "population: Input should be"),
    "list-that-is-a-section": ("worlds: {name: a}", "worlds: Input should be a valid list"),
    # values
    "not-a-number": ("finextract: {evaluate: {confidence: .nan}}", "finextract.evaluate.confidence"),
    "infinite": ("finextract: {evaluate: {confidence: .inf}}", "finextract.evaluate.confidence"),
    "minus": ("finextract: {steps: -3}", "finextract.steps: Input should be greater"),
    "fraction-of-a-step": ("finextract: {steps: 2.5}", "finextract.steps: Input should be a valid integer"),
    "word-for-number": ("threads: many", "threads: Input should be a valid integer"),
    "yes-for-number": ("gpus: yes please", "gpus: Input should be a valid integer"),
    "unknown-dtype": ("dtype: float8", "dtype: Input should be"),
    "unknown-kind": ("images: [{name: a, kind: torrent}]", "images.0.kind: Input should be"),
    "unknown-attack": ("finextract: {attacks: [magic]}", "finextract.attacks.0: Input should be"),
    "attack-that-is-a-path": ("finextract: {attacks: [../../../evil]}", "finextract.attacks.0: Input should be"),
    "delta-of-one": ("dp_ldm: {recipes: [{name: x, options: {privacy: {delta: 1}}}]}", "privacy.delta: Input should be less than 1"),
    "epsilon-of-zero": ("dp_ldm: {epsilons: [0]}", "dp_ldm.epsilons.0: Input should be greater than 0"),
    "no-privacy-at-all": ("dp_ldm: {recipes: [{name: x, options: {privacy: {clip: 0}}}]}", "privacy.clip"),
    # names that become folders
    "name-with-dots": ("worlds: [{name: ../../etc, base: H1, images: private-identities, tune_concepts: 1, test_concepts: 1}]", "worlds|becomes a folder"),
    "name-with-slash": ("images: [{name: a/b, kind: folder, path: x}]", "images|becomes a folder|not list"),
    "name-with-nul": ('bases: [{name: "a\\0", kind: folder, path: x}]', "bases|becomes a folder|not list"),
    "empty-name": ('bases: [{name: "", kind: folder, path: x}]', "bases|becomes a folder|not list"),
    "encoder-name": ("lora_weights: {encoders: [{name: ../x, options: {attack: linear}}]}", "lora_weights.encoders"),
    "recipe-name": ("dp_ldm: {recipes: [{name: a b, options: {}}]}", "becomes a folder"),
    "recipe-named-base": ("dp_ldm: {recipes: [{name: base, options: {}}]}", "give that recipe another name"),
    # what does not fit together
    "moving-revision": ("bases: [{name: b, kind: hub, repository: a/b, revision: main}]", "full commit hash"),
    "short-revision": ("bases: [{name: b, kind: hub, repository: a/b, revision: 133a221}]", "full commit hash"),
    "no-path": ("bases: [{name: b, kind: folder}]", "needs `path`"),
    "unlisted-base": ("lora_weights: {base: B9}", "lora_weights.base: 'B9' is not in `bases`"),
    "unlisted-images": ("shake_to_leak: {images: [nowhere]}", "'nowhere' is not in `images`"),
    "cuda-without-gpus": ("device: cuda", "set gpus"),
    "no-guidance": ("finextract: {guidance: []}", "finextract.guidance has no entry"),
    "budget-twice": ("dp_ldm: {epsilons: [1, 1.0]}", "a budget occurs twice"),
    "adaptive-to-nothing": ("lora_weights: {adaptive: [noise-7]}", "adaptive"),
    "more-pictures-than-made": ("shake_to_leak: {synthesize: {count: 1}}", "synthesize.count is 1"),
}  # fmt: skip


@pytest.fixture
def shipped(monkeypatch):
    """config.yaml is parsed once for all cases: it is the same each time and takes half a second."""
    parse = yaml.safe_load
    whole = (ROOT / "config.yaml").read_text()
    monkeypatch.setattr(yaml, "safe_load", lambda text: copy.deepcopy(_parsed(parse)) if text == whole else parse(text))
    return ROOT / "config.yaml"


@functools.cache
def _parsed(parse):
    return parse((ROOT / "config.yaml").read_text())


@pytest.mark.parametrize("name", OVERLAYS)
def test_configurations(name, refused, tmp_path, monkeypatch, shipped):
    monkeypatch.chdir(tmp_path)
    text, says = OVERLAYS[name]
    path = tmp_path / "overlay.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    refused("budget", "--configuration", shipped, "--overlay", path, says=says)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(("path", "says"), [("nowhere.yaml", "no such file"), (".", "no such file"), ("a\0b.yaml", "no such file")])
def test_configurations_that_are_not_there(refused, path, says):
    refused("budget", "--configuration", path, says=says)


OPTIONS = {
    "not-json": ("{size: 3}", "--options is not valid JSON"),
    "a-list": ("[]", "--options must be a JSON object"),
    "endless-nesting": ("[" * 100_000, "--options is not valid JSON"),
    "unknown": ('{"colour": 1}', "--colour: Extra inputs"),
    "not-a-number": ('{"size": NaN}', "--size: Input should be"),
    "infinite": ('{"size": 1e999}', "--size: Input should be"),
    "none-at-all": ('{"size": 0}', "--size: Input should be greater"),
    "null": ('{"size": null}', "--size: Input should be"),
    "list-for-number": ('{"size": [64]}', "--size: Input should be"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name, refused, tmp_path):
    text, says = OPTIONS[name]
    refused("import-images", "--source", tmp_path, "--out", tmp_path / "out", "--options", text, says=says)
