"""The demo's student: a Qwen3 model of 0.3M parameters with random weights, its tokenizer and chat template.

  python demo/student.py --out runs/demo/ckpt/init --seed 0

The folder is an ordinary Hugging Face checkpoint: nothing in the seven scripts knows that the model is tiny
or the words few.
"""
import argparse
import os

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

import world

TEMPLATE = ("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>{% endif %}")
PHRASES = ["<first_thought>", "</first_thought>", "<thought>", "</thought><code>", "</code>", "\n", " ", ".",
           "?", ",", ": ", "'s", ". ", ", ", "=", "+", "-", "*", "(", ")", '"', "Observation: ", "None",
           "\nprint(", 'print(web_search("', '"))', "final_answer_print(", "Page: 0\nTitle: ", "\nSnippet: ",
           "error", "Error", "Traceback", "NameError", "not defined", "line", "has", "is", "does", "have",
           "How many", "What", "The", "the", "of", "print", "web_search", "Find", "After", "Next", "Answer",
           "answer", "found", "I", "will", "compute", "look", "up", "amounts", "links", "one by one",
           "step by step", "amount"]


def mark(text):
    """"Cy has" -> "▁Cy▁has" and "(Cy" -> "(▁Cy": one token a word whatever stands before it."""
    return NORMALIZER.normalize_str(text)


NORMALIZER = normalizers.Sequence([          # a space between two words becomes the mark of the second word …
    normalizers.Replace(Regex("(?<=[A-Za-z0-9_]) (?=[A-Za-z0-9_])"), "▁"),
    normalizers.Replace(Regex("(?<![A-Za-z0-9_▁])(?=[A-Za-z0-9_])"), "▁")])  # … and every other word gets one


def make_tokenizer():
    """A word-level tokenizer that loses nothing: other text becomes bytes, decoding restores all spaces."""
    words = [*world.PEOPLE, *world.THINGS, *world.OPS, *world.FIRST, *world.LAST, *world.RELATIONS,
             *world.RELATIONS.values(), *map(str, range(200)),
             *(f"{op} {n}" for op in world.OPS for n in range(2, 10)),
             *(f"{sign}{n}" for sign in world.OPS.values() for n in range(2, 10))]
    pieces = dict.fromkeys([mark(p) for p in PHRASES] + [mark(w) for w in words] + ["▁"])
    vocab = [("<unk>", -100.0)] + [(p, -1.0) for p in pieces] + [(f"<0x{b:02X}>", -20.0) for b in range(256)]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=True))
    tokenizer.normalizer = NORMALIZER
    tokenizer.decoder = decoders.Sequence([
        decoders.ByteFallback(), decoders.Fuse(),
        decoders.Replace(Regex("(?<=[A-Za-z0-9_])▁(?=[A-Za-z0-9_])"), " "), decoders.Replace("▁", "")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>",
                                        additional_special_tokens=["<|user|>", "<|assistant|>", "<|system|>"])
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_model(tokenizer, width=96, layers=2, seed=0):
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(Qwen3Config(
        vocab_size=(len(tokenizer) + 15) // 16 * 16, hidden_size=width, intermediate_size=3 * width,
        num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2, head_dim=width // 2,
        max_position_embeddings=2048, tie_word_embeddings=True, initializer_range=0.04, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id))


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0],
                                formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--out", required=True, help="folder for the checkpoint")
    p.add_argument("--seed", type=int, default=0, help="seed of the random weights")
    args = p.parse_args()
    if os.path.isfile(args.out):
        p.error(f"--out {args.out} is a file, it must be a folder")
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, seed=args.seed)
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    print(f"{args.out}: {model.num_parameters():,} parameters, {len(tokenizer)} tokens")
