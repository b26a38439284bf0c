"""Started by test_stages.py under torchrun and by itself: rl.py, sft.py and average.py on a tiny model in one process
group, `python two_ranks.py BASE DATA OUT`. Rewards are made to vary, since a new model gets no question right.

`python two_ranks.py BASE DATA OUT few`: the same with 2 rows, questions and items of everything, and pretrain.py."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import average
import pretrain
import rl
import runtime
import sft


def main(base: str, data: str, out: str, few: str = "") -> None:
    torch.set_num_threads(1)
    end_process, runtime.end_process = runtime.end_process, lambda: None  # one group for all stages
    reward_of, rl.reward_of = rl.reward_of, lambda text, *_: (float(len(text) % 3), False)
    common = dict(init=base, data=data, limit=12, steps=3, eval_every=0)
    rollouts = dict(prompts=3, rollouts=4, max_new_tokens=8)
    stages = {
        "rl": (rl, dict(**rollouts, kl=0.1, entropy=0.01, minibatch=2, inner_epochs=2)),
        "sft": (sft, dict(rows=5)),
        "average": (average, dict(**rollouts, rows=5)),
    }
    if few:
        held_out = dict(eval_every=3, eval_limit=2, eval_tasks=("facts",))
        for _, flags in stages.values():
            flags |= held_out | {key: 2 for key in ("prompts", "rows") if key in flags}
        small = dict(scale="smoke", batch=2, seq_len=64, steps=3, val_tokens=300)
        pretrain.main(pretrain.Config(out=f"{out}/pretrain", data=data, **small))
    for name, (stage, flags) in stages.items():
        stage.main(stage.Config(out=f"{out}/{name}", **common | flags))
    runtime.end_process, rl.reward_of = end_process, reward_of
    end_process()


if __name__ == "__main__":
    main(*sys.argv[1:])
