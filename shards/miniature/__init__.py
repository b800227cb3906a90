"""The speech of the miniature: synthesised, in voices and tones."""
