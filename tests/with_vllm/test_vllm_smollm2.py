"""vLLM in the process (CPU build) on a real model: the tokens of the torch engine."""
import pytest

pytest.importorskip("vllm", reason="vllm is not installed: bash tests/run_vllm.sh")
import env  # noqa: E402
from test_engines import load  # noqa: E402
from test_stages import lines  # noqa: E402


def test_its_greedy_tokens_are_those_of_the_torch_engine(smollm2_folder, demonstrations):
    """After the question, and after two turns: the system message and the seams of turns are in the prompts."""
    records = lines(demonstrations)[:4]
    chat = env.load_chat(smollm2_folder)
    prompts = [chat.encode(record["messages"][:k])[0] for record in records for k in (1, 5)]
    found = {}
    for kind in "torch", "vllm":
        engine = load(kind, smollm2_folder, "--max-tokens", "400", starts=records)
        found[kind] = [engine.greedy(prompt, 20) for prompt in prompts]
    for (tokens, logps), (theirs, their_logps) in zip(found["torch"], found["vllm"]):
        assert tokens == theirs
        assert logps == pytest.approx(their_logps, abs=1e-3)
