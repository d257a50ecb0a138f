"""Rules: values and a moment in, decisions out. No clock, no chance, no I/O."""
