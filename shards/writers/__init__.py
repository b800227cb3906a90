"""Who writes the continuations: a text LLM reads each transcript and goes on with it."""
