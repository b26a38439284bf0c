"""One step of every stage on fake CUDA tensors: finds mistakes of device, dtype and shape without a GPU.

    python -m venv /tmp/cuda && /tmp/cuda/bin/pip install 'torch===2.13.0' numpy tyro tqdm tiktoken requests
    /tmp/cuda/bin/python tests/fake_cuda.py

It needs a CUDA build of torch (several GB), but no GPU and no driver. `make test` runs it where there is such a build,
and elsewhere only looks whether the names are there that it uses. Tensors are
FakeTensorMode's, which know everything but their values; kernel launches check where their arguments lie. bf16 as on a
GPU, with the Triton kernels and without. Sampling runs whole, on tokens that are all 0, and its launches are counted.
"""

import contextlib
import functools
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parent.parent))
import average
import kernels
import paged
import pretrain
import rl
import sampler
import sft
from kernels import blocks, triton_attention, triton_decode, triton_log_prob
from model import GPT, config_of
from optimizer import make_optimizer, optimizer_step
from process import Process

CUDA = torch.device("cuda:0")


class Scalars(TorchDispatchMode):
    """tensor.item() gives 1."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if args[0].is_floating_point() else True if args[0].dtype == torch.bool else 1
        return func(*args, **(kwargs or {}))


def backward(loss: torch.Tensor) -> None:
    """loss.backward() without PyTorch's engine, which asks the driver for the GPU's streams. The engine's rules: a node
    runs when all that use its output have; gradients are cast to the type of the output, and lie where it does."""
    waiting, stack = {}, [loss.grad_fn]
    seen = set(stack)
    while stack:
        for node, _ in stack.pop().next_functions:
            if node is not None:
                waiting[node] = waiting.get(node, 0) + 1
                if node not in seen:
                    seen.add(node)
                    stack.append(node)
    grads, ready = {loss.grad_fn: [torch.ones_like(loss)]}, [loss.grad_fn]
    while ready:
        node = ready.pop()
        inputs = grads.pop(node)
        if hasattr(node, "variable"):
            (grad,) = inputs
            node.variable.grad = grad if node.variable.grad is None else node.variable.grad + grad
            continue
        with torch.no_grad():
            results = (node.apply if isinstance(node, torch.autograd.function.BackwardCFunction) else node)(*inputs)
        results = results if isinstance(results, tuple) else (results,)
        for (to, place), grad in zip(node.next_functions, results, strict=False):
            if to is None:
                continue
            slots = grads.setdefault(to, [None] * len(to._input_metadata))
            if grad is not None:
                like = to._input_metadata[place]
                assert grad.device == like.device and list(grad.shape) == list(like.shape), (node, to, grad, like)
                grad = grad.to(like.dtype)
                slots[place] = grad if slots[place] is None else slots[place] + grad
            waiting[to] -= 1
            if not waiting[to]:
                ready.append(to)


launched = []  # names of kernels


def launch(launcher, kernel, grid, args, block, **constants):
    """In place of Launcher.__call__."""
    launched.append(kernel.__name__)
    for x in args:
        assert not isinstance(x, torch.Tensor) or (x.device == CUDA and x.is_contiguous()), (kernel.__name__, x)


def stages(process: Process) -> None:
    with torch.device(CUDA):
        model, reference = (GPT(config_of("smoke", 1024)) for _ in range(2))
    optimizer, second = (make_optimizer(model, 1e-3, 0.1, (0.9, 0.95)) for _ in range(2))

    def done(stage: str) -> None:
        for p in model.parameters():
            assert isinstance(p, FakeTensor) and p.device == CUDA and p.dtype == torch.float32
        print(f"  {stage}", flush=True)

    flags = pretrain.Config(seq_len=128, doc_mask=True)
    batch = torch.zeros(4, 129, dtype=torch.long, device=CUDA)
    pretrain.loss_and_backward(model, batch, 0, flags, process, 512)
    optimizer_step(model, optimizer, process, 1e-3, 1.0)
    done("pretrain")

    trainer = object.__new__(sft.SFT)
    trainer.config, trainer.process = sft.SFTConfig(), process
    rows = [([1, 2, 3], [4, 5, 0]), ([1, 2, 3], [6, 0]), ([7, 8], [9, 10, 11, 0])]
    trainer.backward(model, rows)
    optimizer_step(model, optimizer, process, 1e-3, 1.0)
    done("sft")

    grpo = object.__new__(rl.GRPO)
    grpo.config = rl.GRPOConfig(prompts=2, rollouts=2, kl=0.1, entropy=0.01, temperature=0.9)
    grpo.process, grpo.max_new_tokens, grpo.every_group = process, 8, True
    grpo.reference = rl.kl_reference(reference, process.dtype)
    groups = [
        [rl.Answer({}, prompt, a, "", np.zeros(len(a), np.float32), True, True, 0.0, False, x)
         for a, x in zip(answers, (-0.7, 0.7), strict=True)]
        for prompt, answers in (([1, 2, 3], [[4, 5, 0], [6, 0]]), ([7, 8], [[9, 0], [10, 11, 12, 0]]))
    ]  # fmt: skip
    grpo.backward(model, groups, on_policy=True)
    grpo.backward(model, groups, on_policy=False)
    optimizer_step(model, optimizer, process, 1e-3, 1.0)
    done("rl update")

    snapshot = [p.detach().clone() for p in model.parameters()]
    grpo.backward(model, groups, on_policy=True)
    optimizer_step(model, optimizer, process, 1e-3, 1.0)
    delta = average.take_update(model, snapshot)
    trainer.backward(model, rows)
    optimizer_step(model, second, process, 1e-3, 1.0)
    average.average_updates(model, snapshot, delta, 0.5)
    done("average")


class Counter(TorchDispatchMode):
    """Counts what is launched on the device, Triton's kernels apart, and where the host waits for it."""

    VIEWS = (
        "view _unsafe_view slice select transpose permute unsqueeze squeeze expand split t alias detach device "
        "empty new_empty empty_like empty_strided new_empty_strided lift_fresh as_strided"
    )  # fmt: skip

    def __init__(self):
        super().__init__()
        self.launches = self.waits = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.__name__.split(".")[0]
        if name in ("nonzero", "_local_scalar_dense") or (name == "_to_copy" and out.device != args[0].device):
            self.waits += 1
        elif name not in self.VIEWS.split():
            self.launches += 1
        return out


