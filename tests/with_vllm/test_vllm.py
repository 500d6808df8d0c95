"""vLLM in the process (CPU build): the same updates on any ranks and ZeRO stage, the same rollouts."""
import os
import subprocess
import sys

import pytest
import torch
import transformers

pytest.importorskip("vllm", reason="vllm is not installed: bash tests/run_vllm.sh")
import env  # noqa: E402
import test_stages  # noqa: E402
from test_convergence import first_and_last, shorten  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))
KEYS = [*test_stages.KEYS, "reward_chosen", "stop_max_tokens"]


def qwen2(tokenizer):
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(
        vocab_size=(len(tokenizer) + 15) // 16 * 16, hidden_size=64, intermediate_size=96,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=2048,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id))


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return test_stages.write(tmp_path_factory.mktemp("rl") / "rl.jsonl", test_stages.grpo_records())


def train(model, tokenizer, records, folder):
    """A student (head size 32: vLLM's CPU attention knows no smaller one) that at times gets a step right."""
    model.save_pretrained(folder / "init")
    tokenizer.save_pretrained(folder / "init")
    solved = [{**r, "messages": r["messages"] + [{"role": "assistant", "content": r["chosen"]["content"]}]}
              for r in test_stages.lines(records)]
    data = test_stages.write(folder / "sft.jsonl", solved)
    test_stages.script("sft.py", *test_stages.sft_flags(folder / "init", data, folder / "sft", "--steps", 60,
                                                        "--lr", "3e-3"))
    return str(folder / "sft")


def drive(ranks, zero, student, records, out, teacher_url):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks),
               os.path.join(HERE, "driver.py"), zero, student, str(records), str(out), teacher_url]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    assert done.stdout.count("the forgotten head was noticed") == ranks
    assert "engine and trainer disagree" in done.stdout
    return {z: test_stages.lines(f"{out}-{z}/metrics.jsonl") for z in zero.split(",")}


@pytest.fixture(scope="module")
def student(tmp_path_factory, tokenizer, records):
    from student import make_model
    return train(make_model(tokenizer, width=64), tokenizer, records, tmp_path_factory.mktemp("student"))


def test_mps_and_eval_act_as_with_the_engine_of_torch(student, tmp_path, teacher_url):
    tasks = test_stages.write(tmp_path / "tasks.jsonl", test_stages.tasks(12))
    flags = ["--tasks", tasks, "--search", f"http:{teacher_url}/search", "--max-tokens", 120]
    acted = {}
    for engine, ranks in ("torch", 1), ("vllm", 2):
        out = tmp_path / engine
        test_stages.script("eval.py", "run", "--model", student, "--out", out, *flags, "--metric", "rule",
                           "--greedy", "--engine", engine, ranks=ranks)
        acted[engine] = {r["id"]: r["messages"] for r in test_stages.lines(out / "predictions.jsonl")}
    assert len(acted["vllm"]) == 12 and acted["vllm"] == acted["torch"]
    test_stages.script("mps.py", "--student", student, "--out", tmp_path / "mps", *flags,
                       "--teacher-url", teacher_url, "--engine", "vllm", ranks=2)
    found = test_stages.lines(tmp_path / "mps" / "mps.jsonl")
    assert len({r["id"] for r in found}) == len(found) == 12
    assert all(r["outcome"] in ("solved", "corrected", "hard") for r in found)
    assert any(r["interventions"] for r in found)


def test_a_rank_without_a_task_does_not_keep_the_others_waiting(student, tmp_path, teacher_url):
    """The normal end of a resumed run: one task is left, for two ranks."""
    tasks = test_stages.write(tmp_path / "tasks.jsonl", test_stages.tasks(1))
    flags = ["--tasks", tasks, "--search", f"http:{teacher_url}/search", "--max-tokens", 120]
    test_stages.script("eval.py", "run", "--model", student, "--out", tmp_path / "eval", *flags, "--metric",
                       "rule", "--engine", "vllm", ranks=2)
    test_stages.script("mps.py", "--student", student, "--out", tmp_path / "mps", *flags,
                       "--teacher-url", teacher_url, "--engine", "vllm", ranks=2)
    assert len(test_stages.lines(tmp_path / "eval" / "predictions.jsonl")) == 1
    assert len(test_stages.lines(tmp_path / "mps" / "mps.jsonl")) == 1


def test_more_prompts_than_vllm_computes_at_once(student, tmp_path):
    """Its CPU build failed on the first request with a seed whose prompt did not fit a batch of 4,096 tokens whole."""
    tasks = [{"id": f"t{i}", "question": f"{i} is the number of this question. " * 4, "answer": "3"} for i in range(48)]
    chat = env.load_chat(student)
    assert sum(len(chat.ids(task["question"])) for task in tasks) > 4096
    test_stages.script("eval.py", "run", "--model", student, "--tasks", test_stages.write(tmp_path / "tasks.jsonl", tasks),
                       "--out", tmp_path / "eval", "--metric", "rule", "--engine", "vllm", "--max-tokens", 8)
    assert len(test_stages.lines(tmp_path / "eval" / "predictions.jsonl")) == 48


def test_ranks_and_zero_stages_make_the_same_first_update(student, records, tmp_path, teacher_url):
    one = drive(1, "0", student, records, tmp_path / "one", teacher_url)["0"]
    assert one[0]["updates"] and one[0]["grad_norm"] > 1e-2 and one[0]["zero_variance"] < 1
    for zero, rows in drive(2, "0,2,3", student, records, tmp_path / "two", teacher_url).items():
        assert [rows[0][k] for k in KEYS] == pytest.approx([one[0][k] for k in KEYS], abs=1e-4), zero
        assert all(r["logp_gap"] < 1e-4 and r["sync_gap"] < 1e-4 for r in rows), zero


def test_qwen2_with_tied_embeddings_and_biases(tokenizer, records, tmp_path, teacher_url):
    torch.manual_seed(0)
    path = train(qwen2(tokenizer), tokenizer, records, tmp_path)
    rows = drive(1, "0", path, records, tmp_path / "one", teacher_url)["0"]
    assert len(rows) == 2 and all(max(r["logp_gap"], r["sync_gap"]) < 1e-4 for r in rows)


def test_responses_become_shorter_in_bf16(student, tmp_path):
    """With the trainer as anchor no token is outside the clip range before an update; with the engine it is said."""
    rows = shorten(tmp_path / "trainer", student, 0, "--engine", "vllm", "--dtype", "bf16")
    before, after = first_and_last(rows)
    assert after < 0.6 * before and all(row["outside_first"] == 0 for row in rows)
    row, = shorten(tmp_path / "engine", student, 0, "--engine", "vllm", "--dtype", "bf16", "--anchor", "engine",
                   "--steps", 1)
    print(f"bf16: outside the clip range before the first update: 0 by the trainer, {row['outside_first']:.4f} by the "
          f"engine; gap {row['logp_gap']:.1e}, 99th percentile {row['logp_gap_p99']:.1e}, largest {row['logp_gap_max']:.1e}")
    assert row["outside_first"] < 0.01 and 1e-4 < row["logp_gap_p99"] < 0.1
