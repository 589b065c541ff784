"""Models of each architecture of transformers, made small: two layers, widths of some tens, random weights."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

TOKENS, BATCH, VOCABULARY = 12, 2, 96

_SIZES = {
    2: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers depth "
    "num_decoder_layers layers num_blocks n_group topk_group num_experts_per_tok num_experts_per_token moe_topk "
    "num_shared_experts n_shared_experts moe_k top_k_experts num_key_value_heads num_kv_heads n_groups "
    "num_hidden_groups num_query_groups multi_query_group_num mamba_n_groups linear_num_key_heads num_selected_experts "
    "num_zero_experts zero_expert_num num_stacks temporal_patch_size",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads num_local_experts "
    "num_experts n_routed_experts moe_num_experts router_n_experts linear_num_value_heads num_attention_groups "
    "mamba_n_heads mamba_num_heads moe_num_local_experts num_routed_experts patch_size window_size conv_kernel "
    "conv_kernel_size "
    "num_hash_layers",
    8: "head_dim d_kv linear_key_head_dim linear_value_head_dim qk_nope_head_dim v_head_dim d_head mamba_d_head "
    "mamba_head_dim rotary_dim time_step_rank mamba_dt_rank ssm_state_size mamba_d_state state_size kv_channels "
    "attention_head_size global_head_dim indexer_head_dim index_head_dim",
    16: "q_lora_rank kv_lora_rank moe_intermediate_size embedding_size qk_head_dim sliding_window attention_window "
    "bottleneck_size expert_ffn_hidden_size shared_expert_intermediate_size moe_shared_expert_intermediate_size "
    "chunk_size mamba_chunk_size local_attention attention_chunk_size block_size",
    32: "hidden_size d_model n_embd dim embed_dim model_dim hidden_dim lru_width projection_dim conv_dim "
    "word_embed_proj_dim emb_dim embedding_dim encoder_hidden_dim out_hidden_size bottleneck_dim",
    48: "intermediate_size d_ff n_inner encoder_ffn_dim decoder_ffn_dim ffn_dim ffn_hidden_size mlp_dim "
    "feed_forward_size intermediate_size_mlp shared_intermediate_size block_ff_dim dense_intermediate_size "
    "mlp_hidden_size",
    64: "image_size max_position_embeddings n_positions max_seq_len n_ctx max_sequence_length seq_length "
    "max_source_positions max_target_positions",
    VOCABULARY: "vocab_size encoder_vocab_size decoder_vocab_size vocab_size_per_layer_input",
}
_NAMED = {name: size for size, names in _SIZES.items() for name in names.split()}
_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "sep_token_id", "cls_token_id")


def architectures() -> list[str]:
    """The names of model types that transformers can build as a causal model or a bare one."""
    return sorted({*MODEL_MAPPING_NAMES, *MODEL_FOR_CAUSAL_LM_MAPPING_NAMES})


def shrink(config: Any, depth: int = 0) -> Any:
    """Make a configuration small, in place, and those nested in it."""
    for name, value in list(vars(config).items()):
        if hasattr(value, "to_dict") and hasattr(value, "model_type") and depth < 4:
            shrink(value, depth + 1)
            continue
        small = _small(name, value)
        if small is not None:
            with contextlib.suppress(AttributeError):  # a property of the class
                setattr(config, name, small)
    if getattr(config, "kv_lora_rank", None) and hasattr(config, "num_attention_heads"):
        config.num_key_value_heads = config.num_attention_heads  # latent attention has no groups of heads
        if hasattr(config, "head_dim"):
            config.head_dim = config.qk_rope_head_dim
    if hasattr(config, "expand") and hasattr(config, "num_heads") and hasattr(config, "head_dim"):
        config.num_heads = int(config.expand * config.hidden_size) // config.head_dim  # of a state-space mixer
    if getattr(config, "model_type", "") == "levit":
        config.patch_size = 16  # what its four strides make of an image
    layers = next((getattr(config, n) for n in ("num_hidden_layers", "n_layer", "num_layers") if hasattr(config, n)), 2)
    for name in ("layer_types", "layers_block_type", "mlp_layer_types", "no_rope_layers", "attention_layers"):
        value = getattr(config, name, None)
        if isinstance(value, list | tuple):
            ends = [value[0], value[-1]] if len(value) > 1 else list(value)
            with contextlib.suppress(AttributeError):
                setattr(config, name, (ends * 2)[:layers])
    _fit_hybrid(config)
    ropes = getattr(config, "rope_parameters", None)
    if isinstance(ropes, dict) and (
        "mrope_section" in ropes or getattr(config, "model_type", "").startswith(("qwen2_vl", "qwen2_5_vl"))
    ):
        ropes["mrope_section"] = [2, 1, 1]  # parts of half a head
    return config


def _fit_hybrid(config: Any) -> None:
    """Give a hybrid of two layers one that attends, and state-space mixers the heads that fit their width."""
    if hasattr(config, "mamba_d_ssm"):
        config.mamba_d_ssm = config.mamba_n_heads * config.mamba_d_head
    if hasattr(config, "mamba_expand") and hasattr(config, "mamba_n_heads"):
        config.mamba_expand = config.mamba_n_heads * config.mamba_d_head // config.hidden_size
    if hasattr(config, "mamba_headdim"):
        config.n_mamba_heads, config.mamba_headdim, config.mamba_ngroups = 4, 16, 2
    if hasattr(config, "attn_layer_indices"):
        config.attn_layer_indices = [1]
    if hasattr(config, "attn_layer_period"):
        config.attn_layer_period, config.attn_layer_offset = 2, 1
    if hasattr(config, "hybrid_layer_ids"):
        config.hybrid_layer_ids = [1]
    kinds = getattr(config, "layers_block_type", None) or getattr(config, "layer_types", None)
    if isinstance(kinds, list) and "linear_attention" in kinds and len(kinds) > 1:
        last = "hybrid" if hasattr(config, "hybrid_layer_ids") or config.model_type == "zamba" else "full_attention"
        for name in ("layers_block_type", "layer_types"):
            if getattr(config, name, None) is not None:
                with contextlib.suppress(AttributeError):
                    setattr(config, name, ["linear_attention", last])


def _small(name: str, value: Any) -> Any:
    """What a field becomes; None: it stays."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, list | tuple) and value and all(type(part) is int for part in value):
        if name in ("depths", "layer_depths", "num_blocks"):
            return [1] * len(value)
        if name in ("hidden_sizes", "embed_dims", "embed_dim", "widths", "neck_hidden_sizes", "conv_dims"):
            return [16 * 2 ** min(place, 2) for place in range(len(value))]
        if name in ("num_heads", "num_attention_heads"):
            return [2] * len(value)
        return None
    if not isinstance(value, int):
        return None
    if name in _TOKENS:
        return min(value, 3)
    return 4 if name in ("qk_rope_head_dim", "rope_dim") else _NAMED.get(name)


