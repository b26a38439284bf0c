"""Training on answers that share their prompts: rows of tokens without padding, in which a prompt stands once.

GRPO samples n answers to a prompt, and SFT on all solutions has several, so most of what a padded batch would compute
is computed once here, or not at all. The results are those of separate rows: packing changes time, not the gradient.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import kernels
from kernels import LogProb
from model import GPT, sequence_flops


class Packed:
    """Prompts and their answers as one row of tokens without padding; a prompt stands there once for all its answers.

        tokens:  prompt 0 | prompt 1 | ... | answer 0 | answer 1 | ...        (1, N)

    The matrix products see only real tokens. Attention is laid out in padded rows: a prompt attends to itself, an
    answer to its prompt and itself. (With the Triton kernels: in one row of documents, prompt + answer each, without
    padding.) The last token of an answer predicts nothing and is left out of the input.

    Args:
        prompts: token ids of P prompts. answers: token ids of R answers. owner: (R,) index of each answer's prompt.
    """

    def __init__(self, prompts: list[list[int]], answers: list[list[int]], owner: list[int], device: torch.device):
        p_len, a_len = np.array([len(p) for p in prompts]), np.array([len(a) for a in answers])
        owner = np.asarray(owner)
        inputs = [*prompts, *(a[:-1] for a in answers)]
        lengths = np.concatenate([p_len, a_len - 1])
        starts = np.cumsum(lengths) - lengths
        offset = np.concatenate([np.zeros(len(prompts), int), p_len[owner]])  # position of each piece's first token
        within = np.arange(lengths.sum()) - np.repeat(starts, lengths)
        p_starts, a_starts = starts[: len(prompts)], starts[len(prompts) :]

        self.device, self._lengths, put = device, (p_len, a_len, owner), self.put

        self.tokens = put(np.concatenate(inputs).astype(np.int64))[None]  # (1, N)
        self.positions = put(within + np.repeat(offset, lengths))[None]  # (1, N)
        self.targets = put(np.concatenate(answers).astype(np.int64))  # (ΣA,) every answer token
        # The state that predicts answer token t: the prompt's last one for t = 0, else that of token t - 1
        t = np.arange(a_len.sum()) - np.repeat(np.cumsum(a_len) - a_len, a_len)
        before = np.repeat(a_starts, a_len) + t - 1
        first = np.repeat((p_starts + p_len - 1)[owner], a_len)
        self.predictor = put(np.where(t == 0, first, before))  # (ΣA,)
        self.answer = put(np.repeat(np.arange(len(answers)), a_len))  # (ΣA,) which answer a target belongs to

        self._documents = None
        if kernels.on_triton(self.tokens):
            pieces = [np.r_[p_starts[o] : p_starts[o] + p_len[o], a : a + m]
                      for o, a, m in zip(owner, a_starts, a_len - 1, strict=True)]  # fmt: skip
            tokens, length = np.concatenate(pieces), np.array([len(piece) for piece in pieces])
            first = np.unique(tokens, return_index=True)[1]  # a prompt's result: from the first of its documents
            self._documents = put(tokens), put(np.repeat(np.cumsum(length) - length, length))[None], put(first)
            return

        # Padded layouts: indices into the N tokens (padding reads token 0 and is masked), and back
        width_p, width_a = p_len.max(), max(1, (a_len - 1).max())
        self._prompt_index, p_valid = self._pad(p_starts, p_len, width_p, put)  # (P, Tp)
        self._answer_index, a_valid = self._pad(a_starts, a_len - 1, width_a, put)  # (R, Ta)
        self._owner = put(owner)
        self._back = put(np.concatenate([np.flatnonzero(p_valid), p_valid.size + np.flatnonzero(a_valid)]))
        sees_prompt = np.broadcast_to(p_valid[owner][:, None], (len(answers), width_a, width_p))
        sees_answer = np.broadcast_to(np.tril(np.ones((width_a, width_a), bool)), (len(answers), width_a, width_a))
        self._visible = put(np.concatenate([sees_prompt, sees_answer], 2))[:, None]  # (R, 1, Ta, Tp + Ta)

    def put(self, array: np.ndarray) -> Tensor:
        """An array on the device of this batch."""
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def per_token(self, values: list[float]) -> Tensor:
        """(ΣA,) the value of each answer at every one of its tokens."""
        return torch.tensor(values, device=self.device)[self.answer]

    def forward_flops(self, model: GPT) -> float:
        """FLOPs of a forward pass over this batch."""
        p_len, a_len, owner = self._lengths
        flops = 0.0
        for i, length in enumerate(p_len):
            answers = a_len[owner == i]
            flops += sequence_flops(model.config, int(length), float(answers.mean()), len(answers))
        return flops

    @staticmethod
    def _pad(starts, lengths, width, put):
        column = np.arange(width)
        valid = column < lengths[:, None]
        return put(np.where(valid, starts[:, None] + column, 0)), valid

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of the packed tokens: q (1, N, H, D), k and v (1, N, H_kv, D) -> (1, N, H, D)."""
        if self._documents is not None:
            tokens, doc_start, first = self._documents
            q, k, v = (x.index_select(1, tokens) for x in (q, k, v))
            return kernels.attention(q, k, v, doc_start).index_select(1, first)

        def rows(x, index):  # (1, N, H, D) -> (rows, T, H, D)
            return x[0].index_select(0, index.flatten()).view(*index.shape, *x.shape[2:])

        prompt_k, prompt_v = rows(k, self._prompt_index), rows(v, self._prompt_index)
        out_prompt = kernels.attention(rows(q, self._prompt_index), prompt_k, prompt_v)
        keys, values = (
            torch.cat([prompt.index_select(0, self._owner), rows(x, self._answer_index)], 1).transpose(1, 2)
            for prompt, x in ((prompt_k, k), (prompt_v, v))
        )  # (R, H_kv, Tp + Ta, D)
        out_answer = F.scaled_dot_product_attention(
            rows(q, self._answer_index).transpose(1, 2),
            keys,
            values,
            attn_mask=self._visible,
            enable_gqa=q.shape[2] != k.shape[2],
        ).transpose(1, 2)  # (R, Ta, H, D)
        both = torch.cat([out_prompt.flatten(0, 1), out_answer.flatten(0, 1)])
        return both.index_select(0, self._back)[None]

    def log_probs(self, model: GPT, temperature: float, entropy: bool = False) -> LogProb:
        """Of every answer token, (ΣA,), in the order of `targets`."""
        hidden = model(self.tokens, self.positions, self.attend)[0]  # (N, C)
        return kernels.linear_log_prob(
            hidden.index_select(0, self.predictor), model.head.weight, self.targets, temperature, entropy
        )


