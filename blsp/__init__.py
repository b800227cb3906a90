"""The model that hears and how it learns: encoder, adapter, LLM, losses, engine, checkpoint, evaluation, chat."""
