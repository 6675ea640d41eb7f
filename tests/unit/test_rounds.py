"""Fine-tunes that go on from other fine-tunes, and models kept on the way."""

import numpy as np
import pytest
from safetensors.torch import load_file

from tuneleak.errors import InputError
from tuneleak.finetune import loop, synthesize
from tuneleak.models import modelset
from tuneleak.options import FinetuneOptions, SynthesizeOptions


def tune(base, images, out, method="dreambooth+lora", models=None, world="self", **options):
    options = FinetuneOptions(**({"method": method, "images_per_concept": 2, "steps_per_image": 2, "batch": 2, "rank": 4, "lr": 1e-2} | options))
    options = options.model_copy(update={"caption_template": "picture of person {}"})
    loop.finetune(base, images, world, "tune", out, options, stop=1, device="cpu", models=models)
    return modelset.ModelSet.load(out)


def tensors(made, number=-1):
    folder = made.path(made.rows()[number])
    return {f"{path.parent.name}/{name}": value for path in sorted(folder.rglob("*.safetensors")) for name, value in load_file(path).items()}


def same(first, second):
    names = {name.split("/")[-1] for name in first}
    second = {name.split("/")[-1]: value for name, value in second.items()}
    return names == set(second) and all(np.array_equal(value, second[name.split("/")[-1]]) for name, value in first.items())


def test_marks_are_evenly_spaced_and_end_at_the_last_step():
    assert loop.marks(12, 4) == [3, 6, 9, 12] and loop.marks(12, 1) == [12] and loop.marks(2, 5) == [1, 2]


def test_a_kept_model_is_the_one_that_a_shorter_fine_tune_ends_with(tiny_base, tiny_images, tmp_path):
    kept = tune(tiny_base, tiny_images, tmp_path / "kept", snapshots=2)
    assert list(kept.table.step) == ["2", "4"] and kept.table.model_id.nunique() == 2
    short = tune(tiny_base, tiny_images, tmp_path / "short", steps_per_image=1)
    assert same(tensors(kept, 0), tensors(short)) and not same(tensors(kept, 1), tensors(short))


@pytest.mark.parametrize("method", ["dreambooth+lora", "end-to-end", "textual-inversion+hypernetwork"])
def test_a_second_round_starts_where_the_first_ended(tiny_base, tiny_images, tmp_path, method):
    first = tune(tiny_base, tiny_images, tmp_path / "first", method)
    idle = tune(tiny_base, tiny_images, tmp_path / "idle", method, models=first.folder, world="rounds=2", lr=0.0, steps_per_image=1)
    assert same(tensors(first), tensors(idle)) and list(idle.table.step) == ["6"] and list(idle.table.world) == ["rounds=2"]
    further = tune(tiny_base, tiny_images, tmp_path / "further", method, models=first.folder, world="rounds=2")
    assert not same(tensors(first), tensors(further))


def test_a_round_goes_on_from_exactly_one_model_that_fits(tiny_base, tiny_images, tmp_path):
    first = tune(tiny_base, tiny_images, tmp_path / "first")
    with pytest.raises(InputError, match="rank 4, the one trained here 2"):
        tune(tiny_base, tiny_images, tmp_path / "rank", models=first.folder, rank=2)
    with pytest.raises(InputError, match="0 end-to-end models"):
        tune(tiny_base, tiny_images, tmp_path / "method", "end-to-end", models=first.folder)
    with pytest.raises(InputError, match="holds no LoRA of the modules"):
        tune(tiny_base, tiny_images, tmp_path / "modules", models=first.folder, target_modules=["to_q"])


def test_a_blended_set_is_the_mean_of_two_captions(tiny_base, tiny_images, tmp_path):
    def drawn(name, **options):
        chosen = SynthesizeOptions(count=2, steps=2, **options)
        synthesize.synthesize(tiny_images, tiny_base, tmp_path / name, chosen, stop=1, device="cpu")
        return modelset.pd.read_csv(tmp_path / name / "manifest.csv"), loop.ImageSet.load(tmp_path / name).pixels()

    own, other, (table, half) = drawn("self")[1], drawn("another", kind="another")[1], drawn("half", blend=0.25, blend_share=0.5)
    assert list(table.source) == ["blended", "drawn"] and (half[1] == own[1]).all()
    assert np.abs(half[0] - (0.75 * own[0] + 0.25 * other[0])).max() <= 0.5
