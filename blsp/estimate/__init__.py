"""What a training costs before anything is spent, from configurations alone: nothing here needs torch."""
