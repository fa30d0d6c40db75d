"""The Zig engine: built, loaded, and its functions' Python faces."""
