"""Parsers under inputs that nobody would think of: they return what they promise or raise InputError, and nothing else."""

import io
import json
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save_file

from tuneleak import config, files
from tuneleak.data import importing, pictures
from tuneleak.errors import InputError
from tuneleak.models import schedule, weights
from tuneleak.report import rows

FEW = settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def whole_file():
    header = {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}, "b": {"dtype": "F32", "shape": [2], "data_offsets": [16, 24]}}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + np.arange(6, dtype=np.float32).tobytes()


def picture():
    buffer = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(buffer, "PNG")
    return buffer.getvalue()


def mutated(data):
    """Copies of `data` with a few bytes changed, dropped or put in."""
    edits = st.lists(st.tuples(st.integers(0, len(data) - 1), st.binary(max_size=4), st.integers(0, 4)), min_size=1, max_size=4)

    def edit(changes):
        changed = bytearray(data)
        for place, new, dropped in changes:
            changed[place : place + dropped] = new
        return bytes(changed)

    return edits.map(edit)


@FEW
@given(data=mutated(whole_file()) | st.binary(max_size=64))
def test_safetensors(tmp_path, data):
    path = tmp_path / "f.safetensors"
    path.write_bytes(data)
    try:
        held = weights.read_tensors(path, {"a": (2, 2), "b": (2,)})
    except InputError:
        return
    assert held["a"].shape == (2, 2) and held["b"].shape == (2,) and all(bool(tensor.isfinite().all()) for tensor in held.values())


@FEW
@given(data=mutated(picture()) | st.binary(max_size=64))
def test_pictures(data):
    try:
        pixels = pictures.read_square(data, 8, 10_000)
    except InputError:
        return
    assert pixels.shape == (8, 8, 3) and pixels.dtype == np.uint8


@FEW
@given(metadata=st.dictionaries(st.sampled_from(["unet.r", "unet.lora_alpha", "unet.use_dora", "x"]), JSON, max_size=3).map(json.dumps) | st.text(max_size=30))
def test_lora_settings(tmp_path, metadata):
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "f.safetensors", {"lora_adapter_metadata": metadata})
    try:
        held = weights.header_settings(tmp_path / "f.safetensors")
    except InputError:
        return
    assert isinstance(held, dict)


@FEW
@given(name=st.text(max_size=40) | st.lists(st.sampled_from(["..", ".", "a", "b", "", "/"]), max_size=6).map("/".join))
def test_no_name_leaves_its_folder(tmp_path, name):
    folder = tmp_path / "folder"
    folder.mkdir(exist_ok=True)
    try:
        path = files.inside(folder, name)
    except InputError:
        return
    assert path.resolve().is_relative_to(folder.resolve())


@FEW
@given(name=st.text(max_size=300))
def test_folder_names(name):
    made = importing.folder_name(name)
    assert not set(made) & set('/\\:*?"<>|;\0') and made not in (".", "..") and len(made.encode()) <= 120 and not made.startswith(".")


@FEW
@given(setting=st.text(max_size=40) | st.lists(st.sampled_from(["w=3", "control=a", "concept=", ";", "k", "="]), max_size=5).map("; ".join))
def test_settings_of_metrics(setting):
    try:
        parts = rows.split_setting(setting)
    except InputError:
        return
    assert set(parts) == {"guidance", *rows.QUALIFIERS}


@FEW
@given(values=JSON)
def test_configurations(values):
    with pytest.raises(InputError, match="not valid"):  # nothing this small is a whole configuration
        config.load(values)


@FEW
@given(changes=st.dictionaries(st.sampled_from(["num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"]), JSON, min_size=1))
def test_schedules(changes):
    try:
        abar = schedule.alphas_cumprod({"num_train_timesteps": 10, "beta_start": 0.1, "beta_end": 0.2, "beta_schedule": "linear"} | changes)
    except InputError:
        return
    assert bool(abar.isfinite().all()) and bool((abar > 0).all()) and bool((abar.diff() <= 0).all())
