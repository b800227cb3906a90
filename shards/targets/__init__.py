"""Whether what an LLM wrote is worth learning: filters, how much emotion it carries, what its words give away."""
