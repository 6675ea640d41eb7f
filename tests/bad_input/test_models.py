"""Model files from strangers: LoRAs, whole networks, bases, embedders."""

import functools
import json
import os
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from tuneleak.models import modelset, weights
from tuneleak.models.pipeline import load_base
from tuneleak.options import FinetuneOptions

LORA = modelset.LORA_FILE


@pytest.fixture(scope="module")
def base(tiny_base):
    return load_base(tiny_base)


@pytest.fixture(scope="module")
def lora(base, tmp_path_factory):
    """A model set of one LoRA of the tiny base, rank 2; copied by each test."""
    from tuneleak.finetune import methods

    folder = tmp_path_factory.mktemp("lora")
    trainee = methods.prepare(base, FinetuneOptions(method="lora", rank=2, alpha=4), torch.Generator().manual_seed(0), "picture of person ada")
    trainee.save(folder / "m")
    methods.restore(base, trainee)
    row = {"model_id": "m", "world": "discs", "base": base.name, "concept": "ada", "method": "lora", "seed": 0, "step": 1, "caption": "", "n_images": 4}
    modelset.write(folder, [row | {"images": "", "file": "m"}])
    return folder


@pytest.fixture
def attacked(lora, base, tiny_base, tmp_path, refused, monkeypatch):
    """`attacked(change, says)`: change a copy of the LoRA's folder (`change(folder of the set, LoRA file)`) and read it with a verb.

    The base, which is not at fault here, is loaded once for all of them.
    """
    monkeypatch.setattr("tuneleak.models.pipeline.load_base", lambda folder: base)
    folder = shutil.copytree(lora, tmp_path / "set")

    def run(change, says):
        change(folder, folder / "m" / LORA)
        refused("transform", "--models", folder, "--base", tiny_base, "--kind", "none", "--out", tmp_path / "out", says=says)
        assert not (tmp_path / "out" / "manifest.csv").exists()

    return run


def raw(header, data=b"", size=None):
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


NAME = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora.down.weight"
BYTES = {
    "empty": b"",
    "seven-bytes": bytes(7),
    "no-header": struct.pack("<Q", 0),
    "huge-header": struct.pack("<Q", 2**63) + bytes(100),
    "header-of-a-gigabyte": struct.pack("<Q", 2**30) + b"{}",
    "header-not-json": raw(b"not json"),
    "header-a-list": raw(b"[]"),
    "header-not-utf8": raw(b'{"\xff": 1}'),
    "header-endless-nesting": raw(b'{"a":' * 5000),
    "offsets-beyond-file": raw({NAME: entry([4], 0, 16)}),
    "offsets-backwards": raw({NAME: entry([4], 16, 0)}, bytes(16)),
    "offsets-overlap": raw({NAME: entry([4], 0, 16), "b": entry([4], 8, 24)}, bytes(24)),
    "shape-overflows": raw({NAME: entry([2**40, 2**40], 0, 16)}, bytes(16)),
    "shape-minus": raw({NAME: entry([-4], 0, 16)}, bytes(16)),
    "shape-does-not-fit": raw({NAME: entry([5], 0, 16)}, bytes(16)),
    "unknown-dtype": raw({NAME: entry([4], 0, 16, "PICKLE")}, bytes(16)),
    "bytes-left-over": raw({NAME: entry([4], 0, 16)}, bytes(64)),
    "zip": b"PK\x03\x04" + bytes(100),
    "html": b"<!doctype html><title>Access denied</title>" + bytes(100),
    "lfs-pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
}  # fmt: skip


@pytest.mark.parametrize("name", BYTES)
def test_files_that_are_no_safetensors(name, attacked):
    attacked(lambda folder, path: path.write_bytes(BYTES[name]), "not a readable safetensors file")


@pytest.mark.parametrize("share", [0.01, 0.3, 0.999])
def test_truncated(share, attacked):
    attacked(lambda folder, path: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)]), "not a readable safetensors file")


@pytest.mark.parametrize("suffix", sorted(weights.PICKLES))
def test_pickles_beside_no_safetensors(suffix, attacked, payload):
    def change(folder, path):
        path.unlink()
        path.with_suffix(suffix).write_bytes(payload)

    attacked(change, "is a pickle: loading one can run any code")


