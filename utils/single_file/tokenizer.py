"""CLIP's tokenizer from its list of merges (see LICENSE)."""

import gzip
import json
import shutil
import tempfile
from pathlib import Path

from transformers import CLIPTokenizer

MERGES = Path(__file__).with_name("clip_merges.txt.gz")


def clip_tokenizer(config: Path) -> CLIPTokenizer:
    """The tokenizer of Stable Diffusion. config: a folder with tokenizer_config.json: what pads, and to which length.

    Token ids are CLIP's: the 256 byte characters, the same at a word's end, one per merge, start, end.
    """
    merges = gzip.decompress(MERGES.read_bytes()).decode()
    letters = list(map(chr, [*range(33, 127), *range(161, 173), *range(174, 256)]))  # the bytes that print
    letters += [chr(256 + i) for i in range(256 - len(letters))]  # the others, in their order
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    tokens += [merge.replace(" ", "") for merge in merges.splitlines()]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
        Path(folder, "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
        shutil.copy(config / "tokenizer_config.json", folder)
        return CLIPTokenizer.from_pretrained(folder)
