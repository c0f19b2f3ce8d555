#!/usr/bin/env python3
"""Makes the tokenizer's golden files with Hugging Face `tokenizers`.

    make_tokenizer.py pools                     tokenizer_pools.txt
    make_tokenizer.py ids NAME TOKENIZER_JSON   tokenizer_NAME.ids
    make_tokenizer.py splits                    tokenizer_splits.json
    make_tokenizer.py show TOKENIZER_JSON I     one string and its ids, to look into a difference

The strings are not stored: pools (ranges of code points assigned by Unicode 14, and snippets) and a
seed make them, here and in tests/unit/model/check_tokenizer_golden.c. Stored are 32-bit FNV-1a hashes of
the ids of each string, with added tokens recognised and without. Run `pools` with a Python whose
unicodedata is 14.0.0 (3.11): the engines differ on code points that came later.
"""
import json
import os
import struct
import sys
import unicodedata

SEED = 0x45585031
COUNT = 10000
LONG_EVERY = 500                # every so many strings comes a long one
HERE = os.path.dirname(os.path.abspath(__file__))
MASK = (1 << 64) - 1


class Rng:
    """base/rng.h: xoshiro256** seeded by splitmix64."""

    def __init__(self, seed):
        self.s = []
        for _ in range(4):
            seed = (seed + 0x9E3779B97F4A7C15) & MASK
            z = seed
            z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
            z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
            self.s.append(z ^ (z >> 31))

    def u64(self):
        s = self.s
        x = (s[1] * 5) & MASK
        result = (((x << 7) | (x >> 57)) * 9) & MASK
        t = (s[1] << 17) & MASK
        s[2] ^= s[0]
        s[3] ^= s[1]
        s[1] ^= s[2]
        s[0] ^= s[3]
        s[2] ^= t
        s[3] = ((s[3] << 45) | (s[3] >> 19)) & MASK
        return result

    def below(self, bound):
        reject = (1 << 64) % bound
        while True:
            x = self.u64()
            if x >= reject:
                return x % bound


def ranges_of(wanted):
    out = []
    for cp in range(0x110000):
        if wanted(cp, unicodedata.category(chr(cp))):
            if out and out[-1][1] == cp - 1:
                out[-1][1] = cp
            else:
                out.append([cp, cp])
    return out


SPACES = [0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0x1C, 0x1F, 0x20, 0x20, 0x20, 0x20, 0x85, 0xA0, 0x1680, 0x180E,
          0x2000, 0x2003, 0x2009, 0x200A, 0x200B, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000, 0xFEFF]
EMOJI = ["😀", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "🇨🇳🇫🇷", "❤️", "1️⃣", "🧑🏿‍🚀", "☕", "🫠", "🏴\U000E0067\U000E0062\U000E0065\U000E006E\U000E0067\U000E007F"]
NEWLINES = ["\r\n", "\n", "\r", "\n\n", "\r\n\r\n", " \n", "\n ", "\t\r\n", "   \n\n   ", "\n\r", "\u2028", "\x85\n"]
CODE = ["int main(int argc, char **argv)\n{\n    return 0;\n}\n", "#include <stdio.h>", "if (a[i] != b->c)",
        "def f(x):\n\treturn x**2  # note", "for (;;) {}", "a_b_c", "CamelCaseWord", "x=1;y=2;", "</div>", "&amp;",
        "0xDEADBEEF", "3.14159e-10", "std::vector<int>", "SELECT * FROM t WHERE a='b';", "${HOME}/bin", "\\n\\t",
        "{\"a\": [1, 2, null]}", "----", "====", "//////", "!!!", "...", "C:\\Users\\x", "https://example.org/a?b=c#d"]
WORDS = ["the", " The", "Hello", " world", "it's", "don't", "we'll", "I'M", " Straße", "naïve", "e\u0301te\u0301", "Ελλάδα",
         " привет", "мир", "שלום", "مرحبا بالعالم", "नमस्ते", "สวัสดี", "안녕하세요", "こんにちは", "カタカナ", "ｶﾅ", "Tiếng Việt", "中文",
         "模型，推理。", "「引用」", "ﬁ", "Ǆ", "İstanbul", "ſ", "A", " a", "zz"]
MARKS = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", "<｜User｜>", "<｜Assistant｜>", "<|EOT|>", "<｜tool▁sep｜>",
         "<｜fim▁hole｜>", "<｜place▁holder▁no▁1｜>", "<｜place▁holder▁no▁10｜>", "<｜place▁holder▁no▁799｜>", "<｜User|>", "<｜", "｜>", "<|", "<",
         "<｜User｜", "<｜place▁holder▁no▁", "<<｜User｜>>", "▁", "<think>", "</s>"]


