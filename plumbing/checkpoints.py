"""What training writes: the state to resume from and Hugging Face folders, each whole or not there at all."""
import contextlib
import os
import shutil

import torch

from plumbing.cli import InputError


@contextlib.contextmanager
def saving(path):
    """A disk that fills up ends the run in one sentence; what was saved before stays as it is."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path} could not be written, the last one that was is whole: {error}") from error


def save_state(engine, out, step, **extra):
    """Write what resuming needs to OUT/state/step-N; when whole, `latest` names it, the last one goes."""
    folder, name = os.path.join(out, "state"), f"step-{step}"
    with saving(os.path.join(folder, name)):
        engine.save_checkpoint(folder, tag=name, client_state=dict(step=step, **extra), save_latest=False)
        torch.distributed.barrier()
        if torch.distributed.get_rank() == 0:
            with open(os.path.join(folder, "latest.part"), "w") as f:
                f.write(name)
            os.replace(f.name, os.path.join(folder, "latest"))
            for old in os.listdir(folder):
                if old.startswith("step-") and old != name:
                    shutil.rmtree(os.path.join(folder, old))


def load_state(engine, out):
    """-> what `save_state` was given, or {} for a fresh start."""
    if not os.path.exists(os.path.join(out, "state", "latest")):
        return {}
    return engine.load_checkpoint(os.path.join(out, "state"))[1]


def full_weights(engine):
    """Yield (name, tensor) as Transformers and vLLM know them: gathered one by one under ZeRO-3, LoRA merged,
    tied embeddings under both names."""
    import deepspeed
    model = engine.module.model
    layers, named = dict(model.named_modules()), dict(model.named_parameters())
    if model.config.tie_word_embeddings:
        named["lm_head.weight"] = model.get_input_embeddings().weight
    for name, p in named.items():
        layer = layers.get(name.removesuffix(".base_layer.weight"))         # not None: it has LoRA beside it
        if ".lora_" in name:
            continue
        lora = [] if layer is None else [*layer.lora_A.parameters(), *layer.lora_B.parameters()]
        with deepspeed.zero.GatheredParameters([p, *lora], enabled=engine.zero_optimization_stage() == 3):
            yield (name.replace(".base_layer.", "."),
                   p.detach() + layer.get_delta_weight("default").detach() if lora else p.detach())


def save_model(engine, tokenizer, out):
    """Write a Hugging Face folder beside OUT, move it there; config.json, the mark of a whole one, last."""
    rank, part = torch.distributed.get_rank(), out.rstrip("/") + ".part"
    weights = {name: p.cpu().clone() for name, p in full_weights(engine) if rank == 0}
    if rank == 0:
        model = engine.module.model
        if model.config.tie_word_embeddings:
            weights.pop("lm_head.weight")
        with saving(out):
            shutil.rmtree(part, ignore_errors=True)                         # of a run that was killed here
            model.save_pretrained(part, state_dict=weights)
            tokenizer.save_pretrained(part)
            if os.path.exists(os.path.join(out, "config.json")):            # an older one: they change places
                os.rename(out, out + ".old")
                os.rename(part, out)
                shutil.rmtree(out + ".old")
            else:
                os.makedirs(out, exist_ok=True)
                for name in sorted(os.listdir(part), key=lambda n: n == "config.json"):
                    os.replace(os.path.join(part, name), os.path.join(out, name))
                os.rmdir(part)
    torch.distributed.barrier()
