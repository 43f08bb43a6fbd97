"""Networks that look at images: the real classes of transformers, timm and torchvision, tiny, with random
weights.
"""

from pathlib import Path

import numpy as np
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from timm.models import save_for_hf
from transformers import (
    BertConfig,
    BertModel,
    BitImageProcessor,
    Dinov2Config,
    Dinov2Model,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTMAEConfig,
    ViTMAEModel,
)

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
LABELS = ["apple", "cat, tabby cat", "zebra"]


def vit_classifier(folder: Path, labels: list[str] = LABELS) -> Path:
    torch.manual_seed(0)
    config = ViTConfig(**TINY, image_size=32, patch_size=8, id2label=dict(enumerate(labels)))
    model = ViTForImageClassification(config)
    torch.nn.init.normal_(model.classifier.weight, std=2.0)
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def dinov2(folder: Path) -> Path:
    torch.manual_seed(1)
    Dinov2Model(Dinov2Config(**TINY, image_size=28, patch_size=14)).save_pretrained(folder)
    BitImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}, do_convert_rgb=True
    ).save_pretrained(folder)
    return folder


def resnet(folder: Path) -> Path:
    torch.manual_seed(2)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def masked_autoencoder(folder: Path) -> Path:
    """Of which each call sees other patches."""
    torch.manual_seed(3)
    ViTMAEModel(ViTMAEConfig(**TINY, image_size=32, patch_size=8)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def bert(folder: Path) -> Path:
    BertModel(BertConfig(**TINY, vocab_size=20)).save_pretrained(folder)
    return folder


def timm_classifier(folder: Path, labels: list[str] | None = None, classes: int = 3) -> Path:
    torch.manual_seed(4)
    model = timm.create_model("test_vit", num_classes=classes)
    torch.nn.init.normal_(model.head.weight, std=2.0)
    config = {"label_names": labels} if labels else {}
    save_for_hf(model, str(folder), model_config=config, safe_serialization=True)
    return folder


def shufflenet(file: Path, classes: int = 3) -> Path:
    """A state dict of torchvision's smallest network, as safetensors or as torch saves it."""
    torch.manual_seed(5)
    tensors = torchvision.models.shufflenet_v2_x0_5(weights=None, num_classes=classes).state_dict()
    if file.suffix == ".safetensors":
        save_file(tensors, file)
    else:
        torch.save({"state_dict": {f"module.{key}": value for key, value in tensors.items()}}, file)
    return file


def sequential(file: Path, places: dict[int, tuple[int, int]], prefix: str = "layers.") -> torch.nn.Module:
    """Saves linear layers, place in a Sequential -> inputs and outputs; gives them by their places."""
    torch.manual_seed(6)
    layers = torch.nn.ModuleDict({str(place): torch.nn.Linear(*shape) for place, shape in places.items()})
    tensors = {f"{prefix}{key}": value for key, value in layers.state_dict().items()}
    save_file(tensors, file) if file.suffix == ".safetensors" else torch.save(tensors, file)
    return layers


def picture(seed: int, side: int = 48) -> np.ndarray:
    """A few clouds of random colours, of height `side`."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((side + 12, side), Image.Resampling.BICUBIC))
