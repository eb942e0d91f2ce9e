"""llama.cpp in this process, by the binding xllamacpp: GGUF files, with llama.cpp's own tokeniser and options."""
