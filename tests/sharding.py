"""To be imported by drivers under torchrun: the student's parameters stand to DeepSpeed's limits as those of a
7B model do. ZeRO-3, which leaves parameters of fewer than 100,000 elements whole, shards them all, and the
largest do not fit into a bucket."""
from typing import Any

import deepspeed
import torch

from plumbing import trainer

initialize = deepspeed.initialize
trainer.BUCKET = 3000


def sharding(model: torch.nn.Module, config: dict[str, Any], **more: Any) -> tuple:
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    made = initialize(model=model, config=config, **more)
    if config["zero_optimization"]["stage"] == 3:
        assert not any(p.ds_persist for p in model.parameters())
        assert max(p.ds_numel for p in model.parameters()) > trainer.BUCKET
    return made


deepspeed.initialize = sharding
