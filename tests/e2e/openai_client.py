"""The OpenAI Python client (package `openai`) completes, chats and streams against tier-server.

Makes a virtual environment under the build folder on its first run. Exits 77 with the reason where
Python, pip or the package cannot be had.
"""
import os
import re
import subprocess
import sys
import tempfile
import time

from needs import need

SOURCE = os.environ["EXPERTIER_SOURCE"]
BUILD = os.environ["EXPERTIER_BUILD"]


def start_server(work):
    log = open(os.path.join(work, "log"), "w+")
    server = subprocess.Popen(
        [os.path.join(BUILD, "bin", "tier-server"), "--model", os.path.join(SOURCE, "models/pebble"),
         "--port", "0", "--set", f"tiers.nvme.index={work}/expertier.index"],
        stdout=log, stderr=subprocess.STDOUT)
    for _ in range(600):
        with open(log.name) as text:
            found = re.search(r"listening on (http:\S+)", text.read())
        if found:
            return server, found.group(1)
        if server.poll() is not None:
            break
        time.sleep(0.05)
    with open(log.name) as text:
        sys.exit("the server did not start:\n" + text.read())


def check(client, openai):
    names = [model.id for model in client.models.list()]
    assert names == ["pebble"], names

    whole = client.completions.create(model="pebble", prompt="In the beginning God created",
                                      max_tokens=16, temperature=0)
    assert whole.choices[0].text and whole.choices[0].finish_reason == "length", whole
    assert whole.usage.completion_tokens == 16, whole.usage

    stream = client.completions.create(model="pebble", prompt="In the beginning God created",
                                       max_tokens=16, temperature=0, stream=True,
                                       stream_options={"include_usage": True})
    pieces, usage = [], None
    for chunk in stream:
        usage = chunk.usage or usage
        pieces += [choice.text for choice in chunk.choices]
    assert "".join(pieces) == whole.choices[0].text, pieces
    assert usage.total_tokens == whole.usage.total_tokens, usage

    messages = [{"role": "user", "content": "And God said, Let there be"}]
    chat = client.chat.completions.create(model="pebble", messages=messages, max_tokens=12,
                                          temperature=0, logprobs=True)
    answer = chat.choices[0]
    assert answer.message.role == "assistant" and answer.message.content, chat
    assert len(answer.logprobs.content) == 12, answer.logprobs
    assert all(token.logprob <= 0 for token in answer.logprobs.content)

    text, finish = "", None
    for chunk in client.chat.completions.create(model="pebble", messages=messages, max_tokens=12,
                                                temperature=0, stream=True):
        text += chunk.choices[0].delta.content or ""
        finish = chunk.choices[0].finish_reason or finish
    assert text == answer.message.content and finish == "length", (text, finish)

    stop = text.strip()[3:6]
    stopped = client.chat.completions.create(model="pebble", messages=messages, max_tokens=12,
                                             temperature=0, stop=[stop])
    assert stopped.choices[0].finish_reason == "stop", stopped
    assert stop not in stopped.choices[0].message.content, stopped

    one, other = (client.completions.create(model="pebble", prompt="The", max_tokens=20,
                                            temperature=1, top_p=0.9, seed=11).choices[0].text
                  for _ in range(2))
    assert one == other, (one, other)

    for wrong, kind in (({"model": "pebble", "prompt": "x", "n": 3}, openai.BadRequestError),
                        ({"model": "other", "prompt": "x"}, openai.NotFoundError),
                        ({"model": "pebble", "prompt": "x", "max_tokens": 10**6},
                         openai.BadRequestError)):
        try:
            client.completions.create(**wrong)
            sys.exit(f"accepted: {wrong}")
        except kind as error:
            assert error.body["message"], error


def main():
    openai = need("openai", "openai>=1.0")
    with tempfile.TemporaryDirectory() as work:
        server, url = start_server(work)
        try:
            client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0, timeout=60)
            check(client, openai)
        finally:
            server.terminate()
            code = server.wait(timeout=60)
        assert code == 0, f"the server ended with {code}"
    print("openai", openai.__version__, "completed, chatted and streamed")


if __name__ == "__main__":
    main()
