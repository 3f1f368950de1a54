"""Writes the layout of a chunk as Megatron-Core has it, without Megatron-Core: buckets of 4096 and 2048 elements."""

import sys
from types import SimpleNamespace

import torch
from forgetscope import layout
from forgetscope.megatron.parallel import Parallel
from torch import nn


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer_number = 1
        self.self_attention = nn.ModuleDict({"linear_qkv": nn.Linear(32, 96), "linear_proj": nn.Linear(32, 32)})


model = nn.ModuleDict({"decoder": nn.ModuleDict({"layers": nn.ModuleList([Layer()])})})
qkv, projection = model.decoder.layers[0].self_attention.values()
# As Megatron lays them: the last first, and padding at the end of each bucket.
places = {
    qkv.weight: (0, 3072, 0),
    qkv.bias: (3072, 3168, 0),
    projection.weight: (4096, 5120, 1),
    projection.bias: (5120, 5152, 1),
}
buckets = [SimpleNamespace(offset=offset, grad_data=torch.zeros(numel)) for offset, numel in ((0, 4096), (4096, 2048))]
buffer = SimpleNamespace(param_index_map=dict(reversed(places.items())), buckets=buckets)
chunk = SimpleNamespace(
    module=model,
    config=SimpleNamespace(num_attention_heads=4, num_query_groups=4, num_moe_experts=None),
    buffers=[buffer],
    expert_parallel_buffers=[],
)
layout.from_megatron(chunk, parallel=Parallel(tensor=(0, 1))).write(sys.argv[1])
