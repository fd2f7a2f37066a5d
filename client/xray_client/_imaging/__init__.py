"""Radiograph files in, prepared images and overlays out."""
