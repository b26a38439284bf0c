"""Records of evaluated models, and how they are put beside each other: by recipe, checkpoint, replicate, step.

A record is what eval.py wrote (NAME.json.gz: per question n and how many were right) with NAME.cell.json beside it, by
an excursion: recipe, seed, pretraining tokens, training step, variant, training curve, a few samples, seconds. What a
record lacks (older ones have no `process`, `floor`, `entropy`, `step`) is absent, not zero.
"""

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from cli import UserError
from files import MALFORMED, read_json
from measures import pass_at_k

Key = tuple[int, int]  # of a replicate: seed of its pretraining run, seed of everything after


@dataclass
class Entry:
    """An evaluated model: its record and what .cell.json says of it."""

    record: dict
    meta: dict
    read: dict = field(default_factory=dict, repr=False)  # measure → its Row, of the measures that were read before

    @property
    def recipe(self) -> str:
        return self.meta["recipe"]

    @property
    def tokens(self) -> int:
        """Of pretraining."""
        return self.meta["tokens"]

    @property
    def variant(self) -> dict:
        return self.meta["variant"]

    @property
    def seeds(self) -> list[int]:
        """That it stands for: several, where they start from one base (--pretraining one, primary)."""
        return self.meta.get("seeds") or [self.meta["seed"]]

    @property
    def keys(self) -> list[Key]:
        """Replicates that it stands for, one a seed."""
        lineage = self.record.get("lineage") or [{}]
        pretrained = self.meta.get("pretraining_seed", lineage[0].get("args", {}).get("seed"))
        return [(seed if pretrained is None else pretrained, seed) for seed in self.seeds]

    @property
    def args(self) -> dict:
        """Flags of the last stage."""
        return (self.record.get("lineage") or [{}])[-1].get("args", {})

    @property
    def step(self) -> int:
        """Of the last stage; 0 for a base model."""
        return (
            0 if self.recipe in ("base", "base_0shot") else int(self.meta.get("step") or self.record.get("step") or 0)
        )

    @property
    def dose(self) -> float:
        """Sampled answers per training question that the last stage has used so far; nan if the record does not say."""
        args = self.args
        rollouts = args.get("rollouts", args.get("n"))  # older records: n
        known = rollouts and args.get("limit") and "prompts" in args
        return self.step * args["prompts"] * rollouts / args["limit"] if known else float("nan")

    @property
    def temperature(self) -> float:
        settings = next(iter(self.sets.values()), {})
        return float(self.meta.get("temperature") or settings.get("temperature") or 0.6)

    @property
    def sets(self) -> dict[str, dict]:
        """test set → its questions, and the means over them by kind ("strict", "process", "floor", ...) and pass@k."""
        return self.record["questions"]

    @property
    def largest_k(self) -> int:
        return max(int(key[5:]) for q in self.sets.values() for key in q["strict"])

    def floor(self, k: int) -> float | None:
        """Pass@k of answers that were meant for other questions, mean over all questions."""
        found = [(len(s["questions"]), s.get("floor", {}).get(f"pass@{k}")) for s in self.sets.values()]
        if not found or any(f is None for _, f in found):
            return None
        return sum(n * f for n, f in found) / sum(n for n, _ in found)

    @cached_property
    def bits(self) -> float:
        """Bits per byte of held-out text that is not math, mean over its sources; nan without any."""
        text = self.record["text"]
        values = [v["bits_per_byte"] for name, v in text.items() if name != "math" or len(text) == 1]
        return float(np.mean(values)) if values else float("nan")

    def curve(self, key: str) -> list[list[float]]:
        return self.meta["curve"].get(key, [])

    @property
    def validation(self) -> list[list[float]]:
        """[step, pass@1 on validation questions] along training, process-right where that was measured."""
        return self.curve("val_process@1") or self.curve("val_pass@1")


# What .cell.json has to hold, and of which kind; the first four may be missing
FIELDS = {"variant": dict, "curve": dict, "samples": list, "seconds": dict, "recipe": str, "seed": int, "tokens": int}
OPTIONAL = {"variant": {}, "curve": {}, "samples": [], "seconds": {}}


def check(e: Entry) -> None:
    """Read all that the report reads of a record. Raises whatever comes of a damaged one."""
    wrong = [name for name, kind in FIELDS.items() if not isinstance(e.meta[name], kind)]
    for name, points in e.meta["curve"].items():  # lists of [step, value]
        wrong += [name] if np.array(points, dtype=float).shape[1:] not in ((), (2,)) else []
    if wrong:
        raise TypeError(f"{', '.join(wrong)}: of another kind")
    if not isinstance(e.record["flops"], int | float):
        raise TypeError("flops: no number")
    _ = e.keys, e.step, e.dose, e.temperature, e.largest_k, e.bits
    for measure in (task_items, Questions(1), Questions(1, "c_process")):
        measure(e)
    for row in e.meta["samples"]:
        _ = row["id"], row["set"], row["question"], [x["text"] + str(x["right"]) for x in row["samples"]]


