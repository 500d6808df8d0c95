"""A key–value cache of Transformers that takes one more token without copying all it holds.

To be imported late: Transformers takes seconds.
"""
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

ROOM = 64                                  # tokens that a new buffer can still take


class GrowingLayer(DynamicLayer):
    """Keys and values of one layer, in buffers with room to spare.

    DynamicLayer copies all keys and values for each new token; this one copies them once in 64 tokens.
    `keys` and `values` (B, H, T, D) are the filled part of the buffers (B, H, T + room, D).
    """

    def __init__(self, filled: DynamicLayer) -> None:
        """Take over the keys and values of a layer that is filled."""
        super().__init__()
        self.lazy_initialization(filled.keys, filled.values)           # sets what the class wants to know
        self.keys = self.key_buffer = filled.keys
        self.values = self.value_buffer = filled.values

    def update(self, key_states: Tensor, value_states: Tensor, *_: object,
               **__: object) -> tuple[Tensor, Tensor]:
        """Append keys and values (B, H, n, D) of n new tokens; -> all keys, all values."""
        self.keys, self.key_buffer = append(self.keys, self.key_buffer, key_states)
        self.values, self.value_buffer = append(self.values, self.value_buffer, value_states)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows of the batch. They are copied, without room for more."""
        super().batch_select_indices(indices)
        self.key_buffer = self.keys
        self.value_buffer = self.values


def append(held: Tensor, buffer: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """Write `new` behind `held`, the filled part of `buffer` -> what is held now, its buffer."""
    length = held.shape[2]
    end = length + new.shape[2]
    if end > buffer.shape[2]:
        buffer = held.new_empty(*held.shape[:2], end + ROOM, held.shape[3])
        buffer[:, :, :length] = held
    buffer[:, :, length:end] = new
    return buffer[:, :, :end], buffer


def make_growing(cache: Cache) -> None:
    """Exchange the filled layers of a cache. Those with a sliding window do not grow and stay as they are."""
    for i, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and layer.is_initialized:
            cache.layers[i] = GrowingLayer(layer)


def shortest_window(config: Any) -> int | None:
    """The fewest tokens that an attention layer of a model sees; None if all of them see everything."""
    cache = DynamicCache(config=config)
    sliding = [layer for layer, slides in zip(cache.layers, cache.is_sliding) if slides]
    return min((layer.sliding_window for layer in sliding), default=None)