def config_of(name: str) -> Any:
    """A small configuration of a model type."""
    config = shrink(AutoConfig.for_model(name))
    config._attn_implementation = "eager"
    if "swin" in name and hasattr(config, "window_size"):
        config.window_size = 2  # its last stage has 2 x 2 patches
    if hasattr(config, "apply_spec_augment"):
        config.apply_spec_augment = False  # which masks more frames than there are
    return config


def model_of(name: str, decoder: bool = False) -> nn.Module:
    """A small model of a type with seeded weights, in eval mode; with ``decoder``, told that it is one if it asks."""
    config = config_of(name)
    if decoder and getattr(config, "is_decoder", None) is False:
        config.is_decoder = True
    causal = name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        kind = AutoModelForCausalLM if causal else AutoModel
        model: nn.Module = kind.from_config(config).eval()
    return model


def inputs_of(model: Any) -> dict[str, Tensor]:
    """Inputs that a model takes, by the name of its main input."""
    generator = torch.Generator().manual_seed(1)
    config = model.config
    main = getattr(model, "main_input_name", "input_ids")
    if main == "input_ids":
        ids = torch.randint(4, VOCABULARY - 1, (BATCH, TOKENS), generator=generator)
        inputs = {"input_ids": ids}
        if getattr(config, "is_encoder_decoder", False):
            inputs["decoder_input_ids"] = ids[:, :6]
        if hasattr(model, "logit_scale") and hasattr(config, "vision_config"):  # two encoders side by side
            inputs["pixel_values"] = torch.rand(BATCH, 3, *_picture(config.vision_config), generator=generator)
        return inputs
    if main == "pixel_values":
        vision = getattr(config, "vision_config", config)
        channels = getattr(vision, "num_channels", 3)
        return {"pixel_values": torch.rand(BATCH, channels, *_picture(vision), generator=generator)}
    if main == "input_values":
        sounds = {"input_values": torch.randn(BATCH, 6400, generator=generator)}
        if getattr(config, "is_encoder_decoder", False):
            sounds["decoder_input_ids"] = torch.full((BATCH, 6), 5)
        return sounds
    if main == "past_values":
        length, channels = getattr(config, "context_length", 32), getattr(config, "num_input_channels", 1)
        return {"past_values": torch.randn(BATCH, length, channels, generator=generator)}
    if main == "input_features":
        bins = getattr(config, "num_mel_bins", getattr(config, "input_dim", 80))
        frames = 2 * getattr(config, "max_source_positions", 32)
        if getattr(config, "model_type", "") in ("whisper",):
            features = torch.randn(BATCH, bins, frames, generator=generator)
            return {"input_features": features, "decoder_input_ids": torch.full((BATCH, 4), 5)}
        features = torch.randn(BATCH, frames, bins, generator=generator)
        found = {"input_features": features}
        if getattr(config, "is_encoder_decoder", False):
            found["decoder_input_ids"] = torch.full((BATCH, 4), 5)
        return found
    raise ValueError(f"inputs called {main}")


def _picture(vision: Any) -> tuple[int, int]:
    """Height and width of a model's pictures."""
    size = getattr(vision, "image_size", 64) or 64
    size = size if isinstance(size, int) else size[0]
    return size, size


def outputs_of(output: Any) -> list[Tensor]:
    """The floating point tensors of what a model returned, caches left out."""
    kept = ("logits", "last_hidden_state", "pooler_output", "encoder_last_hidden_state", "image_embeds", "text_embeds")
    if isinstance(output, Tensor):
        return [output]
    values = [output[name] for name in kept if name in output and isinstance(output[name], Tensor)]
    return values or [value for value in output.values() if isinstance(value, Tensor) and value.is_floating_point()]
