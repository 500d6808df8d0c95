"""The trainer's weights on their way to the engine that generates, and the check that they arrived."""
from typing import Any

import torch

from plumbing.checkpoints import full_weights
from plumbing.engines import Engine
from plumbing.packing import pad_examples
from plumbing.trajectory import Messages


def sync(engine: Engine, trainer: Any, probe: Messages, device: torch.device) -> float:
    """Hand the trainer's weights to the engine -> the gap between both after it.

    The gap is that of the log-probs of greedy tokens after `probe`, mean over tokens, in nats; 0 where the
    engine generates with the trainer's own model.
    """
    engine.load(full_weights(trainer))
    if not engine.separate:
        return 0.0
    prompt, _ = engine.chat.encode(probe)
    tokens, logps = engine.greedy(prompt)
    greedy = (prompt + tokens, [0] * len(prompt) + [1] * len(tokens))      # input_ids, loss_mask
    with torch.no_grad():
        trainer_logps = trainer(*pad_examples([greedy], device))
    return float((trainer_logps - torch.tensor(logps, device=device)).abs().mean())