def packed_batches(
    items: list[tuple[list[int], list[list[int]]]], micro_tokens: int, device: torch.device
) -> Iterator[tuple[Packed, list[tuple[int, list[int]]]]]:
    """(prompt, answers) items as Packed batches of at most about `micro_tokens` tokens, each with its parts: pairs of
    an item's index and which of its answers are in the batch. An item is divided only if it is too large for any batch.
    """
    parts, size = [], 0

    def batch():
        return Packed(
            [items[i][0] for i, _ in parts],
            [items[i][1][r] for i, rows in parts for r in rows],
            [place for place, (_, rows) in enumerate(parts) for _ in rows],
            device,
        )

    for i, (prompt, answers) in enumerate(items):
        rows = sorted(range(len(answers)), key=lambda r: len(answers[r]))  # so that a divided item is hardly padded
        total = len(prompt) + sum(map(len, answers))
        if parts and size + total > micro_tokens:
            yield batch(), parts
            parts, size = [], 0
        while total > micro_tokens and len(rows) > 1:
            taken, part_size = 1, len(prompt) + len(answers[rows[0]])
            while taken < len(rows) and part_size + len(answers[rows[taken]]) <= micro_tokens:
                part_size += len(answers[rows[taken]])
                taken += 1
            if taken == len(rows):
                break
            parts, rows = [(i, rows[:taken])], rows[taken:]
            yield batch(), parts
            parts, total = [], len(prompt) + sum(len(answers[r]) for r in rows)
        parts.append((i, rows))
        size += total
    if parts:
        yield batch(), parts
