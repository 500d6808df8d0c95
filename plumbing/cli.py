"""The command line of all scripts: errors that end in one sentence, --help, and shared flags."""
import argparse
import sys
from collections.abc import Callable
from typing import Any


class InputError(Exception):
    """Something the user gave is wrong; the message is one sentence that names what and where."""


class Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """--help of every script: the docstring as it is, and the default of every flag that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False):
            return action.help
        return super()._get_help_string(action)


def cli(main: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Run main(args); what the user can mend ends in one sentence and exit code 2."""
    try:
        main(args)
    except (InputError, OSError) as error:
        if isinstance(error, OSError) and not error.filename:              # not a file that the user named
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


# ---- flags of several scripts ----

CHAT_TEMPLATE = ("jinja file in place of the model's own chat template, as assets/chatml.jinja; training "
                 "saves it with the checkpoint")


def teacher_flags(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """The flags of every script that asks the teacher."""
    g = parser.add_argument_group("teacher")
    g.add_argument("--teacher-url", required=required, help="chat endpoint, as http://localhost:8000")
    g.add_argument("--teacher-model", help="its name there (default: the first that is listed)")
    g.add_argument("--concurrency", type=int, default=64, help="requests in flight at once")
    g.add_argument("--timeout", type=float, default=600, help="seconds to wait for one reply")
    g.add_argument("--retries", type=int, default=12, help="further tries when network or server fails")
    g.add_argument("--reasks", type=int, default=1, help="further tries when a reply has a wrong form")
    g.add_argument("--teacher-cache", help="SQLite file of replies; a restart then pays nothing twice")


def env_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of every script that runs model-written code."""
    g = parser.add_argument_group("environment")
    g.add_argument("--search", help="web search: http:URL (Serper's JSON API, key in SEARCH_API_KEY) or "
                                    "local:FILE.jsonl (BM25)")
    g.add_argument("--search-cache", help="SQLite file that keeps the results, shared by processes and runs")
    g.add_argument("--sandbox", choices=["auto", "strict", "off"], default="auto",
                   help="auto names missing layers of isolation, strict refuses to run without them, "
                        "off runs code unsealed")
    g.add_argument("--preload", action=argparse.BooleanOptionalAction, default=True,
                   help="have numpy and sympy loaded in every interpreter; without, starting one takes half")


def sampling_flags(parser: argparse.ArgumentParser, temperature: float = 0.6, top_p: float = 0.95,
                       top_k: int = 20) -> None:
    """The flags of every script in which the student acts."""
    g = parser.add_argument_group("rollouts")
    g.add_argument("--engine", choices=["torch", "vllm", "url"], default="torch", help="what generates")
    g.add_argument("--chat-template", help=CHAT_TEMPLATE)
    g.add_argument("--student-url", help="OpenAI-compatible endpoint of the student, for --engine url")
    g.add_argument("--max-steps", type=int, default=8, help="thought–code steps after start or prefix")
    g.add_argument("--max-tokens", type=int, default=4096,
                   help="new tokens after the start or the prefix, observations included")
    g.add_argument("--temperature", type=float, default=temperature, help="of sampling; 0 is greedy")
    g.add_argument("--top-p", type=float, default=top_p, help="probability mass that is sampled from")
    g.add_argument("--top-k", type=int, default=top_k, help="tokens that are sampled from; 0 for all")
    g.add_argument("--sampling-seed", type=int, default=0, help="of the sampled tokens")


def training_flags(group: Any, row_tokens: int, save_every: int) -> None:
    """The flags that sft.py and grpo_short.py share."""
    import torch
    dtype = "bf16" if torch.cuda.is_available() else "fp32"
    group.add_argument("--weight-decay", type=float, default=0.1, help="AdamW's weight decay")
    group.add_argument("--clip-grad", type=float, default=1.0, help="largest norm of the gradient")
    group.add_argument("--pack", action=argparse.BooleanOptionalAction, default=True,
                       help="rows without padding (in RL with a shared prefix once); otherwise padded rows")
    group.add_argument("--row-tokens", type=int, default=row_tokens,
                       help="tokens per forward pass and rank, for --pack; changes memory, not results")
    group.add_argument("--micro-batch", type=int, default=8,
                       help="padded rows per forward pass and rank (--no-pack); changes memory, not results")
    group.add_argument("--dtype", choices=["bf16", "fp32"], default=dtype,
                       help="of the forward pass; weights and optimizer are fp32")
    group.add_argument("--zero", type=int, choices=[0, 1, 2, 3], default=0,
                       help="DeepSpeed stage: shard nothing, optimizer, gradients, weights")
    group.add_argument("--offload", action=argparse.BooleanOptionalAction, default=False,
                       help="keep optimizer state in host memory and step there (--zero 1 to 3)")
    group.add_argument("--lora-rank", type=int, default=0,
                       help="train low-rank additions to all linear layers, merged on saving, which is in "
                            "fp32; 0: all weights")
    group.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, default=False,
                       help="recompute activations in the backward pass: less memory, a third more time")
    group.add_argument("--seed", type=int, default=0, help="order of the data, start of the LoRA weights")
    group.add_argument("--save-every", type=int, default=save_every, help="steps between saved states")
    group.add_argument("--wandb", metavar="PROJECT", help="also log to this project of Weights & Biases")
