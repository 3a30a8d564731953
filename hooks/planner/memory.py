"""Activation bytes of a transformer layer in closed form.

A layer is a list of the tensors that its forward saves: for whom, how many elements of how many bytes, and
whether tensor parallelism (and sequence parallelism) splits it. Two implementations are known:
  megatron  the layer of "Reducing Activation Recomputation in Large Transformer Models"
            (arXiv 2205.05198, section 4), 16-bit with 1-byte dropout masks; the sum is its
            s b h (34 + 5 a s / h)
  libtorch  the layer of examples/gpt, whatever its dtype, in plain LibTorch operators
"""
from dataclasses import dataclass, fields
from typing import List, NamedTuple


class Tensor(NamedTuple):
    part: str  # core_attn, mlp.act (dropped at both MLP levels), mlp.fc1 (only at level full), or other
    elements: float
    size: int  # bytes an element
    split: str  # by "tensor" parallelism, by "sequence" parallelism only, or "none"


@dataclass
class Model:
    """What the planner asks of a model; the keys of its YAML."""

    layers: int
    hidden: int
    heads: int
    sequence: int
    microbatch: int = 1
    ffn: int = 0  # 0: 4 * hidden
    vocabulary: int = 0  # 0: the output layer is not counted
    dropout: float = 0.1
    element_size: int = 2
    implementation: str = "megatron"
    tensor_parallel: int = 1
    sequence_parallel: bool = False
    pipeline_parallel: int = 1
    microbatches: int = 1  # in one step
    flops_per_second: float = 1e14  # what the device's GEMMs reach, for recompute time
    bytes_per_second: float = 1e12  # and its memory

    def __post_init__(self):
        self.ffn = self.ffn or 4 * self.hidden
        for f in fields(self):
            value = getattr(self, f.name)
            if f.type in (int, float) and (isinstance(value, bool) or not isinstance(value, (int, float))
                                           or (f.type is int and value != int(value))):
                raise ValueError(f"{f.name}: must be a number, not {value!r}")
            if f.type is int and value < (0 if f.name == "vocabulary" else 1):
                raise ValueError(f"{f.name}: must be >= 1, not {value}")
        if self.implementation not in ("megatron", "libtorch"):
            raise ValueError(f"implementation: must be megatron or libtorch, not {self.implementation!r}")
        if self.layers % self.pipeline_parallel:
            raise ValueError(f"pipeline_parallel: {self.pipeline_parallel} does not divide the {self.layers} layers")

    @property
    def rows(self):
        return self.sequence * self.microbatch

    def tensors(self) -> List[Tensor]:
        """What one layer saves, before anything is recomputed."""
        rh, rf = self.rows * self.hidden, self.rows * self.ffn
        scores = self.rows * self.heads * self.sequence
        e = self.element_size
        if self.implementation == "megatron":
            return [
                Tensor("other", 2 * rh, e, "sequence"),  # inputs of both layer norms
                Tensor("other", rh, e, "sequence"),  # input of the query, key and value GEMM
                Tensor("other", 2 * rh, e, "tensor"),  # query and key
                Tensor("other", rh, e, "tensor"),  # value
                Tensor("core_attn", scores, e, "tensor"),  # softmax's result
                Tensor("core_attn", scores, 1, "tensor"),  # its dropout's mask
                Tensor("core_attn", scores, e, "tensor"),  # its dropout's result
                Tensor("other", rh, e, "tensor"),  # input of the output projection
                Tensor("other", rh, 1, "sequence"),  # attention's dropout mask
                Tensor("other", rh, e, "sequence"),  # input of fc1
                Tensor("mlp.fc1", rf, e, "tensor"),  # fc1's result, the activation's input
                Tensor("mlp.act", rf, e, "tensor"),  # the activation's result, fc2's input
                Tensor("other", rh, 1, "sequence"),  # the MLP's dropout mask
            ]
        dropout = self.dropout > 0
        tensors = [
            Tensor("other", 2 * rh, e, "none"),  # inputs of both layer norms
            Tensor("other", 4 * self.rows, 4, "none"),  # their means and deviations
            Tensor("other", rh, e, "none"),  # input of qkv
            Tensor("other", 3 * rh, e, "tensor"),  # query, key and value: copies, or qkv's result
            Tensor("core_attn", self.sequence ** 2, 1, "none"),  # the causal mask
            Tensor("core_attn", scores, e, "tensor"),  # softmax's result
            Tensor("other", rh, e, "tensor"),  # input of the output projection
            Tensor("other", rh, e, "none"),  # input of fc1
            Tensor("mlp.fc1", rf, e, "tensor"),  # fc1's result
            Tensor("mlp.act", rf, e, "tensor"),  # fc2's input
        ]
        if dropout:
            tensors += [
                Tensor("core_attn", 2 * scores, e, "tensor"),  # the mask, scaled, and the result
                Tensor("mlp.act", rf, e, "tensor"),  # the mask
                Tensor("other", 2 * rh, e, "none"),  # attention's and the MLP's
            ]
        return tensors

    def layer_bytes(self, parts=("other", "core_attn", "mlp.act", "mlp.fc1")) -> float:
        """Bytes that one layer saves on one rank for one microbatch, of these parts."""
        def share(split):
            if split == "tensor" or (split == "sequence" and self.sequence_parallel):
                return self.tensor_parallel
            return 1

        return sum(t.elements * t.size / share(t.split) for t in self.tensors() if t.part in parts)

    def input_bytes(self) -> float:
        """What a whole layer recomputed (Megatron's full) keeps."""
        split = self.tensor_parallel if self.sequence_parallel else 1
        return self.rows * self.hidden * self.element_size / split

    def outside_bytes(self) -> float:
        """What the forward saves outside its layers: final norm, logits, log-probabilities, tokens."""
        if not self.vocabulary:
            return 0
        e = self.element_size
        return (2 * self.rows * self.hidden * e + 2 * self.rows * 4 + 2 * self.rows * self.vocabulary * e
                + 3 * self.rows * 8)

    def backward_bytes(self) -> float:
        """What backward needs at its start beside what is saved: the gradients of the logits."""
        return 2 * self.rows * self.vocabulary * self.element_size

    def seconds(self, part) -> float:
        """How long recomputing a part of one layer takes, by arithmetic and memory traffic."""
        t, rf = self.tensor_parallel, self.rows * self.ffn
        scores = self.rows * self.heads * self.sequence
        traffic = self.element_size / self.bytes_per_second / t
        if part == "mlp.act":
            return 3 * rf * traffic
        if part == "mlp.fc1":
            return 2 * rf * self.hidden / self.flops_per_second / t
        if part == "core_attn":
            return (2 * scores * self.hidden / self.heads / self.flops_per_second / t + 5 * scores * traffic)
        raise KeyError(part)
