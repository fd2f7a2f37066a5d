"""Radiographs with labels and patients: found, split, cached, audited, augmented and sampled."""
