"""Configs shaped like those of models that people have, by name.

The files themselves cannot be had offline: these are written from the documentation of transformers' classes and from
what base, instruct, re-saved and trained models of these families are known to look like, with their sizes cut down
where a test makes weights of them. `BASE | {...}` of a family is what its first release wrote.
"""

OLD = {"initializer_range": 0.02, "use_cache": True, "torch_dtype": "bfloat16", "transformers_version": "4.40.1"}
LLAMA = OLD | {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "bos_token_id": 1,
    "eos_token_id": 2, "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 32, "pretraining_tp": 1, "rms_norm_eps": 1e-5, "rope_scaling": None,
    "tie_word_embeddings": False, "vocab_size": 32000, "max_position_embeddings": 4096,
}  # fmt: skip
LLAMA3 = LLAMA | {
    "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000, "eos_token_id": 128001,
    "intermediate_size": 14336, "num_key_value_heads": 8, "rope_theta": 500000.0, "vocab_size": 128256,
    "max_position_embeddings": 8192, "mlp_bias": False,
}  # fmt: skip
LLAMA31_ROPE = {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}  # fmt: skip
LLAMA32 = LLAMA3 | {
    "head_dim": 64, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "tie_word_embeddings": True, "rope_scaling": LLAMA31_ROPE | {"factor": 32.0}, "max_position_embeddings": 131072,
}  # fmt: skip
MISTRAL = OLD | {
    "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_act": "silu", "bos_token_id": 1,
    "eos_token_id": 2, "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 32768,
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False, "vocab_size": 32000,
}  # fmt: skip
QWEN2 = OLD | {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 896, "intermediate_size": 4864,
    "max_position_embeddings": 32768, "max_window_layers": 24, "num_attention_heads": 14, "num_hidden_layers": 24,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "sliding_window": 32768,
    "tie_word_embeddings": True, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
QWEN3 = QWEN2 | {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False, "head_dim": 128,
    "hidden_size": 1024, "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28,
    "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "rope_scaling": None,
    "sliding_window": None,
}  # fmt: skip
GEMMA3 = OLD | {
    "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "attention_bias": False,
    "attention_dropout": 0.0, "attn_logit_softcapping": None, "bos_token_id": 2, "cache_implementation": "hybrid",
    "eos_token_id": 1, "final_logit_softcapping": None, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152, "intermediate_size": 6912, "max_position_embeddings": 32768, "num_attention_heads": 4,
    "num_hidden_layers": 26, "num_key_value_heads": 1, "pad_token_id": 0, "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-6, "rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000,
    "sliding_window": 512, "sliding_window_pattern": 6, "vocab_size": 262144,
}  # fmt: skip
YARN = {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}
NEW = {"dtype": "bfloat16", "transformers_version": "5.0.0"}  # re-saved by transformers 5, whose spelling is another


def without(config, *keys):
    return {key: value for key, value in config.items() if key not in keys}


def resaved(config, **rope):
    config = without(config, "torch_dtype", "rope_theta", "rope_scaling", "rope_local_base_freq", "pretraining_tp")
    return config | NEW | {"rope_parameters": rope}


CONFIGS = {
    # Llama and what calls itself so
    "llama-1-7b": without(LLAMA, "num_key_value_heads", "rope_scaling", "pretraining_tp")
    | {"max_position_embeddings": 2048, "max_sequence_length": 2048, "pad_token_id": -1, "rms_norm_eps": 1e-6},
    "llama-2-7b": LLAMA,
    "llama-2-7b-chat": LLAMA | {"_name_or_path": "llama-2-7b-chat-hf", "pad_token_id": 0},
    "llama-3-8b": LLAMA3,
    "llama-3-8b-instruct": LLAMA3 | {"eos_token_id": [128001, 128009]},
    "llama-3.1-8b": LLAMA3 | {"rope_scaling": LLAMA31_ROPE, "max_position_embeddings": 131072},
    "llama-3.1-8b-instruct": LLAMA3
    | {"rope_scaling": LLAMA31_ROPE, "max_position_embeddings": 131072, "eos_token_id": [128001, 128008, 128009]},
    "llama-3.2-1b": LLAMA32,
    "llama-3.2-1b-resaved": resaved(LLAMA32, rope_theta=500000.0, **LLAMA31_ROPE),
    "smollm2-135m": without(LLAMA, "rope_scaling")
    | {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_hidden_layers": 30,
       "num_key_value_heads": 3, "is_llama_config": True, "rope_interleaved": False, "rope_theta": 100000,
       "tie_word_embeddings": True, "vocab_size": 49152, "max_position_embeddings": 8192,
       "initializer_range": 0.041666666666666664, "attention_bias": False,
       "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}},
    "tinyllama": LLAMA | {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
                          "num_key_value_heads": 4, "max_position_embeddings": 2048},
    "vicuna-linear": LLAMA | {"rope_scaling": {"factor": 4.0, "type": "linear"}},
    "codellama": LLAMA | {"rope_theta": 1000000, "max_position_embeddings": 16384, "vocab_size": 32016},
    "yi-6b": LLAMA | {"num_key_value_heads": 4, "rope_theta": 5000000.0, "vocab_size": 64000, "pad_token_id": 0},
    "yarn-llama-2": LLAMA
    | {"auto_map": {"AutoConfig": "configuration_llama.LlamaConfig"}, "max_position_embeddings": 65536,
       "rope_scaling": {"factor": 16.0, "finetuned": True, "original_max_position_embeddings": 4096, "type": "yarn"}},
    "deepseek-yarn": LLAMA | {"rope_scaling": {"type": "yarn", "factor": 40, "mscale": 1.0, "mscale_all_dim": 0.707,
                              "beta_fast": 32, "beta_slow": 1, "original_max_position_embeddings": 4096}},
    "axolotl": LLAMA3 | {"_name_or_path": "/workspace/llama", "use_cache": False, "attention_dropout": 0.1},
    "unsloth": LLAMA32 | {"unsloth_version": "2025.3.9", "unsloth_fixed": True, "pad_token_id": 128004},
    "trl": resaved(LLAMA32, rope_theta=500000.0, **LLAMA31_ROPE) | {"use_cache": False, "pad_token_id": 128001},
    "llama-factory": LLAMA3 | {"use_cache": False, "_attn_implementation_autoset": True, "name_or_path": "x"},
    "megatron-converted": without(LLAMA, "torch_dtype", "transformers_version") | {"head_dim": 128, "mup_scale": None},
    "mergekit-output": LLAMA3 | {"_name_or_path": "base", "torch_dtype": "float16"},
    "reward-head": LLAMA3 | {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "problem_type": "regression"},
    "transformers-3-leftovers": LLAMA
    | {"torchscript": False, "use_bfloat16": False, "pruned_heads": {}, "tf_legacy_loss": False, "min_length": 0,
       "num_beams": 1, "repetition_penalty": 1.0, "early_stopping": False, "finetuning_task": None},
    # Mistral
    "mistral-7b-v0.1": MISTRAL,
    "mistral-7b-instruct-v0.2": MISTRAL | {"rope_theta": 1000000.0, "sliding_window": None, "attention_dropout": 0.0},
    "mistral-7b-v0.3": MISTRAL | {"rope_theta": 1000000.0, "sliding_window": None, "vocab_size": 32768},
    "zephyr": MISTRAL | {"_name_or_path": "sft", "pad_token_id": 2, "use_cache": False},
    "shisa-gamma": MISTRAL | {"vocab_size": 32000, "max_position_embeddings": 4096},
    "mistral-nemo": MISTRAL | {"head_dim": 128, "hidden_size": 5120, "num_hidden_layers": 40, "rope_theta": 1000000.0,
                               "sliding_window": None, "vocab_size": 131072, "max_position_embeddings": 131072},
    "mistral-yarn": MISTRAL | {"rope_scaling": {"type": "yarn", "factor": 8.0, "finetuned": True,
                               "original_max_position_embeddings": 8192}},
    "mistral-resaved": resaved(MISTRAL, rope_theta=10000.0, rope_type="default") | {"head_dim": None},
    # Qwen
    "qwen1.5": QWEN2 | {"num_key_value_heads": 14, "max_window_layers": 21, "tie_word_embeddings": True},
    "qwen2.5-0.5b": QWEN2 | {"use_mrope": False},
    "qwen2.5-0.5b-instruct": QWEN2 | {"use_mrope": False, "eos_token_id": 151645, "max_window_layers": 21},
    "qwen2.5-yarn": QWEN2 | {"rope_scaling": YARN, "max_position_embeddings": 131072},
    "qwen2.5-coder": QWEN2 | {"max_window_layers": 28, "sliding_window": 131072},
    "qwen2.5-windowed": QWEN2 | {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 12},
    "qwen2.5-resaved": resaved(QWEN2, rope_theta=1000000.0, rope_type="default")
    | {"layer_types": ["full_attention"] * 24, "sliding_window": None},
    "deepseek-r1-distill-qwen": QWEN2 | {"use_mrope": False, "bos_token_id": 151646, "tie_word_embeddings": False},
    "qwen3-0.6b": QWEN3,
    "qwen3-0.6b-base": QWEN3 | {"max_position_embeddings": 32768},
    "qwen3-yarn": QWEN3 | {"rope_scaling": YARN | {"rope_type": "yarn"}},
    "qwen3-without-head-dim": without(QWEN3, "head_dim"),
    "qwen3-resaved": resaved(QWEN3, rope_theta=1000000, rope_type="default") | {"layer_types": ["full_attention"] * 28},
    # Gemma
    "gemma-3-1b-pt": GEMMA3,
    "gemma-3-1b-it": GEMMA3 | {"eos_token_id": [1, 106]},
    "gemma-3-270m": without(GEMMA3, "sliding_window_pattern", "rope_scaling")
    | {"_sliding_window_pattern": 6, "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18,
       "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3, "use_bidirectional_attention": False},
    "gemma-3-text-of-4b": GEMMA3 | {"hidden_size": 2560, "intermediate_size": 10240, "num_attention_heads": 8,
                                    "num_key_value_heads": 4, "num_hidden_layers": 34, "sliding_window": 1024,
                                    "rope_scaling": {"factor": 8.0, "rope_type": "linear"}},
    "gemma-3-sparse": {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240,
                       "num_hidden_layers": 34, "sliding_window": 1024,
                       "rope_scaling": {"factor": 8.0, "rope_type": "linear"}},
    "gemma-3-resaved": resaved(without(GEMMA3, "sliding_window_pattern"),
                               full_attention={"rope_theta": 1000000.0, "rope_type": "default"},
                               sliding_attention={"rope_theta": 10000.0, "rope_type": "default"})
    | {"layer_types": [*(["sliding_attention"] * 5 + ["full_attention"]) * 4, *["sliding_attention"] * 2]},
}  # fmt: skip
