"""Diffusers pipelines of the real classes with a few thousand random weights, the same each time: folders
that load without network and make a 64 x 64 image in a fraction of a second.

`FAMILIES` are those that synthgen knows, `UNTESTED` those that it meets for the first time, `WRONG` what it
has to refuse, `CHECKED` has a safety checker. Each builder takes the folder to write.
"""

import inspect
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import diffusers
import torch
import transformers as t

Build = Callable[[Path], None]

WORDS = (
    "a an the of in on at with and photo cartoon painting cat dog owl red blue green grass snow sea "
    "Describe image user system assistant"
)
"""What the tokenizers know as wholes beside what the pipelines put around a prompt; the rest in letters."""
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LATENTS, WIDTH = 4, 16
LOOKS = re.compile(r"(to_q|to_k|q_proj|k_proj|SelfAttention\.[qk]|[qk]_img_in|[qk])(_c|_norm)?\.weight$")
"""What decides where attention looks: sharp, so that a word counts among hundreds of tokens."""


def weights(*modules: torch.nn.Module) -> None:
    """Gives each parameter new values: zeros and tiny initial ones would let prompts change nothing."""
    for module in modules:
        drawn = torch.Generator().manual_seed(0)
        tables = {id(part.weight) for part in module.modules() if isinstance(part, torch.nn.Embedding)}
        for name, parameter in module.named_parameters():
            values = torch.randn(parameter.shape, generator=drawn)
            if parameter.ndim < 2:
                values = values * 0.1 + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
            elif id(parameter) not in tables:
                values *= (3.0 if LOOKS.search(name) else 1.0) / parameter[0].numel() ** 0.5
            parameter.data.copy_(values)
        module.eval()


# --- tokenizers ---


def pieces(
    letters: Sequence[str], words: Sequence[str], first: Sequence[str], space: str = ""
) -> dict[str, object]:
    """A vocabulary and merges by which each word is put together from its left end, then with the space
    before it.
    """
    vocab = dict.fromkeys([*first, *letters])
    merges = dict[tuple[str, str], None]()
    for word in words:
        pairs = [(word[:end], word[end]) for end in range(1, len(word))]
        for pair in [*pairs, *([(space, word)] if space else [])]:
            merges[pair] = vocab["".join(pair)] = None
    return {"vocab": {token: k for k, token in enumerate(vocab)}, "merges": list(merges)}


def bytes_as_letters() -> list[str]:
    """The 256 letters that byte-level tokenizers write bytes with."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def clip_tokenizer() -> t.CLIPTokenizer:
    """77 tokens, the first and last of them special; a word's last letter is another than within."""
    letters = bytes_as_letters()
    special = ["<|startoftext|>", "<|endoftext|>"]
    made = pieces([*letters, *(f"{letter}</w>" for letter in letters)], [], special)
    return t.CLIPTokenizer(**made, model_max_length=77)


def t5_tokenizer() -> t.T5Tokenizer:
    """As T5's own: it says 512 tokens whatever the pipeline reads."""
    printable = [chr(code) for code in range(33, 127)]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocab += [(letter, -4.0) for letter in printable] + [(f"▁{word}", -5.0) for word in WORDS.split()]
    return t.T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=512)


def qwen_tokenizer(text: str = "") -> t.Qwen2Tokenizer:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    made = pieces(bytes_as_letters(), [*text.split(), *WORDS.split()], special, space="Ġ")
    return t.Qwen2Tokenizer(**made, additional_special_tokens=special[1:], chat_template=CHAT)


