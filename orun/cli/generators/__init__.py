"""What ``orun generate`` writes, each derived from the command tree or the settings."""
