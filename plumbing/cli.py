"""The command line of all scripts: errors that end in one sentence, --help, and shared flags."""
import argparse
import errno
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from plumbing.values import not_negative, positive, positive_share, seconds, seed, whole
from sandbox import MODES, SandboxError


class InputError(Exception):
    """Something the user gave is wrong; the message is one sentence that names what and where."""


class Help(argparse.RawDescriptionHelpFormatter):
    """--help of every script: the docstring as it is, and the default of every flag that may be left out."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = (action.help or "").removesuffix(" (default: %(default)s)")     # which on/off flags add
        if action.required or not action.option_strings or action.default is argparse.SUPPRESS:
            return text
        if "(default: " in text:                                           # it says in words what happens
            return text
        if action.default is None:
            return text + " (default: none)"
        if isinstance(action.default, bool):
            return text + (" (default: on)" if action.default else " (default: off)")
        return text + " (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """argparse with that --help, whose complaints are one line like those of `cli`."""

    def __init__(self, description: str | None = None, **more: Any) -> None:
        super().__init__(description=description, **{"formatter_class": Help, **more})

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        given = sys.argv[1:] if args is None else list(args)
        for before, text in zip(["the name of the script", *given], given):
            if not text.strip():                           # mostly a shell variable that is not set
                self.error(f"what follows {before} is empty")
        return super().parse_args(given, namespace)

    def error(self, message: str) -> None:
        """argument --lr: nan is not … -> error: --lr nan is not …"""
        message = re.sub(r"^argument (\S+): (\S+ is not )", r"\1 \2", message).removeprefix("argument ")
        self.exit(2, f"error: {message} ({self.prog} --help lists all flags)\n")


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)         # the disk is full, or one's share of it


def cli(main: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Run main(args); what the user can mend ends in one sentence and exit code 2."""
    try:
        main(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted: what was finished is kept", file=sys.stderr, flush=True)
        os._exit(130)                                      # does not wait for requests that are in flight
    except BrokenPipeError:                                # the reader of the output, say head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        leave(1)
    except Exception as error:
        said = sentence(error, args)
        if said is not None:
            print(f"error: {said}", file=sys.stderr)
            leave(2)
        if several_ranks():
            traceback.print_exc()
            leave(1)
        raise


def sentence(error: Exception, args: argparse.Namespace) -> str | None:
    """What is wrong and how to mend it; None where that is not the user's to do."""
    if isinstance(error, (InputError, SandboxError)):
        return str(error)
    if isinstance(error, OSError):
        if error.errno in NO_ROOM:
            where = error.filename or f"--out {getattr(args, 'out', '')}".rstrip()
            return f"{error.strerror} while writing to {where}: make room, and give the command again"
        if error.filename:
            return f"{error.strerror}: {error.filename!r}"
    if type(error).__name__ == "OutOfMemoryError":         # torch's: not imported for --help
        return ("the memory of a GPU is full; `python bench/memory.py --help` computes what a run needs, "
                "--checkpointing, fewer --row-tokens, --zero 3, --offload or --lora-rank need less "
                f"({' '.join(str(error).split())})")
    return None


def several_ranks() -> bool:
    """Whether torchrun started other processes beside this one."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def leave(code: int) -> NoReturn:
    """End this process; one of several at once: at its exit NCCL, or vLLM, would wait for the others."""
    if not several_ranks():
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


# ---- flags of several scripts ----

CHAT_TEMPLATE = ("jinja file in place of the model's own chat template, as assets/chatml.jinja; training "
                 "saves it with the checkpoint")


def teacher_flags(parser: argparse.ArgumentParser, required: bool = True, judge: bool = True) -> None:
    """The flags of every script that asks the teacher; judge: also which answers or steps are equivalent."""
    g = parser.add_argument_group("teacher")
    g.add_argument("--teacher-url", required=required,
                   help="OpenAI-compatible chat endpoint, such as http://localhost:8000")
    g.add_argument("--teacher-model", help="the teacher's name there (default: the first that is listed)")
    if judge:
        g.add_argument("--judge-url", help="endpoint of the model that says which answers and steps are "
                                           "equivalent, at temperature 0.1; key in JUDGE_API_KEY, if it is "
                                           "not the teacher's (default: the teacher, if any)")
        g.add_argument("--judge-model", help="the judge's name there, in the paper Qwen2.5-7B-Instruct "
                                             "(default: the first that is listed)")
    g.add_argument("--concurrency", type=whole(1), default=64, help="requests in flight at once, per process")
    g.add_argument("--timeout", type=seconds, default=600, help="seconds to wait for one reply")
    g.add_argument("--retries", type=whole(0), default=12,
                   help="further tries when the network or the server fails")
    g.add_argument("--reasks", type=whole(0), default=1, help="further tries when a reply has the wrong form")
    g.add_argument("--teacher-max-tokens", type=whole(1), default=2048,
                   help="tokens of one reply; a model that thinks needs more")
    g.add_argument("--teacher-cache",
                   help="SQLite file that keeps the replies: none is paid for twice; each node needs its own")


def search_flags(group: Any) -> None:
    """The flags of every script that searches."""
    group.add_argument("--search", help="web search: http:URL (Serper's JSON API, key in SEARCH_API_KEY) or "
                                        "local:FILE.jsonl (BM25)")
    group.add_argument("--search-cache",
                       help="SQLite file that keeps the results, shared by processes and runs; "
                            "on a disk of several nodes give each node its own")


def env_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of every script that runs model-written code."""
    g = parser.add_argument_group("environment")
    search_flags(g)
    g.add_argument("--sandbox", choices=MODES, default="auto",
                   help="auto refuses to run without seccomp and names other missing layers of isolation, "
                        "strict refuses if any is missing, without-seccomp accepts that code can use the "
                        "network and send signals, off runs it unsealed")
    g.add_argument("--preload", action=argparse.BooleanOptionalAction, default=True,
                   help="load numpy and sympy in every interpreter; without them it starts in half the time")


ENGINES = ["torch", "vllm", "url"]


def sampling_flags(parser: argparse.ArgumentParser, temperature: float = 0.6, top_p: float = 0.95,
                   top_k: int = 20, vllm_memory: float = 0.9, endpoint: bool = True) -> None:
    """The flags of every script in which the student acts; endpoint: also behind --student-url."""
    g = parser.add_argument_group("rollouts")
    g.add_argument("--engine", choices=ENGINES if endpoint else ENGINES[:2], default="torch",
                   help="what generates the student's turns: Transformers, vLLM, or an endpoint (url)")
    g.add_argument("--chat-template", help=CHAT_TEMPLATE)
    if endpoint:
        g.add_argument("--student-url", help="OpenAI-compatible endpoint of the student, for --engine url")
    g.add_argument("--threads", type=whole(1), default=16,
                   help="programs, with their searches, that run at once, per rank (torch and vllm)")
    g.add_argument("--vllm-memory", type=positive_share, default=vllm_memory,
                   help="share of each GPU for vLLM, while it generates")
    g.add_argument("--vllm-attention", metavar="NAME",
                   help="vLLM's attention backend, as FLASH_ATTN or FLASHINFER (default: vLLM's choice)")
    g.add_argument("--max-model-len", type=whole(1),
                   help="longest trajectory, in tokens, that vLLM has room for (default: twice --max-tokens "
                        "after the longest start, if the model has so many positions)")
    g.add_argument("--max-steps", type=whole(1), default=8,
                   help="thought–code steps after the start or the prefix")
    g.add_argument("--max-tokens", type=whole(1), default=4096,
                   help="new tokens after the start or the prefix, observations included")
    g.add_argument("--temperature", type=not_negative, default=temperature,
                   help="temperature of sampling; 0 is greedy")
    g.add_argument("--top-p", type=positive_share, default=top_p,
                   help="probability mass that is sampled from")
    g.add_argument("--top-k", type=whole(0), default=top_k, help="tokens that are sampled from; 0: all")
    g.add_argument("--sampling-seed", type=seed, default=0, help="seed of the sampled tokens")


def training_flags(group: Any, row_tokens: int) -> None:
    """The flags that sft.py and grpo_short.py share."""
    import torch
    dtype = "bf16" if torch.cuda.is_available() else "fp32"
    group.add_argument("--weight-decay", type=not_negative, default=0.1, help="AdamW's weight decay")
    group.add_argument("--clip-grad", type=positive, default=1.0,
                       help="largest norm of the gradient; a longer one is scaled down")
    group.add_argument("--pack", action=argparse.BooleanOptionalAction, default=True,
                       help="rows without padding (in RL, a shared prefix only once); otherwise padded rows")
    group.add_argument("--row-tokens", type=whole(1), default=row_tokens,
                       help="tokens per forward pass and rank, for --pack; changes memory, not results")
    group.add_argument("--micro-batch", type=whole(1), default=8,
                       help="padded rows per forward pass and rank (--no-pack); changes memory, not results")
    group.add_argument("--dtype", choices=["bf16", "fp32"], default=dtype,
                       help="numbers of the forward pass; weights and optimizer are fp32")
    group.add_argument("--attention", choices=["auto", "flash-attn", "torch", "sdpa"], default="auto",
                       help="of packed bf16 rows on GPUs: the package flash-attn (auto: where it is "
                            "installed), PyTorch's own flash-attention, or SDPA; elsewhere it is SDPA")
    group.add_argument("--zero", type=int, choices=[0, 1, 2, 3], default=0,
                       help="DeepSpeed's stage: 0 shards nothing, 1 the optimizer, 2 also the gradients, "
                            "3 also the weights")
    group.add_argument("--offload", action=argparse.BooleanOptionalAction, default=False,
                       help="keep the optimizer in host memory and step there (needs --zero 1 to 3)")
    group.add_argument("--lora-rank", type=whole(0), default=0,
                       help="train low-rank additions to all linear layers, merged on saving, which is in "
                            "fp32; 0: all weights")
    group.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, default=False,
                       help="recompute activations in the backward pass: less memory, a third more time")
    group.add_argument("--seed", type=seed, default=0, help="seed of the order of the data and of LoRA")
    group.add_argument("--save-every", type=whole(1),
                       help="steps between saved states (default: ten minutes between them)")
    group.add_argument("--wandb", metavar="PROJECT", help="log to this project of Weights & Biases too")
