#!/usr/bin/env python3
"""Writes a random checkpoint of DeepSeek geometry, and the same weights as GGUF for peers.

Weights are FP8 e4m3 codes of a normal distribution with one scale per 128 x 128 block; the GGUF holds the very same
values rounded to Q8_0. Such a model measures bytes and operations, not quality. Its gates choose uniformly, and what a block
adds to the residual stream changes little of what the next gate chooses, as in trained models.
Needs numpy; --gguf needs the package gguf.
"""
import argparse
import json
import os
import struct
import sys

import numpy as np

GEOMETRIES = {
    # The baseline that peers are compared on: deepseek2 architecture, 8 MoE layers x 128 experts, hidden 2048, 6.6 GiB in 8 bit.
    "baseline": dict(hidden=2048, layers=9, dense=1, experts=128, top_k=6, shared=2, expert_width=1024, dense_width=10944,
                     heads=16, q_lora=1536, kv_lora=512, nope=128, rope=64, v=128, groups=1, top_groups=1, vocab=102400,
                     scoring="softmax", scaling=1.0, norm=False, v3=False),
    # DeepSeek-V3's layers, as many as asked for.
    "v3": dict(hidden=7168, layers=4, dense=1, experts=256, top_k=8, shared=1, expert_width=2048, dense_width=18432,
               heads=128, q_lora=1536, kv_lora=512, nope=128, rope=64, v=128, groups=8, top_groups=4, vocab=129280,
               scoring="sigmoid", scaling=2.5, norm=True, v3=True),
    # gpt-oss-20b's routing shape (24 x 32, top-4) in this architecture, for imposed routing.
    "gptoss": dict(hidden=2048, layers=24, dense=0, experts=32, top_k=4, shared=1, expert_width=1024, dense_width=10944,
                   heads=16, q_lora=1536, kv_lora=512, nope=128, rope=64, v=128, groups=1, top_groups=1, vocab=32768,
                   scoring="softmax", scaling=1.0, norm=False, v3=False),
    "tiny": dict(hidden=256, layers=3, dense=1, experts=16, top_k=4, shared=1, expert_width=128, dense_width=512, heads=4,
                 q_lora=128, kv_lora=64, nope=32, rope=16, v=32, groups=1, top_groups=1, vocab=4096, scoring="softmax",
                 scaling=1.0, norm=False, v3=False),
}
BLOCK = 128


def e4m3_values():
    v = np.zeros(256, np.float32)
    for b in range(256):
        e, m = (b >> 3) & 15, b & 7
        x = m / 8 * 2.0 ** -6 if e == 0 else (1 + m / 8) * 2.0 ** (e - 7)
        v[b] = -x if b >> 7 else x
    return v


VALUES = e4m3_values()


def normal_codes():
    """65,536 codes whose values are the quantiles of a normal with standard deviation 64 (largest code 448 = 7 sigma)."""
    u = (np.arange(65536) + 0.5) / 65536
    from statistics import NormalDist
    q = np.array([NormalDist().inv_cdf(float(x)) for x in u[::64]], np.float32)
    q = np.interp(u, u[::64], q).astype(np.float32) * 64
    finite = np.array([b for b in range(256) if b & 0x7F != 0x7F])
    order = finite[np.argsort(VALUES[finite])]
    at = np.clip(np.searchsorted(VALUES[order], q), 0, len(order) - 1)
    return order[at].astype(np.uint8)