def make_pools():
    assigned = lambda cp, cat: cat not in ("Cn", "Cs")
    inside = lambda *spans: (lambda cp, cat: assigned(cp, cat) and any(a <= cp <= b for a, b in spans))
    pools = [
        ("letters", inside((0x41, 0x5A), (0x61, 0x7A))),
        ("ascii", inside((0x20, 0x7E))),
        ("ascii digits", inside((0x30, 0x39))),
        ("numbers", lambda cp, cat: cat[0] == "N"),
        ("spaces", SPACES),
        ("newlines", NEWLINES),
        ("latin", inside((0xA1, 0x24F), (0x1E00, 0x1EFF))),
        ("cyrillic greek", inside((0x370, 0x52F))),
        ("hebrew arabic", inside((0x590, 0x77F), (0x8A0, 0x8FF), (0xFB1D, 0xFEFC))),
        ("indic thai", inside((0x900, 0xEFF))),
        ("hangul", inside((0x1100, 0x11FF), (0xAC00, 0xD7A3))),
        ("han kana", inside((0x4E00, 0x9FA5), (0x3040, 0x30FF))),
        ("han edge", inside((0x9FA0, 0x9FFF), (0x3000, 0x303F), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0xFF00, 0xFFEF))),
        ("emoji ranges", inside((0x2600, 0x27BF), (0x1F300, 0x1FAFF), (0x200D, 0x200D), (0xFE0E, 0xFE0F))),
        ("emoji", EMOJI),
        ("marks", lambda cp, cat: cat[0] == "M"),
        ("punctuation symbols", lambda cp, cat: cat[0] in "PS"),
        ("controls", lambda cp, cat: cat in ("Cc", "Cf")),
        ("any", assigned),
        ("code", CODE),
        ("words", WORDS),
        ("words again", WORDS),
        ("added tokens", MARKS),
    ]
    lines = ["# Pools of the tokenizer's golden strings: r FIRST LAST (code points), s BYTES (UTF-8, hexadecimal).",
             "# Made by make_tokenizer.py with Unicode " + unicodedata.unidata_version + "."]
    for name, what in pools:
        lines.append("pool " + name)
        if callable(what):
            lines += ["r %x %x" % (a, b) for a, b in ranges_of(what)]
        else:
            lines += ["s " + (chr(x) if isinstance(x, int) else x).encode().hex() for x in what]
    with open(HERE + "/tokenizer_pools.txt", "w") as f:
        f.write("\n".join(lines) + "\n")


def read_pools():
    pools = []
    for line in open(HERE + "/tokenizer_pools.txt"):
        if line.startswith("pool "):
            pools.append(([], []))
        elif line.startswith("r "):
            first, last = (int(x, 16) for x in line[2:].split())
            pools[-1][0].append((first, last - first + 1))
        elif line.startswith("s "):
            pools[-1][1].append(bytes.fromhex(line[2:].strip()).decode())
    return [(r, sum(n for _, n in r), s) for r, s in pools]


def make_string(pools, index):
    rng = Rng(SEED + index)
    out = []
    for _ in range(300 if index % LONG_EVERY == 0 else 1 + rng.below(12)):
        ranges, total, snippets = pools[rng.below(len(pools))]
        if snippets:
            out.append(snippets[rng.below(len(snippets))])
            continue
        for _ in range(1 + rng.below(6)):
            pick = rng.below(total)
            for first, count in ranges:
                if pick < count:
                    out.append(chr(first + pick))
                    break
                pick -= count
    return "".join(out)


def fnv(data, h=0x811C9DC5):
    for b in data:
        h = ((h ^ b) * 0x01000193) & 0xFFFFFFFF
    return h


def load(path):
    """The tokenizer as it is, and one that knows no added tokens."""
    from tokenizers import Tokenizer
    data = json.load(open(path))
    data["added_tokens"] = []
    return Tokenizer.from_file(path), Tokenizer.from_str(json.dumps(data))


