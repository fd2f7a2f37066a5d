"""`python -m xray_build.repository` writes the configurations of a model repository."""

from .model_config import main

main()
