"""The tokenizer of a CLIP text encoder, from its folder; nothing is fetched.

transformers is imported when one is loaded. It does not know what is counted or encoded.
"""

from pathlib import Path
from typing import Any

from segdatagen.errors import UsageError, one_line


def load_clip_tokenizer(folder: Path) -> Any:
    """transformers' CLIPTokenizer. Raises UsageError, in one line, where it cannot be made of what the folder holds."""
    from transformers import CLIPTokenizer

    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, TypeError, ValueError) as error:
        raise UsageError(f"the tokenizer {folder} cannot be loaded: {one_line(error)}") from error
