"""Records of the commands: their options, help and command lines; nothing here imports torch."""
