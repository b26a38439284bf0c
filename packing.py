"""Training on answers that share their prompts: rows of tokens without padding, in which a prompt stands once.

GRPO samples n answers to a prompt, and SFT on all solutions has several, so most of what a padded batch would compute
is computed once here, or not at all. The results are those of separate rows: packing changes time, not the gradient.

Letters for shapes are those of model.py. A batch has P prompts and R answers, whose tokens are ΣA in all. A packed row
has N tokens. Tp is the length of the longest prompt of a batch, Ta that of the longest answer (without its last token).
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import kernels
from kernels import LogProb
from model import GPT, Attend


class Packed:
    """Prompts and their answers as one row of N tokens without padding; a prompt stands there once for all its answers.

        tokens:     prompt 0 | prompt 1 | ... | answer 0               | answer 1 | ...
        positions:  0 1 2 .. | 0 1 2 .. | ... | go on after its prompt | ...

    The last token of an answer predicts nothing and is left out of the row. The model's matrix products see the N
    tokens as they stand; only for attention are they laid out in another way, in which an answer sees its prompt.

    The Triton kernels take the row as it stands, in another order: each prompt right before its answers. The prompt's
    last token, whose hidden state predicts the first token of an answer, is taken out of the prompt and begins each
    answer: else the gradients of all answers would meet in one hidden state, and a GPU adds them in an order that
    changes from run to run.

        tokens:     prompt 0 but for its last token | that token, answer 0 | that token, answer 1 | prompt 1 ...

    Args:
        prompts: token ids of P prompts. answers: token ids of R answers. owner: (R,) index of each answer's prompt.
    """

    def __init__(self, prompts: list[list[int]], answers: list[list[int]], owner: list[int], device: torch.device):
        def row(pieces):  # the pieces, one behind the other, as a tensor
            return torch.from_numpy(np.concatenate(pieces).astype(np.int64)).to(device)

        # The pieces of the row, and where each stands: prompts, then answers; or each prompt before its answers
        on_triton = kernels.on_triton(torch.empty(0, device=device))
        shared = [len(prompt) - on_triton for prompt in prompts]  # tokens of each prompt that stand in the row once
        pieces = [prompt[:n] for prompt, n in zip(prompts, shared, strict=True)]
        pieces += [[*prompts[o][shared[o] :], *answer[:-1]] for o, answer in zip(owner, answers, strict=True)]
        group = np.array([*range(len(prompts)), *owner])  # the prompt of each piece
        order = np.argsort(group, kind="stable") if on_triton else np.arange(len(pieces))
        length = np.array([len(piece) for piece in pieces])
        start = np.empty_like(length)
        start[order] = np.cumsum(length[order]) - length[order]
        places = [np.arange(s, s + n) for s, n in zip(start, length, strict=True)]
        prompt_places, answer_places = places[: len(prompts)], places[len(prompts) :]

        # Tokens and positions of the row, (1, N). Positions of an answer go on after its prompt
        begin = np.array([0] * len(prompts) + [shared[o] for o in owner])
        self.tokens = row([pieces[i] for i in order])[None]
        self.positions = row([begin[i] + np.arange(length[i]) for i in order])[None]

        # For each answer token, (ΣA,): the token itself; where in the row the token before it stands, whose hidden
        # state predicts it (for the first token of an answer, the last one of its prompt); and the number of its answer
        self.targets = row(answers)
        first = [[] if on_triton else prompt_places[o][-1:] for o in owner]
        self.predictor = row([np.append(*places) for places in zip(first, answer_places, strict=True)])
        lengths = np.array([len(answer) for answer in answers])
        self.answer = row([np.repeat(np.arange(len(answers)), lengths)])

        # In attention an answer sees its prompt and itself. Two ways to compute that, of the same result
        if on_triton:
            self.attend = documents(start[order], length[order], group[order], device)
        else:
            self.attend = padded_rows(prompt_places, answer_places, owner, device)
        # (tokens of a prompt, tokens of each of its answers), for model.answers_flops
        self.lengths = [(len(prompt), []) for prompt in prompts]
        for o, answer in zip(owner, answers, strict=True):
            self.lengths[o][1].append(len(answer))

    def log_probs(self, model: GPT, temperature: float, entropy: bool = False) -> LogProb:
        """Log-prob, and what else LogProb has, of every answer token: (ΣA,) each, in the order of `targets`."""
        hidden = model(self.tokens, self.positions, self.attend)[0]  # (N, C)
        return kernels.linear_log_prob(
            hidden.index_select(0, self.predictor), model.head.weight, self.targets, temperature, entropy
        )

    def per_token(self, values: list[float]) -> Tensor:
        """(ΣA,) the value of each answer at every one of its tokens."""
        return torch.tensor(values, device=self.answer.device)[self.answer]


def padded_rows(
    prompt_places: list[np.ndarray], answer_places: list[np.ndarray], owner: list[int], device: torch.device
) -> Attend:
    """Attention of a packed row, laid out with padding: (P, Tp) prompts, and (R, Ta) answers of which each sees its
    prompt and itself.

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


def documents(start: np.ndarray, length: np.ndarray, group: np.ndarray, device: torch.device) -> Attend:
    """Attention of a packed row as it stands, with the Triton kernels, which know prompts that documents share.

    Args:
        start, length, group: of each piece in the order of the row, where it starts, its tokens and the number of its
            prompt. A prompt is the first piece of its group.
    """
    first = np.searchsorted(group, group)  # for each piece, its prompt
    per_piece = np.stack([start, start[first], start[first] + length[first]])  # doc_start, and prompt from and to
    doc_start, *prompt = torch.from_numpy(np.repeat(per_piece, length, axis=1)).int().to(device)[:, None]  # (1, N) each
    prompt = torch.stack(prompt)  # (2, 1, N)

    def attend(layer, q, k, v):
        return kernels.attention(q, k, v, doc_start, prompt)

    return attend


def packed_batches(
    items: list[tuple[list[int], list[list[int]]]], micro_tokens: int, device: torch.device
) -> Iterator[tuple[Packed, list[tuple[int, list[int]]]]]:
    """(prompt, answers) items as Packed batches of at most micro_tokens tokens, or of one answer that has more.

    With each batch comes what is in it, `parts`: pairs (index of an item, indices of those of its answers that are in
    the batch). Items stay in their order, and only one that is too large for a batch is divided.
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
