"""Drawing with vLLM. Nothing is imported here: vLLM's workers load `worker` before anything of ours."""