def test_a_pickle_named_safetensors(attacked, payload):
    attacked(lambda folder, path: path.write_bytes(payload), "not a readable safetensors file")


def tensors(change, metadata=None):
    """A change of a LoRA file through its tensors."""

    def run(folder, path):
        held = load_file(path)
        changed = change(held)
        save_file(held if changed is None else changed, path, metadata)

    return run


def filled(value):
    return lambda held: {name: torch.full_like(tensor, value) for name, tensor in held.items()}


def first(held, part="down"):
    return next(name for name in held if f"lora.{part}.weight" in name)


def with_first(change):
    def run(held):
        held[first(held)] = change(held[first(held)])

    return run


def _padded(name, tensor):
    return torch.zeros(*((5000, tensor.shape[1]) if "down" in name else (len(tensor), 5000)))


TENSORS = {
    "not-a-number": (filled(float("nan")), "finite"),
    "infinite": (filled(float("inf")), "finite"),
    "one-not-a-number": (with_first(lambda tensor: tensor.index_fill(1, torch.tensor([0]), float("nan"))), "finite"),
    "integers": (with_first(lambda tensor: tensor.to(torch.int8)), "finite floating-point"),
    "booleans": (with_first(lambda tensor: tensor > 0), "finite floating-point"),
    "too-wide": (with_first(lambda tensor: torch.cat([tensor, tensor], 1)), "shapes"),
    "transposed": (with_first(lambda tensor: tensor.T.contiguous()), "shapes"),
    "rank-differs": (with_first(lambda tensor: torch.cat([tensor, tensor])), "shapes"),
    "rank-zero": (lambda held: {name: tensor[:0] if "down" in name else tensor[:, :0] for name, tensor in held.items()}, "shapes|safetensors"),
    "rank-huge": (lambda held: {name: _padded(name, tensor) for name, tensor in held.items()}, "shapes"),
    "scalar": (with_first(lambda tensor: torch.tensor(1.0)), "shapes"),
    "four-axes": (with_first(lambda tensor: tensor[:, :, None, None]), "shapes"),
    "one-of-two": (lambda held: {first(held): held[first(held)]}, "one of its two matrices"),
    "no-tensor": (lambda held: {}, "holds no LoRA"),
    "unknown-layer": (lambda held: {name.replace("down_blocks.0", "down_blocks.9"): tensor for name, tensor in held.items()}, "not a linear layer"),
    "layer-is-a-convolution": (lambda held: {f"unet.conv_in.lora.{part}.weight": torch.zeros(2, 2) for part in ("down", "up")}, "not a linear layer"),
    "layer-is-an-attribute": (lambda held: {f"unet.__class__.lora.{part}.weight": torch.zeros(2, 2) for part in ("down", "up")}, "not a linear layer"),
    "of-another-network": (lambda held: {name.replace("unet", "vae"): tensor for name, tensor in held.items()}, "not a LoRA matrix"),
    "kohya-names": (lambda held: {"lora_unet_down_blocks_0.lora_down.weight": torch.zeros(2, 2)}, "not a LoRA matrix"),
    "dora": (lambda held: held | {first(held).replace("lora.down.weight", "lora_magnitude_vector"): torch.zeros(2)}, "not a LoRA matrix"),
    "name-with-a-path": (lambda held: held | {"../../evil": torch.zeros(2)}, "not a LoRA matrix"),
    "empty-name": (lambda held: held | {"": torch.zeros(2)}, "not a LoRA matrix"),
    "a-whole-checkpoint": (lambda held: {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(2, 2)}, "not a LoRA matrix"),
}  # fmt: skip


@pytest.mark.parametrize("name", TENSORS)
def test_tensors(name, attacked):
    attacked(tensors(TENSORS[name][0]), TENSORS[name][1])


