"""The policies that commands draw from: of this process, of vLLM, of a server, of many workers."""
