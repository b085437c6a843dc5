"""A run: the engine's stages over files, each resumable by its marker. Knows nothing of Luigi."""
