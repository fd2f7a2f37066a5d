"""Radiographs with labels and patients: sources, splits, cache, audit, augmentation and sampling."""
