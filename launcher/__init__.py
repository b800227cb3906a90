"""What a person types: the `blsp` command, recipes, and the entry that `deepspeed` starts."""
