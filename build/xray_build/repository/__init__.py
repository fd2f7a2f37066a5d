"""Write model configurations; publish, verify and roll back versions."""
