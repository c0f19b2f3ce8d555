#!/usr/bin/env python3
"""Makes shape_rope.json: rotary frequencies, their magnitude and the softmax scale, as Hugging Face
`transformers` computes them from a DeepSeek-V3 config.json. Needs torch and transformers."""
import json
import os

from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding

TINY = dict(model_type="deepseek_v3", vocab_size=64, hidden_size=32, intermediate_size=32, moe_intermediate_size=16,
            num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, q_lora_rank=16, kv_lora_rank=16,
            qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=16, n_routed_experts=16, n_group=4, topk_group=2,
            num_experts_per_tok=2, first_k_dense_replace=1, bos_token_id=0, eos_token_id=1)
V3 = dict(type="yarn", factor=40, original_max_position_embeddings=4096, beta_fast=32, beta_slow=1, mscale=1.0,
          mscale_all_dim=1.0)
CASES = [
    dict(),
    dict(rope_theta=50000.0, qk_rope_head_dim=16, qk_nope_head_dim=32),
    dict(max_position_embeddings=163840, rope_scaling=V3),
    dict(max_position_embeddings=163840, rope_scaling=dict(V3, mscale=0.707, mscale_all_dim=0.707)),
    dict(max_position_embeddings=163840, rope_scaling=dict(V3, mscale=1.0, mscale_all_dim=0.707)),
    dict(max_position_embeddings=16384, rope_parameters=dict(
        rope_type="yarn", rope_theta=20000.0, factor=4.0, original_max_position_embeddings=4096)),
    dict(qk_rope_head_dim=8, max_position_embeddings=512, rope_scaling=dict(
        rope_type="yarn", factor=8.0, original_max_position_embeddings=64, beta_fast=4, beta_slow=1, mscale=0.5,
        mscale_all_dim=1.5)),
    dict(qk_rope_head_dim=4, max_position_embeddings=64, rope_scaling=dict(
        type="yarn", factor=16.0, original_max_position_embeddings=4, mscale=1.0, mscale_all_dim=1.0)),
    dict(max_position_embeddings=4096, rope_scaling=dict(V3, factor=1.0)),
]

out = []
for case in CASES:
    data = {"rope_theta": 10000.0, "max_position_embeddings": 4096, **TINY, **case}
    if "rope_parameters" in case:
        del data["rope_theta"]
    config = DeepseekV3Config(**json.loads(json.dumps(data)))
    rope = DeepseekV3RotaryEmbedding(config)
    out.append({"config": json.dumps(data), "inverse_frequency": [float("%.9g" % x) for x in rope.inv_freq.tolist()],
                "magnitude": rope.attention_scaling, "softmax_scale": DeepseekV3Attention(config, 0).scaling})
with open(os.path.dirname(os.path.abspath(__file__)) + "/shape_rope.json", "w") as f:
    f.write("[\n" + ",\n".join(json.dumps(x) for x in out) + "\n]\n")