def encode(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


def make_ids(name, path):
    special, plain = load(path)
    pools, h, body = read_pools(), 0x811C9DC5, b""
    for i in range(COUNT):
        text = make_string(pools, i)
        h = fnv(text.encode(), h)
        for t in (plain, special):
            ids = encode(t, text)
            body += struct.pack("<I", fnv(struct.pack("<%dI" % len(ids), *ids)))
    with open(HERE + "/tokenizer_%s.ids" % name, "wb") as f:
        f.write(struct.pack("<8sQIII", b"EXPTOKS1", SEED, COUNT, LONG_EVERY, h) + body)


def byte_alphabet():
    printable = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    others = [b for b in range(256) if b not in printable]
    return {**{b: chr(b) for b in printable}, **{b: chr(256 + i) for i, b in enumerate(others)}}


def greedy_model():
    """A vocabulary in which any two and any four of some characters merge, so that ids show where the
    pieces end."""
    alphabet = byte_alphabet()
    vocab = {alphabet[b]: b for b in range(256)}
    ones = [alphabet[b] for b in b"ab1 .\n"]
    twos = [a + b for a in ones for b in ones]
    merges = []
    for parts in (ones, twos):
        for a in parts:
            for b in parts:
                vocab[a + b] = len(vocab)
                merges.append([a, b])
    return {"type": "BPE", "vocab": vocab, "merges": merges}


SPLIT_TEXTS = ["", "a", "ab ab", " ab1 b11a..", "1a1a11", "...a...", "aab  b\n\n a\n", "\n", "  ", "a1 .b\n1. ab 1",
               "1 a 11  bb .\n.\n  ", "b's a'll 'ba", "中a1文 ٣٤", " a\n b \n1"]


def make_splits():
    from tokenizers import Tokenizer
    byte_level = lambda prefix, regex: {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": regex}
    split = lambda pattern, behavior, invert=False, kind="Regex": {
        "type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}
    last = byte_level(False, False)
    steps = [[split(pattern, behavior, invert)]
             for behavior in ("Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous")
             for invert in (False, True)
             for pattern in ("1", "[ab]+", "\\s")]
    steps += [[split("1.", "Isolated", False, "String")], [split("a|", "Isolated")], [split(" $", "Isolated")],
              [split("^.", "Isolated")], [split("(?i:B)|(?<=a)1|b(?=\\.)", "Isolated")], [split("\\S+", "Isolated")],
              [split("[^\\s1]+", "Isolated")], [split("\\u0031\\x62?", "Isolated")],
              [{"type": "Digits", "individual_digits": True}], [{"type": "Digits", "individual_digits": False}],
              # DeepSeek-V2 and DeepSeek-LLM
              [split("[\r\n]", "Isolated"), split("\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-Ֆ]+", "Isolated"),
               split("\\s?[!-/:-~！-／：-～‘-‟　-。]+", "Isolated"), split("\\s+$", "Isolated"),
               split("[一-龥ࠀ-一가-퟿]+", "Isolated"), {"type": "Digits", "individual_digits": True}]]
    pre = [{"type": "Sequence", "pretokenizers": s + [last]} for s in steps]
    pre += [byte_level(p, r) for p in (False, True) for r in (False, True)]
    pre += [{"type": "Sequence", "pretokenizers": [split("1", "Isolated"), byte_level(True, True)]}]
    model, cases = greedy_model(), []
    for ignore in (False, True):
        for p in pre if not ignore else pre[:1]:
            data = {"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": p, "post_processor": None,
                    "decoder": byte_level(True, True), "model": dict(model, ignore_merges=ignore)}
            t = Tokenizer.from_str(json.dumps(data))
            cases.append({"pre_tokenizer": json.dumps(p), "ignore_merges": ignore,
                          "ids": [encode(t, x) for x in SPLIT_TEXTS]})
    with open(HERE + "/tokenizer_splits.json", "w") as f:
        head = {"model": json.dumps(model, separators=(",", ":")), "texts": SPLIT_TEXTS}
        f.write(json.dumps(head, separators=(",", ":"))[:-1] + ',"cases":[\n')
        f.write(",\n".join(json.dumps(c, separators=(",", ":")) for c in cases) + "\n]}\n")


def show(path, index):
    text = make_string(read_pools(), index)
    print(ascii(text))
    for t in load(path)[::-1]:
        ids = encode(t, text)
        print([(i, t.id_to_token(i)) for i in ids])


if __name__ == "__main__":
    if sys.argv[1:] == ["pools"]:
        make_pools()
    elif sys.argv[1:2] == ["ids"] and len(sys.argv) == 4:
        make_ids(sys.argv[2], sys.argv[3])
    elif sys.argv[1:] == ["splits"]:
        make_splits()
    elif sys.argv[1:2] == ["show"] and len(sys.argv) == 4:
        show(sys.argv[2], int(sys.argv[3]))
    else:
        sys.exit(__doc__)
