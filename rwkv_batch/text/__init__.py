"""Text and token ids: tokenizers, detokenizer and stop strings, chat formats, constraints."""
