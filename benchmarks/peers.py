"""Training loops that others would write for the same model and batch: what the proxy trainer is timed beside.

Both get what speeds them up and nothing that slows them down: fused AdamW, clipping, tokens that lie ready in memory,
no evaluation, no curve, no check for divergence; on a GPU bfloat16 autocast and torch.compile where we use them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foretune.proxies.library import import_transformers
from foretune.records import DecoderSpec, RunSpec

WARM_UP_STEPS = 3


def time_transformers_loop(spec: RunSpec, device: torch.device, steps: int) -> float:
    """Seconds per step of a Llama of the same shape from the `transformers` library in a plain PyTorch loop."""
    model, transformers = _decoder_of(spec), import_transformers()
    config = transformers.LlamaConfig(
        hidden_size=model.width,
        num_hidden_layers=model.depth,
        num_attention_heads=model.width // model.head_size,
        num_key_value_heads=model.width // model.head_size // model.queries_per_key,
        intermediate_size=model.ffn_width,
        vocab_size=model.vocab_size,
        max_position_embeddings=spec.data.seq_len,
        tie_word_embeddings=model.tied_head,
        use_cache=False,
        attn_implementation="sdpa",
    )
    llama = transformers.LlamaForCausalLM(config).to(device)
    return _time_loop(llama, lambda ids: llama(input_ids=ids).logits, spec, device, steps)


def time_compact_loop(spec: RunSpec, device: torch.device, steps: int, *, compiled: bool = False) -> float:
    """Seconds per step of a compact decoder and loop in the style of nanoGPT and nanochat."""
    decoder = CompactDecoder(_decoder_of(spec), spec.data.seq_len).to(device)
    forward: Callable[[Tensor], Tensor] = torch.compile(decoder) if compiled else decoder
    return _time_loop(decoder, forward, spec, device, steps)


def time_products(spec: RunSpec, steps: int) -> float:
    """Seconds for the matrix products of one step on the CPU, three for each weight: forward and two backward."""
    model, tokens = _decoder_of(spec), spec.training.batch_tokens
    d, f = model.width, model.ffn_width
    sizes = [(d, 3 * d), (d, d), (d, 2 * f), (f, d)] * model.depth + [(d, model.vocab_size)]
    layers = [torch.randn(fan_in, fan_out, requires_grad=True) for fan_in, fan_out in sizes]
    inputs = [torch.randn(tokens, fan_in, requires_grad=True) for fan_in, _ in sizes]
    gradients = [torch.randn(tokens, fan_out) for _, fan_out in sizes]
    began = time.perf_counter()
    for _ in range(steps):
        for weight, x, gradient in zip(layers, inputs, gradients, strict=True):
            torch.autograd.grad(x @ weight, (x, weight), gradient)
    return (time.perf_counter() - began) / steps


class CompactDecoder(nn.Module):
    """RoPE, parameter-free RMSNorm, fused projections, SwiGLU: as small as such a model is written."""

    def __init__(self, model: DecoderSpec, seq_len: int) -> None:
        """The same matrices as the proxy of that spec."""
        super().__init__()
        self.head_size = model.head_size
        self.embedding = nn.Embedding(model.vocab_size, model.width)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "qkv": nn.Linear(model.width, 3 * model.width, bias=False),
                    "out": nn.Linear(model.width, model.width, bias=False),
                    "gate_up": nn.Linear(model.width, 2 * model.ffn_width, bias=False),
                    "down": nn.Linear(model.ffn_width, model.width, bias=False),
                }
            )
            for _ in range(model.depth)
        )
        self.head = nn.Linear(model.width, model.vocab_size, bias=False)
        frequencies = model.rope_base ** -(torch.arange(0, model.head_size, 2) / model.head_size)
        angles = torch.outer(torch.arange(seq_len), frequencies)
        self.register_buffer("cosine", angles.cos(), persistent=False)
        self.register_buffer("sine", angles.sin(), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids B T to logits B T V."""
        x = self.embedding(ids)
        for block in self.blocks:
            parts = block["qkv"](_norm(x)).unflatten(-1, (3, -1, self.head_size)).permute(2, 0, 3, 1, 4)
            query, key, value = self._rotate(parts[0]), self._rotate(parts[1]), parts[2]
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
            x = x + block["out"](mixed.transpose(1, 2).flatten(2))
            gate, up = block["gate_up"](_norm(x)).chunk(2, dim=-1)
            x = x + block["down"](F.silu(gate) * up)
        logits: Tensor = self.head(_norm(x))
        return logits

    def _rotate(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        rotated = (first * self.cosine - second * self.sine, first * self.sine + second * self.cosine)
        return torch.cat(rotated, dim=-1).type_as(x)


def _time_loop(
    model: nn.Module, forward: Callable[[Tensor], Tensor], spec: RunSpec, device: torch.device, steps: int
) -> float:
    training, seq_len = spec.training, spec.data.seq_len
    vocab_size = spec.model.vocab_size
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    batches = torch.randint(0, vocab_size, (WARM_UP_STEPS + steps, training.batch_tokens // seq_len, seq_len + 1))
    began = 0.0
    for step, tokens in enumerate(batches.to(device)):
        if step == WARM_UP_STEPS:
            _synchronize(device)
            began = time.perf_counter()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=training.precision == "bfloat16"):
            logits = forward(tokens[:, :-1])
            loss = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    _synchronize(device)
    return (time.perf_counter() - began) / steps


def _norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.size(-1),))


def _decoder_of(spec: RunSpec) -> DecoderSpec:
    assert isinstance(spec.model, DecoderSpec), "the peers are written for the decoder of this package"
    return spec.model


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
