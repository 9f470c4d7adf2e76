"""refimpl: GPT-NeoX and GPT-NeoX-Japanese as a readable specification that runs.

Everything public is here; a name is imported from its module when it is first used, so that
`import refimpl` stays quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

#: public name -> the module that defines it
_EXPORTS = {
    "AttentionMaskVisualizer": "refimpl.attention_visualizer",
    "AutoConfig": "refimpl.auto",
    "AutoModel": "refimpl.auto",
    "AutoModelForCausalLM": "refimpl.auto",
    "AutoModelForQuestionAnswering": "refimpl.auto",
    "AutoModelForSequenceClassification": "refimpl.auto",
    "AutoModelForTokenClassification": "refimpl.auto",
    "AutoTokenizer": "refimpl.auto",
    "BaseModelOutputWithPast": "refimpl.outputs",
    "BitsAndBytesConfig": "refimpl.quantization",
    "CausalLMOutputWithPast": "refimpl.outputs",
    "DynamicCache": "refimpl.cache",
    "GPTNeoXConfig": "refimpl.config",
    "GPTNeoXForCausalLM": "refimpl.gpt_neox",
    "GPTNeoXForQuestionAnswering": "refimpl.gpt_neox_heads",
    "GPTNeoXForSequenceClassification": "refimpl.gpt_neox_heads",
    "GPTNeoXForTokenClassification": "refimpl.gpt_neox_heads",
    "GPTNeoXJapaneseConfig": "refimpl.config",
    "GPTNeoXJapaneseForCausalLM": "refimpl.gpt_neox_japanese",
    "GPTNeoXJapaneseModel": "refimpl.gpt_neox_japanese",
    "GPTNeoXJapaneseTokenizer": "refimpl.tokenizer",
    "GPTNeoXModel": "refimpl.gpt_neox",
    "GPTNeoXTokenizer": "refimpl.tokenizer",
    "GPTNeoXTokenizerFast": "refimpl.tokenizer",
    "GenerationConfig": "refimpl.generation.config",
    "PromptCache": "refimpl.prompt_cache",
    "QuestionAnsweringModelOutput": "refimpl.outputs",
    "RefimplError": "refimpl.errors",
    "SequenceClassifierOutputWithPast": "refimpl.outputs",
    "StaticCache": "refimpl.static_cache",
    "T5Tokenizer": "refimpl.tokenizer",
    "TextIteratorStreamer": "refimpl.generation.streamers",
    "TextStreamer": "refimpl.generation.streamers",
    "TokenClassifierOutput": "refimpl.outputs",
    "embedded_model_path": "refimpl.embedded_model",
    "get_backend": "refimpl.backends",
    "pipeline": "refimpl.pipelines",
    "to_numpy": "refimpl.arrays",
}

__all__ = sorted([*_EXPORTS, "__version__"])

if TYPE_CHECKING:
    from refimpl.arrays import to_numpy
    from refimpl.attention_visualizer import AttentionMaskVisualizer
    from refimpl.auto import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForQuestionAnswering,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
        AutoTokenizer,
    )
    from refimpl.backends import get_backend
    from refimpl.cache import DynamicCache
    from refimpl.config import GPTNeoXConfig, GPTNeoXJapaneseConfig
    from refimpl.embedded_model import embedded_model_path
    from refimpl.errors import RefimplError
    from refimpl.generation.config import GenerationConfig
    from refimpl.generation.streamers import TextIteratorStreamer, TextStreamer
    from refimpl.gpt_neox import GPTNeoXForCausalLM, GPTNeoXModel
    from refimpl.gpt_neox_heads import (
        GPTNeoXForQuestionAnswering,
        GPTNeoXForSequenceClassification,
        GPTNeoXForTokenClassification,
    )
    from refimpl.gpt_neox_japanese import GPTNeoXJapaneseForCausalLM, GPTNeoXJapaneseModel
    from refimpl.outputs import (
        BaseModelOutputWithPast,
        CausalLMOutputWithPast,
        QuestionAnsweringModelOutput,
        SequenceClassifierOutputWithPast,
        TokenClassifierOutput,
    )
    from refimpl.pipelines import pipeline
    from refimpl.prompt_cache import PromptCache
    from refimpl.quantization import BitsAndBytesConfig
    from refimpl.static_cache import StaticCache
    from refimpl.tokenizer import (
        GPTNeoXJapaneseTokenizer,
        GPTNeoXTokenizer,
        GPTNeoXTokenizerFast,
        T5Tokenizer,
    )


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'refimpl' has no attribute {name!r}")
    value = getattr(import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
