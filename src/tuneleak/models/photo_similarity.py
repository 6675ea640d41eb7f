"""The similarities by which the paper of the network autoencoder judges photographs: CLIP-I, CLIP-T and DINO (dossier, section 3).

CLIP-I = (cos + 1) / 2 of CLIP image embeddings; DINO = (cos + 1) / 2 of the last hidden states of a self-supervised ViT, all tokens in one vector;
CLIP-T = 100 cos of picture and true prompt, at least 0 (Hessel et al. 2021). The published choices are CLIP ViT-L/14, DINO ViT-S/16 and CLIP
ViT-B/16. Networks are opened from local folders (safetensors only, see `tuneleak fetch`). Strangers score near .5 on the halved scale, so the raw
cosine belongs beside it.
"""

import numpy as np
import torch
from torch.nn import functional as F

from tuneleak.data.imageset import as_tensor
from tuneleak.errors import InputError

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PhotoSimilarity:
    """clip_image, clip_text, dino: folders; each may be empty, and its similarity is then not measured."""

    def __init__(self, clip_image="", clip_text="", dino="", device="cpu"):
        self.device = torch.device(device)
        self.clip_image, self.clip_text = (self._open("CLIPModel", folder) for folder in (clip_image, clip_text))
        self.dino = self._open("ViTModel", dino)
        self.tokenizer = None
        if clip_text:
            from transformers import CLIPTokenizer

            self.tokenizer = CLIPTokenizer.from_pretrained(clip_text, local_files_only=True)

    def of(self, drawn, private, captions):
        """{`clip_i`, `clip_t`, `dino`: `(V,)`} of those measured.

        drawn: uint8 `(V, n, h, w, 3)`; private: list of V arrays uint8 `(m, h, w, 3)`; captions: V true prompts.
        """
        found = {}
        for name, network, features in (("clip_i", self.clip_image, self._clip), ("dino", self.dino, self._states)):
            if network is not None:
                pairs = zip(drawn, private, strict=True)
                found[name] = np.array([(float((features(mine) @ features(theirs).T).mean()) + 1) / 2 for mine, theirs in pairs])
        if self.clip_text is not None:
            pairs = zip(drawn, self._prompts(captions), strict=True)
            found["clip_t"] = np.array([100 * float((self._clip(mine, self.clip_text) @ prompt).clamp(min=0).mean()) for mine, prompt in pairs])
        return found

    def _open(self, kind, folder):
        if not folder:
            return None
        import transformers

        try:
            network = getattr(transformers, kind).from_pretrained(folder, use_safetensors=True, local_files_only=True, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise InputError(f"{folder} is no local {kind} with safetensors weights ({error}); `tuneleak fetch` makes one") from None
        return network.to(self.device).eval().requires_grad_(False)

    @torch.inference_mode()
    def _clip(self, pixels, network=None):
        network = network or self.clip_image
        x = _prepared(pixels, network.config.vision_config.image_size, CLIP_MEAN, CLIP_STD).to(self.device)
        pooled = network.vision_model(pixel_values=x).pooler_output
        return F.normalize(network.visual_projection(pooled), dim=-1).cpu()

    @torch.inference_mode()
    def _states(self, pixels):
        x = _prepared(pixels, self.dino.config.image_size, IMAGENET_MEAN, IMAGENET_STD).to(self.device)
        return F.normalize(self.dino(pixel_values=x).last_hidden_state.flatten(1), dim=-1).cpu()

    @torch.inference_mode()
    def _prompts(self, captions):
        length = self.clip_text.config.text_config.max_position_embeddings
        tokens = self.tokenizer(list(captions), padding="max_length", max_length=length, truncation=True, return_tensors="pt").to(self.device)
        pooled = self.clip_text.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
        return F.normalize(self.clip_text.text_projection(pooled), dim=-1).cpu()


def _prepared(pixels, side, mean, std):
    """uint8 `(n, h, w, 3)` -> `(n, 3, side, side)`: shorter side resized (bicubic), centre cropped, normalised."""
    x = as_tensor(pixels)
    scale = side / min(x.shape[-2:])
    size = [max(side, round(length * scale)) for length in x.shape[-2:]]
    x = F.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)
    top, left = ((length - side) // 2 for length in size)
    x = (x[..., top : top + side, left : left + side] + 1) / 2
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    return (x - mean) / std
