"""A CLIP text encoder as a search needs it: encodings of many endings of one beginning, and of whole captions; and text from token ids.

A token's encoding depends on the tokens before it and on none after, so keys and values of a beginning are computed once for all its endings. Words may also
be given by their embeddings, which need not belong to a token; such encodings have gradients.
"""

import torch


class CausalEncoder:
    """A causal text encoder (transformers' CLIPTextModel) for captions of at most `length` tokens, start and end included. Encodings are float64 on the CPU."""

    def __init__(self, text_encoder, tokenizer, length):
        self.body, self.tokenizer, self.length = getattr(text_encoder, "text_model", text_encoder), tokenizer, length
        self.device = next(text_encoder.parameters()).device
        self.start, self.end, self.pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id

    def ids(self, text):
        """Token ids of a text, without start and end, cut to what fits between them."""
        return tuple(self.tokenizer(text, add_special_tokens=False).input_ids[: self.length - 2])

    def text(self, ids):
        """Token ids -> text: pieces are joined, words separated by spaces."""
        return "".join(piece.replace("</w>", " ") for piece in self.tokenizer.convert_ids_to_tokens(list(ids))).strip()

    def closing(self, used):
        """The end token and the padding behind it after `used` tokens, the start not counted."""
        return [self.end, *[self.pad] * self.length][: self.length - 1 - used]

    def beginning(self, ids):
        """Encodings `(1 + n, d)` of the start and of the n token ids of a beginning."""
        return self.endings((), [[*ids, self.end]], start=True)[0][:-1]

    def caption(self, ids):
        """Encodings `(L, d)` of a whole caption of token ids: start, ids, end, padding."""
        return self.endings((), [[*ids, *self.closing(len(ids))]], start=True)[0]

    def embedded(self, ids):
        """Embeddings `(..., d')` of token ids `(...,)`, without their places."""
        return self.body.embeddings.token_embedding(torch.as_tensor(ids, device=self.device)).detach()

    def mixed(self, words):
        """Encodings `(n, L, d)` of whole captions whose words are embeddings `(n, m, d')`, mixtures of tokens' for instance, with start, end and padding."""
        start, closing = (self.embedded(part).expand(len(words), -1, -1) for part in ([self.start], self.closing(words.shape[1])))
        return self._pass(torch.cat([start, words, closing], 1), None)[0]

    @torch.inference_mode()
    def endings(self, beginning, endings, start=False, batch=4096):
        """Encodings `(n, m, d)` of the places of `endings`, token ids `(n, m)`, after start and the ids `beginning`; with `start` those of both come first
        (then there is one ending)."""
        first = [self.start, *beginning]
        before, past = self._pass(self.embedded([first]), None)
        past = [(key[0], value[0]) for key, value in past]
        tokens = torch.as_tensor(endings, device=self.device)
        parts = [self._pass(self.embedded(part), past)[0] for part in tokens.split(max(1, batch // max(tokens.shape[1], 1)))]
        found = torch.cat(parts).cpu().double()
        return torch.cat([before.cpu().double(), found], 1) if start else found

    def _pass(self, embedded, past):
        """Encodings `(n, m, d)` of embeddings `(n, m, d')` behind a beginning with keys and values `(places, heads, width)` per layer in `past`, and their
        own."""
        m = embedded.shape[1]
        done = past[0][0].shape[0] if past else 0
        hidden = embedded + self.body.embeddings.position_embedding.weight[done : done + m]
        later = torch.triu(torch.ones(m, m, dtype=torch.bool, device=self.device), 1)
        own = []
        for number, layer in enumerate(self.body.encoder.layers):
            attention, normed = layer.self_attn, layer.layer_norm1(hidden)
            query, key, value = (part(normed).unflatten(-1, (attention.num_heads, -1)) for part in (attention.q_proj, attention.k_proj, attention.v_proj))
            scores = torch.einsum("nmhw,nkhw->nhmk", query, key).masked_fill(later, -torch.inf)
            if done:
                scores = torch.cat([torch.einsum("nmhw,phw->nhmp", query, past[number][0]), scores], -1)
            weights = torch.softmax(scores * query.shape[-1] ** -0.5, -1)
            mixed = torch.einsum("nhmk,nkhw->nmhw", weights[..., done:], value)
            if done:
                mixed = mixed + torch.einsum("nhmp,phw->nmhw", weights[..., :done], past[number][1])
            hidden = hidden + attention.out_proj(mixed.flatten(2))
            hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
            own.append((key, value))
        return self.body.final_layer_norm(hidden), own
