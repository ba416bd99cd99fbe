"""Upload of a finished run to the model hub."""

import re
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import HfApi

from utils.errors import note
from utils.lora import SAFETENSORS

UPLOADED = ["pytorch_lora_weights.*", "conv_in.safetensors", "metrics.jsonl", "validation/*", "README.md"]


def push(output_dir: Path, repo_id: str | None, token: str | None, metadata: Mapping[str, object]) -> None:
    """Upload the LoRA, a model card and the validation panels; print the address, or why it failed.

    A failed upload never loses a run: the files are in `output_dir`, and the message says how to send them.
    """
    try:
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id or output_dir.name, exist_ok=True).repo_id
        (output_dir / "README.md").write_text(model_card(repo_id, metadata))
        api.upload_folder(
            repo_id=repo_id, folder_path=output_dir, allow_patterns=UPLOADED, commit_message="End of training"
        )
        print(f"uploaded to {api.endpoint}/{repo_id}")
    except Exception as error:  # network, rights, quota: whatever it is, the run itself is safe on disk
        reason = " ".join(str(error).split())[:300]
        note(f"--push_to_hub failed ({reason}); everything is in {output_dir}: hf upload <name> {output_dir}")


def model_card(repo_id: str, metadata: Mapping[str, object]) -> str:
    """README.md of the hub repository: base model, what it draws, how to load it."""
    base = str(metadata["base_model"])
    # the hub refuses a card whose base model is a path
    base_line = f"base_model: {base}\n" if re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not Path(base).exists() else ""
    base = base if base_line else Path(base).name  # nor does anybody need to know where that path was
    rows = "\n".join(f"| {key} | {value} |" for key, value in {**metadata, "base_model": base}.items())
    return f"""---
{base_line}library_name: diffusers
tags: [lora, intrinsic-lora, {metadata["task"]}]
---
# {repo_id}

A LoRA that turns {base} into a predictor of {metadata["task"]} ({metadata["method"]}).

| | |
|---|---|
{rows}

    pipeline.unet.load_attn_procs("{repo_id}", weight_name="{SAFETENSORS}")  # diffusers < 0.40
"""
