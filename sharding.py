"""--shard: what only the optimizer needs is spread over the ranks, by PyTorch's FSDP2 used as ZeRO-1/2.

    shard(model, process)            model.parameters() are now the masters: this rank's parts of the fp32 weights
    gather_weights(model)            and now the whole weights, those of blocks in --dtype, on every rank
    loss.backward()                  as often as a rank likes: nothing communicates
    sum_gradients(model, process)    and now the masters again; their .grad is their part of the sum over ranks
    optimizer.step()
    gather_weights(model)

Ranks communicate in these functions alone, never inside a pass through the model. So a rank may run any number of
passes or none, may sample, and may leave a loop on a signal, as without --shard. FSDP2 means to sum gradients in the
backward pass of a step's last micro-batch. Here a pass of one token with weight 0, which every rank makes, is that last
one. The price is this pass, and communication that does not overlap with computation.

Bytes of a parameter on each of n ranks, in bf16: 2 for the weight (embedding and head: 4) and 4 for this rank's
gradient, both whole; for the master 4 / n, AdamW 8 / n, the summed gradient 4 / n. Without --shard: 4 + 8 + 4, and 2
for the copy in bf16.
"""

import copy
import os

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from model import GPT
from process import Process, together


def shard(model: GPT, process: Process) -> None:
    """Replace each parameter, which is the same on every rank, by this rank's part of its rows.

    Optimizers are to be made before the first `gather_weights`: they update the masters.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  # takes seconds

    def policy(dtype):  # the code of the model casts what must be cast: FSDP2 would round the rotary tables, too
        return MixedPrecisionPolicy(dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)

    # The blocks are gathered in the type that autocast would cast their matrices to (and the gains of norms with them,
    # as RMSNorm rounds them). The rest stays in fp32, as there
    with together():
        mesh = _mesh(process)
        for block in model.blocks:
            fully_shard(block, mesh=mesh, reshard_after_forward=False, mp_policy=policy(process.dtype))
        fully_shard(model, mesh=mesh, reshard_after_forward=False, mp_policy=policy(torch.float32))
    for module in _groups(model):  # these two are not recursive
        module.set_gradient_divide_factor(1.0)  # a sum: losses are divided by the tokens of all ranks
        module.set_force_sum_reduction_for_comms(True)  # gloo knows no sum with a factor
    _communicate(model, False)
    model.masters = list(model.parameters())


def _mesh(process: Process):
    """All ranks. On several nodes (node, rank on it): parts are spread over each node, and nodes add up gradients (HSDP)."""
    from torch.distributed.device_mesh import init_device_mesh

    kind, on_node = process.device.type, int(os.environ.get("LOCAL_WORLD_SIZE", process.world))
    alike = len(set(process.gather(on_node))) == 1  # nodes of 8 and 4 GPUs are no grid
    if alike and 1 < on_node < process.world:
        return init_device_mesh(kind, (process.world // on_node, on_node), mesh_dim_names=("node", "rank"))
    return init_device_mesh(kind, (process.world,))


def _groups(model: nn.Module) -> list:
    """The modules whose parameters FSDP2 sends together: each block, and the model with what is in no block."""
    return [module for module in model.modules() if hasattr(module, "unshard")]


def _communicate(model: nn.Module, on: bool) -> None:
    """Does the next backward pass sum gradients over ranks, and drop the whole weights?"""
    model.set_requires_gradient_sync(on)
    model.set_reshard_after_backward(on)
    model.set_is_last_backward(on)


def gather_weights(model: nn.Module) -> None:
    """Give every rank the whole weights, as the masters now are. Without --shard they are."""
    with together():
        for module in _groups(model):
            module.reshard()
            module.unshard()


def sum_gradients(model: GPT, process: Process) -> None:
    """Sum the gradients of all ranks, in fp32, into the .grad of the masters, which are the model's parameters from here on."""
    _communicate(model, True)
    # Every parameter takes part, so that all ranks send the same: a rank that saw no data sends zeros
    with process.autocast():
        hidden = model(torch.zeros(1, 1, dtype=torch.long, device=process.device))  # (1, 1, C)
        nothing = 0 * F.linear(hidden, model.head.weight).sum()
    with together():
        nothing.backward()
    _communicate(model, False)


def masters(model: nn.Module) -> list[nn.Parameter]:
    """What optimizers update: the model's fp32 parameters, with --shard this rank's parts of them. `gather_weights` has
    to follow a change."""
    return getattr(model, "masters", None) or list(model.parameters())


def collect(model: GPT, states: dict) -> tuple[dict, dict]:
    """(model.state_dict(), `states`), whole, with the tensors on rank 0's CPU and None for them on other ranks. All
    ranks must call it.

    Args:
        states: such as state_dicts of optimizers, whose tensors are parts.
    """
    with together():
        whole = _whole(model.state_dict()), _whole(states)
    gather_weights(model)  # state_dict has dropped them
    return whole


def _whole(x):
    if isinstance(x, dict):
        return {key: _whole(value) for key, value in x.items()}
    if isinstance(x, list):
        return [_whole(value) for value in x]
    if isinstance(x, Tensor):
        x = x.full_tensor() if hasattr(x, "full_tensor") else x
        if dist.get_rank():
            return None
        x = x.cpu()  # where parts differ in size it may be a view of padded rows, which would be saved with them
        return x if x.untyped_storage().nbytes() == x.nbytes else x.clone()
    return x


def parts(state: dict, parameters: list[nn.Parameter]) -> dict:
    """Of an optimizer's whole state, {number of a parameter: {name: value}}, what belongs to this rank's parts of the
    parameters. What has not the shape of its parameter, such as a count of steps, stays as it is."""
    from torch.distributed.tensor import distribute_tensor

    def part(value, p):
        if not isinstance(value, Tensor) or value.shape != p.shape:
            return copy.copy(value)
        # None: every rank has the whole, nothing is sent. A copy: the whole is freed
        return distribute_tensor(value, p.device_mesh, p.placements, src_data_rank=None).clone()

    numbered = [(number, p) for number, p in enumerate(parameters) if number in state]
    return {number: {name: part(value, p) for name, value in state[number].items()} for number, p in numbered}