SETTINGS = {
    "not-json": "[", "a-list": "[1]", "endless-nesting": "[" * 100_000, "alpha-a-word": '{"unet.lora_alpha": "8"}', "alpha-minus": '{"unet.lora_alpha": -1}',
    "alpha-zero": '{"unet.lora_alpha": 0}', "alpha-huge": '{"unet.lora_alpha": 1e300}', "alpha-not-a-number": '{"unet.lora_alpha": NaN}',
    "alpha-true": '{"unet.lora_alpha": true}', "other-rank": '{"unet.r": 3}', "dora": '{"unet.use_dora": true}', "rank-stabilised": '{"unet.use_rslora": true}',
    "rank-by-layer": '{"unet.rank_pattern": {"to_q": 4}}',
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(name, attacked):
    attacked(tensors(lambda held: None, {"lora_adapter_metadata": SETTINGS[name]}), "header|plain LoRA")


def _cell(column, value):
    def change(folder, path):
        table = modelset.ModelSet.load(folder).table
        table[column] = value
        table.to_csv(folder / "manifest.csv", index=False)

    return change


def _manifest(data):
    return lambda folder, path: (folder / "manifest.csv").write_bytes(data)


def _outside(folder, path):
    (folder.parent / "elsewhere").mkdir()
    path.rename(folder.parent / "elsewhere" / LORA)
    path.symlink_to(folder.parent / "elsewhere" / LORA)


def _linked_model(folder, path):
    (folder / "m").rename(folder.parent / "elsewhere")
    (folder / "m").symlink_to(folder.parent / "elsewhere")


def _loop(folder, path):
    path.unlink()
    path.symlink_to(path.name)


def _pipe(folder, path):
    path.unlink()
    os.mkfifo(path)


def _directory(folder, path):
    path.unlink()
    path.mkdir()


def _twice(folder, path):
    text = (folder / "manifest.csv").read_text()
    (folder / "manifest.csv").write_text(text + text.splitlines()[1] + "\n")


MANIFESTS = {
    "climbs-out": (_cell("file", "../elsewhere"), "outside that folder"),
    "absolute": (_cell("file", "/etc"), "outside that folder"),
    "through-and-back-out": (_cell("file", "m/../../elsewhere"), "outside that folder"),
    "model-that-is-not-there": (_cell("file", "n"), "does not exist"),
    "link-out": (_outside, "outside that folder"),
    "linked-model": (_linked_model, "outside that folder"),
    "link-to-itself": (_loop, "has no"),
    "pipe": (_pipe, "has no"),
    "folder-named-safetensors": (_directory, "has no"),
    "no-file": (lambda folder, path: path.unlink(), "has no"),
    "no-manifest": (lambda folder, path: (folder / "manifest.csv").unlink(), "not a model set"),
    "empty": (_manifest(b""), "cannot be read as a UTF-8 CSV"),
    "binary": (_manifest(bytes(range(256)) * 4), "cannot be read as a UTF-8 CSV|lacks the columns"),
    "html": (_manifest(b"<!doctype html>\n<title>a</title>\n"), "lacks the columns"),
    "other-columns": (_manifest(b"a,b\n1,2\n"), "lacks the columns"),
    "ragged": (_manifest(b"a,b\n1,2,3,4\n5,6,7,8,9\n"), "cannot be read|lacks the columns"),
    "twice": (_twice, "occurs twice"),
}  # fmt: skip


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests(name, attacked):
    attacked(*MANIFESTS[name])


@pytest.mark.parametrize(
    ("kind", "strength", "says"),
    [
        ("truncate", 99, "from 1 to 2"),
        ("truncate", 1.5, "whole number of ranks"),
        ("quantise", 1, "from 2 to 16"),
        ("quantise", 8.5, "whole number of bits"),
    ],
)
def test_transforms_that_do_not_exist(kind, strength, says, lora, base, tiny_base, tmp_path, refused, monkeypatch):
    monkeypatch.setattr("tuneleak.models.pipeline.load_base", lambda folder: base)
    refused("transform", "--models", lora, "--base", tiny_base, "--out", tmp_path / "out", "--kind", kind, "--strength", strength, says=says)


# --- principal components of LoRAs ------------------------------------------------------------------------------------------------------

PARTS = ("V", "mean", "std", "proj_1000pc")


@pytest.fixture
def components(base, tiny_base, tmp_path, refused, monkeypatch):
    """`components(change, says, *flags)`: change a folder with the principal components of three LoRAs (`change(folder)`) and import them."""
    monkeypatch.setattr("tuneleak.models.import_weights.load_base", lambda folder: base)
    layers = {name: layer for name, layer in base.unet.named_modules() if name.endswith("to_q")}
    shapes = {name: ((2, layer.in_features), (layer.out_features, 2)) for name, layer in layers.items()}
    layout = {f"{name}.lora_{side}.weight": list(shape) for name, pair in shapes.items() for side, shape in zip("AB", pair, strict=True)}
    length, folder = sum(a * b for a, b in layout.values()), tmp_path / "components"
    folder.mkdir()
    made = {"V": torch.randn(length, 5), "mean": torch.randn(length), "std": torch.rand(length), "proj_1000pc": torch.randn(3, 4)}
    for name, tensor in made.items():
        save_file({name: tensor}, folder / f"{name}.safetensors")
    (folder / "weight_dimensions.json").write_text(json.dumps(layout))

    def run(change, says, *flags):
        change(folder)
        words = ["import-weights", "--folder", folder, "--base", tiny_base, "--world", "w", "--out", tmp_path / "out"]
        refused(*words, *(flags or ("--alpha", "27")), says=says)
        assert not (tmp_path / "out" / "manifest.csv").exists()

    return run


def _tensor(name, change):
    """Put `change(tensor)` in the place of a tensor."""

    def run(folder):
        path = folder / f"{name}.safetensors"
        save_file({name: change(load_file(path)[name]).contiguous()}, path)

    return run


def _layout(change):
    """Put `change(layout)` (an object, or text) in the place of the layout."""

    def run(folder):
        path = folder / "weight_dimensions.json"
        changed = change(json.loads(path.read_text()))
        path.write_text(changed if isinstance(changed, str) else json.dumps(changed))

    return run


def _first(entry):
    return _layout(lambda layout: layout | {min(layout): entry})


def _text(name, text):
    return lambda folder: (folder / name).write_text(text)


def _link(folder):
    (folder / "mean.safetensors").rename(folder.parent / "elsewhere.safetensors")
    (folder / "mean.safetensors").symlink_to(folder.parent / "elsewhere.safetensors")


def _as_pickle(name):
    def run(folder):
        (folder / f"{name}.safetensors").unlink()
        torch.save(torch.zeros(3), folder / f"{name}.pt")

    return run


def _loud(folder):
    _tensor("proj_1000pc", lambda held: held.fill_(1e30))(folder)
    _tensor("V", lambda held: held.fill_(1e30))(folder)


Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
COMPONENTS = {
    "no-layout": (lambda folder: (folder / "weight_dimensions.json").unlink(), "not weight_dimensions.json"),
    "layout-not-json": (_layout(lambda layout: "{"), "not valid JSON"),
    "layout-a-list": (_layout(lambda layout: [1]), "must hold a JSON object"),
    "layout-endless-nesting": (_layout(lambda layout: "[" * 100_000), "not valid JSON"),
    "layout-empty": (_layout(lambda layout: {}), "names no matrix"),
    "layout-short": (_layout(lambda layout: dict(list(layout.items())[:-2])), "has shape"),
    "layout-one-side": (_layout(lambda layout: dict(list(layout.items())[:-1])), "both matrices"),
    "layout-twice": (_layout(lambda layout: layout | {f"unet.{name}": entry for name, entry in layout.items()}), "second matrix"),
    "layout-no-matrix": (_layout(lambda layout: layout | {"bias": [1, 1]}), "is no LoRA matrix"),
    "layout-unknown-module": (_layout(lambda layout: layout | {"mid_block.nowhere.lora_A.weight": [2, 2]}), "is not a linear layer"),
    "layout-of-the-text-encoder": (_layout(lambda layout: layout | {"text_encoder.q_proj.lora_A.weight": [2, 2]}), "is not a LoRA matrix of unet"),
    "layout-convolution": (_layout(lambda layout: layout | {"conv_in.lora_A.weight": [2, 2], "conv_in.lora_B.weight": [2, 2]}), "is no linear layer"),
    "layout-other-shape": (_layout(lambda layout: layout | {f"{Q}.lora_A.weight": [2, 5]}), "have shapes"),
    "layout-other-rank": (_layout(lambda layout: {name: [1, e[1]] if "_A" in name and Q in name else e for name, e in layout.items()}), "have shapes"),
    "layout-minus": (_first([-2, -16]), "in whole numbers"),
    "layout-zero": (_first([0, 16]), "in whole numbers"),
    "layout-fraction": (_first([2.0, 16]), "in whole numbers"),
    "layout-true": (_first([True, 16]), "in whole numbers"),
    "layout-a-word": (_first("2 x 16"), "in whole numbers"),
    "layout-null": (_first(None), "in whole numbers"),
    "layout-nested": (_first([[[2]], [2, 16]]), "in whole numbers"),
    "layout-cube": (_first([2, 4, 4]), "in whole numbers"),
    "layout-bomb": (_first([10**30, 10**30]), "have shapes"),
    "layout-count-is-another": (_first([[31], [2, 16]]), "31 elements"),
    "no-tensor": (lambda folder: (folder / "mean.safetensors").unlink(), "no safetensors file with a tensor 'mean'"),
    "pickle-in-its-place": (_as_pickle("std"), "no safetensors file with a tensor 'std'"),
    "all-pickles": (lambda folder: [(folder / "weight_dimensions.json").unlink(), *(_as_pickle(name)(folder) for name in PARTS)], "is a pickle"),
    "twice": (lambda folder: shutil.copy(folder / "mean.safetensors", folder / "again.safetensors"), "is in again.safetensors and in mean"),
    "truncated": (lambda folder: os.truncate(folder / "V.safetensors", 500), "not a readable safetensors"),
    "linked-out": (_link, "outside that folder"),
    "mean-of-two": (_tensor("mean", lambda held: held[None]), "'mean' has shape"),
    "mean-short": (_tensor("mean", lambda held: held[:-1]), "'mean' has shape"),
    "components-turned": (_tensor("V", lambda held: held.T), "'V' has shape"),
    "components-flat": (_tensor("V", lambda held: held[:, 0]), "'V' has shape"),
    "fewer-components-than-coefficients": (_tensor("V", lambda held: held[:, :3]), "'proj_1000pc' has shape"),
    "coefficients-flat": (_tensor("proj_1000pc", lambda held: held[0]), "'proj_1000pc' has shape"),
    "a-number": (_tensor("proj_1000pc", lambda held: held.sum()), "'proj_1000pc' has shape"),
    "nobody": (_tensor("proj_1000pc", lambda held: held[:0]), "'proj_1000pc' has shape"),
    "no-component": (_tensor("proj_1000pc", lambda held: held[:, :0]), "'proj_1000pc' has shape"),
    "components-not-a-number": (_tensor("V", lambda held: held * float("nan")), "not made of finite"),
    "coefficients-infinite": (_tensor("proj_1000pc", lambda held: held / 0), "not made of finite"),
    "mean-not-a-number": (_tensor("mean", lambda held: held * float("nan")), "not made of finite"),
    "whole-numbers": (_tensor("std", lambda held: held.long()), "not made of finite"),
    "eight-bits-not-a-number": (_tensor("std", lambda held: (held * float("nan")).to(torch.float8_e4m3fn)), "not made of finite"),
    "minus": (_tensor("std", lambda held: -held), "negative deviations"),
    "too-large": (_loud, "too large for 32 bits"),
    "settings-not-json": (_text("adapter_config.json", "{"), "not valid JSON"),
    "settings-other-rank": (_text("adapter_config.json", '{"r": 3, "lora_alpha": 1}'), "rank or alpha is not usable"),
    "settings-dora": (_text("adapter_config.json", '{"use_dora": true}'), "use_dora"),
    "metadata-without-rows": (_text("metadata.csv", "file,step\na,1\n"), "lacks the columns row"),
    "metadata-beyond": (_text("metadata.csv", "row,concept\n3,ada\n"), "no row '3' among 3"),
    "metadata-minus": (_text("metadata.csv", "row,concept\n-1,ada\n"), "no row '-1'"),
    "metadata-other-digits": (_text("metadata.csv", "row,concept\n²,ada\n"), "no row '²'"),
    "metadata-one-name": (_text("metadata.csv", "row,concept\n0,../ada\n1,ada\n"), "would be called"),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPONENTS)
def test_principal_components(name, components):
    components(*COMPONENTS[name])


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--step", "1"), "does not say what alpha"),
        (("--alpha", "-1"), "greater than or equal to 0"),
        (("--alpha", "NaN"), "finite"),
        (("--alpha", "1", "--start", "3"), "holds 3 LoRAs"),
        (("--alpha", "1", "--start", "2", "--stop", "1"), "holds 3 LoRAs"),
        (("--alpha", "1", "--names", '{"mean": "std"}'), "names must differ"),
        (("--alpha", "1", "--names", '{"layout": "../outside.json"}'), "outside that folder"),
        (("--alpha", "1", "--names", '{"mean": "average"}'), "no safetensors file with a tensor 'average'"),
        (("--alpha", "1", "--names", '{"average": "mean"}'), "not permitted"),
    ],
)
def test_how_principal_components_are_asked_for(flags, says, components):
    components(lambda folder: (folder.parent / "outside.json").write_text("{}"), says, *flags)


