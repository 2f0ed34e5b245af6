"""The part of `LLM` that is about conversations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .text.chat import ChatFormat, ChatSettings, chat_prompts, chosen_format
from .text.hf_tokenizer import HfTokenizer

if TYPE_CHECKING:
    from .model_summary import ModelSummary
    from .outputs import RequestOutput
    from .progress_bar import UseTqdm
    from .sampling_params import SamplingParams

    Params = SamplingParams | Mapping[str, Any]


class ChatCalls(ABC):
    """What `LLM` does with conversations."""

    summary: ModelSummary
    _hf_tokenizer: HfTokenizer | None = None

    @abstractmethod
    def generate(
        self, prompts: Any, sampling_params: Params | Sequence[Params] | None = None, **options: Any
    ) -> list[RequestOutput]: ...

    @property
    def chat_format(self) -> ChatFormat:
        """Renders conversations; its `name` says what "auto" has found."""
        return self.summary.chat_format

    def chat(
        self,
        messages: Any,
        sampling_params: Params | Sequence[Params] | None = None,
        use_tqdm: UseTqdm = None,
        *,
        chat: ChatSettings | Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **others: Any,
    ) -> list[RequestOutput]:
        """Writes the assistant's next message in each conversation. Results are those of `generate`.

        A completion ends where the assistant's turn ends, unless its sampling parameters have a `stop`.

        Args:
            messages: a conversation, which is a list of mappings with "role" and "content", or a list of conversations.
            sampling_params, use_tqdm, others: as those of `generate`.
            chat: how conversations become prompts: `ChatSettings`, or a mapping of its fields, in place of the
                model's `chat`.
            tools: what the model may call: definitions of functions, as in OpenAI's API.
            chat_template: a Jinja chat template, or a file that holds one: short for `chat={"template": ...}`.
            chat_template_kwargs: further names for a chat template, such as {"enable_thinking": False}.
            add_generation_prompt: begin the assistant's turn. An assistant's message at the end is continued instead.
            continue_final_message: the last message, which must be the assistant's, is continued.

        Raises:
            ConfigurationError: the format or the template cannot be used.
            ValueError: as `generate` does.
        """
        path = self.summary.file.checkpoint.path
        prompts = chat_prompts(
            messages,
            {
                "tools": tools,
                "chat_template_kwargs": chat_template_kwargs,
                "add_generation_prompt": add_generation_prompt,
                "continue_final_message": continue_final_message,
                "chat_format": chosen_format(chat, chat_template, path) or self.chat_format,
            },
        )
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm, **others)

    def get_tokenizer(self) -> HfTokenizer:
        """Returns the tokenizer with the methods of Hugging Face's tokenizers.

        Raises:
            ValueError: the model was loaded with tokenizer=None.
        """
        if self.summary.tokenizer is None:
            raise ValueError("get_tokenizer: this model was loaded with tokenizer=None")
        if self._hf_tokenizer is None:
            self._hf_tokenizer = HfTokenizer(self.summary.tokenizer, self.chat_format)
        return self._hf_tokenizer
