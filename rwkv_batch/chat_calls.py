"""The part of `LLM` that is about conversations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import arguments
from .errors import ConfigurationError
from .text.chat import ChatFormat, ChatSettings, chat_prompts, chosen_format
from .text.hf_tokenizer import HfTokenizer
from .text.thoughts import constraint_of, no_thought
from .vllm_arguments import GENERATE_ARGUMENTS, own_arguments

if TYPE_CHECKING:
    from .model_summary import ModelSummary
    from .outputs import RequestOutput
    from .progress_bar import UseTqdm
    from .sampling_params import SamplingParams

    Params = SamplingParams | Mapping[str, Any]


CHAT_ARGUMENTS = (
    "messages",
    "sampling_params",
    "use_tqdm",
    "chat",
    "tools",
    "chat_template",
    "chat_template_kwargs",
    "add_generation_prompt",
    "continue_final_message",
)


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
            chat_template_kwargs: further names for a chat template, such as {"enable_thinking": False}, which closes
                the thought in the other formats too.
            add_generation_prompt: begin the assistant's turn. An assistant's message at the end is continued instead.
            continue_final_message: the last message, which must be the assistant's, is continued.

        Raises:
            ConfigurationError: the format or the template cannot be used; or completions with a constraint, such as
                `json_schema`, would begin with a thought.
            ValueError: as `generate` does.
        """
        own_arguments("LLM.chat", others, CHAT_ARGUMENTS, GENERATE_ARGUMENTS)
        path = self.summary.file.checkpoint.path
        found = chosen_format(chat, chat_template, path) or self.chat_format
        if found.opens_thought and not chat_template_kwargs:  # these may close the thought
            _refuse_constraint(sampling_params)
        prompts = chat_prompts(
            messages,
            {
                "tools": tools,
                "chat_template_kwargs": chat_template_kwargs,
                "add_generation_prompt": add_generation_prompt,
                "continue_final_message": continue_final_message,
                "chat_format": found,
            },
        )
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm)

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


def _refuse_constraint(params: Any) -> None:
    """Raises ConfigurationError where sampling parameters for all conversations constrain the text."""
    if arguments.is_one_params(params):
        (one,) = arguments.params_list(params, 1)
        if constraint := constraint_of(one):
            raise ConfigurationError(no_thought(constraint), setting="chat.think")
