"""Under torchrun: grpo_short.py with vLLM in this process, once per ZeRO stage, every sync checked.

  torchrun --nproc_per_node 2 tests/with_vllm/driver.py 0,2,3 MODEL RECORDS OUT TEACHER_URL
"""
import os
import sys
from collections.abc import Iterable, Iterator

os.environ.update(DS_ACCELERATOR="cpu", HF_HUB_OFFLINE="1")
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.dirname(os.path.dirname(HERE)), os.path.dirname(HERE)]

import torch  # noqa: E402
import transformers  # noqa: E402
from torch import Tensor  # noqa: E402

import grpo_short  # noqa: E402
import sharding  # noqa: E402, F401
from plumbing import engines  # noqa: E402
from plumbing.cli import InputError  # noqa: E402

ZERO_STAGES, MODEL, RECORDS, OUT, TEACHER_URL = sys.argv[1:]
PROMPTS = ["Cy has 6 pears, plus 3. How many pears does Cy have?", "What is the ally?"]


class Checked(engines.VLLMEngine):
    """Compares, after every sync, its greedy tokens with those of Transformers on the weights it was sent."""

    syncs = 0

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
        sent = {}

        def keep() -> Iterator[tuple[str, Tensor]]:
            for name, p in weights:
                sent[name] = p.clone()
                yield name, p
        super().load(keep())
        model.load_state_dict(sent, strict=True)                     # every name, the tied head among them
        self.check(model)
        Checked.syncs += 1

    def check(self, model: torch.nn.Module) -> None:
        for text in PROMPTS:
            prompt, _ = self.chat.encode([{"role": "user", "content": text}])
            tokens, logps = self.greedy(prompt, 24)
            ids = torch.tensor([prompt + tokens])
            with torch.no_grad():
                theirs = torch.log_softmax(model(ids).logits[0, len(prompt) - 1:-1], -1)         # (24, V)
            assert theirs.argmax(-1).tolist() == tokens
            torch.testing.assert_close(theirs.max(-1).values, torch.tensor(logps), atol=1e-4, rtol=0)


started = []


def one_engine(*args, **more) -> Checked:
    """vLLM starts once; another run gets the same engine with the first weights loaded again."""
    if started:
        started[0].load(initial.items())
    else:
        started.append(Checked(*args, **more))
    return started[0]


def run(out: str, *more: str) -> None:
    grpo_short.main(grpo_short.parse_args([
        "--model", MODEL, "--data", RECORDS, "--out", out, "--teacher-url", TEACHER_URL,
        "--engine", "vllm", "--dtype", "fp32", "--prompts", "4", "--mini-batch", "2", "--group", "6",
        "--steps", "2", "--lr", "1e-3", "--max-tokens", "60", "--max-logp-gap", "1e-4",
        "--max-failed", "1", *more]))


model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
initial = {name: p.detach().clone() for name, p in model.state_dict().items()}
VLLMEngine = engines.VLLMEngine
engines.VLLMEngine = one_engine                                      # what `trainer_engine` makes
for zero in ZERO_STAGES.split(","):
    run(f"{OUT}-{zero}", "--zero", zero)
    assert Checked.syncs >= 2

# weights far from the first ones arrive whole, the tied head too; a sync that forgets the head is noticed
moved = {name: p + 0.05 * torch.randn_like(p) for name, p in initial.items() if name != "lm_head.weight"}
engine = one_engine()
engine.load({**moved, "lm_head.weight": moved["model.embed_tokens.weight"]}.items())
moved = {name: p + 0.05 * torch.randn_like(p) for name, p in moved.items()}
model.load_state_dict(moved, strict=False)
model.tie_weights()
VLLMEngine.load(engine, moved.items())
try:
    engine.check(model)
except AssertionError:
    print("the forgotten head was noticed")
try:
    run(OUT + "-gap", "--max-logp-gap", "1e-12")
except InputError as e:
    print(e)
