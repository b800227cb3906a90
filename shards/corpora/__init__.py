"""Readers: one file per corpus layout, from a folder as it was unpacked to utterances, and what makes their manifest.

A reader never stops at one bad file or line: it yields a `Reject` and goes on. An unknown emotion is rejected and
counted, never guessed. A layout that is not there at all is a ValueError.
"""