def gemma_tokenizer(text: str = "") -> t.GemmaTokenizer:
    printable = ["▁", "\n", *(chr(code) for code in range(33, 127))]
    words = [f"{word}▁" for word in (*text.split(), *WORDS.split())]
    made = pieces(printable, words, ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"])
    return begin(t.GemmaTokenizer(**made), "<bos>")


def begin(tokenizer: t.PreTrainedTokenizerFast, first: str) -> t.PreTrainedTokenizerFast:
    """That tokenizer, each text begun with a token: an empty one too has one."""
    from tokenizers.processors import TemplateProcessing

    special = [(first, tokenizer.convert_tokens_to_ids(first))]
    processor = TemplateProcessing(single=f"{first} $A", special_tokens=special)
    tokenizer.backend_tokenizer.post_processor = processor
    return tokenizer


# --- text encoders ---


def clip_text(kind: type = t.CLIPTextModel, width: int = WIDTH) -> torch.nn.Module:
    tokenizer = clip_tokenizer()
    config = t.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width * 2,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return kind(config)


def clip_image(width: int = WIDTH) -> t.CLIPVisionModelWithProjection:
    config = t.CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=width * 2,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    return t.CLIPVisionModelWithProjection(config)


def clip_images() -> t.CLIPImageProcessor:
    return t.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def t5(width: int = WIDTH, kind: str = "T5") -> torch.nn.Module:
    config = getattr(t, f"{kind}Config")(
        vocab_size=len(t5_tokenizer()), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    return getattr(t, f"{kind}EncoderModel")(config)  # type: ignore[no-any-return]


def decoder(kind: str, vocab_size: int, layers: int = 2, **more: object) -> torch.nn.Module:
    """A causal language model, by its class; pipelines read one of its hidden states."""
    config = {
        "vocab_size": vocab_size,
        "hidden_size": WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    name = kind.removesuffix("ForCausalLM").removesuffix("Model")
    return getattr(t, kind)(getattr(t, f"{name}Config")(**config | more))  # type: ignore[no-any-return]


# --- denoisers, autoencoders, schedulers ---


def unet(**more: object) -> diffusers.UNet2DConditionModel:
    config: dict[str, object] = {
        "sample_size": 8,
        "in_channels": LATENTS,
        "out_channels": LATENTS,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 2,
    }
    return diffusers.UNet2DConditionModel(**config | more)


def vae(**more: object) -> diffusers.AutoencoderKL:
    """Of factor 8, as the large ones."""
    config: dict[str, object] = {
        "block_out_channels": (8, 8, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "latent_channels": LATENTS,
        "norm_num_groups": 4,
        "sample_size": 64,
    }
    return diffusers.AutoencoderKL(**config | more)


def movq() -> diffusers.VQModel:
    return diffusers.VQModel(
        block_out_channels=(32, 32),  # its norms have 32 groups whatever is asked for
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=LATENTS,
        num_vq_embeddings=12,
        vq_embed_dim=LATENTS,
        norm_type="spatial",
    )


def flow(**more: object) -> diffusers.FlowMatchEulerDiscreteScheduler:
    return diffusers.FlowMatchEulerDiscreteScheduler(**more)


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def write(folder: Path, kind: type, **parts: object) -> None:
    """Saves the pipeline of that class with new weights in its parts."""
    weights(*(part for part in parts.values() if isinstance(part, torch.nn.Module)))
    kind(**parts).save_pretrained(folder)


# --- families ---


def sd1(folder: Path, **parts: object) -> None:
    plain = {
        "vae": vae(),
        "text_encoder": clip_text(),
        "tokenizer": clip_tokenizer(),
        "unet": unet(),
        "scheduler": diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    write(folder, diffusers.StableDiffusionPipeline, **plain | parts)


def sd2(folder: Path) -> None:
    sd1(
        folder,
        unet=unet(use_linear_projection=True, attention_head_dim=(2, 4)),
        scheduler=diffusers.DDIMScheduler(
            **BETAS, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False, steps_offset=1
        ),
    )


def sd1_checked(folder: Path) -> None:
    """With a safety checker that minds much."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    vision = clip_image().config
    checker = StableDiffusionSafetyChecker(
        t.CLIPConfig(vision_config=vision.to_dict(), projection_dim=vision.projection_dim)
    )
    sd1(folder, safety_checker=checker, feature_extractor=clip_images(), requires_safety_checker=True)


def lcm(folder: Path) -> None:
    """Guidance goes into the denoiser as an embedding; no negative prompt."""
    write(
        folder,
        diffusers.LatentConsistencyModelPipeline,
        vae=vae(),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        unet=unet(time_cond_proj_dim=8),
        scheduler=diffusers.LCMScheduler(**BETAS),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl(folder: Path, **parts: object) -> None:
    plain = {
        "vae": vae(scaling_factor=0.13025),
        "text_encoder": clip_text(),
        "text_encoder_2": clip_text(t.CLIPTextModelWithProjection),
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer(),
        "unet": unet(
            cross_attention_dim=2 * WIDTH,
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + WIDTH,
        ),
        "scheduler": diffusers.EulerDiscreteScheduler(**BETAS, steps_offset=1),
    }
    write(folder, diffusers.StableDiffusionXLPipeline, **plain | parts)


def sdxl_turbo(folder: Path) -> None:
    """As SDXL-turbo and Lightning ship: steps counted from the noisy end."""
    sdxl(folder, scheduler=diffusers.EulerDiscreteScheduler(**BETAS, timestep_spacing="trailing"))


def sd3(folder: Path, **parts: object) -> None:
    plain = {
        "transformer": diffusers.SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=LATENTS,
            out_channels=LATENTS,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=2 * WIDTH,
            caption_projection_dim=16,
            pooled_projection_dim=2 * WIDTH,
            pos_embed_max_size=8,
        ),
        "scheduler": flow(shift=3.0),
        "vae": vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0609),
        "text_encoder": clip_text(t.CLIPTextModelWithProjection),
        "tokenizer": clip_tokenizer(),
        "text_encoder_2": clip_text(t.CLIPTextModelWithProjection),
        "tokenizer_2": clip_tokenizer(),
        "text_encoder_3": t5(2 * WIDTH),
        "tokenizer_3": t5_tokenizer(),
    }
    write(folder, diffusers.StableDiffusion3Pipeline, **plain | parts)


def sd3_without_t5(folder: Path) -> None:
    sd3(folder, text_encoder_3=None, tokenizer_3=None)


def flux(folder: Path, guidance_embeds: bool = True) -> None:
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=4 * LATENTS,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 4, 8),
    )
    write(
        folder,
        diffusers.FluxPipeline,
        scheduler=flow(shift=3.0, use_dynamic_shifting=guidance_embeds),
        vae=vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1159),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
        transformer=transformer,
    )


def flux_schnell(folder: Path) -> None:
    flux(folder, guidance_embeds=False)


def flux2_parts(layers: int, guidance_embeds: bool) -> dict[str, object]:
    """What both kinds of FLUX.2 share; they read three hidden states of the language model at once."""
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=4 * LATENTS,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=layers * WIDTH,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
    )
    autoencoder = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=LATENTS,
        norm_num_groups=4,
        sample_size=64,
    )
    return {"scheduler": flow(use_dynamic_shifting=True), "vae": autoencoder, "transformer": transformer}


def flux2(folder: Path) -> None:
    from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE

    tokenizer = qwen_tokenizer(SYSTEM_MESSAGE)
    tokenizer.add_tokens(["[IMG]", "[IMG_BREAK]", "[IMG_END]"])
    text = decoder("MistralModel", len(tokenizer), layers=31).config
    vision = t.PixtralVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    encoder = t.Mistral3ForConditionalGeneration(
        t.Mistral3Config(
            text_config=text,
            vision_config=vision,
            image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
            tie_word_embeddings=False,
        )
    )
    processor = t.PixtralProcessor(
        image_processor=t.PixtralImageProcessor(), tokenizer=tokenizer, patch_size=8, chat_template=CHAT
    )
    parts = flux2_parts(3, guidance_embeds=True)
    write(folder, diffusers.Flux2Pipeline, text_encoder=encoder, tokenizer=processor, **parts)


def flux2_klein(folder: Path) -> None:
    tokenizer = qwen_tokenizer()
    write(
        folder,
        diffusers.Flux2KleinPipeline,
        text_encoder=decoder("Qwen3ForCausalLM", len(tokenizer), layers=28),
        tokenizer=tokenizer,
        is_distilled=False,
        **flux2_parts(3, guidance_embeds=False),
    )


def pixart(folder: Path) -> None:
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=32,  # the pipeline knows bins of sizes for 32, 64 and 128 only
        in_channels=LATENTS,
        out_channels=2 * LATENTS,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        use_additional_conditions=False,
    )
    write(
        folder,
        diffusers.PixArtSigmaPipeline,
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        vae=vae(scaling_factor=0.13025),
        transformer=transformer,
        scheduler=diffusers.DPMSolverMultistepScheduler(beta_end=0.02, beta_start=0.0001),
    )


def sana_parts(kind: type, guidance_embeds: bool) -> dict[str, object]:
    instruction = inspect.signature(kind.__call__).parameters["complex_human_instruction"].default
    tokenizer = gemma_tokenizer(" ".join(instruction))
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=LATENTS,
        out_channels=LATENTS,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        sample_size=32,
        guidance_embeds=guidance_embeds,
        qk_norm="rms_norm_across_heads" if guidance_embeds else None,
    )
    blocks = 6  # of factor 32
    autoencoder = diffusers.AutoencoderDC(
        latent_channels=LATENTS,
        attention_head_dim=4,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(8,) * blocks,
        decoder_block_out_channels=(8,) * blocks,
        encoder_layers_per_block=(1,) * blocks,
        decoder_layers_per_block=(1,) * blocks,
        encoder_qkv_multiscales=((),) * blocks,
        decoder_qkv_multiscales=((),) * blocks,
        scaling_factor=0.41407,
    )
    return {
        "tokenizer": tokenizer,
        "text_encoder": decoder("Gemma2Model", len(tokenizer)),
        "vae": autoencoder,
        "transformer": transformer,
    }


def sana(folder: Path) -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    parts = sana_parts(diffusers.SanaPipeline, guidance_embeds=False)
    write(folder, diffusers.SanaPipeline, scheduler=scheduler, **parts)


def sana_sprint(folder: Path) -> None:
    """Not among those that AutoPipeline knows."""
    scheduler = diffusers.SCMScheduler(prediction_type="trigflow", sigma_data=0.5)
    parts = sana_parts(diffusers.SanaSprintPipeline, guidance_embeds=True)
    write(folder, diffusers.SanaSprintPipeline, scheduler=scheduler, **parts)


def qwen_image(folder: Path) -> None:
    tokenizer = qwen_tokenizer()
    encoder = t.Qwen2_5_VLForConditionalGeneration(
        t.Qwen2_5_VLConfig(
            text_config={
                "vocab_size": len(tokenizer),
                "hidden_size": WIDTH,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "bos_token_id": None,
                "eos_token_id": None,
                "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6},
            },
            vision_config={
                "depth": 1,
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_heads": 2,
                "out_hidden_size": WIDTH,
                "fullatt_block_indexes": [0],
            },
            image_token_id=0,
            video_token_id=0,
            vision_start_token_id=0,
            vision_end_token_id=0,
        )
    )
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=4 * LATENTS,
        out_channels=LATENTS,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(8, 4, 4),
    )
    autoencoder = diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=LATENTS,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.0] * LATENTS,
        latents_std=[1.0] * LATENTS,
    )
    write(
        folder,
        diffusers.QwenImagePipeline,
        scheduler=flow(use_dynamic_shifting=True),
        vae=autoencoder,
        text_encoder=encoder,
        tokenizer=tokenizer,
        transformer=transformer,
    )


def z_image(folder: Path) -> None:
    tokenizer = qwen_tokenizer()
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=LATENTS,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[8, 4, 4],
        axes_lens=[1024, 32, 32],
    )
    write(
        folder,
        diffusers.ZImagePipeline,
        scheduler=flow(shift=3.0),
        vae=vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1159),
        text_encoder=decoder("Qwen3Model", len(tokenizer)),
        tokenizer=tokenizer,
        transformer=transformer,
    )


def kandinsky22(folder: Path) -> None:
    """Prior and decoder in one folder."""
    write(
        folder,
        diffusers.KandinskyV22CombinedPipeline,
        unet=unet(
            sample_size=256,  # twice that, 512, is the size that its call has; of the real one 8 times 64
            out_channels=2 * LATENTS,
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            resnet_time_scale_shift="scale_shift",
            addition_embed_type="image",
            encoder_hid_dim=WIDTH,
            encoder_hid_dim_type="image_proj",
        ),
        scheduler=diffusers.DDPMScheduler(
            beta_start=0.00085, beta_end=0.012, variance_type="learned_range", clip_sample=False
        ),
        movq=movq(),
        prior_prior=diffusers.PriorTransformer(
            num_attention_heads=2, attention_head_dim=8, num_layers=1, embedding_dim=WIDTH
        ),
        prior_image_encoder=clip_image(),
        prior_text_encoder=clip_text(t.CLIPTextModelWithProjection),
        prior_tokenizer=clip_tokenizer(),
        prior_scheduler=diffusers.UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0
        ),
        prior_image_processor=clip_images(),
    )


def if_parts(**more: object) -> dict[str, object]:
    return {
        "tokenizer": t5_tokenizer(),
        "text_encoder": t5(),
        "unet": unet(
            **{
                "sample_size": 64,
                "in_channels": 3,
                "out_channels": 6,
                "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
                "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
                "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
                "addition_embed_type": "text",
                "addition_embed_type_num_heads": 2,
                "cross_attention_norm": "group_norm",
                "cross_attention_dim": 32,
                "encoder_hid_dim": WIDTH,
                "only_cross_attention": True,
                "resnet_time_scale_shift": "scale_shift",
                "time_embedding_act_fn": "gelu",
                "act_fn": "gelu",
            }
            | more
        ),
        "scheduler": diffusers.DDPMScheduler(
            beta_schedule="squaredcos_cap_v2",
            thresholding=True,
            dynamic_thresholding_ratio=0.95,
            sample_max_value=1.5,
            variance_type="learned_range",
        ),
        "safety_checker": None,
        "feature_extractor": None,
        "watermarker": None,
        "requires_safety_checker": False,
    }


def if1(folder: Path) -> None:
    write(folder, diffusers.IFPipeline, **if_parts())


def if2(folder: Path) -> None:
    """The second stage: takes the first one's image."""
    parts = if_parts(sample_size=128, in_channels=6, class_embed_type="timestep")
    noising = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    write(folder, diffusers.IFSuperResolutionPipeline, image_noising_scheduler=noising, **parts)


# --- families that synthgen has no facts of ---


def aura_flow(folder: Path) -> None:
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=8,
        in_channels=LATENTS,
        out_channels=LATENTS,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=16,
        pos_embed_max_size=256,
    )
    write(
        folder,
        diffusers.AuraFlowPipeline,
        tokenizer=t5_tokenizer(),
        text_encoder=t5(kind="UMT5"),
        vae=vae(),
        transformer=transformer,
        scheduler=flow(shift=1.73),
    )


def chroma(folder: Path) -> None:
    transformer = diffusers.ChromaTransformer2DModel(
        in_channels=4 * LATENTS,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    write(
        folder,
        diffusers.ChromaPipeline,
        scheduler=flow(),
        vae=vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1159),
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
        transformer=transformer,
    )


def cogview4(folder: Path) -> None:
    """Pads to the longest prompt of the batch and has no mask for it: neighbours change an image."""
    tokenizer = begin(qwen_tokenizer(), "<|im_start|>")
    tokenizer.padding_side = "left"
    transformer = diffusers.CogView4Transformer2DModel(
        in_channels=LATENTS,
        out_channels=LATENTS,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=WIDTH,
        time_embed_dim=8,
        condition_dim=4,
        rope_axes_dim=(32, 32),
        sample_size=8,
    )
    write(
        folder,
        diffusers.CogView4Pipeline,
        tokenizer=tokenizer,
        text_encoder=decoder("GlmModel", len(tokenizer)),
        vae=vae(),
        transformer=transformer,
        scheduler=flow(base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True, time_shift_type="linear"),
    )


def lumina2(folder: Path) -> None:
    system = (
        "You are an assistant designed to generate superior images with the degree of image-text alignment"
    )
    tokenizer = gemma_tokenizer(system)
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=LATENTS,
        hidden_size=24,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 4, 4),
        axes_lens=(512, 32, 32),
        cap_feat_dim=WIDTH,
    )
    write(
        folder,
        diffusers.Lumina2Pipeline,
        transformer=transformer,
        scheduler=flow(shift=6.0),
        vae=vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1159),
        text_encoder=decoder("Gemma2Model", len(tokenizer)),
        tokenizer=tokenizer,
    )


def prx(folder: Path) -> None:
    """Fails for more than one prompt at once where there is guidance."""
    from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

    tokenizer = gemma_tokenizer()
    tokenizer.model_max_length = 64
    module = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
    }
    config = t.T5GemmaConfig(encoder=module, decoder=module)
    transformer = diffusers.PRXTransformer2DModel(
        in_channels=LATENTS,
        context_in_dim=WIDTH,
        hidden_size=16,
        num_heads=2,
        depth=1,
        axes_dim=[4, 4],
    )
    write(
        folder,
        diffusers.PRXPipeline,
        transformer=transformer,
        scheduler=flow(shift=3.0),
        text_encoder=T5GemmaEncoder(config.encoder),
        tokenizer=tokenizer,
        vae=vae(shift_factor=0.0),
        default_sample_size=512,
    )
    config.save_pretrained(folder / "text_encoder")  # diffusers reads the encoder's part out of the whole


