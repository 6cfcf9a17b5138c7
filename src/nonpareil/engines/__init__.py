"""Where completions are drawn: transformers in this process, vLLM, or a server with the OpenAI protocol."""