def sampling(process: Process) -> tuple[float, float]:
    """sample() with the layers of OLMo2-1B: launches and waits of the host per token, of a decoding phase."""
    counts = []

    class Counted(sampler.Slots):
        def decode(self, *args):
            seen, before = Counter(), len(launched)
            with seen:
                super().decode(*args)
            counts.append([(seen.launches + len(launched) - before) / self.look, seen.waits / self.look])

    with torch.device(CUDA):
        model = GPT(config_of("smoke", 1024, n_layers=16))
    patches = (
        mock.patch.object(sampler, "Slots", Counted),
        mock.patch.object(sampler, "upload", upload),
        mock.patch.object(paged, "upload", upload),
        mock.patch.object(torch.Tensor, "numpy", lambda x: np.zeros(tuple(x.shape), str(x.dtype).split(".")[1])),
    )
    with contextlib.ExitStack() as stack:
        for context in (*patches, process.autocast()):
            stack.enter_context(context)
        rows = sampler.sample(model, [[1, 2, 3], [4] * 20], 4, stop=-1, max_new_tokens=40)
    assert [len(answer.tokens) for answers in rows for answer in answers] == [40] * 8
    return counts[1]


def upload(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """In place of paged.upload, whose pinned memory there is not."""
    return torch.empty(array.shape, dtype=torch.from_numpy(array).dtype, device=device)


def main() -> None:
    print(f"torch {torch.__version__}, built for CUDA {torch.version.cuda}")
    # On fake tensors an operator only says what its outputs are like; here it does all that it does on a GPU but launch
    for file in (triton_attention, triton_log_prob):
        for name in ("forward", "backward"):
            function = functools.partial(getattr(file, name), blocks.Launcher(90))
            getattr(file, f"{name}_op").register_fake(function)
    patches = (
        mock.patch.object(blocks.Launcher, "__call__", launch),
        mock.patch.object(triton_decode, "architecture", lambda device: 90),
        # It would ask the driver which of the libraries can
        mock.patch.object(kernels, "sdpa_kernel", lambda *_, **__: contextlib.nullcontext()),
        mock.patch.object(kernels, "_gpu_is_new_enough", lambda: True),
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
        mock.patch("torch.cuda.is_bf16_supported", lambda: True),
        mock.patch.object(torch.Tensor, "backward", backward),
    )
    for dtype in (torch.bfloat16, torch.float32):
        for choice in ("triton", "torch"):
            print(f"{dtype}, KERNELS={choice}")
            launched.clear()
            with contextlib.ExitStack() as stack:
                for context in (*patches, FakeTensorMode(allow_non_fake_inputs=True), Scalars()):
                    stack.enter_context(context)
                kernels.use(choice, CUDA)
                stages(Process(0, 1, CUDA, dtype))
                launches, waits = sampling(Process(0, 1, CUDA, dtype))
            print(f"  sampling: {launches:.0f} launches a step, {waits:.2f} waits of the host")
            assert len(set(launched)) == (9 if choice == "triton" else 0), set(launched)
            assert choice == "torch" or (launches <= 350 and waits <= 1 / 8)


if __name__ == "__main__":
    main()
