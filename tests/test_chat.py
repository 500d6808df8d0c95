"""Chat templates: which are kept to the token, which are refused and why, control tokens, --chat-template."""
import json
import os
import random

import pytest

import env
import sft
import student
from conftest import ROOT, script
from plumbing.cli import InputError
from test_sft import conversation

IM = ["<|im_start|>"]
CHATML = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


def save(tokenizer, folder):
    """A folder of a checkpoint, as far as its chat template is concerned."""
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text("{}")


def roles(user, assistant, prompt):
    """A template of the texts around a question and an answer, and of what asks for an answer."""
    return ("{% for m in messages %}{% if m.role == 'user' %}" + user.replace("X", "{{ m.content }}") + "{% else %}"
            + assistant.replace("X", "{{ m.content }}") + "{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}" + prompt + "{% endif %}")


# name: template, end-of-sequence token, further control tokens
KEPT = {
    "chatml": (CHATML, "<|im_end|>", IM),
    "chatml that trims": (CHATML.replace("m.content", "m.content | trim"), "<|im_end|>", IM),
    "chatml with a system message": ("<|im_start|>system\nHelp.<|im_end|>\n" + CHATML, "<|im_end|>", IM),
    "header, trims": (roles("<|h|>user<|/h|>\n\n" + "{{ m.content | trim }}<|eot|>",
                            "<|h|>assistant<|/h|>\n\n{{ m.content | trim }}<|eot|>",
                            "<|h|>assistant<|/h|>\n\n"), "<|eot|>", ["<|h|>", "<|/h|>"]),
    "no newline, spaces before the content": (roles("[U] X</s>", "[A] X</s>", "[A] "), "</s>", ["[U]", "[A]"]),
    "end of text behind the last turn only": (
        CHATML + "{% if not add_generation_prompt %}<|pad|>{% endif %}", "<|im_end|>", IM),
    "thinking switched off for every turn": (
        roles("<|im_start|>user\nX<|im_end|>\n", "<|im_start|>assistant\n<think></think>\nX<|im_end|>\n",
              "<|im_start|>assistant\n<think></think>\n"), "<|im_end|>", IM),
    "bos": ("<s>" + roles("<u>X", "<a>X</s>", "<a>"), "</s>", ["<s>", "<u>", "<a>"]),
}
REFUSED = {
    "space before the answer": (roles("[INST] X [/INST]", " X</s>", ""), "</s>", ["[INST]", "[/INST]"],
                                ["writes ' [/INST] ' between question and answer, and ' [/INST]'"]),
    "thinking opened for the model": (roles("<U>X", "<A>X</s>", "<A><think>\n"), "</s>", ["<U>", "<A>"],
                                      ["writes '<A>' between", "and '<A><think>\\n' where an answer"]),
    "nothing asks for an answer": (roles("USER: X ", "ASSISTANT: X</s>", ""), "</s>", [],
                                   ["writes ' ASSISTANT: ' between", "and ' ' where"]),
    "earlier reasoning dropped": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}"
        "<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}", "<|im_end|>", IM,
        ["rewrites history", "'<|im_end|>\\n<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n…'"]),
    "only the last message": ("{{ messages[-1].content }}</s>", "</s>", [], ["rewrites history"]),
    "end of turn is not eos": (roles("<start_of_turn>user\nX<end_of_turn>\n",
                                     "<start_of_turn>model\nX<end_of_turn>\n", "<start_of_turn>model\n"),
                               "<eos>", ["<start_of_turn>", "<end_of_turn>"],
                               ["ends the assistant's turn with '<end_of_turn>',", "is '<eos>'"]),
    "eos behind the end of the last turn": (
        roles("<|user|>X<|end|>", "<|assistant|>X<|end|>", "<|assistant|>")
        + "{% if not add_generation_prompt %}<|endoftext|>{% endif %}", "<|endoftext|>", ["<|end|>", "<|user|>"],
        ["ends the assistant's turn with '<|end|>',", "is '<|endoftext|>'"]),
    "no end of turn": (roles("<|user|>\nX", "<|assistant|>\nX", "<|assistant|>\n"), "<|endoftext|>",
                       ["<|user|>", "<|assistant|>"], ["with nothing, with '<|user|>' when", "is '<|endoftext|>'"]),
    "another end for the last turn": (
        "{% for m in messages %}<|start|>{{ m.role }}{{ m.content }}"
        "{% if m.role == 'assistant' and loop.last %}<|return|>{% else %}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}", "<|return|>", ["<|start|>", "<|end|>"],
        ["with '<|return|>', with '<|end|>' when another message follows"]),
    "two faults": (roles("<U>X<end>", "<A>final X<end>", "<A>"), "</s>", ["<U>", "<A>", "<end>"],
                   ["writes '<end><A>final '", "and ends the assistant's turn with '<end>',"]),
    "space before eos": (roles("U X A", " X </s>", " "), "</s>", [], ["with ' </s>'", "is '</s>'"]),
    "end of turn is no token": (CHATML, "<eos>", [], ["with '<|im_end|>\\n'", "is '<eos>'"]),
    "raises": ("{{ raise_exception('Roles must alternate') }}", "</s>", [], ["fails", "Roles must alternate"]),
    "broken jinja": ("{% for %}", "</s>", [], ["fails"]),
    "undefined": ("{{ nothing.first() }}", "</s>", [], ["fails", "'nothing' is undefined"]),
    "joins text and number": ("{{ messages[0].content + 1 }}", "</s>", [], ["fails", "concatenate"]),
    "calls itself": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "</s>", [], ["fails", "recursion"]),
    "content as a list": ("{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}",
                          "</s>", [], ["lists of parts"]),
    "first part of the content": ("{% for m in messages %}{{ m.content[0]['text'] }}{% endfor %}", "</s>", [],
                                  ["lists of parts"]),
    "every content twice": ("{% for m in messages %}{{ m.content }}{{ m.content }}</s>{% endfor %}", "</s>", [],
                            ["text once"]),
    "none": (None, "</s>", [], ["no chat template"]),
    "empty": ("", "</s>", [], ["no chat template"]),
}


