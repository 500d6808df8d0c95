"""How much arithmetic training takes, and how fast this machine does it at best."""
import time

import torch


def model_flops(model, lora):
    """-> function of examples: floating-point operations of training on them, recomputation not counted.

    A weight and token: 2 forward, 4 backward (LoRA: 2); the head where there is loss; causal attention. To be
    asked before ZeRO-3 shards the weights.
    """
    c, passes = model.config, 4 if lora else 6
    head = model.get_output_embeddings().weight.numel()
    body = (sum(p.numel() for p in model.base_model.parameters() if p.ndim == 2)
            - model.get_input_embeddings().weight.numel())
    width = c.num_attention_heads * (getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads)
    return lambda examples: sum(passes * (body * len(e[0]) + head * sum(e[1][1:]))
                                + 6 * c.num_hidden_layers * width * len(e[0]) ** 2 for e in examples)


def matmul_rate(device, dtype):
    """Measured floating-point operations a second of a large product: what utilisation is a share of."""
    n = 8192 if device.type == "cuda" else 1024
    a, seconds = torch.ones(n, n, device=device, dtype=dtype), []
    for _ in range(4):
        start = time.perf_counter()
        (a @ a)[0, 0].item()
        seconds.append(time.perf_counter() - start)
    return 2 * n ** 3 / min(seconds)
