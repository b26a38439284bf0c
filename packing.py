"""Training on answers that share their prompts: rows of tokens without padding, in which a prompt stands once.

GRPO samples n answers to a prompt, and SFT on all solutions has several, so most of what a padded batch would compute
is computed once here, or not at all. The results are those of separate rows: packing changes time, not the gradient.

Letters for shapes are those of model.py. A batch has P prompts and R answers, whose tokens are ΣA in all. A packed row has N
tokens. Tp is the length of the longest prompt of a batch, Ta that of the longest answer (without its last token).
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import kernels
from kernels import LogProb
from model import GPT, Attend, sequence_flops


class Packed:
    """Prompts and their answers as one row of N tokens without padding; a prompt stands there once for all its answers.

        tokens:     prompt 0 | prompt 1 | ... | answer 0             | answer 1 | ...
        positions:  0 1 2 .. | 0 1 2 .. | ... | go on after its prompt | ...

    The last token of an answer predicts nothing and is left out of the row. The model's matrix products see the N
    tokens as they stand; only for attention are they laid out in another way, in which an answer sees its prompt.

    Args:
        prompts: token ids of P prompts. answers: token ids of R answers. owner: (R,) index of each answer's prompt.
    """

    def __init__(self, prompts: list[list[int]], answers: list[list[int]], owner: list[int], device: torch.device):
        def row(pieces):  # the pieces, one behind the other, as a tensor
            return torch.from_numpy(np.concatenate(pieces).astype(np.int64)).to(device)

        # Tokens and positions of the packed row, (1, N)
        pieces = [*prompts, *(answer[:-1] for answer in answers)]
        ends = np.cumsum([len(piece) for piece in pieces])
        places = np.split(np.arange(ends[-1]), ends[:-1])  # of each piece: where its tokens stand in the row
        prompt_places, answer_places = places[: len(prompts)], places[len(prompts) :]
        self.tokens = row(pieces)[None]
        begin = [0] * len(prompts) + [len(prompts[o]) for o in owner]  # position of each piece's first token
        self.positions = row([b + np.arange(len(piece)) for b, piece in zip(begin, pieces, strict=True)])[None]

        # For each answer token, (ΣA,): the token itself; where in the row the token before it stands, whose hidden state
        # predicts it (for the first token of an answer, the last one of its prompt); and the number of its answer
        self.targets = row(answers)
        self.predictor = row([np.append(prompt_places[o][-1], at) for o, at in zip(owner, answer_places, strict=True)])
        lengths = np.array([len(answer) for answer in answers])
        self.answer = row([np.repeat(np.arange(len(answers)), lengths)])

        # In attention an answer sees its prompt and itself. Two ways to lay the tokens out for that, of the same result
        layout = documents if kernels.on_triton(self.tokens) else padded_rows
        self.attend = layout(prompt_places, answer_places, owner, device)
        self._lengths = [len(prompt) for prompt in prompts], lengths, np.array(owner)  # for forward_flops

    def log_probs(self, model: GPT, temperature: float, entropy: bool = False) -> LogProb:
        """Log-prob, and what else LogProb has, of every answer token: (ΣA,) each, in the order of `targets`."""
        hidden = model(self.tokens, self.positions, self.attend)[0]  # (N, C)
        return kernels.linear_log_prob(
            hidden.index_select(0, self.predictor), model.head.weight, self.targets, temperature, entropy
        )

    def per_token(self, values: list[float]) -> Tensor:
        """(ΣA,) the value of each answer at every one of its tokens."""
        return torch.tensor(values, device=self.answer.device)[self.answer]

    def forward_flops(self, model: GPT) -> float:
        """FLOPs of a forward pass over this batch."""
        prompt_lengths, lengths, owner = self._lengths
        flops = 0.0
        for i, prompt_length in enumerate(prompt_lengths):
            answers = lengths[owner == i]
            flops += sequence_flops(model.config, prompt_length, float(answers.mean()), len(answers))
        return flops


def padded_rows(
    prompt_places: list[np.ndarray], answer_places: list[np.ndarray], owner: list[int], device: torch.device
) -> Attend:
    """Attention of a packed row, laid out with padding: (P, Tp) prompts, and (R, Ta) answers of which each sees its prompt
    and itself.

    Args:
        prompt_places, answer_places: of each prompt and answer, where its tokens stand in the row. owner: as in Packed.
    """

    def pad(places):  # places in a rectangle, one prompt or answer a line; and which of them are no padding
        lengths = np.array([len(at) for at in places])
        valid = np.arange(max(1, lengths.max())) < lengths[:, None]
        # Padding reads token 0; no token sees it, and its own result is dropped
        index = np.zeros(valid.shape, dtype=np.int64)
        index[valid] = np.concatenate(places)
        return index, valid

    prompt_index, prompt_valid = pad(prompt_places)
    answer_index, answer_valid = pad(answer_places)

    # Which keys an answer's tokens see: all of its prompt, and the answer up to themselves
    r, ta = answer_index.shape
    sees_prompt = np.broadcast_to(prompt_valid[owner][:, None], (r, ta, prompt_index.shape[1]))
    sees_answer = np.broadcast_to(np.tri(ta, dtype=bool), (r, ta, ta))
    visible = np.concatenate([sees_prompt, sees_answer], 2)[:, None]  # (R, 1, Ta, Tp + Ta)
    # (N,) where the row's tokens are among the P·Tp + R·Ta padded ones: in both layouts prompts come first, then answers
    back = np.flatnonzero(np.concatenate([prompt_valid.ravel(), answer_valid.ravel()]))
    prompt_index, answer_index, owner, visible, back = (
        torch.from_numpy(x).to(device) for x in (prompt_index, answer_index, np.asarray(owner), visible, back)
    )

    def attend(layer, q, k, v):
        def rows(x, index):  # (1, N, H, D) -> (P, Tp, H, D) or (R, Ta, H, D)
            return x[0].index_select(0, index.flatten()).view(*index.shape, *x.shape[2:])

        # Prompts: causal attention; the padding stands behind them, where no token sees it
        prompt_k, prompt_v = rows(k, prompt_index), rows(v, prompt_index)
        out_prompt = kernels.attention(rows(q, prompt_index), prompt_k, prompt_v)  # (P, Tp, H, D)
        # Answers: the keys and values of an answer are its prompt's, then its own
        keys, values = (
            torch.cat([prompt.index_select(0, owner), rows(x, answer_index)], 1).transpose(1, 2)
            for prompt, x in ((prompt_k, k), (prompt_v, v))
        )  # (R, H_kv, Tp + Ta, D)
        query, grouped = rows(q, answer_index).transpose(1, 2), q.shape[2] != k.shape[2]
        out_answer = F.scaled_dot_product_attention(query, keys, values, attn_mask=visible, enable_gqa=grouped)
        out_answer = out_answer.transpose(1, 2)  # (R, Ta, H, D)
        # Back to the packed row, without the padding
        both = torch.cat([out_prompt.flatten(0, 1), out_answer.flatten(0, 1)])  # (P·Tp + R·Ta, H, D)
        return both.index_select(0, back)[None]

    return attend


def documents(
    prompt_places: list[np.ndarray], answer_places: list[np.ndarray], owner: list[int], device: torch.device
) -> Attend:
    """Attention of a packed row with the Triton kernels: laid out as one row of documents without padding, each of them a
    prompt and one answer. A prompt with n answers stands there n times. Arguments as of `padded_rows`."""
    pieces = [np.concatenate([prompt_places[o], at]) for o, at in zip(owner, answer_places, strict=True)]
    places, lengths = np.concatenate(pieces), np.array([len(piece) for piece in pieces])
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)  # for each token, where its document starts
    # (N,) for each place in the packed row, the first token of the documents that comes from it: n copies of a prompt have
    # the same result, and it is read from the first
    first = np.unique(places, return_index=True)[1]
    places, starts, first = (torch.from_numpy(x).to(device) for x in (places, starts, first))

    def attend(layer, q, k, v):
        q, k, v = (x.index_select(1, places) for x in (q, k, v))
        return kernels.attention(q, k, v, starts[None]).index_select(1, first)

    return attend


def packed_batches(
    items: list[tuple[list[int], list[list[int]]]], micro_tokens: int, device: torch.device
) -> Iterator[tuple[Packed, list[tuple[int, list[int]]]]]:
    """(prompt, answers) items as Packed batches of at most micro_tokens tokens, or of one answer that has more.

    With each batch comes what is in it, `parts`: pairs (index of an item, indices of those of its answers that are in the
    batch). Items stay in their order, and only one that is too large for a batch is divided.
    """

    def packed(parts):  # the batch of these parts
        prompts = [items[i][0] for i, _ in parts]
        answers = [items[i][1][row] for i, rows in parts for row in rows]
        return Packed(prompts, answers, [place for place, (_, rows) in enumerate(parts) for _ in rows], device)

    parts, size = [], 0
    for i, (prompt, answers) in enumerate(items):
        # Answers that are in no batch yet, the short ones first: where an item is divided, its parts are hardly padded
        left = sorted(range(len(answers)), key=lambda row: len(answers[row]))
        while left:
            tokens = len(prompt) + np.cumsum([len(answers[row]) for row in left])  # with one answer, with two, ...
            # An item that does not fit behind the others begins a new batch
            if parts and size + tokens[-1] > micro_tokens:
                yield packed(parts), parts
                parts, size = [], 0
            fitting = max(1, np.count_nonzero(tokens <= micro_tokens))  # how many of the answers left
            parts.append((i, left[:fitting]))
            size += tokens[fitting - 1]
            left = left[fitting:]
    if parts:
        yield packed(parts), parts