def tokenizer_with(template, eos, more):
    tokenizer = student.make_tokenizer()
    tokenizer.add_special_tokens({"eos_token": eos, "additional_special_tokens": more})
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("ends", ["", "\n\n", " \t", "\u3000"], ids=repr)
@pytest.mark.parametrize("name", KEPT)
def test_white_space_at_the_ends_of_contents_changes_no_token(name, ends):
    """Nor between a rollout and training; what was sampled stays as it was sampled."""
    chat = env.Chat(tokenizer_with(*KEPT[name]))
    plain = conversation(random.Random(3))
    spaced = [{**m, "content": ends + m["content"] + ends} for m in plain]
    assert chat.encode(spaced) == chat.encode(plain)

    class Recorded(env.Episode):
        def turn(self, content, complete=True):
            assert complete and content.strip() == plain[len(self.messages)]["content"]
            self.messages += spaced[len(self.messages):len(self.messages) + 2]
            return self.messages[-1]["content"] if len(self.messages) < len(spaced) else None

    episode = Recorded({"question": spaced[0]["content"]}, None, max_tokens=10 ** 6)
    episode.begin(chat)
    for m in plain[1::2]:
        ids = chat.ids(m["content"]) + [chat.end]
        episode.token_turn(chat, ids, [0.0] * len(ids))
    assert (episode.ids, episode.loss_mask) == chat.encode(plain)
    again = Recorded({"question": "q"}, None, max_tokens=10 ** 6)
    again.begin(chat)
    ids = chat.ids(plain[1]["content"] + "\n") + [chat.end]
    again.token_turn(chat, ids, [0.0] * len(ids))
    assert again.ids[again.prompt_length:][:len(ids)] == ids


@pytest.mark.parametrize("name", KEPT)
def test_a_template_that_is_kept_is_kept_to_the_character(name):
    tokenizer = tokenizer_with(*KEPT[name])
    messages = conversation(random.Random(4))
    ids, mask = env.Chat(tokenizer).encode(messages)
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert whole.startswith(tokenizer.decode(ids)) and whole[len(tokenizer.decode(ids)):].strip() in ("", "<|pad|>")
    assert mask[-1] == 1 and ids[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("name", REFUSED)
def test_a_template_is_refused_with_its_fault(name, tmp_path):
    *how, says = REFUSED[name]
    tokenizer = tokenizer_with(*how)
    with pytest.raises(ValueError) as refused:
        env.Chat(tokenizer)
    save(tokenizer, tmp_path)
    with pytest.raises(InputError) as named:
        env.load_chat(str(tmp_path))
    for error in refused, named:
        assert all(part in str(error.value) for part in [*says, "--chat-template"]), error.value
        assert "\n" not in str(error.value)
    assert str(tmp_path) in str(named.value)


@pytest.mark.parametrize("name", ["earlier reasoning dropped", "thinking opened for the model", "none"])
def test_a_template_that_is_given_takes_the_place_of_the_models(name, tmp_path):
    """The plain ChatML of assets/, where <|im_end|> is the end-of-sequence token."""
    chatml = os.path.join(ROOT, "assets", "chatml.jinja")
    save(tokenizer_with(REFUSED[name][0], "<|im_end|>", IM), tmp_path / "a")
    chat = env.load_chat(str(tmp_path / "a"), chatml)
    messages = conversation(random.Random(5))
    own = env.Chat(tokenizer_with(CHATML, "<|im_end|>", IM))
    assert chat.encode(messages) == own.encode(messages)
    assert chat.encode(messages[:3]) == own.encode(messages[:3])
    save(chat.tokenizer, tmp_path / "b")                       # as training does
    assert env.load_chat(str(tmp_path / "b")).encode(messages) == own.encode(messages)
    save(tokenizer_with(CHATML, "<eos>", []), tmp_path / "c")
    with pytest.raises(InputError, match=r"chatml.jinja: .*'<\|im_end\|>\\n'.* is '<eos>'"):
        env.load_chat(str(tmp_path / "c"), chatml)


def test_sft_saves_the_template_it_was_given(tmp_path):
    tokenizer = tokenizer_with(REFUSED["earlier reasoning dropped"][0], "<|im_end|>", IM)
    student.make_model(tokenizer, width=32).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "data.jsonl").write_text(json.dumps({"messages": conversation(random.Random(6))}) + "\n")
    flags = ["--model", tmp_path / "model", "--data", tmp_path / "data.jsonl", "--out", tmp_path / "out",
             "--dtype", "fp32", "--batch", 1, "--steps", 1]
    refused = script("sft.py", *flags, check=False)
    assert refused.returncode == 2 and "rewrites history" in refused.stderr and "--chat-template" in refused.stderr
    missing = script("sft.py", *flags, "--chat-template", "nowhere.jinja", check=False)
    assert missing.returncode == 2 and "nowhere.jinja" in missing.stderr and "Traceback" not in missing.stderr
    script("sft.py", *flags, "--chat-template", "assets/chatml.jinja")
    assert env.load_chat(str(tmp_path / "out")).open == "<|im_end|>\n<|im_start|>assistant\n"


