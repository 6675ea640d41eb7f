"""A CLIP text encoder as a search needs it: encodings of all tokens behind one beginning, and of whole captions; and text from token ids.

A token's encoding depends on the tokens before it and on none after, so keys and values of a beginning are computed once for all that may follow, and kept for
a search that comes back to it. Words may also be given by their embeddings, which need not belong to a token; such encodings have gradients.
"""

import functools

import torch

BATCH = 4096  # tokens encoded at a time
KEPT_BYTES = 2**28  # of encodings of all tokens behind beginnings: one beginning of Stable Diffusion's, 200 in the embedded world


class CausalEncoder:
    """A causal text encoder (transformers' CLIPTextModel) for captions of at most `length` tokens, start and end included. Encodings are float64 on the CPU."""

    def __init__(self, text_encoder, tokenizer, length):
        self.body, self.tokenizer, self.length = getattr(text_encoder, "text_model", text_encoder), tokenizer, length
        self.device = next(text_encoder.parameters()).device
        self.start, self.end, self.pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
        largest = 4 * len(tokenizer) * text_encoder.config.hidden_size  # bytes behind one beginning
        self._kept = functools.lru_cache(max(KEPT_BYTES // largest, 1))(self._continued)

    def ids(self, text):
        """Token ids of a text, without start and end, cut to what fits between them."""
        return tuple(self.tokenizer(text, add_special_tokens=False).input_ids[: self.length - 2])

    def text(self, ids):
        """Token ids -> text: pieces are joined, words separated by spaces."""
        return "".join(piece.replace("</w>", " ") for piece in self.tokenizer.convert_ids_to_tokens(list(ids))).strip()

    def closing(self, used):
        """The end token and the padding behind it after `used` tokens, the start not counted."""
        return [self.end, *[self.pad] * self.length][: self.length - 1 - used]

    def caption(self, ids):
        """Encodings `(L, d)` of a whole caption of token ids: start, ids, end, padding."""
        return self.captions([ids])[0]

    @torch.inference_mode()
    def captions(self, found):
        """Encodings `(n, L, d)` of whole captions, see `caption`."""
        tokens = torch.tensor([(self.start, *ids, *self.closing(len(ids))) for ids in found], dtype=torch.long).view(len(found), self.length)
        parts = [self._pass(self.embedded(part), None)[0] for part in tokens.split(max(BATCH // self.length, 1))]
        return torch.cat(parts).cpu().double()

    def embedded(self, ids):
        """Embeddings `(..., d')` of token ids `(...,)`, without their places."""
        return self.body.embeddings.token_embedding(torch.as_tensor(ids, dtype=torch.long, device=self.device)).detach()

    def mixed(self, words):
        """Encodings `(n, L, d)` of whole captions whose words are embeddings `(n, m, d')`, mixtures of tokens' for instance, with start, end and padding."""
        start, closing = (self.embedded(part).expand(len(words), -1, -1) for part in ([self.start], self.closing(words.shape[1])))
        return self._pass(torch.cat([start, words, closing], 1), None)[0]

    def continued(self, beginning, tokens):
        """Encodings `(1 + n, d)` of start and the n token ids `beginning`, and `(t, d)` of each of the token ids `tokens` next behind them."""
        return tuple(part.double() for part in self._kept(tuple(beginning), tuple(tokens)))

    @torch.inference_mode()
    def _continued(self, beginning, tokens):
        before, past = self._pass(self.embedded([[self.start, *beginning]]), None)
        past = [(key[0], value[0]) for key, value in past]
        after = [self._pass(self.embedded(part)[:, None], past)[0][:, 0] for part in torch.tensor(tokens).split(BATCH)]
        return before[0].cpu(), torch.cat(after).cpu()

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