# --- what is to be refused ---


def inpainting(folder: Path) -> None:
    """Nine channels, and the class of text-to-image: diffusers loads it without a word."""
    sd1(folder, unet=unet(in_channels=2 * LATENTS + 1))


def without_text_encoder(folder: Path) -> None:
    """Listed in the index as not there."""
    sd1(folder, text_encoder=None)


def without_weights(folder: Path) -> None:
    """Listed in the index, but the folder is gone: half a download."""
    sd1(folder)
    shutil.rmtree(folder / "text_encoder")


# --- what is added to a pipeline ---


def lora(folder: Path, base: Path) -> None:
    """A LoRA of rank 2 for the denoiser of `base`, an SD or SDXL folder."""
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipeline = diffusers.DiffusionPipeline.from_pretrained(base, local_files_only=True)
    adapted = pipeline.unet
    adapted.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    drawn = torch.Generator().manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=drawn) * 0.3)
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(adapted))
    pipeline.save_lora_weights(folder, unet_lora_layers=layers)


def ip_adapter(folder: Path, base: Path) -> None:
    """An IP-Adapter for the SD folder `base`: FOLDER/models/ip-adapter.safetensors, and its image encoder."""
    from safetensors.torch import save_file

    pipeline = diffusers.DiffusionPipeline.from_pretrained(base, local_files_only=True)
    drawn = torch.Generator().manual_seed(2)
    width, tokens = pipeline.unet.config.cross_attention_dim, 4
    shapes = {
        "image_proj.proj.weight": (tokens * width, WIDTH),
        "image_proj.proj.bias": (tokens * width,),
        "image_proj.norm.weight": (width,),
        "image_proj.norm.bias": (width,),
    }
    crossed = [name for name in pipeline.unet.attn_processors if "attn2" in name]
    for k, name in enumerate(crossed):
        module = pipeline.unet.get_submodule(name.removesuffix(".processor"))
        for part in ("to_k_ip", "to_v_ip"):
            shapes[f"ip_adapter.{2 * k + 1}.{part}.weight"] = (module.inner_dim, width)
    tensors = {name: torch.randn(shape, generator=drawn) * 0.3 for name, shape in shapes.items()}
    tensors["image_proj.norm.weight"] += 1.0
    encoder = clip_image()
    weights(encoder)
    encoder.save_pretrained(folder / "models" / "image_encoder")
    save_file(tensors, folder / "models" / "ip-adapter.safetensors")


FAMILIES: dict[str, Build] = {
    "sd1": sd1,
    "sd2": sd2,
    "lcm": lcm,
    "sdxl": sdxl,
    "sdxl-turbo": sdxl_turbo,
    "sd3": sd3,
    "sd3-without-t5": sd3_without_t5,
    "flux": flux,
    "flux-schnell": flux_schnell,
    "flux2": flux2,
    "flux2-klein": flux2_klein,
    "pixart": pixart,
    "sana": sana,
    "sana-sprint": sana_sprint,
    "qwen-image": qwen_image,
    "z-image": z_image,
    "kandinsky22": kandinsky22,
    "if1": if1,
}
UNTESTED: dict[str, Build] = {
    "aura-flow": aura_flow,
    "chroma": chroma,
    "cogview4": cogview4,
    "lumina2": lumina2,
    "prx": prx,
}
WRONG: dict[str, Build] = {
    "inpainting": inpainting,
    "without-text-encoder": without_text_encoder,
    "without-weights": without_weights,
    "second-stage": if2,
}
CHECKED: dict[str, Build] = {"sd1-checked": sd1_checked}
