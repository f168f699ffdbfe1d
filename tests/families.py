"""Tiny random models of every family, built by transformers (the reference), saved as ordinary folders."""

import copy
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
FAMILIES = {
    "llama": ("llama", {}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama3-rope-tied": ("llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama-linear-rope": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    ),
    "smollm2": (
        "llama",
        {
            "tie_word_embeddings": True,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
        },
    ),
    "mistral": ("mistral", {"sliding_window": 5}),
    "mistral-full": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}),
    "qwen3": ("qwen3", {}),
    "qwen3-yarn": ("qwen3", {"rope_parameters": YARN}),
    "gemma3": (
        "gemma3_text",
        {
            "sliding_window": 5,
            "query_pre_attn_scalar": 16,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
    ),
}

SLIDING, FULL = "sliding_attention", "full_attention"
LONG = {"short_factor": [1.0, 1.5, 2.0], "long_factor": [2.0, 3.0, 4.0], "rope_type": "longrope"}
MOE = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24}
DELTA = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 6,
}  # fmt: skip
GEMMA4 = {
    "global_head_dim": 16, "num_global_key_value_heads": 1, "attention_k_eq_v": True, "sliding_window": 5,
    "hidden_size_per_layer_input": 0, "final_logit_softcapping": 30.0,
    "layer_types": [SLIDING, SLIDING, SLIDING, FULL],
}  # fmt: skip
MORE = {  # as many `model_type`s as are read, each with what is particular to it
    "ministral": ("ministral", {"sliding_window": 5, "layer_types": [SLIDING, FULL] * 2}),
    "ministral3": (
        "ministral3",
        {"rope_parameters": YARN | {"llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 4}},
    ),
    "seed_oss": ("seed_oss", {"attention_out_bias": False}),
    "arcee": ("arcee", {}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0, 1, 1]}),
    "granite": (
        "granite",
        {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "attention_multiplier": 0.1, "logits_scaling": 6.0},
    ),
    "apertus": ("apertus", {}),
    "hunyuan_v1_dense": (
        "hunyuan_v1_dense",
        {"rope_parameters": {"rope_type": "dynamic", "alpha": 50.0, "factor": 1.0, "rope_theta": 10000.0}},
    ),
    "ernie4_5": ("ernie4_5", {"use_bias": True}),
    "phi3": ("phi3", {"partial_rotary_factor": 0.75, "rope_parameters": LONG, "original_max_position_embeddings": 16}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {"sliding_window": 5, "query_pre_attn_scalar": 16}),
    "vaultgemma": ("vaultgemma", {"sliding_window": 5, "attn_logit_softcapping": 2.0}),
    "olmo": ("olmo", {}),
    "olmo2": ("olmo2", {}),
    "olmo3": (
        "olmo3",
        {"sliding_window": 5, "rope_parameters": {FULL: YARN, SLIDING: {"rope_type": "default", "rope_theta": 1e4}}},
    ),
    "exaone4": ("exaone4", {"sliding_window": 5}),
    "glm": ("glm", {}),
    "glm4": ("glm4", {}),
    "cohere": ("cohere", {}),
    "cohere2": ("cohere2", {"sliding_window": 5}),
    "stablelm": ("stablelm", {"partial_rotary_factor": 0.5, "use_qkv_bias": True}),
    "stablelm-parallel": ("stablelm", {"partial_rotary_factor": 0.5, "use_parallel_residual": True}),
    "gpt_neox": ("gpt_neox", {"rotary_pct": 0.5, "num_key_value_heads": 4}),
    "gpt_neox-serial": ("gpt_neox", {"rotary_pct": 0.5, "num_key_value_heads": 4, "use_parallel_residual": False}),
    "starcoder2": ("starcoder2", {"sliding_window": 5}),
    "nemotron": ("nemotron", {}),
    "mixtral": ("mixtral", {"num_local_experts": 4}),
    "qwen2_moe": ("qwen2_moe", MOE | {"shared_expert_intermediate_size": 40}),
    "qwen3_moe": ("qwen3_moe", MOE | {"norm_topk_prob": True, "mlp_only_layers": [1]}),
    "olmoe": ("olmoe", {"num_experts": 8, "num_experts_per_tok": 3}),
    "granitemoe": (
        "granitemoe",
        {"num_local_experts": 8, "num_experts_per_tok": 3, "residual_multiplier": 0.5, "attention_multiplier": 0.1},
    ),
    "glm4_moe": (
        "glm4_moe",
        {
            "n_routed_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 24,
            "n_group": 2,
            "topk_group": 1,
            "routed_scaling_factor": 2.5,
            "use_qk_norm": True,
            "num_mtp_layers": 0,
        },
    ),
    "gpt_oss": (
        "gpt_oss",
        {"intermediate_size": 64, "sliding_window": 5, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "gemma4": ("gemma4_text", GEMMA4),
    "gemma4-mixture": (
        "gemma4_text",
        GEMMA4 | {"enable_moe_block": True, "num_experts": 8, "top_k_experts": 3, "moe_intermediate_size": 24},
    ),
    "qwen3_5": ("qwen3_5_text", DELTA | {"head_dim": 16}),
    "qwen3_5_moe": ("qwen3_5_moe_text", DELTA | MOE | {"head_dim": 16, "shared_expert_intermediate_size": 40}),
    "qwen3_next": (
        "qwen3_next",
        DELTA | MOE | {"head_dim": 16, "shared_expert_intermediate_size": 40, "mlp_only_layers": [2]},
    ),
    "dynamic": (
        "hunyuan_v1_dense",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 1e4}, "max_position_embeddings": 8},
    ),
}


def make(name: str, folder: Path, dtype: torch.dtype = torch.float32, shard: str = "5GB", seed: int = 0):
    """Save a random model of family `name` into `folder` and return it."""
    model_type, extra = (FAMILIES | MORE)[name]
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[model_type](**copy.deepcopy(SIZES | extra))
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # transformers initialises norms to one and biases to zero: nothing would show
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith(("e_score_correction_bias", "layer_scalar")):
                buffer.add_(0.1 * torch.randn_like(buffer))
    model = model.to(dtype).eval()
    model.save_pretrained(folder, max_shard_size=shard)
    return model