class Writer:
    """Streams tensors into safetensors shards: sizes are known before, so headers come first."""

    def __init__(self, folder, shard_bytes):
        self.folder, self.shard_bytes, self.plan = folder, shard_bytes, []

    def add(self, name, dtype, shape):
        size = int(np.prod(shape)) * {"BF16": 2, "F8_E4M3": 1, "F32": 4}[dtype]
        self.plan.append((name, dtype, shape, size))

    def write(self, make, report):
        shards, current, used = [], [], 0
        for t in self.plan:
            if current and used + t[3] > self.shard_bytes:
                shards.append(current)
                current, used = [], 0
            current.append(t)
            used += t[3]
        shards.append(current)
        total, done, where = sum(t[3] for t in self.plan), 0, {}
        for i, shard in enumerate(shards):
            fn = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
            header, at = {"__metadata__": {"format": "pt"}}, 0
            for name, dtype, shape, size in shard:
                header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
                where[name] = fn
                at += size
            text = json.dumps(header, separators=(",", ":")).encode()
            text += b" " * (-len(text) % 8)
            with open(f"{self.folder}/{fn}.tmp", "wb") as f:
                f.write(struct.pack("<Q", len(text)) + text)
                for name, dtype, shape, size in shard:
                    data = make(name, dtype, shape)
                    assert len(data) == size, name
                    f.write(data)
                    done += size
                    report(done, total)
            os.rename(f"{self.folder}/{fn}.tmp", f"{self.folder}/{fn}")
        with open(f"{self.folder}/model.safetensors.index.json", "w") as f:
            json.dump({"metadata": {"total_size": total}, "weight_map": where}, f)
        return total


def matrices(g):
    """(name, rows, cols) of every FP8 matrix of the model, in checkpoint order."""
    h, out = g["hidden"], []
    for l in range(g["layers"]):
        p = f"model.layers.{l}"
        qdim = g["heads"] * (g["nope"] + g["rope"])
        if g["q_lora"]:
            out += [(f"{p}.self_attn.q_a_proj", g["q_lora"], h), (f"{p}.self_attn.q_b_proj", qdim, g["q_lora"])]
        else:
            out += [(f"{p}.self_attn.q_proj", qdim, h)]
        out += [(f"{p}.self_attn.kv_a_proj_with_mqa", g["kv_lora"] + g["rope"], h),
                (f"{p}.self_attn.kv_b_proj", g["heads"] * (g["nope"] + g["v"]), g["kv_lora"]),
                (f"{p}.self_attn.o_proj", h, g["heads"] * g["v"])]
        groups = ([(f"{p}.mlp", g["dense_width"])] if l < g["dense"] else
                  [(f"{p}.mlp.shared_experts", g["shared"] * g["expert_width"])] +
                  [(f"{p}.mlp.experts.{e}", g["expert_width"]) for e in range(g["experts"])])
        for q, w in groups:
            out += [(f"{q}.gate_proj", w, h), (f"{q}.up_proj", w, h), (f"{q}.down_proj", h, w)]
    return out


def config(g):
    c = dict(architectures=["DeepseekV3ForCausalLM" if g["v3"] else "DeepseekV2ForCausalLM"],
             model_type="deepseek_v3" if g["v3"] else "deepseek_v2", attention_bias=False, bos_token_id=0, eos_token_id=1,
             hidden_act="silu", max_position_embeddings=8192, moe_layer_freq=1, norm_topk_prob=g["norm"],
             num_key_value_heads=g["heads"], rope_scaling=None, scoring_func=g["scoring"],
             topk_method="noaux_tc" if g["v3"] else "greedy", tie_word_embeddings=False, torch_dtype="bfloat16",
             quantization_config=dict(activation_scheme="dynamic", fmt="e4m3", quant_method="fp8", weight_block_size=[BLOCK, BLOCK]),
             vocab_size=g["vocab"], hidden_size=g["hidden"], intermediate_size=g["dense_width"],
             moe_intermediate_size=g["expert_width"], num_hidden_layers=g["layers"], first_k_dense_replace=g["dense"],
             num_attention_heads=g["heads"], q_lora_rank=g["q_lora"] or None, kv_lora_rank=g["kv_lora"],
             qk_nope_head_dim=g["nope"], qk_rope_head_dim=g["rope"], v_head_dim=g["v"], n_routed_experts=g["experts"],
             n_shared_experts=g["shared"], num_experts_per_tok=g["top_k"], n_group=g["groups"], topk_group=g["top_groups"],
             routed_scaling_factor=g["scaling"], rms_norm_eps=1e-6, rope_theta=10000.0)
    return c


