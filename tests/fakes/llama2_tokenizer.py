"""A tokenizer directory like Llama 2's: SentencePiece pieces, byte fallback, a leading space that decoding drops."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

PIECES = ["▁", *"abcdehlorstw.", "▁a", "he", "▁he", "llo", "▁▁"]
MERGES = [("▁", "a"), ("h", "e"), ("▁", "he"), ("l", "l"), ("ll", "o"), ("▁", "▁")]
VOCAB = {
    piece: number
    for number, piece in enumerate(["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *PIECES, "ll"])
}


def write_llama2_tokenizer(directory: Path, *, chat_template: str | None = None) -> int:
    """Writes tokenizer.json and tokenizer_config.json; returns the vocabulary size."""
    backend = Tokenizer(models.BPE(VOCAB, MERGES, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.add_special_tokens([AddedToken(name, special=True) for name in ("<unk>", "<s>", "</s>")])
    backend.save(str(directory / "tokenizer.json"))
    config: dict[str, object] = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if chat_template is not None:
        config["chat_template"] = chat_template
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return len(VOCAB)
