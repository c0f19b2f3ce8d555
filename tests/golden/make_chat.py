#!/usr/bin/env python3
"""Makes chat_deepseek_v3.json: conversations, what DeepSeek-V3's chat_template makes of them (jinja2, as
`transformers` runs it), and the ids of that text.

    make_chat.py TOKENIZER_JSON TOKENIZER_CONFIG_JSON
"""
import json
import os
import sys

from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file(sys.argv[1])
config = json.load(open(sys.argv[2]))
template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(config["chat_template"])

U, A, S, T = "user", "assistant", "system", "tool"
CASES = [
    [],
    [(U, "Hello!")],
    [(U, "")],
    [(S, "You are brief."), (U, "Who wrote Faust?")],
    [(S, "One."), (S, "Two."), (U, "x")],
    [(U, "first"), (S, "late system"), (U, "second")],
    [(S, "sys"), (U, "a\nb"), (A, "c"), (U, "d"), (A, "  e\n"), (U, "f")],
    [(U, "q"), (A, "answer that ends the list")],
    [(U, "two"), (U, "users in a row")],
    [(A, "assistant first"), (U, "then user")],
    [(U, "weather?"), (A, "calling"), (T, "{\"t\": 20}"), (A, "It is 20 degrees."), (U, "thanks")],
    [(U, "weather?"), (A, "calling"), (T, "20"), (T, "30\n")],
    [(U, "weather?"), (T, "20"), (U, "never mind")],
    [(U, "a"), (T, "1"), (A, "b"), (T, "2"), (A, "c"), (T, "3")],
    [(S, "系统提示。"), (U, "写一首诗 🌙\r\n\r\n"), (A, "月光"), (U, "再来 3 首")],
    [(S, "only a system text")],
]

out = []
for case in CASES:
    messages = [{"role": r, "content": c} for r, c in case]
    text = template.render(messages=messages, bos_token=config["bos_token"]["content"], add_generation_prompt=True)
    out.append({"messages": messages, "text": text, "ids": tokenizer.encode(text, add_special_tokens=False).ids})
with open(os.path.dirname(os.path.abspath(__file__)) + "/chat_deepseek_v3.json", "w") as f:
    f.write("[\n" + ",\n".join(json.dumps(x, ensure_ascii=False) for x in out) + "\n]\n")