def test_more_loras_than_the_disk_holds(components, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100})())
    components(lambda folder: None, "GiB left; give fewer")


# --- bases -----------------------------------------------------------------------------------------------------------------------------


def _json(path, **changes):
    def change(folder):
        values = json.loads((folder / path).read_text())
        (folder / path).write_text(json.dumps({key: value for key, value in (values | changes).items() if value is not ...}))

    return change


def _write(path, data):
    return lambda folder: (folder / path).write_bytes(data)


def _remove(path):
    return lambda folder: shutil.rmtree(folder / path) if (folder / path).is_dir() else (folder / path).unlink()


def _weights(part, change):
    path = f"{part}/{'model' if part == 'text_encoder' else 'diffusion_pytorch_model'}.safetensors"

    def run(folder):
        held = load_file(folder / path)
        save_file({name: tensor.contiguous() for name, tensor in change(held).items()}, folder / path, {"format": "pt"})

    return run


def _without_one(held):
    return {name: tensor for name, tensor in held.items() if name != min(held)}


def _one_wider(held):
    return held | {min(held): torch.zeros(*held[min(held)].shape, 2)}


def _linked_weights(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(folder.parent / "outside.safetensors")
    path.symlink_to(folder.parent / "outside.safetensors")


def _own_code(folder):
    (folder / "unet" / "evil.py").write_text("open('trace', 'w')\nclass UNet2DConditionModel: pass\n")
    _json("model_index.json", unet=["evil", "UNet2DConditionModel"])(folder)


def _auto_map(folder):
    (folder / "text_encoder" / "evil.py").write_text("open('trace', 'w')\n")
    _json("text_encoder/config.json", auto_map={"AutoModel": "evil.Evil"}, architectures=["Evil"], num_hidden_layers=99)(folder)


UNET, VAE, TEXT, SCHEDULER = "unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"
BASES = {
    "no-index": (_remove("model_index.json"), "not a pipeline folder"),
    "index-not-json": (_write("model_index.json", b"{"), "not valid JSON"),
    "index-a-list": (_write("model_index.json", b"[]"), "must hold a JSON object"),
    "index-not-utf8": (_write("model_index.json", b'{"a": "\xff"}'), "not valid JSON"),
    "index-endless-nesting": (_write("model_index.json", b"[" * 100_000), "not valid JSON"),
    "foreign-class": (_json("model_index.json", unet=["os", "system"]), "no other class is imported"),
    "own-code": (_own_code, "no other class is imported"),
    "other-pipeline": (_json("model_index.json", text_encoder=["transformers", "T5EncoderModel"]), "no other class is imported"),
    "no-unet": (_remove("unet"), "not valid JSON|no such file|has no"),
    "no-scheduler": (_remove("scheduler"), "no such file"),
    "no-tokenizer": (_remove("tokenizer"), "needs its tokenizer"),
    "empty-tokenizer": (lambda folder: [path.unlink() for path in (folder / "tokenizer").iterdir()], "needs its tokenizer"),
    "tokenizer-not-json": (lambda folder: [path.write_text("{") for path in (folder / "tokenizer").iterdir()], "no readable CLIPTokenizer"),
    "unet-pickled": (lambda folder: (folder / "unet/diffusion_pytorch_model.safetensors").rename(folder / "unet/diffusion_pytorch_model.bin"), "is a pickle"),
    "vae-truncated": (lambda folder: os.truncate(folder / "vae/diffusion_pytorch_model.safetensors", 1000), "not a readable safetensors"),
    "text-encoder-empty": (_write("text_encoder/model.safetensors", b""), "not a readable safetensors"),
    "weights-linked-out": (_linked_weights, "outside that folder"),
    "unet-lacks-a-tensor": (_weights("unet", _without_one), "exactly the tensors|do not make"),
    "vae-lacks-a-tensor": (_weights("vae", _without_one), "exactly the tensors|do not make"),
    "text-encoder-lacks-a-tensor": (_weights("text_encoder", _without_one), "exactly the tensors|do not make"),
    "unet-has-one-too-many": (_weights("unet", lambda held: held | {"extra.weight": torch.zeros(2)}), "exactly the tensors|do not make"),
    "unet-misshapen": (_weights("unet", _one_wider), "do not make|exactly the tensors"),
    "text-encoder-misshapen": (_weights("text_encoder", _one_wider), "do not make|exactly the tensors"),
    "unet-not-a-number": (_weights("unet", lambda held: held | {"conv_in.weight": torch.full_like(held["conv_in.weight"], float("nan"))}), "not finite"),
    "vae-infinite": (_weights("vae", lambda held: {name: torch.full_like(tensor, float("inf")) for name, tensor in held.items()}), "not finite"),
    "no-config": (_remove(UNET), "no such file"),
    "config-a-list": (_write(UNET, b"[]"), "must hold a JSON object"),
    "config-of-another-size": (_json(UNET, block_out_channels=[16, 64]), "do not make|exactly the tensors"),
    "config-bomb-of-channels": (_json(UNET, block_out_channels=[16, 80_000_000]), "do not make|exactly the tensors"),
    "config-bomb-of-layers": (_json(UNET, layers_per_block=10**9), "layers_per_block is 1000000000"),
    "config-bomb-of-text-layers": (_json(TEXT, num_hidden_layers=10**9), "num_hidden_layers is 1000000000"),
    "config-bomb-of-words": (_json(TEXT, vocab_size=10**12), "do not make|exactly the tensors"),
    "config-minus": (_json(UNET, in_channels=-4), "do not make|exactly the tensors"),
    "config-a-word": (_json(UNET, norm_num_groups="many"), "do not make|exactly the tensors"),
    "config-zero": (_json(VAE, norm_num_groups=0), "do not make|exactly the tensors"),
    "config-unknown-block": (_json(UNET, down_block_types=["os.system", "DownBlock2D"]), "do not make"),
    "config-with-code": (_auto_map, "num_hidden_layers is 99|do not make|exactly the tensors"),
    "parts-of-two-models": (lambda folder: shutil.copytree(folder.parent / "wide" / "vae", folder / "vae", dirs_exist_ok=True), "do not fit together|exactly"),
    "prediction-type": (_json(SCHEDULER, prediction_type="flow"), "prediction_type"),
    "schedule-unknown": (_json(SCHEDULER, beta_schedule="cosine"), "not supported"),
    "schedule-zero-snr": (_json(SCHEDULER, rescale_betas_zero_snr=True), "not supported"),
    "schedule-no-steps": (_json(SCHEDULER, num_train_timesteps=0), "num_train_timesteps"),
    "schedule-endless": (_json(SCHEDULER, num_train_timesteps=10**12), "num_train_timesteps"),
    "schedule-a-word": (_json(SCHEDULER, num_train_timesteps="many"), "num_train_timesteps"),
    "schedule-beta-minus": (_json(SCHEDULER, beta_start=-1), "beta_start"),
    "schedule-beta-a-word": (_json(SCHEDULER, beta_end="x"), "beta_start"),
    "schedule-betas-not-a-number": (_json(SCHEDULER, trained_betas=[float("nan")] * 1000), "betas"),
    "schedule-no-betas": (_json(SCHEDULER, trained_betas=[]), "betas"),
    "schedule-betas-above-one": (_json(SCHEDULER, trained_betas=[1.5] * 1000), "betas"),
    "schedule-betas-words": (_json(SCHEDULER, trained_betas="abc"), "betas"),
}  # fmt: skip


@pytest.mark.parametrize("name", BASES)
def test_bases(name, tiny_base, tmp_path, refused, monkeypatch, make_tiny_base):
    change, says = BASES[name]
    folder = shutil.copytree(tiny_base, tmp_path / "base")
    if name == "parts-of-two-models":
        from diffusers import AutoencoderKL

        AutoencoderKL(latent_channels=8, block_out_channels=(8,), norm_num_groups=8).save_pretrained(tmp_path / "wide" / "vae")
    change(folder)
    monkeypatch.chdir(tmp_path)
    refused("perturb", "--base", folder, "--sigmas", "[0.1]", "--seeds", "[0]", "--out", tmp_path / "out", says=says)


def test_a_base_as_it_was_published_still_loads(base, tiny_base, tmp_path):
    """What older versions of the libraries wrote, and Stable Diffusion's repositories hold: no fault, so none is to be found."""
    folder = shutil.copytree(tiny_base, tmp_path / "base")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def renamed(held):
        return {functools.reduce(lambda name, pair: name.replace(*pair), old.items(), name): tensor for name, tensor in held.items()}

    def prefixed(held):
        names = {name if name.startswith("text_model.") else f"text_model.{name}": tensor for name, tensor in held.items()}
        return names | {"text_model.embeddings.position_ids": torch.arange(16)[None]}

    _weights("vae", renamed)(folder)
    _weights("text_encoder", prefixed)(folder)
    assert any(".query." in name for name in load_file(folder / "vae" / "diffusion_pytorch_model.safetensors"))
    loaded, latents = load_base(folder), torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.decode(latents), base.decode(latents))
    assert torch.equal(loaded.encode_text(["picture of person ada"]), base.encode_text(["picture of person ada"]))


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "tpu:0", "", "cpu;rm"])
def test_devices_that_are_not_there(device, tiny_base, tmp_path, refused):
    refused("perturb", "--base", tiny_base, "--out", tmp_path / "out", "--device", device, says="device")