# ---- messages that cannot be kept, control tokens ----

def test_an_example_that_the_template_would_change_is_dropped_alone(tmp_path):
    """As templates do that cut what stands before </think>."""
    template = CHATML.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}")
    chat = env.Chat(tokenizer_with(template, "<|im_end|>", IM))
    good, bad = conversation(random.Random(7)), conversation(random.Random(8))
    bad[3]["content"] = "<think>hm</think>" + bad[3]["content"]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"messages": m}) + "\n" for m in (bad, good, bad)))
    said = []
    assert sft.load_examples([str(path)], chat, 4096, log=said.append) == [chat.encode(good)]
    assert "2 dropped" in said[1] and "data.jsonl, line 1" in said[1] and "changes a message" in said[1]
    path.write_text(json.dumps({"messages": bad}) + "\n")
    with pytest.raises(InputError, match="1 that the chat template changes; .*line 1"):
        sft.load_examples([str(path)], chat, 4096)


@pytest.mark.parametrize("stray", ["<|endoftext|>", "<|im_start|>", "<|pad|>"])
def test_a_stray_control_token_ends_the_turn_and_is_not_learnt(stray):
    chat = env.Chat(tokenizer_with(CHATML, "<|im_end|>", [*IM, "<|endoftext|>"]))
    token, = chat.ids(stray)
    interpreter = env.Interpreter()
    episode = env.Episode({"question": "q"}, interpreter)
    episode.begin(chat)
    text = "<thought>a</thought><code>print(1)</code>"
    ids = chat.ids(text) + [token]
    assert episode.token_turn(chat, ids, [0.0] * len(ids)) is None
    assert episode.stop == "format" and episode.messages[-1] == {"role": "assistant", "content": text}
    assert episode.ids[-len(ids):] == ids and episode.loss_mask[-len(ids):] == [1] * len(ids)
    interpreter.close()

    # where an older file has it: nothing is left of it in a turn, in what was read it is broken up
    plain = [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]
    odd = [{"role": "user", "content": "q"}, {"role": "assistant", "content": text.replace("a", f"a{stray}") + stray}]
    assert chat.encode(odd) == chat.encode(plain)
    asked = [{"role": "user", "content": f"what is {stray}?"}, plain[1]]
    ids, mask = chat.encode(asked)
    assert token not in chat.ids(chat.content(asked[0])) and sum(mask) == sum(chat.encode(plain)[1])
    split = {"role": "assistant", "content": f"<|im_{stray}end|>"}       # without the token, another one
    assert chat.end not in chat.ids(chat.content(split))


def test_a_turn_is_taken_as_it_was_written():
    """Some tokenizers are set to tidy what they decode: code would be run that the policy did not write."""
    tokenizer = tokenizer_with(CHATML, "<|im_end|>", IM)
    tokenizer.clean_up_tokenization_spaces = True
    chat = env.Chat(tokenizer)
    text = "<thought>Is it so ?</thought><code>print('a , b .')</code>"
    assert tokenizer.decode(chat.ids(text)) != text
    interpreter = env.Interpreter()
    episode = env.Episode({"question": "q"}, interpreter)
    episode.begin(chat)
    ids = chat.ids(text) + [chat.end]
    episode.token_turn(chat, ids, [0.0] * len(ids))
    assert [m["content"] for m in episode.messages[1:]] == [text, "Observation: a , b ."]
    assert episode.ids == chat.encode(episode.messages)[0]
    interpreter.close()


def test_tags_that_are_special_tokens_stay_text():
    """The authors' models have them so."""
    chat = env.Chat(tokenizer_with(CHATML, "<|im_end|>", [*IM, "<thought>", "</thought>", "<code>", "</code>"]))
    turn = {"role": "assistant", "content": "<thought>a</thought><code>1</code>"}
    assert chat.content(turn) == turn["content"] and not chat.stray & set(chat.ids(turn["content"]))
