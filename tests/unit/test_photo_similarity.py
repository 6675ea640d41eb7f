"""CLIP-I, CLIP-T and DINO, on tiny random networks of the real classes."""

import numpy as np
import pytest
import torch

from tuneleak.errors import InputError
from tuneleak.models import photo_similarity, tokenizer

TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

    root, words = tmp_path_factory.mktemp("networks"), tokenizer.build(words=["picture", "person"], length=16)
    text = TOWER | {"vocab_size": len(words), "max_position_embeddings": 16, "bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = CLIPModel(CLIPConfig(text_config=text, vision_config=TOWER | {"image_size": 16, "patch_size": 8}, projection_dim=12)).eval()
        vit = ViTModel(ViTConfig(**TOWER, image_size=16, patch_size=8)).eval()
    clip.save_pretrained(root / "clip")
    words.save_pretrained(root / "clip")
    vit.save_pretrained(root / "dino")
    return root, clip, vit, words


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16, 3), dtype=np.uint8)


def test_scales_are_those_of_the_paper(folders, pictures):
    root, clip, vit, words = folders
    judge = photo_similarity.PhotoSimilarity(root / "clip", root / "clip", root / "dino")
    found = judge.of(pictures, [pictures[0][:1], pictures[0][:1]], ["picture of person ada", "picture"])
    assert set(found) == {"clip_i", "clip_t", "dino"} and all(len(values) == 2 for values in found.values())
    same = judge.of(pictures[:1, :1], [pictures[0][:1]], ["picture"])
    assert same["clip_i"][0] == pytest.approx(1, abs=1e-5) == same["dino"][0]

    def prepared(mean, std):
        x = torch.from_numpy(pictures[0][:2]).permute(0, 3, 1, 2) / 255
        return (x - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)

    ids = words(["picture"], padding="max_length", max_length=16, return_tensors="pt")
    with torch.no_grad():
        out = clip(pixel_values=prepared(photo_similarity.CLIP_MEAN, photo_similarity.CLIP_STD), **ids)
        states = torch.nn.functional.normalize(
            vit(prepared(photo_similarity.IMAGENET_MEAN, photo_similarity.IMAGENET_STD)).last_hidden_state.flatten(1), dim=-1
        )
    pair = judge.of(pictures[:1, :1], [pictures[0][1:2]], ["picture"])
    assert pair["clip_i"][0] == pytest.approx(float(out.image_embeds[0] @ out.image_embeds[1] + 1) / 2, abs=1e-4)
    assert pair["dino"][0] == pytest.approx(float(states[0] @ states[1] + 1) / 2, abs=1e-4)
    assert pair["clip_t"][0] == pytest.approx(100 * max(0.0, float(out.image_embeds[0] @ out.text_embeds[0])), abs=1e-2)


def test_only_what_is_given_is_measured_and_pictures_of_any_shape_are_taken(folders):
    root, *_ = folders
    judge = photo_similarity.PhotoSimilarity(dino=root / "dino")
    drawn, private = np.zeros((1, 2, 20, 40, 3), np.uint8), [np.full((1, 50, 30, 3), 255, np.uint8)]
    assert set(judge.of(drawn, private, ["x"])) == {"dino"}
    with pytest.raises(InputError, match="is no local CLIPModel"):
        photo_similarity.PhotoSimilarity(clip_image=root / "nothing")
