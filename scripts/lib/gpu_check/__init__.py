"""The stages of scripts/gpu-check."""
