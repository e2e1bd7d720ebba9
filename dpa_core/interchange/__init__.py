"""Model files: the native one (safetensors with a JSON header)."""
