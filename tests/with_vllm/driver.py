"""Under torchrun: grpo_short.py with vLLM in this process, once per ZeRO stage, every sync checked.

  torchrun --nproc_per_node 2 tests/with_vllm/driver.py 0,2,3 MODEL RECORDS OUT TEACHER_URL
"""
import os
import sys

os.environ.update(DS_ACCELERATOR="cpu", HF_HUB_OFFLINE="1")
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import torch  # noqa: E402
import transformers  # noqa: E402

import grpo_short  # noqa: E402
from env import VLLMEngine  # noqa: E402
from judge import InputError  # noqa: E402


class Checked(VLLMEngine):
    """Compares, after every sync, its greedy tokens with those of Transformers on the weights it was sent."""
    syncs, prompts = 0, ["Cy has 6 pears, plus 3. How many pears does Cy have?", "What is the ally?"]

    def load(self, pairs):
        model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[2], dtype=torch.float32)
        sent = {}

        def keep():
            for name, p in pairs:
                sent[name] = p.clone()
                yield name, p
        super().load(keep())
        model.load_state_dict(sent, strict=True)                     # every name, the tied head among them
        self.check(model)
        Checked.syncs += 1

    def check(self, model):
        for text in self.prompts:
            prompt = self.chat.encode([{"role": "user", "content": text}])[0]
            tokens, logps = self.greedy(prompt, 24)
            ids = torch.tensor([prompt + tokens])
            with torch.no_grad():
                theirs = torch.log_softmax(model(ids).logits[0, len(prompt) - 1:-1], -1)         # (24, V)
            assert theirs.argmax(-1).tolist() == tokens
            torch.testing.assert_close(theirs.max(-1).values, torch.tensor(logps), atol=1e-4, rtol=0)


def one_engine(*args, kept=[]):
    """vLLM starts once; another run gets the same engine with the first weights loaded again."""
    if kept:
        kept[0].load(initial.items())
    else:
        kept.append(Checked(*args))
    return kept[0]


def run(out, *more):
    grpo_short.main(grpo_short.parse_args([
        "--model", sys.argv[2], "--data", sys.argv[3], "--out", out, "--teacher-url", sys.argv[5],
        "--engine", "vllm", "--dtype", "fp32", "--prompts", "4", "--mini-batch", "2", "--group", "6",
        "--steps", "2", "--lr", "1e-3", "--max-tokens", "60", "--max-logp-gap", "1e-4", *more]))


model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[2], dtype=torch.float32)
initial = {name: p.detach().clone() for name, p in model.state_dict().items()}
grpo_short.VLLMEngine = one_engine
for zero in sys.argv[1].split(","):
    run(f"{sys.argv[4]}-{zero}", "--zero", zero)
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
    run(sys.argv[4] + "-gap", "--max-logp-gap", "0")
except InputError as e:
    print(e)