def load(folder: Path) -> list[Entry]:
    """All records of a folder, in the order of their names. UserError for a folder without any, or a broken one."""
    entries = []
    for path in sorted(folder.glob("*.cell.json")):
        try:
            meta = json.loads(path.read_text())
            record = read_json(folder / f"{meta['name']}.json.gz")
            record["flops"] = np.nan if record.get("flops") is None else record["flops"]  # unknown; not drawn
            entry = Entry(record, {**OPTIONAL, **meta})
            check(entry)
        except MALFORMED as error:
            raise UserError(f"{path}: no record of an excursion ({error!r})") from None
        entries.append(entry)
    if not entries:
        raise UserError(f"{folder}: no record in it yet: nothing was evaluated so far")
    return entries


def mixed_bases(entries: list[Entry]) -> str:
    """A sentence on base checkpoints of which the records know two models, as where a plan went on on another kind of
    machine while records of other plans stayed; empty without any."""
    models: dict[str, Counter] = {}  # base checkpoint → digest of its weights → records
    for e in entries:
        base = (e.record.get("lineage") or [{}])[0]
        if "weights" in base:
            name = f"{base.get('args', {}).get('out')}, step {base.get('step')}"
            models.setdefault(name, Counter())[str(base["weights"])] += 1
    mixed = [
        f"{name}: " + " and ".join(f"{n} of {weights}" for weights, n in count.most_common())
        for name, count in models.items()
        if len(count) > 1
    ]
    if not mixed:
        return ""
    return (
        f"Records are not of one base model ({'; '.join(mixed)}): what is compared there differs in pretraining, too."
    )


@dataclass(frozen=True)
class Row:
    """Values of one record, with what pairs them (ids) and what makes them dependent (clusters); None for items and runs."""

    values: np.ndarray
    ids: tuple[str, ...] | None = None
    clusters: tuple[str, ...] | None = None

    def take(self, ids: tuple[str, ...]) -> "Row":
        """The values of these questions, in this order."""
        if ids == self.ids:
            return self
        place = {id_: i for i, id_ in enumerate(self.ids)}
        index = [place[id_] for id_ in ids]
        return Row(self.values[index], ids, tuple(self.clusters[i] for i in index))


@dataclass(frozen=True)
class Questions:
    """A measure with one value a question: pass@k by a count of right samples, or an entropy.

    key: a count of a question's samples: "c" (right), "c_process" (right with every written equation true),
    "c_lenient"; or an entropy of them in nats: "h_answers" (how they differ in the answer), "h_paths" (in the equations
    of the way to it).
    only: "fact" for the questions that hinge on a fact, "plain" for the others.
    """

    k: int = 1
    key: str = "c"
    set: str = ""  # test set; empty: all of them
    only: str = ""

    @property
    def name(self) -> str:
        if self.key.startswith("h_"):
            return f"entropy of {self.key[2:]}"
        what = {"c": "pass", "c_process": "process-right pass", "c_lenient": "lenient pass"}[self.key]
        group = {"": "", "fact": ", questions with a fact", "plain": ", questions without"}[self.only]
        return f"{what}@{self.k}{group}{', ' + self.set if self.set else ''}"

    def __call__(self, e: Entry) -> Row | None:
        """Of a record; None if not every question has it."""
        if self not in e.read:
            e.read[self] = self._read(e)
        return e.read[self]

    def _read(self, e: Entry) -> Row | None:
        sets = [(name, s) for name, s in e.sets.items() if self.set in ("", name)]
        found = [(f"{name}/{q['id']}", q) for name, s in sets for q in s["questions"]]
        if self.only:
            found = [(id_, q) for id_, q in found if bool(q.get("facts")) == (self.only == "fact")]
        if not found or any(self.key not in q for _, q in found):
            return None
        count = np.array([q[self.key] for _, q in found])
        if not self.key.startswith("h_"):
            count = pass_at_k(np.array([q["n"] for _, q in found]), count, self.k)
        facts = tuple(q["facts"][0] if q.get("facts") else id_ for id_, q in found)
        return Row(count, tuple(id_ for id_, _ in found), facts)  # a question without a fact is a cluster of its own

    def at(self, k: int) -> "Questions":
        return replace(self, k=k)


def task_items(e: Entry) -> Row | None:
    """One value per item of all general tasks, whose mean is the mean over tasks of their accuracies."""
    tasks = [np.array(t["items"], dtype=float) for t in e.record["tasks"].values()]
    total = sum(map(len, tasks))
    return Row(np.concatenate([t * total / (len(tasks) * len(t)) for t in tasks])) if total else None


def general_bits(e: Entry) -> Row | None:
    """Bits per byte of general text: one number a run."""
    return None if np.isnan(e.bits) else Row(np.array([e.bits]))


def million(tokens: float) -> str:
    return f"{tokens / 1e6:.3g} M" if tokens < 1e9 else f"{tokens / 1e9:.3g} B"
