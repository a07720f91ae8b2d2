"""A vision tower of the SigLIP 2 so400m/14 architecture with random weights and few layers, for trying the encode stage without a download.

    python examples/real/random_tower.py FOLDER [--layers 1] [--size 224] [--patch 14] [--width 1152] [--heads 16]

Its latents have the true shape, 256 x 1152 at 224 px, and no meaning. A small one that is wide and shallow still holds what it saw, so that a decoder
can be fitted to it (docs/decoders.md). Writes config.json, model.safetensors and preprocessor_config.json.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import SiglipVisionConfig, SiglipVisionModel
from transformers.utils import logging

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--patch", type=int, default=14)
    parser.add_argument("--width", type=int, default=1152)
    parser.add_argument("--heads", type=int, default=16)
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=args.width,
        intermediate_size=4304 * args.width // 1152,
        num_attention_heads=args.heads,
        num_hidden_layers=args.layers,
        patch_size=args.patch,
        image_size=args.size,
        vision_use_head=False,
    )
    SiglipVisionModel(config).save_pretrained(args.folder)
    side = {"height": args.size, "width": args.size}
    steps = {"do_resize": True, "size": side, "resample": 2, "do_rescale": True, "rescale_factor": 1 / 255}
    steps |= {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "image_processor_type": "SiglipImageProcessor"}
    (Path(args.folder) / "preprocessor_config.json").write_text(json.dumps(steps, indent=2))
    print(args.folder)
