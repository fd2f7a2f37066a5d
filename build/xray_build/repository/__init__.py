"""Model configurations and versions: written, published, verified and rolled back."""
