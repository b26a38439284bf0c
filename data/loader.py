"""Batches of token windows: memory-mapped, deterministic, resumable, the same on any number of ranks.

    loader = Loader("out/data", parse_mix("general=0.6,math=0.4"), batch_size=32, seq_len=128, seed=0)
    for step, batch in loader.iterate(start_step=0):          # (B, T + 1) int64
        inputs, targets = batch[:, :-1], batch[:, 1:]

A folder holds one sub-folder per source, as data/prepare.py writes them: `meta.json`, `train_*.npy`, `val_*.npy`.
The shards of a source are one long stream of tokens, cut into windows of T + 1 tokens that overlap by one, so that
every token but the first, and the last few that fill no window, is a target once an epoch.

A batch is a pure function of (seed, step), in closed form, so the cursor of a run is one integer and there is no
reader state to save:

    row i of step s        →  global row  r = s * batch_size + i
    r and the mixture      →  (source, index): `locate`, exact integer arithmetic
    (source, index)        →  epoch = index // windows, and the window that the permutation of
                              (seed, source, epoch) has at index % windows

Nothing here knows the world size: a rank asks for its own rows of the global batch.
"""

import math
import queue
import threading
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cli import UserError
from data.shards import Source, Tokens
from files import crc32, json_digest

# Named mixtures, for --mix, in % of tokens. dolmino50: OLMo2's 50 B tokens of DOLMino (arXiv 2501.00656, table of the
# stage-2 mixtures), which the paper pretrains on; its sources are those that `data.prepare --input dolmino` makes.
MIXES = {"dolmino50": "dclm=47.2,flan=16.6,pes2o=5.85,wiki=7.11,stackexchange=2.45,math=20.8"}


def parse_mix(text: str) -> dict[str, float] | None:
    """`"general=0.6,math=0.4"` → {"general": 0.6, "math": 0.4}; a name in MIXES → that; the empty string → None (by
    train tokens). Weights are relative (6 and 4 do the same). Raises UserError."""
    if not text.strip():
        return None
    mix = {}
    for part in MIXES.get(text.strip(), text).split(","):
        name, _, weight = (field.strip() for field in part.partition("="))
        if not name or name in mix:
            raise UserError(f"--mix {text!r}: {part!r} has no name or repeats one; write it as general=0.6,math=0.4")
        try:
            mix[name] = float(weight)
        except ValueError:
            raise UserError(
                f"--mix {text!r}: {weight!r} is not a number; write it as general=0.6,math=0.4, or name {', '.join(MIXES)}"
            ) from None
    return mix


