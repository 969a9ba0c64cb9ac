"""Model files, tokenizers and chat templates.

Sessions, interfaces and the command line import this package; it imports `memory`, `tape` and `errors`.
The invariant: nothing of a model file is used before it was checked, and no file is trusted.
"""

from nocopy.models.chat_template import ChatTemplate
from nocopy.models.detokenizer import Detokenizer
from nocopy.models.ggml import GGMLType
from nocopy.models.gguf import GGUFModel, open_gguf
from nocopy.models.huggingface import FolderModel, open_folder
from nocopy.models.load import open_model
from nocopy.models.metadata import Metadata
from nocopy.models.model import Model
from nocopy.models.open import ModelFiles, load_chat_template, load_tokenizer, open_files
from nocopy.models.tokenizer import Tokenizer
from nocopy.models.weights import Weight, Weights

__all__ = [
    "ChatTemplate",
    "Detokenizer",
    "FolderModel",
    "GGMLType",
    "GGUFModel",
    "Metadata",
    "Model",
    "ModelFiles",
    "Tokenizer",
    "Weight",
    "Weights",
    "load_chat_template",
    "load_tokenizer",
    "open_files",
    "open_folder",
    "open_gguf",
    "open_model",
]
