"""What training writes: the state to resume from and Hugging Face folders, each whole or not there at all."""
import contextlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from plumbing.cli import InputError
from plumbing.ranks import sum_over_ranks, wait_for_ranks


@contextlib.contextmanager
def saving(path: str) -> Iterator[None]:
    """A failed write, say on a full disk, ends the run in one sentence; what was saved before stays."""
    try:
        yield
    except (OSError, RuntimeError) as error:               # RuntimeError: what torch.save raises then
        raise InputError(f"{path} could not be written, the last one that was is whole: {error}") from error


def refuse_broken(weights: Iterable[Tensor], path: str) -> None:
    """Raise InputError rather than write weights that are no numbers over what was saved before."""
    if not all(weight.isfinite().all() for weight in weights):
        raise InputError(f"{path} was not written, since there are weights that are no numbers: training has "
                         "diverged; what was saved before stays")


# ---- the state to resume from ----

class SaveTimes:
    """When to save a state: every so many steps, or if that is None, ten minutes after the last time."""
    SECONDS = 600.0

    def __init__(self, every: int | None) -> None:
        self.every = every
        self.last = time.monotonic()

    def come(self, step: int) -> bool:
        """Whether the time has come after this step; the same on all ranks."""
        if self.every is not None:
            return step % self.every == 0
        late = time.monotonic() - self.last > self.SECONDS
        if sum_over_ranks(late)[0] == 0:
            return False
        self.last = time.monotonic()
        return True


def saved_step(out: str) -> str | None:
    """Name of the state that `load_state` would take."""
    path = os.path.join(out, "state", "latest")
    if not os.path.exists(path):
        return None
    with open(path) as file:
        return file.read()


def save_state(trainer: Any, out: str, step: int, **extra: Any) -> None:
    """Write what resuming needs to OUT/state/step-N; once whole, `latest` names it and the old one goes."""
    folder = os.path.join(out, "state")
    name = f"step-{step}"
    if saved_step(out) == name:                            # it is there, and whole
        return
    shards = [getattr(p, "ds_tensor", p) for p in trainer.module.parameters()]               # of ZeRO-3
    refuse_broken(shards, folder)
    with saving(os.path.join(folder, name)):
        run = {"step": step, **extra}
        trainer.save_checkpoint(folder, tag=name, client_state={"run": run}, save_latest=False)
        wait_for_ranks("writing the state")
        if torch.distributed.get_rank() == 0:
            part = os.path.join(folder, "latest.part")
            with open(part, "w") as file:
                file.write(name)
            os.replace(part, os.path.join(folder, "latest"))
            for old in os.listdir(folder):
                if old.startswith("step-") and old != name:
                    shutil.rmtree(os.path.join(folder, old))


TORN = (OSError, RuntimeError, AssertionError, ValueError, LookupError, EOFError, UnpicklingError)


def load_state(trainer: Any, out: str) -> dict[str, Any]:
    """-> what `save_state` was given, or {} for a fresh start."""
    folder = os.path.join(out, "state")
    if saved_step(out) is None:
        return {}
    from deepspeed.runtime.zero.utils import ZeRORuntimeException
    try:
        _, client_state = trainer.load_checkpoint(folder)
    except ZeRORuntimeException:
        raise InputError(f"{folder} was saved by another number of ranks, and only fp32 with --zero 0 can go "
                         "on from that: start as many as before, or delete it") from None
    except torch.OutOfMemoryError:
        raise
    except TORN as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{folder} cannot be read ({said}): if it is torn, delete it and "
                         "begin anew") from None
    return client_state["run"]                             # beside it DeepSpeed keeps what is its own


def remove_state(out: str) -> None:
    """A finished run needs no state."""
    if torch.distributed.get_rank() == 0:
        shutil.rmtree(os.path.join(out, "state"), ignore_errors=True)


# ---- the trained model ----

def full_weights(trainer: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) as Transformers and vLLM know them: gathered one by one under ZeRO-3, LoRA merged
    in fp32 (bf16 would round most of a small change away), tied embeddings under both names."""
    import deepspeed
    model = trainer.module.model
    layers = dict(model.named_modules())
    parameters = dict(model.named_parameters())
    if model.config.tie_word_embeddings:
        parameters["lm_head.weight"] = model.get_input_embeddings().weight
    sharded = trainer.zero_optimization_stage() == 3
    if sharded:                                            # what a forward pass prefetched cannot be gathered
        trainer.empty_partition_cache()
    for name, p in parameters.items():
        if ".lora_" in name:
            continue
        lora_layer = None
        low_rank = []
        if name.endswith(".base_layer.weight"):            # LoRA's matrices stand beside it
            lora_layer = layers[name.removesuffix(".base_layer.weight")]
            low_rank = [*lora_layer.lora_A.parameters(), *lora_layer.lora_B.parameters()]
        with deepspeed.zero.GatheredParameters([p, *low_rank], enabled=sharded):
            weight = p.detach()
            if lora_layer is not None:
                weight = weight.float() + lora_change(lora_layer)
            yield name.replace(".base_layer.", "."), weight


def lora_change(layer: Any) -> Tensor:
    """What peft's LoRA layer adds to its weight, in fp32."""
    low, high = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    change = (high.detach().float() @ low.detach().float()) * layer.scaling["default"]
    return change.T if layer.fan_in_fan_out else change


def save_model(trainer: Any, tokenizer: Any, out: str) -> None:
    """Write a Hugging Face folder beside OUT, then move it there; in fp32 where LoRA was merged."""
    rank = torch.distributed.get_rank()
    weights = {}
    for name, p in full_weights(trainer):                  # every rank takes part in the gathering
        if rank == 0:
            weights[name] = p.cpu().clone()
    if rank == 0:
        model = trainer.module.model
        if model.config.tie_word_embeddings:
            weights.pop("lm_head.weight")
        refuse_broken(weights.values(), out)
        merged = any(".lora_" in name for name, _ in model.named_parameters())
        if merged:
            weights = {name: weight.float() for name, weight in weights.items()}
        part = out.rstrip("/") + ".part"
        with saving(out):
            shutil.rmtree(part, ignore_errors=True)        # of a run that was killed here
            model.save_pretrained(part, state_dict=weights)
            if merged:                                     # or it would be loaded in the trainer's dtype
                model.config.dtype = torch.float32
                model.config.save_pretrained(part)
            tokenizer.save_pretrained(part)
            move_into_place(part, out)
    wait_for_ranks("writing the model")


def keep_best(trainer: Any, tokenizer: Any, out: str, state: dict[str, Any], solved: float) -> None:
    """Write the model to OUT/best if it solves a larger share of the held-out tasks than state["best"]."""
    if state["best"] is None or solved > state["best"]:
        state["best"] = solved
        save_model(trainer, tokenizer, os.path.join(out, "best"))


def move_into_place(part: str, out: str) -> None:
    """Put the files of a whole folder PART into OUT; config.json, the mark of a whole model, comes last."""
    if os.path.exists(os.path.join(out, "config.json")):   # an older model: they change places
        old = out.rstrip("/") + ".old"
        shutil.rmtree(old, ignore_errors=True)             # of a run that was killed here
        os.rename(out, old)
        os.rename(part, out)
        shutil.rmtree(old)
        return
    os.makedirs(out, exist_ok=True)
    for name in sorted(os.listdir(part), key=lambda n: n == "config.json"):
        os.replace(os.path.join(part, name), os.path.join(out, name))
    os.rmdir(part)