# --- embedders -------------------------------------------------------------------------------------------------------------------------

EMBEDDER = {"kind": "copy", "name": "c", "width": 8, "dimensions": 16, "image_size": 32}
EMBEDDERS = {
    "no-config": (None, None, "no such file"),
    "config-a-list": ([], None, "must hold a JSON object"),
    "unknown-kind": (EMBEDDER | {"kind": "os.system"}, None, "unknown kind"),
    "no-width": ({key: value for key, value in EMBEDDER.items() if key != "width"}, None, "does not describe an embedder"),
    "width-a-word": (EMBEDDER | {"width": "w"}, None, "does not describe an embedder"),
    "width-bomb": (EMBEDDER | {"width": 10**7}, None, "does not fit"),
    "layers-bomb": (
        {"kind": "clip", "image_size": 32, "clip": {"embed_dim": 8, "vision_cfg": {"layers": 10**9}, "text_cfg": {}}},
        None,
        "layers is 1000000000",
    ),
    "size-bomb": (EMBEDDER | {"image_size": 10**7}, None, "image_size"),
    "other-width": (EMBEDDER | {"width": 16}, None, "does not fit"),
    "truncated": (EMBEDDER, lambda data: data[:500], "not a readable safetensors"),
    "pickle": (EMBEDDER, "payload", "not a readable safetensors"),
    "not-a-number": (EMBEDDER, "nan", "not finite"),
}


@pytest.mark.parametrize("name", EMBEDDERS)
def test_embedders(name, tiny_images, tmp_path, refused, payload):
    from tuneleak.models.embedders import build

    config, change, says = EMBEDDERS[name]
    folder = tmp_path / "embedder"
    folder.mkdir()
    held = build(EMBEDDER).state_dict()
    if change == "nan":
        held = {key: torch.full_like(value, float("nan")) if value.is_floating_point() else value for key, value in held.items()}
    data = save(held)
    (folder / "model.safetensors").write_bytes(payload if change == "payload" else change(data) if callable(change) else data)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    refused("calibrate", "--images", tiny_images, "--copy-score", folder, "--n-images", 4, "--out", tmp_path / "tau.json", says=says)


def test_torchscript_of_unknown_origin(tiny_images, tmp_path, refused, payload):
    (tmp_path / "sscd.pt").write_bytes(payload)
    refused(
        "calibrate",
        "--images",
        tiny_images,
        "--copy-score",
        tmp_path / "sscd.pt",
        "--n-images",
        4,
        "--out",
        tmp_path / "t.json",
        says="TorchScript can run code",
    )