def make_gguf(path, g, folder):
    """The same values as Q8_0 (norms and gate as F32), streamed tensor by tensor from the safetensors."""
    import gguf
    from gguf import GGMLQuantizationType as Q
    where = json.load(open(f"{folder}/model.safetensors.index.json"))["weight_map"]
    heads = {}

    def raw(name):
        fn = where[name]
        if fn not in heads:
            f = open(f"{folder}/{fn}", "rb")
            n = struct.unpack("<Q", f.read(8))[0]
            heads[fn] = (8 + n, json.loads(f.read(n)), np.memmap(f"{folder}/{fn}", np.uint8, "r"))
        base, head, data = heads[fn]
        t = head[name]
        return t["dtype"], t["shape"], data[base + t["data_offsets"][0]:base + t["data_offsets"][1]]

    def tensor(name):
        dtype, shape, data = raw(name)
        if dtype == "BF16":
            return (data.view("<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
        if dtype == "F32":
            return data.view("<f4").reshape(shape)
        scale = tensor(name + "_scale_inv")
        full = np.repeat(np.repeat(scale, BLOCK, 0), BLOCK, 1)[:shape[0], :shape[1]]
        return VALUES[data.reshape(shape)] * full

    w = gguf.GGUFWriter(path, "deepseek2")
    w.add_name("random")
    w.add_context_length(8192)
    w.add_embedding_length(g["hidden"])
    w.add_block_count(g["layers"])
    w.add_feed_forward_length(g["dense_width"])
    w.add_head_count(g["heads"])
    w.add_head_count_kv(1)              # latent attention counts as one KV head
    w.add_rope_freq_base(10000.0)
    w.add_layer_norm_rms_eps(1e-6)
    w.add_leading_dense_block_count(g["dense"])
    w.add_vocab_size(g["vocab"])
    if g["q_lora"]:
        w.add_q_lora_rank(g["q_lora"])
    w.add_kv_lora_rank(g["kv_lora"])
    w.add_key_length(g["kv_lora"] + g["rope"])
    w.add_value_length(g["kv_lora"])
    w.add_key_length_mla(g["nope"] + g["rope"])
    w.add_value_length_mla(g["v"])
    w.add_rope_dimension_count(g["rope"])
    w.add_expert_count(g["experts"])
    w.add_expert_used_count(g["top_k"])
    w.add_expert_shared_count(g["shared"])
    w.add_expert_feed_forward_length(g["expert_width"])
    w.add_expert_weights_scale(g["scaling"])
    w.add_expert_weights_norm(g["norm"])
    w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID if g["v3"] else gguf.ExpertGatingFuncType.SOFTMAX)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("deepseek-llm")
    # Any vocabulary will do: token ids are sent as numbers. Bytes first so that text encodes at all.
    w.add_token_list(["<bos>", "<eos>"] + [f"t{i}" for i in range(g["vocab"] - 2)])
    w.add_token_types([3, 3] + [1] * (g["vocab"] - 2))
    w.add_token_merges(["t 0"])
    w.add_bos_token_id(0)
    w.add_eos_token_id(1)
    jobs = []

    def plan(name, shape, quant, make):
        jobs.append((name, shape, quant, make))

    plan("token_embd.weight", (g["vocab"], g["hidden"]), Q.Q8_0, lambda: tensor("model.embed_tokens.weight"))
    plan("output.weight", (g["vocab"], g["hidden"]), Q.Q8_0, lambda: tensor("lm_head.weight"))
    plan("output_norm.weight", (g["hidden"],), Q.F32, lambda: tensor("model.norm.weight"))
    kb = (g["heads"], g["kv_lora"], g["nope"])
    vb = (g["heads"], g["v"], g["kv_lora"])

    def kv_b(l):
        return tensor(f"model.layers.{l}.self_attn.kv_b_proj.weight").reshape(g["heads"], g["nope"] + g["v"], g["kv_lora"])

    for l in range(g["layers"]):
        s, d = f"model.layers.{l}", f"blk.{l}"

        def one(dst, src, shape, quant=Q.Q8_0):
            plan(f"{d}.{dst}.weight", shape, quant, (lambda n: lambda: tensor(n))(f"{s}.{src}.weight"))

        h = g["hidden"]
        one("attn_norm", "input_layernorm", (h,), Q.F32)
        one("ffn_norm", "post_attention_layernorm", (h,), Q.F32)
        qdim = g["heads"] * (g["nope"] + g["rope"])
        if g["q_lora"]:
            one("attn_q_a", "self_attn.q_a_proj", (g["q_lora"], h))
            one("attn_q_a_norm", "self_attn.q_a_layernorm", (g["q_lora"],), Q.F32)
            one("attn_q_b", "self_attn.q_b_proj", (qdim, g["q_lora"]))
        else:
            one("attn_q", "self_attn.q_proj", (qdim, h))
        one("attn_kv_a_mqa", "self_attn.kv_a_proj_with_mqa", (g["kv_lora"] + g["rope"], h))
        one("attn_kv_a_norm", "self_attn.kv_a_layernorm", (g["kv_lora"],), Q.F32)
        plan(f"{d}.attn_k_b.weight", kb, Q.Q8_0, (lambda l: lambda: np.ascontiguousarray(kv_b(l)[:, :g["nope"]].transpose(0, 2, 1)))(l))
        plan(f"{d}.attn_v_b.weight", vb, Q.Q8_0, (lambda l: lambda: np.ascontiguousarray(kv_b(l)[:, g["nope"]:]))(l))
        one("attn_output", "self_attn.o_proj", (h, g["heads"] * g["v"]))
        if l < g["dense"]:
            for m, (r, c) in dict(gate=(g["dense_width"], h), up=(g["dense_width"], h), down=(h, g["dense_width"])).items():
                one(f"ffn_{m}", f"mlp.{m}_proj", (r, c))
            continue
        one("ffn_gate_inp", "mlp.gate", (g["experts"], h), Q.F32)
        if g["v3"]:
            jobs.append((f"{d}.exp_probs_b.bias", (g["experts"],), Q.F32,
                         (lambda n: lambda: tensor(n))(f"{s}.mlp.gate.e_score_correction_bias")))
        sw, ew = g["shared"] * g["expert_width"], g["expert_width"]
        for m, (r, c) in dict(gate=(sw, h), up=(sw, h), down=(h, sw)).items():
            one(f"ffn_{m}_shexp", f"mlp.shared_experts.{m}_proj", (r, c))
        for m, (r, c) in dict(gate=(ew, h), up=(ew, h), down=(h, ew)).items():
            jobs.append((f"{d}.ffn_{m}_exps.weight", (g["experts"], r, c), Q.Q8_0,
                         (lambda m, s=s: lambda: (tensor(f"{s}.mlp.experts.{e}.{m}_proj.weight") for e in range(g["experts"])))(m)))

    for name, shape, quant, _ in jobs:
        n = int(np.prod(shape))
        if quant == Q.F32:
            w.add_tensor_info(name, shape, np.dtype(np.float32), n * 4)
        else:
            size = n // 32 * 34
            w.add_tensor_info(name, (*shape[:-1], shape[-1] // 32 * 34), np.dtype(np.uint8), size, raw_dtype=quant)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_ti_data_to_file()
    out = w.fout[0]
    for name, shape, quant, make in jobs:
        w.write_padding(out, out.tell())
        got = make()
        for x in (got if hasattr(got, "__next__") else [got]):
            x = np.ascontiguousarray(x, np.float32)
            out.write(x.tobytes() if quant == Q.F32 else gguf.quants.quantize(x, quant).tobytes())
        sys.stderr.isatty() and print(f"\rgguf {name:40s}", end="", file=sys.stderr)
    w.write_padding(out, out.tell())
    w.close()
    print(file=sys.stderr)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out", help="folder to write")
    p.add_argument("--geometry", choices=GEOMETRIES, default="baseline")
    p.add_argument("--layers", type=int, help="layers in all, dense ones included")
    p.add_argument("--experts", type=int, help="experts a layer")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--tokenizer", help="folder whose tokenizer files to copy (vocabulary must fit)")
    p.add_argument("--gguf", help="also write this GGUF (Q8_0)")
    a = p.parse_args()
    g = dict(GEOMETRIES[a.geometry])
    g["layers"] = a.layers or g["layers"]
    g["experts"] = a.experts or g["experts"]
    os.makedirs(a.out, exist_ok=True)
    rng, codes = np.random.default_rng(a.seed), normal_codes()
    w = Writer(a.out, 4 << 30)
    w.add("model.embed_tokens.weight", "BF16", (g["vocab"], g["hidden"]))
    seen = set()
    for name, rows, cols in matrices(g):
        layer = name.split(".")[2]
        if layer not in seen:
            seen.add(layer)
            q = f"model.layers.{layer}"
            for n, d in (("input_layernorm", g["hidden"]), ("post_attention_layernorm", g["hidden"]),
                         ("self_attn.kv_a_layernorm", g["kv_lora"])) + ((("self_attn.q_a_layernorm", g["q_lora"]),) if g["q_lora"] else ()):
                w.add(f"{q}.{n}.weight", "BF16", (d,))
            if int(layer) >= g["dense"]:
                w.add(f"{q}.mlp.gate.weight", "BF16", (g["experts"], g["hidden"]))
                if g["v3"]:
                    w.add(f"{q}.mlp.gate.e_score_correction_bias", "F32", (g["experts"],))
        w.add(f"{name}.weight", "F8_E4M3", (rows, cols))
        w.add(f"{name}.weight_scale_inv", "F32", (-(-rows // BLOCK), -(-cols // BLOCK)))
    w.add("model.norm.weight", "BF16", (g["hidden"],))
    w.add("lm_head.weight", "BF16", (g["vocab"], g["hidden"]))

    def bf16(x):
        return (np.asarray(x, np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()

    def make(name, dtype, shape):
        n = int(np.prod(shape))
        if dtype == "F8_E4M3":
            return codes[rng.integers(0, 65536, n, dtype=np.uint16)].tobytes()
        if name.endswith("_scale_inv"):
            # Codes have standard deviation 64: this makes the matrix's 0.02, the usual initialisation; of what is added to the
            # residual stream less, as GPT-2 and Megatron-LM begin. With 0.02 everywhere attention's mean of all tokens
            # drowns the token: in the last layers nine lookups in ten went to a tenth of the experts.
            share = 1 / (2 * g["layers"]) ** 0.5 if "o_proj" in name or "down_proj" in name else 1
            return (share * 0.02 / 64 * rng.uniform(0.8, 1.25, n)).astype("<f4").tobytes()
        if name.endswith("e_score_correction_bias"):
            return rng.uniform(0.0, 0.05, n).astype("<f4").tobytes()
        if "norm" in name:
            return bf16(1 + 0.1 * rng.standard_normal(n, np.float32))
        if "embed" in name:     # torch.nn.Embedding's own
            return bf16(rng.standard_normal(n, np.float32))
        return bf16(0.02 * rng.standard_normal(n, np.float32))

    last = [-1]

    def report(done, total):
        if done * 50 // total != last[0]:
            last[0] = done * 50 // total
            sys.stderr.isatty() and print(f"\rsafetensors {done / 2**30:.2f} of {total / 2**30:.2f} GiB", end="", file=sys.stderr)

    json.dump(config(g), open(f"{a.out}/config.json", "w"), indent=1)
    total = w.write(make, report)
    print(file=sys.stderr)
    if a.tokenizer:
        for fn in ("tokenizer.json", "tokenizer_config.json"):
            with open(f"{a.tokenizer}/{fn}", "rb") as f, open(f"{a.out}/{fn}", "wb") as to:
                to.write(f.read())
    if a.gguf:
        make_gguf(a.gguf, g, a.out)
    print(json.dumps({"folder": a.out, "geometry": a.geometry, "layers": g["layers"], "experts": g["experts"],
                      "bytes": total, "seed": a.seed}))


if __name__ == "__main__":
    main()