def integer_weights(mix: dict[str, float]) -> dict[str, int]:
    """The same ratios in smallest integers, by name: {"math": 0.4, "general": 0.6} → {"general": 3, "math": 2}.

    Decimal weights are taken as written (0.1 is one tenth), so nothing is rounded. Raises UserError."""
    for name, weight in mix.items():
        if not (math.isfinite(weight) and weight > 0):
            raise UserError(
                f"mixture weight of {name!r} is {weight}: weights must be positive; leave a source out instead"
            )
    exact = {name: Fraction(str(mix[name])) for name in sorted(mix)}
    scale = math.lcm(*(weight.denominator for weight in exact.values()))
    weights = {name: int(weight * scale) for name, weight in exact.items()}
    divisor = math.gcd(*weights.values())
    return {name: weight // divisor for name, weight in weights.items()}


def locate(row: int, weights: dict[str, int]) -> tuple[str, int]:
    """The source of a global row and the row's index within that source, both in closed form.

    With weights w_1, w_2, … of sum W, source 1 gets floor(r * w_1 / W) of the first r rows: row r is its own where that
    count grows from r to r + 1. The other rows, renumbered r - floor(r * w_1 / W), are shared among the other sources
    in the same way. Every row has exactly one source, and the indices of a source count 0, 1, 2, … without gaps."""
    weights_left = sum(weights.values())
    for name, weight in weights.items():
        before, after = row * weight // weights_left, (row + 1) * weight // weights_left
        if after > before:  # this source's count grows at `row`
            return name, before
        row -= before
        weights_left -= weight
    raise AssertionError("the last source takes every row that is left")


class Loader:
    """Batches from the sources in `folder`, mixed by `mix` (None: in proportion to their train tokens; {}: there are no
    train batches, only held-out ones).

    Attributes: `sources` {name: Source}, `weights` {name: int}, `tokenizer` (its name), `vocab_size`, `digest` (of all
    train tokens)."""

    def __init__(self, folder: str | Path, mix: dict[str, float] | None, batch_size: int, seq_len: int, seed: int):
        folder = Path(folder)
        if batch_size < 1 or seq_len < 1:
            raise UserError(f"batch size {batch_size} and sequence length {seq_len} must be at least 1")
        if not folder.is_dir():
            raise UserError(
                f"{folder}: no such data folder; make one: python -m data.prepare --input ... --out {folder}"
            )
        self.folder, self.batch_size, self.seq_len, self.seed = folder, batch_size, seq_len, seed
        splits = ("val",) if mix == {} else ("train", "val")
        self.sources = {path.parent.name: Source(path.parent, splits) for path in sorted(folder.glob("*/meta.json"))}
        if not self.sources:
            raise UserError(f"{folder}: holds no prepared source (no */meta.json); see python -m data.prepare --help")
        self.tokenizer, self.vocab_size = self._one_tokenizer()

        if mix is None:  # a source without train tokens (all of it held out) is there to be measured on
            mix = {name: source.train.size for name, source in self.sources.items() if source.train.size}
            if not mix:
                raise UserError(f"{folder}: no source has train tokens; prepare one with --val_fraction below 1")
        for name in mix:
            if name not in self.sources:
                raise UserError(f"mixture names {name!r}, which is not in {folder}: it has {', '.join(self.sources)}")
            tokens = self.sources[name].train.size
            if tokens < seq_len + 1:
                raise UserError(
                    f"{folder / name}: {tokens} train tokens do not fill one window of {seq_len + 1}; "
                    "prepare more, shorten --seq_len or leave it out of --mix"
                )
        self.weights = integer_weights(mix)
        shards = {
            name: [self.sources[name].train.size, *self.sources[name].train.digests.values()] for name in self.weights
        }
        self.digest = json_digest({"train": shards})
        self._orders: dict[tuple[str, int], np.ndarray] = {}  # (source, epoch) → permutation of its windows

    def verify(self, process, splits: tuple[str, ...] = ("train", "val")) -> None:
        """UserError, on every rank, if a shard in use is not what was written. Reads them all, at the speed of the disk
        or of the digest (`files.crc32`), the ranks of `process` (process.Process) a part each; a bar if it takes
        long."""
        digests = {}
        for name, source in self.sources.items():
            digests |= source.val.digests if "val" in splits else {}
            digests |= source.train.digests if "train" in splits and name in self.weights else {}
        sizes = [path.stat().st_size for path in digests]
        mine = [list(digests)[i] for i in process.share(sizes)]
        total = sum(path.stat().st_size for path in mine)
        bar = tqdm(
            total=total, desc="verify", unit="B", unit_scale=True, disable=not process.main, delay=3, leave=False
        )
        with bar:
            damaged = [str(path) for path in sorted(mine) if crc32(path, progress=bar.update) != digests[path]]
        damaged = sorted(sum(process.gather(damaged), []))
        if damaged:
            more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
            raise UserError(f"{damaged[0]}{more}: damaged or changed since it was written (digest); prepare it again")

    def batch(self, step: int, rows: slice = slice(None)) -> np.ndarray:
        """Rows `rows` of the global batch of `step`: (len(rows), seq_len + 1) int64. Depends on (seed, step) alone."""
        windows = [self._row(step * self.batch_size + i) for i in range(*rows.indices(self.batch_size))]
        # (B, T + 1); a rank beyond the last row has none
        return np.stack(windows) if windows else np.empty((0, self.seq_len + 1), np.int64)

    def iterate(self, start_step: int, rows: slice = slice(None)) -> Iterator[tuple[int, np.ndarray]]:
        """(step, batch) from start_step on, without end; a thread reads the next batch while this one is in use.

        Closing the generator (leaving the for loop does) ends the thread; what the thread raises is raised here."""
        ready: queue.Queue = queue.Queue(maxsize=1)
        stop = threading.Event()

        def read_ahead():
            step = start_step
            while not stop.is_set():
                try:
                    item = (step, self.batch(step, rows))
                except Exception as error:
                    item = error
                while not stop.is_set():
                    try:
                        ready.put(item, timeout=0.1)
                        break
                    except queue.Full:
                        pass
                if isinstance(item, Exception):
                    return
                step += 1

        thread = threading.Thread(target=read_ahead, name="loader", daemon=True)
        thread.start()
        try:
            while True:
                item = ready.get()
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join()

    def val_batches(self, source: str, batch_size: int, n_tokens: int) -> Iterator[np.ndarray]:
        """Held-out windows of a source, spread evenly over its val tokens, the same on every call.

        Yields (≤ batch_size, seq_len + 1) int64, about n_tokens targets in all (at least one window, at most all)."""
        if source not in self.sources:
            raise UserError(f"{self.folder}: no source {source!r}; it has {', '.join(self.sources)}")
        val, available = self.sources[source].val, self.sources[source].val.windows(self.seq_len)
        if not available:
            raise UserError(
                f"{self.folder / source}: {val.size} held-out tokens do not fill one window of {self.seq_len + 1}; "
                "prepare it with a larger --val_fraction or shorten --seq_len"
            )
        count = min(available, max(1, n_tokens // self.seq_len))
        windows = [i * available // count for i in range(count)]
        for i in range(0, count, batch_size):
            yield np.stack([self._window(source, val, window) for window in windows[i : i + batch_size]])

    def _row(self, row: int) -> np.ndarray:
        """(T + 1,) the window at a global row."""
        name, index = locate(row, self.weights)
        epoch, position = divmod(index, self.sources[name].train.windows(self.seq_len))
        return self._window(name, self.sources[name].train, int(self._order(name, epoch)[position]))

    def _order(self, name: str, epoch: int) -> np.ndarray:
        """The permutation of (seed, source, epoch). Kept for the epochs in use: a batch can touch two, or, where a
        source is tiny, more, which are then made again."""
        order = self._orders.get((name, epoch))
        if order is None:
            rng = np.random.default_rng([self.seed, zlib.crc32(name.encode()), epoch])
            order = rng.permutation(self.sources[name].train.windows(self.seq_len))
            # copied, not changed in place: the reading thread and the caller may both be here
            kept = {key: value for key, value in self._orders.items() if key[0] != name or key[1] == epoch - 1}
            self._orders = kept | {(name, epoch): order}
        return order

    def _window(self, name: str, tokens: Tokens, window: int) -> np.ndarray:
        """(T + 1,) tokens. UserError for an id beyond the vocabulary."""
        out = tokens.read(window * self.seq_len, self.seq_len + 1)
        if out.max() >= self.vocab_size:
            raise UserError(
                f"{tokens.folder}: token id {out.max()} in window {window}, but {self.tokenizer!r} has {self.vocab_size}; "
                "the shards do not belong to this meta.json: prepare them again"
            )
        return out

    def _one_tokenizer(self) -> tuple[str, int]:
        """(name, vocabulary size). The size counts too: the world's vocabulary changes with the world."""
        found = {(source.tokenizer, source.vocab_size) for source in self.sources.values()}
        if len(found) > 1:
            listing = ", ".join(f"{s.name}: {s.tokenizer} of {s.vocab_size}" for s in self.sources.values())
            raise UserError(
                f"{self.folder}: sources of different tokenizers ({listing}); prepare them all with the same one"
            )
        return found.pop()
